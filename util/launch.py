"""`python -m util.launch`: the former name of `python -m engine.launch`."""

import runpy

runpy.run_module("engine.launch", run_name="__main__", alter_sys=True)

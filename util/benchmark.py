"""`python -m util.benchmark`: the former name of `python -m scripts.benchmark`."""

import runpy

runpy.run_module("scripts.benchmark", run_name="__main__", alter_sys=True)

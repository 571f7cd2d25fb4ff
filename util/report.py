"""`python -m util.report`: the former name of `python -m scripts.report`."""

import runpy

runpy.run_module("scripts.report", run_name="__main__", alter_sys=True)

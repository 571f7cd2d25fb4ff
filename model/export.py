"""`python -m model.export`: the former name of `python -m scripts.export`."""

import runpy

runpy.run_module("scripts.export", run_name="__main__", alter_sys=True)

"""Shipped configs with a few keys changed."""

from dataclasses import replace
from typing import Any

from tests.conftest import ROOT
from unimatch_v2 import METHOD
from util.config import Config, load_config


def recipe(name: str, kind: type[Config] = METHOD.config, **changed: Any) -> Any:
    """configs/<name>.yaml, some of its keys changed. kind: the class of a method's settings, by default UniMatch V2's."""
    return replace(load_config(str(ROOT / f"configs/{name}.yaml"), kind=kind), **changed)

"""Shipped configs with a few keys changed."""

from dataclasses import replace

from tests.conftest import ROOT
from util.config import Config, load_config


def recipe(name: str, **changed: object) -> Config:
    """configs/<name>.yaml, some of its keys changed."""
    return replace(load_config(str(ROOT / f"configs/{name}.yaml")), **changed)

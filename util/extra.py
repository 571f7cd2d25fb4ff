"""Optional packages, which `requirements-extra.txt` lists."""

import importlib
from types import ModuleType

from util.error import UserError


def extra(name: str, need: str = "this format needs it") -> ModuleType:
    """An optional package. Raises UserError that says what needs it and how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{name}: not installed, and {need}; pip install -r requirements-extra.txt") from error

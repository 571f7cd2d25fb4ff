"""Optional packages, which `requirements-extra.txt` lists."""

import importlib
from types import ModuleType

from util.error import UserError


def extra(name: str) -> ModuleType:
    """An optional package. Raises UserError that says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{name}: not installed, and this format needs it; pip install -r requirements-extra.txt") from error

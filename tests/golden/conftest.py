"""Which golden folder is checked: GOLDEN, else `golden` in the folder that UNIMATCH_SHARED names."""

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest


def golden_folder() -> Path | None:
    """The folder of golden numbers, None where no variable names one."""
    if os.environ.get("GOLDEN"):
        return Path(os.environ["GOLDEN"])
    return Path(os.environ["UNIMATCH_SHARED"]) / "golden" if os.environ.get("UNIMATCH_SHARED") else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per .npz file of the folder, so that a file added there is checked without a change here."""
    if "golden" not in metafunc.fixturenames:
        return
    folder = golden_folder()
    files: list[Path | None] = [*sorted(folder.glob("*.npz"))] if folder else []
    metafunc.parametrize("golden", files or [None], ids=[file.name for file in files if file] or ["no-folder"])


@pytest.fixture
def folder() -> Path:
    found = golden_folder()
    if found is None:
        pytest.skip("no golden numbers: set GOLDEN to a folder of .npz files with their inputs.py, or UNIMATCH_SHARED to its parent")
    if not (found / "inputs.py").is_file():
        pytest.fail(f"{found} has no inputs.py, which makes the weights and inputs behind the numbers")
    return found


@pytest.fixture
def inputs(folder: Path) -> ModuleType:
    """The folder's own inputs.py."""
    spec = importlib.util.spec_from_file_location("golden_inputs", folder / "inputs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

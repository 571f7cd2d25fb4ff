"""Which golden folder is checked: GOLDEN, else `golden` in the folder that UNIMATCH_SHARED names."""

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest

FOLDERS = ("", "dinov2_reg", "dinov3", "v1", "semivl", "allspark")  # below `golden`; those of other networks follow with them


def golden_folders() -> list[Path]:
    """The folders of golden numbers, none where no variable names one."""
    if os.environ.get("GOLDEN"):
        return [Path(os.environ["GOLDEN"])]
    if not os.environ.get("UNIMATCH_SHARED"):
        return []
    golden = Path(os.environ["UNIMATCH_SHARED"]) / "golden"
    return [golden / name for name in FOLDERS if (golden / name).is_dir()]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per file of the folders, so that a file added there is checked without a change here."""
    if "golden" not in metafunc.fixturenames:
        return
    files: list[Path | None] = [
        file for folder in golden_folders() for file in [*sorted(folder.glob("*.npz")), *sorted(folder.glob("keys_*.txt"))]
    ]
    metafunc.parametrize("golden", files or [None], ids=[f"{file.parent.name}/{file.name}" for file in files if file] or ["no-folder"])


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> Path:
    """The folder of the file under test; of a test without one, the first."""
    file = request.getfixturevalue("golden") if "golden" in request.fixturenames else None
    found = [file.parent] if file else golden_folders()
    if not found:
        pytest.skip("no golden numbers: set GOLDEN to a folder of .npz files with their inputs.py, or UNIMATCH_SHARED to its parent")
    if not (found[0] / "inputs.py").is_file():
        pytest.fail(f"{found[0]} has no inputs.py, which makes the weights and inputs behind the numbers")
    return found[0]


@pytest.fixture
def inputs(folder: Path) -> ModuleType:
    """The folder's own inputs.py."""
    spec = importlib.util.spec_from_file_location("golden_inputs", folder / "inputs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

"""The house: a room imports only what stands before it, and no module imports itself by way of others (CONTRIBUTING.md)."""

import ast
import re
from pathlib import Path

from engine.method import method_names
from tests.conftest import ROOT

ROOMS = ("util", "model", "dataset", "engine", "methods", "evaluation", "scripts")
FORWARDING = {"benchmark.py", "launch.py", "report.py"}  # former names of commands: they only start what stands elsewhere now
# what a module starts by name, above it: commands under their former names, and the methods, which are found where they are asked for
STARTS = {
    **{f"util.{name}": (f"{'engine' if name == 'launch' else 'scripts'}.{name}",) for name in ("benchmark", "launch", "report")},
    **{f"model.{name}": (f"scripts.{name}",) for name in ("export", "text")},
    "dataset.preview": ("scripts.preview",),
    "engine.method": ("name",),
    "util.extra": ("name",),  # a package
    "model.backbone.timm_model": ("torchvision",),
}


def room(module: str) -> str | None:
    """The room of a module's name; None for another package's."""
    first = module.split(".")[0]
    if first in ROOMS:
        return first
    if not (ROOT / f"{first}.py").is_file():
        return None
    return "methods" if first in method_names() else "evaluation"


def modules() -> dict[str, Path]:
    """Every module outside the tests, by its name."""
    files = [path for place in ("util", "model", "dataset", "engine", "scripts") for path in (ROOT / place).rglob("*.py")]
    names = {path: path.relative_to(ROOT).with_suffix("") for path in [*files, *ROOT.glob("*.py")]}
    return {".".join(name.parts).removesuffix(".__init__"): path for path, name in names.items()}


def imported(path: Path, known: dict[str, Path]) -> set[str]:
    """The project's modules that a file imports, inside its functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {full if (full := f"{node.module}.{alias.name}") in known else str(node.module) for alias in node.names}
    return {name for name in found if room(name)}


def test_a_room_imports_only_what_stands_before_it() -> None:
    known = modules()
    for name, path in known.items():
        own = room(name)
        assert own is not None, name
        for other in imported(path, known):
            there = room(other)
            assert there is not None
            assert ROOMS.index(there) <= ROOMS.index(own), f"{name} imports {other}, which stands above it"


def test_what_is_started_by_name_is_known() -> None:
    """runpy and importlib see no room: each use of them below scripts/ is named here."""
    found: dict[str, tuple[str, ...]] = {}
    for name, path in modules().items():
        calls = re.findall(r"(?:runpy\.run_module|importlib\.import_module)\(\"?([\w.]+)", path.read_text(encoding="utf-8"))
        if calls and room(name) in ("util", "model", "dataset", "engine"):
            found[name] = tuple(calls)
    assert found == STARTS


def test_no_module_imports_itself_by_way_of_others() -> None:
    known = modules()
    uses = {name: imported(path, known) & set(known) for name, path in known.items()}
    while leaves := [name for name, others in uses.items() if not others & set(uses)]:
        for name in leaves:
            del uses[name]
    assert not uses, f"these import each other in a circle: {', '.join(sorted(uses))}"


def test_the_ground_floor_knows_no_science() -> None:
    """Small enough to read, and without torchvision, the data or the model."""
    files = [path for path in (ROOT / "util").glob("*.py") if path.name not in FORWARDING]
    assert sum(len(path.read_text().splitlines()) for path in files) <= 1335
    for path in files:
        assert "torchvision" not in path.read_text(), path
    for name in FORWARDING:
        assert len((ROOT / "util" / name).read_text().splitlines()) <= 5, f"util/{name} does more than start another module"

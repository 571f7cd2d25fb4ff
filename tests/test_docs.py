"""README.md and docs/: links resolve, and every command of theirs runs in a shell up to the program that it starts, whose own parser
takes its arguments. What is long or needs data says so in its first line; tests/test_tutorial.py runs the tutorial word for word.
"""

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from scripts import docs
from scripts.report import paper
from tests.conftest import ROOT
from tests.test_rooms import STARTS
from util.cli import Parser
from util.config import load_config

README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, *DOCS, *ROOT.glob("[A-Z]*.md"), *ROOT.glob("*/README.md")]
# programs that the documents start, other than the shell's: they record how they were called
STUBS = ("python", "python3", "pip", "git", "torchrun", "docker", "apptainer", "module", "nvidia-smi", "sbatch", "sleep")
STUB = """#!/bin/sh
case "$1" in
scripts/check_requirements.py | -c) exit 0 ;;
clone) exec ln -sfn . "$3" ;;  # the folder that `git clone` makes is this one
esac
printf '%s\\n' "${0##*/}" "$@" "--end of call--" >> "$CALLS"  # one write: calls may run side by side
"""


def texts(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str = "sh") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", texts(page), re.M | re.S)


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    heads = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", texts(page), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", texts(page), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"", prose):
        path, _, anchor = "".join(link).partition("#")
        if path.startswith(("https:", "http:")):
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_readme_is_short_and_names_every_page() -> None:
    lines = texts(README).splitlines()
    assert len(lines) <= 200
    assert not [line for block in blocks(README, r"\w*") for line in block.splitlines() if len(line) > 90]
    for page in DOCS:
        assert f"(docs/{page.name})" in texts(README), page.name


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_a_page_begins_with_its_purpose(page: Path) -> None:
    title, blank, purpose, *_ = texts(page).splitlines()
    assert title.startswith("# ")
    assert not blank
    assert re.match(r"(How|What|Which|Where) .*\.$", purpose)


def test_pictures_are_small() -> None:
    for path in [*(ROOT / "docs").rglob("*"), *(ROOT / "training-logs").rglob("*")]:
        if path.suffix in (".jpg", ".png", ".svg", ".webp"):
            assert path.stat().st_size < 300_000, path


def test_commands_say_what_they_need() -> None:
    """A block's first line: what it needs, or how long it takes; the others are run by a test, or take a moment."""
    short = ("sh scripts/setup.sh", "cat > street.yaml", "benchmark plan", "python -m scripts.report\n")
    for page in (README, *DOCS):
        for block in blocks(page):
            first = block.splitlines()[0]
            assert re.match(r"# (Needs|Takes) ", first) or any(words in block for words in short), f"{page.name}: {first}"
            assert not re.search(r"^(?![ \t]*#).*\S[ \t]+# ", block, re.M), f"{page.name}: comments stand above commands"


def test_blocks_are_renewed_in_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docs, "printed", lambda command: "| a |" if "table" in command else f"output of {command}")
    page = "x\n<!-- python -m m --a 1 -->\nold\n<!-- end -->\ny\n<!-- python -m table -->\n<!-- end -->\n"
    first = "<!-- python -m m --a 1 -->\n\n```\noutput of python -m m --a 1\n```\n\n<!-- end -->"
    expected = f"x\n{first}\ny\n<!-- python -m table -->\n\n| a |\n\n<!-- end -->\n"
    assert docs.fill(page) == expected
    assert docs.fill(expected) == expected


def test_published_numbers_are_those_that_the_report_shows() -> None:
    """`python -m scripts.docs` has printed them."""
    assert docs.published() in texts(ROOT / "docs/methods.md")
    for row in ("UniMatch V2 \\* | DINOv2-Base |      86.3 |", "SemiVL         | CLIP-Base   |        50.1 |"):
        assert row in docs.published()


def test_the_published_rows_of_the_readme() -> None:
    """The first and the last split of each main table."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in texts(README).splitlines() if line.startswith("|")]
    rows = {name.removesuffix(" *"): cells for name, *cells in lines}
    for table, column in zip(docs.MAIN, (0, 2, 4, 6), strict=True):
        for entry in paper.entries(table):
            ((_, splits),) = paper.columns(table).items()
            found = [split for split in splits if any(split == one.split and one.published for one in paper.entries(table))]
            if entry.split in (found[0], found[-1]) and "miou" in entry.published:
                cell = rows[entry.label][1 + column + (entry.split == found[-1])]
                assert cell == str(entry.published["miou"]), entry


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the shell scripts need, with programs that record how they were called."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("scripts", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in [*ROOT.glob("*.py"), *ROOT.glob("*.txt")]:
        shutil.copy(path, folder)
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/activate").touch()
    (folder / "street.yaml").write_text(re.findall(r"<<'END'\n(.*?)END\n", texts(ROOT / "docs/own-data.md"), re.S)[0])
    (folder / "bin").mkdir()
    for name in STUBS:
        (folder / "bin" / name).write_text(STUB)
        (folder / "bin" / name).chmod(0o755)
    return folder


def calls(block: str, clone: Path) -> list[list[str]]:
    """The programs that a block starts, with their arguments."""
    record = clone / "calls"
    record.write_text("")
    kept = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
    env = kept | {"PATH": f"{clone}/bin:{os.environ['PATH']}", "CALLS": str(record)}
    done = subprocess.run(["sh", "-e", "-c", block], cwd=clone, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [call.splitlines() for call in record.read_text().split("--end of call--\n")[:-1]]


@pytest.mark.parametrize("made", [True, False], ids=["venv", "none"])
def test_the_installation_ends_well_with_and_without_a_venv(made: bool, clone: Path) -> None:
    """scripts/setup.sh makes .venv only where it has to; where there is one, `python` is its own afterwards."""
    (block,) = (block for block in blocks(README) if "sh scripts/setup.sh" in block)
    venv, aside = clone / ".venv", clone / "aside"
    (venv / "bin/activate").write_text("activated=yes\n")
    if not made:
        venv.rename(aside)
    try:
        found = calls(block + 'python "$activated"\n', clone)
    finally:
        if not made:
            aside.rename(venv)
    assert found[-1] == ["python", "yes" if made else ""]


def test_the_readme_has_the_commands_of_the_paper(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m scripts.docs` has printed them, and each starts a training on four GPUs."""
    monkeypatch.setattr(docs, "_planned", lambda *_: (1.0, 2.0**30))
    cells = [row.split("|")[1].strip() for row in docs.reproduce().splitlines()[2:]]
    assert len(cells) == len(docs.MAIN)
    for cell in cells:
        assert f"\n| {cell} " in texts(README)
        (call,) = calls(cell.strip("`"), clone)
        assert call[1:4] == ["-m", "engine.launch", "--nproc_per_node=4"]


class ParsedError(Exception):
    """What a program's parser made of its arguments."""


@pytest.fixture
def parse_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs end as soon as their arguments are parsed."""
    parse, depth = Parser.parse_known_args, 0

    def parse_known_args(self: Parser, *args: Any) -> Any:
        nonlocal depth
        depth += 1  # a sub-command's parser works inside that of its command
        try:
            values, unknown = parse(self, *args)
        finally:
            depth -= 1
        if depth:
            return values, unknown
        assert not unknown, unknown
        raise ParsedError(values)

    monkeypatch.setattr(Parser, "parse_known_args", parse_known_args)


def check(program: str, args: list[str]) -> None:
    """Gives arguments to a program's own parser, and loads the config that it shall read. program: a file, or a module."""
    if program == "engine.launch":
        program, args = next((word, args[i + 1 :]) for i, word in enumerate(args) if word.endswith(".py"))
    name = program.removesuffix(".py")
    name = STARTS.get(name, (name,))[0]  # a former name
    name += ".__main__" if (ROOT / name.replace(".", "/")).is_dir() else ""
    try:
        importlib.import_module(name).main(args)
    except ParsedError as parsed:
        values = parsed.args[0]
        config = getattr(values, "config", None)
        if config and (ROOT / config).exists():
            method = getattr(importlib.import_module(name), "METHOD", None)
            load_config(config, getattr(values, "set", []), *([method.config] if method else []))
    else:
        raise AssertionError(f"{program} {args}: no parser was asked")


@pytest.mark.usefixtures("parse_only")
@pytest.mark.parametrize("page", [README, *DOCS], ids=lambda page: page.name)
def test_commands_are_understood(page: Path, clone: Path) -> None:
    for block in blocks(page):
        for program, *args in calls(block, clone):
            if program.startswith("python"):
                check(*((args[1], args[2:]) if args[0] == "-m" else (args[0], args[1:])))
            elif program == "torchrun":
                at = next(i for i, word in enumerate(args) if word.endswith(".py"))
                check(args[at], args[at + 1 :])
    for module in re.findall(r"`python -m ([\w.]+)", texts(page)):
        assert importlib.util.find_spec(module), module
    for script in re.findall(r"`(?:[a-z_]+=\S+ )*(?:sh|python) ([\w/]+\.(?:sh|py))", texts(page)):
        assert (ROOT / script).exists(), script

"""Hostile files: nothing they hold is run, and nothing outside the data root is read."""

import ast
import os
import pickle
import socket
from pathlib import Path

import pytest
import torch
import yaml

import unimatch_v2
from dataset.lists import inside
from tests.conftest import ROOT, make_tiny
from util import checkpoint
from util.config import Config, load_config
from util.error import UserError

QUICK = ("batch_size=1", "crop_size=14", "epochs=1")
SOURCES = [path for path in ROOT.rglob("*.py") if not {".venv", "tests", "data", "exp"} & set(path.relative_to(ROOT).parts)]


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_yaml_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text(f"dataset: !!python/object/apply:os.mkdir ['{tmp_path}/made']\n")
    with pytest.raises(UserError, match=r"evil\.yaml: not valid YAML"):
        load_config(str(path))
    with pytest.raises(UserError, match="not valid YAML"):
        load_config(str(make_tiny(tmp_path / "data").config), [f"dataset=!!python/object/apply:os.mkdir ['{tmp_path}/made']"])
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("save", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))])
def test_a_checkpoint_that_would_run_code_is_refused(save, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    save({"model": Evil(tmp_path / "made"), "optimizer": {}, "epoch": 0}, out / "latest.pth")
    with pytest.raises(UserError, match=r"latest\.pth: not a readable checkpoint"):
        checkpoint.load(out / "latest.pth")
    tiny = make_tiny(tmp_path / "data")
    for setting in ("resume=force", f"init={out}/latest.pth", f"pretrained={out}/latest.pth"):
        with pytest.raises(UserError, match=r"latest\.pth: not a readable checkpoint"):
            unimatch_v2.main(tiny.args(tmp_path / "new" if "=" + str(out) in setting else out, *QUICK, setting))
    assert not (tmp_path / "made").exists()


# what would run code or a shell command found in a file or a name: by module, and bare
RUNS_CODE = {
    "os": {"system", "popen"},
    "subprocess": {"getoutput", "getstatusoutput"},
    "yaml": {"load", "load_all", "full_load", "full_load_all", "unsafe_load", "unsafe_load_all"},
    "pickle": {"load", "loads", "Unpickler"},
    "marshal": {"load", "loads"},
    "shelve": {"open"},
}
CALLS = {"eval", "exec"} | {f"{module}.{name}" for module, names in RUNS_CODE.items() for name in names}


def test_no_source_reads_more_than_it_must() -> None:
    """Every torch.load is weights_only, every YAML safe, nothing goes through a shell or eval."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):  # a bare name would not be recognised below
                assert not RUNS_CODE.get(node.module or "", set()) & {alias.name for alias in node.names}, path
                assert node.module != "torch" or "load" not in {alias.name for alias in node.names}, path
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert name not in CALLS, path
            assert given.get("allow_pickle") in (None, "False"), path
            assert given.get("shell") in (None, "False"), path
            assert name != "torch.load" or given.get("weights_only") == "True", path


def test_training_opens_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("a network connection without being asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    unimatch_v2.main(make_tiny(tmp_path / "data").args(tmp_path / "out", *QUICK))


def test_a_list_reaches_nothing_outside_the_root(tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    for path in ("../x.jpg", "a/../../x.jpg", "/etc/passwd", "..", "a/../../root2/x.jpg"):
        with pytest.raises(UserError, match="outside the data root"):
            inside(root, path)
    assert inside(root, "a/../b.jpg") == f"{root}/b.jpg"
    assert inside(root, f"{root}/b.jpg") == f"{root}/b.jpg", "an absolute path below the root that the config names"


def test_file_names_never_reach_a_shell(tmp_path: Path) -> None:
    tiny = make_tiny(tmp_path / "data")
    names = [
        f"$(touch {tmp_path.name}).jpg".replace("/", ""),
        "`touch made`.jpg",
        "; touch made;.jpg",
        "-rf.jpg",
        "a'b\".jpg",
        "&&touch made.jpg",
    ]
    lines = (tiny.root / "unlabeled.txt").read_text().splitlines()
    for i, name in enumerate(names):
        (tiny.root / f"images/{6 + i}.jpg").rename(tiny.root / "images" / name)
        lines[i] = f"images/{name}\tNone"
    (tiny.root / "unlabeled.txt").write_text("\n".join(lines) + "\n")
    before = set(os.listdir(ROOT))
    unimatch_v2.main(tiny.args(tmp_path / "out", *QUICK))
    assert set(os.listdir(ROOT)) - before <= {".pytest_cache", "__pycache__"}
    assert not list(tmp_path.rglob("made"))


def test_a_yaml_of_many_references_is_read_in_no_time(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))]
    path = tmp_path / "laughs.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match="a0: no such config key"):
        load_config(str(path), kind=Config)
    assert yaml.safe_load("a: 1") == {"a": 1}

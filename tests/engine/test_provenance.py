"""With what a run was made: versions, revision, and the diff of a dirty tree, once for each start."""

import json
import subprocess
from pathlib import Path

import pytest

import unimatch_v2
from engine import provenance
from tests.conftest import Tiny


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    return subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_every_start_of_a_run_is_recorded(tiny: Tiny, tmp_path: Path) -> None:
    for epochs in (1, 2):
        unimatch_v2.main(tiny.args(tmp_path, "batch_size=1", "crop_size=14", f"epochs={epochs}"))
    starts = json.loads((tmp_path / "record.json").read_text())
    assert len(starts) == 2
    assert all(start["gpu"] is None and start["cpu"] and start["cores"] > 0 for start in starts)
    assert all(start["versions"] == provenance.versions() for start in starts)
    assert {"python", "torch", "torchvision", "numpy", "pillow"} <= set(provenance.versions())


def test_revision_and_diff_of_a_dirty_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "ROOT", tmp_path.resolve())
    assert provenance.revision() == {}, "no repository"
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("one = 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert provenance.revision() == {"revision": head}
    (tmp_path / "a.py").write_text("one = 2\n")
    (tmp_path / "new.py").write_text("two = 2\n")
    (tmp_path / "data.bin").write_bytes(b"\xff")
    found = provenance.revision()
    assert found["revision"] == head
    assert found["status"] == [" M a.py", "?? data.bin", "?? new.py"]
    assert "-one = 1\n+one = 2\n" in found["diff"]
    assert "+++ b/new.py" in found["diff"]
    (tmp_path / "new.py").unlink()
    git(tmp_path, "checkout", "-q", "a.py")
    subprocess.run(["git", "apply"], cwd=tmp_path, input=found["diff"], text=True, check=True)
    assert ((tmp_path / "a.py").read_text(), (tmp_path / "new.py").read_text()) == ("one = 2\n", "two = 2\n")


def test_changed_versions_are_told() -> None:
    now = provenance.versions()
    assert provenance.changed_versions(now) == []
    assert provenance.changed_versions(now | {"torch": "1.0"}) == [f"torch was 1.0, is {now['torch']}"]

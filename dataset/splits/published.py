"""The published lists of UniMatch V2 and V1: downloaded or copied, and verified against the sums in splits/manifest.tsv."""

import csv
import hashlib
import os
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import quote

from tqdm import tqdm

from util.download import download
from util.error import UserError
from util.files import write_atomic

MANIFEST = Path(__file__).resolve().parents[2] / "splits" / "manifest.tsv"
# addresses of the raw files of the repositories that the manifest names; a list that has changed since does not fit its sum
PUBLISHED = {
    "UniMatch-V2": "https://raw.githubusercontent.com/LiheYoung/UniMatch-V2/f6afb4dfca2d9dcbcee2307e97717954ca75c0ba",
    "UniMatch": "https://raw.githubusercontent.com/LiheYoung/UniMatch/main",  # V1: the lists that V2 does not have
}


class Published(NamedTuple):
    """A published list: path in the public repository, local path, size in bytes, sums, number of lines ("" or 0 where unknown), and the
    repository (a key of PUBLISHED)."""

    path: str
    local: Path
    size: int
    blob: str
    sha256: str
    lines: int = 0
    repository: str = "UniMatch-V2"

    @property
    def sum(self) -> str:
        """The sum that identifies the content: the SHA-256 where it is known, else git's blob SHA-1 (which covers the size)."""
        return self.sha256 or self.blob

    def sum_of(self, content: bytes) -> str:
        """The sum of some content, of the kind that `sum` is."""
        return (hashlib.sha256(content) if self.sha256 else hashlib.sha1(b"blob %d\0" % len(content) + content)).hexdigest()

    def matches(self, content: bytes) -> bool:
        """Whether the content is this list's."""
        return self.sum_of(content) == self.sum

    def verify(self, path: Path, origin: str) -> None:
        """Raises UserError when the file at `path`, which came from `origin`, is not this list."""
        content = path.read_bytes()
        if not self.matches(content):
            size = f"{self.size} bytes, " if self.size else ""
            raise UserError(
                f"{origin}: found {len(content)} bytes with sum {self.sum_of(content)[:12]}..., expected {size}sum {self.sum[:12]}...: "
                "not the published list; take it from the public repository at the commit in splits/README.md"
            )


def manifest() -> dict[str, list[Published]]:
    """The published lists of each data set."""
    lists: dict[str, list[Published]] = {}
    with open(MANIFEST, newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            local = Path(row["path"].removeprefix("remote-sensing/"))
            sums = row["git_blob_sha1"], row["sha256"]
            published = Published(
                row["path"], local, int(row["bytes"] or 0), *sums, int(row["lines"] or 0), row.get("repository") or "UniMatch-V2"
            )
            lists.setdefault(local.parts[1], []).append(published)
    return lists


def published_length(path: str) -> int:
    """Lines of a published list by its local path; 0 for any other list."""
    known = {str(one.local): one.lines for lists in manifest().values() for one in lists}
    if known.get(path) == 0:  # nobody has counted it: a split's unlabelled images are all those that it has no labels of
        folder = Path(path).parent
        return known[f"{folder.parent}/all/train.txt"] - known[f"{folder}/labeled.txt"]
    return known.get(path, 0)


def published_splits(name: str) -> list[str]:
    """The published splits of a data set."""
    return sorted({one.local.parts[2] for one in manifest().get(name, []) if one.local.name == "labeled.txt"})


def published_set(path: str | os.PathLike[str]) -> str:
    """The data set of a list that `fetch` would bring, by the end of its path; "" for another list."""
    parts = Path(path).parts
    lists = manifest() if MANIFEST.is_file() else {}
    return next((name for name, own in lists.items() for one in own if parts[-len(one.local.parts) :] == one.local.parts), "")


def _wanted(names: list[str]) -> dict[str, list[Published]]:
    known = manifest()
    for name in names:
        if name not in known:
            raise UserError(f"dataset: found {name!r}, expected one with published lists: {', '.join(known)}; `make` writes others")
    return {name: known[name] for name in names or known}


def fetch(names: list[str], base: str | None) -> None:
    """Downloads the lists that do not exist yet, from `base` where it is given.

    After a list with wrong content nothing that this run downloaded is kept.
    """
    for name, lists in _wanted(names).items():
        missing = [one for one in lists if not (one.local.is_file() and one.matches(one.local.read_bytes()))]
        brought: list[Path] = []
        for one in tqdm(missing, desc=name, unit="list", leave=False, disable=None):
            url = f"{(base or PUBLISHED[one.repository]).rstrip('/')}/{quote(one.path)}"
            try:
                download(url, one.local, partial(one.verify, origin=url), "correct --url, or use `import DIR` with a clone")
            except UserError:
                if not one.local.with_name(one.local.name + ".part").exists():  # wrong or absent, rather than cut off
                    _discard([one.local, *brought] if not one.local.is_file() else brought)
                raise
            brought.append(one.local)
        print(f"{name}: {len(lists)} lists under splits/{name}, {len(brought)} downloaded, {len(lists) - len(missing)} already existed")


def _discard(paths: list[Path]) -> None:
    """Deletes files, and the folders that become empty."""
    for path in paths:
        path.unlink(missing_ok=True)
        for folder in path.parents[:-1]:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _put(file: BinaryIO, content: bytes) -> None:
    file.write(content)


def import_clone(clone: Path, names: list[str]) -> None:
    """Copies the lists that are in a clone of the public repository (or in its splits folder), verified."""
    if not clone.is_dir():
        raise UserError(f"import: no such folder: {clone}; give a clone of the public repository")
    total = 0
    for name, lists in _wanted(names).items():
        copied = 0
        for one in lists:
            below = one.local.relative_to("splits")
            candidates = (one.path, below, Path("remote-sensing") / below)
            source = next((clone / path for path in candidates if (clone / path).is_file()), None)
            if source is not None:
                content = source.read_bytes()
                unix = content.replace(b"\r\n", b"\n")  # what a checkout on Windows may have done
                if not one.matches(content) and one.matches(unix):
                    content = unix
                else:
                    one.verify(source, str(source))
                write_atomic(one.local, partial(_put, content=content))
                copied += 1
        total += copied
        if copied or name in names:
            print(f"{name}: {copied} of {len(lists)} lists copied to splits/{name}")
    if not total:
        raise UserError(f"import: found no published list in {clone}, expected for example {clone}/splits/pascal/1464/labeled.txt")

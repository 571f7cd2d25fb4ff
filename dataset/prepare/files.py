"""Shared by all data sets: opens archives, finds and places files, writes PNGs, compares the result with the lists."""

import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from dataset.lists import read_list
from dataset.spec import get_spec
from dataset.stored import mask_values, unreadable
from dataset.walk import folders
from util.error import UserError
from util.files import write_atomic

UNPACKED = ".unpacked"  # folder below --dst for the contents of archives; removed when everything is done
Member = tuple[str, int, Callable[[], Any]]  # of an archive: path, size in bytes, function that opens it
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError)


class Job(NamedTuple):
    """A label file to convert. overwrite: also where the target exists."""

    source: Path
    target: Path
    overwrite: bool


def open_sources(sources: Sequence[str], dst: Path, wanted: Callable[[str], bool]) -> list[Path]:
    """The folders to look in: folders as they are, archives (.zip, .tar, .tar.gz, .tgz) unpacked below `dst`.

    wanted: whether a path in an archive is needed. Raises UserError for a source that is missing or broken.
    """
    roots = []
    for source in map(Path, sources):
        if source.is_dir():
            roots.append(source)
        elif source.is_file():
            roots.append(_unpack(source, dst / UNPACKED / source.name, wanted))
        else:
            raise UserError(f"--src: no such file or folder: {source}")
    return roots


def _unpack(archive: Path, folder: Path, wanted: Callable[[str], bool]) -> Path:
    """Unpacks the wanted files that do not exist yet with their full size."""
    try:
        if zipfile.is_zipfile(archive) or archive.suffix.lower() == ".zip":  # one that was cut off is no zip file any more
            with zipfile.ZipFile(archive) as file:
                # programs of Windows part folders by a backslash; the standard has none in names
                members = [(i.filename.replace("\\", "/"), i.file_size, partial(file.open, i)) for i in file.infolist()]
                members = [member for member in members if not member[0].endswith("/")]
                _extract(iter(members), len(members), folder, wanted)
        else:
            with tarfile.open(archive) as file:
                _extract(_members(file), None, folder, wanted)
    except tarfile.ReadError as error:
        raise UserError(
            f"--src: {archive}: cannot be unpacked ({error}); expected a whole .zip, .tar or .tar.gz, download it again"
        ) from error
    except _BROKEN as error:
        raise UserError(f"--src: {archive}: cannot be unpacked ({error}); download it again, or free space below --dst") from error
    return folder


def _members(file: tarfile.TarFile) -> Iterator[Member]:
    for member in file:
        if member.isfile():
            yield member.name, member.size, partial(file.extractfile, member)


def _extract(members: Iterator[Member], total: int | None, folder: Path, wanted: Callable[[str], bool]) -> None:
    for path, size, opened in tqdm(members, desc=folder.name, total=total, unit="file", leave=False, disable=None):
        target = folder / path
        if ".." in PurePosixPath(path).parts or PurePosixPath(path).is_absolute() or not wanted(path):
            continue
        if not (target.is_file() and target.stat().st_size == size):
            with opened() as content:
                _copy(content, target)


def _copy(content: Any, target: Path) -> None:
    write_atomic(target, lambda out: shutil.copyfileobj(content, out), sync=False)


def under(roots: Sequence[Path], folder: str, ending: str) -> dict[str, Path]:
    """The files that end in `ending` below a folder called `folder` ("a", or "a/b"): a root itself or any folder in it.

    Keys are the paths below that folder, in order; where two roots have the same, the earlier one counts.
    """
    found: dict[str, Path] = {}
    parts = PurePosixPath(folder).parts
    for root in roots:
        top = Path(os.path.abspath(root))
        for where, names in folders(top):
            tail = (*top.parts[-len(parts) :], *where.relative_to(top).parts)
            at = next((i for i in range(len(tail) - len(parts), -1, -1) if tail[i : i + len(parts)] == parts), None)
            if at is not None:
                below = "/".join(tail[at + len(parts) :])
                for name in names:
                    if name.endswith(ending):
                        found.setdefault(f"{below}/{name}".lstrip("/"), where / name)
    return dict(sorted(found.items()))


def place(source: Path, target: Path) -> bool:
    """Puts an unchanged file at its target: a hard link where possible, else a copy. False when it already existed."""
    if target.exists():
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        with open(source, "rb") as content:
            _copy(content, target)
    return True


def place_all(files: dict[str, Path], folder: Path) -> int:
    """Places files at their keys below a folder. Returns how many are new."""
    return sum([place(source, folder / key) for key, source in tqdm(files.items(), desc="images", unit="img", leave=False, disable=None)])


def save_png(array: np.ndarray, path: Path, palette: Sequence[tuple[int, int, int]] = ()) -> None:
    """Writes uint8 (H, W) or (H, W, 3) as PNG, atomically; with a palette as palette PNG."""
    img = Image.fromarray(array)
    if palette:
        img.putpalette([channel for color in palette for channel in color])
    write_atomic(path, lambda file: img.save(file, format="PNG"), sync=False)


def read_image(path: Path) -> Image.Image:
    """A decoded image file. Raises UserError for a broken one."""
    try:
        img = Image.open(path)
        img.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: {unreadable(error, 'unpack or download it again')}") from error
    return img


def read_ids(path: Path) -> np.ndarray:
    """A label file of one channel as uint8 (H, W)."""
    img = read_image(path)
    if img.mode not in ("L", "P"):
        raise UserError(f"{path}: found mode {img.mode}, expected one channel of 8-bit ids; is it a label file of the official archive?")
    return mask_values(img, str(path), None)


def compare(dataset: str, dst: Path) -> str:
    """Says whether the files that the lists in splits/ name exist."""
    spec = get_spec(dataset)
    names: set[str] = set()
    for path in sorted(Path("splits", dataset).rglob("*.txt")):
        for entry in read_list(path, spec.task):
            images, mask = spec.files(entry)
            names |= {*images, *([mask] if mask else [])}
    if not names:
        return f"no lists in splits/{dataset} to compare with: `python -m dataset.splits fetch {dataset}`"
    missing = sorted(name for name in names if not (dst / name).is_file())
    if not missing:
        return f"all {len(names)} files that the lists in splits/{dataset} name exist"
    return f"{len(missing)} of the {len(names)} files that the lists in splits/{dataset} name are missing, for example {missing[0]}"


def nothing(what: str, sources: Sequence[str], get: str) -> UserError:
    """The error for a source in which nothing was found."""
    return UserError(f"--src: found no {what} in {', '.join(map(str, sources))}; expected {get}, as archives or unpacked")

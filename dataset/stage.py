"""Copies the images and masks that a run reads to another folder: a disk in the compute node that is faster than the shared one.

    python -m dataset.stage FOLDER --config ... --labeled-id-path ... [--unlabeled-id-path ...] --save-path ... [--set ...]

takes a method's command line after the folder and prints the settings (data_root, data_root_u) under which that run finds the copy.
scripts/train.sh does both where the environment has stage_data. A file that exists with the same size and time is left alone.
"""

import json
import logging
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dataset.custom import spec_of
from dataset.list_files import needed
from dataset.lists import inside
from dataset.loader import test_source, training_sources, validation_source
from dataset.source import find_file
from util.config import Config, parse_command
from util.error import UserError, reason, run
from util.files import write_atomic

THREADS = 16  # many files at a time: the time goes into waiting for a shared file system


def copy(source: Path, target: Path) -> int:
    """Copies a file with its time, whole or not at all, unless it exists. Returns the bytes copied. Raises UserError."""
    try:
        found = source.stat()
        if target.exists() and (target.stat().st_size, target.stat().st_mtime_ns) == (found.st_size, found.st_mtime_ns):
            return 0
        with open(source, "rb") as file:
            write_atomic(target, lambda out: shutil.copyfileobj(file, out), sync=False)
        shutil.copystat(source, target)
    except OSError as error:
        raise UserError(f"{target}: cannot be copied from {source} ({reason(error)}); make room, or go without stage_data") from error
    return found.st_size


def stage(cfg: Config, folder: Path) -> list[str]:
    """Copies the files that the run of `cfg` reads to `folder`. Returns the settings for reading them from it. Raises UserError."""
    spec, folder = spec_of(cfg), folder.resolve()
    sources = training_sources(cfg, spec, cfg.unlabeled_id_path is not None)
    unlabeled = sources["u"].parts if "u" in sources else []
    validation = validation_source(cfg, spec)
    test = test_source(cfg, spec, validation, logging.getLogger(__name__))
    with_masks = [*sources["x"].parts, validation, *([test] if test else [])]
    places = {cfg.data_root: folder}  # another root gets a folder of its own: names may be the same
    for part in unlabeled:
        places.setdefault(part.root, folder / f"unlabeled{len(places)}")
    parts = [(part, True) for part in with_masks] + [(part, False) for part in unlabeled]
    jobs = sorted({(part.root, path) for part, masks in parts for path in needed(part, masks)})
    with ThreadPoolExecutor(THREADS) as pool:
        sizes = list(pool.map(lambda job: copy(Path(find_file(*job)), Path(inside(str(places[job[0]]), job[1]))), jobs))
    copied = [size for size in sizes if size]
    print(f"{folder}: {len(sizes)} files, {len(copied)} of them copied now ({sum(copied) / 1e6:.1f} MB)", file=sys.stderr)
    roots = [str(places[part.root]) for part in unlabeled]
    found = {"data_root": str(folder)} | ({"data_root_u": roots[0] if len(roots) == 1 else roots} if len(places) > 1 else {})
    # quoted, so that YAML reads any path as a string; as it is, for YAML does not join JSON's escaped halves of a character
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in found.items()]


def main(argv: list[str]) -> None:
    if not argv or argv[0].startswith("-"):
        raise UserError("usage: python -m dataset.stage FOLDER [a method's command line]; found no folder")
    print("\n".join(stage(parse_command(argv[1:], __doc__, unlabeled=False, kind=None), Path(argv[0]))))


if __name__ == "__main__":
    run(main)

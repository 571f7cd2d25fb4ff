"""Resuming a run: from which checkpoint, whether it belongs to this run, and what was written after it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from util import checkpoint
from util.config import Config, may_resume
from util.dist import World
from util.error import StoppedError, UserError, reason
from util.signals import StopSignals

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LATEST, PREVIOUS, BEST = "latest.pth", "previous.pth", "best.pth"
LOG, METRICS, PAGE = "train.log", "metrics.jsonl", "report.html"
TEST = "test.json"  # the scores of best.pth on the test list, by which a run that is started again does not test again
EVENTS_SUFFIX = ".run"  # of the TensorBoard files, which distinguishes them from files that came from elsewhere


@contextmanager
def claimed(folder: Path, signals: StopSignals, patience: float = 60) -> Iterator[None]:
    """Makes the save path, and inside `with` lets no other run write to it; removes what a killed save left there.

    Waits up to `patience` seconds for a run that is just ending. Raises UserError, or StoppedError when asked to stop meanwhile.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "ab")  # noqa: SIM115 - closed below
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: cannot be written ({reason(error)}); give another --save-path") from error
    with lock:
        _wait_for(lock, folder, signals, patience)
        for path in folder.glob(".*.tmp"):
            path.unlink(missing_ok=True)
        yield


def _wait_for(lock: IO[bytes], folder: Path, signals: StopSignals, patience: float) -> None:
    end, said = time.monotonic() + patience, False
    while fcntl is not None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                raise UserError(f"{folder}: another run is writing to it; end that one or give another --save-path") from None
            if not said:
                print(f"{folder}: another run is writing to it; waiting up to {patience:g} s for its end", file=sys.stderr, flush=True)
            said = True
            if signals.caught:
                raise StoppedError(
                    f"{folder}: nothing is done yet, another run is writing to it; the same command begins again", signals.code
                ) from None
            time.sleep(0.2)
        except OSError:  # a file system without locks
            return


def find_checkpoint(folder: Path) -> tuple[Path, dict[str, Any], list[str]] | None:
    """The checkpoint to resume from, its content, and what is wrong with a newer one; None where there is nothing.

    A kill between the two renames of a save leaves only the previous one. Raises UserError when none can be read.
    """
    paths = [folder / name for name in (LATEST, PREVIOUS) if (folder / name).exists()]
    problems = [f"{folder / LATEST}: missing"] if paths and paths[0].name != LATEST else []
    for path in paths:
        try:
            return path, checkpoint.load(path, mapped=True), problems
        except checkpoint.DamagedError as error:
            problems.append(str(error).partition(";")[0])
    if paths:
        raise UserError(f"{'; '.join(problems)}; no checkpoint is left: move these away to start again, or give another --save-path")
    if (folder / BEST).exists():
        raise UserError(
            f"{folder / BEST}: found without {LATEST}; move it away to start again, copy it to {LATEST} to resume from it, "
            f"or give another --save-path"
        )
    return None


def common_checkpoint(folder: Path, world: World) -> tuple[Path, dict[str, Any], list[str]] | None:
    """What `find_checkpoint` finds, the same for all processes of a run. Raises UserError where it is not."""
    found = find_checkpoint(folder)
    # all have read before the first one writes
    if len(set(world.gather([found and str((found[1].get("epoch"), found[1].get("step")))]))) > 1:
        raise UserError(f"{folder}: the processes find different checkpoints; expected the same folder on all machines")
    if found and found[0].name == PREVIOUS and world.main:
        set_aside(folder / LATEST)  # or the next save would put it where the good one is
    return found


def set_aside(path: Path) -> None:
    """Renames a damaged checkpoint, where there is one. Raises UserError."""
    try:
        path.replace(path.with_name(f"{path.name}.damaged"))
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{path}: cannot be moved away ({reason(error)}); correct the permissions") from error


def is_start(state: dict[str, Any]) -> bool:
    """Whether no step is done yet."""
    return state.get("epoch") == -1 and state.get("step") == 0


def differences(state: dict[str, Any], config: dict[str, Any], lists: dict[str, str], kind: type[Config]) -> list[str]:
    """The settings and lists of a checkpoint that differ from the present ones, as `key: old, now new`. None for the authors' checkpoints.

    config, lists: as the checkpoint would hold them now. kind: the class of the config, whose keys say what may change.
    """
    old, out = state.get("config", {}), []
    for key, value in config.items():
        if key in old and not may_resume(kind, key, old[key], value):
            out.append(f"{key}: {old[key]!r}, now {value!r}")
    for name, digest in lists.items():
        before = state.get("lists", {}).get(name, digest)
        if before != digest:
            out.append(f"content of list {name!r}: SHA-256 {before!s:.12}, now {digest:.12}")
    return out


def check_same_run(
    path: Path, state: dict[str, Any], config: dict[str, Any], lists: dict[str, str], kind: type[Config], force: bool
) -> list[str]:
    """Raises UserError for a checkpoint of another run, unless `force`; then returns the differences."""
    for key in ("model", "optimizer", "epoch"):
        if key not in state:
            raise UserError(
                f"{path}: has no {key!r}, so it is no training checkpoint; move it away, or start from it with --set init={path}"
            )
    for key, value in state.items():
        if key in ("epoch", "step") or key.startswith(("previous_best", "best_epoch")):
            try:
                float(value)
            except (TypeError, ValueError):
                raise UserError(f"{path}: {key} is {value!r}, expected a number; move the file away, or --set init={path}") from None
        elif key in ("config", "lists", "versions") and not isinstance(value, dict):
            raise UserError(f"{path}: {key} is {value!r}, expected a dictionary; move the file away, or --set init={path}")
    found = differences(state, config, lists, kind)
    if found and not force:
        raise UserError(
            f"{path}: the run was started with {'; '.join(found)}; go back to these, give another --save-path, or --set resume=force"
        )
    return found


def written_files(folder: Path) -> list[Path]:
    """What a run appends to: its log, its metrics and its TensorBoard files."""
    return [folder / LOG, folder / METRICS, *folder.glob(f"events.out.tfevents.*{EVENTS_SUFFIX}")]


def file_lengths(folder: Path) -> dict[str, int]:
    """Length in bytes of each file that the run appends to, once it is on the disk. Raises UserError."""
    lengths = {}
    for path in written_files(folder):
        try:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                lengths[path.name] = os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({reason(error)})") from error
    return lengths


def cut_files(folder: Path, lengths: dict[str, int] | None) -> None:
    """Cuts what a run appends to back to `lengths`, so that nothing is written twice; removes files begun later, but for the log.

    None, as in checkpoints of the authors: leaves everything. Raises UserError.
    """
    if lengths is None:
        return
    try:
        for path in written_files(folder):
            length = lengths.get(path.name)
            if length is not None and path.exists() and path.stat().st_size > length:
                os.truncate(path, length)
            elif length is None and path.name != LOG:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: the log cannot be cut back to the checkpoint ({reason(error)}); correct the permissions") from error

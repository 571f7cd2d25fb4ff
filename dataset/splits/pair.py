"""The lists of a pair, labelled and unlabelled, and of the labelled images that select (used by `python -m dataset.splits make`)."""

import argparse
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from dataset.lists import Entry, parse_line, read_lines, write_lines
from dataset.splits.check import SELECT, classes_in
from dataset.splits.make import choose, rank
from dataset.splits.published import manifest
from util.error import UserError

Classes = list[frozenset[int]] | None  # of each line's mask, where the choice is stratified


class Made(NamedTuple):
    """The lines of each list to write, and notes about them; they are written together, once all of them are right."""

    lists: dict[Path, list[str]]
    notes: list[str]

    def write(self) -> None:
        """Writes the lists. Raises UserError, with nothing written, where some exist with other content."""
        for path in self.lists:
            for folder in path.parents:
                if folder in self.lists or folder.is_file():
                    raise UserError(f"{path}: found a list where its folder {folder} would be; choose another --name")
        old = [str(p) for p, lines in self.lists.items() if p.exists() and p.read_bytes().decode(errors="replace").splitlines() != lines]
        if old:
            raise UserError(
                f"make: found {', '.join(old)} with other content, expected these lines or no file; delete these lists, and the runs that "
                "were trained with them, or choose another name with --name (lists: --from)"
            )
        for path, lines in self.lists.items():
            write_lines(path, lines)
        print("\n".join(self.notes))


def make_pair(args: argparse.Namespace, source: Path, made: Made) -> None:
    """Draws a pair from the list `source`, of which --select holds some labelled images out. Raises UserError."""
    lines, entries = _read(args, source, made)
    able = _able(args, entries)
    count, folder = _share(args, len(able))
    kind = "label file" if args.spec and args.spec.bitemporal else "mask"
    if not 0 < count <= len(able) or count == len(lines):
        most = min(len(able), len(lines) - 1)
        raise UserError(f"make: found {count} labelled of {len(lines)} images ({len(able)} have a {kind}), expected 1 to {most}")
    ranked = [able[i] for i in rank([lines[i] for i in able], args.seed)]
    classes = _classes(args, entries, able) if args.stratify else None
    chosen = choose(ranked, count, classes)
    rest = [line for i, line in enumerate(lines) if i not in chosen]
    bare = f", {len(lines) - len(able)} of them without a {kind}" if len(able) < len(lines) else ""
    counts = f"{len(rest)} unlabelled{bare}, from {source}"
    _add_pair(args, folder, lines, [i for i in ranked if i in chosen], classes, rest, counts, made)


def hold_out_of_pair(args: argparse.Namespace, source: Path, made: Made) -> None:
    """Holds --select labelled images out of the labelled list `source` of a pair; its unlabelled list is as it was. Raises UserError."""
    lines, entries = _read(args, source, made)
    able = _able(args, entries)
    if len(able) < len(lines):
        raise UserError(
            f"--from: found {len(lines) - len(able)} of {len(lines)} lines of {source} without a mask, expected labelled images"
        )
    classes = _classes(args, entries, able) if args.stratify else None
    beside = source.with_name("unlabeled.txt")
    rest = read_lines(beside) if beside.is_file() else []
    counts = f"{len(rest)} unlabelled, from {source.parent}"
    _add_pair(args, source.parent.name, lines, rank(lines, args.seed), classes, rest, counts, made)


def _read(args: argparse.Namespace, source: Path, made: Made) -> tuple[list[str], list[Entry]]:
    """The lines of a list that exists or is about to be written, each once."""
    task = args.spec.task if args.spec else "segmentation"
    lines = made.lists.get(source) or read_lines(source)
    if len(set(lines)) < len(lines):
        raise UserError(f"{source}: found {len(lines) - len(set(lines))} lines twice, expected every image once")
    return lines, [parse_line(line, f"{source}:{number}", task) for number, line in enumerate(lines, 1)]


def _add_pair(
    args: argparse.Namespace, folder: str, lines: list[str], ranked: list[int], classes: Classes, rest: list[str], counts: str, made: Made
) -> None:
    """Adds the lists of a pair. ranked: its labelled lines, in the order of their choice; rest: its unlabelled list, if it has one."""
    held = set() if args.select is None else hold_out(ranked, args.select, classes)
    folder += "" if args.select is None else f"_select{args.select}"
    target = Path("splits") / args.dataset / (args.name or folder)
    if args.dataset in (known := manifest()) and any(one.local.parent == target for one in known[args.dataset]):
        raise UserError(f"make: {target} is the name of a published pair; choose another with --name")
    made.lists[target / "labeled.txt"] = [lines[i] for i in sorted(set(ranked) - held)]
    if rest:
        made.lists[target / "unlabeled.txt"] = rest
    made.notes.append(f"{target}: {len(ranked) - len(held)} labelled, {counts} with seed {args.seed}")
    if held:
        made.lists[target / SELECT] = [lines[i] for i in sorted(held)]
        made.notes.append(f"{target / SELECT}: {len(held)} labelled images to select by: --set val_id_path={target / SELECT}")


def hold_out(ranked: Sequence[int], count: int, classes: Classes = None) -> set[int]:
    """The `count` labelled lines that select: those that the choice of a smaller labelled part leaves over (`choose`).

    Raises UserError where either side would have no image.
    """
    if not 0 < count < len(ranked):
        raise UserError(f"--select: found {count} of {len(ranked)} labelled images, expected 1 to {len(ranked) - 1}")
    labeled = set(ranked)
    own = classes and [one if i in labeled else frozenset[int]() for i, one in enumerate(classes)]
    return labeled - choose(ranked, len(ranked) - count, own)


def _able(args: argparse.Namespace, entries: list[Entry]) -> list[int]:
    """The entries that can be labelled: images with a mask, pairs whose label file exists (all pairs where no label is on this machine)."""
    if args.spec is None or not args.spec.bitemporal:
        return [i for i, entry in enumerate(entries) if entry.mask is not None]
    root = Path(args.data_root or f"data/{args.dataset}")
    found = [i for i, entry in enumerate(entries) if (root / args.spec.files(entry)[1]).is_file()]
    return found or list(range(len(entries)))


def _share(args: argparse.Namespace, total: int) -> tuple[int, str]:
    """The number of labelled images and the folder's name: 1/8 of 367 is 46 (rounded half up) in `1_8`, 5% in `5%`, --count 50 in `50`."""
    if args.count is not None:
        return args.count, str(args.count)
    return part(args.labeled, total, "--labeled") or 1, args.labeled.replace("/", "_")


def part(text: str, total: int, option: str) -> int:
    """The number that a share like 1/8 or 5% is of `total`, rounded half up."""
    parts = re.fullmatch(r"(\d+)(?:/([1-9]\d*)|%)", text)
    if not parts:
        raise UserError(f"{option}: found {text!r}, expected a share like 1/8 or 5% (a number of labelled images is --count)")
    return int(Fraction(int(parts[1]), int(parts[2] or 100)) * total + Fraction(1, 2))


def _classes(args: argparse.Namespace, entries: list[Entry], able: list[int]) -> list[frozenset[int]]:
    """The classes in each entry's mask; none for entries that have no mask."""
    found = classes_in(args.spec, args.data_root or f"data/{args.dataset}", [entries[i] for i in able])
    of = dict(zip(able, found, strict=True))
    return [of.get(i, frozenset()) for i in range(len(entries))]

"""Verifies lists against images and masks and prints what they hold (used by `python -m dataset.splits check`)."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from os.path import isfile, join, normpath
from pathlib import Path

from dataset.lists import Entry, missing_validation, read_list
from dataset.look import Found, Job, by_class, class_of, illegal, inspect, nothing_to_learn, two_values
from dataset.pool import parallel
from dataset.spec import IGNORE, SPECS, DatasetSpec
from dataset.stored import NOT_APPLIED
from util.error import UserError

SELECT = "select.txt"  # of a pair: labelled images held out to select the best epoch by
EXAMPLES = 3  # problems of one kind that are printed in full


@dataclass
class Checked:
    """A list and the findings about it.

    role: "labeled", "unlabeled" (masks are not read), "select" or "val". pair: lists of one run share it.
    """

    path: Path
    role: str
    root: str
    entries: list[Entry]
    problems: list[tuple[str, str]] = field(default_factory=list)  # kind, text
    pixels: Counter[int] = field(default_factory=Counter)  # by class id, -1: ignored
    masks: int = 0
    pair: str = ""

    @cached_property
    def files(self) -> list[str]:
        return [normpath(join(self.root, entry.image)) for entry in self.entries]


def find_lists(spec: DatasetSpec, splits: Sequence[str], root: str, root_u: str | None = None, val: str | None = None) -> list[Checked]:
    """The lists below splits/<dataset>: val.txt, test.txt and train.txt, and those of each pair (of the named ones if any are named).

    val: a validation list elsewhere; val.txt may then be what its choice is scored on.
    """
    base = Path("splits") / spec.name
    for split in splits:
        if not (base / split).is_dir():
            raise UserError(f"check: no such pair: {base / split}; write it with `make` or `fetch`, or give one of {_folders(base)}")
    validation = open_validation(spec, val, root)
    places = [(base / "val.txt", "val"), (base / "test.txt", "val"), (base / "train.txt", "labeled")]
    for split in splits or _folders(base):
        places += [(base / split / f"{name}.txt", role) for name, role in (("labeled", "labeled"), ("train", "labeled"))]
        places += [(base / split / "unlabeled.txt", "unlabeled"), (base / split / SELECT, "select")]
    lists = [validation]
    for path, role in places:
        if path.is_file() and path != validation.path:
            lists.append(open_list(spec, path, role, root_u if root_u and role == "unlabeled" else root, str(path.parent)))
    if len(lists) == 1 and not validation.entries:
        raise UserError(f"check: found no list in {base}; `fetch` gets the published ones, `make` writes others")
    return lists


def open_list(spec: DatasetSpec, path: Path, role: str, root: str, pair: str) -> Checked:
    """A list that has not been checked yet."""
    return Checked(path, role, root, read_list(path, spec.task), pair=pair)


def open_validation(spec: DatasetSpec, val: str | None, root: str) -> Checked:
    """The list that training validates on: `val`, or the data set's own. A list without entries and with a problem where there is none."""
    path = Path(val or spec.val_list)
    if path.exists():
        return open_list(spec, path, "select" if path.name == SELECT else "val", root, str(path.parent))
    return Checked(path, "val", root, [], [("no list", missing_validation(path))])


def _folders(base: Path) -> list[str]:
    return sorted(path.name for path in base.iterdir() if path.is_dir()) if base.is_dir() else []


def check(spec: DatasetSpec, lists: list[Checked], decode: bool = False) -> list[str]:
    """Fills in problems and pixel counts of every list. Returns hints on the causes of the problems and how to fix them."""
    _check_membership(lists)
    jobs: dict[Job, Found] = {}
    decode = decode or spec.name not in SPECS  # nobody has looked at these lists before
    wanted = [[_job(spec, one, entry, decode) for entry in one.entries] for one in lists]
    for job in (job for group in wanted for job in group):
        jobs[job] = Found()
    jobs = dict(zip(jobs, parallel(partial(inspect, spec=spec), list(jobs), "check"), strict=True))
    for one, group in zip(lists, wanted, strict=True):
        for job in group:
            _add(one, spec, job, jobs[job])
        if spec.name == "ade20k" and one.masks >= 20 and not one.pixels[-1]:  # raw labels without the last class have legal values only
            one.problems.append(("raw", f"{one.path}: found no ignored pixel in {one.masks} masks, expected some with 255"))
    _check_content(lists, [[jobs[job].digest for job in group] for group in wanted])
    labeled = [one for one in lists if one.role == "labeled" and one.masks and spec.name not in SPECS]
    absent = [hint for one in labeled for hint in _absent(one, spec)]
    return _hints(spec, jobs, [kind for one in lists for kind, _ in one.problems]) + _turned(jobs) + absent


def _job(spec: DatasetSpec, one: Checked, entry: Entry, decode: bool) -> Job:
    images, mask = spec.files(entry)
    return Job(one.root, images, None if one.role == "unlabeled" else mask, decode)


def _add(one: Checked, spec: DatasetSpec, job: Job, found: Found) -> None:
    """Adds one image's finding to the list's sums."""
    one.masks += bool(found.values)
    one.pixels.update(by_class(found.values, spec))
    if found.problem:
        one.problems.append((found.kind, found.problem))
    elif wrong := illegal(found.values, spec):
        one.problems.append(("value", f"{job.label}: found the values {_some(wrong)}, expected {spec.legal}"))


def _absent(one: Checked, spec: DatasetSpec) -> list[str]:
    """A hint where labelled masks lack classes. Where they have only one, that is a problem: there is nothing to learn."""
    seen = {c for c in one.pixels if c >= 0}
    if len(seen) > 1:
        names = ", ".join(name for c, name in enumerate(spec.classes) if c not in seen)
        how = "`make --stratify` draws pairs with every class; what other mask values stand for is the key label_map"
        return [f"{one.path}: no mask has {names}, which will not be learned: {how}."] if names else []
    if all(kind != "value" for kind, _ in one.problems):
        one.problems.append(("one class", f"{one.path}: {nothing_to_learn(one.pixels, one.masks, spec)}"))
    return []


def _turned(jobs: dict[Job, Found]) -> list[str]:
    """A hint where photographs have an EXIF orientation: with an upright mask, a square one would be learned wrongly."""
    files = [(job.images[0], found.orientation) for job, found in jobs.items() if found.orientation > 1]
    if not files:
        return []
    path, orientation = files[0]
    return [f"images with an EXIF orientation: {len(files)}, as {path} ({orientation}), {NOT_APPLIED}."]


def _some(values: list[int]) -> str:
    return ", ".join(map(str, values[:8])) + (" ..." if len(values) > 8 else "")


def _check_membership(lists: list[Checked]) -> None:
    """Checks that no image is twice in a list, in two lists of a pair, or in a validation list and in one that trains or selects."""
    for one in lists:
        for file, count in Counter(one.files).items():
            if count > 1:
                one.problems.append(("twice", f"{one.path}: {file} is in the list {count} times"))
    held = [one for one in lists if one.role == "val"]
    for one in lists:
        others = [] if one.role == "val" else held
        roles = {"unlabeled": ("labeled", "select"), "labeled": ("select",)}.get(one.role, ())
        others = others + [other for other in lists if other.role in roles and other.pair == one.pair]
        for other in others:
            for file in sorted(set(one.files) & set(other.files)):
                one.problems.append(("both", f"{one.path}: {file} is in {other.path} too"))


def _check_content(lists: list[Checked], digests: list[list[bytes]]) -> None:
    """Checks that no validation image is in a training list under another name. digests: of each list's images; empty ones are skipped."""
    held: dict[bytes, tuple[Path, str]] = {}
    for one, group in zip(lists, digests, strict=True):
        if one.role == "val":
            held |= {digest: (one.path, file) for digest, file in zip(group, one.files, strict=True) if digest}
    for one, group in zip(lists, digests, strict=True):
        for digest, file in zip(group, one.files, strict=True):
            path, other = held.get(digest, (one.path, file))
            if one.role != "val" and other != file:
                one.problems.append(("equal", f"{one.path}: {file} has the same pixels as {other} of {path}"))


def _hints(spec: DatasetSpec, jobs: dict[Job, Found], kinds: list[str]) -> list[str]:
    """Hints on the most common causes of the problems found."""
    hints = []
    values = {value for found in jobs.values() for value in found.values}
    absent = sum(found.kind in ("no image", "no mask") for found in jobs.values())
    if absent * 2 > len(jobs):
        job = next(iter(jobs))
        hints.append(f"most files are missing: is the data root right? Expected, for example, {job.images[0]}; set it with --data-root.")
    untouched = (job.label.replace("labelTrainIds", "labelIds") for job, found in jobs.items() if found.kind == "no mask" and job.label)
    if spec.name == "cityscapes" and any(isfile(path) for path in untouched):
        hints.append("only the raw Cityscapes label ids exist: make the train ids with `python -m dataset.prepare cityscapes`.")
    if "mask" in kinds:
        how = (
            "`python -m dataset.prepare pascal` turns them into ids"
            if spec.name == "pascal"
            else 'store the class id of each pixel instead, or say which colour is which class: `label_map: {"#rrggbb": class}`'
        )
        hints.append(f"some masks do not hold one class id for each pixel: {how}.")
    if "value" in kinds and spec.name == "cityscapes" and values & set(range(19, 34)):
        hints.append("ids from 19 to 33 are raw Cityscapes ids: make the train ids with `python -m dataset.prepare cityscapes`.")
    if spec.name == "ade20k" and (150 in values or "raw" in kinds):
        hints.append("these look like raw ADE20K labels (0 is void, 1 to 150): shift them with `python -m dataset.prepare ade20k`.")
    if {"value", "one class"} & set(kinds) and (advice := two_values(values, spec)):
        hints.append(f"{advice}.")
    if spec.bitemporal and 1 in values and 1 not in spec.label_map:
        hints.append("change masks of 0 and 1, expected 0 and 255: `python -m dataset.prepare` writes those, or multiply them by 255.")
    if "twice" in kinds or "both" in kinds:
        hints.append("images in more than one place make the result worthless: draw the pair again with `python -m dataset.splits make`.")
    if "equal" in kinds:
        hints.append(
            "the score of an image that was trained with under another name says nothing: delete the copies and make the lists again."
        )
    return hints


def report(spec: DatasetSpec, lists: list[Checked], hints: list[str]) -> str:
    """The tables: one line per list; share of the pixels that are not ignored per class and list; problems; hints."""
    rows = [("list", "images", "masks read", "classes", "ignored", "problems")]
    for one in lists:
        seen = sum(c >= 0 for c in one.pixels)
        rows.append((
            str(one.path), str(len(one.entries)), str(one.masks), f"{seen}/{spec.nclass}" if one.masks else "-",
            f"{one.pixels[-1] / max(1, one.pixels.total()):.1%}" if one.masks else "-", str(len(one.problems)),
        ))  # fmt: skip
    with_masks = [one for one in lists if one.masks]
    shares = [("class", *(str(one.path.with_suffix("")).removeprefix(f"splits/{spec.name}/") for one in with_masks))]
    for c, name in enumerate(spec.classes):
        totals = [max(1, one.pixels.total() - one.pixels[-1]) for one in with_masks]
        shares.append(
            (f"{c} {name}", *(f"{one.pixels[c] / n:.2%}" if one.pixels[c] else "-" for one, n in zip(with_masks, totals, strict=True)))
        )
    blocks = [_table(rows)] + ([_table(shares)] if with_masks else [])
    return "\n\n".join(blocks + _problems(lists) + [f"hint: {hint}" for hint in hints])


def _problems(lists: list[Checked]) -> list[str]:
    kinds: dict[str, dict[str, None]] = {}
    for one in lists:
        for kind, text in one.problems:
            kinds.setdefault(kind, {})[text] = None  # a dict, so that a file in several lists is named once, in order
    lines = []
    for texts in kinds.values():
        lines += [f"problem: {text}" for text in list(texts)[:EXAMPLES]]
        if len(texts) > EXAMPLES:
            lines.append(f"         ... and {len(texts) - EXAMPLES} more of this kind")
    return ["\n".join(lines)] if lines else []


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))) for row in rows
    )


def classes_in(spec: DatasetSpec | None, root: str, entries: list[Entry]) -> list[frozenset[int]]:
    """The classes in each mask; without a DatasetSpec every value but 255. Raises UserError at the first broken mask."""
    jobs = [Job(root, *(spec.files(entry) if spec else ((entry.image,), entry.mask))) for entry in entries]
    classes = []
    for found in parallel(partial(inspect, spec=spec), jobs, "read masks"):
        if found.problem:
            raise UserError(f"{found.problem}; `python -m dataset.splits check` lists all problems")
        labels = (class_of(value, spec) if spec else value for value in found.values if spec or value != IGNORE)
        classes.append(frozenset(label for label in labels if label is not None))
    return classes

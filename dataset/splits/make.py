"""Labelled/unlabelled pairs drawn from a list, and lists made from folders (used by `python -m dataset.splits make`)."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dataset.lists import IMAGE_ENDINGS, Entry
from dataset.walk import image_tree
from util.error import UserError


def rank(lines: Sequence[str], seed: int) -> list[int]:
    """The indices of the lines in the order of sha256("<seed>\\n<line>"): a shuffle that no library version changes.

    It does not depend on the order of the list, and a larger labelled part contains every smaller one of the same seed.
    """
    return sorted(range(len(lines)), key=lambda i: hashlib.sha256(f"{seed}\n{lines[i]}".encode()).digest())


def choose(ranked: Sequence[int], count: int, classes: Sequence[frozenset[int]] | None = None) -> set[int]:
    """The `count` lines that become labelled: the first of the ranking, or with `classes` so that as many classes as possible occur.

    classes: for each line the classes in its mask (stratified choice). Then, from the class in the fewest images to the one in the
    most, a class that is still absent brings in the first image of the ranking that has it; the ranking fills up what is left.
    Where `count` is too small for that, images are taken by the number of absent classes they bring.
    """
    if classes is None:
        return set(ranked[:count])
    chosen: list[int] = []
    seen: set[int] = set()
    frequency = {c: sum(c in present for present in classes) for c in frozenset().union(*classes)}
    for c in sorted(frequency, key=lambda c: (frequency[c], c)):
        if c not in seen:
            first = next(i for i in ranked if c in classes[i])
            chosen.append(first)
            seen |= classes[first]
    if len(chosen) > count:
        chosen, seen = [], set()
        while len(chosen) < count:
            best = max((i for i in ranked if i not in chosen), key=lambda i: len(classes[i] - seen))  # the first of equals
            chosen.append(best)
            seen |= classes[best]
    taken = set(chosen)
    return taken | set([i for i in ranked if i not in taken][: count - len(taken)])


class Paired(NamedTuple):
    """Images with their masks, relative to `root`. alone: number of masks without an image. notes: which files were left out."""

    root: Path
    entries: list[Entry]
    alone: int
    notes: list[str]


def pair_folders(images: Path, masks: Path | None, root: Path | None, suffix: str = "") -> Paired:
    """Pairs each image with the mask of the same name (other ending allowed), subfolders included, in the order of the names.

    One folder may lie in the other. root: data root below which paths are written; None means the nearest folder that has both. suffix:
    what a mask's name has after the image's name (`_L` for a.jpg and a_L.png). An image without a mask gets None. Raises UserError for
    folders without images or without a single match.
    """
    if masks is not None and masks.resolve() == images.resolve():
        raise UserError(f"--masks: found the folder of --images ({images}), expected another one; move the masks to a folder of their own")
    found, notes = _by_name(images, "--images", masks)
    if root is None:
        root = Path(os.path.commonpath([os.path.abspath(images), os.path.abspath(masks or images)]))
    of: dict[str, Path] = {}
    if masks is not None:
        of, of_masks = _by_name(masks, "--masks", images)
        notes += of_masks
    entries = []
    for name, image in found.items():
        mask = of.pop(name + suffix, None)
        entries.append(Entry(_below(image, root), None if mask is None else _below(mask, root)))
    if masks is not None and all(entry.mask is None for entry in entries):
        example = next(iter(found)) + suffix
        raise UserError(f"--masks: found no mask with an image's name in {masks} (looked for {example}.png); is --mask-suffix needed?")
    return Paired(root, entries, len(of), notes)


def _by_name(folder: Path, option: str, other: Path | None) -> tuple[dict[str, Path], list[str]]:
    """The images of a folder and its subfolders by path without the ending, and a note on its other files. `other` is left out."""
    if not folder.is_dir():
        raise UserError(f"{option}: no such folder: {folder}")
    inner = [other] if other is not None and folder.resolve() in other.resolve().parents else []
    tree = image_tree(folder, inner)
    names: dict[str, Path] = {}
    for path in tree.images:
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in names:
            raise UserError(f"{option}: found {names[name].name} and {path.name} in {path.parent}, expected one file per name")
        names[name] = path
    left = tree.left_out()
    if not names:
        also = f" ({left})" if left else ""
        raise UserError(f"{option}: found no image in {folder}{also}, expected files that end in {', '.join(IMAGE_ENDINGS)}")
    return names, [f"{folder}: {left}"] if left else []


def _below(path: Path, root: Path) -> str:
    """The path relative to the data root (symbolic links are kept as they are). Raises UserError for one that cannot stand in a list."""
    absolute, base = Path(os.path.abspath(path)), Path(os.path.abspath(root))
    if not absolute.is_relative_to(base):
        raise UserError(f"--data-root: {absolute} is not below {base}; give a folder that holds images and masks")
    text = absolute.relative_to(base).as_posix()
    if "\t" in text or "\n" in text:
        raise UserError(f"{text!r}: a path with a TAB or a line break cannot stand in a list; rename it")
    return text

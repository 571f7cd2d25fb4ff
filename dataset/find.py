"""Finds the inputs of a command: images and folders, pairs of two dates by name, lists; and names the results."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Mapping, Sequence
from os.path import abspath
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from dataset.lists import IMAGE_ENDINGS, Entry, inside, read_list
from dataset.source import BadFileError, open_image, open_mask
from dataset.spec import DatasetSpec
from dataset.stored import unreadable
from dataset.walk import Tree, image_tree
from util.error import UserError


class Pair(NamedTuple):
    """Two images of one area at two dates, and their label where it is known."""

    name: str
    a: Path
    b: Path
    label: Path | None = None


Name = TypeVar("Name", str, Path)
Input = Path | Pair  # what one prediction is made of: an image, or two dates


def read_image(path: Path) -> Image.Image:
    """An RGB image of any mode. Raises UserError where it cannot be read."""
    try:
        return open_image(str(path.parent), path.name)
    except BadFileError as error:
        if isinstance(error.__cause__, FileNotFoundError):  # its advice is for the lists of a training run
            raise UserError(
                f"{path}: no such file; correct the path, or for a list give the folder that it is relative to: --data-root"
            ) from error
        if isinstance(error.__cause__, Exception):
            raise UserError(f"{path}: {unreadable(error.__cause__, 'replace the file or leave it out')}") from error
        raise


class Chosen(NamedTuple):
    """The inputs that a command line names. folders: for inputs found in a folder, that folder. left: what was left out, and why."""

    inputs: list[Input]
    folders: dict[Input, Path]
    left: list[str]


def images_in(folder: Path, without: Path | None = None) -> Tree:
    """All images in a folder and below, sorted, but for those under `without`. Raises UserError for a folder that holds none."""
    tree = image_tree(folder, [without] if without else [])
    if not tree.images:
        left = f" ({tree.left_out()})" if tree.others else ""
        raise UserError(
            f"{folder}: found no image in this folder{left}, expected files ending in {' '.join(IMAGE_ENDINGS)}; check the path"
        )
    return tree


def find_images(text: str, without: Path) -> Tree:
    """The images that a file, folder or glob names, in order. Raises UserError where it names none."""
    path = Path(text)
    if path.is_dir():
        return images_in(path, without)
    if path.is_file():
        return Tree([path], Counter())
    matches = sorted(Path(match) for match in glob.glob(text, recursive=True))
    if not matches:
        raise UserError(f"{text}: no such image or folder, and nothing that matches it; check the path")
    found = [match for match in matches if match.suffix.lower() in IMAGE_ENDINGS and match.is_file()]
    if not found:
        raise UserError(f"{text}: found no image, expected files ending in {' '.join(IMAGE_ENDINGS)}; check the path")
    others = [match for match in matches if match not in found]
    return Tree(found, Counter("(folder)" if match.is_dir() else match.suffix.lower() for match in others))


def find_pairs(a: str, b: str, label: str | None = None) -> list[Pair]:
    """Pairs from two image files, or from two folders by equal relative names. Raises UserError where a partner is missing."""
    paths = [Path(a), Path(b), *([Path(label)] if label else [])]
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder; give both dates (and the label) as files, or as folders")
    if len({path.is_dir() for path in paths}) > 1:
        raise UserError(f"{' '.join(map(str, paths))}: files and folders mixed, expected all of one kind")
    if paths[0].is_file():
        return [Pair(paths[0].name, *paths)]
    pairs = []
    for image in images_in(paths[0]).images:
        name = image.relative_to(paths[0]).as_posix()
        partners = [path / name for path in paths]
        for partner in partners:
            if not partner.is_file():
                raise UserError(f"{partner}: no such file, expected a partner of {image}; complete the pair or take {name} out")
        pairs.append(Pair(name, *partners))
    return pairs


def list_inputs(path: str, root: str, spec: DatasetSpec) -> list[Input]:
    """The images or pairs of a list, below `root`; masks are not looked at."""
    inputs: list[Input] = []
    for entry in read_list(path, spec.task):
        images, _ = spec.files(entry)
        paths = [Path(inside(root, image)) for image in images]
        inputs.append(Pair(entry.image, *paths) if len(paths) == 2 else paths[0])
    return inputs


def find_inputs(texts: Sequence[str], pair: Sequence[str] | None, spec: DatasetSpec, root: str, out: Path) -> Chosen:
    """The inputs that a command line names, each once; images below `out` are left out of folders.

    Raises UserError where there is nothing, or something of another task.
    """
    lists = [text for text in texts if text.endswith(".txt")]
    if pair:
        if not spec.bitemporal:
            raise UserError("--pair: the config is for single images; give images, or the config of a change detection run")
        pairs: list[Input] = [*find_pairs(pair[0], pair[1])]
        return Chosen(pairs, dict.fromkeys(pairs, Path("/")) if Path(pair[0]).is_dir() else {}, [])
    if spec.bitemporal and len(lists) < len(texts):
        raise UserError(f"{texts[0]}: the config is for pairs of two dates; give --pair A B (images or folders), or a list of pairs")
    chosen = Chosen([], {}, [])
    for text in texts:
        if text in lists:
            chosen.inputs.extend(list_inputs(text, root, spec))
            continue
        tree = find_images(text, out)
        chosen.inputs.extend(tree.images)
        if Path(text).is_dir():
            chosen.folders.update(dict.fromkeys(tree.images, Path(text)))
        if tree.others:
            chosen.left.append(f"{text}: {tree.left_out()}")
    return chosen._replace(inputs=list(dict.fromkeys(chosen.inputs)))


def batches_by_size(inputs: Sequence[Input], batch: int) -> list[list[int]]:
    """Indices of inputs of one size, at most `batch` together. Reads the files' heads only; where that fails, an input is alone."""
    groups: dict[Any, list[int]] = {}
    for index, one in enumerate(inputs):
        path = one.a if isinstance(one, Pair) else one
        try:
            with Image.open(path) as image:
                groups.setdefault(image.size, []).append(index)
        except Exception:  # PIL raises whatever broken bytes lead it to; reading the whole file will say it
            groups[path] = [index]
    return [group[i : i + batch] for group in groups.values() for i in range(0, len(group), batch)]


def output_names(
    inputs: Sequence[Input], out: Path, confidence: bool = False, folders: Mapping[Input, Path] = MappingProxyType({})
) -> list[str]:
    """A name for the results of each input in `out`: its stem, or for one found in a folder its path in there without the ending.

    Where names are equal, the folders above that distinguish them come in front: as folders where the path is kept, else
    with underscores. a.jpg and a.png of one folder are called a_jpg and a_png. Raises UserError where that does not suffice, or where
    a result would replace an input. confidence: whether confidence maps are among the results. folders: see `Chosen`.
    """
    # a link has its own name, not that of the file behind it
    paths = [Path("/", one.name) if isinstance(one, Pair) else Path(abspath(one)) for one in inputs]
    twins = _doubles([path.with_suffix("") for path in paths])
    stems = [f"{path.stem}_{path.suffix[1:]}" if path.with_suffix("") in twins else path.stem for path in paths]
    # the root itself is no name
    above = [path.parent.parts[1:] for path in paths]
    kept = [
        len(path.relative_to(abspath(folders[one])).parts) - 1 if one in folders else 0 for one, path in zip(inputs, paths, strict=True)
    ]
    names = ["/".join((*up[len(up) - keep :], stem)) for stem, up, keep in zip(stems, above, kept, strict=True)]
    for depth in range(1, max(len(path.parts) for path in paths)):
        double = _doubles(names)
        if not double:
            break
        for i in (i for i, name in enumerate(names) if name in double):
            parts = (*above[i][max(0, len(above[i]) - kept[i] - depth) :], stems[i])
            names[i] = ("/" if inputs[i] in folders else "_").join(parts)
    given = [path for one in inputs for path in ((one.a, one.b) if isinstance(one, Pair) else (one,))]
    originals = {other for path in given for other in (path.resolve(), path.parent.resolve() / path.name)}
    makers: dict[str, Path] = {}
    for path, name in zip(paths, names, strict=True):
        for result in (f"{name}.png", f"{name}_overlay.jpg", *([f"{name}_confidence.png"] if confidence else [])):
            if result in makers:
                raise UserError(f"{makers[result]} and {path}: their results would have the same name; predict them into two folders")
            makers[result] = path
            if (out.resolve() / result) in originals:
                raise UserError(f"{out / result}: is an input, and a result would replace it; give another --out")
    return names


def _doubles(names: Sequence[Name]) -> set[Name]:
    return {name for name, count in Counter(names).items() if count > 1}


class PairSource:
    """Labelled pairs found as files, which are read like the list of a data set (dataset.source.Source)."""

    def __init__(self, spec: DatasetSpec, pairs: Sequence[Pair]) -> None:
        self.spec = spec
        self.pairs = {pair.name: pair for pair in pairs}
        self.ids = [Entry(pair.name, None) for pair in pairs]

    def images(self, entry: Entry) -> list[Image.Image]:
        return read_pair(self.pairs[entry.image])

    def mask(self, entry: Entry, size: tuple[int, int]) -> np.ndarray:
        pair = self.pairs[entry.image]
        assert pair.label is not None
        return open_mask(self.spec, str(pair.label.parent), pair.label.name, size, str(pair.a))


def read_input(source: Input) -> list[Image.Image]:
    """The image, or both dates, RGB."""
    return read_pair(source) if isinstance(source, Pair) else [read_image(source)]


def read_pair(pair: Pair) -> list[Image.Image]:
    """Both dates, RGB. Raises UserError where their sizes differ."""
    images = [read_image(path) for path in (pair.a, pair.b)]
    if images[0].size != images[1].size:
        raise UserError(f"{pair.b}: found {images[1].size}, expected {images[0].size} (width, height) as {pair.a}; fix the pair")
    return images

"""The files of a list, looked at before a run trains with them: whether all are there, and what their masks hold."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice

from dataset.look import Found, Job, by_class, illegal, inspect, nothing_to_learn, two_values
from dataset.semi import ValSet
from dataset.source import Source, find_file
from util.error import UserError


def needed(source: Source, masks: bool) -> Iterator[str]:
    """The paths that a list's images, and masks where they are read, have below the data root."""
    for i in range(len(source.ids)):
        images, mask = source.spec.files(source.ids[i])
        yield from images
        if masks and mask is not None:
            yield mask


def check_files(source: Source) -> None:
    """Raises UserError where an image or mask of a list is missing, or the first ones cannot be used: before hours of training."""
    with ThreadPoolExecutor(16) as pool:  # a shared file system takes its time for each of them
        for _ in pool.map(lambda path: find_file(source.root, path), needed(source, masks=True)):
            pass
    first = ValSet(source)[0]
    if isinstance(first, UserError):
        raise first


def check_labels(source: Source) -> None:
    """Raises UserError where the labelled masks have fewer than two classes: nothing can be learned. Reads until it finds a second one."""
    spec, pixels, values = source.spec, Counter[int](), set[int]()
    for found in _look_at(source):
        if found.problem or illegal(found.values, spec):
            return  # who reads the file will say it
        pixels.update(by_class(found.values, spec))
        values.update(found.values)
        if not nothing_to_learn(pixels, len(source.ids), spec):
            return
    wrong = nothing_to_learn(pixels, len(source.ids), spec)
    raise UserError(f"{source.ids.path}: {wrong}; {two_values(values, spec) or 'correct the masks, or use label_map'}")


def label_pixels(source: Source, skip_bad: bool = False) -> Counter[int]:
    """Pixels of each class id in all masks of a labelled list; -1: ignored ones.

    skip_bad: leave out the files that cannot be read, for which else UserError is raised.
    """
    pixels = Counter[int]()
    for found in _look_at(source):
        if found.problem and not skip_bad:
            raise UserError(f"{found.problem}; correct the file, or take it off {source.ids.path}")
        pixels.update(by_class(found.values, source.spec))
    return pixels


def _look_at(source: Source) -> Iterator[Found]:
    """The images and masks of a labelled list, in order, looked at by several threads."""
    jobs = (Job(source.root, *source.spec.files(source.ids[i])) for i in range(len(source.ids)))
    with ThreadPoolExecutor(16) as pool:
        while some := list(islice(jobs, 64)):
            yield from pool.map(partial(inspect, spec=source.spec), some)

"""Training samples on one core: what is left to a loader process, beside the literal way.

The literal way is METHOD.md 2.2 and 2.3 as a loader process does it for a CPU: decoded by Pillow, every view made, and each a normalised
float tensor. With views=device, the images are left to the training device. Both ways end with a collated mini-batch.
"""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import default_collate

from dataset.batch import RawBatch, Reads, make_batch, normalize
from dataset.custom import spec_of
from dataset.demo.photograph import FILES, SIZE, drawn_source
from dataset.lists import Entry
from dataset.sampler import ShardSampler, make_streams
from dataset.semi import TrainSet, collate
from dataset.source import Source, Sources
from dataset.spec import get_spec
from engine.method import Method
from model.encoder import Encoder
from scripts.benchmark.measure import AT_LEAST, Row, ratio, seconds
from util.config import Config

DRAWS = 24  # samples of a round
BATCH = 4  # samples of a mini-batch
KINDS = ((*SIZE, "jpg", 6.0, 518), (2048, 1024, "png", 1.0, 798))  # width, height, ending and sensor's noise of the images; crop
GOALS = {("u", 518): (AT_LEAST, 10.0), ("u", 798): (AT_LEAST, 4.0), ("x", 798): (AT_LEAST, 3.0)}  # by stream and crop


def host_batch(cfg: Config, reads: Reads, on_device: bool = False, pin: bool = False) -> RawBatch:
    """A mini-batch as the loader hands it over. on_device: see TrainSet. pin: in page-locked memory, as for a GPU."""
    with TemporaryDirectory() as folder:
        size, spec, images = (cfg.crop_size, 3 * cfg.crop_size // 4), spec_of(cfg), reads.images(cfg.batch_size)
        listed = dict.fromkeys(images, max(images.values()))
        sources = {name: Sources([drawn_source(Path(folder), spec, [size], count=count)]) for name, count in listed.items()}
        data = TrainSet(sources, cfg.crop_size, 0, reads, on_device=on_device)
        mini_batches = ShardSampler(make_streams(listed, cfg.batch_size, spec, reads), 1, range(1))
        raw: Any = collate([data[keys] for keys in next(iter(mini_batches))])
        return raw.pin_memory() if pin else raw


def images(cfg: Config, method: Method) -> str:
    """How many images a mini-batch has, in words."""
    return "+".join(map(str, method.reads.images(cfg.batch_size).values()))


class PillowSource(Source):
    """A Source that decodes with Pillow alone and checks nothing."""

    def images(self, entry: Entry) -> list[Image.Image]:
        return [Image.open(Path(self.root, entry.image)).convert("RGB")]

    def mask(self, entry: Entry, size: tuple[int, int]) -> np.ndarray:
        return np.array(Image.open(Path(self.root, str(entry.mask))))


def literal_samples(source: Source, stream: str, crop: int, indices: Iterable[int]) -> dict[str, Any]:
    """A mini-batch of labelled ("x") or unlabelled ("u") samples the literal way, collated: images are normalised float (B, 3, S, S)."""
    data: Any = TrainSet({stream: Sources([PillowSource(source.spec, source.root, source.ids)])}, crop, 0, Reads())
    samples = [data[((stream, 0, i, i % FILES),)] for i in indices]
    return default_collate(
        [{name: normalize(value, Encoder()) if name.startswith("img") else value for name, value in sample.items()} for sample in samples]
    )


def sample_row(source: Source, stream: str, crop: int, rounds: int, figure: str) -> Row:
    """Samples of one stream on one core, as in a loader process: rounds of DRAWS samples."""
    data = TrainSet({stream: Sources([source])}, crop, 0, Reads(), on_device=True)
    mini_batches = [range(start, start + BATCH) for start in range(0, DRAWS, BATCH)]
    ways = {
        "literal": lambda: [literal_samples(source, stream, crop, indices) for indices in mini_batches],
        "ours": lambda: [collate([data[((stream, 0, i, i % FILES),)] for i in indices]) for indices in mini_batches],
    }
    spent = {way: [time / DRAWS for time in times] for way, times in seconds(ways, rounds, torch.device("cpu")).items()}
    return ratio(figure, spent["literal"], spent["ours"], GOALS.get((stream, crop)), "a sample")


def rows(cfg: Config, method: Method, device: torch.device, args: argparse.Namespace) -> Iterator[Row]:
    """What is left to the device of a mini-batch of `cfg`, and samples of KINDS."""
    raw = host_batch(cfg, method.reads, on_device=True, pin=device.type == "cuda")
    times = seconds({"images": lambda: make_batch(raw, device, Encoder())}, args.rounds, device)["images"]
    figure = f"images of a mini-batch of {images(cfg, method)}, crop {cfg.crop_size}, views=device, made on {device.type}"
    yield Row(figure, [1000 * time for time in times], "ms")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for width, height, suffix, noise, crop in KINDS:
            for stream, name in (("u", "unlabelled"), ("x", "labelled")):
                with TemporaryDirectory() as root:
                    source = drawn_source(Path(root), get_spec("pascal"), [(width, height)], suffix, noise)
                    figure = f"{name} {width} x {height} {suffix.upper()}, crop {crop}, views=device"
                    yield sample_row(source, stream, crop, args.rounds, figure)
    finally:
        torch.set_num_threads(threads)

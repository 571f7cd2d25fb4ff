"""Training samples on one core: this program's loader process against the literal way, on images that decode like photographs.

The literal way is METHOD.md 2.2 and 2.3 in Pillow and torchvision: resize the whole image, pad, crop, flip; for
each view colour jitter, greyscale, blur, ToTensor, Normalize; one float tensor per view. Both ways draw the same parameters, in the same
order, and end with a collated mini-batch.
"""

from __future__ import annotations

import sys
import tempfile
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torch.utils.data import default_collate

from dataset.batch import RawBatch, Reads, make_batch
from dataset.custom import spec_of
from dataset.lists import ImageList
from dataset.photometry import Photometry, draw_photometry, strong_views
from dataset.semi import STREAMS, Source, Sources, TrainSet, collate, open_file
from dataset.spec import DatasetSpec, get_spec
from dataset.transform import Geometry, crop_parts, cut_image, draw_box, draw_geometry
from model.encoder import IMAGENET_MEAN, IMAGENET_STD, Encoder
from scripts.benchmark.measure import AT_LEAST, Row, ratio, seconds
from util.config import Config

try:
    import torchvision.transforms.functional as tvf
except RuntimeError:
    # torchvision's wheel was built for another PyTorch build (its GPU wheel beside a CPU-only torch): its compiled operators do not
    # load and their registration fails. The transforms need none of them, so leave the registration out.
    sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")
    import torchvision.transforms.functional as tvf

FILES = 4  # images of each kind
DRAWS = 24  # samples of a round
BATCH = 4  # samples of a mini-batch


def photograph(width: int, height: int, rng: np.random.Generator, noise: float) -> Image.Image:
    """RGB with the detail of a photograph: noise in octaves, each finer one weaker; edges of shaded boxes; a sensor's noise."""
    out = np.full((height, width, 3), 110.0)
    cells, strength = 4, 60.0
    while cells < width:
        grid = rng.normal(0, strength, (cells * height // width + 1, cells + 1)).astype(np.float32)
        octave = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
        out += np.asarray(octave)[..., None] * rng.uniform(0.7, 1.3, 3)
        cells, strength = 2 * cells, 0.62 * strength
    for x, y in zip(rng.integers(0, width, 20), rng.integers(0, height, 20), strict=True):
        out[y : y + height // 5, x : x + width // 6] += rng.normal(0, 30, 3)
    out += rng.normal(0, noise, out.shape)
    return Image.fromarray(out.clip(0, 255).astype(np.uint8))


def mask_values(spec: DatasetSpec) -> list[int]:
    """Up to 19 values that masks of a data set may hold."""
    return sorted(spec.label_map or range(spec.nclass))[:19]


def write_images(root: Path, width: int, height: int, suffix: str, noise: float, values: Sequence[int] = range(19)) -> None:
    """FILES images with masks that hold `values` in soft shapes, and their list. A JPEG has quality 95."""
    lines = []
    for i in range(FILES):
        rng = np.random.default_rng((width, i))
        photograph(width, height, rng, noise).save(root / f"{i}.{suffix}", quality=95)
        fields = [Image.fromarray(rng.random((6, 9)).astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC) for _ in values]
        largest = np.stack([np.asarray(field) for field in fields]).argmax(0)
        Image.fromarray(np.array(values, np.uint8)[largest]).save(root / f"{i}_mask.png")
        lines.append(f"{i}.{suffix} {i}_mask.png\n")
    (root / "list.txt").write_text("".join(lines))


def _literal_crop(image: Image.Image, place: Geometry, crop: int, fill: int, resample: Image.Resampling) -> Image.Image:
    image = image.resize((place.width, place.height), resample)
    image = ImageOps.expand(image, (0, 0, max(0, crop - place.width), max(0, crop - place.height)), fill)
    image = image.crop((place.x, place.y, place.x + crop, place.y + crop))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if place.flip else image


def _literal_strong(image: Image.Image, view: Photometry) -> Image.Image:
    for name, factor in view.jitter:
        image = getattr(tvf, f"adjust_{name}")(image, factor)
    if view.grey:
        image = tvf.rgb_to_grayscale(image, num_output_channels=3)
    return image if view.blur is None else image.filter(ImageFilter.GaussianBlur(view.blur))


def _literal_tensor(image: Image.Image) -> Tensor:
    return tvf.normalize(tvf.to_tensor(image), IMAGENET_MEAN, IMAGENET_STD)


def literal_sample(root: Path, name: str, crop: int, rng: np.random.Generator, stream: str) -> dict[str, Any]:
    """A labelled ("x") or unlabelled ("u") sample the literal way: normalised float (3, S, S), masks (S, S) long."""
    file, mask_file = name.split()
    image = Image.open(root / file).convert("RGB")
    mask = Image.open(root / mask_file) if stream == "x" else Image.fromarray(np.zeros(image.size[::-1], np.uint8))
    spec = get_spec("pascal")
    place = draw_geometry(rng, *image.size, crop, spec.scale)
    image = _literal_crop(image, place, crop, 0, Image.Resampling.BILINEAR)
    mask = _literal_crop(mask, place, crop, 255 if stream == "x" else 254, Image.Resampling.NEAREST)
    label = torch.from_numpy(np.array(mask)).long()
    if stream == "x":
        return {"img": _literal_tensor(image), "mask": label}
    sample: dict[str, Any] = {"img": _literal_tensor(image), "ignore": torch.where(label == 254, 255, 0)}
    for view in (1, 2):
        sample[f"strong{view}"] = _literal_tensor(_literal_strong(image, draw_photometry(rng, spec.grey)))
        sample[f"box{view}"] = torch.tensor(draw_box(rng, crop))
    return sample


def _alternatives(root: Path, crop: int, stream: str) -> dict[str, Callable[[], None]]:
    """One round of each way: literal, with views=device, with views=worker, and decoding alone."""
    lines = (root / "list.txt").read_text().splitlines()
    sources = {stream: Sources([Source(get_spec("pascal"), str(root), ImageList(str(root / "list.txt"), "segmentation", stream == "x"))])}

    def literal() -> None:
        for start in range(0, DRAWS, BATCH):
            rngs = [(i, np.random.default_rng((0, STREAMS[stream], 0, i))) for i in range(start, start + BATCH)]
            default_collate([literal_sample(root, lines[i % FILES], crop, rng, stream) for i, rng in rngs])

    def ours(on_device: bool) -> Callable[[], None]:
        data = TrainSet(sources, crop, 0, Reads(), on_device=on_device)

        def samples() -> None:
            for start in range(0, DRAWS, BATCH):
                collate([data[((stream, 0, i, i % FILES),)] for i in range(start, start + BATCH)])

        return samples

    def decode() -> None:
        for i in range(DRAWS):
            for file in lines[i % FILES].split()[: 2 if stream == "x" else 1]:
                open_file(str(root), file)

    return {"literal": literal, "device": ours(True), "worker": ours(False), "decode": decode}


def host_batch(cfg: Config, on_device: bool = False) -> RawBatch:
    """A mini-batch as the loader's processes hand it over, of random pixels (seconds do not depend on them); on_device: see TrainSet.

    For change detection, images are pairs.
    """
    spec, rng = spec_of(cfg), np.random.default_rng(0)
    dates, count, size = spec.dates, cfg.batch_size, cfg.crop_size
    raw: dict[str, Any] = {
        "mask_x": torch.from_numpy(rng.integers(0, spec.nclass, (count, size, size), np.uint8)),
        "ignore_u": torch.zeros(count, size, size, dtype=torch.uint8),
    }
    raw["box1"] = raw["box2"] = torch.tensor([[size // 4, size // 4, size // 2, size // 2]] * count)
    place = Geometry(size, size, 0, 0, flip=False)
    for img, stream in (("img_x", "x"), ("img_u_w", "u")):
        pixels = rng.integers(0, 256, (count, dates, 3 * size // 4, 3 * size // 4, 3), np.uint8)
        cuts = [cut_image([Image.fromarray(date) for date in one], place, size) for one in pixels]
        part, taps = (torch.stack(tensors) for tensors in zip(*cuts, strict=True))
        raw |= {f"part_{stream}": part, f"taps_{stream}": taps} if on_device else {img: crop_parts(part, taps)}
    drawn = [[[draw_photometry(rng, spec.grey).pack() for _ in range(dates)] for _ in range(2)] for _ in range(count)]
    photometry = torch.tensor(drawn, dtype=torch.float64)
    if on_device:
        return RawBatch(**raw, photometry=photometry)
    img_u_s1, img_u_s2 = strong_views(raw["img_u_w"], photometry).unbind(1)
    return RawBatch(**raw, img_u_s1=img_u_s1, img_u_s2=img_u_s2)


def pinned(raw: RawBatch, device: torch.device) -> RawBatch:
    """The mini-batch where the real loader leaves it for a GPU: in page-locked memory, from which it is copied while the host goes on."""
    return raw.pin_memory() if device.type == "cuda" else raw


def _device_row(cfg: Config, rounds: int, device: torch.device) -> Row:
    """Milliseconds that the training device takes for the images of a mini-batch that come to it unmade."""
    raw = pinned(host_batch(cfg, on_device=True), device)
    times = [1000 * t for t in seconds({"images": lambda: make_batch(raw, device, Encoder())}, rounds, device)["images"]]
    count = cfg.batch_size
    figure = f"images of a mini-batch of {count}+{count}, crop {cfg.crop_size}, views=device, made on {device.type}"
    return Row(figure, median(times), "ms", None, min(times), max(times))


def rows(cfg: Config, rounds: int, device: torch.device) -> Iterator[Row]:
    """The table's rows about samples: on one core, medians over `rounds` rounds of DRAWS samples; and what is left to `device`."""
    yield _device_row(cfg, rounds, device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a loader process
    try:
        with tempfile.TemporaryDirectory() as folder:
            for width, height, suffix, noise, crop in ((500, 375, "jpg", 6.0, 518), (2048, 1024, "png", 1.0, 798)):
                root = Path(folder) / suffix
                root.mkdir()
                write_images(root, width, height, suffix, noise)
                yield from _sample_rows(root, f"{width} x {height} {suffix.upper()}, crop {crop}", crop, rounds)
    finally:
        torch.set_num_threads(threads)


# {(stream, width of the images, who makes the views): times the literal way}
GOALS = {("u", "500", "device"): 10.0, ("u", "2048", "device"): 4.0, ("x", "2048", "device"): 3.0}
WAYS = {"device": "views=device", "worker": "views=worker", "decode": "if nothing but decoding took time"}


def _sample_rows(root: Path, kind: str, crop: int, rounds: int) -> Iterator[Row]:
    for stream, name in (("u", "unlabelled"), ("x", "labelled")):
        times = {way: [t / DRAWS for t in each] for way, each in seconds(_alternatives(root, crop, stream), rounds).items()}
        for way, words in WAYS.items():
            bound = GOALS.get((stream, kind.split()[0], way))
            yield ratio(f"{name} {kind}, {words}", times["literal"], times[way], (AT_LEAST, bound) if bound else None, "a sample")

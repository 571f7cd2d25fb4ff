"""Predicts images with a trained model: palette masks of the original size, and overlays with a legend.

    python predict.py --checkpoint exp/camvid/unimatch_v2/best.pth --out masks photos/ 'more/*.jpg'
    python predict.py --checkpoint best.pth --out changes --pair scenes/A scenes/B
    python predict.py --config configs/pascal.yaml --checkpoint THE_AUTHORS.pth --out masks photos/

Checkpoints of ours say which data set and model they are of; --config names another, and the authors' need one.
Inputs are images, folders, globs, or lists (.txt: the lines of a training list, relative to the data root). For each image <name>:
<name>.png, with the values of the data set's own labels, and <name>_overlay.jpg; --confidence adds <name>_confidence.png (grey,
255 is certain), --probabilities adds <name>.npz (probabilities (K, H, W) float16, classes). Of a folder the tree is kept below --out.
What is left out of it is counted. Files that cannot be read are listed at the end, with exit code 2; the others are predicted.

    from predict import load
    predictor = load("best.pth")  # or load("configs/camvid.yaml", "best.pth")
    mask, confidence = predictor.predict("photo.jpg")  # (H, W) uint8 class ids, (H, W) float32 in [0, 1]
    predictor.classes[mask[0, 0]]  # the name of the class at the top left
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dataset import picture
from dataset.batch import normalize
from dataset.find import Input, batches_by_size, find_inputs, output_names, read_image, read_input
from dataset.loader import WHOLE, with_room
from dataset.semi import image_tensor, tensor_images, to_predict
from engine.evaluation import Prediction, check_window
from engine.trained_model import Trained, add_which, load_trained, run_config
from util.cli import Parser, positive
from util.config import DEVICES, parse_arguments
from util.dist import cpu_count, processes
from util.error import UserError, run, tell_once
from util.files import check_output, output, write_atomic
from util.precision import inference
from util.progress import Progress, count
from util.signals import start_worker

Picture = str | Path | Image.Image | np.ndarray


@dataclass(frozen=True)
class Predictor:
    """A trained model that predicts images of any size. precision: see util/precision.py."""

    trained: Trained
    device: torch.device
    prediction: Prediction
    precision: str = "fp32"

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the class ids."""
        return self.trained.spec.classes

    @torch.inference_mode()
    def classify(self, img: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (B, C, H, W) -> class ids (B, H, W) and probabilities (B, K, H, W) float32, on the device."""
        model, spec = self.trained.model, self.trained.spec
        seen = img if spec.frame is None else torch.stack([to_predict(tensor_images(one), spec) for one in img])
        with inference(self.precision, self.device):
            scores = self.prediction.class_scores(model, normalize(seen.to(self.device), model.backbone), img.shape[-2:])
        return scores.argmax(dim=1), self.prediction.probabilities(scores)

    def predict(self, image: Picture | tuple[Picture, Picture]) -> tuple[np.ndarray, np.ndarray]:
        """Class ids (H, W) uint8 and their confidence (H, W) float32 of an image; change detection takes both dates as a tuple.

        An image is a path, a PIL image, or RGB values (H, W, 3) uint8. Raises UserError for anything else.
        """
        dates = image if isinstance(image, tuple) else (image,)
        if len(dates) != self.trained.spec.dates:
            raise UserError(f"predict: found {len(dates)} image(s), expected {self.trained.spec.dates} for {self.trained.spec.name}")
        images = [_as_image(date) for date in dates]
        if len({each.size for each in images}) > 1:
            raise UserError(f"predict: found dates of {images[0].size} and {images[1].size} (width, height), expected equal sizes")
        ids, probs = self.classify(image_tensor(images)[None])
        return ids[0].byte().cpu().numpy(), probs[0].amax(dim=0).cpu().numpy()


def _as_image(image: Picture) -> Image.Image:
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise UserError(f"predict: found an array {image.shape} of {image.dtype}, expected RGB (H, W, 3) of uint8")
        return Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise UserError(f"predict: found {type(image).__name__}, expected a path, a PIL image or an array")
    return image.convert("RGB")


def load(
    config: str,
    checkpoint: str | None = None,
    which: str | None = None,
    device: str = "auto",
    tile: int | None = None,
    bf16: bool = False,
    settings: Sequence[str] = (),
) -> Predictor:
    """A Predictor from a checkpoint of ours, `load("best.pth")`, or from the config of a run and its checkpoint, ours or the authors'.

    which: "ema" or "student", None: the EMA where there is one, in change detection the student. tile: side of sliding windows in pixels,
    0 for whole images, None: as the run evaluates, and large scenes of change detection in windows. settings: "key=value" over the
    config. Raises UserError.
    """
    given, path = (config, checkpoint) if checkpoint is not None else (None, config)
    cfg = run_config(given, path, list(settings))
    with processes(device if device != "auto" else cfg.device) as world:
        trained = load_trained(cfg, path, which, world.device)
    check_window(tile or None, trained.model)
    prediction = Prediction.of(cfg, trained.spec, trained.model, "original" if tile == 0 else None, tile, scenes=True)
    return Predictor(trained, world.device, prediction, "bf16" if bf16 else "fp32")


class Inputs(Dataset):
    """The images or pairs to predict, decoded in workers. A UserError comes back as it is."""

    def __init__(self, inputs: Sequence[Input]) -> None:
        self.inputs = inputs

    def __getitem__(self, index: int) -> tuple[int, Tensor | UserError]:
        try:
            return index, image_tensor(read_input(self.inputs[index]))
        except UserError as error:
            return index, error


def write(out: Path, name: str, img: Tensor, ids: np.ndarray, probs: Tensor, predictor: Predictor, args: argparse.Namespace) -> None:
    """Writes the files of one input. img: uint8 (3 * dates, H, W); ids: (H, W) uint8; probs: (K, H, W)."""
    spec = predictor.trained.spec
    picture.save(picture.palette_mask(ids, spec), out / f"{name}.png")
    picture.save(picture.overlay(tensor_images(img), ids, spec), out / f"{name}_overlay.jpg")
    if args.confidence:
        grey = (probs.amax(dim=0) * 255 + 0.5).byte().cpu().numpy()
        picture.save(Image.fromarray(grey), out / f"{name}_confidence.png")
    if args.probabilities:
        values, classes = probs.half().cpu().numpy(), np.array(spec.classes)
        write_atomic(out / f"{name}.npz", lambda file: np.savez_compressed(file, probabilities=values, classes=classes), sync=False)


def predict_all(
    predictor: Predictor, inputs: Sequence[Input], names: Sequence[str], out: Path, args: argparse.Namespace
) -> list[UserError]:
    """Predicts the inputs and writes their files. Returns what is wrong with those that cannot be read, in their order."""
    problems: dict[int, UserError] = {}
    options: dict[str, Any] = {
        "num_workers": with_room(min(4, cpu_count() - 1), args.batch_size * WHOLE),
        "worker_init_fn": start_worker,
        "collate_fn": list,
    }
    loader: DataLoader[Any] = DataLoader(Inputs(inputs), batch_sampler=batches_by_size(inputs, args.batch_size), **options)
    with Progress(len(inputs), "image") as progress:
        for batch in loader:
            problems |= {index: img for index, img in batch if isinstance(img, UserError)}
            good = [(index, img) for index, img in batch if index not in problems]
            if good:
                ids, probs = predictor.classify(torch.stack([img for _, img in good]))
                for (index, img), own, prob in zip(good, ids.byte().cpu().numpy(), probs, strict=True):
                    with output("--out", out):
                        write(out, names[index], img, own, prob, predictor, args)
            progress.update(len(batch))
    return [problem for _, problem in sorted(problems.items())]


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="*", metavar="IMAGE_OR_FOLDER", help="images, folders, globs, lists (.txt)")
    parser.add_argument("--config", help="the config of the run; our own checkpoints know it")
    parser.add_argument("--checkpoint", required=True, help="best.pth, latest.pth, or one of the authors'")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the results")
    parser.add_argument("--pair", nargs=2, metavar=("A", "B"), help="change detection: two images, or two folders of equal names")
    parser.add_argument("--data-root", help="folder that a list's paths are relative to, instead of the config's data_root")
    add_which(parser)
    parser.add_argument("--tile", type=int, metavar="N", help="sliding windows of N pixels; 0: never (default: the data set's way)")
    parser.add_argument("--batch-size", type=positive, default=4, metavar="N", help="images of one size predicted together (default: 4)")
    parser.add_argument("--device", default="auto", choices=DEVICES)
    parser.add_argument("--bf16", action="store_true", help="run the model in bfloat16: faster on a GPU and on CPUs that have it")
    parser.add_argument("--confidence", action="store_true", help="write a map of the confidence too")
    parser.add_argument("--probabilities", action="store_true", help="write the probabilities of all classes too (large files)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a config key; may be repeated")
    args = parse_arguments(parser, argv)
    if bool(args.inputs) == bool(args.pair):
        raise UserError("inputs: expected images, folders, globs or lists, or else --pair A B; give one of the two")
    return args


def main(argv: list[str]) -> None:
    args = _arguments(argv)
    cfg = run_config(args.config, args.checkpoint, args.set, data_root=args.data_root)
    options = {"which": args.which, "device": args.device, "tile": args.tile, "bf16": args.bf16, "settings": args.set}
    predictor = load(*filter(None, (args.config, args.checkpoint)), **options)
    out = Path(args.out)
    chosen = find_inputs(args.inputs, args.pair, predictor.trained.spec, cfg.data_root, out)
    names = output_names(chosen.inputs, out, args.confidence, chosen.folders)
    check_output("--out", out, folder=True)
    noun = predictor.trained.spec.noun
    print(f"{args.checkpoint}: {predictor.trained}, {count(len(chosen.inputs), noun)}", flush=True)
    for left in chosen.left:
        print(left, flush=True)
    problems = predict_all(predictor, chosen.inputs, names, out, args)
    files = ["NAME.png (classes)", "NAME_overlay.jpg"]
    files += ["NAME_confidence.png"] * args.confidence + ["NAME.npz (probabilities)"] * args.probabilities
    done = count(len(chosen.inputs) - len(problems), noun)
    skipped = f" {count(len(problems), noun)} could not be read." if problems else ""
    print(f"Predicted {done}: {', '.join(files[:-1])} and {files[-1]} of each are in {out}.{skipped}")
    for problem in problems[:-1]:
        tell_once(f"error: {problem}")
    if problems:
        raise problems[-1]


if __name__ == "__main__":
    run(main, save_memory="give --tile N (windows of N pixels), --batch-size 1 or --bf16")

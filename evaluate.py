"""Scores a checkpoint, ours or the authors', on a list of labelled images: the numbers of the training loop, and more of them.

    python evaluate.py --checkpoint exp/camvid/unimatch_v2/best.pth
    torchrun --nproc_per_node 4 evaluate.py --checkpoint best.pth --json scores.json --worst 20
    python evaluate.py --config configs/pascal.yaml --checkpoint THE_AUTHORS.pth
    python evaluate.py --checkpoint best.pth --pair scenes/A scenes/B --label scenes/label --tile 252

Checkpoints of ours say which data set, validation list and model they are of; --config names another, and the authors' need one.
Figures are percentages over the whole list; ignored pixels never count, a class that is absent everywhere counts as 0 in a mean.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from dataset import picture
from dataset.batch import normalize
from dataset.find import PairSource, find_pairs
from dataset.lists import ImageList
from dataset.loader import loader_workers, validation_source
from dataset.semi import to_predict
from dataset.source import Source
from dataset.spec import IGNORE, DatasetSpec
from engine import metric
from engine.evaluation import Prediction, check_window, evaluate, validation_loader
from engine.trained_model import Trained, add_which, load_trained, run_config
from engine.zero_iou import labeled_classes, reasons
from model.segmenter import Segmenter
from util.cli import Parser
from util.config import KEYS, Config, parse_arguments
from util.dist import World, processes
from util.error import StoppedError, UserError, run
from util.files import check_output, output, write_output
from util.precision import inference
from util.progress import Progress, count
from util.signals import StopSignals


class Totals(NamedTuple):
    """What a list adds up to, on the CPU. matrix: (K, K) confusion counts; bands: (3, K) boundary counts; images: (score, index, name) of
    each, from the lowest on.
    """

    matrix: Tensor
    bands: Tensor
    images: list[tuple[float, int, str]]


def score(
    model: Segmenter, source: Source, prediction: Prediction, distance: int, workers: int, world: World, signals: StopSignals
) -> Totals:
    """Scores over all processes, exact on any number of them; every image counts once. Raises StoppedError when asked to stop.

    distance: width of the band of the boundary IoU in pixels.
    """
    nclass, loader = source.spec.nclass, validation_loader(source, world, workers)
    bands = torch.zeros(3, nclass, dtype=torch.int64, device=world.device)

    def count_boundary(pred: Tensor, mask: Tensor) -> None:
        bands.add_(metric.boundary_counts(pred, mask, nclass, distance))

    progress = Progress(len(loader), source.spec.noun, shown=world.main)
    counts = evaluate([model], signals.until(loader), prediction, nclass, world, progress=progress, each=count_boundary)
    if world.any(signals.caught):
        raise StoppedError("not all images are scored, so nothing is written; the same command begins again", signals.code)
    values = metric.present_iou(counts.images[0], source.spec.first_scored).tolist()
    images = sorted((value, i, source.ids[i].image) for i, value in enumerate(values))
    return Totals(counts.matrices[0], world.sum_(bands).cpu(), images)


def figures(totals: Totals, spec: DatasetSpec, labeled: Mapping[int, int] | None = None) -> dict[str, Any]:
    """All figures of a list in percent, under the keys of the JSON file. labeled: pixels of each class that the model has learned from."""
    matrix = totals.matrix
    recall, band = metric.recall(matrix), metric.boundary_iou(totals.bands)

    def named(values: Tensor) -> dict[str, float]:
        return dict(zip(spec.classes, values.tolist(), strict=True))

    return {
        "images": len(totals.images),
        **metric.scores(matrix, spec),
        "boundary_miou": float(band.mean()),
        "accuracy": named(recall),
        "boundary_iou": named(band),
        "at_zero": {spec.classes[k]: why for k, why in reasons(matrix, labeled).items()},
        "absent": [name for name, count in zip(spec.classes, matrix.sum(1).tolist(), strict=True) if count == 0],
        "confusion": matrix.tolist(),
    }


def _table(result: dict[str, Any], spec: DatasetSpec, distance: int) -> str:
    """The figures for a terminal."""
    names = {key: figure.label for key, figure in metric.FIGURES[spec.task].items()}
    names["boundary_miou"] = f"boundary IoU ({distance} px)"
    lines = [f"{name:<24} {result[key]:6.2f}" for key, name in names.items()]
    width = max(len("class"), *(len(name) for name in spec.classes))
    total = max(1, sum(map(sum, result["confusion"])))
    lines += ["", f"{'class':<{width}}     IoU  boundary  accuracy  pixels %"]
    for name, row in zip(spec.classes, result["confusion"], strict=True):
        cells = (
            f"{result['iou'][name]:8.2f}{result['boundary_iou'][name]:10.2f}{result['accuracy'][name]:10.2f}{100 * sum(row) / total:10.2f}"
        )
        lines.append(f"{name:<{width}}{cells}")
    lines += [f"note: {name} has 0: {why}" for name, why in result["at_zero"].items()]
    return "\n".join(lines)


def _worst_by(spec: DatasetSpec) -> str:
    """The figure by which images are the worst."""
    return "changed IoU" if spec.bitemporal else "mean IoU of its classes"


@torch.no_grad()
def draw_worst(
    model: Segmenter, source: Source, prediction: Prediction, worst: list[tuple[float, int, str]], folder: Path, world: World
) -> None:
    """Writes image, truth and prediction of each of the `worst` images below `folder`, numbered from the worst on."""
    for rank, (value, index, name) in enumerate(worst, 1):
        entry = source.ids[index]
        images = source.images(entry)
        truth = source.mask(entry, images[0].size)
        img = normalize(to_predict(images, source.spec)[None].to(world.device), model.backbone)
        pred = prediction.class_scores(model, img, truth.shape).argmax(dim=1)[0].cpu().numpy().astype(np.uint8)
        pred[truth == IGNORE] = IGNORE
        titles = [*source.spec.date_names, "truth", "prediction"]
        ignored = truth == IGNORE
        panels = [*images, *(picture.strike(picture.tint(images[-1], ids, source.spec), ignored) for ids in (truth, pred))]
        shown = picture.row([picture.enlarge(panel) for panel in panels], titles)
        more = [(picture.STRIPES, "ignored")] if ignored.any() else []
        key = picture.legend(np.concatenate((truth, pred), 1), source.spec, shown.width, shares=False, more=more, over=True)
        head = picture.caption(f"{name}: {_worst_by(source.spec)} {value:.1f} %", shown.width)
        picture.save(picture.stack([head, shown, key]), folder / f"{rank:03d}_{Path(name).stem}.jpg")


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="the config of the run; our own checkpoints know it")
    parser.add_argument("--checkpoint", required=True, help="best.pth, latest.pth, or one of the authors'")
    parser.add_argument("--data-root", help="instead of the config's data_root")
    parser.add_argument("--id-path", help="list of `image mask` lines, instead of the validation list")
    parser.add_argument("--pair", nargs=2, metavar=("A", "B"), help="change detection: two images or folders instead of a list")
    parser.add_argument("--label", help="the labels of --pair: an image or a folder")
    add_which(parser)
    parser.add_argument(
        "--mode", choices=KEYS["eval_mode"].metadata["choices"], help="whole, or windows of crop_size (default: the data set's)"
    )
    parser.add_argument("--tile", type=int, metavar="N", help="sliding windows of N pixels, for scenes too large for one pass")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0], help="test-time augmentation: scales of the image")
    parser.add_argument("--flip", action="store_true", help="test-time augmentation: the mirror image too")
    parser.add_argument("--boundary-distance", type=int, default=5, metavar="PX", help="width of the band of the boundary IoU (default: 5)")
    parser.add_argument("--json", metavar="FILE", help="write all figures to FILE")
    parser.add_argument("--confusion", metavar="FILE.png", help="draw the confusion matrix")
    parser.add_argument(
        "--worst", type=int, default=0, metavar="N", help="name and draw the N images of lowest IoU (change: of the changed class)"
    )
    parser.add_argument("--out", metavar="DIR", help="folder of the pictures of --worst (default: worst/ beside the checkpoint)")
    parser.add_argument(
        "--bf16", action="store_true", help="run the model in bfloat16: faster on a GPU and on CPUs that have it, figures differ a little"
    )
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="change a config key; may be repeated")
    args = parse_arguments(parser, argv)
    if not all(0 < scale < math.inf for scale in args.scales):  # nan is neither
        raise UserError(f"--scales: found {' '.join(map(str, args.scales))}, expected numbers above 0")
    for name, value, least in (
        ("--tile", args.tile, 1),
        ("--boundary-distance", args.boundary_distance, 1),
        ("--worst", args.worst, 0),
    ):
        if value is not None and value < least:
            raise UserError(f"{name}: found {value}, expected {least} or more")
    if args.id_path and not Path(args.id_path).is_file():
        raise UserError(f"{args.id_path}: no such list, expected one of `image mask` lines; correct --id-path")
    if args.tile and args.mode == "original":
        raise UserError(f"--tile {args.tile}: found beside --mode original, which sees whole images; give one of the two")
    if (args.pair is None) != (args.label is None):
        raise UserError("--pair and --label: found one without the other; scores need two dates and their label")
    return args


def _source(args: argparse.Namespace, cfg: Config, spec: DatasetSpec) -> tuple[Source, str]:
    """The labelled images to score, and what to call them."""
    if not args.pair:
        source = validation_source(cfg, spec)
        return source, source.ids.path
    if not spec.bitemporal:
        raise UserError(f"--pair: {spec.name} has single images; give the config of a change detection run")
    a, b = args.pair
    return cast(Source, PairSource(spec, find_pairs(a, b, args.label))), f"{a} {b}"


def _check_outputs(args: argparse.Namespace, folder: Path) -> None:
    for option, name in (("--json", args.json), ("--confusion", args.confusion)):
        if name:
            check_output(option, Path(name))
    if args.confusion and Path(args.confusion).suffix.lower() != ".png":
        raise UserError(f"--confusion: found {args.confusion}, expected the name of a PNG file")
    if args.worst:
        check_output("--out", folder, folder=True)


def _labeled(trained: Trained) -> Mapping[int, int] | None:
    """Labelled pixels of each class in the list that the model was trained with; None where it is not known, or no longer exists."""
    if trained.labeled is None:
        return None
    path, root = trained.labeled
    try:
        return labeled_classes(Source(trained.spec, root, ImageList(path, trained.spec.task, masks=True)))
    except UserError:
        return None


def _report(args: argparse.Namespace, trained: Trained, totals: Totals, prediction: Prediction, listed: str) -> None:
    """Writes what was asked for, then prints the figures."""
    spec = trained.spec
    result = figures(totals, spec, _labeled(trained))
    if args.json:
        facts = {"checkpoint": args.checkpoint, "which": trained.which, "epoch": trained.epoch, "list": listed, "mode": prediction.mode}
        facts |= {"window": prediction.window if prediction.mode != "original" or prediction.whole < math.inf else None}
        facts |= {"whole_up_to": prediction.whole if prediction.whole < math.inf else None}  # pixels of a side, of large scenes
        facts |= {"scales": list(prediction.scales), "flip": prediction.flip}
        facts |= {"boundary_distance": args.boundary_distance, "bf16": args.bf16}
        figure = metric.chosen_by(spec.task)
        worst = [{"image": name, figure: value} for value, _, name in totals.images[: args.worst]]
        write_output("--json", args.json, json.dumps(result | facts | {"worst": worst}, indent=1))
    if args.confusion:
        image = picture.confusion_picture(np.array(result["confusion"]), spec.classes)
        with output("--confusion", Path(args.confusion)):
            picture.save(image, Path(args.confusion))
    print(f"{args.checkpoint}: {trained}, {count(result['images'], spec.noun)} of {listed}, {prediction}\n")
    print(_table(result, spec, args.boundary_distance), flush=True)
    for value, _, name in totals.images[: args.worst]:
        print(f"worst: {_worst_by(spec)} {value:.2f}  {name}")
    for name, what in ((args.json, "all figures"), (args.confusion, "the confusion matrix")):
        if name:
            print(f"wrote {name}: {what}", flush=True)


def main(argv: list[str]) -> None:
    args = _arguments(argv)
    cfg = run_config(args.config, args.checkpoint, args.set, data_root=args.data_root, val_id_path=args.id_path)
    precision = "bf16" if args.bf16 else "fp32"
    with processes(cfg.device) as world, inference(precision, world.device), StopSignals() as signals:
        trained = load_trained(cfg, args.checkpoint, args.which, world.device)
        check_window(args.tile, trained.model)
        source, listed = _source(args, cfg, trained.spec)
        augmented = {"scales": tuple(args.scales), "flip": args.flip}
        prediction = Prediction.of(cfg, trained.spec, trained.model, args.mode, args.tile, scenes=bool(args.pair), **augmented)
        folder = Path(args.out) if args.out else Path(args.checkpoint).parent / "worst"
        if world.main:
            _check_outputs(args, folder)
        totals = score(trained.model, source, prediction, args.boundary_distance, loader_workers(cfg, world), world, signals)
        if world.main:
            _report(args, trained, totals, prediction, listed)
            if args.worst:
                with output("--out", folder):
                    if not args.out:  # the folder is ours: those of an earlier call are no longer the worst
                        for path in folder.glob("[0-9][0-9][0-9]_*.jpg"):
                            path.unlink()
                    draw_worst(trained.model, source, prediction, totals.images[: args.worst], folder, world)
                print(f"wrote {folder}: {count(min(args.worst, len(totals.images)), 'picture')}, the worst first")
        world.wait()


if __name__ == "__main__":
    run(main, save_memory="give --tile N (windows of N pixels) or --bf16")

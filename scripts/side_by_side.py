"""Runs side by side: one table of their last evaluations, and pictures of what the best model of each predicts.

    python -m scripts.side_by_side --out pictures.png supervised=RUN_FOLDER unimatch_v2=RUN_FOLDER
    python -m scripts.side_by_side --rule difference --out pictures.png supervised=RUN_FOLDER unimatch_v2=RUN_FOLDER

Shows image, truth, what each run predicts and how sure the last one is, of images of the test list where the runs have scored one, else
of the validation list. --rule first: the first six. --rule difference: the image at which the last run is best compared with the first,
the median one, and the one at which it is worst, by the mean IoU of the classes that the truth or the prediction has there.
"""

import json
from argparse import RawDescriptionHelpFormatter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

import predict
from dataset import picture
from dataset.lists import ImageList
from dataset.source import Source
from dataset.spec import IGNORE
from engine import image_counts, metric
from engine.method import EMA, STUDENT
from engine.metrics_file import read_epochs
from engine.resume import BEST, METRICS, TEST
from engine.trained_model import run_config
from scripts.table import markdown_table
from util.cli import Parser
from util.error import UserError, reason, run
from util.files import check_output, located, output
from util.progress import count

COUNT = 6  # images of the rule `first`
CELL = (180, 180)  # px: into which every picture is fitted; columns have this width, so that they are straight


@dataclass(frozen=True)
class Result:
    """Figures of one run's last evaluation in percent (ema: None without one), and the seconds that its epochs took."""

    name: str
    student: float
    ema: float | None
    seconds: float


def read_result(name: str, folder: Path, figure: str) -> Result:
    """The result of a run from its metrics. figure: its key in `metric.FIGURES`. Raises UserError without an evaluation."""
    path = folder / METRICS
    try:
        epochs = read_epochs(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}); give the folder of a run") from error
    scores = [row.scores for row in epochs if row.scores]
    if not scores:
        raise UserError(f"{path}: found no evaluation; train the run to its end")
    figures = {model: own[figure] for model, own in scores[-1].items()}
    return Result(name, figures[STUDENT], figures.get(EMA), sum(row.seconds for row in epochs))


def table(results: list[Result], title: str) -> str:
    """The results after the last epoch as aligned text that is a Markdown table too. title: what the figure is called."""
    rows = [("method", f"student {title}", f"EMA {title}", "seconds")]
    rows += [(r.name, f"{r.student:.2f}", "" if r.ema is None else f"{r.ema:.2f}", f"{r.seconds:.0f}") for r in results]
    return markdown_table(rows)


def named_folders(texts: list[str]) -> dict[str, Path]:
    """The folders of METHOD=FOLDER. Raises UserError for another form, or a name that occurs twice."""
    folders: dict[str, Path] = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        if not (name and equals and folder):
            raise UserError(f"found {text!r}, expected METHOD=FOLDER; give each run a name, such as supervised={text}")
        if name in folders:
            raise UserError(f"found the name {name!r} twice, expected another for each run")
        folders[name] = Path(folder)
    return folders


def scored(folders: list[Path], validation: str) -> tuple[str, str]:
    """(path, kind) of the list whose images are shown: the test list that all runs have scored, else the validation list.

    kind: the counts that runs keep of it, a key of `image_counts.FILES`. Raises UserError for test lists that differ.
    """
    files = [folder / TEST for folder in folders]
    if not all(file.is_file() for file in files):
        return validation, "best"
    lists = set()
    for file in files:
        try:
            lists.add(str(json.loads(file.read_bytes())["list"]))
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"{file}: found no list in it ({reason(error)}), expected what a run writes; start the run again") from error
    if len(lists) > 1:
        raise UserError(f"found runs with the test lists {', '.join(sorted(lists))}, expected one; give runs of one comparison")
    return located(lists.pop()), "test"


def by_difference(runs: dict[str, Path], source: Source, kind: str) -> list[tuple[int, str]]:
    """(index, line) of the images of `source` at which the second of two runs is best, median and worst, compared with the first.

    kind: as in `scored`. Raises UserError where a run has no counts of these images.
    """
    scores = {}
    for name, folder in runs.items():
        path = folder / image_counts.FILES[kind]
        found = image_counts.load(path)
        if found is None or found.sha256 != source.ids.sha256:
            raise UserError(f"{path}: found no counts of {source.ids.path}; train the run to its end, or give --rule first")
        scores[name] = metric.present_iou(torch.from_numpy(found.counts), source.spec.first_scored)
    (first, before), (last, after) = scores.items()
    difference = after - before
    order = difference.argsort(descending=True, stable=True).tolist()
    chosen = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}

    def line(word: str, i: int) -> str:
        return f"{word} of {len(order)}: mean IoU {before[i]:.1f} ({first}), {after[i]:.1f} ({last}), {difference[i]:+.1f}"

    return [(i, line(word, i)) for word, i in chosen.items()]


def picture_row(source: Source, index: int, predictors: dict[str, predict.Predictor]) -> Image.Image:
    """One image, or its two dates, beside the truth, what each model predicts, and how sure the last one is."""
    entry = source.ids[index]
    dates = source.images(entry)
    panels = dict(zip(source.spec.date_names, dates, strict=True))
    mask = source.mask(entry, dates[0].size)
    panels["truth"] = picture.strike(picture.paint(mask, source.spec), mask == IGNORE)
    confidence = np.zeros(())
    for name, predictor in predictors.items():
        ids, confidence = predictor.predict((dates[0], dates[1]) if len(dates) == 2 else dates[0])
        panels[name] = picture.paint(ids, source.spec)
    panels["confidence, dark: 0, yellow: 1"] = picture.heat(confidence)  # of the last one, which stands beside it
    ways = [Image.Resampling.BICUBIC] * len(dates) + [Image.Resampling.NEAREST] * (len(panels) - len(dates))
    cell = (CELL[0], ImageOps.contain(dates[0], CELL).height)
    fitted = [ImageOps.pad(panel, cell, way, "white", (0, 0)) for panel, way in zip(panels.values(), ways, strict=True)]
    return picture.row(fitted, list(panels))


def main(argv: list[str]) -> None:
    parser = Parser(prog="scripts.side_by_side", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, help="PNG or JPEG file for the pictures")
    parser.add_argument("--rule", choices=("first", "difference"), default="first", help="which images are shown (default: first)")
    parser.add_argument("--data-root", help="folder of the images, where it is another than the runs had")
    parser.add_argument("runs", nargs="+", metavar="METHOD=FOLDER")
    args = parser.parse_args(argv)
    folders = named_folders(args.runs)
    if args.rule == "difference" and len(folders) < 2:
        raise UserError("--rule difference: found one run, expected two or more; give the others, or --rule first")
    if args.out.suffix not in (".png", ".jpg"):
        raise UserError(f"--out: found {args.out.name}, expected a name that ends in .png or .jpg")
    check_output("--out", args.out)
    cfg = run_config(None, str(next(iter(folders.values())) / BEST), data_root=args.data_root)
    predictors = {name: predict.load(str(folder / BEST)) for name, folder in folders.items()}
    specs = {name: predictor.trained.spec for name, predictor in predictors.items()}
    if len({(spec.name, spec.task, spec.classes) for spec in specs.values()}) > 1:
        found = ", ".join(f"{name}: {spec.name} with {spec.nclass} classes" for name, spec in specs.items())
        raise UserError(f"found runs of different data sets ({found}), expected runs of one")
    spec = next(iter(specs.values()))
    figure = metric.chosen_by(spec.task)
    results = [read_result(name, folder, figure) for name, folder in folders.items()]
    print(table(results, metric.FIGURES[spec.task][figure].label))
    path, kind = scored(list(folders.values()), str(cfg.val_id_path))
    source = Source(spec, cfg.data_root, ImageList(path, spec.task, masks=True))
    print(f"\npictures of {path} ({count(len(source.ids), spec.noun)}), by best.pth")
    chosen = [(i, "") for i in range(min(COUNT, len(source.ids)))]
    if args.rule == "difference":
        first, *_, last = folders
        chosen = by_difference({name: folders[name] for name in (first, last)}, source, kind)
    rows = []
    for i, line in chosen:
        rows.append(picture_row(source, i, predictors))
        if line:
            print(f"{source.ids[i].image}: {line}")
            rows.append(picture.caption(line, rows[0].width))
    legend = picture.legend(np.arange(spec.nclass), spec, rows[0].width, shares=False, more=[(picture.STRIPES, "not scored")])
    with output("--out", args.out):
        picture.save(picture.stack([*rows, legend]), args.out)
    print(f"\npictures: {args.out}")


if __name__ == "__main__":
    run(main)

"""What scripts/demo.sh shows at its end: one table of the runs, and pictures of what each of them predicts.

python -m scripts.demo_report --config configs/demo.yaml --out exp/demo/pictures.png supervised=RUN_FOLDER unimatch_v2=RUN_FOLDER
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from dataset import picture
from dataset.batch import normalize
from dataset.loader import validation_source
from dataset.semi import ValSet, tensor_images
from dataset.spec import IGNORE, DatasetSpec, get_spec
from engine import metric
from engine.evaluation import Prediction
from engine.trained_model import load_trained
from model.segmenter import Segmenter
from scripts.report.lines import read_lines
from scripts.table import markdown_table
from util.cli import Parser
from util.config import Config, load_config
from util.error import UserError, run
from util.files import output

COUNT = 6  # images that are shown, from the beginning of the validation list
CELL = (180, 180)  # px: every picture is fitted into such a cell, so that columns are straight


@dataclass(frozen=True)
class Result:
    """Figures of one run's last evaluation in percent (ema: None without a teacher), and the seconds that its sessions took."""

    name: str
    student: float
    ema: float | None
    seconds: float


def read_result(name: str, folder: Path, figure: str) -> Result:
    """The result of a run from its train.log. figure: its key in `metric.FIGURES`. Raises UserError without an evaluation."""
    path = folder / "train.log"
    if not path.is_file():
        raise UserError(f"{path}: no such log; train first: sh scripts/demo.sh")
    figures: dict[str, float] = {}
    seconds, start, last = 0.0, None, None
    for _, line in read_lines(path.read_text(encoding="utf-8", errors="replace")):
        figures.update(line.figures)
        if line.kind == "header":  # a new session: what passed between two does not count
            start = line.time
        elif line.time and start and last:
            seconds += (line.time - max(start, last)).total_seconds()
        last = line.time or last
    if figure not in figures:
        raise UserError(f"{path}: found no evaluation; train the run to its end: sh scripts/demo.sh")
    return Result(name, figures[figure], figures.get(f"ema_{figure}"), seconds)


def table(results: list[Result], title: str) -> str:
    """The results as aligned text that is a Markdown table too. title: what the figure is called."""
    rows = [("method", f"student {title}", f"EMA {title}", "seconds")]
    rows += [(r.name, f"{r.student:.2f}", "" if r.ema is None else f"{r.ema:.2f}", f"{r.seconds:.0f}") for r in results]
    return markdown_table(rows)


@torch.no_grad()
def picture_row(img: Tensor, mask: Tensor, models: dict[str, Segmenter], cfg: Config, spec: DatasetSpec) -> Image.Image:
    """One uint8 image (C, H, W), or its two dates, beside the truth (H, W) and what each model predicts."""
    dates = tensor_images(img)
    titles = ["image"] if len(dates) == 1 else ["date A", "date B"]
    labels = {"truth": mask}
    for name, model in models.items():
        labels[name] = Prediction.of(cfg, spec, model).scores(model, normalize(img[None], model.backbone)).argmax(1)[0]
    panels = [ImageOps.pad(date, CELL, Image.Resampling.BICUBIC, "white", (0, 0)) for date in dates]
    for ids in labels.values():
        panels.append(ImageOps.pad(picture.paint(ids.numpy(), spec), CELL, Image.Resampling.NEAREST, "white", (0, 0)))
    return picture.row(panels, [*titles, *labels])


def main(argv: list[str]) -> None:
    parser = Parser(prog="scripts.demo_report", description=__doc__)
    parser.add_argument("--config", required=True)
    parser.add_argument("--out", required=True, type=Path, help="PNG file for the pictures")
    parser.add_argument("runs", nargs="+", metavar="METHOD=FOLDER")
    args = parser.parse_args(argv)
    runs = {name: Path(folder) for name, _, folder in (text.partition("=") for text in args.runs)}
    cfg = load_config(args.config)
    spec = get_spec(cfg.dataset)
    figure = metric.chosen_by(spec.task)
    results = [read_result(name, folder, figure) for name, folder in runs.items()]
    print(table(results, metric.FIGURES[spec.task][figure].label))
    models: dict[str, Segmenter] = {name: load_trained(cfg, str(folder / "best.pth")).model for name, folder in runs.items()}
    samples = ValSet(validation_source(cfg, spec))
    rows = []
    for i in range(min(COUNT, len(samples))):
        sample = samples[i]
        if isinstance(sample, UserError):
            raise sample
        rows.append(picture_row(sample["img"], sample["mask"], models, cfg, spec))
    legend = picture.legend(np.arange(spec.nclass), spec, rows[0].width, shares=False, more=[(IGNORE, "not scored")])
    with output("--out", args.out):
        picture.save(picture.stack([*rows, legend]), args.out)
    print(f"\npictures: {args.out}")


if __name__ == "__main__":
    run(main)

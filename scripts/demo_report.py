"""What scripts/demo.sh shows at its end: one table of the runs, and pictures of what each of them predicts.

python -m scripts.demo_report --config configs/demo.yaml --out exp/demo/pictures.png supervised=RUN_FOLDER unimatch_v2=RUN_FOLDER
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from dataset.batch import normalize
from dataset.loader import validation_source
from dataset.semi import ValSet
from dataset.spec import DatasetSpec, get_spec
from util import picture
from util.cli import Parser
from util.config import Config, load_config
from util.error import UserError, run
from util.evaluation import predict
from util.files import output
from util.report.lines import read_lines
from util.trained import load_trained

IGNORED = (224, 224, 192)  # colour of pixels that are not scored
CELL, GAP, LINE = 180, 6, 20  # px: side of a picture, space between two, height of a line of text


@dataclass(frozen=True)
class Result:
    """Figures of one run's last evaluation in percent (ema: None without a teacher), and the seconds that its sessions took."""

    name: str
    student: float
    ema: float | None
    seconds: float


def read_result(name: str, folder: Path, figure: str) -> Result:
    """The result of a run from its train.log. figure: "miou" or "changed_iou". Raises UserError without an evaluation."""
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
    for r in results:
        rows.append((r.name, f"{r.student:.2f}", "" if r.ema is None else f"{r.ema:.2f}", f"{r.seconds:.0f}"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ["| " + " | ".join(f"{row[0]:<{widths[0]}}" if i == 0 else f"{row[i]:>{widths[i]}}" for i in range(4)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 1) + ("-" if i == 0 else ":") for i, w in enumerate(widths)) + "|")
    return "\n".join(lines)


def colour(mask: np.ndarray, spec: DatasetSpec) -> Image.Image:
    """Class ids (H, W) as an RGB image."""
    lookup = np.full((256, 3), IGNORED, np.uint8)
    lookup[: spec.nclass] = spec.palette
    return Image.fromarray(lookup[mask])


@torch.no_grad()
def picture_row(img: Tensor, mask: Tensor, models: Sequence[nn.Module], cfg: Config, spec: DatasetSpec) -> list[Image.Image]:
    """Pictures of one uint8 image (C, H, W): its date or dates, the truth (H, W), what each model predicts."""
    dates = [Image.fromarray(date.permute(1, 2, 0).numpy()) for date in img.split(3)]
    row = [*dates, colour(mask.numpy(), spec)]
    for model in models:
        scores = predict(model, normalize(img[None]), cfg.eval_mode or spec.eval_mode, cfg.crop_size)
        row.append(colour(scores.argmax(1)[0].numpy().astype(np.uint8), spec))
    return row


def contact_sheet(titles: list[str], rows: list[list[Image.Image]], spec: DatasetSpec) -> Image.Image:
    """All pictures under the titles of their columns, above a legend of the classes."""
    step = CELL + GAP
    sheet = Image.new("RGB", (GAP + step * len(titles), 2 * LINE + 2 * GAP + step * len(rows)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for x, title in enumerate(titles):
        pen.text((GAP + x * step, GAP), title, "black", font)
    for y, row in enumerate(rows):
        for x, img in enumerate(row):
            scale = CELL / max(img.size)
            resample = Image.Resampling.BICUBIC if x < titles.index("truth") else Image.Resampling.NEAREST
            size = (round(img.width * scale), round(img.height * scale))
            sheet.paste(img.resize(size, resample), (GAP + x * step, LINE + GAP + y * step))
    x = GAP
    for name, rgb in [*zip(spec.classes, spec.palette, strict=True), ("not scored", IGNORED)]:
        top = sheet.height - LINE
        pen.rectangle((x, top, x + 12, top + 12), fill=rgb, outline="grey")
        pen.text((x + 18, top - 1), name, "black", font)
        x += 34 + int(pen.textlength(name, font))
    return sheet


def main(argv: list[str]) -> None:
    parser = Parser(prog="scripts.demo_report", description=__doc__)
    parser.add_argument("--config", required=True)
    parser.add_argument("--out", required=True, type=Path, help="PNG file for the pictures")
    parser.add_argument("--count", type=int, default=6, help="how many images of the validation list, from its beginning")
    parser.add_argument("runs", nargs="+", metavar="METHOD=FOLDER")
    args = parser.parse_args(argv)
    runs = {name: Path(folder) for name, _, folder in (text.partition("=") for text in args.runs)}
    cfg = load_config(args.config)
    spec = get_spec(cfg.dataset)
    change = spec.task == "change"
    results = [read_result(name, folder, "changed_iou" if change else "miou") for name, folder in runs.items()]
    print(table(results, "changed IoU" if change else "mIoU"))
    models = [load_trained(cfg, str(folder / "best.pth")).model for folder in runs.values()]
    samples = ValSet(validation_source(cfg, spec))
    rows = []
    for i in range(min(args.count, len(samples))):
        sample = samples[i]
        if isinstance(sample, UserError):
            raise sample
        rows.append(picture_row(sample["img"], sample["mask"], models, cfg, spec))
    with output("--out", args.out):
        picture.save(contact_sheet([*(["date A", "date B"] if change else ["image"]), "truth", *runs], rows, spec), args.out)
    print(f"\npictures: {args.out}")


if __name__ == "__main__":
    run(main)

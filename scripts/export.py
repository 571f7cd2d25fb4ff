"""Trained weights for other programs, with class names and preprocessing inside.

    python -m scripts.export --checkpoint exp/camvid/unimatch_v2/best.pth --format onnx [--out model.onnx]

torch: {"model": weights, "meta": text} for torch.load; safetensors: the same, its metadata holds "meta"; meta is JSON. onnx: a graph
from `image` (B, 3, H, W) float32 RGB in 0..255 of any size (change detection: 6 channels, date A before date B) to
`logits` (B, K, H, W) of that size: normalising, and resizing to the multiples that the model needs and back, are part of it. B is 1
for a model whose images depend on each other (allspark). The file is compared with PyTorch at several sizes before the command ends.
Extras: pip install -r requirements-extra.txt
"""

from __future__ import annotations

import argparse
import io
import json
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataset.batch import normalize
from engine.evaluation import Prediction, predict_whole
from engine.trained_model import Trained, add_which, load_trained, run_config
from model.segmenter import Segmenter
from model.spec import architecture
from util import checkpoint
from util.cli import Parser
from util.config import Config, parse_arguments
from util.error import UserError, run
from util.extra import extra
from util.files import check_output, output, write_atomic

SUFFIX = {"torch": ".pt", "safetensors": ".safetensors", "onnx": ".onnx"}
SIZES = ((1, 98, 70), (2, 61, 45), (1, 28, 140), (1, 5, 40), (1, 518, 518))  # batch, height, width that an ONNX file is tried at
TOLERANCE = 1e-3  # largest difference of a logit from PyTorch's, relative to the largest logit
OPSET = 17


def meta(cfg: Config, trained: Trained) -> dict[str, Any]:
    """What somebody needs to use the weights without this repository."""
    spec, prediction = trained.spec, Prediction.of(cfg, trained.spec, trained.model)
    return {
        "task": spec.task,
        "dataset": spec.name,
        "backbone": cfg.backbone,
        "weights": trained.which,
        "classes": list(spec.classes),
        "palette": [list(color) for color in spec.palette],
        "mean": list(trained.model.backbone.mean),
        "std": list(trained.model.backbone.std),
        "model": architecture(cfg.backbone, cfg.model),
        "input": "RGB / 255, minus mean, divided by std; sides resized to the nearest multiple (bilinear, align_corners)",
        "multiple": trained.model.multiple,
        "evaluation": prediction.mode,
        "window": prediction.window,
        "border": prediction.border,
        "short_side": min(spec.frame) if spec.frame else None,
    }


class Exported(nn.Module):
    """The graph of an ONNX file: image (B, 3 or 6, H, W) float RGB in 0..255 -> logits (B, K, H, W). Takes the model over."""

    def __init__(self, model: Segmenter) -> None:
        super().__init__()
        self.model = model
        model.backbone.make_traceable_()

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        multiple = self.model.multiple
        least = max(1, self.model.backbone.least // multiple)
        # clamped as tensors: of a comparison, the graph would keep how it came out for one size
        counts = [torch.as_tensor((side + multiple // 2) // multiple).clamp(min=least) for side in (height, width)]
        fitting: Any = [count * multiple for count in counts]
        logits = self.model(F.interpolate(normalize(image, self.model.backbone), fitting, mode="bilinear", align_corners=True))
        return F.interpolate(logits, (height, width), mode="bilinear", align_corners=True)


def write_onnx(trained: Trained, about: dict[str, Any], path: Path) -> float:
    """Writes an ONNX file and compares it with PyTorch. Returns the largest relative difference; raises UserError above TOLERANCE."""
    onnx, runtime = extra("onnx"), extra("onnxruntime")
    if trained.model.backbone.fixed_size:
        raise UserError(
            f"{path}: the backbone takes images of one size alone, and an ONNX file is for any; give --format torch or safetensors"
        )
    if not trained.model.onnx:
        raise UserError(f"{path}: model {about['model']} has no ONNX form; give --format torch or safetensors")
    generator = torch.Generator().manual_seed(0)
    batched = not trained.model.depends_on_batch  # else the graph takes one image, as it is predicted
    sizes = [(batch if batched else 1, height, width) for batch, height, width in SIZES]
    images = [255 * torch.rand(batch, 3 * trained.spec.dates, height, width, generator=generator) for batch, height, width in sizes]
    with torch.inference_mode():
        expected = [predict_whole(trained.model, normalize(image, trained.model.backbone)) for image in images]
    sides = {2: "height", 3: "width"}
    axes = {name: {0: "batch", **sides} if batched else sides for name in ("image", "logits")}

    made = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # that shapes are traced is what is wanted
        # the newer exporter (dynamo=True) makes the same graph in a minute instead of a second, and needs onnxscript
        graph = Exported(trained.model).eval()
        options: dict[str, Any] = {"f": made, "dynamo": False, "opset_version": OPSET, "dynamic_axes": axes}
        torch.onnx.export(graph, (images[1],), input_names=["image"], output_names=["logits"], **options)
    document = onnx.load_from_string(made.getvalue())
    onnx.helper.set_model_props(document, {key: json.dumps(value) for key, value in about.items()})
    onnx.checker.check_model(document)
    content = document.SerializeToString()
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    worst = 0.0
    for image, logits in zip(images, expected, strict=True):
        found = torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
        worst = max(worst, float((found - logits).abs().max() / logits.abs().max()))
    if not worst <= TOLERANCE:
        raise UserError(f"{path}: differs from PyTorch by {worst:.1e} of the largest logit, expected at most {TOLERANCE}; not written")
    write_atomic(path, lambda file: file.write(content))
    return worst


def export(cfg: Config, trained: Trained, form: str, path: Path) -> str:
    """Writes a model in a format. Returns a description of the file."""
    about = meta(cfg, trained)
    weights = {name: value.contiguous() for name, value in trained.model.state_dict().items()}
    if form == "onnx":
        return f"largest difference from PyTorch {write_onnx(trained, about, path):.1e} of the largest logit, at {len(SIZES)} sizes"
    if form == "safetensors":
        content = extra("safetensors.torch").save(weights, {"meta": json.dumps(about)})
        write_atomic(path, lambda file: file.write(content))
    else:
        checkpoint.save({"model": weights, "meta": json.dumps(about)}, path)
    return f"{len(weights)} tensors"


def main(argv: list[str]) -> None:
    parser = Parser(prog="scripts.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="best.pth, latest.pth, or one of the authors'")
    parser.add_argument("--format", required=True, choices=tuple(SUFFIX))
    parser.add_argument("--out", metavar="FILE", help="default: beside the checkpoint, with the format's suffix")
    parser.add_argument("--config", help="the config of the run; our own checkpoints know it")
    add_which(parser)
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="change a config key; may be repeated")
    args = parse_arguments(parser, argv)
    cfg = run_config(args.config, args.checkpoint, args.set)
    trained = load_trained(cfg, args.checkpoint, args.which)
    path = Path(args.out) if args.out else Path(args.checkpoint).with_suffix(SUFFIX[args.format])
    if path.resolve() == Path(args.checkpoint).resolve():
        raise UserError(f"{path}: is the checkpoint itself; give another --out")
    check_output("--out", path)
    with output("--out", path):
        about = export(cfg, trained, args.format, path)
    print(f"{path}: {trained}, {trained.spec.nclass} classes of {trained.spec.name}, {about}")


if __name__ == "__main__":
    run(main)

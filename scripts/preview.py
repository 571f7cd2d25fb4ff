"""Shows what the network sees: labelled crops with their masks, and the weak, strong and CutMixed views of unlabelled ones.

    python -m dataset.preview --config configs/camvid.yaml --split 1_8 --out exp/preview
    python -m dataset.preview --config C --labeled-id-path L --unlabeled-id-path U [U ...] --out DIR --count 8 --set crop_size=280

writes DIR/labeled.jpg and DIR/unlabeled.jpg from the first mini-batches of a training run with this config (its seed, its order, its
crops), turned back from the tensors that the model gets. Stripes are ignored pixels: void and padding. A pink box is what CutMix pastes,
from the image that the row names as "box of ...". Without unlabelled lists: the labelled picture of supervised training. Training writes
the same pictures of its first step to TensorBoard.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dataset import picture
from dataset.batch import Batch
from dataset.custom import spec_of, unlabeled_places
from dataset.lists import Entry, inside
from dataset.loader import supervised
from dataset.preview import first_mini_batches, sheets
from dataset.spec import DatasetSpec
from dataset.stored import turned
from engine.method import DEFAULT, get_method, method_for, method_names
from model.spec import check_crop, get_encoder
from util.cli import Parser, positive
from util.config import Config, load_config
from util.error import UserError, run
from util.files import output


def notes(mini_batches: Sequence[Batch], cfg: Config, spec: DatasetSpec) -> list[str]:
    """Notes on what a picture of training crops does not show: images that viewers turn and training does not."""
    names = [name for batch in mini_batches for name in (*batch.name_x, *batch.name_u)]
    roots = [cfg.data_root, *(root for _, root in unlabeled_places(cfg))]
    paths = [inside(root, path) for root in roots for name in names for path in spec.files(Entry(name, None))[0]]
    return [note for note in map(turned, dict.fromkeys(paths)) if note]


def _config(args: argparse.Namespace, kind: type[Config]) -> Config:
    """The config with its lists: those named on the command line, those of a split, or its own."""
    lists = {"labeled_id_path": args.labeled_id_path, "unlabeled_id_path": args.unlabeled_id_path}
    cfg = load_config(args.config, args.set, kind, **lists)
    if args.split:
        if args.labeled_id_path or args.unlabeled_id_path:
            raise UserError("--split: found beside --labeled-id-path or --unlabeled-id-path, expected one way to name the lists")
        labeled, unlabeled = (spec_of(cfg).list_path(args.split, name) for name in ("labeled", "unlabeled"))
        cfg = replace(cfg, labeled_id_path=labeled, unlabeled_id_path=unlabeled)
    if not cfg.labeled_id_path:
        raise UserError("preview: found no lists, expected --split, or --labeled-id-path and --unlabeled-id-path")
    return cfg


def main(argv: list[str]) -> None:
    """Writes the pictures. Raises UserError."""
    parser = Parser(prog="dataset.preview", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    default = f"default: the one that the config's folder is named after, else {DEFAULT}; without unlabelled lists supervised"
    parser.add_argument("--method", choices=method_names(), help=default)
    parser.add_argument("--split", help="use splits/<dataset>/SPLIT/labeled.txt and unlabeled.txt")
    parser.add_argument("--labeled-id-path", metavar="LIST")
    parser.add_argument("--unlabeled-id-path", nargs="+", metavar="LIST")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write to")
    parser.add_argument("--count", type=positive, default=6, help="samples of each kind (default: %(default)s)")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="change a config key; may be repeated")
    args = parser.parse_args(argv)
    method = method_for(args.config, args.method)
    cfg = _config(args, method.config)
    if cfg.unlabeled_id_path is None and method.semi:
        if args.method:
            raise UserError(f"--method {args.method}: found no unlabelled list, expected one; give --unlabeled-id-path or --split")
        method = get_method("supervised")
    method = method.of(cfg)
    cfg = cfg if method.semi else supervised(cfg)
    encoder = get_encoder(cfg.backbone).facts()
    check_crop(cfg.crop_size, encoder)
    mini_batches, spec = first_mini_batches(cfg, method.reads, encoder, args.count)
    for name, image in sheets(mini_batches, spec, encoder, args.count).items():
        path = args.out / f"{name}.jpg"
        with output("--out", path):
            picture.save(image, path)
        print(f"{path}: {image.width} x {image.height}")
    for note in notes(mini_batches, cfg, spec):
        print(f"note: {note}")


if __name__ == "__main__":
    run(main)

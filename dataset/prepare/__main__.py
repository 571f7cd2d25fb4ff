"""`python -m dataset.prepare pascal | cityscapes | ade20k | coco | camvid | levir | whu --src ARCHIVE_OR_FOLDER... --dst FOLDER`.

Converts the official archives to the images and labels that the published lists name. Works on all cores, writes every file whole
or not at all, and continues where it was interrupted. Images are hard links to the unpacked ones where possible.
"""

import argparse
import shutil
from pathlib import Path

from dataset.prepare import ade20k, camvid, change, cityscapes, coco, pascal
from dataset.prepare.files import UNPACKED, compare
from util.cli import Parser
from util.error import UserError, run

PREPARE = {
    "pascal": (pascal.prepare, pascal.__doc__),
    "cityscapes": (cityscapes.prepare, cityscapes.__doc__),
    "ade20k": (ade20k.prepare, ade20k.__doc__),
    "coco": (coco.prepare, coco.__doc__),
    "camvid": (camvid.prepare, camvid.__doc__),
    "levir": (change.prepare_levir, change.__doc__),
    "whu": (change.prepare_whu, change.__doc__),
}


def _parser() -> Parser:
    parser = Parser(prog="dataset.prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="dataset", required=True, metavar="|".join(PREPARE))
    for name, (_, text) in PREPARE.items():
        sub = commands.add_parser(name, description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
        sub.add_argument("--src", nargs="+", required=True, metavar="PATH", help="official archives, or the folders unpacked from them")
        sub.add_argument("--dst", required=True, metavar="DIR", help="data root to make (data_root in the config)")
        sub.add_argument("--overwrite", action="store_true", help="make labels again that exist")
        if name == "coco":
            sub.add_argument("--labels", choices=coco.ARCHIVES, default="panoptic", help="which annotations to use (default: %(default)s)")
        if name == "levir":
            sub.add_argument("--order", choices=("row", "column"), default="row", help="numbering of a tile's crops (default: %(default)s)")
        if name == "whu":
            for what in change.PATTERNS:
                sub.add_argument(f"--{what}", metavar="FILE", help=f"the {what} image, where it is not recognised by its name")
    return parser


def main(argv: list[str]) -> None:
    """Prepares one data set and prints a summary. Raises UserError."""
    args = _parser().parse_args(argv)
    dst = Path(args.dst)
    try:
        dst.mkdir(parents=True, exist_ok=True)
        for line in PREPARE[args.dataset][0](args):
            print(f"{args.dataset}: {line}")
    except OSError as error:
        raise UserError(f"--dst: {error.filename or dst}: {error.strerror or error}; free space or choose another folder") from error
    shutil.rmtree(dst / UNPACKED, ignore_errors=True)
    print(f"{args.dataset}: {compare(args.dataset, dst)}")
    print(f"{args.dataset}: set data_root: {dst} and verify with `python -m dataset.splits check {args.dataset} --data-root {dst}`")


if __name__ == "__main__":
    run(main)

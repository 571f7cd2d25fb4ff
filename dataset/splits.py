"""Lists: `python -m dataset.splits fetch | import | make | check` (spec.md 2.1 and 2.4).

fetch   downloads the published lists of UniMatch V2 into splits/ and verifies them against splits/manifest.tsv
import  takes them from a clone of the public repository
make    draws a new labelled/unlabelled pair, or makes a list from a folder of images and a folder of masks
check   verifies the lists of a data set against its images and masks
"""

import argparse
import re
from fractions import Fraction
from pathlib import Path

from dataset.check import check as check_lists
from dataset.check import classes_in, find_lists, report
from dataset.lists import Entry, format_line, parse_line, read_lines, write_lines
from dataset.make import choose, pair_folders, rank
from dataset.published import PUBLISHED, fetch, import_clone, manifest
from dataset.spec import SPECS, DatasetSpec
from util.cli import Parser
from util.error import UserError, run


def make(args: argparse.Namespace) -> None:
    """Writes splits/<dataset>/<share>/{labeled,unlabeled}.txt, and before that a list from folders where those are given."""
    if args.masks is not None and args.images is None:
        raise UserError("make: found --masks without --images, expected both folders")
    if args.images is None and args.labeled is None and args.count is None:
        raise UserError("make: nothing to do; give --labeled 1/8 or --count N for a pair, --images DIR (--masks DIR) for a list")
    source = Path(args.source) if args.source else None
    if args.images is not None:
        source = _make_list(args, source or Path("splits") / args.dataset / "train.txt")
    if args.labeled is not None or args.count is not None:
        _make_pair(args, source or _train_list(args.dataset))


def _make_list(args: argparse.Namespace, path: Path) -> Path:
    masks = None if args.masks is None else Path(args.masks)
    root, entries, left = pair_folders(Path(args.images), masks, Path(args.data_root) if args.data_root else None, args.mask_suffix)
    bare = sum(entry.mask is None for entry in entries)
    _write_new(path, [format_line(entry) for entry in entries])
    print(f"{path}: {len(entries)} images, {bare} without a mask (these can only be unlabelled), {left} masks without an image")
    print(f"data_root: {root}")
    args.data_root = str(root)
    return path


def _train_list(name: str) -> Path:
    """The list of all training images: our train.txt, or the one in the published all/ folder."""
    places = [Path("splits") / name / file for file in ("train.txt", "all/labeled.txt", "all/train.txt")]
    return next((place for place in places if place.is_file()), places[0])


def _make_pair(args: argparse.Namespace, source: Path) -> None:
    task = SPECS[args.dataset].task if args.dataset in SPECS else "segmentation"
    lines = read_lines(source)
    if len(set(lines)) < len(lines):
        raise UserError(f"{source}: found {len(lines) - len(set(lines))} lines twice, expected every image once")
    entries = [parse_line(line, f"{source}:{number}", task) for number, line in enumerate(lines, 1)]
    able = [i for i, entry in enumerate(entries) if task == "change" or entry.mask is not None]
    count, folder = _share(args, len(able))
    if not 0 < count <= len(able) or count == len(lines):
        raise UserError(f"make: found {count} labelled of {len(lines)} images ({len(able)} have a mask), expected one or more on each side")
    ranked = [able[i] for i in rank([lines[i] for i in able], args.seed)]
    chosen = choose(ranked, count, _classes(args, entries, able) if args.stratify else None)
    target = Path("splits") / args.dataset / (args.name or folder)
    if args.dataset in (known := manifest()) and any(one.local.parent == target for one in known[args.dataset]):
        raise UserError(f"make: {target} is the name of a published pair; choose another with --name")
    _write_new(target / "labeled.txt", [line for i, line in enumerate(lines) if i in chosen])
    _write_new(target / "unlabeled.txt", [line for i, line in enumerate(lines) if i not in chosen])
    print(f"{target}: {count} labelled, {len(lines) - count} unlabelled, from {source} with seed {args.seed}")


def _share(args: argparse.Namespace, total: int) -> tuple[int, str]:
    """Number of labelled images and the folder's name: 1/8 of 367 is 46 (rounded half up) in `1_8`, 5% in `5%`, --count 50 in `50`."""
    if args.count is not None:
        return args.count, str(args.count)
    parts = re.fullmatch(r"(\d+)(?:/([1-9]\d*)|%)", args.labeled)
    if not parts:
        raise UserError(f"--labeled: found {args.labeled!r}, expected a share like 1/8 or 5% (a number of images is --count)")
    share = Fraction(int(parts[1]), int(parts[2] or 100))
    return int(share * total + Fraction(1, 2)) or 1, args.labeled.replace("/", "_")


def _classes(args: argparse.Namespace, entries: list[Entry], able: list[int]) -> list[frozenset[int]]:
    """The classes in each entry's mask; none for entries that have no mask."""
    found = classes_in(args.dataset, args.data_root, [entries[i] for i in able])
    of = dict(zip(able, found, strict=True))
    return [of.get(i, frozenset()) for i in range(len(entries))]


def _write_new(path: Path, lines: list[str]) -> None:
    """Writes a list that is not there yet, or is there with the same content."""
    if path.exists() and path.read_text(encoding="utf-8").splitlines() != lines:
        raise UserError(f"{path}: exists with other content; delete it or choose another name with --name (lists: --from)")
    write_lines(path, lines)


def check(args: argparse.Namespace) -> None:
    """Prints tables about the lists of a data set. Raises UserError when there are problems."""
    spec = _spec(args)
    lists = find_lists(spec, args.split, args.data_root or f"data/{spec.name}", args.data_root_u)
    hints = check_lists(spec, lists, args.decode)
    print(report(spec, lists, hints), flush=True)
    problems = sum(len(one.problems) for one in lists)
    if problems:
        raise UserError(
            f"check: found {problems} problems in {sum(bool(one.problems) for one in lists)} lists of {spec.name}, printed above"
        )


def _spec(args: argparse.Namespace) -> DatasetSpec:
    """The DatasetSpec of a known data set, or one of --classes N numbered classes."""
    if args.dataset in SPECS:
        return SPECS[args.dataset]
    if args.classes is None:
        raise UserError(f"check: found {args.dataset!r}, expected one of {', '.join(SPECS)}; say how many classes others have: --classes N")
    if not 0 < args.classes < 255:
        raise UserError(f"--classes: found {args.classes}, expected 1 to 254")
    return DatasetSpec(args.dataset, tuple(f"class {c}" for c in range(args.classes)), (), ignore_index=args.ignore_index)


def _parser() -> Parser:
    parser = Parser(prog="dataset.splits", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="fetch|import|make|check")
    sub = commands.add_parser("fetch", help="download the published lists")
    sub.add_argument("dataset", nargs="+", help="pascal, cityscapes, ade20k, coco, levir, whu")
    sub.add_argument("--url", default=PUBLISHED, metavar="BASE", help="address of the repository's raw files (default: %(default)s)")
    sub.set_defaults(call=lambda args: fetch(args.dataset, args.url))
    sub = commands.add_parser("import", help="copy the published lists from a clone")
    sub.add_argument("folder", metavar="DIR")
    sub.add_argument("dataset", nargs="*", help="default: all that are there")
    sub.set_defaults(call=lambda args: import_clone(Path(args.folder), args.dataset))
    sub = commands.add_parser("make", help="draw a labelled/unlabelled pair, or list the images of a folder")
    sub.add_argument("dataset", help="name of the folder below splits/")
    share = sub.add_mutually_exclusive_group()
    share.add_argument("--labeled", metavar="1/8", help="labelled share of the list, as 1/8 or 5%%")
    share.add_argument("--count", type=int, metavar="N", help="number of labelled images")
    sub.add_argument("--seed", type=int, default=0, help="order: sha256 of seed and line (default: %(default)s)")
    sub.add_argument("--stratify", action="store_true", help="every class present in the labelled part where possible (reads the masks)")
    sub.add_argument("--from", dest="source", metavar="LIST", help="list to draw from, or to write with --images (default: train.txt)")
    sub.add_argument("--name", help="folder to write to instead of 1_8 and so on")
    sub.add_argument("--images", metavar="DIR", help="make the list from the images here ...")
    sub.add_argument("--masks", metavar="DIR", help="... and the masks of the same names here")
    sub.add_argument("--mask-suffix", default="", help="what a mask's name has behind the image's name, for example _L")
    sub.add_argument("--data-root", help="folder that the paths are relative to")
    sub.set_defaults(call=make)
    sub = commands.add_parser("check", help="verify lists, images and masks")
    sub.add_argument("dataset")
    sub.add_argument("split", nargs="*", help="pairs to check (default: all)")
    sub.add_argument("--data-root", help="default: data/<dataset>")
    sub.add_argument("--data-root-u", help="data root of the unlabelled lists, where it is another one")
    sub.add_argument("--decode", action="store_true", help="read every image to its end: finds truncated ones, takes longer")
    sub.add_argument("--classes", type=int, metavar="N", help="number of classes of a data set that is not built in")
    sub.add_argument("--ignore-index", type=int, default=255, help="mask value that is ignored there (default: %(default)s)")
    sub.set_defaults(call=check)
    return parser


def main(argv: list[str]) -> None:
    """Runs one of the four commands. Raises UserError."""
    args = _parser().parse_args(argv)
    args.call(args)


if __name__ == "__main__":
    run(main)

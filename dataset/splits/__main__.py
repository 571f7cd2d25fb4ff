"""Lists: `python -m dataset.splits fetch | import | make | check` (docs/data.md).

fetch   downloads the published lists of UniMatch V2 into splits/ and verifies them against splits/manifest.tsv
import  takes them from a clone of the public repository
make    draws a new labelled/unlabelled pair, holds labelled images of a pair out to select by, or makes a list from a folder of images
        and a folder of masks
check   verifies the lists of a data set against its images and masks
"""

import argparse
from dataclasses import replace
from pathlib import Path

from dataset.custom import spec_of, unlabeled_places
from dataset.lists import Entry, format_line, missing_validation
from dataset.palette import distinct_palette
from dataset.spec import SPECS, DatasetSpec
from dataset.splits.check import Checked, find_lists, open_list, open_validation, report
from dataset.splits.check import check as check_lists
from dataset.splits.make import pair_folders, rank
from dataset.splits.pair import Made, hold_out_of_pair, make_pair, part
from dataset.splits.published import fetch, import_clone
from util.cli import Parser
from util.config import Config, load_config
from util.error import UserError, run


def make(args: argparse.Namespace) -> None:
    """Writes splits/<dataset>/<share>/{labeled,unlabeled}.txt, and before that a list from folders where those are given."""
    cfg = load_config(args.config) if args.config else None
    args.dataset = _dataset("make", args.dataset, cfg)
    args.spec = spec_of(cfg) if cfg else SPECS.get(args.dataset)
    args.data_root = args.data_root or (cfg.data_root if cfg else None)
    for option, name in (("make", args.dataset), ("--name", args.name or "")):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{option}: found {name!r}, expected the name of a folder below splits/")
    if args.masks is not None and args.images is None:
        raise UserError("make: found --masks without --images, expected both folders")
    source = Path(args.source) if args.source else None
    drawn = args.labeled is not None or args.count is not None
    if args.images is None and not drawn and args.select is None:
        raise UserError("make: nothing to do; give --labeled 1/8 or --count N for a pair, --images DIR (--masks DIR) for a list")
    if args.select is not None and not drawn and (source is None or args.images is not None):
        raise UserError(
            "--select: found no pair; give --labeled 1/8 or --count N to draw one, or --from splits/DATASET/SPLIT/labeled.txt of an old one"
        )
    if args.val is not None and args.masks is None:
        raise UserError("--val: found no --masks; it holds images out of the list that --images and --masks make")
    made = Made({}, [])
    if args.images is not None:
        source = _make_list(args, source or Path("splits") / args.dataset / "train.txt", made)
    if drawn:
        make_pair(args, source or _train_list(args.dataset), made)
    elif args.select is not None and source is not None:
        hold_out_of_pair(args, source, made)
    made.write()
    val = (cfg and cfg.val_id_path) or (args.spec.val_list if args.spec else f"splits/{args.dataset}/val.txt")
    if not Path(val).exists():
        print(f"still to do: {missing_validation(val)}")


def _dataset(command: str, name: str | None, cfg: Config | None) -> str:
    """The data set that a command is about: of the config, or named on the command line; of both where they agree."""
    if cfg is None and name is None:
        raise UserError(f"{command}: found no data set, expected its name, or a config with --config")
    if cfg is not None and name not in (None, cfg.dataset):
        raise UserError(f"{command}: found {name!r} beside --config of {cfg.dataset!r}, expected one data set; leave the name out")
    return cfg.dataset if cfg else str(name)


def _make_list(args: argparse.Namespace, path: Path, made: Made) -> Path:
    if args.spec is not None and args.spec.bitemporal:
        raise UserError(f"--images: {args.dataset} has pairs; list their names yourself: `ls {args.data_root or 'DIR'}/A > {path}`")
    masks = None if args.masks is None else Path(args.masks)
    paired = pair_folders(Path(args.images), masks, Path(args.data_root) if args.data_root else None, args.mask_suffix)
    held = _held_out(args, paired.entries)
    entries = [entry for entry in paired.entries if entry not in held]
    bare = sum(entry.mask is None for entry in entries)
    made.lists[path] = [format_line(entry) for entry in entries]
    made.notes.append(
        f"{path}: {len(entries)} images, {bare} without a mask (these can only be unlabelled), {paired.alone} masks without an image"
    )
    made.notes.extend(paired.notes)
    if held:
        val = Path("splits") / args.dataset / "val.txt"
        made.lists[val] = [format_line(entry) for entry in held]
        made.notes.append(f"{val}: {len(held)} images held out for validation with seed {args.seed}")
    made.notes.append(f"data_root: {paired.root}")
    args.data_root = str(paired.root)
    return path


def _held_out(args: argparse.Namespace, entries: list[Entry]) -> list[Entry]:
    """The images with masks that come last in the seed's order (the labelled ones of a pair come first), in the order of the list."""
    if args.val is None:
        return []
    able = [entry for entry in entries if entry.mask is not None]
    count = part(args.val, len(able), "--val")
    if not 0 < count < len(able):
        raise UserError(f"--val: found {count} of {len(able)} images with masks, expected 1 to {len(able) - 1}")
    order = rank([format_line(entry) for entry in able], args.seed)
    return [able[i] for i in sorted(order[-count:])]


def _train_list(name: str) -> Path:
    """The list of all training images: our train.txt, or the one in the published all/ folder."""
    places = [Path("splits") / name / file for file in ("train.txt", "all/labeled.txt", "all/train.txt")]
    return next((place for place in places if place.is_file()), places[0])


def check(args: argparse.Namespace) -> None:
    """Prints tables about the lists of a data set. Raises UserError when there are problems."""
    spec, lists = _configured(args) if args.config else _named(args)
    hints = check_lists(spec, lists, args.decode)
    print(report(spec, lists, hints), flush=True)
    broken = [one for one in lists if one.problems]
    if broken:
        count = sum(len(one.problems) for one in broken)
        raise UserError(f"check: found problems in {len(broken)} of {len(lists)} lists of {spec.name}, {count} in all, printed above")


def _configured(args: argparse.Namespace) -> tuple[DatasetSpec, list[Checked]]:
    """The data set and lists of a config: the training lists it names, or those below splits/; DATASET may be left out."""
    given = {"data_root": args.data_root, "data_root_u": args.data_root_u}
    cfg = load_config(args.config, **given)
    spec = spec_of(cfg)
    splits = args.names[1:] if args.names[:1] == [cfg.dataset] else args.names
    if splits or not (cfg.labeled_id_path and cfg.unlabeled_id_path):
        root_u = unlabeled_places(replace(cfg, unlabeled_id_path="unlabeled.txt"))[0][1]
        return spec, find_lists(spec, splits, cfg.data_root, root_u, cfg.val_id_path)
    places = [("labeled", cfg.labeled_id_path, cfg.data_root)]
    places += [("unlabeled", path, root) for path, root in unlabeled_places(cfg)]
    lists = [open_list(spec, Path(path), role, root, args.config) for role, path, root in places]
    return spec, [open_validation(spec, cfg.val_id_path, cfg.data_root), *lists]


def _named(args: argparse.Namespace) -> tuple[DatasetSpec, list[Checked]]:
    """The lists of a built-in data set, or of one with --classes N numbered classes."""
    name, splits = _dataset("check", args.names[0] if args.names else None, None), args.names[1:]
    if name in SPECS:
        spec = SPECS[name]
    elif args.classes is None:
        raise UserError(f"check: found {name!r}, expected one of {', '.join(SPECS)}; others need --config FILE, or --classes N")
    elif not 0 < args.classes < 255:
        raise UserError(f"--classes: found {args.classes}, expected 1 to 254")
    else:
        spec = DatasetSpec(
            name, tuple(f"class {c}" for c in range(args.classes)), distinct_palette(args.classes), ignore_index=args.ignore_index
        )
    return spec, find_lists(spec, splits, args.data_root or f"data/{name}", args.data_root_u)


def _parser() -> Parser:
    parser = Parser(prog="dataset.splits", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="fetch|import|make|check")
    sub = commands.add_parser("fetch", help="download the published lists")
    sub.add_argument("dataset", nargs="+", help="pascal, cityscapes, ade20k, coco, levir, whu")
    sub.add_argument("--url", metavar="BASE", help="address of another copy of the raw files (default: the public repositories')")
    sub.set_defaults(call=lambda args: fetch(args.dataset, args.url))
    sub = commands.add_parser("import", help="copy the published lists from a clone")
    sub.add_argument("folder", metavar="DIR")
    sub.add_argument("dataset", nargs="*", help="default: all that exist")
    sub.set_defaults(call=lambda args: import_clone(Path(args.folder), args.dataset))
    sub = commands.add_parser("make", help="draw a labelled/unlabelled pair, or list the images of a folder")
    sub.add_argument("dataset", nargs="?", help="name of the folder below splits/")
    sub.add_argument("--config", metavar="FILE", help="config of the data set: its name, data root and classes")
    share = sub.add_mutually_exclusive_group()
    share.add_argument("--labeled", metavar="1/8", help="labelled share of the list, as 1/8 or 5%%")
    share.add_argument("--count", type=int, metavar="N", help="number of labelled images")
    sub.add_argument("--seed", type=int, default=0, help="order: sha256 of seed and line (default: %(default)s)")
    sub.add_argument("--stratify", action="store_true", help="every class present in the labelled part where possible (reads the masks)")
    sub.add_argument("--from", dest="source", metavar="LIST", help="list to draw from, or to write with --images (default: train.txt)")
    sub.add_argument("--name", help="folder to write to instead of 1_8 and so on")
    sub.add_argument("--images", metavar="DIR", help="make the list from the images here ...")
    sub.add_argument("--masks", metavar="DIR", help="... and the masks of the same names here")
    sub.add_argument(
        "--select", type=int, metavar="N", help="hold N labelled images of the pair, drawn or --from its labeled.txt, out to select by"
    )
    sub.add_argument("--val", metavar="1/10", help="share of these to hold out for splits/<dataset>/val.txt")
    sub.add_argument("--mask-suffix", default="", help="what a mask's name has behind the image's name, for example _L")
    sub.add_argument("--data-root", help="folder that the paths are relative to")
    sub.set_defaults(call=make)
    sub = commands.add_parser("check", help="verify lists, images and masks")
    sub.add_argument("names", nargs="*", metavar="DATASET SPLIT", help="data set (with --config: none) and pairs to check (default: all)")
    sub.add_argument("--config", metavar="FILE", help="config of the data set; it may name other lists")
    sub.add_argument("--data-root", help="default: the config's, or data/<dataset>")
    sub.add_argument("--data-root-u", help="data root of the unlabelled lists, where it is another one")
    sub.add_argument(
        "--decode",
        action="store_true",
        help="read every image to its end, as is done for your own data: finds truncated ones, and copies of validation images",
    )
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

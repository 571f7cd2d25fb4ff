"""The configuration of a run: one typed dataclass, read from YAML, changed by `--set key=value`, checked before anything starts."""

import argparse
import difflib
import types
import typing
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from util.cli import Parser
from util.error import UserError, reason
from util.precision import PRECISIONS

DEVICES = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True)
class Config:
    """Every key a config file or `--set` may hold. Without a default: required."""

    dataset: str  # a built-in data set (dataset/spec.py), or any name together with `classes`
    data_root: str  # the lists' paths are relative to this folder
    backbone: str  # name of an EncoderSpec
    crop_size: int  # side of the training crop in pixels, a multiple of what the encoder needs (DINOv2: 14)
    epochs: int
    batch_size: int  # labelled images, and as many unlabelled ones, of one shard's mini-batch
    lr: float  # of the encoder
    lr_multi: float = 40.0  # the decoder's rate is lr * lr_multi
    criterion: dict = field(default_factory=lambda: {"name": "CELoss", "kwargs": {"ignore_index": 255}})  # labelled loss: CELoss | OHEM
    conf_thresh: float = 0.95  # pseudo labels count from this confidence on
    lossu_weight: float = 1.0  # w in (loss_x + w * loss_u) / (1 + w)
    model: str = "dpt"  # the architecture: see model/__init__.py
    lock_backbone: bool = False  # freeze the encoder
    pretrained: str | None = "auto"  # encoder weights: auto is pretrained/<backbone>.pth, null is random
    init: str | None = None  # start from the weights of this checkpoint of another run (its EMA where it has one)
    teacher: str | None = None  # who gives the pseudo labels: ema | student; null is the data set's own
    nclass: int | None = None  # known from the data set; where given it must agree
    classes: list | str | None = None  # of a data set of your own: names in id order, or a text file with one on each line
    palette: list | None = None  # its colours, [R, G, B] or "#rrggbb" for each class; null is Pascal's
    label_map: dict | None = None  # its mask values where they are no class ids: {value: class id or name, or null to ignore it}
    ignore_index: int | None = None  # its mask value that is ignored; null is 255
    task: str | None = None  # its kind: segmentation | change; null is segmentation
    supervised_length: int | None = None  # images of a supervised epoch: a shorter list is repeated; null is the data set's own
    data_root_u: str | list | None = None  # root of the unlabelled list, where it is another; a list: one for each unlabelled list
    val_id_path: str | None = None  # validation list; null is splits/<dataset>/val.txt (change detection: test.txt)
    test_id_path: str | None = None  # list that best.pth is scored on, once, at the end; null: see dataset/loader.py, test_source
    eval_mode: str | None = None  # original | sliding_window; null is the data set's own
    eval_every: int = 1  # epochs between evaluations; the last epoch always has one
    shards: int | None = None  # GPUs the recipe is defined for; null is the number of processes
    seed: int = 0
    device: str = "auto"  # auto | cpu | cuda | mps
    grad_compression: str = "none"  # how gradients travel between processes: none (float32) | bf16: half the bytes, rounded
    num_workers: int | str | None = "auto"  # loader processes of each training process; auto, or null, follows the CPUs
    views: str = "auto"  # who makes crops and views: worker (loader processes) | device (training device) | auto: device where it is CUDA
    save_every: float | None = None  # minutes between saves inside an epoch; null is the larger of 5 and 100 times a save's duration
    resume: str = "auto"  # auto: refuses a checkpoint of other settings, lists or encoder | force: goes on from it all the same
    bad_images: str = "stop"  # a file that cannot be read while training: stop | skip: the next one of the list takes its place
    max_bad_steps: int = 10  # steps without a finite loss or gradient, in a row, that end the run; each of them is skipped
    precision: str = "fp32"  # fp32: as published | tf32 | bf16 | fp16 with loss scaling: see util/precision.py
    compile: bool = False  # compile the encoder's blocks and the decoder: faster steps after some minutes of compiling
    activation_checkpointing: bool = False  # compute the encoder's blocks twice instead of keeping what they need for the gradient
    deterministic: bool = False  # a GPU too gives the same bits from the same seed; slower. A CPU gives them anyway
    # command line
    labeled_id_path: str = ""
    unlabeled_id_path: str | list | None = None  # one list, or several one after the other
    save_path: str = ""
    config: str = ""

    def __post_init__(self) -> None:
        positive = {"crop_size", "epochs", "batch_size", "eval_every", "lr", "lr_multi", "max_bad_steps", "shards", "nclass",
                    "supervised_length"}  # fmt: skip
        most = {"conf_thresh": 1, "lr": 1, "seed": 2**63 - 1, "num_workers": 256}
        for name in KEYS:
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                continue
            limit = most.get(name, 10**9)
            if not 0 <= value <= limit or (value == 0 and name in positive):  # nan is not
                least = "a number above 0" if name in positive else "0 or more"
                raise UserError(f"{name}: found {value}, expected {least}, at most {limit}; correct it in the config")
        if isinstance(self.num_workers, str) and self.num_workers != "auto":
            raise UserError(f"num_workers: found {self.num_workers!r}, expected a number or auto; correct it in the config")
        choices = {
            "teacher": (None, "ema", "student"),
            "eval_mode": (None, "original", "sliding_window"),
            "task": (None, "segmentation", "change"),
            "device": DEVICES,
            "grad_compression": ("none", "bf16"),
            "precision": PRECISIONS,
            "resume": ("auto", "force"),
            "bad_images": ("stop", "skip"),
            "views": ("auto", "worker", "device"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                names = ", ".join(str(a) for a in allowed if a)
                raise UserError(f"{name}: found {getattr(self, name)!r}, expected one of {names}; correct it in the config")


KEYS = {f.name: f for f in fields(Config)}
_HINTS = typing.get_type_hints(Config)
# Keys that a run may go on with changed, because they do not say what it computes: where things are (lists are compared by content),
# how it runs, and what is used only at its start. `epochs` may grow. A key that is not here may not change.
MAY_CHANGE = {
    "config", "save_path", "data_root", "data_root_u", "val_id_path", "labeled_id_path", "unlabeled_id_path", "pretrained", "init",
    "device", "precision", "compile", "activation_checkpointing",
    "num_workers", "views", "eval_every", "save_every", "resume", "bad_images", "max_bad_steps", "deterministic", "test_id_path", "palette",
}  # fmt: skip
# The authors' large-scale configs name these keys for two data sets; the labelled one decides classes and validation.
_ALIASES = {"dataset_l": "dataset", "data_root_l": "data_root"}


def convert(key: str, value: Any) -> Any:
    """`value` as the type of `key`. Raises UserError for a value of another type."""
    hint = _HINTS[key]
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for kind in kinds:
        if type(value) is kind:
            return value
        if kind is float and type(value) is int and abs(value) < 1e300:
            return float(value)
        if kind is float and isinstance(value, str):  # YAML reads 5e-6, without a dot, as a string
            try:
                return float(value)
            except ValueError:
                continue
    names = " or ".join("null" if k is types.NoneType else k.__name__ for k in kinds)
    raise UserError(f"{key}: found {value!r} ({type(value).__name__}), expected {names}; correct it in the config or with --set {key}=...")


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping, of which YAML would silently take the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            known = (key.tag, key.value)
            if known in seen:
                raise UserError(f"{self.name}:{key.start_mark.line + 1}: found the key {key.value!r} again, expected it once; remove one")
            seen.add(known)
        return node


def _read_yaml(path: str) -> dict[str, Any]:
    if "\0" in path or not Path(path).is_file():
        raise UserError(f"{path}: no such config file; give one with --config (the ones shipped are in configs/)")
    try:
        with open(path, encoding="utf-8") as file:
            values = _Loader(file).get_single_data()
    except PermissionError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}); correct its permissions") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, or a date such as 2001-99-99
        raise UserError(f"{path}: not valid YAML ({reason(error)}); expected UTF-8 text of `key: value` lines") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: found a {type(values).__name__}, expected `key: value` lines")
    return values


def _default(key: str) -> Any:
    """The default of a key that is a mapping; None for other keys."""
    f = KEYS.get(key)
    return f.default_factory() if f is not None and callable(f.default_factory) else None


def _assign(values: dict[str, Any], setting: str) -> None:
    """Applies one `key=value` of the command line; `a.b=value` reaches into a mapping."""
    name, equals, text = setting.partition("=")
    if not equals or not name:
        raise UserError(f"--set {setting}: expected key=value")
    try:
        value = yaml.safe_load(text) if text else None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"--set {setting}: the value is not valid YAML") from error
    *parents, leaf = name.split(".")
    for parent in parents:
        inner = values[parent] if parent in values else _default(parent)
        values[parent] = dict(inner) if isinstance(inner, dict) else {}
        values = values[parent]
    values[leaf] = value


def load_config(path: str, settings: list[str] | None = None, **given: Any) -> Config:
    """The config of a YAML file, then `settings` ("key=value"), then `given` (command-line paths that are not None)."""
    return make_config(_read_yaml(path), path, settings, **given)


def make_config(values: dict[str, Any], path: str, settings: list[str] | None = None, **given: Any) -> Config:
    """The config of `values` as a file `path` holds them, then `settings` and `given` as in `load_config`. Raises UserError."""
    for setting in settings or []:
        _assign(values, setting)
    for old, new in _ALIASES.items():
        if old in values:
            values.setdefault(new, values.pop(old))
    values.pop("dataset_u", None)  # the unlabelled list and data_root_u say all that is needed
    valset = values.pop("valset", None)
    if valset is not None and valset != values.get("dataset"):
        raise UserError(f"valset: found {valset!r}, expected the labelled data set {values.get('dataset')!r}")
    for key in values:
        if key not in KEYS:
            raise UserError(f"{key}: no such config key; the nearest is {difflib.get_close_matches(str(key), KEYS, 1, 0)[0]!r}")
    values |= {key: value for key, value in given.items() if value is not None}
    for key, f in KEYS.items():
        if key not in values and f.default is MISSING and f.default_factory is MISSING:
            raise UserError(f"{path}: has no `{key}`; add it")
    values["config"] = path
    return Config(**{key: convert(key, value) for key, value in values.items()})


def parse_arguments(parser: Parser, argv: list[str]) -> argparse.Namespace:
    """The arguments of a command that has `--set`. Raises UserError; for a config key given as an option it says how to set it."""
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        option, equals, value = unknown[0].partition("=")
        key = option.lstrip("-").replace("-", "_")
        if option.startswith("--") and key in KEYS:
            value = value if equals else next(iter(unknown[1:]), "VALUE")
            raise UserError(f"{option}: no such option, but a config key; give --set {key}={value}")
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return args


def parse_command(argv: list[str], description: str | None, unlabeled: bool | None) -> Config:
    """Reads the command line that every method has (METHOD.md 5). Raises UserError.

    unlabeled: whether there must be an unlabelled list; False leaves it out, None takes it where there is one.
    """
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--labeled-id-path", help="list of `image mask` lines")
    parser.add_argument("--unlabeled-id-path", nargs="+", metavar="LIST", help="list of images without labels, or several")
    parser.add_argument("--save-path", required=True, help="folder of checkpoints and logs; an unfinished run in it goes on")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="change a config key; may be repeated")
    parser.add_argument("--pretrained-path", help="encoder weights, same as --set pretrained=PATH")
    parser.add_argument("--port", help="accepted for old command lines; the launcher knows the port")
    parser.add_argument("--local_rank", "--local-rank", help="accepted for old command lines; the launcher sets it")
    args = parse_arguments(parser, argv)
    lists = args.unlabeled_id_path
    cfg = load_config(
        args.config,
        args.set,
        labeled_id_path=args.labeled_id_path,
        unlabeled_id_path=lists[0] if lists and len(lists) == 1 else lists,
        save_path=args.save_path,
        pretrained=args.pretrained_path,
    )
    for key in ("labeled_id_path", "unlabeled_id_path") if unlabeled else ("labeled_id_path",):
        if not getattr(cfg, key):
            option = "--" + key.replace("_", "-")
            raise UserError(f"{option}: found none, expected a list on the command line, or `{key}` in {args.config}")
    if not args.save_path.strip():
        raise UserError("--save-path: found an empty name, expected a folder; is a variable of the shell not set?")
    return replace(cfg, unlabeled_id_path=None) if unlabeled is False else cfg

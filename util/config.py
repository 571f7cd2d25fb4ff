"""The configuration of a run: one typed dataclass, read from YAML, changed by `--set key=value`, checked before anything starts."""

import argparse
import copy
import difflib
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from util.cli import Parser
from util.error import UserError, reason
from util.precision import PRECISIONS

DEVICES = ("auto", "cpu", "cuda", "mps")


def key(
    default: Any = MISSING,
    *,
    positive: bool = False,
    most: float = 10**9,
    choices: tuple[str, ...] = (),
    may_change: bool = False,
    may_grow: bool = False,
    factors: bool = False,
) -> Any:
    """A config key. Without a default it is required; a mapping is its own default each time.

    Numbers are from 0 (`positive`: above 0) to `most`, words are among `choices`. may_change: a run may be resumed with another value,
    because the key does not say what the run computes: where things are (lists are compared by content), how it runs, or what is used
    only at its start. may_grow: with a higher one. factors: the values of the mapping are numbers from 0 to `most`, by text.
    """
    rules = {"positive": positive, "most": most, "choices": choices, "may_change": may_change, "may_grow": may_grow, "factors": factors}
    if isinstance(default, dict):
        return field(default_factory=lambda: copy.deepcopy(default), metadata=rules)
    return field(default=default, metadata=rules)


@dataclass(frozen=True)
class Config:
    """Every key a config file or `--set` may hold. A method with keys of its own adds them in a subclass (engine/method.py)."""

    dataset: str = key()  # a built-in data set (dataset/spec.py), or any name together with `classes`
    data_root: str = key(may_change=True)  # the lists' paths are relative to this folder
    backbone: str = key()  # name of an encoder (model/spec.py)
    crop_size: int = key(positive=True)  # side of the training crop in pixels, a multiple of what the encoder needs
    epochs: int = key(positive=True, may_grow=True)
    batch_size: int = key(positive=True)  # labelled images, and as many unlabelled ones, of one shard's mini-batch
    lr: float = key(positive=True, most=1)  # of the encoder
    lr_multi: float = key(40.0, positive=True)  # the decoder's rate is lr * lr_multi
    # the authors' program that a run follows where they differ (METHOD.md 3.2); null: unimatch_v1 for deeplabv3plus, else unimatch_v2
    program: str | None = key(None, choices=("unimatch_v1", "unimatch_v2"))
    optimizer: str | None = key(None, choices=("adamw", "sgd"))  # null is the method's own
    weight_decay: float | None = key(None)  # null: 0.01 (adamw), 0.0001 (sgd)
    momentum: float = key(0.9, most=1)  # of sgd
    # learning rates of parts of the model: {start of parameter names: factor}; the rate is lr * factor, the longest name counts
    lr_factors: dict = key({}, factors=True)
    # statistics of BatchNorm layers: sync (over all shards' images; needs a process for each shard) | per_shard | frozen
    batch_norm: str = key("sync", choices=("sync", "per_shard", "frozen"))
    # labelled loss: CELoss | OHEM | Focal | Dice | Lovasz (model/loss.py), kwargs.class_weights: a list, or auto
    criterion: dict = key({"name": "CELoss", "kwargs": {"ignore_index": 255}})
    conf_thresh: float = key(0.95, most=1)  # pseudo labels count from this confidence on, where the method has a threshold
    lossu_weight: float = key(1.0)  # w in (loss_x + w * loss_u) / (1 + w)
    model: str | None = key(None)  # the architecture: dpt | deeplabv3plus | vlm | allspark; null is the encoder's usual one
    replace_stride_with_dilation: list | None = key(None)  # of a ResNet's stages 2, 3, 4 in deeplabv3plus; null is [false, false, true]
    dilations: list | None = key(None)  # of the three 3x3 branches of deeplabv3plus; null is [6, 12, 18]
    conv_encoder: bool | None = key(None)  # of vlm: a ResNet makes the decoder's finer map, as for Cityscapes; null is false
    renorm_clip_img: bool | None = key(None)  # of vlm: CLIP sees images with its own mean and deviation, not ImageNet's; null is false
    text: str | None = key(None, may_change=True)  # of vlm: embeddings of the classes' names; null is pretrained/text_<dataset>.pth
    lock_backbone: bool = key(False)  # freeze the encoder
    pretrained: str | None = key("auto", may_change=True)  # encoder weights: auto is pretrained/<backbone>.pth, null is random
    init: str | None = key(None, may_change=True)  # start from the weights of this checkpoint of another run (its EMA where it has one)
    teacher: str | None = key(None, choices=("ema", "student"))  # who gives the pseudo labels; null is as published
    nclass: int | None = key(None, positive=True)  # known from the data set; where given it must agree
    classes: list | str | None = key(None)  # of a data set of your own: names in id order, or a text file with one on each line
    palette: list | None = key(None, may_change=True)  # its colours, [R, G, B] or "#rrggbb" for each class; null: dataset/palette.py
    # its mask values, or colours "#rrggbb", where they are no class ids: {value: class id or name, or null to ignore it}
    label_map: dict | None = key(None)
    ignore_index: int | None = key(None)  # its mask value that is ignored; null is 255
    task: str | None = key(None, choices=("segmentation", "change"))  # its kind; null is segmentation
    # images of a supervised epoch: a shorter list is repeated; null: see dataset/loader.py, supervised
    supervised_length: int | None = key(None, positive=True)
    # root of the unlabelled list, where it is another; a list: one for each unlabelled list
    data_root_u: str | list | None = key(None, may_change=True)
    # validation list; null is splits/<dataset>/val.txt (change detection: test.txt)
    val_id_path: str | None = key(None, may_change=True)
    # list that best.pth is scored on, once, at the end, where another one selected it; null is splits/<dataset>/test.txt, or without
    # one the list that published runs are scored on
    test_id_path: str | None = key(None, may_change=True)
    # original | sliding_window (probabilities of windows are added) | slide (mmsegmentation's: logits are averaged); null: the data set's
    eval_mode: str | None = key(None, choices=("original", "sliding_window", "slide"))
    # mmsegmentation's resizing rule: [long, short] sides of a frame for training images, times 0.5 to 2; images are predicted with its
    # short side. null: the long side times 0.5 to 2; images are predicted as they are
    img_scale: list | None = key(None)
    eval_every: int = key(1, positive=True, may_change=True)  # epochs between evaluations; the last epoch always has one
    shards: int | None = key(None, positive=True)  # GPUs the recipe is defined for; null is the number of processes
    seed: int = key(0, most=2**63 - 1)
    device: str = key("auto", choices=DEVICES, may_change=True)
    # how gradients travel between processes: none (float32) | bf16: half the bytes, rounded
    grad_compression: str = key("none", choices=("none", "bf16"))
    # loader processes of each training process; auto, or null, follows the CPUs
    num_workers: int | str | None = key("auto", most=256, choices=("auto",), may_change=True)
    # who makes crops and views: worker (loader processes) | device (training device) | auto: device where it is CUDA
    views: str = key("auto", choices=("auto", "worker", "device"), may_change=True)
    # minutes between saves inside an epoch; null is the larger of 5 and 100 times a save's duration
    save_every: float | None = key(None, may_change=True)
    # auto: refuses a checkpoint of other settings, lists or encoder | force: resumes from it all the same
    resume: str = key("auto", choices=("auto", "force"), may_change=True)
    # a file that cannot be read while training: stop | skip: the next one of the list replaces it
    bad_images: str = key("stop", choices=("stop", "skip"), may_change=True)
    # steps without a finite loss or gradient, in a row, that end the run; each of them is skipped
    max_bad_steps: int = key(10, positive=True, may_change=True)
    # fp32: as published | tf32 | bf16 | fp16 with loss scaling: see util/precision.py
    precision: str = key("fp32", choices=PRECISIONS, may_change=True)
    compile: bool = key(False, may_change=True)  # compile the encoder's blocks and the decoder: faster steps after minutes of compiling
    # compute the encoder's blocks twice instead of keeping what they need for the gradient
    activation_checkpointing: bool = key(False, may_change=True)
    # a GPU too gives the same bits from the same seed; slower. A CPU gives them anyway
    deterministic: bool = key(False, may_change=True)
    # command line
    labeled_id_path: str = key("", may_change=True)
    unlabeled_id_path: str | list | None = key(None, may_change=True)  # one list, or several one after the other
    save_path: str = key("", may_change=True)
    config: str = key("", may_change=True)

    def __post_init__(self) -> None:
        for f in fields(self):
            _check(f.name, getattr(self, f.name), f.metadata, is_number=int in typing.get_args(f.type))


def _check(name: str, value: Any, rules: Mapping[str, Any], is_number: bool) -> None:
    """Raises UserError for a value outside a key's bounds or choices. is_number: a number will do beside the choices."""
    for part, factor in value.items() if rules["factors"] else ():
        if type(part) is not str or type(factor) not in (int, float) or not 0 <= factor <= rules["most"]:
            expected = f"the start of parameter names, and a number from 0 to {rules['most']}"
            raise UserError(f"{name}: found {part!r}: {factor!r}, expected {expected}; correct it in the config")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not 0 <= value <= rules["most"] or (value == 0 and rules["positive"]):  # nan is not
            least = "a number above 0" if rules["positive"] else "0 or more"
            raise UserError(f"{name}: found {value}, expected {least}, at most {rules['most']}; correct it in the config")
    elif value is not None and rules["choices"] and value not in rules["choices"]:
        expected = f"{'a number or' if is_number else 'one of'} {', '.join(rules['choices'])}"
        raise UserError(f"{name}: found {value!r}, expected {expected}; correct it in the config")


KEYS = {f.name: f for f in fields(Config)}


def may_change() -> set[str]:
    """The keys that a run may be resumed with changed."""
    return {name for name, f in KEYS.items() if f.metadata["may_change"]}


def may_resume(kind: type[Config], name: str, old: Any, new: Any) -> bool:
    """Whether a run that was started with the value `old` of a key of `kind` may be resumed with `new`; what is no key must be equal."""
    rules: Mapping[str, Any] = next((f.metadata for f in fields(kind) if f.name == name), {})
    grown = rules.get("may_grow", False) and isinstance(old, type(new)) and new > old
    return old == new or grown or bool(rules.get("may_change"))


# The authors' large-scale configs name these keys for two data sets; the labelled one decides classes and validation.
_ALIASES = {"dataset_l": "dataset", "data_root_l": "data_root"}


def convert(name: str, value: Any, kind: type[Config] = Config) -> Any:
    """`value` as the type of the key `name` of `kind`. Raises UserError for a value of another type."""
    hint = typing.get_type_hints(kind)[name]
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for one in kinds:
        if type(value) is one:
            return value
        if one is float and type(value) is int and abs(value) < 1e300:
            return float(value)
        if one is float and isinstance(value, str):  # YAML reads 5e-6, without a dot, as a string
            try:
                return float(value)
            except ValueError:
                continue
    choices = next(f.metadata["choices"] for f in fields(kind) if f.name == name)
    names = " or ".join([*choices, *("null" if k is types.NoneType else k.__name__ for k in kinds if not choices or k is not str)])
    raise UserError(
        f"{name}: found {value!r} ({type(value).__name__}), expected {names}; correct it in the config or with --set {name}=..."
    )


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


def read_yaml(path: str) -> dict[str, Any]:
    """The `key: value` lines of a YAML file. Raises UserError."""
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


def _default(name: str) -> Any:
    """The default of a key that is a mapping; None for other keys."""
    f = KEYS.get(name)
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


def load_config(path: str, settings: list[str] | None = None, kind: type[Config] | None = None, **given: Any) -> Any:
    """The config of a YAML file, then `settings` ("key=value"), then `given` (command-line paths that are not None); see `make_config`."""
    return make_config(read_yaml(path), path, settings, kind, **given)


def make_config(
    values: dict[str, Any], path: str, settings: list[str] | None = None, kind: type[Config] | None = None, **given: Any
) -> Any:
    """The config of `values` as a file `path` holds them, then `settings` and `given` as in `load_config`. Raises UserError.

    kind: the class of a method's settings, whose keys are the only ones allowed. None: of a command that runs no method. It leaves out
    keys of the file that it does not know, which a method may have, but not one that looks like a known key written wrongly.
    """
    for setting in settings or []:
        _assign(values, setting)
    for old, new in _ALIASES.items():
        if old in values:
            values.setdefault(new, values.pop(old))
    values.pop("dataset_u", None)  # the unlabelled list and data_root_u say all that is needed
    if values.pop("multi_grid", False):  # in old files of UniMatch V1, always false
        raise UserError(f"{path}: multi_grid: found true, expected false, which is how the published models are; remove it")
    valset = values.pop("valset", None)
    if valset is not None and valset != values.get("dataset"):
        raise UserError(f"valset: found {valset!r}, expected the labelled data set {values.get('dataset')!r}")
    known = {f.name: f for f in fields(kind or Config)}
    given_here = {setting.partition("=")[0].partition(".")[0] for setting in settings or []}
    for name in [name for name in values if name not in known]:
        strict = kind is not None or name in given_here
        near = difflib.get_close_matches(str(name), known, 1, 0.6 if strict else 0.8)
        if near or strict:
            advice = f"the nearest is {near[0]!r}" if near else "remove it, or see util/config.py and the method's file"
            raise UserError(f"{name}: no such config key{'' if kind is None else ' of this method'}; {advice}")
        del values[name]
    values |= {name: value for name, value in given.items() if value is not None}
    for name, f in known.items():
        if name not in values and f.default is MISSING and f.default_factory is MISSING:
            raise UserError(f"{path}: has no `{name}`; add it")
    values["config"] = path
    kind = kind or Config
    return kind(**{name: convert(name, value, kind) for name, value in values.items()})


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


def parse_command(argv: list[str], description: str | None, unlabeled: bool, kind: type[Config] | None = Config) -> Config:
    """Reads the command line that every method has (METHOD.md 5). Raises UserError.

    unlabeled: whether there must be an unlabelled list. kind: see `make_config`; None leaves unknown keys of `--set` out too, for a command
    that a method follows, which refuses them.
    """
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--labeled-id-path", help="list of `image mask` lines")
    parser.add_argument("--unlabeled-id-path", nargs="+", metavar="LIST", help="list of images without labels, or several")
    parser.add_argument("--save-path", required=True, help="folder of checkpoints and logs; an unfinished run in it is resumed")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="change a config key; may be repeated")
    parser.add_argument("--pretrained-path", help="encoder weights, same as --set pretrained=PATH")
    parser.add_argument("--port", help="accepted for old command lines; the launcher knows the port")
    parser.add_argument("--local_rank", "--local-rank", help="accepted for old command lines; the launcher sets it")
    args = parse_arguments(parser, argv)
    lists = args.unlabeled_id_path
    settings = [text for text in args.set or [] if kind or re.split("[.=]", text)[0] in KEYS | _ALIASES]
    cfg = load_config(
        args.config,
        settings,
        kind,
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
    return cfg

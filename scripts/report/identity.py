"""Which experiment a log is of: from its header and the list of starts beside it, else from the file's name, else from its folders."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from dataset.spec import SPECS
from engine.method import Method, get_method, method_names
from engine.provenance import STARTS
from engine.resume import LOG
from model.spec import ENCODERS
from util.files import ROOT

CHANGE_DATASETS = {name for name, spec in SPECS.items() if spec.bitemporal}
CLASSIFICATION_DATASETS = ("cifar100", "cifar10", "svhn", "stl10")
DATASETS = sorted((*SPECS, *CLASSIFICATION_DATASETS), key=len, reverse=True)  # demo_change is not demo

# names of the authors' folders and figures for methods that have another name here
_ALIASES = {
    "labeled_only": "supervised",
    "unimatch": "unimatch_v1",
    "fixmatch_fp": "fixmatch_addfeataug",
    "figure4a": "fixmatch_addfeataug",
    "figure4b": "fixmatch_dualstream",
    "figure4c": "fixmatch_addfeataug_dualstream",
}
_METHODS = {  # of public logs and tables, that this program has not
    "unimatch_v2_noEMA": "UniMatch V2 (student as teacher)",
    "fixmatch_addfeataug": "One view (feature dropout, 4a)",
    "fixmatch_dualstream": "Two views (no dropout, 4b)",
    "fixmatch_addfeataug_dualstream": "Two views (independent dropout, 4c)",
}
_NAMES = "|".join(sorted((*method_names(), *_METHODS, *_ALIASES), key=len, reverse=True))
_METHOD = re.compile(rf"(?<![A-Za-z0-9])({_NAMES})(?![A-Za-z0-9])")
_DATASET = re.compile(rf"(?<![A-Za-z0-9])({'|'.join(DATASETS)})(?![A-Za-z0-9])", re.IGNORECASE)
_SPELLED = (r"resnet_?\d{2,3}", r"mit_?b\d", "beit_[bl]", "sam_[bhl]")  # encoders in names of the authors' files
_BACKBONE = re.compile(rf"(?<![A-Za-z0-9])({'|'.join((*sorted(ENCODERS, key=len, reverse=True), *_SPELLED))})(?![A-Za-z0-9])")
_EXTRA = re.compile(r"(?<![A-Za-z0-9])(extra_\d{1,4}[Kk])(?![A-Za-z0-9])")
_SPLIT = re.compile(r"(?<![A-Za-z0-9])(\d+_\d+|\d+%?|all|full)_?labels?(?![a-zA-Z])")
_SPLIT_FOLDER = re.compile(r"(?:^|/)((?:u2pl_)?\d+_\d+|\d+%?|all|full)(?:[_-](?:seed|run)_?\d+)?(?:/seed_?\d+)?/?$")
_SEED = re.compile(r"(?<![A-Za-z])(?:seed[_-]?|(?<=\d-)run)(\d{1,9})")  # UniMatch V1's: 92-run1
# who made a log: the authors, this repository (training-logs), or the reader
AUTHORS, SHIPPED, OWN = "authors' log", "shipped log", "yours"
_PUBLIC_LOG = re.compile(r"z?(?:table|figure)\d+[-_].+\.log")

_ENCODERS = {
    "dinov3_convnext": "DINOv3-ConvNeXt",
    "dinov3": "DINOv3",
    "dinov2": "DINOv2",
    "resnet": "ResNet",
    "mit": "MiT",
    "beit": "BEiT",
    "sam": "SAM",
    "efficientnet": "EfficientNet",
    "clip": "CLIP",
    "xception": "Xception-65",
}


@dataclass(frozen=True)
class Identity:
    """Method, data set, split and encoder as the command line names them (None: the log does not say); seed of the run."""

    method: str | None
    dataset: str | None
    split: str | None
    backbone: str | None
    seed: int | None


def task_of(dataset: str) -> str:
    """The task of a data set of the paper."""
    return SPECS[dataset].task


def own_method(name: str | None) -> Method | None:
    """The method of this program that has a name; None for methods of others."""
    return get_method(name) if name in method_names() else None


def origin(header: dict[str, str], log: Path) -> str:
    """Who made a log: AUTHORS for a public one by its name or by the folders in its header, SHIPPED for one of training-logs, else OWN."""
    old = "multi_grid" in header and "save_path" not in header  # as UniMatch V1's logs of 2022
    if _PUBLIC_LOG.fullmatch(log.name) or old or any("/lihe/" in header.get(key, "") for key in ("data_root", "data_root_l")):
        return AUTHORS
    return SHIPPED if log.resolve().is_relative_to(ROOT / "training-logs") else OWN


def method_name(method: str) -> str:
    """What the tables call a method; its own name where nothing better is known."""
    own = own_method(method)
    return own.title if own and own.title else _METHODS.get(method, method)


def identify(header: dict[str, str], log: Path) -> Identity:
    """The experiment of a log with this header (empty where it is lost) and this file name."""
    save_path = header.get("save_path") or header.get("output_path") or ""
    # from the most to the least telling; the folder names of a stranger's disk come last, and only the nearest five
    texts = [save_path, log.stem, "/".join(log.parts[-6:-1])]
    dataset = header.get("dataset") or header.get("valset") or header.get("dataset_l") or _search(_DATASET, texts)
    backbone = header.get("backbone") or _search(_BACKBONE, texts)
    seed = header.get("seed") if header.get("seed", "").isdecimal() else _search(_SEED, texts)
    return Identity(
        method=header.get("method") or _started_method(log) or _method(save_path, texts, backbone, dataset),
        dataset=dataset.lower() if dataset else None,
        split=_split(header, texts),
        backbone=backbone,
        seed=int(seed) if seed and len(seed) < 10 else None,
    )


def _search(pattern: re.Pattern[str], texts: list[str]) -> str | None:
    return next((found[1] for text in texts if (found := pattern.search(text))), None)


def _started_method(log: Path) -> str | None:
    """The method whose command wrote a log of ours, by the list of starts beside it."""
    try:
        command = Path(json.loads((log.parent / STARTS).read_bytes())[-1]["command"][0])
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return command.stem if log.name == LOG and own_method(command.stem) else None


def _method(save_path: str, texts: list[str], backbone: str | None, dataset: str | None) -> str | None:
    """The folder of the method, exp/<dataset>/<method>/<backbone>/<split>, also a name we do not know; else a known name anywhere."""
    parts = save_path.strip("/").split("/")
    for before, part, after in zip(parts, parts[1:], parts[2:], strict=False):
        if before == dataset and after == backbone:
            return _ALIASES.get(part, part)
    method = _search(_METHOD, texts)
    return _ALIASES.get(method, method) if method else None


def _split(header: dict[str, str], texts: list[str]) -> str | None:
    """The folder of the labelled list; for a list of all images what the save path or the file name says, else "all"."""
    if "label_per_class" in header:
        return header["label_per_class"]
    extra = _search(_EXTRA, texts[:2])  # all labels, and unlabelled images of another source
    if extra:
        return extra
    *folders, name = header.get("labeled_id_path", "").split("/")
    split = folders[-1] if folders and name == "labeled.txt" else _search(_SPLIT, texts) or _search(_SPLIT_FOLDER, texts)
    if split is None and name == "train.txt":
        split = "all"
    return "all" if split == "full" else split


def encoder_name(backbone: str) -> str:
    """dinov2_base -> DINOv2-Base, resnet101 -> ResNet-101; a name of another family stays as it is."""
    for family, name in _ENCODERS.items():
        size = backbone.removeprefix(family).strip("_")
        if backbone.startswith(family):
            return f"{name}-{size.upper() if len(size) < 3 else size.capitalize()}".replace("_", " ") if size else name
    return backbone

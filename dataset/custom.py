"""Makes the DatasetSpec of a config: a built-in one, or one that the config itself describes."""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dataset.palette import Color, distinct_palette
from dataset.spec import CHANGE, IGNORE, SPECS, DatasetSpec, get_spec
from util.config import Config
from util.error import UserError

OWN_KEYS = ("classes", "palette", "label_map", "ignore_index", "task")  # config keys that describe a data set
VALUES = 1 << 16  # mask files have up to 16 bits
HEX = r"#[0-9a-fA-F]{6}"


def spec_of(cfg: Config) -> DatasetSpec:
    """The DatasetSpec of a config. Raises UserError for a description that is incomplete or contradicts itself."""
    given = [key for key in OWN_KEYS if getattr(cfg, key) is not None]
    if cfg.dataset in SPECS and given:
        raise UserError(
            f"{given[0]}: found beside `dataset: {cfg.dataset}`, which is built in; remove it, or name your own data set otherwise"
        )
    if cfg.dataset in SPECS or not (cfg.classes or cfg.task == "change"):
        if cfg.dataset not in SPECS and given:
            raise UserError(f"classes: found none for the data set {cfg.dataset!r}, expected the names of its classes; add them")
        spec = get_spec(cfg.dataset)
    else:
        spec = _own(cfg)
    if cfg.nclass not in (None, spec.nclass):
        raise UserError(f"nclass: found {cfg.nclass}, but {spec.name} has {spec.nclass} classes; correct or remove it")
    if cfg.supervised_length is not None:
        spec = replace(spec, supervised_length=cfg.supervised_length)
    return spec if cfg.img_scale is None else replace(spec, frame=_frame(cfg.img_scale))


def _frame(sides: list) -> tuple[int, int]:
    if len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
        raise UserError(f"img_scale: found {sides}, expected two sides in pixels, such as [2048, 512]; correct it in the config")
    return sides[0], sides[1]


def _own(cfg: Config) -> DatasetSpec:
    if not re.fullmatch(r"[^/\\\0\n]+", cfg.dataset) or cfg.dataset in (".", ".."):
        raise UserError(f"dataset: found {cfg.dataset!r}, expected a name that a folder can have (its lists are in splits/<name>)")
    change = cfg.task == "change"
    classes = _names(cfg.classes, cfg.config) if cfg.classes else CHANGE["classes"]
    if change and len(classes) != 2:
        raise UserError(f"classes: found {len(classes)}, expected two for change detection (unchanged, changed), or none for these names")
    facts: dict[str, Any] = dict(CHANGE) if change else {}
    facts |= {"classes": classes, "ignore_index": IGNORE if cfg.ignore_index is None else cfg.ignore_index}
    if cfg.label_map is not None:
        facts["label_map"], facts["colors"] = _label_map(cfg.label_map, classes)
    if cfg.palette:
        facts["palette"] = _palette(cfg.palette, len(classes))
    elif facts.get("colors"):
        facts["palette"] = _colors_of(facts["label_map"], len(classes))
    elif not change:
        facts["palette"] = distinct_palette(len(classes))
    spec = DatasetSpec(cfg.dataset, **facts)
    _check_ignored(cfg.ignore_index, spec)
    return spec


def _names(classes: list | str, config: str) -> tuple[str, ...]:
    """The names in a list or in a file, whose path is relative to the current folder or to the config's."""
    if isinstance(classes, str):
        names, where = _file_names(classes, config), classes
    else:
        names, where = classes, "classes"
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise UserError(
                f"{where}: found {name!r} ({type(name).__name__}), expected a name; YAML needs quotes around words like yes and no"
            )
    stripped = [" ".join(name.split()) for name in names]
    twice = sorted({name for name in stripped if stripped.count(name) > 1})
    if twice:
        raise UserError(f"{where}: found {twice[0]!r} twice, expected different names; rename one")
    if not 2 <= len(stripped) <= IGNORE:
        raise UserError(f"{where}: found {len(stripped)} names, expected 2 to {IGNORE} (background counts as a class)")
    return tuple(stripped)


def _file_names(path: str, config: str) -> Sequence[str]:
    candidates = [Path(path), Path(config).parent / path]
    found = next((p for p in candidates if p.is_file()), None)
    if found is None:
        raise UserError(f"classes: no such file: {path}; give the names themselves, or a text file with one name on each line")
    try:
        lines = found.read_text(encoding="utf-8-sig").splitlines()
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{found}: cannot be read ({error}); expected a UTF-8 text with one class name on each line") from error
    return [line for line in lines if line.strip()]


def _palette(colors: list, count: int) -> tuple[Color, ...]:
    if len(colors) != count:
        raise UserError(f"palette: found {len(colors)} colours, expected {count}, one for each class; add or remove some")
    return tuple(_color(i, color) for i, color in enumerate(colors))


def _colors_of(label_map: dict[int, int], count: int) -> tuple[Color, ...]:
    """The first colour of each class in the masks."""
    first = {label: value for value, label in reversed(label_map.items())}
    return tuple((first[i] >> 16, first[i] >> 8 & 255, first[i] & 255) for i in range(count))


def _color(i: int, color: Any) -> Color:
    if isinstance(color, str) and re.fullmatch(HEX, color):
        color = list(bytes.fromhex(color[1:]))
    if not (isinstance(color, list) and len(color) == 3 and all(type(v) is int and 0 <= v <= 255 for v in color)):
        raise UserError(f'palette: found {color!r} for class {i}, expected [R, G, B] with numbers from 0 to 255, or "#rrggbb" in quotes')
    return color[0], color[1], color[2]


def _label_map(pairs: dict, classes: tuple[str, ...]) -> tuple[dict[int, int], bool]:
    """The map {mask value, or colour as 0xRRGGBB: class id or IGNORE}, and whether its keys are colours. Keys from `--set` are text."""
    out: dict[int, int] = {}
    colors = [key for key in pairs if isinstance(key, str) and re.fullmatch(HEX, key)]
    for key, label in pairs.items():
        value = int(key) if isinstance(key, str) and key.isdecimal() else key
        if key in colors:
            value = int(key[1:], 16)
        elif type(value) is not int or not 0 <= value < VALUES:
            raise UserError(f'label_map: found the mask value {key!r}, expected a number from 0 to {VALUES - 1}, or a colour as "#rrggbb"')
        elif colors:
            raise UserError(f"label_map: found the number {key} beside the colour {colors[0]!r}, expected masks of one kind; remove one")
        if value in out:
            raise UserError(f"label_map: found {key!r} a second time, expected each once; remove one")
        out[value] = _class_id(key, label, classes)
    absent = [name for i, name in enumerate(classes) if i not in out.values()]
    if absent:
        raise UserError(f"label_map: found no mask value for the class {absent[0]!r}; add one, or remove the class")
    return out, bool(colors)


def _class_id(value: int | str, label: Any, classes: tuple[str, ...]) -> int:
    if label is None:
        return IGNORE
    if isinstance(label, str) and label in classes:
        return classes.index(label)
    if type(label) is int and 0 <= label < len(classes):
        return label
    expected = f"one of the classes ({', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''}), its id, or null to ignore the value"
    if isinstance(label, bool):
        expected += "; YAML needs quotes around words like yes and no"
    raise UserError(f"label_map: found {label!r} for the mask value {value}, expected {expected}")


def _check_ignored(given: int | None, spec: DatasetSpec) -> None:
    """Raises UserError where a value is both ignored and a class. (255 is ignored unless a label_map uses it.)"""
    if given is None:
        return
    if not 0 <= given < VALUES:
        raise UserError(f"ignore_index: found {given}, expected a mask value from 0 to {VALUES - 1}; without one, leave the key out")
    if spec.colors:
        raise UserError(f'ignore_index: found {given} beside a label_map of colours, expected `"#rrggbb": null` in it; remove ignore_index')
    label = spec.label_map.get(given, IGNORE) if spec.label_map else given
    if label < spec.nclass:
        raise UserError(
            f"ignore_index: found {given}, which stands for the class {spec.classes[label]!r}; use a value that no class has, "
            "or say with label_map which values stand for which class"
        )


def unlabeled_places(cfg: Config) -> list[tuple[str, str]]:
    """The pairs (list, data root) of the unlabelled lists. Raises UserError where the numbers of lists and roots do not agree."""
    lists = _strings("unlabeled_id_path", cfg.unlabeled_id_path or "")
    roots = _strings("data_root_u", cfg.data_root if cfg.data_root_u is None else cfg.data_root_u)
    if len(roots) == 1:
        roots *= len(lists)
    if len(roots) != len(lists):
        raise UserError(f"data_root_u: found {len(roots)} folders for {len(lists)} unlabelled lists, expected one, or one for each list")
    real = [os.path.realpath(path) for path in lists]
    for path, resolved in zip(lists, real, strict=True):
        if real.count(resolved) > 1:
            raise UserError(f"unlabeled_id_path: found {path} twice, expected different lists; remove one")
    return list(zip(lists, roots, strict=True))


def _strings(key: str, value: str | list) -> list[str]:
    values = [value] if isinstance(value, str) else value
    for one in values:
        if not isinstance(one, str):
            raise UserError(f"{key}: found {one!r} ({type(one).__name__}), expected a path, or a list of paths")
    if not values:
        raise UserError(f"{key}: found an empty list, expected at least one path")
    return values

"""How a run of the paper is started here, what its log would say of its settings, and how the settings of another log differ from that."""

from __future__ import annotations

import pprint
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache

from engine.method import DEFAULT, Method
from scripts.report.identity import own_method, task_of
from scripts.report.lines import read_lines
from util.config import Config, load_config
from util.files import ROOT

PORT = 29500
ABSENT = "not in its header"
# `ignore_index` is a key of the config and of its criterion, and a header that is read has one of them
_NOT_COMPARED = ("data_root", "data_root_u", "labeled_id_path", "unlabeled_id_path", "save_path", "config", "ignore_index")


@dataclass(frozen=True)
class Recipe:
    """A method with a config and changes of its keys. all_labels: the list of all labels, where that is not the split's labeled.txt."""

    method: str
    dataset: str
    split: str
    config: str
    settings: tuple[str, ...] = ()
    all_labels: str = ""

    def run(self) -> tuple[Method, Config]:
        """The method as the run follows it, and the run's settings. Raises UserError."""
        return _run(self)

    def header(self) -> Mapping[str, str]:
        """What the run's log says of its settings, as the report reads it."""
        return _header(self)

    def command(self, splits: list[str]) -> str:
        """The line that trains it, on several splits one after the other."""
        header = self.header()
        usual = f"configs/{self.method}/{self.dataset}.yaml"  # as scripts/train.sh has it
        usual = usual if (ROOT / usual).is_file() else f"configs/{self.dataset}.yaml"
        changed = [setting.replace("=", "_") for setting in self.settings if not setting.startswith("backbone=")]
        words = [f"dataset={self.dataset}"]
        words += [f"method={self.method}"] if self.method != DEFAULT else []
        words += [f"config={self.config}"] if self.config != usual else []
        words += [f'split="{" ".join(splits)}"' if len(splits) > 1 else f"split={splits[0]}"]
        words += ["exp=" + "_".join([header["backbone"], *changed])] if changed else []  # a folder apart from the method's own runs
        words += [f"sh scripts/train.sh {header['ngpus']} {PORT}"]
        words += [f"--labeled-id-path {self.all_labels}"] if self.all_labels else []
        return " ".join(words + [f"--set {setting}" for setting in self.settings])


@cache
def _run(recipe: Recipe) -> tuple[Method, Config]:
    method = own_method(recipe.method)
    assert method is not None
    cfg = load_config(str(ROOT / recipe.config), list(recipe.settings), method.config)
    method = method.of(cfg)
    return method, method.settled(cfg, task_of(recipe.dataset))


@cache
def _header(recipe: Recipe) -> Mapping[str, str]:
    method, cfg = recipe.run()
    shown = asdict(cfg) | {"ngpus": cfg.shards, "batch_size": method.reads.images(cfg.batch_size)["x"]}
    header: dict[str, str] = {}
    for _, line in read_lines(f"[2024-01-01 00:00:00,000][    INFO] {pprint.pformat(shown)}"):
        header |= line.header
    return {key: value for key, value in header.items() if key not in _NOT_COMPARED}


def differences(recipe: Recipe, settings: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """The settings of a log that are not the recipe's: {key: (found, expected)}. A log of another program need not have all keys, but those
    that the recipe changes; and a log whose header is lost has none."""
    header = recipe.header()
    changed = {setting.partition("=")[0] for setting in recipe.settings} if settings else {"config"}
    lacking = {key: (ABSENT, header.get(key, recipe.config)) for key in sorted(changed - settings.keys())}
    both = sorted(header.keys() & settings.keys())
    return lacking | {key: (settings[key], header[key]) for key in both if not same(settings[key], header[key])}


def same(a: str, b: str) -> bool:
    """Whether two values of a header are equal; 1e-05 and 0.00001 are."""
    try:
        return float(a) == float(b)
    except ValueError:
        return a == b

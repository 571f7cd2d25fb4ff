"""Copying a run's files to a disk of the node: everything that the run reads is there."""

from pathlib import Path

import pytest
import yaml

from dataset.stage import main
from tests.pairs import write_pair

CONFIG = {"dataset": "own", "task": "change", "data_root": "data", "backbone": "dinov2_tiny", "crop_size": 28}
CONFIG |= {"batch_size": 1, "epochs": 1, "lr": 1e-4, "val_id_path": "splits/own/val.txt"}
LISTS = ("labeled", "unlabeled", "val", "test")


@pytest.fixture(autouse=True)
def _own_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One pair for each list, and a config that selects on the validation list."""
    monkeypatch.chdir(tmp_path)
    Path("splits/own").mkdir(parents=True)
    for seed, name in enumerate(LISTS):
        write_pair(Path("data"), f"{name}.png", 40, 40, seed)
        Path(f"splits/own/{name}.txt").write_text(f"{name}.png\n")
    Path("c.yaml").write_text(yaml.safe_dump(CONFIG))


def staged(*words: str) -> set[str]:
    main(["disk", "--config", "c.yaml", "--labeled-id-path", "splits/own/labeled.txt", "--save-path", "out", *words])
    return {path.relative_to("disk").as_posix() for path in Path("disk").rglob("*.png")}


def files(*folders: str, names: tuple[str, ...]) -> set[str]:
    return {f"{folder}/{name}.png" for folder in folders for name in names}


def test_the_pairs_of_the_final_test_are_copied_by_the_rule_of_the_run() -> None:
    assert staged() == files("A", "B", "label", names=("labeled", "val", "test"))


def test_the_settings_are_read_as_they_were_meant(capsys: pytest.CaptureFixture[str]) -> None:
    main(["disk 😀: #1", "--config", "c.yaml", "--labeled-id-path", "splits/own/labeled.txt", "--save-path", "out"])
    key, _, value = capsys.readouterr().out.strip().partition("=")
    assert (key, yaml.safe_load(value)) == ("data_root", str(Path("disk 😀: #1").resolve()))


def test_without_a_final_test_its_pairs_are_left() -> None:
    assert staged("--set", "val_id_path=null") == files("A", "B", "label", names=("labeled", "test"))


def test_an_unlabelled_list_that_the_config_names_is_copied() -> None:
    expected = files("A", "B", "label", names=("labeled", "val", "test")) | files("A", "B", names=("unlabeled",))
    assert staged("--set", "unlabeled_id_path=splits/own/unlabeled.txt") == expected


def test_keys_of_a_method_are_left_to_it() -> None:
    """In the file and with --set: the method reads them, and refuses those that nobody knows."""
    Path("c.yaml").write_text(yaml.safe_dump(CONFIG | {"conf_mode": "pixelavg"}))
    assert staged("--set", "guidance_weight=0", "--set", "val_id_path=null") == files("A", "B", "label", names=("labeled", "test"))

"""What training sends between processes: gradients once per optimiser step in few pieces, one sum and one list per evaluation."""

import json

import pytest

from tests.conftest import Tiny, command
from util.config import load_config
from util.error import UserError


@pytest.fixture(scope="module")
def seen(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Operations of the transport on 2 processes for 4 shards (tests/traffic.py)."""
    out = tmp_path_factory.mktemp("traffic")
    done = command("-m", "tests.traffic", tiny.root, out, processes=2, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((out / "seen.json").read_text())


@pytest.mark.parametrize("compression", ["none", "bf16"])
def test_a_step_sends_the_gradients_once_and_nothing_for_the_teacher(seen: dict, compression: str) -> None:
    sent = seen[f"update {compression}"]
    assert list(sent) == ["gloo:all_reduce"], "no broadcast, no gathering"
    assert 2 <= sent["gloo:all_reduce"] <= 4, "1 to 3 buckets for both shards together, and whether the step counts"


@pytest.mark.parametrize("compression", ["none", "bf16"])
def test_an_evaluation_is_one_sum_and_the_counts_of_each_image(seen: dict, compression: str) -> None:
    assert seen[f"evaluate {compression}"] == {"gloo:all_reduce": 1, "gloo:all_gather": 2}, "how long the lists are, and the lists"


def test_bf16_rounds_the_gradients_on_their_way_and_only_then(seen: dict) -> None:
    assert seen["rounded bf16"]
    assert not seen["rounded none"]


def test_an_unknown_compression_is_named(tiny: Tiny) -> None:
    with pytest.raises(UserError, match="grad_compression: found 'fp8', expected one of none, bf16"):
        load_config(str(tiny.config), ["grad_compression=fp8"])

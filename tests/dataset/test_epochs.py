"""Order of an epoch, shard positions, padding and step counts against METHOD.md 2.1, PyTorch's sampler and the published logs."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DistributedSampler

from dataset.batch import Reads
from dataset.sampler import ShardSampler, Stream, epoch_order, labeled_length
from dataset.spec import get_spec

# images of an epoch, shards, mini-batch of a shard, steps, steps between the published log's lines
PUBLISHED = [
    (2789, 4, 2, 349, 43),  # cityscapes 1/16, UniMatch V2
    (3000, 4, 4, 187, 23),  # cityscapes 1/16, labelled only: 186 images repeated to 3000, mini-batch doubled
    (10490, 4, 4, 655, 81),  # pascal 92
    (10399, 4, 4, 650, 81),  # pascal 183
    (10216, 4, 4, 638, 79),  # pascal 366
    (3000, 4, 8, 93, 11),  # pascal 92, labelled only
    (15158, 4, 2, 1895, 236),  # ade20k 1/4
    (118287, 4, 4, 7393, 924),  # ade20k with all of coco unlabelled
    (6764, 1, 8, 845, 105),  # levir 5 %
    (3000, 1, 16, 187, 23),  # levir 5 %, labelled only
]


@pytest.mark.parametrize(("images", "shards", "batch", "steps", "interval"), PUBLISHED)
def test_step_counts_of_published_runs(images: int, shards: int, batch: int, steps: int, interval: int) -> None:
    assert Stream(images, images, batch).steps(shards) == steps == math.floor(math.ceil(images / shards) / batch)
    assert steps // 8 == interval


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 60), shards=st.integers(1, 9), epoch=st.integers(0, 1000))
def test_order_is_that_of_the_reference(length: int, shards: int, epoch: int) -> None:
    """Also for lists shorter than the number of shards, whose padding goes round more than once."""
    order = epoch_order(length, epoch, shards)
    assert len(order) % shards == 0
    for rank in range(shards):
        dataset: Any = range(length)
        sampler: DistributedSampler = DistributedSampler(dataset, num_replicas=shards, rank=rank, shuffle=True, seed=0)
        sampler.set_epoch(epoch)
        assert order[rank::shards].tolist() == list(sampler)


def literal(listed: int, images: int, epoch: int, shards: int, batch: int, shard: int, step: int) -> list[int]:
    """Indices into the list of one mini-batch, written from METHOD.md 2.1."""
    ids = [i % listed for i in range(images)]  # the list repeated in order
    order = torch.randperm(images, generator=torch.Generator().manual_seed(epoch)).tolist()
    while len(order) % shards:
        order.append(order[len(order) - images])
    own = order[shard::shards]
    return [ids[i] for i in own[step * batch : (step + 1) * batch]]


@settings(max_examples=40, deadline=None)
@given(
    labeled=st.integers(1, 40),
    unlabeled=st.integers(8, 60),
    shards=st.sampled_from([1, 2, 4]),
    batch=st.integers(1, 2),
    epoch=st.integers(0, 9),
)
def test_mini_batches_of_every_process_count(labeled: int, unlabeled: int, shards: int, batch: int, epoch: int) -> None:
    length = labeled_length(labeled, unlabeled, get_spec("pascal"), Reads())
    streams = {"x": Stream(labeled, length, batch), "u": Stream(unlabeled, unlabeled, batch)}
    steps = min(math.ceil(n / shards) // batch for n in (length, unlabeled))
    for processes in (p for p in (1, 2, 4) if shards % p == 0):
        share = shards // processes
        for rank in range(processes):
            sampler = ShardSampler(streams, shards, range(rank * share, (rank + 1) * share))
            sampler.set_epoch(epoch)
            found = [[[key[stream][3] for key in keys] for stream in (0, 1)] for keys in sampler]
            expected = [
                [literal(*streams[name][:2], epoch, shards, batch, shard, step) for name in ("x", "u")]
                for step in range(steps)
                for shard in sampler.own
            ]
            assert found == expected
            assert len(sampler) == len(found)


def test_lists_of_equal_length_share_their_order() -> None:
    sampler = ShardSampler({"x": Stream(5, 12, 3), "u": Stream(12, 12, 3)}, 2, range(2))
    for keys in sampler:
        for (_, _, place_x, x), (_, _, place_u, u) in keys:
            assert place_x == place_u
            assert x == u % 5


SUPERVISED = Reads(unlabeled=0)


@pytest.mark.parametrize(
    ("name", "reads", "labeled", "unlabeled", "images"),
    [
        ("pascal", Reads(), 92, 10490, 10490),  # repeated
        ("pascal", Reads(), 1464, 9118, 9118),
        ("ade20k", Reads(), 20210, 15158, 20210),  # a longer segmentation list is left as it is
        ("ade20k", Reads(cut_labeled=True), 20210, 15158, 15158),  # but where the method cuts it
        ("levir", SUPERVISED, 7120, 0, 3000),  # change detection cuts it
        ("levir", Reads(), 356, 6764, 6764),
        ("pascal", Reads(), 5, 5, 5),
        ("pascal", SUPERVISED, 92, 0, 3000),  # without unlabelled images, to the data set's number
        ("pascal", Reads(unlabeled=0, repeat_labeled=False), 92, 0, 92),  # not where the method does not repeat it
        ("own pairs", SUPERVISED, 7, 0, 7),  # no number of images is asked for
    ],
)
def test_labelled_lists_are_repeated_and_cut(name: str, reads: Reads, labeled: int, unlabeled: int, images: int) -> None:
    spec = replace(get_spec("levir"), supervised_length=0) if name == "own pairs" else get_spec(name)
    assert labeled_length(labeled, unlabeled, spec, reads) == images


def test_supervised_length_of_a_config_repeats_what_the_method_does_not() -> None:
    spec = replace(get_spec("pascal"), supervised_length=200)
    assert labeled_length(92, 0, spec, Reads(unlabeled=0, repeat_labeled=False), repeats=True) == 200


def test_the_shorter_list_ends_the_epoch() -> None:
    assert ShardSampler({"x": Stream(20210, 20210, 2), "u": Stream(3000, 3000, 2)}, 4, range(1)).steps == 375
    assert len(ShardSampler({"x": Stream(20, 20, 2), "u": Stream(9, 9, 2)}, 2, range(2))) == 2 * 2


def test_a_start_inside_an_epoch_skips_what_was_done() -> None:
    sampler = ShardSampler({"x": Stream(7, 40, 2), "u": Stream(40, 40, 2)}, 4, range(2, 4))
    sampler.set_epoch(3)
    whole = list(sampler)
    sampler.set_epoch(3, start=2)
    assert list(sampler) == whole[2 * 2 :]

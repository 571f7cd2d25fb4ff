"""Shards: which images make which mini-batch, whatever the number of processes and wherever an epoch is resumed."""

import torch

from dataset.sampler import ShardSampler, epoch_order, epoch_steps

STREAMS = {"x": (5, 23), "u": (23, 23)}  # 5 labelled images repeated to the 23 unlabelled ones


def batches(shards: int, own: range, epoch: int = 0, start: int = 0, batch: int = 2) -> list[list[tuple]]:
    sampler = ShardSampler(STREAMS, batch, shards, own)
    sampler.set_epoch(epoch, start)
    out = list(sampler)
    assert len(out) == len(sampler)
    return out


def test_positions_follow_the_formula_of_the_spec() -> None:
    order = torch.randperm(23, generator=torch.Generator().manual_seed(7)).tolist()
    order += order[:1]  # padded from its own start to 24, a multiple of 4
    for shard in range(4):
        mine = batches(4, range(shard, shard + 1), epoch=7)
        assert len(mine) == 3
        positions = [shard + 4 * k for k in range(6)]
        assert [[u for _, u in items] for items in mine] == [
            [("u", 7, p, order[p]) for p in positions[2 * s : 2 * s + 2]] for s in range(3)
        ]
        assert [x for items in mine for x, _ in items] == [("x", 7, p, order[p] % 5) for p in positions]


def test_any_number_of_processes_runs_the_same_mini_batches() -> None:
    one = batches(4, range(4))
    two = [batches(4, range(0, 2)), batches(4, range(2, 4))]
    four = [batches(4, range(r, r + 1)) for r in range(4)]
    assert one == [mini for step in range(3) for rank in two for mini in rank[2 * step : 2 * step + 2]]
    assert one == [rank[step] for step in range(3) for rank in four]


def test_an_epoch_resumed_in_its_middle_goes_on_with_the_next_mini_batch() -> None:
    assert batches(4, range(4), start=2) == batches(4, range(4))[8:]


def test_the_order_changes_with_the_epoch_and_nothing_else() -> None:
    assert batches(1, range(1), epoch=0) != batches(1, range(1), epoch=1)
    assert batches(1, range(1), epoch=1) == batches(1, range(1), epoch=1)


def test_a_list_shorter_than_the_shards_is_repeated() -> None:
    order = epoch_order(3, 0, 8)
    assert len(order) == 8
    assert order.tolist() == (order[:3].tolist() * 3)[:8]


def test_steps_of_the_published_recipes() -> None:
    assert epoch_steps([2789, 2789], 4, 2) == 349  # cityscapes 1/16
    assert epoch_steps([10490, 10490], 4, 4) == 655  # pascal, 92 labels
    assert epoch_steps([3000], 4, 8) == 93  # pascal, labelled only: twice the mini-batch

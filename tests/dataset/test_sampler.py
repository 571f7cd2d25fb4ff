"""Shards: which images make which mini-batch, whatever the number of processes and wherever an epoch is resumed."""

import torch

from dataset.sampler import ShardSampler, Stream, epoch_order

STREAMS = {"x": Stream(5, 23, 2), "u": Stream(23, 23, 2)}  # 5 labelled images repeated to the 23 unlabelled ones


def batches(shards: int, own: range, epoch: int = 0, start: int = 0, streams: dict[str, Stream] = STREAMS) -> list[list[tuple]]:
    sampler = ShardSampler(streams, shards, own)
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


def test_more_unlabelled_than_labelled_images_in_a_mini_batch() -> None:
    """Each list has its own positions, as if the other one were not there."""
    streams = {"x": Stream(5, 23, 1), "u": Stream(23, 23, 3)}
    mine = batches(2, range(2), streams=streams)
    assert len(mine) == 2 * 4, "the unlabelled list ends the epoch: 12 images of a shard, 3 at a time"
    assert [[[key[0] for key in item] for item in items] for items in mine] == [[["x", "u"], ["u"], ["u"]]] * 8
    for name, (listed, length, batch) in streams.items():
        order = epoch_order(length, 0, 2).tolist()
        for step, shard in ((step, shard) for step in range(4) for shard in range(2)):
            found = [key for item in mine[2 * step + shard] for key in item if key[0] == name]
            positions = [shard + 2 * (step * batch + k) for k in range(batch)]
            assert found == [(name, 0, p, order[p] % listed) for p in positions]
    assert [batches(2, range(r, r + 1), start=1, streams=streams) for r in range(2)] == [mine[2::2], mine[3::2]]

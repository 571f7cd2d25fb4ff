"""Time of a recipe on 1 to 64 cards, from its operations and the cards' data sheets, and what limits it first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from scripts.benchmark.cards import Card
from scripts.benchmark.footprint import Footprint
from scripts.benchmark.recipe import Recipe
from scripts.benchmark.work import Part

EFFICIENCY = 0.7  # an assumption, no measurement: the share of a card's peak rate and bandwidth that a run reaches
LAUNCH = 6e-6  # an assumption: seconds that PyTorch takes on the CPU to start one operation
UPDATE = 48  # bytes that AdamW in one kernel (28) and EMA (20) move for a parameter
LINK_SHARE = 0.7  # share of a link's nominal rate that an all-reduce reaches
BUCKET = 25 * 2**20  # bytes of DDP's last bucket of gradients, which no backward pass is left to hide
MANY = (1, 2, 4, 8, 16, 32, 64)
TALK, FEW_STEPS, CORES = 0.1, 50, 8  # limits: share of a step spent in gradients, steps of an epoch, CPU cores per card


@dataclass(frozen=True)
class Cluster:
    """Cards of one kind. efficiency: share of peak rate and bandwidth; node: cards in a node; network: GB/s in one direction out of a node;
    cores: CPU cores beside each card."""

    card: Card
    efficiency: float = EFFICIENCY
    node: int = 8
    network: float = 25.0
    cores: int = CORES


@dataclass(frozen=True)
class Row:
    """A recipe on `gpus` cards. shards: what the recipe becomes; batch: labelled images of an optimiser step, over all shards;
    steps: of an epoch; step_seconds and exposed (gradients' time that no backward pass hides): of one optimiser step; hours: of the run,
    evaluations included (evaluation_hours of them); loader_cores: CPU cores that each card's loader needs; files_per_second: of all."""

    gpus: int
    shards: int
    batch: int
    steps: int
    step_seconds: float
    exposed: float
    hours: float
    evaluation_hours: float
    loader_cores: float
    files_per_second: float

    @property
    def talk(self) -> float:
        """Share of a step that waits for gradients."""
        return self.exposed / self.step_seconds


@dataclass(frozen=True)
class Cost:
    """Seconds on one card. floor: products of a shard's step at the peak rate, which no implementation goes below; shard: the
    estimate for it, of which `backward` hides the gradients' way; update: optimiser and EMA; evaluation: all of the run.
    sent: bytes of gradients."""

    floor: float
    shard: float
    backward: float
    update: float
    evaluation: float
    sent: int


def product_seconds(work: Mapping[Part, int], card: Card, precision: str) -> float:
    """Seconds for the operations at the card's peak rates."""
    rates = card.rates(precision)
    return sum(amount / (1e12 * rates[part.kind]) for part, amount in work.items())


def cost(recipe: Recipe, cluster: Cluster, precision: str, used: Footprint) -> Cost:
    """The estimate: products at the peak rate, then what lies between them at the peak bandwidth, both at the cluster's efficiency; or
    the time to start all of these operations, where a small model waits for that. The forward passes of an evaluation are taken to
    come as near to their products as a step does.
    """
    card = cluster.card
    floor = product_seconds(recipe.work, card, precision)
    shard = max((floor + used.moved / (1e9 * card.bandwidth)) / cluster.efficiency, used.operations * LAUNCH)
    backward = product_seconds({p: n for p, n in recipe.work.items() if p.phase != "forward"}, card, precision)
    update = used.gradients / 4 * UPDATE / (1e9 * card.bandwidth) / cluster.efficiency
    evaluation = recipe.evaluations * product_seconds(recipe.evaluation_work, card, precision)
    sent = used.gradients // (2 if recipe.cfg.grad_compression == "bf16" else 1)
    return Cost(floor, shard, backward * shard / floor, update, evaluation * shard / floor, sent)


def all_reduce_seconds(size: int, gpus: int, cluster: Cluster) -> float:
    """Seconds to average `size` bytes over the cards: a ring sends 2 (W - 1) / W times as much through its slowest link."""
    link = cluster.card.link if gpus <= cluster.node else min(cluster.card.link, cluster.network)
    return 2 * (gpus - 1) / gpus * size / (1e9 * link * LINK_SHARE)


def scale(recipe: Recipe, cluster: Cluster, cost: Cost, gpus: int) -> Row | None:
    """The recipe on so many cards; None where its shards cannot be spread over them, or make no full mini-batch.

    Gradients travel during the backward pass of the last shard.
    """
    shards = max(recipe.shards, gpus)
    steps = recipe.steps(shards)
    if shards % gpus or not steps:
        return None
    own = shards // gpus
    send = all_reduce_seconds(cost.sent, gpus, cluster)
    exposed = max(send - cost.backward, send * min(1.0, BUCKET / cost.sent))
    step = own * cost.shard + cost.update + exposed
    evaluation = cost.evaluation / gpus / 3600
    return Row(
        gpus=gpus,
        shards=shards,
        batch=shards * recipe.batch,
        steps=steps,
        step_seconds=step,
        exposed=exposed,
        hours=steps * recipe.cfg.epochs * step / 3600 + evaluation,
        evaluation_hours=evaluation,
        loader_cores=own * recipe.batch * recipe.sample_seconds / step,
        files_per_second=shards * recipe.files / step,
    )


def limits(row: Row, recipe: Recipe, cluster: Cluster) -> dict[str, str]:
    """What stands against so many cards: {limit: why}."""
    found = {}
    if row.shards > recipe.shards:
        found["shards"] = f"{row.shards} shards instead of the recipe's {recipe.shards}: the learning rate was tuned for {recipe.shards}"
    if row.steps < FEW_STEPS and row.shards > recipe.shards:
        found["steps"] = f"{row.steps} steps an epoch"
    if row.talk > TALK:
        found["network"] = f"{row.talk:.0%} of a step waits for gradients"
    if row.loader_cores > cluster.cores:
        found["loader"] = f"{row.loader_cores:.1f} CPU cores a card for the loader, {cluster.cores} are there"
    return found


def verdict(rows: Sequence[Row], recipe: Recipe, cluster: Cluster) -> str:
    """One line: which limit comes first, and from how many cards on the others do."""
    first: dict[str, tuple[int, str]] = {}
    for row in rows:
        for name, why in limits(row, recipe, cluster).items():
            first.setdefault(name, (row.gpus, why))
    if not first:
        return f"nothing breaks up to {rows[-1].gpus} GPUs"
    return "; ".join(f"from {gpus} GPU{'s' * (gpus > 1)} on: {why}" for gpus, why in sorted(first.values()))


def table(recipe: Recipe, cluster: Cluster, cost: Cost, counts: Iterable[int] = MANY) -> list[Row]:
    """A row for each number of cards that can run the recipe."""
    return [row for gpus in counts if (row := scale(recipe, cluster, cost, gpus)) is not None]

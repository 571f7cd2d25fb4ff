"""From a config to the data of a run: sources, shards and loaders."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace

from torch.utils.data import DataLoader

from dataset.batch import Reads
from dataset.custom import spec_of, unlabeled_places
from dataset.demo.sets import draw_at_first_use
from dataset.list_files import check_files, check_labels
from dataset.lists import ImageList, missing_validation
from dataset.sampler import ShardSampler, make_streams, run_shards
from dataset.semi import TrainSet, collate
from dataset.source import Source, Sources
from dataset.spec import SPECS, DatasetSpec
from util.config import Config
from util.dist import World, cpu_count
from util.error import UserError
from util.progress import count
from util.signals import start_worker

SHARED_MEMORY = "/dev/shm"  # where loader processes leave their mini-batches
WHOLE = 64 * 2**20  # bytes of a whole image and its mask: 16 megapixels
PREFETCH = 2  # mini-batches that each loader process has ready
PART = 2.0  # pixels of an image's part in a mini-batch, in crops: on average 1.3 to 2.0 for large images, padding included

LISTS = {"x": "labelled", "u": "unlabelled"}


@dataclass(frozen=True)
class Data:
    """What a run trains and evaluates on. `sources`: the labelled ("x") and the unlabelled ("u") lists; `lists`: their SHA-256."""

    spec: DatasetSpec
    sampler: ShardSampler
    loader: DataLoader
    sources: dict[str, Sources]
    validation: Source
    workers: int
    lists: dict[str, str]

    @property
    def labeled(self) -> Source:
        """The labelled list and its data root."""
        return self.sources["x"].parts[0]

    def shared_images(self, test: Source | None) -> list[str]:
        """Lines for the log where images serve two purposes. test: the list of the one score at the end."""
        notes = []
        if self.lists.get("u") == self.lists["x"]:
            notes.append("the labelled and the unlabelled list are the same: there is nothing more to learn from than the labels")
        scored = {"validation": self.validation.ids} | ({"test": test.ids} if test else {})
        images = {name: {ids[i].image for i in range(len(ids))} for name, ids in scored.items()}
        for stream, source in self.sources.items():
            parts = [part.ids for part in source.parts if part.root == self.validation.root]
            trained = {ids[i].image for ids in parts for i in range(len(ids))}
            for name, own in images.items():
                if both := len(own & trained):
                    effect = "the score is of images that it was trained with"
                    notes.append(f"{name} images that are on the {LISTS[stream]} list too: {both} of {len(own)}; {effect}")
        return notes

    def short_epoch(self) -> list[str]:
        """Lines for the log where nothing says how long a supervised epoch is to be."""
        if "u" in self.sampler.streams or self.spec.supervised_length:
            return []
        return [
            f"supervised_length: found none, nor an unlabelled list, so that an epoch is one pass over the labelled list "
            f"({count(self.sampler.steps, 'step')}); to compare with a semi-supervised run, give its --unlabeled-id-path too"
        ]


def supervised(cfg: Config) -> Config:
    """The config of a supervised run: no unlabelled lists; of own data, an epoch of as many images as these have.

    Without that, a sweep over methods would compare few steps with many. `supervised_length` gives another number; built-in data sets
    have their published one.
    """
    lists = unlabeled_places(cfg) if cfg.unlabeled_id_path and not spec_of(cfg).supervised_length else []
    length = sum(len(ImageList(path, spec_of(cfg).task, masks=False)) for path, _ in lists if os.path.exists(path))
    return replace(cfg, unlabeled_id_path=None, supervised_length=length or cfg.supervised_length)


def shard_count(cfg: Config, world: World, log: logging.Logger) -> int:
    """Number of shards of a run (`run_shards`). Raises UserError where they cannot be spread over the processes."""
    shards = run_shards(cfg, world.size)
    if cfg.shards and shards > cfg.shards:
        log.warning(
            f"{shards} processes for a recipe of {cfg.shards} shards: using {shards} shards; the learning rate was tuned for {cfg.shards}"
        )
    if shards % world.size:
        divisors = ", ".join(str(n) for n in range(1, shards + 1) if shards % n == 0)
        raise UserError(f"shards: {shards} cannot be spread over {world.size} processes; start {divisors} of them")
    return shards


def validation_source(cfg: Config, spec: DatasetSpec) -> Source:
    """The validation list and its root. Raises UserError."""
    draw_at_first_use(spec.name, cfg.data_root)
    path = cfg.val_id_path or spec.val_list
    if not os.path.exists(path):
        raise UserError(missing_validation(path))
    return Source(spec, cfg.data_root, ImageList(path, spec.task, masks=True))


def test_source(cfg: Config, spec: DatasetSpec, validation: Source, log: logging.Logger) -> Source | None:
    """The list for the one score of best.pth at the end: `test_id_path`; None where the validation list is the same.

    By default the data set's test list, or where it has none the list that the published runs are scored on, which is also the one that
    selects them: a run that selects on another list (`val_id_path`) is comparable with them by this score alone. None where the list or
    its images do not exist.
    """
    path = cfg.test_id_path
    if path is None:
        path = next((path for path in (spec.test_list, spec.val_list) if os.path.isfile(path)), None)
    if path is None:
        return None
    source = Source(spec, cfg.data_root, ImageList(path, spec.task, masks=True))
    if source.ids.sha256 == validation.ids.sha256:
        return None
    try:
        source.images(source.ids[0])  # found now rather than after the training
    except UserError as error:
        if cfg.test_id_path is not None:
            raise
        log.warning(f"no test score at the end: {error}; name another list with test_id_path")
        return None
    return source


def loader_workers(cfg: Config, world: World) -> int:
    """Loader processes of this training process: what the config says, else the CPUs left beside it, at most 8."""
    if isinstance(cfg.num_workers, int):
        return cfg.num_workers
    return max(0, min(8, cpu_count() // world.local_size - 1))


def views_on_device(cfg: Config, world: World) -> bool:
    """Whether the training device makes crops and strong views, and not the loader's processes: `views`, by default where it is a GPU."""
    return cfg.views == "device" or (cfg.views == "auto" and world.device.type == "cuda")


def with_room(workers: int, size: int, folder: str = SHARED_MEMORY) -> int:
    """As many of `workers` loader processes as the shared memory has room for, where each leaves PREFETCH times `size` bytes."""
    return min(workers, _free(folder) // (PREFETCH * size)) if os.path.isdir(folder) else workers


def _free(folder: str) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def check_shared_memory(
    cfg: Config, reads: Reads, workers: int, processes: int, folder: str = SHARED_MEMORY, on_device: bool = False
) -> None:
    """Raises UserError where the workers' mini-batches would not fit into the shared memory: it kills them with a bus error.

    processes: training processes on this machine; on_device: see TrainSet. Systems without the folder have no such limit.
    """
    if workers == 0 or not os.path.isdir(folder):
        return
    channels = 3 * spec_of(cfg).dates
    # bytes for a pixel of the crop: labelled image and mask; of each draw, weak and strong images and ignore map
    image = PART * channels if on_device else channels
    pixel = {"x": image + 1, "u": (1 + reads.second_draw) * ((1 if on_device else 1 + reads.strong_views) * image + 1)}
    batch = sum(images * pixel[name] for name, images in reads.images(cfg.batch_size).items())
    need = int(processes * workers * PREFETCH * batch * cfg.crop_size**2)
    free = _free(folder)
    if free < need:
        raise UserError(
            f"{folder}: found {free / 2**20:.0f} MiB free, expected {need / 2**20:.0f} MiB for the mini-batches of {processes} x {workers} "
            f"loader processes; start the container with docker run --shm-size={max(1, -(-2 * need // 2**30))}g, or set num_workers=0"
        )


def training_sources(cfg: Config, spec: DatasetSpec, semi: bool) -> dict[str, Sources]:
    """The labelled list (x) and, semi-supervised, the unlabelled ones (u), each with its root."""
    draw_at_first_use(spec.name, cfg.data_root)
    sources = {"x": Sources([Source(spec, cfg.data_root, ImageList(cfg.labeled_id_path, spec.task, masks=True))])}
    if semi:
        parts = [Source(spec, root, ImageList(path, spec.task, masks=False)) for path, root in unlabeled_places(cfg)]
        sources["u"] = Sources(parts)
    return sources


def training_loader(
    cfg: Config, spec: DatasetSpec, sources: dict[str, Sources], reads: Reads, world: World, log: logging.Logger
) -> tuple[ShardSampler, DataLoader]:
    """The mini-batches of this process's shards. Raises UserError where there are none, or no room for them."""
    listed = {name: len(source) for name, source in sources.items()}
    streams = make_streams(listed, cfg.batch_size, spec, reads, cfg.supervised_length is not None)
    shards = shard_count(cfg, world, log)
    sampler = ShardSampler(streams, shards, world.own_shards(shards))
    if sampler.steps == 0:
        name = min(sources, key=lambda name: streams[name].steps(shards))
        lists = " ".join(part.ids.path for part in sources[name].parts)
        raise UserError(
            f"batch_size: {streams[name].length} images an epoch of the {LISTS[name]} list ({lists}) make no full mini-batch of "
            f"{streams[name].batch} on each of {shards} shard(s); lower batch_size or shards, or give a longer list"
        )
    workers = loader_workers(cfg, world)
    on_device = views_on_device(cfg, world)
    check_shared_memory(cfg, reads, workers, world.local_size, on_device=on_device)
    loader = DataLoader(
        TrainSet(sources, cfg.crop_size, cfg.seed, reads, cfg.bad_images == "skip", on_device),
        batch_sampler=sampler,
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        collate_fn=collate,
        worker_init_fn=start_worker,
        persistent_workers=workers > 0,
        pin_memory=world.device.type == "cuda",
    )
    return sampler, loader


def open_data(cfg: Config, world: World, reads: Reads, log: logging.Logger) -> Data:
    """Reads the lists and sets up the loader. Raises UserError for a list that cannot be used, and where validation images are missing."""
    spec = spec_of(cfg)
    sources = training_sources(cfg, spec, reads.unlabeled > 0)
    sampler, loader = training_loader(cfg, spec, sources, reads, world, log)
    validation = validation_source(cfg, spec)
    if world.local_rank == 0:  # once on each machine: their disks may differ
        check_files(validation)
        if spec.name not in SPECS:
            check_labels(sources["x"].parts[0])
    lists = {name: source.sha256 for name, source in sources.items()} | {"val": validation.ids.sha256}
    return Data(spec, sampler, loader, sources, validation, loader.num_workers, lists)

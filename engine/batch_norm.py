"""Batch statistics: one rule for every model with BatchNorm.

sync: a training step normalises with the statistics of all shards' images, as the published recipes do on their GPUs. This needs a
process for each shard. per_shard: each shard normalises with its own; the processes average what they have run up. frozen: the
statistics stay as the run starts with them, which is exact on any number of processes.
"""

from __future__ import annotations

import torch
import torch.distributed.nn.functional as differentiable
from torch import Tensor, nn

from model.backbone.timm_model import load_timm
from model.encoder import batch_norms
from model.segmenter import Segmenter
from util.dist import World
from util.error import UserError


class SyncBatchNorm(nn.BatchNorm2d):
    """BatchNorm over the mini-batches of all processes on a CPU, for which PyTorch's own has no kernel. (B, C, H, W) -> the same."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        sums = differentiable.all_reduce(torch.cat((wide.sum((0, 2, 3)), wide.new_full((1,), wide.numel() / self.num_features))))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = wide - mean[:, None, None]
        var = differentiable.all_reduce(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_((var * count / (count - 1)).to(self.running_var.dtype), self.momentum)
        scale = self.weight * (var + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def prepare_batch_norm_(model: Segmenter, mode: str, shards: int, world: World) -> list[Tensor]:
    """Makes a model keep the rule `mode` in training. Returns the buffers that a training step changes.

    Raises UserError where the rule cannot be kept with this number of processes, or says something of a model without such layers.
    """
    layers = list(batch_norms(model).values())
    if not layers:
        if mode != "sync":
            raise UserError(f"batch_norm: found {mode}, but this model has no batch normalisation; remove the key")
        return []
    if mode == "frozen":
        model.frozen_statistics = True
        return []
    if mode == "sync" and shards != world.size:
        raise UserError(
            f"batch_norm: the statistics of {shards} shards need {shards} processes, found {world.size}; start {shards}, or set "
            f"shards={world.size} and the learning rate of that recipe, or batch_norm=frozen or per_shard (docs: DEVIATIONS.md)"
        )
    if mode == "sync" and world.size > 1:
        strange = next((layer for layer in layers if type(layer) is not nn.BatchNorm2d), None)
        of_timm = type(strange).__module__.startswith("timm.")  # a layer that applies an activation too
        if strange is not None and not (of_timm and world.device.type == "cuda"):
            where = "processes on CPUs" if of_timm else "processes"
            raise UserError(
                f"batch_norm: {type(strange).__name__} cannot share statistics between {where}; set batch_norm=frozen or per_shard"
            )
        if of_timm:
            load_timm().layers.convert_sync_batchnorm(model)
        elif world.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(model)
        else:
            for layer in layers:
                layer.__class__ = SyncBatchNorm  # the layer with its tensors stays, only what it computes changes
    return [buffer for layer in batch_norms(model).values() for buffer in layer.buffers()]


def frozen_without_statistics(model: Segmenter) -> list[str]:
    """The line that says which frozen layers have no statistics from a file, as those of a new decoder; none where all have."""
    layers = {name: dict(layer.named_buffers()) for name, layer in batch_norms(model).items()} if model.frozen_statistics else {}
    bare = [name for name, own in layers.items() if own and not own["running_mean"].any() and (own["running_var"] == 1).all()]
    if not bare:
        return []
    found = f"{len(bare)} of {len(layers)} BatchNorm layers have no statistics from a file ({bare[0]}{', ...' * (len(bare) > 1)})"
    return [f"batch_norm: frozen: {found}; they scale and shift, and do not normalise. `init` takes those of another run"]


@torch.no_grad()
def average_buffers_(buffers: list[Tensor], world: World) -> None:
    """Averages running statistics over the processes, so that all evaluate and save the same model; counts are equal already."""
    floating = [buffer for buffer in buffers if buffer.is_floating_point()]
    if world.size > 1 and floating:
        flat = world.sum_(torch.cat([buffer.flatten() for buffer in floating])) / world.size
        for buffer, value in zip(floating, flat.split([buffer.numel() for buffer in floating]), strict=True):
            buffer.copy_(value.view_as(buffer))

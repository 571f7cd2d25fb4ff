"""AllSpark's model: MiT, attention of labelled images' channels to those of unlabelled ones, SegFormer's head (METHOD.md 1.9).

Parameter names are those of AllSpark's checkpoints.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.backbone.mit import EPS, MiT
from model.segmenter import Maps, Segmenter
from model.spec import ENCODERS, EncoderSpec
from util.error import UserError

HEADS = 2  # of the attention of unlabelled images; all projections have as many times the channels
DROP = 0.1  # probability of dropout, in attention and head
STRIDE = 32  # of the last map
EMBED = {"mit_b0": 256, "mit_b1": 256}  # channels in the head; of larger encoders 768


class ChannelAttention(nn.Module):
    """Attention whose tokens are channels and whose features are the positions of a map, and the memory of each class.

    Images are (M, N, C): N positions of C channels. queue_ptr: where each class's ring is written next; kv_queue: rings (K, C, P) of C
    channels' maps of P positions, random at first.
    """

    queue_ptr: Tensor
    kv_queue: Tensor

    def __init__(self, width: int, nclass: int, positions: int) -> None:
        super().__init__()
        self.register_buffer("queue_ptr", torch.zeros(nclass, dtype=torch.int64))
        self.register_buffer("kv_queue", torch.randn(nclass, width, positions))
        inner = HEADS * width
        self.q_u = nn.Linear(width, inner, bias=False)
        self.k_u = nn.Linear(width, inner, bias=False)
        self.v_u = nn.Linear(width, inner, bias=False)
        self.q_l2u = nn.Linear(width, inner, bias=False)
        self.k_l2u = nn.Linear(width, inner, bias=False)
        self.v_l2u = nn.Linear(width, inner, bias=False)
        self.out_u = nn.Linear(inner, width, bias=False)
        self.out_l2u = nn.Linear(inner, width, bias=False)
        self.drop = nn.Dropout(DROP)

    def to_itself(self, x: Tensor) -> Tensor:
        """Each image's channels attend to its own, in heads. (M, N, C) -> the same shape."""
        query, key, value = (self._heads(layer(x)) for layer in (self.q_u, self.k_u, self.v_u))
        weight = F.instance_norm(query @ key.transpose(-2, -1)).softmax(dim=-1)  # (M, heads, C, C)
        out = self.drop(weight) @ value
        # side by side the heads of a channel, not the channels of a head: as the published weights expect it
        return self.drop(self.out_u(out.permute(0, 3, 2, 1).flatten(2)))

    def to_others(self, x: Tensor, source: Tensor) -> Tensor:
        """Each image's channels attend to all channels of all G maps of `source` (G, N, C). (M, N, C) -> the same shape."""
        query = self.q_l2u(x).transpose(1, 2)  # (M, 2C, N)
        key, value = (layer(source).transpose(0, 1).flatten(1) for layer in (self.k_l2u, self.v_l2u))  # (N, G * 2C)
        weight = F.instance_norm((query @ key)[:, None]).softmax(dim=-1)[:, 0]  # (M, 2C, G * 2C)
        out = self.drop(weight) @ value.T
        return self.drop(self.out_l2u(out.transpose(1, 2)))

    def stored(self) -> Tensor:
        """The content of the memory, as a `source` (K, P, C)."""
        return self.kv_queue.transpose(1, 2)

    @torch.no_grad()
    def remember_(self, x: Tensor, guide: Tensor) -> None:
        """Writes the maps of all channels of images (M, N, C) into the memory, each into the ring of the class that it resembles most.

        guide: logits (M, K, H, W) of these images, H = W. Where a ring comes round, the later image counts.
        """
        nclass, width, positions = self.kv_queue.shape
        side = math.isqrt(positions)
        if x.shape[1] != positions:
            raise UserError(
                f"crop_size: found crops with {x.shape[1]} positions in the last map, expected {positions}, which the memory is for: a "
                f"crop that is no multiple of {STRIDE}, and of a resumed run the one that its checkpoint was made with"
            )
        maps = x.to(self.kv_queue.dtype).transpose(1, 2)  # (M, C, N)
        with torch.autocast(x.device.type, enabled=False):
            shapes = F.interpolate(guide.to(maps.dtype), (side, side), mode="bilinear").flatten(2)  # (M, K, N)
            likeness = F.normalize(shapes, dim=2) @ F.normalize(maps, dim=2).transpose(1, 2)  # (M, K, C)
        owners = likeness.argmax(dim=1)  # (M, C): the class of each channel
        rows = self.kv_queue.view(-1, positions)
        for owner, own in zip(owners, maps, strict=True):
            member = owner[:, None] == torch.arange(nclass, device=owner.device)  # (C, K)
            count = member.cumsum(dim=0)
            nth = count.gather(1, owner[:, None])[:, 0] - 1  # among the channels of its class
            # all different: a class gets C rows at most
            rows.index_copy_(0, owner * width + (self.queue_ptr[owner] + nth) % width, own)
            self.queue_ptr.add_(count[-1]).remainder_(width)

    @staticmethod
    def _heads(x: Tensor) -> Tensor:
        """Splits channels into heads: (M, N, heads * C) -> (M, heads, C, N)."""
        return x.unflatten(-1, (HEADS, -1)).permute(0, 2, 3, 1)


class SemanticAttention(nn.Module):
    """The AllSpark module. forward: the last map (B, C, h, w) -> the same shape.

    guide: logits of the batch's second half, unlabelled images. The first half, labelled ones, attends to it, or with `memory` to what the
    memory holds once it has been written to. None: every image attends to all images of the batch.
    """

    def __init__(self, width: int, nclass: int, positions: int) -> None:
        super().__init__()
        self.map_in = nn.Sequential(nn.Conv2d(width, width, 1), nn.GELU())
        self.attn_norm = nn.LayerNorm(width, eps=EPS)
        self.attn = ChannelAttention(width, nclass, positions)
        self.encoder_norm = nn.LayerNorm(width, eps=EPS)
        self.map_out = nn.Sequential(nn.Conv2d(width, width, 1), nn.GELU())
        for layer in self.attn.children():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Tensor, guide: Tensor | None = None, memory: bool = False) -> Tensor:
        size = x.shape[-2:]
        tokens = self.map_in(x).flatten(2).transpose(1, 2)
        normed = self.attn_norm(tokens)
        if guide is None:
            found = self.attn.to_others(normed, normed)
        else:
            labeled, unlabeled = normed.chunk(2)
            self.attn.remember_(unlabeled, guide)
            source = self.attn.stored() if memory else unlabeled
            found = torch.cat((self.attn.to_others(labeled, source), self.attn.to_itself(unlabeled)))
        tokens = self.encoder_norm(tokens + found)
        return self.map_out(tokens.transpose(1, 2).unflatten(2, size))


class Projection(nn.Module):
    """A linear layer over the channels of a map, at each position. forward: (B, inputs, h, w) -> (B, outputs, h, w)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Fusion(nn.Module):
    """A 1x1 convolution, BatchNorm and ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class SegFormerHead(nn.Module):
    """SegFormer's head. forward: four maps (B, channels[i], h_i, w_i), fine to coarse -> logits (B, K, h_0, w_0)."""

    def __init__(self, channels: tuple[int, ...], embed: int, nclass: int) -> None:
        super().__init__()
        self.linear_c4 = Projection(channels[3], embed)
        self.linear_c3 = Projection(channels[2], embed)
        self.linear_c2 = Projection(channels[1], embed)
        self.linear_c1 = Projection(channels[0], embed)
        self.linear_fuse = Fusion(4 * embed, embed)
        self.drop = nn.Dropout2d(DROP)
        self.linear_pred = nn.Conv2d(embed, nclass, 1)

    def forward(self, maps: Maps) -> Tensor:
        layers = (self.linear_c4, self.linear_c3, self.linear_c2, self.linear_c1)
        parts = [_resize(layer(x), maps[0].shape[-2:]) for layer, x in zip(layers, reversed(maps), strict=True)]
        return self.linear_pred(self.drop(self.linear_fuse(torch.cat(parts, dim=1))))


class Decoder(nn.Module):
    """The reborn coarsest map, then SegFormer's head, under the published parameter names. Maps as the encoder gives them -> logits."""

    def __init__(self, channels: tuple[int, ...], embed: int, nclass: int, positions: int) -> None:
        super().__init__()
        self.allspark = SemanticAttention(channels[-1], nclass, positions)
        self.decoder = SegFormerHead(channels, embed, nclass)

    def forward(self, maps: Maps, guide: Tensor | None = None, memory: bool = False) -> Tensor:
        return self.decoder([*maps[:-1], self.allspark(maps[-1], guide, memory)])


class AllSpark(Segmenter):
    """The model. forward: images (B, 3, H, W) of any size -> logits (B, K, H, W), which depend on all images of the batch.

    In training the batch is labelled images and then as many unlabelled ones; guide, memory: see SemanticAttention.
    crop: side of the training crops, which the memory is for.
    """

    cut_windows = True
    depends_on_batch = True

    def __init__(self, backbone: MiT, nclass: int, embed: int, crop: int, bitemporal: bool = False) -> None:
        super().__init__(backbone, None, "decoder.decoder.linear_pred", bitemporal)
        self.decoder = Decoder(backbone.channels, embed, nclass, (crop // STRIDE + 1) ** 2)

    def decode(self, maps: Maps, guide: Tensor | None = None, memory: bool = False) -> Tensor:  # type: ignore[override]
        if self.training and guide is None:
            raise UserError(
                "model: found allspark, which method allspark alone trains: its batches are half labelled, half unlabelled images"
            )
        return self.decoder(maps, guide, memory)

    def resize(self, logits: Tensor, size: tuple[int, ...]) -> Tensor:  # type: ignore[override]
        return _resize(logits, size)

    def memory(self) -> dict[str, Tensor]:
        attention = self.decoder.allspark.attn
        return {f"decoder.allspark.attn.{name}": buffer for name, buffer in attention.named_buffers(recurse=False)}

    def accept_(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """A checkpoint's memory may be for another crop: nothing but training reads it."""
        attention = self.decoder.allspark.attn
        given = weights.get("decoder.allspark.attn.kv_queue")
        if given is not None and given.shape[:-1] == attention.kv_queue.shape[:-1]:
            attention.kv_queue = attention.kv_queue.new_empty(given.shape)
        return weights


def _resize(x: Tensor, size: tuple[int, ...]) -> Tensor:
    return F.interpolate(x, list(size), mode="bilinear", align_corners=False)


def build_allspark(spec: EncoderSpec, nclass: int, bitemporal: bool, crop_size: int = 513) -> AllSpark:
    """The model of a Mix Transformer. Raises UserError for another encoder."""
    backbone = spec.build()
    if not isinstance(backbone, MiT):
        usual = ", ".join(name for name in ENCODERS if name.startswith("mit_"))
        raise UserError(f"model: found allspark with backbone {spec.name}, expected one of {usual}; correct the config")
    return AllSpark(backbone, nclass, EMBED.get(spec.name, 768), crop_size, bitemporal)

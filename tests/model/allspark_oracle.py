"""AllSpark's decoder a second time, read against METHOD.md 1.9: functions of a state dict; images, heads, classes and rows one by one."""

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
Rings = list[list[Tensor]]  # of each class, C maps of P positions


def norm(x: Tensor, state: State, name: str) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    var = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (var + 1e-6).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def weights(query: Tensor, key: Tensor) -> Tensor:
    """Of channels (A, N) to channels (B, N)."""
    a = query @ key.T
    a = (a - a.mean()) / (((a - a.mean()) ** 2).mean() + 1e-5).sqrt()
    return a.softmax(1)


def to_itself(u: Tensor, state: State) -> Tensor:
    """(N, C) of one image."""
    width = u.shape[1]
    q, k, v = (u @ state[f"attn.{name}_u.weight"].T for name in "qkv")
    heads = []
    for h in range(2):
        own = slice(h * width, (h + 1) * width)
        heads.append(weights(q[:, own].T, k[:, own].T) @ v[:, own].T)  # (C, N)
    rows = [heads[h][c] for c in range(width) for h in range(2)]
    return torch.stack(rows, dim=1) @ state["attn.out_u.weight"].T


def to_others(image: Tensor, sources: list[Tensor], state: State) -> Tensor:
    """(N, C) of one image, and of each source."""
    q = image @ state["attn.q_l2u.weight"].T
    k, v = (torch.cat([s @ state[f"attn.{name}_l2u.weight"].T for s in sources], dim=1) for name in "kv")
    return (weights(q.T, k.T) @ v.T).T @ state["attn.out_l2u.weight"].T


def remember(images: list[Tensor], guide: Tensor, rings: Rings, pointers: list[int]) -> None:
    """Writes into `rings` and `pointers`, without gradient."""
    images = [u.detach() for u in images]
    side = round(len(images[0]) ** 0.5)
    small = F.interpolate(guide, (side, side), mode="bilinear", align_corners=False).flatten(2)  # (M, K, N)
    for u, classes in zip(images, small, strict=True):
        owners = []
        for channel in u.T:
            cosines = [float(channel @ one / channel.norm() / one.norm()) for one in classes]
            owners.append(max(range(len(cosines)), key=cosines.__getitem__))
        for k, ring in enumerate(rings):
            for c in (c for c, owner in enumerate(owners) if owner == k):
                ring[pointers[k]] = u[:, c]
                pointers[k] = (pointers[k] + 1) % len(ring)


def attend(e4: Tensor, state: State, guide: Tensor | None, memory: tuple[Rings, list[int]] | None, read: bool) -> Tensor:
    """The last map (B, C, h, w) -> the same shape. guide: of the second half; memory: is written to, and read where `read`."""
    size = e4.shape[2:]
    mixed = torch.einsum("bchw,dc->bdhw", e4, state["map_in.0.weight"][:, :, 0, 0]) + state["map_in.0.bias"][:, None, None]
    tokens = [gelu(x).flatten(1).T for x in mixed]  # (N, C) each
    normed = [norm(x, state, "attn_norm") for x in tokens]
    half = len(normed) // 2
    if guide is None:
        found = [to_others(x, normed, state) for x in normed]
    else:
        assert memory is not None
        remember(normed[half:], guide, *memory)
        sources = [torch.stack(ring, dim=1) for ring in memory[0]] if read else normed[half:]
        found = [to_others(x, sources, state) for x in normed[:half]] + [to_itself(x, state) for x in normed[half:]]
    out = []
    for x, z in zip(tokens, found, strict=True):
        y = norm(x + z, state, "encoder_norm") @ state["map_out.0.weight"][:, :, 0, 0].T + state["map_out.0.bias"]
        out.append(gelu(y).T.unflatten(1, size))
    return torch.stack(out)


def head(maps: list[Tensor], state: State, training: bool) -> Tensor:
    parts = []
    for i in (4, 3, 2, 1):
        x = maps[i - 1]
        y = torch.einsum("bchw,dc->bdhw", x, state[f"linear_c{i}.proj.weight"]) + state[f"linear_c{i}.proj.bias"][:, None, None]
        parts.append(F.interpolate(y, maps[0].shape[2:], mode="bilinear", align_corners=False))
    x = torch.einsum("bchw,dc->bdhw", torch.cat(parts, dim=1), state["linear_fuse.conv.weight"][:, :, 0, 0])
    if training:
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    else:
        mean, var = state["linear_fuse.bn.running_mean"], state["linear_fuse.bn.running_var"]
    x = (x - mean[:, None, None]) / (var + 1e-5).sqrt()[:, None, None]
    x = (x * state["linear_fuse.bn.weight"][:, None, None] + state["linear_fuse.bn.bias"][:, None, None]).clamp(min=0)
    return torch.einsum("bchw,dc->bdhw", x, state["linear_pred.weight"][:, :, 0, 0]) + state["linear_pred.bias"][:, None, None]


def part(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def rings_of(state: State) -> tuple[Rings, list[int]]:
    """The memory in a state dict, as `attend` keeps it."""
    queue, pointers = (state[f"decoder.allspark.attn.{name}"] for name in ("kv_queue", "queue_ptr"))
    return [[row.clone() for row in ring] for ring in queue], pointers.tolist()


def logits(
    maps: list[Tensor], size: tuple[int, int], state: State, guide: Tensor | None = None,
    memory: tuple[Rings, list[int]] | None = None, read: bool = False,
) -> Tensor:  # fmt: skip
    """Of the encoder's maps. guide: in training."""
    last = attend(maps[3], part(state, "decoder.allspark."), guide, memory, read)
    out = head([*maps[:3], last], part(state, "decoder.decoder."), guide is not None)
    return F.interpolate(out, size, mode="bilinear", align_corners=False)

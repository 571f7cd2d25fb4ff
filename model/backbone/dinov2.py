"""DINOv2 vision transformer with patch size 14 (METHOD.md 1.1). Parameter names are those of the public checkpoints."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import attend
from model.encoder import Encoder

PATCH = 14
GRID = 37  # patches per side of the 518 x 518 images that the checkpoints' position embedding is for


class Attention(nn.Module):
    """Self-attention in heads. (B, N, C) -> the same shape."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (B, heads, tokens, width / heads) each
        x = attend(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, width))


class Mlp(nn.Module):
    """The two linear layers of a block. (B, N, C) -> the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGlu(nn.Module):
    """The gated layers that the giant model has instead of Mlp. (B, N, C) -> the same shape."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class LayerScale(nn.Module):
    """A factor for each channel. (B, N, C) -> the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """A block of the transformer: attention, then linear layers, each added to its input. (B, N, C) -> the same shape."""

    def __init__(self, width: int, heads: int, swiglu_hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.ls1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = SwiGlu(width, swiglu_hidden) if swiglu_hidden else Mlp(width)
        self.ls2 = LayerScale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """A token for each patch. (B, 3, H, W) -> (B, H/14 * W/14, C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, PATCH)

    def forward(self, img: Tensor) -> Tensor:
        return self.proj(img).flatten(2).transpose(1, 2)  # (B, N, width), patches row by row


class DINOv2(Encoder):
    """The encoder: four maps of the patches' grid, after the blocks `out_indices` (0-based) and the last norm.

    swiglu_hidden: hidden width of a SwiGLU feed-forward, 0 for the MLP of four times the width.
    registers: tokens after the class token, without a position. The checkpoints that have them resize positions with antialiasing, to
    the grid's exact size.
    """

    multiple = PATCH

    def __init__(
        self, width: int, depth: int, heads: int, out_indices: tuple[int, ...], swiglu_hidden: int = 0, *, registers: int = 0
    ) -> None:
        super().__init__()
        self.out_indices = out_indices
        self.channels = (width,) * len(out_indices)
        self.strides = (PATCH,) * len(out_indices)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + GRID * GRID, width))
        if registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, registers, width))
        self.registers = registers
        # only in the checkpoints, never used: frozen, so that DDP needs no search for unused parameters
        self.mask_token = nn.Parameter(torch.zeros(1, width), requires_grad=False)
        self.patch_embed = PatchEmbed(width)
        self.blocks = nn.ModuleList(Block(width, heads, swiglu_hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.apply(_init_linear_)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        if registers:
            nn.init.normal_(self.register_tokens, std=1e-6)

    def position(self, rows: int, cols: int) -> Tensor:
        """Position embedding of a grid, (1, 1 + rows * cols, width): the class token's entry, then the resized 37 x 37 part."""
        if rows == cols == GRID:
            return self.pos_embed
        if self.registers:
            return self._position_antialiased(rows, cols)
        cls_pos, patch_pos = self.pos_embed.float().split([1, GRID * GRID], dim=1)
        patch_pos = patch_pos.reshape(1, GRID, GRID, -1).permute(0, 3, 1, 2)
        # The checkpoints were trained with these factors, 0.1 included, as the interpolation's own coordinates.
        scale = ((rows + 0.1) / GRID, (cols + 0.1) / GRID)
        resize = _bicubic_by_matrices if torch.are_deterministic_algorithms_enabled() else _bicubic
        return torch.cat((cls_pos, resize(patch_pos, scale).flatten(2).transpose(1, 2)), dim=1).to(self.pos_embed.dtype)

    def forward(self, img: Tensor) -> list[Tensor]:
        rows, cols = self.grid(img)
        x = self.patch_embed(img)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.position(rows, cols)
        if self.registers:
            x = torch.cat((x[:, :1], self.register_tokens.expand(x.shape[0], -1, -1), x[:, 1:]), dim=1)
        maps = []
        for i, block in enumerate(self.blocks):
            x = self.run(block, x)
            if i in self.out_indices:
                # a view whose channels lie last in memory; not unflatten, which would make rows and columns constants of an ONNX graph
                maps.append(self.norm(x)[:, 1 + self.registers :].transpose(1, 2).reshape(img.shape[0], -1, rows, cols))
        return maps

    def make_traceable_(self) -> None:
        self.position = self._position_antialiased if self.registers else self._position_by_matrices  # type: ignore[method-assign]

    def _position_by_matrices(self, rows: int, cols: int) -> Tensor:
        """`position` as matrix products, up to rounding: ONNX has no interpolation whose scale depends on the input's size."""
        device = self.pos_embed.device
        counts = [torch.ones(count, device=device).sum() for count in (rows, cols)]
        native = (counts[0] == GRID) & (counts[1] == GRID)  # used as it is: a factor of 1 gives the identity
        factors = [torch.where(native, count, count + 0.1) / GRID for count in counts]
        return self._resized(*(_cubic_matrix(count, factor, device) for count, factor in zip((rows, cols), factors, strict=True)))

    def _position_antialiased(self, rows: int, cols: int) -> Tensor:
        """The position embedding of a grid for models with registers. For 37 x 37 too they are matrix products, with the identity."""
        return self._resized(*(_antialiased_matrix(count, self.pos_embed.device) for count in (rows, cols)))

    def _resized(self, vertical: Tensor, horizontal: Tensor) -> Tensor:
        """The position embedding with its grid resized by matrices (rows, GRID) and (cols, GRID), in float32."""
        pos = self.pos_embed.float()
        with torch.autocast(pos.device.type, enabled=False):
            grid = torch.einsum("yi,ijc,xj->yxc", vertical, pos[0, 1:].reshape(GRID, GRID, -1), horizontal)
        return torch.cat((pos[:, :1], grid.flatten(0, 1)[None]), dim=1).to(self.pos_embed.dtype)


def _antialiased_matrix(count: int, device: torch.device) -> Tensor:
    """Bicubic resizing (a = -0.5) of GRID values to `count`, averaged over what an output covers, as a matrix (count, GRID)."""
    scale = GRID / torch.ones(count, device=device).sum()
    centre = (torch.arange(count, device=device) + 0.5) * scale
    distance = (centre[:, None] - torch.arange(GRID, device=device) - 0.5).abs() / scale.clamp(min=1)
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weight = torch.where(distance <= 1, near, torch.where(distance < 2, far, torch.zeros_like(far)))
    return weight / weight.sum(dim=1, keepdim=True)


def _cubic_matrix(count: int, factor: Tensor, device: torch.device) -> Tensor:
    """Bicubic resizing of GRID values to `count` as a matrix (count, GRID); `factor`: coordinates' scale (METHOD.md 1.1)."""
    centre = (torch.arange(count, device=device) + 0.5) / factor - 0.5
    first = centre.floor()
    columns = torch.arange(GRID, device=device)
    matrix = torch.zeros(1, device=device)
    for offset in range(-1, 3):
        distance = (centre - first - offset).abs()
        near = 1.25 * distance**3 - 2.25 * distance**2 + 1  # a = -0.75
        far = -0.75 * distance**3 + 3.75 * distance**2 - 6 * distance + 3
        weight = torch.where(distance <= 1, near, far)
        column = (first + offset).clamp(0, GRID - 1)  # edges are repeated
        matrix = matrix + weight[:, None] * (column[:, None] == columns)
    return matrix


def _bicubic(x: Tensor, scale: tuple[float, float]) -> Tensor:
    return F.interpolate(x, scale_factor=scale, mode="bicubic", align_corners=False, recompute_scale_factor=False)


def _bicubic_by_matrices(x: Tensor, scale: tuple[float, float]) -> Tensor:
    """`_bicubic` up to rounding, with a gradient that CUDA adds up in a fixed order: (1, C, GRID, GRID) between two matrices."""
    identity = torch.eye(GRID, device=x.device)
    with torch.autocast(x.device.type, enabled=False):
        vertical = _bicubic(identity[None, :, :, None], (scale[0], 1.0))[0, :, :, 0].T  # (rows, GRID)
        horizontal = _bicubic(identity[None, :, None, :], (1.0, scale[1]))[0, :, 0, :]  # (GRID, cols)
        return vertical @ x @ horizontal


def _init_linear_(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)

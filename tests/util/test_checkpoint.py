"""Checkpoints as the authors' programs write them: read safely, resumed, fine-tuned from; and clear words for those that do not fit."""

import contextlib
import copy
import pickle
import random
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import unimatch_v2
from engine.update import Learner
from model import build_model
from tests.conftest import Tiny
from util import checkpoint
from util.config import Config
from util.error import UserError


def authors_optimizer(model: Any) -> torch.optim.AdamW:
    """Two groups, every parameter in its place: encoder, then all names without `backbone`; with moments of one step.

    The first group is empty where the encoder is frozen.
    """
    frozen = not model.backbone.cls_token.requires_grad
    groups = [
        {"params": [] if frozen else list(model.backbone.parameters()), "lr": 5e-6},
        {"params": [p for name, p in model.named_parameters() if "backbone" not in name], "lr": 2e-4},
    ]
    optimizer = torch.optim.AdamW(groups, lr=5e-6, betas=(0.9, 0.999), weight_decay=0.01)
    g = torch.Generator().manual_seed(1)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=g) if p.requires_grad else None
    optimizer.step()
    return optimizer


def authors_state(model: Any, semi: bool = True) -> dict[str, Any]:
    """latest.pth after epoch 0 of a run under DDP; best values are numpy scalars."""
    model = copy.deepcopy(model)  # their optimiser makes a step
    wrapped = {f"module.{name}": value.clone() for name, value in model.state_dict().items()}
    state: dict[str, Any] = {"model": wrapped, "optimizer": authors_optimizer(model).state_dict(), "epoch": 0}
    state["previous_best"] = np.float64(12.5)
    if semi:
        state |= {"model_ema": {name: value * 0.5 for name, value in wrapped.items()}, "previous_best_ema": np.float64(11.25)}
        state |= {"best_epoch": 0, "best_epoch_ema": np.int64(0)}
    return state


def older_numpy(path: Path) -> Path:
    """The same file as numpy 1 would have written it: its scalars' rebuilding function had another name."""
    out = path.with_name("numpy1.pth")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    return out


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(5)
    return build_model("dinov2_tiny", 6)


@pytest.fixture
def authors(model: Any, tmp_path: Path) -> Path:
    path = tmp_path / "authors.pth"
    torch.save(authors_state(model), path)
    assert b"numpy._core.multiarray" in zipfile.ZipFile(path).read("authors/data.pkl")
    return path


def test_numpy_scalars_of_either_numpy_are_read_safely(authors: Path) -> None:
    for path in (authors, older_numpy(authors)):
        with pytest.raises(pickle.UnpicklingError):
            torch.load(path, weights_only=True)  # what stops the reference on a new PyTorch
        state = checkpoint.load(path)
        assert (state["previous_best"], state["previous_best_ema"], state["best_epoch_ema"]) == (12.5, 11.25, 0)


@pytest.mark.parametrize("scalar", [np.float64(1.5), np.float32(1.5), np.int64(3), np.int32(3), np.bool_(True)])
def test_every_kind_of_scalar(tmp_path: Path, scalar: np.generic) -> None:
    torch.save({"previous_best": scalar}, tmp_path / "a.pth")
    assert checkpoint.load(tmp_path / "a.pth")["previous_best"] == scalar


def test_the_oldest_file_format(tmp_path: Path, model: Any) -> None:
    torch.save(authors_state(model), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert checkpoint.load(tmp_path / "old.pth")["previous_best"] == 12.5


def memory_of(tensor: Tensor) -> str:
    """Line of /proc/self/maps about the memory where a tensor lies: it names the file behind it, if there is one."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(place, 16) for place in line.split()[0].split("-"))
        if begin <= tensor.data_ptr() < end:
            return line
    raise AssertionError("a tensor outside all memory")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_mapped_checkpoint_takes_no_memory_of_the_process(tmp_path: Path) -> None:
    torch.save({"model": torch.ones(16, 2**16)}, tmp_path / "large.pth")
    mapped, copied = (checkpoint.load(tmp_path / "large.pth", mapped=mapped)["model"] for mapped in (True, False))
    assert memory_of(mapped).endswith("/large.pth")
    assert "large.pth" not in memory_of(copied)
    assert torch.equal(mapped, copied)


@pytest.mark.parametrize("ours", [True, False])
def test_a_resumed_run_keeps_nothing_of_the_file(model: Any, authors: Path, ours: bool) -> None:
    """The file is mapped while it is read, and the run replaces it later."""
    learner = resumed(model, authors)
    if ours:
        checkpoint.save(learner.state() | {"epoch": 0}, authors)
        learner = resumed(model, authors)
    expected = copy.deepcopy(learner.state())
    authors.write_bytes(bytes(authors.stat().st_size))
    for name in ("model", "model_ema"):
        assert all(torch.equal(value, expected[name][key]) for key, value in learner.state()[name].items())
    for place, moments in learner.state()["optimizer"]["state"].items():
        assert all(torch.equal(value, expected["optimizer"]["state"][place][key]) for key, value in moments.items())


def resumed(model: Any, path: Path) -> Learner:
    cfg = Config(dataset="", data_root="", backbone="dinov2_tiny", crop_size=28, epochs=1, batch_size=1, lr=1.0)
    learner = Learner(cfg, copy.deepcopy(model), unimatch_v2.METHOD, 4)
    learner.load_state(checkpoint.load(path, mapped=True), "file")
    return learner


def test_a_file_system_that_cannot_map(authors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = torch.load

    def unable(path: Path, mmap: bool, **options: Any) -> Any:
        if mmap:
            raise RuntimeError("unable to mmap 1024 bytes from file: No such device (19)")
        return load(path, mmap=mmap, **options)

    monkeypatch.setattr(torch, "load", unable)
    assert checkpoint.load(authors, mapped=True)["previous_best"] == 12.5


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (shutil.rmtree, ("/nonexistent",))


def test_code_in_a_file_is_refused(tmp_path: Path) -> None:
    torch.save({"model": Harmful()}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match=r"bad\.pth: not a readable checkpoint: found Python objects .* save the model's state_dict\(\)"):
        checkpoint.load(tmp_path / "bad.pth")


@pytest.mark.parametrize("form", ["both", "model", "bare", "bare module"])
def test_weights_of_every_form(model: Any, form: str) -> None:
    state = authors_state(model, semi=form == "both")
    if form.startswith("bare"):
        state = {name.removeprefix("" if form == "bare module" else "module."): value for name, value in state["model"].items()}
    found = checkpoint.weights(state, "model", "file")
    assert list(found) == list(model.state_dict())
    checkpoint.load_strictly(build_model("dinov2_tiny", 6), found, "file", "hint")
    if form == "both":
        assert torch.equal(checkpoint.weights(state, "model_ema", "file")["backbone.cls_token"], 0.5 * model.backbone.cls_token)


def test_a_run_of_the_authors_goes_on(tiny: Tiny, model: Any, authors: Path, tmp_path: Path) -> None:
    """At epoch 1 with their weights, moments and best values; the same through the command."""
    save = tmp_path / "run"
    save.mkdir()
    for name in ("latest.pth", "best.pth"):
        shutil.copy(authors, save / name)
    unimatch_v2.main(tiny.args(save, "epochs=2", "conf_thresh=1.0"))
    log = (save / "train.log").read_text()
    assert "best.pth: of the authors' program, which judges the student; an epoch whose EMA has more than 11.25 replaces it" in log
    assert "Load from checkpoint at epoch 0" in log
    assert "Epoch: 1, Previous best: 12.50 @epoch-0, EMA: 11.25 @epoch-0" in log
    assert "Epoch: 0" not in log
    end = checkpoint.load(save / "latest.pth")
    assert end["epoch"] == 1
    steps = {float(entry["step"]) for entry in end["optimizer"]["state"].values()}
    assert steps == {7.0}, "one step of theirs and six of ours"


@pytest.mark.parametrize("frozen", [False, True])
def test_their_moments_and_rates_reach_the_same_parameters(model: Any, frozen: bool) -> None:
    theirs, ours = copy.deepcopy(model), build_model("dinov2_tiny", 6)
    theirs.backbone.requires_grad_(not frozen)
    saved = authors_state(theirs)
    expected = authors_optimizer(theirs)
    cfg = Config(dataset="", data_root="", backbone="dinov2_tiny", crop_size=28, epochs=1, batch_size=1, lr=1.0, lock_backbone=frozen)
    learner = Learner(cfg, ours, unimatch_v2.METHOD, 4)
    learner.load_state(saved, "file")
    assert frozen == (not saved["optimizer"]["param_groups"][0]["params"])
    for (name, mine), their in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if their.requires_grad:
            assert torch.equal(learner.optimizer.state[mine]["exp_avg"], expected.state[their]["exp_avg"]), name
    assert [g["lr"] for g in learner.optimizer.param_groups] == [5e-6, 2e-4]


def test_the_next_step_after_their_moments_is_adamw_plainly_written(model: Any) -> None:
    # their convolutions lie channels first, ours last, and the fused kernel looks at memory only
    state = authors_state(model)
    for moments in state["optimizer"]["state"].values():
        moments |= {name: value.contiguous() for name, value in moments.items()}
    cfg = Config(dataset="", data_root="", backbone="dinov2_tiny", crop_size=14, epochs=1, batch_size=1, lr=1e-3, lr_multi=1.0)
    learner = Learner(cfg, copy.deepcopy(model), unimatch_v2.METHOD, 10)
    learner.load_state(copy.deepcopy(state), "authors.pth")
    assert all(group["fused"] for group in learner.optimizer.param_groups), "their groups know of no fused kernel"
    plain = copy.deepcopy(learner.student)
    groups = [list(plain.backbone.parameters()), [p for name, p in plain.named_parameters() if "backbone" not in name]]
    other = torch.optim.AdamW([{"params": group} for group in groups])
    other.load_state_dict(copy.deepcopy(state["optimizer"]))
    for p, q in zip(learner.student.parameters(), plain.parameters(), strict=True):
        p.grad = torch.randn_like(p) if p.requires_grad else None
        q.grad = None if p.grad is None else p.grad.contiguous()
    learner.optimizer.step()
    other.step()
    for p, q in zip(learner.student.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)  # a step is 1e-3: a wrong moment would show in its first digits


@pytest.mark.parametrize("which", ["model_ema", "model", "bare"])
def test_fine_tuning_starts_from_their_weights(tiny: Tiny, model: Any, tmp_path: Path, which: str) -> None:
    state = authors_state(model, semi=which == "model_ema")
    torch.save(state["model"] if which == "bare" else state, tmp_path / "authors.pth")
    # a learning rate that moves nothing shows where the run began
    unimatch_v2.main(tiny.args(tmp_path / "run", f"init={tmp_path}/authors.pth", "epochs=1", "lr=1e-30"))
    found = checkpoint.load(tmp_path / "run" / "latest.pth")["model"]["backbone.cls_token"]
    assert torch.allclose(found, (0.5 if which == "model_ema" else 1.0) * model.backbone.cls_token)


def cut(path: Path, share: float) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


@pytest.mark.parametrize(
    ("backbone", "nclass", "words"),
    [
        ("dinov2_small", 6, r"backbone\.cls_token is \(1, 1, 192\), the model needs \(1, 1, 384\)"),
        ("dinov2_tiny", 7, r"head\.scratch\.output_conv\.2\.weight is \(6, 32, 1, 1\), the model needs \(7, 32, 1, 1\)"),
    ],
)
def test_the_first_mismatch_is_named(model: Any, backbone: str, nclass: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        checkpoint.load_strictly(build_model(backbone, nclass), checkpoint.weights(authors_state(model), "model", "file"), "file", "hint")


def test_missing_and_unknown_names(model: Any) -> None:
    state = dict(model.state_dict())
    for change, words in (({"extra": torch.zeros(1)}, "'extra' is unknown"), ({}, "has no 'backbone.norm.bias'")):
        changed = state | change
        if not change:
            del changed["backbone.norm.bias"]
        with pytest.raises(UserError, match=words):
            checkpoint.load_strictly(model, changed, "file", "hint")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9, 0.999])
def test_truncated_files(authors: Path, share: float) -> None:
    with pytest.raises(UserError, match=r"authors\.pth: not a readable checkpoint .*copy or download it again"):
        checkpoint.load(cut(authors, share))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("model", None, r"latest\.pth: found a NoneType under 'model', expected a dictionary"),
        ("epoch", "five", r"latest\.pth: epoch is 'five', expected a number"),
        ("previous_best_ema", None, r"latest\.pth: previous_best_ema is None, expected a number"),
        ("nan", None, r"latest\.pth: .*module\.backbone\.cls_token|latest\.pth: backbone\.cls_token holds values that are not finite"),
    ],
)
def test_a_value_that_no_checkpoint_has(key: str, value: Any, words: str, tiny: Tiny, model: Any, tmp_path: Path) -> None:
    state = authors_state(model)
    if key == "nan":
        state["model"]["module.backbone.cls_token"] = torch.full_like(model.backbone.cls_token, float("nan"))
    else:
        state[key] = value
    path = tmp_path / "latest.pth"
    torch.save(state, path)
    with pytest.raises(UserError, match=words):
        unimatch_v2.main(tiny.args(tmp_path, "epochs=2"))


def test_any_cut_and_any_damage_of_the_oldest_format(tmp_path: Path) -> None:
    path, rng = tmp_path / "old.pth", random.Random(0)
    torch.save({"model": {"a": torch.zeros(3)}, "epoch": 3}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    told = 0
    for length in range(len(whole)):
        damaged = bytearray(whole)
        damaged[length] = rng.randrange(256)
        for content in (whole[:length], bytes(damaged)):
            path.write_bytes(content)
            with contextlib.suppress(checkpoint.DamagedError, UserError):
                checkpoint.load(path)
                told -= 1
            told += 1
    assert told > len(whole)  # every cut, and damage wherever it can be seen


def test_encoder_checkpoints_load_strictly(tmp_path: Path) -> None:
    path = tmp_path / "dinov2_tiny.pth"
    source = build_model("dinov2_tiny", 2).backbone
    torch.save(source.state_dict(), path)
    loaded: nn.Module = build_model("dinov2_tiny", 3, pretrained=path).backbone
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), source.state_dict().values(), strict=True))
    with pytest.raises(UserError, match="'cls_token' is"):
        build_model("dinov2_small", 3, pretrained=path)
    torch.save(dict(source.state_dict()) | {"register_tokens": torch.zeros(1, 4, 192)}, path)
    with pytest.raises(UserError, match="'register_tokens' in it is unknown"):
        build_model("dinov2_tiny", 3, pretrained=path)
    state = dict(source.state_dict())
    del state["norm.bias"]
    torch.save(state, path)
    with pytest.raises(UserError, match=r"'norm\.bias'"):
        build_model("dinov2_tiny", 3, pretrained=path)

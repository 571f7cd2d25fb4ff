"""evaluate.py: the loop's numbers, on any number of processes, against counting by hand; what it draws; what it refuses."""

import json
import re
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import evaluate
import unimatch_v2
from dataset.semi import image_tensor
from engine.evaluation import Prediction
from engine.trained_model import load_trained, run_config
from model.backbone import dinov2
from tests.conftest import Tiny, command
from util import checkpoint
from util.config import load_config
from util.error import StoppedError, UserError
from util.signals import INTERRUPTED, STOP_FILE


@pytest.fixture(scope="module")
def run(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short semi-supervised run."""
    folder = tmp_path_factory.mktemp("run")
    unimatch_v2.main(tiny.args(folder, "epochs=2"))
    return folder


def scores(tiny: Tiny, run: Path, out: Path, *extra: str) -> dict:
    evaluate.main(["--config", str(tiny.config), "--checkpoint", str(run / "latest.pth"), "--json", str(out), *extra])
    return json.loads(out.read_text())


def test_numbers_are_those_of_the_loop(tiny: Tiny, run: Path, tmp_path: Path) -> None:
    log = (run / "train.log").read_text()
    classes = re.findall(r"Class \[\d+ (\w+)\] IoU: ([\d.]+), EMA: ([\d.]+)", log)[-6:]
    means = re.findall(r"MeanIoU: ([\d.]+), EMA: ([\d.]+)", log)[-1]
    for i, which in enumerate(("student", "ema")):
        result = scores(tiny, run, tmp_path / "s.json", "--which", which)
        assert f"{result['miou']:.2f}" == means[i]
        assert [(name, f"{value:.2f}") for name, value in result["iou"].items()] == [(row[0], row[1 + i]) for row in classes]
        assert (result["which"], result["images"], result["epoch"]) == (which, 4, 1)
    assert scores(tiny, run, tmp_path / "s.json")["which"] == "ema"


def test_a_checkpoint_says_what_it_was_trained_with(
    tiny: Tiny, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From any folder; and what was written is said."""
    expected = scores(tiny, run, tmp_path / "a.json")
    monkeypatch.chdir(tmp_path)
    evaluate.main(["--checkpoint", str(run / "latest.pth"), "--json", "b.json", "--confusion", "c.png", "--worst", "1", "--out", "worst"])
    assert json.loads(Path("b.json").read_text()) | {"worst": []} == expected
    lines = capsys.readouterr().out.splitlines()
    written = ["wrote b.json: all figures", "wrote c.png: the confusion matrix", "wrote worst: 1 picture, the worst first"]
    assert [line for line in lines if line.startswith("wrote")][-3:] == written
    assert len(list(Path("worst").iterdir())) == 1
    assert f"{run}/latest.pth: EMA after epoch 2 (1 in the log), 4 images of {tiny.root}/val.txt, " in "\n".join(lines)
    worst = json.loads(Path("b.json").read_text())["worst"][0]
    assert f"worst: mean IoU of its classes {worst['miou']:.2f}  {worst['image']}" in lines


def test_relative_paths_of_a_run_are_found_from_the_repository(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clone = tmp_path / "clone"
    (clone / "splits").mkdir(parents=True)
    (clone / "splits/val.txt").write_text((tiny.root / "val.txt").read_text())
    (clone / "data").symlink_to(tiny.root)
    monkeypatch.setattr("util.files.ROOT", clone)
    torch.save(
        {"config": {"dataset": "demo", "data_root": "data", "val_id_path": "splits/val.txt", "backbone": "x", "crop_size": 28}},
        tmp_path / "k.pth",
    )
    monkeypatch.chdir(tmp_path)
    cfg = run_config(None, "k.pth")
    assert (cfg.data_root, cfg.val_id_path) == (f"{clone}/data", f"{clone}/splits/val.txt")
    (tmp_path / "data").mkdir()
    assert run_config(None, "k.pth").data_root == "data"  # what is here comes first


def test_a_console_that_lacks_the_classes_names(tiny: Tiny, run: Path, tmp_path: Path) -> None:
    """The figures are printed as far as it can show them, and written."""
    names = ["\u5929\u7a7a", "\u9053\u8def", "car", "tree", "b\u00e2timent", "sign"]
    own = yaml.safe_load(tiny.config.read_text()) | {"dataset": "own", "classes": names}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own, allow_unicode=True), encoding="utf-8")
    state = checkpoint.load(run / "latest.pth")
    torch.save({name: state[name] for name in ("model", "model_ema", "epoch")}, tmp_path / "own.pth")
    words = ["--config", str(tmp_path / "own.yaml"), "--checkpoint", str(tmp_path / "own.pth"), "--json", str(tmp_path / "s.json")]
    done = command("evaluate.py", *words, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert "\\u5929\\u7a7a" in done.stdout
    assert list(json.loads((tmp_path / "s.json").read_text())["iou"]) == names


def test_bf16_gives_the_numbers_of_a_bf16_run(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unimatch_v2.main(tiny.args(tmp_path, "epochs=1", "precision=bf16"))
    mean = re.findall(r"MeanIoU: [\d.]+, EMA: ([\d.]+)", (tmp_path / "train.log").read_text())[-1]
    attend, seen = dinov2.attend, set()

    def spy(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        seen.add((q.dtype, torch.backends.cuda.cudnn_sdp_enabled()))
        return attend(q, k, v)

    monkeypatch.setattr(dinov2, "attend", spy)
    result = scores(tiny, tmp_path, tmp_path / "s.json", "--bf16")
    assert (f"{result['miou']:.2f}", result["bf16"]) == (mean, True)
    assert seen == {(torch.bfloat16, False)}, "cuDNN's attention would build a plan for each image size"
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_the_first_request_to_stop_ends_it(tiny: Tiny, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stop").write_text(str(int(signal.SIGINT)))  # what the launcher writes at Ctrl-C
    monkeypatch.setenv(STOP_FILE, str(tmp_path / "stop"))
    with pytest.raises(StoppedError, match="not all images are scored") as stopped:
        scores(tiny, run, tmp_path / "s.json")
    assert stopped.value.code == INTERRUPTED
    assert not (tmp_path / "s.json").exists()


def test_figures_agree_with_counting_pixels(tiny: Tiny, run: Path, tmp_path: Path) -> None:
    result = scores(tiny, run, tmp_path / "s.json", "--which", "student")
    model = load_trained(load_config(str(tiny.config)), str(run / "latest.pth"), "student").model
    right = total = 0
    found = {k: [0, 0, 0] for k in range(6)}  # both, true, predicted
    for line in (tiny.root / "val.txt").read_text().splitlines():
        image, mask = (Image.open(tiny.root / path) for path in line.split())
        img = (image_tensor([image])[None] / 255 - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor(
            [0.229, 0.224, 0.225]
        )[:, None, None]
        with torch.no_grad():
            pred = Prediction("original", 28).class_scores(model, img).argmax(1)[0].numpy()
        for p, t in zip(pred.ravel().tolist(), np.asarray(mask).ravel().tolist(), strict=True):
            if t != 255:
                total, right = total + 1, right + (p == t)
                found[t][1] += 1
                found[p][2] += 1
                found[t][0] += p == t
    iou = [100 * both / max(1, true + predicted - both) for both, true, predicted in found.values()]
    assert result["pixel_accuracy"] == pytest.approx(100 * right / total)
    assert list(result["iou"].values()) == pytest.approx(iou)
    assert result["miou"] == pytest.approx(np.mean(iou))
    assert list(result["accuracy"].values()) == pytest.approx([100 * both / true for both, true, _ in found.values()])
    assert np.array(result["confusion"]).sum() == total


def test_two_processes_give_equal_numbers_and_pictures_are_drawn(tiny: Tiny, run: Path, tmp_path: Path) -> None:
    args = ["--config", str(tiny.config), "--checkpoint", str(run / "latest.pth"), "--worst", "3"]
    out = command("evaluate.py", *args, "--json", str(tmp_path / "2.json"), "--out", str(tmp_path / "two"), processes=2)
    assert out.returncode == 0, out.stderr
    evaluate.main([*args, "--json", str(tmp_path / "1.json"), "--out", str(tmp_path / "one"), "--confusion", str(tmp_path / "c.png")])
    one, two = (json.loads((tmp_path / f"{n}.json").read_text()) for n in (1, 2))
    assert one == two
    assert [row["miou"] for row in one["worst"]] == sorted(row["miou"] for row in one["worst"])
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == [f"{i:03d}_{Path(row['image']).stem}.jpg" for i, row in enumerate(one["worst"], 1)]
    for path in [*(tmp_path / "one").iterdir(), tmp_path / "c.png"]:
        assert min(Image.open(path).size) > 100


def test_augmentation_and_windows_change_the_prediction_as_defined(tiny: Tiny, run: Path) -> None:
    model = load_trained(load_config(str(tiny.config)), str(run / "latest.pth"), "student").model
    img = torch.randn(1, 3, 43, 57, generator=torch.Generator().manual_seed(0))
    # atol: sums of up to four probabilities in float32 are 4e-7 apart; a wrong flip, scale or window is 0.08 and more
    with torch.no_grad():
        whole = Prediction("original", 28)
        plain = whole.class_scores(model, img).softmax(1)
        mirrored = whole.class_scores(model, img.flip(-1)).softmax(1).flip(-1)
        assert torch.allclose(replace(whole, flip=True).class_scores(model, img), plain + mirrored, atol=1e-5)
        small = torch.nn.functional.interpolate(img, (22, 29), mode="bilinear", align_corners=True)
        small = whole.class_scores(model, small).softmax(1)
        small = torch.nn.functional.interpolate(small, (43, 57), mode="bilinear", align_corners=True)
        assert torch.allclose(replace(whole, scales=(1, 0.5)).class_scores(model, img), plain + small, atol=1e-5)
        # windows by hand: starts 0, 18 and the last flush with the border
        total = torch.zeros(1, 6, 43, 57)
        for y in (0, 15):
            for x in (0, 18, 29):
                total[..., y : y + 28, x : x + 28] += whole.class_scores(model, img[..., y : y + 28, x : x + 28]).softmax(1)
        assert torch.allclose(Prediction("sliding_window", 28).class_scores(model, img), total, atol=1e-5)
        one = Prediction("sliding_window", 57).class_scores(model, img)
        assert torch.equal(one.argmax(1), plain.argmax(1))  # one tile alone is the direct prediction


def test_checkpoints_of_the_authors_are_read(tiny: Tiny, run: Path, tmp_path: Path) -> None:
    ours = checkpoint.load(run / "latest.pth")
    theirs = {name: {f"module.{key}": value for key, value in ours[name].items()} for name in ("model", "model_ema")}
    theirs |= {"epoch": 2, "previous_best": np.float64(12.5), "previous_best_ema": np.float64(12.5)}  # type: ignore[dict-item]
    torch.save(theirs, tmp_path / "latest.pth")
    assert scores(tiny, tmp_path, tmp_path / "a.json")["iou"] == scores(tiny, run, tmp_path / "b.json")["iou"]


@pytest.mark.parametrize(
    ("change", "extra", "words"),
    [
        ({"backbone": "dinov2_small"}, (), "was trained with backbone dinov2_tiny, found dinov2_small; give the config of its run"),
        ({"dataset": "camvid", "nclass": None}, (), "was trained on demo"),
        ({}, ("--id-path", "nowhere.txt"), "nowhere.txt: no such list"),
        ({}, ("--scales", "0"), "--scales"),
        ({}, ("--pair", "a", "b"), "--label"),
        ({}, ("--pair", "a", "b", "--label", "c"), "demo has single images"),
    ],
)
def test_user_errors_end_in_one_line(tiny: Tiny, run: Path, change: dict, extra: tuple, words: str) -> None:
    settings = [part for key, value in change.items() for part in ("--set", f"{key}={'null' if value is None else value}")]
    with pytest.raises(UserError, match=re.escape(words)):
        evaluate.main(["--config", str(tiny.config), "--checkpoint", str(run / "best.pth"), *settings, *extra])


def test_wrong_classes_and_tasks_are_told(tiny: Tiny, run: Path, tmp_path: Path) -> None:
    weights = {"model": checkpoint.load(run / "best.pth")["model"]}
    torch.save(weights, tmp_path / "bare.pth")
    base = ["--config", str(tiny.config), "--set", "nclass=null", "--checkpoint"]
    with pytest.raises(UserError, match="a model of 6 classes, but camvid has 11"):
        evaluate.main([*base, str(tmp_path / "bare.pth"), "--set", "dataset=camvid"])
    with pytest.raises(UserError, match="has no EMA weights"):
        evaluate.main([*base, str(tmp_path / "bare.pth"), "--which", "ema"])
    torch.save(weights | {"previous_best_iou": 70.0}, tmp_path / "change.pth")
    with pytest.raises(UserError, match="a checkpoint of change detection, but demo"):
        evaluate.main([*base, str(tmp_path / "change.pth")])


@pytest.fixture(scope="module")
def change(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pairs of 40 x 40 pixels with a square that is new in B, lists, and a short run on them."""
    root = tmp_path_factory.mktemp("change")
    rng = np.random.default_rng(0)
    for folder in ("A", "B", "label"):
        (root / folder).mkdir()
    for i in range(4):
        a = rng.integers(60, 120, (40, 40, 3), dtype=np.uint8)
        b, label = a.copy(), np.zeros((40, 40), np.uint8)
        b[8:24, 4 * i : 4 * i + 16] = 230
        label[8:24, 4 * i : 4 * i + 16] = 255
        for folder, values in (("A", a), ("B", b), ("label", label)):
            Image.fromarray(values).save(root / folder / f"{i}.png")
    (root / "list.txt").write_text("0.png\n1.png\n2.png\n3.png\n")
    (root / "c.yaml").write_text(
        f"{{dataset: levir, data_root: {root}, val_id_path: {root}/list.txt, backbone: dinov2_tiny, pretrained: null, crop_size: 28, "
        "batch_size: 2, epochs: 1, lr: 3e-4, lr_multi: 3.0, num_workers: 0}"
    )
    lists = ["--labeled-id-path", f"{root}/list.txt", "--unlabeled-id-path", f"{root}/list.txt"]
    unimatch_v2.main(["--config", str(root / "c.yaml"), *lists, "--save-path", str(root / "run")])
    return root


def test_change_detection_reports_what_the_field_reports(change: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["--config", str(change / "c.yaml"), "--checkpoint", str(change / "run/latest.pth"), "--json", str(tmp_path / "s.json")]
    evaluate.main(base)
    listed = json.loads((tmp_path / "s.json").read_text())
    matrix = np.array(listed["confusion"])
    true_positive, false_positive, false_negative = matrix[1, 1], matrix[0, 1], matrix[1, 0]
    assert listed["changed_iou"] == pytest.approx(100 * true_positive / max(1, true_positive + false_positive + false_negative))
    assert listed["precision"] == pytest.approx(100 * true_positive / max(1, true_positive + false_positive))
    assert listed["recall"] == pytest.approx(100 * true_positive / (true_positive + false_negative))
    assert listed["f1"] == pytest.approx(200 * true_positive / (2 * true_positive + false_positive + false_negative))
    assert listed["overall_accuracy"] == pytest.approx(100 * np.trace(matrix) / 6400)
    log = (change / "run/train.log").read_text()
    assert f" Changed IoU: {listed['changed_iou']:.2f}: EMA" in log, "the student's, as published"
    assert f" Overall Accuracy: {listed['overall_accuracy']:.2f}, EMA" in log
    evaluate.main([*base, "--pair", str(change / "A"), str(change / "B"), "--label", str(change / "label"), "--worst", "1"])
    paired = json.loads((tmp_path / "s.json").read_text())
    assert paired["confusion"] == listed["confusion"]
    assert paired["worst"][0]["changed_iou"] <= listed["changed_iou"], "the changed class's, not the mean with the unchanged one"
    assert len(list((change / "run/worst").iterdir())) == 1
    told = capsys.readouterr().out
    assert f", 4 pairs of {change}/list.txt, " in told
    assert f"worst: changed IoU {paired['worst'][0]['changed_iou']:.2f}  " in told
    (change / "B/3.png").rename(change / "B/lost.png")
    try:
        with pytest.raises(UserError, match=r"B/3\.png: no such file, expected a partner of .*A/3\.png"):
            evaluate.main([*base, "--pair", str(change / "A"), str(change / "B"), "--label", str(change / "label")])
    finally:
        (change / "B/lost.png").rename(change / "B/3.png")

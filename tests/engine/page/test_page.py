"""A run's page: its figures against the log, and the page in a real browser."""

import base64
import io
import json
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import evaluate
import supervised
import unimatch_v2
from dataset import picture
from dataset.spec import IGNORE, DatasetSpec, bit_palette, get_spec
from engine.metrics_file import Epoch, read_epochs
from engine.page.chart import chart, number, ticks
from engine.page.confusion import BLUE, WHITE_FROM, confusion_svg
from engine.page.render import HERE, PageData, _swatch, document, render
from engine.page.samples import _painted
from engine.page.writer import PageWriter
from engine.records import Record
from engine.zero_iou import reasons
from scripts.report import read_log
from scripts.report.compare import compare
from scripts.report.compare_page import page as compare_page
from tests.conftest import Tiny, make_tiny
from tests.scripts.report.report_logs import whole_log
from util.progress import duration

CLASSES = get_spec("demo").classes


@pytest.fixture(scope="module")
def run(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A semi-supervised run of two epochs that was then prolonged to three."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Record, "bad_images", lambda record, *_: record.log.warning("2 <b>images</b> lost:\n  a.jpg\n  b.jpg"))
        unimatch_v2.main(tiny.args(folder, "epochs=1", "conf_thresh=0.17"))
    unimatch_v2.main(tiny.args(folder, "epochs=2", "conf_thresh=0.17", "resume=force"))
    return folder


def test_page_shows_what_the_log_says(run: Path) -> None:
    log = (run / "train.log").read_text()
    scores = [(float(a), float(b)) for a, b in re.findall(r"MeanIoU: ([\d.]+), EMA: ([\d.]+)", log)]
    rows = read_epochs(run / "metrics.jsonl")
    assert [row.epoch for row in rows] == [0, 1]  # the first epoch came from the run before
    found = [tuple(round(own["miou"], 2) for own in row.scores.values()) for row in rows]
    assert found == [pytest.approx(pair, abs=0.0051) for pair in scores]
    page = (run / "report.html").read_text()
    best = max((ema, epoch) for epoch, (_, ema) in enumerate(scores))
    assert f"<b>{best[0]:.2f}</b><span>best mIoU (EMA), epoch {best[1]}</span>" in page
    assert re.search(r"epoch 2 of 2, finished in \d+ s", page)
    assert "Epochs are numbered from 0 below, as in the log: the last one is epoch 1." in page
    # two epochs of both models' scores, the four stats, share and worth of the pseudo labels, and the speed
    assert page.count("<circle") == 2 * (2 + 4 + 2 + 1)
    found = re.findall(r"validation images: ([\d.]+) % of pixels from confidence 0.17 on, ([\d.]+) % of them right", log)
    worth = [(row.pseudo_quality["share"], row.pseudo_quality["right"]) for row in rows]
    assert worth == [pytest.approx((float(share), float(right)), abs=0.0051) for share, right in found]
    assert f"<b>{worth[-1][1]:.1f} %</b><span>of the confident pixels of the validation images are right</span>" in page
    assert re.search(r"<p>[\d-]{10} [\d:]{8} 2 &lt;b&gt;images&lt;/b&gt; lost:\n  a.jpg\n  b.jpg</p>", page)  # text, not markup
    for name, ema in re.findall(r"Class \[\d+ (\w+)\] IoU: [\d.]+, EMA: ([\d.]+)", log)[-6:]:
        cells = re.search(rf'<tr><td data-value="{name}">.*?</tr>', page)
        assert cells
        assert f">{ema}</td>" in cells[0]
        right = rows[-1].pseudo_quality["classes"][name]["right"]
        assert (">none</td>" if right is None else f">{right:.2f}</td>") in cells[0]
    last = [line for line in log.splitlines() if "Mask ratio" in line][-1]
    ratio = rows[-1].means["mask_ratio"]
    assert ratio is not None
    assert ratio == pytest.approx(float(last.rsplit(" ", 1)[1]), abs=0.0006)
    assert f"<b>{100 * ratio:.1f} %</b><span>of unlabelled pixels" in page
    assert f'Mask ratio, mean of the epoch, % <span class="key s0">Mask ratio <b>{number(100 * ratio)}</b>' in page, "the same unit"
    assert not re.search(r'(src|href)="(?!data:)', page)  # nothing from outside
    assert page.count('<span class="swatch striped"></span>not scored or no pseudo label</span>') == 3


def test_tensorboard_has_what_people_watch(run: Path) -> None:
    board = EventAccumulator(str(run), size_guidance={"images": 0, "scalars": 0})
    board.Reload()
    tags = board.Tags()
    assert {"train/loss_all", "train/grad_norm", "train/lr", "train/images_per_second", "eval/mIoU_ema"} <= set(tags["scalars"])
    assert sorted(tags["images"]) == ["data/labeled", "data/unlabeled", "samples/0", "samples/1", "samples/2"]
    assert [event.step for event in board.Images("samples/0")] == [0, 1]
    shares = [event.value for k in CLASSES for event in board.Scalars(f"pseudo_labels/{k}") if event.step == 1]
    assert len(shares) == 6
    assert 0 < sum(shares) <= 100.001
    (text,) = board.Tensors("config/text_summary")[-1].tensor_proto.string_val
    assert b"'backbone': 'dinov2_tiny'" in text


def test_page_of_a_supervised_run_says_nothing_of_a_teacher(tiny: Tiny, tmp_path: Path) -> None:
    supervised.main(tiny.args(tmp_path, "epochs=1", "batch_size=30", unlabeled=False))
    page = (tmp_path / "report.html").read_text()
    assert "best mIoU (student), epoch 0" in page
    for word in ("EMA", "pseudo label", "Mask ratio"):
        assert word not in page
    assert page.count('<span class="swatch striped"></span>not scored</span>') == 3


def test_classes_that_stay_at_0_say_why(tiny: Tiny, tmp_path: Path) -> None:
    """By a run whose labelled masks lack the class `cross` and whose validation masks lack `ring`, with a threshold nobody reaches."""
    data = make_tiny(tmp_path / "data")
    for i in range(22):
        path = data.root / f"masks/{i}.png"
        mask = np.array(Image.open(path))
        mask[mask == (5 if i < 6 else 4)] = 0
        Image.fromarray(mask).save(path)
    unimatch_v2.main(data.args(tmp_path / "run", "epochs=1", "conf_thresh=1.0", "batch_size=6"))
    page = (tmp_path / "run/report.html").read_text()
    why = dict(re.findall(r'<tr><td data-value="(\w+)">.*?<td class="why" data-value="(.*?)">', page))
    assert set(why) == set(CLASSES), "the column is there for all"
    assert why["cross"].startswith("in no labelled mask, never a pseudo label, ")
    assert why["ring"].startswith("never a pseudo label, in no mask that is scored, ")
    assert [name for name in CLASSES if "in no labelled mask" in why[name]] == ["cross"]
    iou = list(read_epochs(tmp_path / "run/metrics.jsonl")[-1].scores["EMA"]["iou"].values())
    assert [bool(why[name]) for name in CLASSES] == [value == 0 for value in iou]
    words = ["--config", str(data.config), "--checkpoint", str(tmp_path / "run/latest.pth"), "--json", str(tmp_path / "s.json")]
    evaluate.main(words)
    told = json.loads((tmp_path / "s.json").read_text())["at_zero"]
    assert set(told) == {name for name, value in zip(CLASSES, iou, strict=True) if value == 0}
    assert told["cross"].startswith("in no labelled mask, ")
    assert told["ring"].startswith("in no mask that is scored, ")


def test_a_class_that_has_fallen_to_0_says_why() -> None:
    """It was above 0 in an epoch before: its reason is that of the last evaluation, as evaluate.py gives it."""
    spec = DatasetSpec("own", ("a", "b"), bit_palette(2))
    writer = PageWriter.__new__(PageWriter)
    scores: dict[str, dict[str, Any]] = {name: {"iou": {"a": 60.0, "b": 7.0}} for name in unimatch_v2.METHOD.models}
    epochs = [Epoch(0, 1, 1.0, None, None, {}, {"a": 50.0, "b": 0.5}, scores, {})]
    writer.page = PageData("a run", {}, spec, unimatch_v2.METHOD, 2, epochs=epochs)
    writer.labeled_pixels = lambda: {0: 9, 1: 9}
    assert writer._at_zero(torch.tensor([[5, 0], [3, 0]])) == {"b": "never predicted"}
    assert writer._at_zero(torch.tensor([[5, 0], [3, 1]])) == {}


def test_pairs_are_called_pairs() -> None:
    spec = get_spec("levir")
    figures: dict[str, Any] = {"changed_iou": 40.0, "overall_accuracy": 90.0, "iou": dict.fromkeys(spec.classes, 40.0)}
    worth = {"share": 50.0, "right": 60.0, "classes": {name: {"share": 8.0, "right": 60.0} for name in spec.classes}}
    epochs = [Epoch(0, 1, 1.0, None, 9.0, {}, {}, dict.fromkeys(unimatch_v2.METHOD.models, figures), worth)]
    samples = [("0.png", [("A: before", "data:,")], [0])]
    page = render(PageData("a run", {}, spec, unimatch_v2.METHOD, 2, epochs=epochs, samples=samples)).partition("<body>")[2]
    assert all(words in page for words in ("training pairs a second", "<h2>Validation pairs</h2>", "pixels of the validation pairs are"))
    assert "images" not in page.partition("<script>")[0]


def test_reasons_by_hand() -> None:
    matrix = torch.tensor([[5, 2, 0, 0, 0], [3, 0, 0, 0, 0], [4, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    matrix[0, 4] = 1
    assert reasons(matrix, None) == {
        1: "predicted, but nowhere right",
        2: "never predicted",
        3: "in no mask that is scored, never predicted",
        4: "in no mask that is scored, predicted, but nowhere right",
    }
    assert reasons(matrix, {0: 9, 1: 9}, [1.0, 0.0, 0.5, 0.0, 0.0])[2] == "in no labelled mask, never predicted"
    assert reasons(matrix, {0: 9, 1: 9}, [1.0, 0.0, 0.5, 0.0, 0.0])[1] == "never a pseudo label, predicted, but nowhere right"


def numbers(svg: str, pattern: str) -> list[float]:
    return [float(value) for value in re.findall(pattern, svg)]


def test_axes_begin_at_0_and_have_names() -> None:
    svg = chart("mIoU, %", {"student": [(0, 70.0), (1, 72.0)]}, 3)
    assert numbers(svg, r'text-anchor="end">([\d.]+)<') == [0, 20, 40, 60, 80], "the highest figure stands above the curve"
    assert numbers(svg, r'text-anchor="middle">(\d+)<') == [0, 1, 2, 3]
    assert ">epoch<" in svg
    assert 'rotate(-90)" text-anchor="middle">%<' in svg


def test_a_single_epoch_stands_in_the_middle() -> None:
    svg = chart("Loss", {"loss": [(0, 1.5)]}, 0, y="loss")
    left, right = numbers(svg, r'class="grid" x1="(\d+)"')[0], numbers(svg, r'class="grid" x1="\d+" x2="(\d+)"')[0]
    assert numbers(svg, r'cx="([\d.]+)"') == [(left + right) / 2]
    assert numbers(svg, r'text-anchor="middle">(\d+)<') == [0]


def test_all_charts_of_a_run_end_at_one_epoch() -> None:
    """Early in a long run at twice the epochs that are done."""
    worth = {"share": 50.0, "right": 60.0, "classes": {name: {"share": 8.0, "right": 60.0} for name in CLASSES}}
    figures: dict[str, Any] = {"miou": 40.0, "pixel_accuracy": 50.0, "iou": dict.fromkeys(CLASSES, 40.0)}
    scores = {name: figures for name in unimatch_v2.METHOD.models}
    means: dict[str, float | None] = dict.fromkeys(unimatch_v2.METHOD.labels, 0.5)
    rows = [Epoch(i, i + 1, 1.0, None, 9.0, means, {}, scores, worth) for i in range(4)]
    page = render(PageData("a run", {}, get_spec("demo"), unimatch_v2.METHOD, 60, epochs=rows))
    ends = re.findall(r'>(\d+)</text><(?:polyline|line class="mark")', page)
    assert ends == ["8"] * 5


def luminance(colour: np.ndarray) -> float:
    part = colour / 255
    return float(np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722))


@pytest.mark.parametrize(("mode", "below"), [(0, 0), (1, 255)])
def test_figures_of_the_confusion_matrix_can_be_read(mode: int, below: int) -> None:
    """A contrast of at least 4.5, light and dark."""
    style = (HERE / "page.css").read_text()
    assert [{"#000": 0, "#fff": 255}[text] for text in re.findall(r"--cell: (#\w+)", style)][mode] == below
    card = np.array([int(re.findall(r"--card: #(\w+)", style)[mode][i : i + 2], 16) for i in (0, 2, 4)])
    for share in np.arange(0, 100.01, 0.1):
        cell = luminance(card + (np.array(BLUE) - card) * (share / 100) ** 0.5)
        text = luminance(np.full(3, 255 if share >= WHITE_FROM else below))
        assert (max(cell, text) + 0.05) / (min(cell, text) + 0.05) >= 4.5, share


def test_figures_of_the_confusion_picture_can_be_read() -> None:
    for share in np.arange(0, 100.01, 0.1):
        cell, text = luminance(np.array(picture._blue(share))), 1.0 if share >= picture.WHITE_FROM else 0.0
        assert (max(cell, text) + 0.05) / (min(cell, text) + 0.05) >= 4.5, share


def test_ignored_pixels_look_like_no_class() -> None:
    spec = get_spec("camvid")
    sky = spec.classes.index("sky")
    ids = np.full((30, 900), IGNORE, np.uint8)
    ids[:, 450:] = sky
    found = np.asarray(_painted(ids, spec))
    assert found.shape[1] == 400
    assert (found[:, 200:] == spec.palette[sky]).all()
    assert set(np.unique(found[:, :200])) == {205, 250}, "stripes of their full width, though the picture is smaller"


def test_the_confusion_matrix_of_any_number_of_classes() -> None:
    two = confusion_svg(np.array([[97.0, 3.0], [0.0, 100.0]]), ("a", "b <c>"))
    assert re.findall(r'class="cell(?: full)?" [^>]*>([^<]*)<', two) == ["97", "3.0", "100"]
    assert two.count("b &lt;c&gt;</text>") == 2
    many = confusion_svg(np.eye(150) * 100, [f"class {k}" for k in range(150)])
    assert not re.search(r'class="cell(?: full)?"', many)
    assert many.count("</text>") == 300
    image = Image.open(io.BytesIO(base64.b64decode(re.findall(r'base64,([^"]*)"', two)[0])))
    assert [image.getpixel(xy)[3] for xy in ((0, 0), (0, 1))] == [251, 0]  # type: ignore[index]


def test_colours_of_the_table_are_those_of_the_pictures() -> None:
    """Changed is red on pictures, where white would not be seen on roofs."""
    spec = get_spec("levir")
    assert _swatch(spec, 1) == f'<span class="swatch" style="background:rgb{picture.CHANGED}"></span>'
    assert _swatch(spec, 0) == '<span class="swatch" style="background:rgb(0, 0, 0)"></span>'


def test_round_numbers() -> None:
    assert ticks(0, 10.3) == [0, 2, 4, 6, 8, 10]
    assert ticks(71.2, 74.9) == [72, 73, 74]
    assert ticks(3, 3) == [3]
    assert ticks(0, 10.3, around=True) == [0, 2, 4, 6, 8, 10, 12]
    assert ticks(0, 60, around=True) == [0, 20, 40, 60]
    assert ticks(-3.1, 0, around=True) == [-4, -3, -2, -1, 0]
    assert ticks(0, 1.1e-12, around=True)[-1] >= 1.1e-12
    assert [duration(s) for s in (5, 200, 7500, 200_000)] == ["5 s", "3 min", "2 h 05 min", "2 d 7 h"]


class Browser:
    """Headless Chromium through the WebDriver protocol."""

    def __init__(self, port: int, profile: Path) -> None:
        self.base = f"http://127.0.0.1:{port}"
        switches = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        switches += ["--disable-sync", "--disable-dev-shm-usage", f"--user-data-dir={profile}"]
        options = {"browserName": "chrome", "goog:chromeOptions": {"args": switches}, "goog:loggingPrefs": {"browser": "ALL"}}
        self.base += "/session/" + self.call("", "/session", {"capabilities": {"alwaysMatch": options}})["sessionId"]

    def call(self, _: str, path: str, body: dict | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]

    def script(self, text: str) -> Any:
        return self.call("", "/execute/sync", {"script": text, "args": []})

    def open(self, page: Path, width: int) -> None:
        self.call("", "/window/rect", {"width": width, "height": 900})
        self.call("", "/url", {"url": page.as_uri()})

    def errors(self) -> list[dict]:
        return self.call("", "/se/log", {"type": "browser"})


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    driver = shutil.which("chromedriver")
    if driver is None or not (shutil.which("chromium") or shutil.which("google-chrome")):
        pytest.skip("no chromedriver and chromium on PATH (Debian: apt-get install chromium chromium-driver)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        window = Browser(port, tmp_path_factory.mktemp("profile"))
        yield window
        urllib.request.urlopen(urllib.request.Request(window.base, method="DELETE"), timeout=60)
    finally:
        process.terminate()
        process.wait()


COLUMN = "return [...document.querySelectorAll('table.sortable tbody tr')].map(r => r.cells[{}].dataset.value)"


@pytest.mark.parametrize("width", [1280, 390])
def test_page_in_a_browser(run: Path, browser: Browser, width: int) -> None:
    browser.open(run / "report.html", width)
    images = browser.script("return [...document.images].map(i => [i.complete, i.naturalWidth])")
    assert len(images) == 3 * 6  # six panels of three images
    assert all(complete and size > 0 for complete, size in images)
    assert browser.script("return document.documentElement.scrollWidth <= window.innerWidth")  # wide parts scroll on their own
    assert browser.script("return document.querySelectorAll('svg polyline').length") == 2 + 3 + 1 + 2 + 1
    names = browser.script(COLUMN.format(0))
    for column, turned in ((0, False), (2, True), (4, True)):
        click = f"document.querySelectorAll('table.sortable th button')[{column}].click()"
        browser.script(click)
        first = browser.script(COLUMN.format(column))
        browser.script(click)
        second = browser.script(COLUMN.format(column))
        key = (lambda v: v) if column == 0 else float
        assert first == sorted(first, key=key, reverse=turned)
        assert second == sorted(second, key=key, reverse=not turned)
    assert sorted(browser.script(COLUMN.format(0))) == sorted(names)
    ratio = "const c = (s) => getComputedStyle(document.body)[s]; return [c('color'), c('backgroundColor')]"
    assert len(set(browser.script(ratio))) == 2
    browser.script("document.querySelectorAll('.samples button')[1].click()")
    enlarged = browser.script("const d = document.querySelector('dialog'); return [d.open, d.querySelector('img').width, d.innerText]")
    assert enlarged[0]
    assert enlarged[1] > 0.85 * width - 60
    assert enlarged[2].startswith("images/18.jpg: truth\n")
    assert browser.script("const d = document.querySelector('dialog'); return d.scrollWidth <= d.clientWidth")
    assert "not scored" in enlarged[2]
    browser.script("document.querySelector('dialog').click()")
    assert not browser.script("return document.querySelector('dialog').open")
    hinted = browser.script("return [...document.querySelectorAll('.wide')].map(w => [w.scrollWidth > w.clientWidth, w.className])")
    assert all(wide == ("scrolls" in names) for wide, names in hinted)
    assert any(wide for wide, _ in hinted) == (width < 500)
    assert browser.errors() == []


@pytest.mark.parametrize("width", [1280, 400])
def test_charts_and_confusion_matrices_in_a_browser(browser: Browser, tmp_path: Path, width: int) -> None:
    """An axis' name stands clear of its longest figures; a matrix fills its card, whatever its classes, without larger letters."""
    charts = [chart("a", {"b": [(0, high), (1, high)]}, 1, y="mask ratio") for high in (1, 0.015, 0.0004, 0.00016, 120000)]
    matrices = [confusion_svg(np.eye(n) * 100, [f"class {k}" for k in range(n)]) for n in (2, 6, 11, 21)]
    cards = "".join(f'<div class="card wide">{svg}</div>' for svg in matrices)
    (tmp_path / "page.html").write_text(document("charts", f'<div class="charts">{"".join(charts)}</div>{cards}'))
    browser.open(tmp_path / "page.html", width)
    boxes = """return [...document.querySelectorAll('.chart')].map(chart => {
        const texts = [...chart.querySelectorAll('text')], box = (text) => text.getBoundingClientRect();
        const figures = texts.filter(text => text.getAttribute('text-anchor') === 'end').map(text => box(text).left);
        return [box(texts.find(text => text.hasAttribute('transform'))).right, Math.min(...figures)];
    })"""
    assert all(name < figure for name, figure in browser.script(boxes))
    edges = """return [...document.querySelectorAll('.confusion')].map(matrix => {
        const card = matrix.parentElement, from = card.getBoundingClientRect(), own = matrix.getBoundingClientRect();
        const texts = [...matrix.querySelectorAll('text')].map(text => [text.getBoundingClientRect(), text.getScreenCTM()]);
        const left = Math.min(...texts.map(([box]) => box.left)), top = Math.min(...texts.map(([box]) => box.top));
        const letters = Math.max(...texts.map(([box, to]) => Math.hypot(to.a, to.b))) * 13;
        return [from.right - own.right, left - from.left, top - from.top, letters, card.scrollWidth > card.clientWidth];
    })"""
    for classes, (right, left, top, letters, scrolls) in zip((2, 6, 11, 21), browser.script(edges), strict=True):
        assert scrolls or right == pytest.approx(13), "the card's padding and line: the matrix fills it"
        assert min(left, top) > 1, "no name is cut"
        assert letters <= 16
        assert scrolls == (width == 400 and classes > 6)


@pytest.mark.parametrize("width", [1280, 400])
def test_a_comparison_in_a_browser(browser: Browser, tmp_path: Path, width: int) -> None:
    """Its tables fit a usual window; in a small one they scroll, the page does not."""
    for method in ("supervised", "unimatch_v1", "unimatch_v2"):
        for seed in range(5):
            log = tmp_path / f"{method}{seed}/train.log"
            log.parent.mkdir()
            log.write_text(whole_log(method=method, seed=seed))
    found = compare(run for path in sorted(tmp_path.rglob("train.log")) for run in read_log(path))
    for one in found.comparisons[0].differences:
        one.t = one.over_seeds = one.over_images = one.over_both = (-10.25, 10.25)
    (tmp_path / "compare.html").write_text(compare_page(found, tmp_path))
    browser.open(tmp_path / "compare.html", width)
    assert browser.script("return document.documentElement.scrollWidth <= window.innerWidth")
    wide = browser.script("return [...document.querySelectorAll('.wide')].map(w => w.scrollWidth > w.clientWidth)")
    assert len(wide) == 2
    assert not any(wide) or width < 1000
    assert browser.script("return document.querySelector('h1').innerText") == "Methods compared on Pascal"

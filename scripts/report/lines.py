"""The shapes of a log line (METHOD.md 5) and what each says. Anything else is no line of ours, and the caller counts it.

Patterns are strict about what carries a figure: a line that was cut short by a kill must not pass for a smaller number,
so an evaluation figure needs its two decimals. Digits are bounded, so that damaged text can neither take long nor overflow.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

from engine import metric
from engine.method import EMA, STUDENT

MAX_LINE = 10_000  # characters; a header line has a few hundred

_STAMP = r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}\]\["
_ENTRY = re.compile(r"\[(\d{4})-(\d\d)-(\d\d) (\d\d):(\d\d):(\d\d),(\d{3})\]\[ *([A-Z]{1,10}) *\] ?(.*)")
_WARNINGS = ("WARNING", "ERROR")  # ours, of skipped steps, images, files: no figure is in them
_GLUED = re.compile(rf"(?<!\n)(?={_STAMP})")

_NUMBER = r"[+-]?(?:nan|inf|\d{1,9}(?:\.\d{1,12})?(?:[eE][+-]?\d{1,3})?)"
_FIGURE = r"(nan|\d{1,3}\.\d{2,6})(?![\d.])"
_EPOCH = re.compile(r"=+> Epoch: (\d{1,7}), ")
_ITER = re.compile(rf"Iters: (\d{{1,9}})(?:, [\w ]{{1,40}}: {_NUMBER})+")
_CLASSIFY_ITER = re.compile(rf"Epoch (\d{{1,7}}), Iter: (\d{{1,9}})/\d+(?:, [\w ]{{1,40}}: {_NUMBER} \({_NUMBER}\))+")
_EVALUATION = re.compile(rf"\*+ Evaluation[ \w]{{0,40}}\*+ >+ ([^:]{{1,200}}): {_FIGURE}(?:[,:] EMA(?: \([^()]*\))?: {_FIGURE})?")
_CLASSIFY_EVALUATION = re.compile(rf"<=+ Evaluation =+> Epoch: (\d{{1,7}}), (Acc|EMA)@1 {_FIGURE}(?: [\w@]+ {_FIGURE})*")
_LOADED = re.compile(r"\*+ Load from checkpoint at epoch (-1|\d{1,7})(?!\d)(?:, (\d{1,9}) steps of the next)?")
_PARAMS = re.compile(r"\w+ params: [\d.]+[KMGB]?")
# ours beside the published shapes: precision, recall and F1 of change detection; which list selects; what the pseudo labels are worth
_CHANGED_CLASS = re.compile(rf"Changed class: precision {_FIGURE}.*")
_SELECTION = re.compile(r"Selection: the best epoch by .*")
_PSEUDO_LABELS = re.compile(r"Pseudo labels (?:on the validation images: \d|right, % \(share of pixels\): ).*")
_OWN = (_CHANGED_CLASS, _SELECTION, _PSEUDO_LABELS)
# the final test of best.pth
_TEST = re.compile(rf"Test of best\.pth \(epoch \d{{1,7}}\b.{{1,800}}, ({STUDENT}|{EMA}): (\w[\w ]{{0,40}}) {_FIGURE}.*")
_TESTED = {figures[key].label: key for task, figures in metric.FIGURES.items() for key in [metric.chosen_by(task)]}
_CLASS = re.compile(r"Class \[.*\] IoU")
_FIGURE_NAMES = {figure.log: key for figures in metric.FIGURES.values() for key, figure in figures.items() if figure.log}
_FIGURE_NAMES["meanIOU"] = "miou"  # UniMatch V1's
EMA_PREFIX = "ema_"  # of figures of the moving average

# a header is a printed dictionary over several lines, or argparse's Namespace(...) on one
_LIST = r"\[(?:[^\[\]]|\[[^\[\]]*\])*"  # without its closing bracket; a palette is a list of lists
_MAPPING = r"(?:(?<='lr_factors': )|(?<='label_map': ))\{[^{}]*"  # likewise; the keys in it are no settings, as those in `criterion` are
_PAIR = re.compile(rf"""['"](\w{{1,80}})['"]: ({_LIST}\]|{_MAPPING}\}}|'[^']*'|"[^"]*"|[^\s,{{}}]+)""")
_OPEN = re.compile(rf"""['"]\w{{1,80}}['"]: (?:{_LIST}(?:\[[^\[\]]*)?|{_MAPPING})$""")
_NAMESPACE_PAIR = re.compile(r"""(\w{1,80})=('[^']*'|"[^"]*"|[^\s,()]+)""")
_HEADER_MORE = re.compile(r"""\s+['"\[({\d-]""")
_WARNING_MORE = re.compile(r"  \S")


@dataclass
class Line:
    """What one line says. kind: header, more (header continued), epoch, iter, eval, loaded, test, info, warning, blank, unread.

    number: the epoch (epoch, loaded, classification) or None; index: the iteration (loaded: the steps done in the next epoch);
    perturbed: whether an iteration line has the loss of perturbed features, which UniMatch V1 alone has;
    header: its keys as text; figures: percentages, of the epoch or the final test; test: the line of the final test as it is;
    labeled_images: how many an epoch trains on; rest: what stands behind the entry without a line end, such as the message of a program
    that ended the run.
    """

    kind: str
    time: datetime | None = None
    number: int | None = None
    index: int = 0
    is_nan: bool = False
    perturbed: bool = False
    header: dict[str, str] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    test: str = ""
    labeled_images: int | None = None
    rest: str = ""


def split_lines(text: str) -> list[str]:
    """The lines of a log: NUL bytes gone, every line ending known, and two entries glued by a lost line end parted again."""
    text = re.sub(r"\r\n?", "\n", text.replace("\0", ""))
    return _GLUED.sub("\n", text).split("\n")


def read_lines(text: str) -> Iterator[tuple[str, Line]]:
    """Yields every line with what it says. A header runs on over indented lines until the next entry, and so does a warning."""
    entry, opened = "", ""  # the kind of entry that may run on; the beginning of a list or mapping that a header's line has left open
    for raw in split_lines(text):
        line = _read(raw, entry)
        if line.kind not in ("blank", "more", "unread"):
            entry, opened = line.kind, ""
        if line.kind in ("header", "more"):
            whole = f"{opened} {raw.strip()}"[:MAX_LINE]
            found = _OPEN.search(whole)
            opened = found[0] if found and len(whole) < MAX_LINE else ""
            line.header = pairs(whole.removesuffix(opened))
        if raw.rstrip().endswith("}"):
            entry = ""
        yield raw, line


def _read(raw: str, entry: str) -> Line:
    if not raw.strip():
        return Line("blank")
    if len(raw) > MAX_LINE:
        return Line("unread")
    found = _ENTRY.fullmatch(raw.rstrip())
    if found is None:
        if raw.startswith("# "):  # of a captured screen (engine/screen.py)
            return Line("info")
        if entry == "header" and _HEADER_MORE.match(raw):
            return Line("more")
        return Line("warning" if entry == "warning" and _WARNING_MORE.match(raw) else "unread")
    line = Line("warning") if found[8] in _WARNINGS else _read_message(found[9])
    try:
        year, month, day, hour, minute, second, millisecond = (int(part) for part in found.groups()[:7])
        line.time = datetime(year, month, day, hour, minute, second, millisecond * 1000)
    except ValueError:  # damaged digits, such as month 19: the line still says what it says
        line.time = None
    return line


def _read_message(message: str) -> Line:
    if message.startswith(("{", "Namespace(")):
        return Line("header")
    if found := _EPOCH.match(message):
        return Line("epoch", number=int(found[1]))
    if found := _ITER.match(message):
        line = Line("iter", index=int(found[1]), is_nan="nan" in found[0].lower(), perturbed=", Loss w_fp: " in found[0])
    elif found := _CLASSIFY_ITER.match(message):
        line = Line("iter", number=int(found[1]), index=int(found[2]), is_nan="nan" in found[0].lower())
    elif found := _CLASSIFY_EVALUATION.match(message):
        line = Line("eval", number=int(found[1]), figures=of_model(found[2], {"acc1": float(found[3])}))
    elif found := _EVALUATION.match(message):
        line = _evaluation(found[1], found[2], found[3])
    elif found := _LOADED.match(message):
        line = Line("loaded", number=int(found[1]), index=int(found[2] or 0))
    elif found := _TEST.fullmatch(message):
        line = Line("test", test=found[0], figures=of_model(found[1], {_TESTED[found[2]]: float(found[3])} if found[2] in _TESTED else {}))
    elif found := _PARAMS.match(message) or next(filter(None, (shape.match(message) for shape in _OWN)), None):
        line = Line("info")
    else:
        return Line("unread")
    line.rest = message[found.end() :].strip()
    return line


def _evaluation(name: str, student: str, ema: str | None) -> Line:
    if _CLASS.fullmatch(name):
        return Line("info")
    if name not in _FIGURE_NAMES:
        return Line("unread")
    key = _FIGURE_NAMES[name]
    return Line("eval", figures={key: float(student)} | ({} if ema is None else of_model(EMA, {key: float(ema)})))


def of_model(model: str, figures: dict[str, float]) -> dict[str, float]:
    """Figures of a model under the names that the report has for them."""
    return {(EMA_PREFIX if model == EMA else "") + key: value for key, value in figures.items()}


def pairs(text: str) -> dict[str, str]:
    """The `'key': value` or `key=value` pairs of a header line, as text without quotes; what is damaged is not among them.

    Taken one by one rather than evaluated as a whole: warnings of other processes may stand in the middle of a header.
    """
    pattern = _NAMESPACE_PAIR if "Namespace(" in text else _PAIR
    return {key: value.strip("'\"") for key, value in pattern.findall(text)}


def is_number(value: float | None) -> bool:
    """Whether a figure was measured (not absent, not nan)."""
    return value is not None and not math.isnan(value)

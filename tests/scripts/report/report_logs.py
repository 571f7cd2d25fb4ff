"""Writes small logs in the line shapes of METHOD.md 5, for the tests of the report."""

import pprint
from collections.abc import Callable
from datetime import datetime, timedelta


class LogWriter:
    """Builds the text of a log line by line; every record is `step` seconds after the one before."""

    def __init__(self, step: float = 10.0, hour: int = 12) -> None:
        self.text = ""
        self._time = datetime(2025, 3, 1, hour)
        self._step = timedelta(seconds=step)

    def record(self, message: str) -> "LogWriter":
        self._time += self._step
        stamp = self._time.strftime("%Y-%m-%d %H:%M:%S,") + f"{self._time.microsecond // 1000:03d}"
        return self.raw(f"[{stamp}][    INFO] {message}\n")

    def raw(self, text: str) -> "LogWriter":
        self.text += text
        return self

    def header(
        self, method: str = "unimatch_v2", dataset: str = "pascal", split: str = "92", epochs: int = 3, **more: object
    ) -> "LogWriter":
        folder = f"splits/{dataset}/{split}"
        keys: dict[str, object] = {
            "backbone": "dinov2_base", "batch_size": 4, "conf_thresh": 0.95, "dataset": dataset, "epochs": epochs, "lr": 5e-06, "ngpus": 4,
            "criterion": {"kwargs": {"ignore_index": 255, "min_kept": 200000, "thresh": 0.7}, "name": "OHEM"},
            "labeled_id_path": f"{folder}/labeled.txt", "lock_backbone": False, "unlabeled_id_path": f"{folder}/unlabeled.txt",
        }  # fmt: skip
        keys |= more
        keys.setdefault("save_path", f"exp/{dataset}/{method}/{keys['backbone']}/{split}")
        return self.record(pprint.pformat(keys)).raw("\n").record("Total params: 97.5M").raw("\n")

    def epoch(self, number: int, miou: str = "80.00", ema: str = "81.00", loss: str = "0.335", teacher: str = "EMA") -> "LogWriter":
        """A semi-supervised epoch of 4 iterations, with its evaluation."""
        self.begin(number, teacher).iterations(loss)
        self.record(f"***** Evaluation ***** >>>> Class [0 background] IoU: 96.13, {teacher}: 95.89")
        return self.record(f"***** Evaluation original ***** >>>> MeanIoU: {miou}, {teacher}: {ema}").raw("\n")

    def begin(self, number: int, teacher: str = "EMA") -> "LogWriter":
        return self.record(f"===========> Epoch: {number}, Previous best: 0.00 @epoch-0, {teacher}: 0.00 @epoch-0")

    def iterations(self, loss: str = "0.335") -> "LogWriter":
        for i in (0, 5):
            self.record(f"Iters: {i}, LR: 0.0000050, Total loss: {loss}, Loss x: {loss}, Loss s: 0.008, Mask ratio: 0.339")
        return self

    def supervised_epoch(self, number: int, miou: str) -> "LogWriter":
        self.record(f"===========> Epoch: {number}, LR: 0.00001, Previous best: 0.00").record("Iters: 0, Total loss: 1.594")
        return self.record(f"***** Evaluation sliding_window ***** >>>> MeanIoU: {miou}").raw("\n")

    def change_epoch(self, number: int, iou: str, accuracy: str, colon: bool = True) -> "LogWriter":
        best = "Changed IoU: 0.00, Overall Accuracy: 0.00 @epoch-0"
        self.record(f"===========> Epoch: {number}, LR: 0.0000049, Previous best {best}, EMA: {best}")
        self.record("Iters: 105, Total loss: 0.076, Loss x: 0.146, Loss s: 0.006, Mask ratio: 0.787")
        self.record("***** Evaluation ***** >>>> Unchanged IoU: 99.90, EMA: 99.80")
        self.record(f"***** Evaluation ***** >>>> Changed IoU: {iou}{':' if colon else ','} EMA: 99.99")
        return self.record(f"***** Evaluation ***** >>>> Overall Accuracy: {accuracy}, EMA: 98.27").raw("\n")


def whole_log(epochs: int = 3, ema: Callable[[int], str] = lambda i: f"{81 + i}.00", **header: object) -> str:
    """A finished semi-supervised run whose EMA is 81.00, 82.00, ..."""
    log = LogWriter().header(epochs=epochs, **header)  # type: ignore[arg-type]
    for i in range(epochs):
        log.epoch(i, ema=ema(i))
    return log.text

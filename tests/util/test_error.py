"""An error of the user is reported once, however many workers meet it, whenever they do."""

import io
import multiprocessing
import os
import sys
import time
from multiprocessing.connection import wait
from pathlib import Path

import pytest
import torch

from util.error import UserError, run

FORK = multiprocessing.get_context("fork")


class Slow(io.StringIO):
    """A terminal on which a line takes its time, so that others come meanwhile."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def write(self, text: str) -> int:
        time.sleep(0.3)
        with open(self.path, "a") as file:
            return file.write(text)


def meet(rank: int, message: str, folder: Path) -> None:
    """A worker of torchrun that meets an error; what it prints goes to `folder`/out."""
    sys.stderr = Slow(folder / "out")
    error_file = folder / f"attempt_0/{rank}/error.json"
    error_file.parent.mkdir(parents=True)
    os.environ.update(RANK=str(rank), WORLD_SIZE="16", TORCHELASTIC_ERROR_FILE=str(error_file))

    def main(argv: list[str]) -> None:
        raise UserError(message)

    run(main, [])


def test_workers_print_the_same_user_error_once_and_each_of_theirs(tmp_path: Path) -> None:
    workers = [FORK.Process(target=meet, args=(rank, "list: no such file" if rank else "disk: full", tmp_path)) for rank in range(16)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [2] * 16
    assert sorted((tmp_path / "out").read_text().splitlines()) == ["error: disk: full", "error: list: no such file"]


def test_no_worker_ends_before_the_line_is_out(tmp_path: Path) -> None:
    """torchrun ends the others when the first one ends."""
    workers = [FORK.Process(target=meet, args=(rank, "disk: full", tmp_path)) for rank in range(4)]
    for worker in workers:
        worker.start()
    wait([worker.sentinel for worker in workers])
    assert (tmp_path / "out").read_text() == "error: disk: full\n"
    for worker in workers:
        worker.join(30)


def test_the_next_attempt_tells_it_again(tmp_path: Path) -> None:
    for attempt in ("a", "b"):
        (tmp_path / attempt).mkdir()
        worker = FORK.Process(target=meet, args=(0, "disk: full", tmp_path / attempt))
        worker.start()
        worker.join(30)
        assert (tmp_path / attempt / "out").read_text() == "error: disk: full\n"


def test_it_is_told_where_workers_cannot_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def main(argv: list[str]) -> None:
        raise UserError("disk: full")

    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "missing/attempt_0/0/error.json"))
    with pytest.raises(SystemExit, match="2"):
        run(main, [])
    assert capfd.readouterr().err == "error: disk: full\n"


def test_without_a_launcher_it_is_simply_told(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)

    def main(argv: list[str]) -> None:
        raise UserError("two\n  lines, found 'a  b'")

    with pytest.raises(SystemExit, match="2"):
        run(main, [])
    assert capfd.readouterr().err == "error: two lines, found 'a  b'\n"


def test_ctrl_c_is_one_line_and_the_exit_code_of_a_shell(capfd: pytest.CaptureFixture[str]) -> None:
    def main(argv: list[str]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        run(main, [])
    assert end.value.code == 130
    assert capfd.readouterr().err == "stopped: interrupted\n"


CUDA_LACK = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.11 GiB of which 1.12 GiB is free. Including "
    "non-PyTorch memory, this process has 77.98 GiB memory in use."
)


def take_too_much(device: str) -> None:
    if device == "gpu":
        raise torch.OutOfMemoryError(CUDA_LACK)
    torch.empty(1 << 60, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("gpu", ("Tried to allocate 20.00 MiB", "of which 1.12 GiB is free; ")),
        ("cpu", ("you tried to allocate 1152921504606846976 bytes",)),
    ],
)
def test_too_little_memory_is_one_line_that_says_what_to_do(device: str, words: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    for options, advice in (({}, "activation_checkpointing=true"), ({"save_memory": "give --tile N"}, "; give --tile N\n")):
        with pytest.raises(SystemExit, match="2"):
            run(lambda argv: take_too_much(device), [], **options)
        told = capfd.readouterr().err
        assert told.count("\n") == 1
        assert told.startswith("error: ")
        assert all(word in told for word in (*words, advice)), told


def test_another_error_of_pytorch_keeps_its_traceback() -> None:
    def main(argv: list[str]) -> None:
        torch.zeros(2) + torch.zeros(3)

    with pytest.raises(RuntimeError, match="must match the size"):
        run(main, [])

"""The one type for errors that a user can correct, and the one function that prints them."""

import hashlib
import io
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

TRAIN_WITH_LESS = (
    "resume with --set activation_checkpointing=true or precision=bf16, or start again with a smaller batch_size and as many more shards"
)


class UserError(Exception):
    """Something is wrong in what the user gave: config, path, list, label, checkpoint, device.

    The message is one line that names the file or key, what was found, what was expected and what to do.
    """


class StoppedError(Exception):
    """A command that was asked to stop ends with `code`; the message says what is saved and how to continue."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def reason(error: BaseException) -> str:
    """What an exception says, in one line: the system's words for an OSError, else the message, else its name."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def memory_lack(error: Exception) -> str:
    """How much memory was asked for and how much there is, in PyTorch's words; empty where an error is another one."""
    text = " ".join(str(error).split())
    # torch.OutOfMemoryError for its own count on a GPU, a plain RuntimeError from the driver, of a Mac and of a CPU
    if not (isinstance(error, RuntimeError) and re.search("out of memory|can't allocate memory", text)):
        return ""
    return ". ".join(re.split(r"\.+ (?=[A-Z])", text)[:3])


def run(main: Callable[[list[str]], None], argv: list[str] | None = None, save_memory: str = TRAIN_WITH_LESS) -> None:
    """Runs a command and exits: 0 when `main` returns, 2 with one line on stderr for a UserError, 130 after Ctrl-C; a bug keeps its
    traceback. save_memory: what to do where the device has too little memory; that too is one line and 2.

    All ranks of a job usually meet the same error: it is printed once. When a rank leaves, the others are surprised: they wait, and
    the launcher ends them before their traceback hides the cause. So does a bug that all of them meet, and rank 0 prints it.
    """
    first = os.environ.get("RANK", "0") == "0"
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the console's encoding lacks ends no command
            stream.reconfigure(errors="backslashreplace")
    try:
        main(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except UserError as error:
        lines = map(str.strip, str(error).splitlines())
        _refuse(" ".join(filter(None, lines)))  # spaces inside a line may be what is wrong with it
    except StoppedError as stop:
        if first:
            print(f"stopped: {stop}", file=sys.stderr, flush=True)
        sys.exit(stop.code)
    except KeyboardInterrupt:
        tell_once("stopped: interrupted")
        sys.exit(128 + signal.SIGINT)  # as shells have it
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _output_is_closed():
            sys.exit(141)  # what a shell says of a command that ends by SIGPIPE
        if lack := memory_lack(error):
            _refuse(f"{lack}; {save_memory}")
        leave_cause(f"{type(error).__name__}: {reason(error)}")
        if os.environ.get("WORLD_SIZE", "1") != "1":
            time.sleep(1 if first else 3)
        raise


def _refuse(line: str) -> NoReturn:
    tell_once(f"error: {line}")
    leave_cause(line)
    sys.exit(2)


def tell_once(line: str) -> None:
    """Prints a line on stderr, unless another worker of the same torchrun prints it."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        try:  # the workers share the folder above that of their file: the first one to come makes a file named after the line
            (Path(path).parent.parent / hashlib.sha256(line.encode()).hexdigest()).touch(exist_ok=False)
        except FileExistsError:
            time.sleep(1)  # the first worker to end ends all: not before the other one has printed the line
            return
        except OSError:  # full disk: twice is better than not at all
            pass
    print(f"{line}\n", end="", file=sys.stderr, flush=True)  # in one piece: another worker may have another line


def leave_cause(text: str) -> None:
    """Writes the file in which torchrun looks for what ended a worker; nothing without torchrun."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        whole = Path(path).with_suffix(".new")
        with suppress(OSError):  # full disk: torchrun would fail over half a file
            whole.write_text(json.dumps({"message": text[:500], "timestamp": int(time.time())}), encoding="utf-8")
            whole.rename(path)


def _output_is_closed() -> bool:
    """Whether whoever reads the output has read enough, as `| head` does. Keeps Python from writing the rest of it at its end."""
    try:
        os.write(sys.stdout.fileno(), b"\n")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False

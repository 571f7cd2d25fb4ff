"""The one error type for a user's mistake, and the one place where it is printed."""

import os
import sys
import time
from collections.abc import Callable


class UserError(Exception):
    """A mistake in what the user gave: config, path, list, label, checkpoint, device.

    The message is one line that names the file or key, what was found, what was expected and what to do.
    """


def run(main: Callable[[list[str]], None], argv: list[str] | None = None) -> None:
    """Runs a command and exits: 0 when `main` returns, 2 with one line on stderr for a UserError; a bug keeps its traceback.

    All ranks of a job usually meet the same mistake. The first one prints at once; its exit makes the launcher end the others
    while they wait here, so that the line appears once. A mistake that only another rank meets is printed after the wait.
    """
    try:
        main(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except BrokenPipeError:
        _end_quietly()
    except UserError as error:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(3)
        print("error: " + " ".join(str(error).split()), file=sys.stderr, flush=True)
        sys.exit(2)


def _end_quietly() -> None:
    """Ends the process when whoever read its output has read enough, as `| head` does. Another broken pipe is a bug."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        sys.exit(141)  # what a shell says of a command that ends by SIGPIPE
    raise

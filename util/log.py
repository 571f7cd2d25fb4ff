"""The text log: the same lines on the screen and in a file."""

import logging
import sys
from pathlib import Path

from tqdm import tqdm

from util.error import UserError, reason


class _Screen(logging.StreamHandler):
    """Writes above the progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


class _File(logging.FileHandler):
    """A line that cannot be written is printed on the screen instead; the run continues."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the standard library's name
        error = sys.exc_info()[1]
        print(f"error: {self.baseFilename}: a line is lost ({reason(error) if error else 'unknown'})", file=sys.stderr, flush=True)


def say(text: str) -> None:
    """Prints a line above the progress bar."""
    with tqdm.external_write_mode(file=sys.stdout):
        print(text, flush=True)


def open_log(path: Path | None) -> logging.Logger:
    """A logger with lines as in METHOD.md 5, to stdout and appended to `path`; None: a silent one, for all ranks but the first.

    Raises UserError where the file cannot be written. A disk that fills up later costs lines, never the run.
    """
    logger = logging.Logger("run", logging.INFO)
    if path is None:
        logger.addHandler(logging.NullHandler())
        return logger
    try:
        handlers = (_Screen(sys.stdout), _File(path, encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({reason(error)}); correct its permissions or give another --save-path") from error
    formatter = logging.Formatter("[%(asctime)s][%(levelname)8s] %(message)s")
    for handler in handlers:
        handler.setFormatter(formatter)
        logger.addHandler(handler)
    return logger

"""The text log: the same lines on the screen and in a file."""

import logging
import sys
from pathlib import Path

from tqdm import tqdm


class _Screen(logging.StreamHandler):
    """Writes above the progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


def open_log(path: Path | None) -> logging.Logger:
    """A logger with lines as in spec.md 5, to stdout and appended to `path`; None: a silent one, for all ranks but the first."""
    logger = logging.Logger("run", logging.INFO)
    if path is None:
        logger.addHandler(logging.NullHandler())
        return logger
    formatter = logging.Formatter("[%(asctime)s][%(levelname)8s] %(message)s")
    for handler in (_Screen(sys.stdout), logging.FileHandler(path, encoding="utf-8")):
        handler.setFormatter(formatter)
        logger.addHandler(handler)
    return logger

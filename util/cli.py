"""The command line parser of every command: wrong arguments end in one line, like every other error of a user."""

import argparse
from typing import Any, NoReturn

from util.error import UserError


def positive(text: str) -> int:
    """The type of an option that is a whole number above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number above 0")
    return int(text)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UserError where argparse prints its whole usage and exits. prog: the module, or the file."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if not self.prog.startswith("python"):  # a sub-command's name begins with its parser's
            self.prog = f"python {'' if self.prog.endswith('.py') else '-m '}{self.prog}"

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `{self.prog} --help` shows how it is used")

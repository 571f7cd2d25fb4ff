"""The command line parser of every command: a mistake in the arguments is one line like any other mistake."""

import argparse
from typing import Any, NoReturn

from util.error import UserError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UserError where argparse prints its whole usage and exits. prog: the module, or the file."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if not self.prog.startswith("python"):  # a sub-command's name begins with its parser's
            self.prog = f"python {'' if self.prog.endswith('.py') else '-m '}{self.prog}"

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `{self.prog} --help` shows how it is used")

"""The command line parser of every command: a mistake in the arguments is one line like any other mistake."""

import argparse
from typing import NoReturn

from util.error import UserError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UserError where argparse prints its whole usage and exits."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `python -m {self.prog} --help` shows how it is used")

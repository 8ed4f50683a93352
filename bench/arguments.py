"""Options shared by the commands of bench, and how each value is parsed."""

import argparse
import errno
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

RESULTS = Path(__file__).parent / "results"


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help.\n")


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive number of seconds, got {text!r}")
    return value


def count(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isdecimal() and len(text) < 10 and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"expected a whole number from {least} to {most}, got {text!r}")
        return int(text)

    return parse


def name(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError(f"expected a name for the code version, got {text!r}")
    return text


def is_there(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def folder(text: str) -> Path:
    """A folder that rows can be written to. It is created with the first row, not by a command that is rejected."""
    path = Path(text)
    try:
        place = next(one for one in (path, *path.parents) if is_there(one))
        if place.is_symlink() and not place.exists():
            raise FileNotFoundError(errno.ENOENT, f"it is a link to {os.readlink(place)!r}, which does not exist")
        tempfile.TemporaryFile(dir=place).close()  # before hours of measuring, not after
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot write rows to {text!r}: {error.strerror}") from None
    return path


def add_rows(command: argparse.ArgumentParser, own: Path) -> None:
    """Where rows go, and the code version that they name."""
    shown = own.relative_to(RESULTS.parents[1])
    command.add_argument(
        "--out", type=folder, default=str(own), metavar="DIR", help=f"folder for the rows (default {shown})"
    )
    command.add_argument(
        "--commit",
        type=name,
        metavar="NAME",
        help="code version for the rows (default: the commit from git; required without git)",
    )


def add_only(command: argparse.ArgumentParser, what: str, example: str) -> None:
    command.add_argument(
        "--only", default="", metavar="TEXT", help=f"only {what} whose name contains TEXT, e.g. {example}"
    )


def add_measuring(command: argparse.ArgumentParser) -> None:
    command.add_argument("--budget", type=seconds, default=450.0, metavar="SECONDS", help="total time (default 450)")
    add_only(command, "cases", "h768-b16")
    add_rows(command, RESULTS)

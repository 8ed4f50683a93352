"""What the commands of bench take: options that several share, and how each value is read."""

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
        raise argparse.ArgumentTypeError(f"expected a name for the code, got {text!r}")
    return text


def folder(text: str) -> Path:
    path = Path(text)
    try:
        if path.is_symlink() and not path.exists():
            raise FileNotFoundError(errno.ENOENT, f"a link to {os.readlink(path)!r}, where nothing is")
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()  # before hours of measuring, not after
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no folder for rows: {error.strerror}") from None
    return path


def add_rows(command: argparse.ArgumentParser, own: Path) -> None:
    """Where rows go and what they say of the code."""
    shown = own.relative_to(RESULTS.parents[1])
    command.add_argument("--out", type=folder, default=str(own), metavar="DIR", help=f"for the rows (default {shown})")
    command.add_argument(
        "--commit",
        type=name,
        metavar="NAME",
        help="of the code, for the rows (default: what git says; needed without git)",
    )


def add_only(command: argparse.ArgumentParser, what: str, example: str) -> None:
    command.add_argument(
        "--only", default="", metavar="TEXT", help=f"only {what} with TEXT in their name, e.g. {example}"
    )


def add_measuring(command: argparse.ArgumentParser) -> None:
    command.add_argument("--budget", type=seconds, default=450.0, metavar="SECONDS", help="time in all (default 450)")
    add_only(command, "cases", "h768-b16")
    add_rows(command, RESULTS)

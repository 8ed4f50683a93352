"""The command line: `python3 -m bench gate`, `tune`, `characters`, `numerics` and `plot`.

Nothing heavy is imported here, because every child process imports this file once more.
"""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


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


def folder(text: str) -> Path:
    path = Path(text)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no folder for rows: {error.strerror}") from None
    return path


def parser() -> Parser:
    top = Parser(prog="python3 -m bench", description=__doc__.splitlines()[0])
    rooms = top.add_subparsers(dest="command", required=True, metavar="gate|tune|characters|numerics|plot")
    gate = rooms.add_parser(
        "gate",
        help="parity, then speed, against torch.nn.GRU; one JSON row per measurement",
        description="Parity with torch.nn.GRU first, then the speed of both; exit 0 only if no case is red or slower "
        "and no target is missed.",
    )
    tune = rooms.add_parser(
        "tune",
        help="every launch that the plan could take, correctness first; one JSON row per measurement",
        description="Looks for the best launch of each shape; exit 0 unless one gives wrong results, hangs or fails. "
        "The same command goes on where the last one stopped.",
    )
    results = Path(__file__).parent / "results"
    for room in (gate, tune):
        room.add_argument("--budget", type=seconds, default=450.0, metavar="SECONDS", help="time in all (default 450)")
        room.add_argument(
            "--out", type=folder, default=results, metavar="DIR", help="for the rows (default bench/results)"
        )
        room.add_argument(
            "--only", default="", metavar="TEXT", help="only cases with TEXT in their name, e.g. h768-b16"
        )
        room.add_argument("--commit", default=None, help="recorded in the rows (default: what git says)")
    gate.add_argument("--impl", choices=("auto", "triton"), default="auto", help="which path of ours (default auto)")
    tune.add_argument(
        "--table", action="store_true", help="no GPU: make kernels/measured.json from the rows of the tune"
    )
    add_characters(rooms.add_parser, results)
    add_numerics(rooms.add_parser, results)
    add_plot(rooms.add_parser)
    return top


def add_characters(add_parser: Callable[..., argparse.ArgumentParser], results: Path) -> None:
    characters = add_parser(
        "characters",
        help="a character model over real text, trained with impl='torch' and impl='triton'; one JSON row per curve",
        description="Trains both from the same weights on the same batches; exit 0 only if their loss curves differ by "
        "less than torch's own varies over seeds. Sizes that are not given depend on the device.",
    )
    for name, least, most, what in (
        ("hidden", 1, 4096, "hidden size"),
        ("batch", 1, 4096, "streams of text side by side"),
        ("time", 1, 4096, "characters of a segment, over which gradients flow"),
        ("steps", 2, 100_000, "optimiser's steps"),
        ("seeds", 2, 100, "initial weights to start from"),
    ):
        characters.add_argument(f"--{name}", type=count(least, most), metavar="N", help=what)
    characters.add_argument("--dtype", choices=("fp32", "bf16"), help="default fp32; bf16 is autocast")
    characters.add_argument("--memory", choices=("save", "recompute"), help="of impl='triton' (default save)")
    own = str(results / "curves")  # a folder of its own: these are no rows of cases
    characters.add_argument(
        "--out", type=folder, default=own, metavar="DIR", help="for the rows (default bench/results/curves)"
    )
    characters.add_argument("--commit", default=None, help="recorded in the rows (default: what git says)")


def add_numerics(add_parser: Callable[..., argparse.ArgumentParser], results: Path) -> None:
    numerics = add_parser(
        "numerics",
        help="how errors grow over time, emulated on a CPU; one JSON row per error",
        description="Emulates on a CPU where the kernels round, and appends errors against float64 to a file of rows; "
        "a few minutes.",
    )
    numerics.add_argument("--seeds", type=count(1, 100), default=2, metavar="N", help="draws of data (default 2)")
    numerics.add_argument("--steps", type=count(1, 16384), default=16384, metavar="N", help="longest (default 16384)")
    own = str(results / "numerics")
    numerics.add_argument(
        "--out", type=folder, default=own, metavar="DIR", help="of the rows (default bench/results/numerics)"
    )
    numerics.add_argument("--commit", default=None, help="recorded in the rows (default: what git says)")


def add_plot(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    plot = add_parser(
        "plot",
        help="the documents' tables and figures, from the rows in bench/results",
        description="Makes the generated parts of README.md and docs, and every figure, from the committed rows.",
    )
    plot.add_argument("--check", action="store_true", help="write nothing; exit 1 if something differs from the rows")


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.command == "gate":
        from bench.gate import gate

        return gate(arguments.budget, arguments.out, arguments.impl, arguments.only, arguments.commit)
    if arguments.command == "characters":
        from bench.characters import characters

        return characters(**{name: value for name, value in vars(arguments).items() if name != "command"})
    if arguments.command == "numerics":
        from bench.numerics import run

        return run(arguments.seeds, arguments.steps, arguments.out, arguments.commit)
    if arguments.command == "plot":
        from bench.plot import plot

        return plot(arguments.check)
    if arguments.table:
        from bench.measured import write

        return write(arguments.out)
    from bench.tune import tune

    return tune(arguments.budget, arguments.out, arguments.only, arguments.commit)


if __name__ == "__main__":
    sys.exit(main())

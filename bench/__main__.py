"""The command line: `python3 -m bench gate` and `python3 -m bench tune`.

Nothing heavy is imported here, because every child process imports this file once more.
"""

import argparse
import math
import sys
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


def folder(text: str) -> Path:
    path = Path(text)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no folder for rows: {error.strerror}") from None
    return path


def parser() -> Parser:
    top = Parser(prog="python3 -m bench", description=__doc__.splitlines()[0])
    rooms = top.add_subparsers(dest="command", required=True, metavar="gate|tune")
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
    return top


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.command == "gate":
        from bench.gate import gate

        return gate(arguments.budget, arguments.out, arguments.impl, arguments.only, arguments.commit)
    if arguments.table:
        from bench.measured import write

        return write(arguments.out)
    from bench.tune import tune

    return tune(arguments.budget, arguments.out, arguments.only, arguments.commit)


if __name__ == "__main__":
    sys.exit(main())

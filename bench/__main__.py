"""The command line: `python3 -m bench run`, `gate`, `tune`, `compare`, `plot`, and the studies.

Nothing heavy is imported here, because every child process imports this file once more.
"""

import argparse
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.arguments import RESULTS, Parser, add_measuring, add_only, add_rows, count

SUITES = ("workloads", "scaling", "precisions", "grids")  # as in bench/suites.py
LOOP = "cpu"  # the suite of the loop for CPUs, which is measured on demand
TABLES = ("table", "cpu_table")  # options of the tune that make no rows

Add = Callable[..., argparse.ArgumentParser]


def add_smoke(add: Add) -> None:
    command = add(
        "smoke",
        help="does each kind of launch run at all, and agree with torch? two minutes at most; no rows",
        description="Runs each kind of launch once, in a child process with a time limit of its own: a line for each. "
        "Exit 0 only if all that this device can run agree with torch; 2 without a GPU, unless TRITON_INTERPRET=1.",
    )
    add_only(command, "steps", "stepwise")

    def run(given: Namespace) -> int:
        from bench.commands.smoke import smoke

        return smoke(given.only)

    command.set_defaults(run=run)


def add_run(add: Add) -> None:
    command = add(
        "run",
        help="real workloads, rivals, scaling and grids, with the floor; with --publish every table and figure",
        description="Measures what rows of this machine and commit do not know yet, correctness first. The documents "
        "stay as they are without --publish. The same command goes on where the last one stopped. Without a GPU it "
        "measures what a CPU can tell and says what it cannot. Exit 0 unless a case is red. `--suite cpu`, which is "
        "measured on demand and by itself, holds impl='llvm' against nn.GRU, nn.LSTM and, in real workloads, "
        "torch.compile and onnxruntime on this machine's CPU; give it --budget 2400 to do it at once.",
    )
    add_measuring(command)
    command.add_argument("--suite", action="append", choices=(*SUITES, LOOP), help="only this one; may be given again")
    command.add_argument("--study", action="store_true", help="then `study` as well, however long it takes")
    command.add_argument(
        "--publish",
        action="store_true",
        help="then `plot`: the tables and figures of README.md and docs from rows (default: no document is touched)",
    )
    command.add_argument(
        "--threads",
        choices=("1", "all", "both"),
        default="both",
        help="of the suite cpu: one, by the time it had a core; all, by the wall clock; or one after the other "
        "(default both)",
    )
    command.add_argument(
        "--isa",
        action="append",
        default=[],
        choices=("native", "avx512", "avx2", "sse2", "neon"),
        help="of the suite cpu: the instruction set that the loop is compiled for; may be given again (default: the "
        "best of this CPU, and avx2 beside avx512)",
    )

    def run(given: Namespace) -> int:
        from bench.commands.plot import is_of_documents

        suites = given.suite or SUITES
        if given.publish and not is_of_documents(given.out):
            command.error("--publish is for rows in bench/results, of which the documents are made, without --out")
        if LOOP in suites:
            if len(set(suites)) > 1:
                command.error("the suite cpu is measured by itself")
            from bench.commands.loop import suite

            asked = given.budget, given.out, given.only, given.commit, given.threads, given.isa
            return suite(*asked, given.study, given.publish)
        from bench.commands.run import run

        return run(given.budget, given.out, given.only, given.commit, suites, given.study, given.publish)

    command.set_defaults(run=run)


def add_gate(add: Add) -> None:
    command = add(
        "gate",
        help="parity, then speed, against torch.nn.GRU and the rivals; one verdict",
        description="What a call costs the host, then parity with torch.nn.GRU and the speed of both, without a GPU of "
        "the loop for CPUs, as `run --suite cpu` measures it; exit 0 only if "
        "no case is red, slower or without an answer and no target is missed. The first block of cases fits in the "
        "default budget, whatever hangs. The same command goes on where the last one stopped: what rows of this "
        "machine and commit know counts in the verdict and is not measured again, unless it was red.",
    )
    add_measuring(command)
    command.add_argument("--impl", choices=("auto", "triton"), default="auto", help="which path of ours (default auto)")

    def run(given: Namespace) -> int:
        from bench.commands.gate import gate

        return gate(given.budget, given.out, given.impl, given.only, given.commit)

    command.set_defaults(run=run)


def add_tune(add: Add) -> None:
    command = add(
        "tune",
        help="every launch that the plan could take, correctness first; one JSON row per measurement",
        description="Looks for the best launch of each shape; exit 0 unless one gives wrong results, hangs or fails. "
        "The same command goes on where the last one stopped.",
    )
    add_measuring(command)
    command.add_argument(
        "--table", action="store_true", help="no GPU: make planning/tables/measured.json from the rows of the tune"
    )

    command.add_argument(
        "--cpu-table",
        action="store_true",
        help="no GPU: make planning/tables/cpu.json from the rows of `run --suite cpu`",
    )

    def run(given: Namespace) -> int:
        if given.cpu_table:
            from bench.analysis.cpu.table import write as write_cpu

            return write_cpu(given.out)
        if given.table:
            from bench.analysis.measured import write

            return write(given.out)
        from bench.commands.tune import tune

        return tune(given.budget, given.out, given.only, given.commit)

    command.set_defaults(run=run)


def add_compare(add: Add) -> None:
    command = add(
        "compare",
        help="two row files, or the rows of two commits, side by side",
        description="Times of all that both have; exit 1 if something of ours became slower by more than the spread.",
    )
    for name in ("first", "second"):
        command.add_argument(name, help="a file of rows, or a commit that rows in --rows were made with")
    command.add_argument("--rows", type=Path, default=RESULTS, metavar="DIR", help="of commits (default bench/results)")

    def run(given: Namespace) -> int:
        from bench.analysis.compare import compare

        return compare(given.first, given.second, given.rows)

    command.set_defaults(run=run)


def add_plot(add: Add) -> None:
    command = add(
        "plot",
        help="the documents' tables and figures, from the rows in bench/results",
        description="Makes the generated parts of README.md and docs, and every figure, from the committed rows.",
    )
    command.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if something differs from the rows"
    )

    def run(given: Namespace) -> int:
        from bench.commands.plot import plot

        return plot(given.check)

    command.set_defaults(run=run)


def add_characters(add: Add) -> None:
    command = add(
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
        command.add_argument(f"--{name}", type=count(least, most), metavar="N", help=what)
    command.add_argument("--dtype", choices=("fp32", "bf16"), help="default fp32; bf16 is autocast")
    command.add_argument("--memory", choices=("save", "recompute"), help="of impl='triton' (default save)")
    add_rows(command, RESULTS / "curves")  # a folder of its own: these are no rows of cases

    def run(given: Namespace) -> int:
        from bench.study.characters import characters

        asked: dict[str, Any] = {name: value for name, value in vars(given).items() if name not in ("command", "run")}
        return characters(**asked)

    command.set_defaults(run=run)


def add_numerics(add: Add) -> None:
    command = add(
        "numerics",
        help="how errors grow over time, emulated on a CPU; one JSON row per error",
        description="Emulates on a CPU where the kernels round, and appends errors against float64 to a file of rows; "
        "a few minutes.",
    )
    command.add_argument("--seeds", type=count(1, 100), default=2, metavar="N", help="draws of data (default 2)")
    command.add_argument("--steps", type=count(1, 16384), default=16384, metavar="N", help="longest (default 16384)")
    add_rows(command, RESULTS / "numerics")

    def run(given: Namespace) -> int:
        from bench.study.numerics import run

        return run(given.seeds, given.steps, given.out, given.commit)

    command.set_defaults(run=run)


def add_study(add: Add) -> None:
    command = add(
        "study",
        help="GRU, LSTM and plain RNN on three tasks: errors and times; one JSON row per training",
        description="Chooses a rate for each model, then trains all from the same seeds on the same batches. The same "
        "command goes on where the last one stopped. Sizes that are not given are those of the task.",
    )
    add_only(command, "tasks", "adding")
    command.add_argument("--seeds", type=count(1, 100), metavar="N", help="initial weights to start from")
    command.add_argument("--steps", type=count(2, 100_000), metavar="N", help="optimiser's steps")
    add_rows(command, RESULTS / "study")

    def run(given: Namespace) -> int:
        from bench.study.command import study

        return study(given.out, given.commit, given.only, given.seeds, given.steps)

    command.set_defaults(run=run)


COMMANDS = (add_smoke, add_run, add_gate, add_tune, add_compare, add_plot, add_characters, add_numerics, add_study)


def parser() -> Parser:
    top = Parser(prog="python3 -m bench", description=(__doc__ or "").splitlines()[0])
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(commands.add_parser)
    return top


def main(argv: list[str] | None = None) -> int:
    from bench.measure.rows import NotRows, commit_here

    top = parser()
    given = top.parse_args(argv)
    if "commit" in given and not given.commit and not any(getattr(given, name, False) for name in TABLES):
        given.commit = commit_here()
        if not given.commit:
            top.error("git says nothing of this code, and rows have to name it: give --commit NAME")
    try:
        code: int = given.run(given)
    except NotRows as error:
        top.exit(2, f"{top.prog}: {error}.\n")
    return code


if __name__ == "__main__":
    sys.exit(main())

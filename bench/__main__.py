"""Benchmarks and studies of tritongru, and the documents made from them.

Nothing heavy is imported here, because every child process imports this file again.
"""

import argparse
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.arguments import RESULTS, Parser, add_measuring, add_only, add_rows, count

SUITES = ("workloads", "scaling", "precisions", "grids")  # as in bench/suites.py
LOOP = "cpu"  # the suite of the CPU loop, which runs only on request
SEQUENCES = ("lengths", "resets", "step")  # as in bench/sequences/cells.py; likewise
MODELS = "models"  # whole models of other packages; likewise
TABLES = ("table", "cpu_table")  # options of `tune` that write no rows

Add = Callable[..., argparse.ArgumentParser]


def add_smoke(add: Add) -> None:
    command = add(
        "smoke",
        help="run each kind of kernel launch once and compare it with torch; at most two minutes, writes no rows",
        description="Runs each kind of launch once, each in its own child process with a time limit, and prints a line "
        "for each. Exits with 0 only if everything this device can run agrees with torch, and with 2 without a GPU, "
        "unless TRITON_INTERPRET=1.",
    )
    add_only(command, "steps", "stepwise")

    def run(given: Namespace) -> int:
        from bench.commands.smoke import smoke

        return smoke(given.only)

    command.set_defaults(run=run)


def add_run(add: Add) -> None:
    command = add(
        "run",
        help="real workloads, scaling, precisions and grids, against rivals; --publish updates the documents",
        description="Measures what has no rows yet for this machine and commit, correctness first. Run the same "
        "command again to resume. Without a GPU it measures what a CPU can and lists what is left. Exits with 0 unless "
        "a case is red (fails its correctness check) or is cut off by its time limit. `--suite cpu` runs only on "
        "request and on its own: it compares impl='llvm' with nn.GRU, nn.LSTM and, for real workloads, torch.compile "
        "and onnxruntime on this machine's CPU; --budget 2400 is enough to finish in one go. So do `lengths`, `resets` "
        "and `step`: sequences of unequal lengths, with resets, and single steps, on a CPU or a GPU. So does `models`: "
        "training steps and inference of models from other packages (extra `ecosystem`), before and after "
        "`tritongru.convert`, on this machine's CPU.",
    )
    add_measuring(command)
    command.add_argument(
        "--suite", action="append", choices=(*SUITES, LOOP, *SEQUENCES, MODELS), help="only this suite; may be repeated"
    )
    command.add_argument("--study", action="store_true", help="also run `study` afterwards, however long it takes")
    command.add_argument(
        "--publish",
        action="store_true",
        help="also run `plot`: update the tables and figures of README.md and docs (default: leave documents alone)",
    )
    command.add_argument(
        "--threads",
        choices=("1", "all", "both"),
        default="both",
        help="suites cpu and models, and lengths, resets and step without a GPU: one thread, timed by its CPU time; "
        "all threads, by the wall clock; or both in turn (default both)",
    )
    command.add_argument(
        "--isa",
        action="append",
        default=[],
        choices=("native", "avx512", "avx2", "sse2", "neon"),
        help="suite cpu: the instruction set to compile the loop for; may be repeated (default: this CPU's best, and "
        "avx2 as well if that is avx512)",
    )

    def run(given: Namespace) -> int:
        from bench.commands.plot import can_draw, is_of_documents

        suites = given.suite or SUITES
        if given.publish and not is_of_documents(given.out):
            command.error("--publish makes the documents from the rows in bench/results; leave out --out")
        if given.publish and not can_draw():
            return 2
        if MODELS in suites:
            if len(set(suites)) > 1:
                command.error("the suite models runs on its own; leave out the other suites")
            if given.study or given.publish or given.isa:
                command.error("--study, --publish and --isa are not for the suite models")
            from bench.commands.loop import threads_of
            from bench.models.suite import suite as models

            return models(given.budget, given.out, given.only, given.commit, threads_of(given.threads))
        if {*suites} & {*SEQUENCES}:
            if not {*suites} <= {*SEQUENCES}:
                command.error(f"the suites {', '.join(SEQUENCES)} run without others; leave these out")
            if given.study or given.publish or given.isa:
                command.error(f"--study, --publish and --isa are not for the suites {', '.join(SEQUENCES)}")
            from bench.commands.loop import threads_of
            from bench.sequences.suite import suite as sequences

            return sequences(given.budget, given.out, given.only, given.commit, suites, threads_of(given.threads))
        if LOOP in suites:
            if len(set(suites)) > 1:
                command.error("the suite cpu runs on its own; leave out the other suites")
            from bench.commands.loop import suite

            asked = given.budget, given.out, given.only, given.commit, given.threads, given.isa
            return suite(*asked, given.study, given.publish)
        from bench.commands.run import run

        return run(given.budget, given.out, given.only, given.commit, suites, given.study, given.publish)

    command.set_defaults(run=run)


def add_gate(add: Add) -> None:
    command = add(
        "gate",
        help="correctness, then speed, against torch.nn.GRU and rivals; ends with one verdict",
        description="Measures what a call costs on the host, then correctness and speed against torch.nn.GRU; without "
        "a GPU those of the CPU loop, as `run --suite cpu` does. Exits with 0 only if no case is red (fails its "
        "correctness check), slower or unanswered and no target is missed. The first block of cases fits in the "
        "default budget even if everything hangs. Run the same command again to resume: cases that have rows for this "
        "machine and commit count in the verdict and are measured again only if they were red or cut off.",
    )
    add_measuring(command)
    command.add_argument(
        "--impl", choices=("auto", "triton"), default="auto", help="impl of tritongru.GRU (default auto)"
    )

    def run(given: Namespace) -> int:
        from bench.commands.gate import gate

        return gate(given.budget, given.out, given.impl, given.only, given.commit)

    command.set_defaults(run=run)


def add_tune(add: Add) -> None:
    command = add(
        "tune",
        help="try every launch that the plan could use, correctness first; one JSON row per measurement",
        description="Finds the fastest launch for each shape. Exits with 0 unless a launch gives wrong results, hangs "
        "or fails. Run the same command again to resume.",
    )
    add_measuring(command)
    command.add_argument(
        "--table", action="store_true", help="no GPU needed: make planning/tables/measured.json from the rows of `tune`"
    )

    command.add_argument(
        "--cpu-table",
        action="store_true",
        help="no GPU needed: make planning/tables/cpu.json from the rows of `run --suite cpu`",
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
        help="compare two row files, or the rows of two commits",
        description="Compares the times of everything that both contain. Exits with 1 if tritongru became slower "
        "anywhere by more than the spread.",
    )
    for name in ("first", "second"):
        command.add_argument(name, help="a row file, or a commit with rows in --rows")
    command.add_argument(
        "--rows", type=Path, default=RESULTS, metavar="DIR", help="where rows of commits are (default bench/results)"
    )

    def run(given: Namespace) -> int:
        from bench.analysis.compare import compare

        return compare(given.first, given.second, given.rows)

    command.set_defaults(run=run)


def add_plot(add: Add) -> None:
    command = add(
        "plot",
        help="regenerate the documents' tables and figures from the rows in bench/results",
        description="Regenerates every figure and the generated parts of README.md and docs from the committed rows.",
    )
    command.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if a file does not match the rows"
    )

    def run(given: Namespace) -> int:
        from bench.commands.plot import plot

        return plot(given.check)

    command.set_defaults(run=run)


def add_characters(add: Add) -> None:
    command = add(
        "characters",
        help="train a character model on real text with impl='torch' and impl='triton'; one JSON row per curve",
        description="Trains both from the same weights on the same batches. Exits with 0 only if their loss curves "
        "differ by less than torch's own vary over seeds. The default sizes depend on the device.",
    )
    for name, least, most, what in (
        ("hidden", 1, 4096, "hidden size"),
        ("batch", 1, 4096, "parallel streams of text"),
        ("time", 1, 4096, "characters per segment, over which gradients flow"),
        ("steps", 2, 100_000, "optimizer steps"),
        ("seeds", 2, 100, "number of seeds for the initial weights"),
    ):
        command.add_argument(f"--{name}", type=count(least, most), metavar="N", help=what)
    command.add_argument("--dtype", choices=("fp32", "bf16"), help="default fp32; bf16 is autocast")
    command.add_argument("--memory", choices=("save", "recompute"), help="for impl='triton' (default save)")
    add_rows(command, RESULTS / "curves")  # their own folder: these are not rows of cases

    def run(given: Namespace) -> int:
        from bench.study.characters import characters

        asked: dict[str, Any] = {name: value for name, value in vars(given).items() if name not in ("command", "run")}
        return characters(**asked)

    command.set_defaults(run=run)


def add_numerics(add: Add) -> None:
    command = add(
        "numerics",
        help="how errors grow over time, emulated on a CPU; one JSON row per error",
        description="Emulates the kernels' rounding on a CPU and appends the errors against float64 to a row file; "
        "takes a few minutes.",
    )
    command.add_argument(
        "--seeds", type=count(1, 100), default=2, metavar="N", help="number of random inputs (default 2)"
    )
    command.add_argument(
        "--steps", type=count(1, 16384), default=16384, metavar="N", help="longest sequence (default 16384)"
    )
    add_rows(command, RESULTS / "numerics")

    def run(given: Namespace) -> int:
        from bench.study.numerics import run

        return run(given.seeds, given.steps, given.out, given.commit)

    command.set_defaults(run=run)


def add_study(add: Add) -> None:
    command = add(
        "study",
        help="GRU, LSTM and plain RNN on three tasks: errors and times; one JSON row per training",
        description="Chooses a learning rate for each model, then trains all models from the same seeds on the same "
        "batches. Run the same command again to resume. The default sizes depend on the task.",
    )
    add_only(command, "tasks", "adding")
    command.add_argument("--seeds", type=count(1, 100), metavar="N", help="number of seeds")
    command.add_argument("--steps", type=count(2, 100_000), metavar="N", help="optimizer steps")
    add_rows(command, RESULTS / "study")

    def run(given: Namespace) -> int:
        from bench.study.command import study

        return study(given.out, given.commit, given.only, given.seeds, given.steps)

    command.set_defaults(run=run)


COMMANDS = (add_smoke, add_run, add_gate, add_tune, add_compare, add_plot, add_characters, add_numerics, add_study)


def parser() -> Parser:
    top = Parser(prog="python -m bench", description=(__doc__ or "").splitlines()[0])
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
            top.error("rows must name the code version, and git reports no commit here; pass --commit NAME")
    try:
        code: int = given.run(given)
    except NotRows as error:
        top.exit(2, f"{top.prog}: {error}.\n")
    return code


if __name__ == "__main__":
    sys.exit(main())

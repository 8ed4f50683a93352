"""The gate: block by block compile, then case by case parity and, where that is green, speed; then the verdict."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from bench import first_call, host
from bench.cases import Case
from bench.children import Child
from bench.examine import RESERVE_S, Ask, Budget, Say, answer, asking, compile_all, examine, introduced, rows_of, say
from bench.pair import build
from bench.report import REASONS, Result, ending, line, reasons
from bench.rows import Row, RowFile, file_name
from bench.suites import CPU_CASES, gate_blocks, gate_cases, gate_rivals
from bench.targets import Calls, judge


def run(
    blocks: Sequence[Sequence[Case]],
    prepare: Callable[[Sequence[Case]], None],
    ask: Ask,
    file: RowFile,
    where: Row,
    budget: Budget,
    impl: str,
    say: Say = say,
    calls: Callable[[], Calls] = Calls,
) -> int:
    """Case by case; the rows of one are on disk before the next begins."""
    about_a_call = calls()
    results = [[Result(case) for case in block] for block in blocks]
    say("The error over the allowed error, our time, and the others' time over it:")
    for block, members in zip(blocks, results, strict=True):
        if budget.left() > RESERVE_S:
            prepare(block)
        for result in members:
            examine(result, ask, budget)
            if result.left_out != "parity":
                for one in rows_of(result, impl, where):
                    file.append(one)
                say(line(result))
    flat = [result for members in results for result in members]
    passed, lines = ending(flat, impl, judge(flat, about_a_call))
    for text in (*reasons(flat)[:REASONS], f"Rows: {file.path}", *lines):
        say(text)
    return 0 if passed else 1


def gate(seconds: float, out: Path, impl: str, only: str, commit: str | None) -> int:
    budget = Budget(seconds)
    has_gpu = torch.cuda.is_available()
    blocks = [[case for case in block if only in case.name] for block in (gate_blocks() if has_gpu else [CPU_CASES])]
    blocks = [block for block in blocks if block]
    if not blocks:
        say(f"No case has {only!r} in its name; names look like {gate_cases()[0].name}.")
        return 2
    if not has_gpu:
        if impl == "triton":
            say("There is no GPU here, and --impl triton needs one.")
            return 2
        from bench.cpu import without_gpu

        return without_gpu(blocks[0], budget.left, out, commit)
    where, _ = introduced(commit)
    file = RowFile(out / file_name("gate", where["gpu"], where["date"]))
    child = Child(answer)

    def prepare(block: Sequence[Case]) -> None:
        compile_all([(case, build) for case in block], impl, budget)

    ask = asking(child, impl, gate_rivals, where, budget)

    def calls() -> Calls:
        return Calls(
            host.on_gpu(file, where, max(1.0, budget.left())), first_call.on_gpu(file, where, max(1.0, budget.left()))
        )

    try:
        return run(blocks, prepare, ask, file, where, budget, impl, calls=calls)
    finally:
        child.stop()

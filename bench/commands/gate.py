"""The gate: compile block by block, then check each case and time it if it is green; then the verdict.

A block's time limit is the sum of the limits inside it, chosen so that the first block fits in the budget.
Cases that have rows of the same machine and commit are not measured again, and count in the verdict.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from bench.analysis.report import REASONS, Result, ending, line, reasons
from bench.analysis.targets import Calls, judge
from bench.calls import first_call, host
from bench.measure.cases import Case
from bench.measure.ceilings import operations
from bench.measure.children import STOP_S, Child
from bench.measure.pair import build
from bench.measure.rows import Row, RowFile, file_name
from bench.rivals import ALLOWANCES_S, FORCED
from bench.session.examine import (
    RESERVE_S,
    Ask,
    Budget,
    Say,
    answer,
    asking,
    compile_all,
    examine,
    introduced,
    rows_of,
    say,
)
from bench.session.known import calls_on_gpu, known_in, results_of
from bench.suites import gate_blocks, gate_cases, gate_rivals

OPENING_S = 10.0  # until the first question: names of device and driver
CALLS_S = sum(  # of the budget, before any case: host costs and first calls
    each * (limit + STOP_S)
    for each, limit in ((len(host.HIDDEN), host.GPU_LIMIT_S), (len(first_call.CASES), first_call.GPU_LIMIT_S))
)
COMPILE_S = 60.0  # of a block: a process starts and compiles kernels, two seconds each
CASE_S = 22.0  # of a case: a process restart, parity, first calls of all and the rounds
# Assumed in addition: loops in float64 and of nn.GRU, by layer and direction, and products in float64.
STEPS_A_SECOND, OPERATIONS_A_SECOND = 400, 5e12


def case_limit_s(case: Case, rivals: Sequence[str]) -> float:
    """Seconds for all questions about a case, repeated ones included."""
    steps = case.time * case.layers * case.directions / STEPS_A_SECOND
    allowed = sum(ALLOWANCES_S.get(name, 0.0) for name in rivals)
    return CASE_S + steps + operations(case) / OPERATIONS_A_SECOND + allowed


def block_limit_s(block: Sequence[Case], rivals: Callable[[Case], Sequence[str]] = gate_rivals) -> float:
    """Most seconds that a block can take if everything in it hangs, with stopping each process."""
    return COMPILE_S + STOP_S + sum(case_limit_s(case, rivals(case)) + STOP_S for case in block)


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
    known: Mapping[str, Result] | None = None,
) -> int:
    """Case by case; each has its rows on disk before the next begins."""
    about_a_call, known = calls(), known or {}
    results = [[known.get(case.name) or Result(case) for case in block] for block in blocks]
    say("For each case: error over allowed error, our time, and the others' times over ours:")
    for members in results:
        todo = [result for result in members if not result.earlier]
        if todo and budget.left() > RESERVE_S:
            block = [result.case for result in todo]
            say(f"A block of {len(block)} cases, at most {block_limit_s(block):.0f} s.")
            prepare(block)
        for result in todo:
            examine(result, ask, budget, case_limit_s(result.case, gate_rivals(result.case)))
            if result.left_out != "parity":
                for one in rows_of(result, impl, where):
                    file.append(one)
                say(line(result))
    flat = [result for members in results for result in members]
    passed, lines = ending(flat, impl, judge(flat, about_a_call), about_a_call.missing, about_a_call.earlier)
    for text in (*reasons(flat)[:REASONS], f"Rows: {file.path}", *lines):
        say(text)
    return 0 if passed else 1


def gate(seconds: float, out: Path, impl: str, only: str, commit: str | None) -> int:
    budget = Budget(seconds)
    if not torch.cuda.is_available():
        if impl == "triton":
            say("--impl triton needs a GPU, and there is none here.")
            return 2
        from bench.commands.cpu import without_gpu

        return without_gpu(only, budget, out, commit)
    blocks = [[case for case in block if only in case.name] for block in gate_blocks()]
    blocks = [block for block in blocks if block]
    if not blocks:
        say(f"No case name contains {only!r}; names look like {gate_cases()[0].name}.")
        return 2
    where, _ = introduced(commit)
    rows = known_in(out, where)
    known = results_of(rows, [(case, rivals(case, impl)) for block in blocks for case in block], impl)
    say(f"Already measured with commit {where['commit']}: {len(known)} of {sum(map(len, blocks))} cases.")
    file = RowFile(out / file_name("gate", where["gpu"], where["date"]))
    child = Child(answer)

    def prepare(block: Sequence[Case]) -> None:
        compile_all([(case, build) for case in block], impl, budget, COMPILE_S)

    ask = asking(child, impl, lambda case: rivals(case, impl), where, budget)

    def calls() -> Calls:
        if only:
            return Calls()
        with budget.at_most(CALLS_S):
            return calls_on_gpu(file, where, rows, budget)

    try:
        return run(blocks, prepare, ask, file, where, budget, impl, calls=calls, known=known)
    finally:
        child.stop()


def rivals(case: Case, impl: str) -> tuple[str, ...]:
    """Our forced kernels are not a rival of themselves."""
    return tuple(name for name in gate_rivals(case) if impl == "auto" or name != FORCED)

"""The gate: compile, then parity of every case, then the speed of those that are green, then the verdict."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.cases import CPU_CASES, Case, gate_cases
from bench.children import START_LIMIT_S, Child, Failed, TimedOut, sentence
from bench.pair import OURS, THEIRS, check, take_time
from bench.parity import Parity
from bench.report import Result, means, table, verdict
from bench.rows import Row, RowFile, facts, file_name, row

COMPILE_LIMIT_S = 120.0
CASE_LIMIT_S = 30.0
RESERVE_S = 8.0  # with less than this left, no case is begun

Say = Callable[[str], None]


class Budget:
    """Seconds that are left."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        return self.end - time.monotonic()


def answer(what: str, case: Case, impl: str) -> Any:
    """Runs in the child process: (Parity, family), or the times of both."""
    device = torch.device("cuda")
    torch.seed()  # other data in every run; torch starts each process from the same seed
    try:
        return check(case, impl, device) if what == "parity" else take_time(case, impl, device)
    except Exception as error:
        torch.cuda.synchronize()  # raises if the error broke the CUDA context, which ends this process
        raise Failed(sentence(error)) from None


Ask = Callable[[str, Case, float], Any]


def say(line: str) -> None:
    print(line, flush=True)


def find_parity(result: Result, ask: Ask, limit_s: float) -> None:
    found: Parity
    found, result.family = ask("parity", result.case, limit_s)
    result.parity, result.their_parity = found.ours, found.theirs
    result.green, result.repeatable = found.green, found.repeatable
    result.failure = None if found.green else found.worst


def find_speed(result: Result, ask: Ask, limit_s: float) -> None:
    result.times = ask("speed", result.case, limit_s)


def run(cases: Sequence[Case], ask: Ask, file: RowFile, where: Row, budget: Budget, impl: str, say: Say = say) -> int:
    """Parity first, speed only where it is green; a row per implementation as soon as a case is settled."""
    results = [Result(case) for case in cases]

    def write(result: Result) -> None:
        ours = OURS if impl == "auto" else f"{OURS}[{impl}]"
        for key, name, family, parity in (
            (OURS, ours, result.family, result.parity),
            (THEIRS, THEIRS, "torch", result.their_parity),
        ):
            file.append(row(result.case, name, where, family=family, parity=parity, **result.times.get(key, {})))

    def settle(result: Result, what: str, find: Callable[[Result, Ask, float], None]) -> None:
        """One question about one case. A case that hangs or fails is red, whatever was known of it before."""
        result.left_out = what
        if budget.left() < RESERVE_S:
            return
        try:
            find(result, ask, min(CASE_LIMIT_S, budget.left()))
        except Failed as failed:
            if isinstance(failed, TimedOut) and budget.left() < RESERVE_S:
                return  # the end of the budget stopped it, which says nothing about the case
            result.green, result.failure = False, str(failed)
            result.parity = result.their_parity = None
        result.left_out = None

    say(f"Parity of {len(cases)} cases against float64, the error over the allowed error:")
    for result in results:
        settle(result, "parity", find_parity)
        if result.left_out is None:
            say(f"  {result.case.name}: " + (result.failure or f"{result.parity:.3f} {result.family}"))
            if not result.green:
                write(result)
    say("Speed of the green ones:")
    for result in results:
        if result.green:
            settle(result, "speed", find_speed)
            write(result)
            if result.left_out is None:
                say(f"  {result.case.name}: " + (result.failure or f"{result.ratio:.2f}x"))
    passed, sentences = verdict(results, impl)
    for line in (f"Rows: {file.path}", *table(results), *means(results), *sentences):
        say(line)
    return 0 if passed else 1


def gate(seconds: float, out: Path, impl: str, only: str, commit: str | None) -> int:
    budget = Budget(seconds)
    has_gpu = torch.cuda.is_available()
    cases = [case for case in (gate_cases() if has_gpu else CPU_CASES) if only in case.name]
    if not cases:
        say(f"No case has {only!r} in its name; names look like {gate_cases()[0].name}.")
        return 2
    if not has_gpu:
        if impl == "triton":
            say("There is no GPU here, and --impl triton needs one.")
            return 2
        from bench.cpu import without_gpu

        return without_gpu(cases, budget.left, out, commit)
    from bench.warm import warm

    where = facts(torch.cuda.get_device_name(0), commit)
    file = RowFile(out / file_name("gate", where["gpu"], where["date"]))
    say(f"{where['gpu']}, driver {where['driver']}, torch {where['torch']}, triton {where['triton']}.")
    started = time.monotonic()
    failures = warm(cases, min(COMPILE_LIMIT_S, budget.left() / 2))
    say(f"Compiled in {time.monotonic() - started:.0f} s.")
    for name, reason in failures.items():
        say(f"  not compiled: {name}: {reason}")
    child = Child(answer)

    def ask(what: str, case: Case, limit_s: float) -> Any:
        return child.ask(what, case, impl, limit_s=limit_s, start_s=min(START_LIMIT_S, max(1.0, budget.left())))

    try:
        return run(cases, ask, file, where, budget, impl)
    finally:
        child.stop()

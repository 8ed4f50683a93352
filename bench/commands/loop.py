"""The suite `cpu` of `run`, and the gate's verdict on the CPU loop."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.analysis.cpu.report import tables, verdict
from bench.analysis.cpu.targets import Asked, judge
from bench.calls.cpu import fresh
from bench.commands.plot import published
from bench.measure.children import Child
from bench.measure.cpu.cells import WORKLOAD, Cell, cells
from bench.measure.cpu.rows import of_this_cpu
from bench.measure.rows import Row, RowFile, facts, file_name
from bench.rivals.instruction_sets import sets_of
from bench.session.examine import RESERVE_S, Budget, say
from bench.session.known import known_in
from bench.session.loop import Session, answer
from bench.study.command import beside
from tritongru.planning.instruction_sets import refusal

FRESH = (*fresh.FIRST_NAMES, fresh.PEAK_NAME)


def threads_of(asked: str) -> tuple[int, ...]:
    all_threads = torch.get_num_threads()
    return {"1": (1,), "all": (all_threads,), "both": tuple(dict.fromkeys((1, all_threads)))}[asked]


def suite(
    seconds: float,
    out: Path,
    only: str,
    commit: str | None,
    threads: str,
    sets: Sequence[str],
    studies: bool = False,
    publish: bool = False,
) -> int:
    """`run --suite cpu`: measure and print the tables; 1 if something is red."""
    budget = Budget(seconds)
    chosen = chosen_cells(only)
    if chosen is None:
        return 2
    try:
        found = sets_here(sets)
    except ValueError as error:
        say(f"The CPU loop cannot be measured: {error}.")
        return 2
    where = facts(None, commit, None, secrets.randbits(48))
    session = measured(chosen, only, threads, found, out, where, budget)
    for text in tables(session.known, session.asked.sets, session.threads):
        say(text)
    say(f"Rows: {session.file.path}")
    if session.left:
        say(f"No time for {len(session.left)} calls; run the same command with the same commit to resume.")
    say(f"Red or unanswered: {', '.join(session.red)}." if session.red else "Nothing was red.")
    code = beside(out, commit) if studies else 0
    published(out, publish)
    return 1 if session.red else code


def judged(only: str, out: Path, where: Row, budget: Budget) -> int:
    """For the gate: measure what has no rows yet, with one thread and with all; then a verdict."""
    chosen = chosen_cells(only)
    if chosen is None:
        return 2
    chosen = [cell for cell in chosen if cell.part != WORKLOAD]  # they have no targets
    reason = refusal()
    if reason:
        say(f"No verdict on the CPU loop: {reason}.")
        return 2
    session = measured(chosen, only, "both", sets_here(()), out, where, budget)
    for text in tables(session.known, session.asked.sets, session.threads):
        say(text)
    have = {case for case, _ in session.known.found}
    left = session.left + [name for name in FRESH if only in name and name not in have]
    passed, lines = verdict(judge(session.known, session.asked), session.red, left)
    for text in (f"Rows: {session.file.path}", *lines):
        say(text)
    return 0 if passed else 1


def sets_here(asked: Sequence[str]) -> tuple[str, ...]:
    """
    Raises:
        ValueError: if no loop can be compiled here, or a requested one cannot run.
    """
    reason = refusal()
    if reason:
        raise ValueError(reason)
    return sets_of(asked)


def chosen_cells(only: str) -> list[Cell] | None:
    """None, with a message, if no name contains ``only``."""
    chosen = [cell for cell in cells() if only in cell.name]
    if chosen or any(only in name for name in FRESH):
        return chosen
    say(f"No call name contains {only!r}; names look like {cells()[1].name}, {FRESH[0]} and {FRESH[-1]}.")
    return None


def measured(
    chosen: Sequence[Cell], only: str, threads: str, sets: tuple[str, ...], out: Path, where: Row, budget: Budget
) -> Session:
    where = of_this_cpu(where)
    file = RowFile(out / file_name("run-cpu", where["cpu"], where["date"]))
    asked = Asked(sets, torch.get_num_threads())
    session = Session(asked, threads_of(threads), file, where, budget, known_in(out, where))
    questions = session.open_questions(chosen)
    numbers = " then ".join(str(number) for number in session.threads)
    say(f"{where['cpu']}, {', '.join(sets)}, threads {numbers}; torch {where['torch']}, llvmlite {where['llvmlite']}.")
    say(f"To measure: {len(questions)} of {len(chosen)} calls; the others have rows with commit {where['commit']}.")
    child = Child(answer)
    try:
        session.measure(questions[:1], child)  # the single step, before the long calls
        of_fresh_processes(session, only)
        session.measure(questions[1:], child)
    finally:
        child.stop()
    return session


def of_fresh_processes(session: Session, only: str) -> None:
    """The first call and the memory of a training step, with the host's best instruction set only."""
    known = {case for case, _ in session.known.found}
    about = session.append, session.where, session.asked.sets[0], session.asked.threads
    for names, measure in ((fresh.FIRST_NAMES, fresh.measured_first), ([fresh.PEAK_NAME], fresh.measured_peaks)):
        asked = [name for name in names if only in name]
        if asked and not {*names} <= known and session.budget.left() > RESERVE_S:
            measure(*about)

"""The suites `lengths`, `resets` and `step` of `run`: rows in a folder of their own, and a table at the end."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.measure.children import Child, Failed
from bench.measure.cpu.cells import counted
from bench.measure.cpu.rows import of_this_cpu
from bench.measure.cpu.timing import LIMIT_S, ROUNDS
from bench.measure.pair import OURS
from bench.measure.rows import MACHINE_KEYS, Row, RowFile, facts, file_name, number, read_all, row
from bench.sequences.cells import Cell, cells
from bench.sequences.examine import Found, Question, answer
from bench.session.examine import RESERVE_S, Budget, say

FOLDER = "sequences"
CELL_S = 200.0  # for a cell, with each number of threads
RED = 2  # exit code of a command that measures nothing
SAME = (*MACHINE_KEYS, "commit")


def suite(
    seconds: float, out: Path, only: str, commit: str | None, suites: Sequence[str], threads: Sequence[int]
) -> int:
    """Measures what has no rows yet for this machine and commit; 1 if a result of ours is red."""
    on_gpu = torch.cuda.is_available()
    chosen = [cell for name in suites for cell in cells(name, on_gpu) if only in cell.name]
    if not chosen:
        say(f"No case of {', '.join(suites)} has a name that contains {only!r}.")
        return RED
    budget, where = Budget(seconds), facts_here(on_gpu, commit)
    threads = threads[-1:] if on_gpu else threads  # the host's threads do not matter there
    device = where["gpu"] if on_gpu else where["cpu"]
    file = RowFile(out / FOLDER / file_name("sequences", device, where["date"]))
    known = {(one["case"], one["impl"]) for one in rows_in(out) if all(one[key] == where[key] for key in SAME)}
    todo = [
        (cell, open_)
        for cell in chosen
        if (open_ := tuple(n for n in threads if (case_name(cell, n, on_gpu), OURS) not in known))
    ]
    say(f"{device}; torch {where['torch']}. To measure: {len(todo)} of {len(chosen)} cases.")
    child, red, left = Child(answer), [], []
    try:
        for cell, open_ in todo:
            if budget.left() < RESERVE_S:
                left.append(cell.name)
                continue
            question = Question(cell, open_, "cuda" if on_gpu else "cpu", where["seed"], ROUNDS, LIMIT_S)
            try:
                limit_s = min(CELL_S, budget.left())
                answers: list[Found] = child.ask(question, limit_s=limit_s, start_s=budget.to_start())
            except Failed as failed:
                red.append(f"{cell.name} ({failed})")
                continue
            for found in answers:
                for one in rows_of(cell, found, where, on_gpu):
                    file.append(one)
                say(line(cell, found))
                if OURS not in found.times:
                    red.append(f"{cell.name} ({found.missing.get(OURS)})")
    finally:
        child.stop()
    say(f"Rows: {file.path}")
    if left:
        say(f"No time for {len(left)} cases; run the same command with the same commit to resume.")
    say(f"Red: {'; '.join(red)}." if red else "No case was red.")
    return 1 if red else 0


def facts_here(on_gpu: bool, commit: str | None) -> Row:
    seed = secrets.randbits(48)
    if on_gpu:
        major, minor = torch.cuda.get_device_capability()
        return facts(torch.cuda.get_device_name(), commit, f"sm_{major}{minor}", seed)
    return of_this_cpu(facts(None, commit, None, seed))


def rows_in(out: Path) -> list[Row]:
    return read_all(out / FOLDER)


def case_name(cell: Cell, threads: int, on_gpu: bool) -> str:
    return cell.name if on_gpu else f"{cell.name}-{counted(threads, '-')}"


def rows_of(cell: Cell, found: Found, where: Row, on_gpu: bool) -> list[Row]:
    """A row for each way; those of others have their time over ours."""
    rows = []
    for name in dict.fromkeys((*found.times, *found.missing)):
        times = found.times.get(name)
        timed = {} if times is None else {"ms": times.ms, "spread": times.spread, "rounds": times.rounds}
        about = {"parity": found.parities.get(name), "reason": found.missing.get(name)}
        made = row(cell.case, name, where, family=None, **about, **timed)  # type: ignore[arg-type]
        made |= {"case": case_name(cell, found.threads, on_gpu), "load": number(found.load)}
        if not on_gpu:
            made |= {"threads": found.threads, "clock": "thread" if found.threads == 1 else "wall"}
        if times is not None:
            made["least_ms"] = number(times.least_ms)
        if name in found.over:
            made["over"] = {OURS: [number(value) for value in found.over[name]]}
        rows.append(made)
    return rows


def line(cell: Cell, found: Found) -> str:
    own = found.times.get(OURS)
    if own is None:
        return f"{cell.name}, {counted(found.threads)}: {found.missing.get(OURS)}"
    others = ", ".join(f"{name} {ratio[0]:.2f}" for name, ratio in found.over.items())
    missing = "".join(f"; no {name}: {why}" for name, why in found.missing.items())
    return f"{cell.name}, {counted(found.threads)}: {own.least_ms:.4g} ms; times ours: {others}{missing}"

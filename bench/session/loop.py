"""The CPU loop, call by call: a child process's answers, and their rows, on disk before the next call begins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bench.analysis.cpu.known import Known, is_of_loop
from bench.analysis.cpu.report import line, rivals_line
from bench.analysis.cpu.targets import Asked
from bench.calls.cpu import beside
from bench.calls.cpu import cell as calls
from bench.calls.cpu.beside import Beside
from bench.calls.cpu.cell import Found, Question, load_now
from bench.measure.children import Child, Failed, TimedOut
from bench.measure.cpu.cells import WORKLOAD, Cell, counted
from bench.measure.cpu.rows import floor_row, ours, ours_row, timed_row
from bench.measure.cpu.timing import Times
from bench.measure.pair import THEIRS
from bench.measure.rows import Row, RowFile, number
from bench.rivals.on_cpu import groups
from bench.session.examine import RESERVE_S, Budget, Say, say

FLOORS_S = 60.0
CELL_S = 150.0  # for a call; the largest takes about ten seconds on a quiet machine
WORKLOAD_S = 400.0  # for a workload; the largest takes two minutes
RIVALS_S = 240.0  # for rivals that are asked together, compilation included
RIVALS_ROUNDS_S = 0.8  # for their rounds beside ours; as few as three for long calls
PEAK = "fma"  # as in bench/measure/cpu/floors.py, which needs llvmlite
Peaks = dict[tuple[str, int], float]  # operations per second, by instruction set and threads


@dataclass
class Session:
    """``asked.sets`` are measured together, interleaved with torch's; ``threads`` one after another."""

    asked: Asked
    threads: tuple[int, ...]
    file: RowFile
    where: Row
    budget: Budget
    rows: list[Row] = field(default_factory=list)  # from earlier commands, then of this one
    red: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)  # rivals that hung, and where: they are not run again
    peaks: Peaks | None = None
    say: Say = say

    @property
    def known(self) -> Known:
        return Known(filter(is_of_loop, self.rows))

    def append(self, row: Row) -> None:
        self.file.append(row)
        self.rows.append(row)

    def open_questions(self, cells: Sequence[Cell]) -> list[Question]:
        """For each call what has no rows yet."""
        known, questions = self.known, []
        for cell in cells:
            open_ = [
                (isa, number)
                for isa in self.asked.sets
                for number in self.threads
                if not known.settled(cell, isa, number)
            ]
            if open_:
                sets = tuple(isa for isa in self.asked.sets if any(isa == one for one, _ in open_))
                threads = tuple(number for number in self.threads if any(number == one for _, one in open_))
                questions.append(Question(cell, sets, threads, self.where["seed"]))
        return questions

    def measure(self, questions: Sequence[Question], child: Child) -> None:
        if questions and self.peaks is None and self.budget.left() > RESERVE_S:
            self.peaks = self.floors(child)
        for question in questions:
            cell = question.cell
            if self.budget.left() < RESERVE_S:
                self.left.append(cell.name)
                continue
            try:
                limit_s = min(WORKLOAD_S if cell.part == WORKLOAD else CELL_S, self.budget.left())
                found: list[Found] = child.ask("cell", question, limit_s=limit_s, start_s=self.budget.to_start())
            except TimedOut as late:
                if self.budget.left() < RESERVE_S:
                    self.left.append(cell.name)
                else:
                    self.failed(question, str(late))
            except Failed as failed:
                self.failed(question, str(failed))
            else:
                for one in found:
                    self.answered(cell, one)
                self.rivals(question, found, child)

    def rivals(self, question: Question, found: Sequence[Found], child: Child) -> None:
        """The rivals' times beside ours, in separate questions: if they fail, our rows exist already. Nothing is
        compared with a red result."""
        cell, threads = question.cell, tuple(one.threads for one in found)
        sets = tuple(isa for isa in question.sets if all(isa in one.times for one in found))
        for names in groups(cell) if sets else []:
            broken = [self.broken[name] for name in names if name in self.broken]
            if broken:
                self.without(cell, names, threads, broken[0])
                continue
            if self.budget.left() < RESERVE_S:
                self.left.append(cell.name)
                return
            limit_s = min(RIVALS_S, self.budget.left())
            asked = replace(question, sets=sets, threads=threads, rivals=names, limit_s=RIVALS_ROUNDS_S)
            try:
                answers: list[Beside] = child.ask("rivals", asked, limit_s=limit_s, start_s=self.budget.to_start())
            except TimedOut as late:
                if self.budget.left() < RESERVE_S:
                    self.left.append(cell.name)
                    return
                self.broken |= dict.fromkeys(names, f"left out after {cell.name}: {late}")
                self.without(cell, names, threads, str(late))
            except Failed as failed:
                self.without(cell, names, threads, str(failed))
            else:
                for one in answers:
                    self.stood_beside(cell, one)

    def without(self, cell: Cell, names: Iterable[str], threads: Iterable[int], why: str) -> None:
        """Rows of rivals that gave no answer."""
        for one in threads:
            self.stood_beside(cell, Beside(one, load_now(), missing=dict.fromkeys(names, why)))

    def stood_beside(self, cell: Cell, found: Beside) -> None:
        """Rows of the rivals, and our row again, with the ratio to each of them."""
        rows = []
        for name in (*found.times, *found.missing):
            about = {"family": "torch", "parity": found.parities.get(name), "how": found.hows.get(name)}
            about["reason"] = found.missing.get(name)
            rows.append(timed_row(cell, name, found.threads, found.load, self.where, found.times.get(name), about))
        for isa, over in found.over.items():
            own = self.known.row(cell, isa, found.threads)
            if own is not None:
                rows.append(own | {"over": own["over"] | {name: list(map(number, one)) for name, one in over.items()}})
        for row in rows:
            self.append(row)
        self.say(rivals_line(rows))

    def floors(self, child: Child) -> Peaks:
        """Measured by the child and written to disk; empty if that failed: the rows then have no share of the peak."""
        load = load_now()
        try:
            limit_s = min(FLOORS_S, self.budget.left())
            found = child.ask("floors", self.asked.sets, self.threads, limit_s=limit_s, start_s=self.budget.to_start())
        except Failed as failed:
            self.say(f"The CPU's peak rates were not measured: {failed}")
            return {}
        for one in found:
            self.append(floor_row(one, load, self.where))
            unit = "GFLOP/s" if one.name == PEAK else "GB/s read"
            self.say(f"Ceiling, {one.name}, {one.isa}, {counted(one.threads)}: {one.rate / 1e9:.0f} {unit}.")
        return {(one.isa, one.threads): one.rate for one in found if one.name == PEAK}

    def answered(self, cell: Cell, found: Found) -> None:
        rows = rows_of(cell, found, self.peaks or {}, self.where)
        for row in rows:
            self.append(row)
        if not all(parity.green for parity in found.parities.values()):
            self.red.append(cell.row_name(found.threads))
        self.say(line(rows))

    def failed(self, question: Question, why: str) -> None:
        """No answer: a row gives the reason."""
        cell = question.cell
        for threads in question.threads:
            for isa in question.sets:
                about = {"family": "llvm", "parity": None, "reason": why}
                made = timed_row(cell, ours(isa), threads, load_now(), self.where, None, about)
                self.append(ours_row(made, cell, isa, None, {}))
        self.red.append(cell.name)
        self.say(f"  {cell.name}: {why}")


def answer(what: str, *given: Any) -> Any:
    """Runs in the child process."""
    if what == "floors":
        from bench.measure.cpu.floors import measure

        return measure(*given)
    return beside.answer(*given) if what == "rivals" else calls.answer(*given)


def rows_of(cell: Cell, found: Found, peaks: Peaks, where: Row) -> list[Row]:
    """One for each instruction set of ours, timed or not, and for each of torch's layers."""
    rows = []

    def make(impl: str, times: Times | None, **about: Any) -> Row:
        return timed_row(cell, impl, found.threads, found.load, where, times, about)

    for isa, parity in found.parities.items():
        reason = None if parity.green else parity.worst
        about: Row = {"family": "llvm", "parity": parity.ours, "repeatable": parity.repeatable, "reason": reason}
        made = make(ours(isa), found.times.get(isa), **about)
        rows.append(ours_row(made, cell, isa, peaks.get((isa, found.threads)), found.over.get(isa, {})))
    theirs = max((parity.theirs for parity in found.parities.values()), default=None)
    for name, times in found.times.items():
        if name not in found.parities:
            rows.append(make(name, times, family="torch", parity=theirs if name == THEIRS else None))
    return rows

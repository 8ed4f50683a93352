"""Rows of the loop for CPUs as the pages read them: by CPU, instruction set and number of threads, of each call and
implementation the one written last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.analysis.cpu.known import Known, is_green, is_of_loop
from bench.analysis.measured import rows_in
from bench.analysis.ratios import ratio_text
from bench.measure.cpu.cells import Cell, counted
from bench.measure.cpu.rows import ours
from bench.measure.pair import THEIRS
from bench.measure.rows import Row
from bench.measure.timing import geomean
from bench.pages.evidence import listed
from tritongru.planning.instruction_sets import SETS  # the best first

RED = "red"  # instead of a ratio where results are wrong or there was no answer


def read(folder: Path) -> list[Row]:
    return [row for row in rows_in(folder) if is_of_loop(row)]


@dataclass(frozen=True)
class View:
    """One CPU with one instruction set and so many threads. ``most``: of all numbers of threads in its rows."""

    cpu: str
    isa: str
    threads: int
    most: int
    known: Known

    @property
    def host(self) -> str:
        return f"{self.cpu}, {SETS[self.isa].title}"

    @property
    def name(self) -> str:
        return f"{self.host}, {counted(self.threads)}"

    def row(self, cell: Cell) -> Row | None:
        return self.known.row(cell, self.isa, self.threads)

    def over(self, cell: Cell, rival: str = THEIRS) -> float | None:
        """A rival's time over ours; None of what is red."""
        return self.known.over(cell, self.isa, self.threads, rival)

    def text(self, cell: Cell, rival: str = THEIRS) -> str:
        row = self.row(cell)
        if row is None:
            return "-"
        if not is_green(row):
            return RED
        found = (row["over"] or {}).get(rival)
        return "-" if found is None else ratio_text(*found)

    def ms(self, cell: Cell) -> float | None:
        """The least of ours, as ratios are of the least; None of what is red."""
        row = self.row(cell)
        least: float | None = row["least_ms"] if row is not None and is_green(row) else None
        return least

    def timed(self, cells: Sequence[Cell]) -> list[Cell]:
        return [cell for cell in cells if self.over(cell) is not None]

    def mean(self, cells: Sequence[Cell]) -> float | None:
        ratios = self.known.ratios(cells, self.isa, self.threads).values()
        return geomean(ratios) if ratios else None

    def rows(self, cells: Sequence[Cell]) -> list[Row]:
        """Of ours."""
        return [row for row in map(self.row, cells) if row is not None]

    def made_with(self, cells: Sequence[Cell]) -> str:
        """Where, with what and when the rows of the cells were made."""
        return f"{self.name}, {made_with(self.rows(cells))}"


def made_with(rows: Sequence[Row]) -> str:
    def all_of(key: str) -> str:
        return listed(row[key] for row in rows)

    return f"torch {all_of('torch')}, llvmlite {all_of('llvmlite')}; commit {all_of('commit')}; {all_of('date')}"


def views(rows: Sequence[Row]) -> list[View]:
    """By the name of the CPU; of each the best instruction set and the most threads first."""
    by_cpu: dict[str, list[Row]] = {}
    for row in rows:
        by_cpu.setdefault(row["cpu"], []).append(row)
    found = []
    for cpu, own in sorted(by_cpu.items()):
        known, timed = Known(own), [row for row in own if row["isa"] and row["impl"] == ours(row["isa"])]
        numbers = sorted({row["threads"] for row in timed}, reverse=True)
        sets = {row["isa"] for row in timed}
        found += [View(cpu, isa, number, numbers[0], known) for isa in SETS if isa in sets for number in numbers]
    return found


def chosen(found: Sequence[View], cells: Sequence[Cell]) -> View | None:
    """What the README shows: all threads of the CPU, and its best instruction set, with the most of the cells timed; of
    several the one with the best set, then with the most threads, then by name. No ratio decides."""
    order = {isa: place for place, isa in enumerate(SETS)}

    def rank(view: View) -> tuple[Any, ...]:
        return -len(view.timed(cells)), order[view.isa], -view.threads, view.cpu

    return min((view for view in default(found) if view.rows(cells)), key=rank, default=None)


def default(found: Sequence[View]) -> list[View]:
    """Of each CPU what a user gets who sets nothing: all threads, the best instruction set."""
    first: dict[str, View] = {}
    for view in found:
        first.setdefault(view.cpu, view)
    return list(first.values())


def beside(found: Sequence[View], view: View) -> list[View]:
    """The same CPU and instruction set with every number of threads, one thread first."""
    return sorted((one for one in found if (one.cpu, one.isa) == (view.cpu, view.isa)), key=lambda one: one.threads)

"""Rows of the CPU loop as tables and verdicts read them: the last row of each call and implementation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.measure.cpu.cells import HIDDEN, Cell, grid
from bench.measure.cpu.rows import ours
from bench.measure.pair import THEIRS
from bench.measure.rows import Row
from bench.measure.timing import geomean
from bench.rivals.on_cpu import names


@dataclass(frozen=True)
class Group:
    """Cells of the grid whose ratios are averaged."""

    title: str
    hidden: tuple[int, int]
    batch: tuple[int, int]

    def cells(self, mode: str) -> list[Cell]:
        return [
            cell
            for cell in grid()
            if cell.case.mode == mode
            and self.hidden[0] <= cell.case.hidden <= self.hidden[1]
            and self.batch[0] <= cell.case.batch <= self.batch[1]
        ]


ALL = Group("all 25 cells", (1, HIDDEN[-1]), (1, 256))
CLASSES = (
    Group("H <= 64, B <= 16", (1, 64), (1, 16)),
    Group("H 64-128, B 64-256", (64, 128), (64, 256)),
    Group("H 128-256, B 1-16", (128, 256), (1, 16)),
    Group("H >= 256, B >= 16", (256, 512), (16, 256)),
    ALL,
)


class Known:
    """``rows``: of one machine and commit, the latest last."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.found: dict[tuple[str, str], Row] = {(row["case"], row["impl"]): row for row in rows}

    def row(self, cell: Cell, isa: str, threads: int) -> Row | None:
        return self.found.get((cell.row_name(threads), ours(isa)))

    def settled(self, cell: Cell, isa: str, threads: int) -> bool:
        """Whether it need not be measured again: green and timed, with a row of every rival, timed or not."""
        row = self.row(cell, isa, threads)
        if row is None or not is_green(row) or row["least_ms"] is None:
            return False
        return all((cell.row_name(threads), name) in self.found for name in names(cell))

    def over(self, cell: Cell, isa: str, threads: int, rival: str = THEIRS) -> float | None:
        """A rival's time over ours, if there is one."""
        row = self.row(cell, isa, threads)
        found = (row["over"] or {}).get(rival) if row is not None and is_green(row) else None
        return None if found is None else float(found[0])

    def ratios(self, cells: Sequence[Cell], isa: str, threads: int, rival: str = THEIRS) -> dict[str, float]:
        """By cell name, of those that were measured."""
        ratios = {cell.name: self.over(cell, isa, threads, rival) for cell in cells}
        return {name: ratio for name, ratio in ratios.items() if ratio is not None}

    def value(self, case: str, impl: str, key: str) -> float | None:
        row = self.found.get((case, impl))
        return None if row is None else row[key]


def is_green(row: Row) -> bool:
    return row["parity"] is not None and row["parity"] <= 1.0


def mean(ratios: dict[str, float]) -> float | None:
    return geomean(ratios.values()) if ratios else None


def is_of_loop(row: Row) -> bool:
    """Whether a row is from a run of the CPU loop: other rows have no number of threads."""
    return row["threads"] is not None

"""Rows as the performance pages read them: by machine, of each case and implementation the one written last."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bench.analysis.cpu.known import is_of_loop
from bench.analysis.measured import rows_in
from bench.analysis.report import ASIDE, over_text
from bench.measure.cases import Case
from bench.measure.ceilings import KINDS
from bench.measure.pair import OURS, THEIRS
from bench.measure.rows import Row
from bench.measure.timing import geomean
from bench.measure.workloads import CPU_WORKLOADS, PRECISIONS, WORKLOADS


def everything(folder: Path) -> list[Row]:
    """All rows but those of `tune`, of which no page speaks; its rows of nn.GRU are of the sweeps' cases, too."""
    return [row for row in rows_in(folder) if "bench tune" not in (row["command"] or "")]


def read(folder: Path) -> list[Row]:
    """Without those of the loop for CPUs, which have parts of their own."""
    return [row for row in everything(folder) if not is_of_loop(row)]


COMMAND = "python3 -m bench run"
MODES = {"train": "training step", "forward": "forward"}


@dataclass(frozen=True)
class Machine:
    name: str
    rows: tuple[Row, ...]
    has_gpu: bool

    @cached_property
    def found(self) -> dict[tuple[str, str], Row]:
        return {(row["case"], row["impl"]): row for row in self.rows}

    def row(self, case: str, impl: str = OURS) -> Row | None:
        return self.found.get((case, impl))

    def ms(self, case: str, impl: str = OURS) -> float | None:
        row = self.row(case, impl)
        return row["ms"] if row else None

    def over(self, case: str, impl: str = THEIRS, ours: str = OURS) -> float | None:
        """The time of another over ours: how many times faster ours is."""
        own, other = self.ms(case, ours), self.ms(case, impl)
        return other / own if own and other else None

    def over_text(self, case: str, impl: str = THEIRS, ours: str = OURS) -> str:
        """The same in words, where the spread of both leaves open who is faster."""
        return over_text(self.row(case, impl), self.row(case, ours))

    def floors(self, case: str, impl: str = OURS) -> float | None:
        """The time as a multiple of the least that it could be."""
        row = self.row(case, impl)
        return row["ms"] / row["floor_ms"] if row and row["ms"] and row["floor_ms"] else None

    def rivals(self, case: str) -> list[str]:
        return [impl for name, impl in self.found if name == case and impl not in (OURS, THEIRS, *ASIDE)]

    def timed(self, cases: Iterable[Case]) -> list[Case]:
        """Those of which there is a time of ours and of nn.GRU."""
        return [case for case in cases if self.over(case.name) is not None]

    def untimed(self, cases: Sequence[Case], impls: Sequence[str]) -> list[tuple[str, Case, str]]:
        """Who has no time of which case, and why: by implementation, then by case."""
        asked = ((impl, case, self.row(case.name, impl)) for impl in impls for case in cases)
        return [(impl, case, row["reason"]) for impl, case, row in asked if row and row["ms"] is None and row["reason"]]

    def mean(self, cases: Iterable[Case]) -> float | None:
        ratios = [ratio for ratio in (self.over(case.name) for case in cases) if ratio is not None]
        return geomean(ratios) if ratios else None

    def caption(self, cases: Iterable[Case] = ()) -> str:
        """With what the rows were made: those of the cases, or all."""
        names = {case.name for case in cases}
        own = [row for row in self.found.values() if not names or row["case"] in names]
        parts = [self.name if self.has_gpu else f"One thread of the CPU {self.name}"]
        for key, title in (("driver", "driver"), ("torch", "torch"), ("triton", "Triton"), ("cudnn", "cuDNN")):
            if key in ("driver", "cudnn") and not self.has_gpu:
                continue
            parts.append(f"{title} {listed(row[key] for row in own)}")
        return (
            f"{', '.join(parts)}; commit {listed(row['commit'] for row in own)}; {listed(row['date'] for row in own)}"
        )


@functools.cache
def _titles() -> dict[str, str]:
    """By the names of cases: what real workloads are called, with the precision where it is not their own."""
    found = {}
    for workload in (*WORKLOADS, *CPU_WORKLOADS):
        for mode in MODES:
            for precision in PRECISIONS:
                name = workload.case(mode, precision).name
                found[name] = f"{workload.title}, {precision}, {MODES[mode]}"
            found[workload.case(mode).name] = f"{workload.title}, {MODES[mode]}"
    return found


def title_of(case: str, row: Row) -> str:
    """A case in words. ``row``: of its shape, one of its rows or the fields of a ``Case``."""
    sizes = [f"H = {row['hidden']:,}", f"B = {row['batch']:,}", f"T = {row['time']:,}"]
    kind = KINDS[row["dtype"], bool(row["tf32"])]
    return _titles().get(case) or ", ".join([*sizes, kind, MODES[row["mode"]]])


def spread(mean: float | None, ordered: Sequence[str], note: str = "") -> str:
    """A mean and, in brackets, the ends of the ratios that it is of."""
    return f"{times(mean)} ({ordered[0]} to {ordered[-1]}{note})" if ordered else "-"


def listed(values: Iterable[object]) -> str:
    return ", ".join(sorted({str(value) for value in values if value is not None})) or "unknown"


def machines(rows: Sequence[Row], gpu: bool) -> list[Machine]:
    """Those with rows of a GPU, or the CPUs."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        name = row["gpu"] if gpu else row["cpu"]
        if (row["gpu"] is not None) is gpu and name is not None:
            found.setdefault(name, []).append(row)
    return [Machine(name, tuple(own), gpu) for name, own in sorted(found.items())]


def exponent(points: Sequence[tuple[float, float]]) -> float | None:
    """By which power of the size the time grows between the last two points."""
    if len(points) < 2:
        return None
    (x0, y0), (x1, y1) = points[-2:]
    return math.log(y1 / y0) / math.log(x1 / x0)


def number(value: float | None, form: str = ".3g") -> str:
    """Of large values all digits before the point, where the form would write an exponent."""
    return "-" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else format(value, form)


def times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"

"""Rows of the CPU loop: with instruction set, threads, clock and load, and what a time is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bench.measure.ceilings import operations
from bench.measure.cpu.cells import Cell, counted
from bench.measure.cpu.timing import Over, Times, clock_of
from bench.measure.pair import OURS
from bench.measure.rows import Row, number, row, shapeless

if TYPE_CHECKING:
    from bench.measure.cpu.floors import Floor  # needs llvmlite


def of_this_cpu(where: Row) -> Row:
    """With LLVM's name of the processor added: the system's name often stands for a whole family."""
    import llvmlite.binding as llvm

    return where | {"cpu": f"{where['cpu']} ({llvm.get_host_cpu_name()})"}


def ours(isa: str) -> str:
    """The name in rows of our loop for an instruction set."""
    return f"{OURS}[llvm-{isa}]"


def made_with(threads: int, load: float | None) -> Row:
    return {"threads": threads, "clock": clock_of(threads), "load": number(load)}


def timed_row(
    cell: Cell, impl: str, threads: int, load: float | None, where: Row, times: Times | None, about: Mapping[str, Any]
) -> Row:
    """``about``: further arguments of ``row``."""
    found: dict[str, Any] = {}
    if times is not None:
        found = {"ms": times.ms, "spread": times.spread, "rounds": times.rounds}
    made = row(cell.case, impl, where, **about, **found)
    made |= {"case": cell.row_name(threads), **made_with(threads, load)}
    return made | {"least_ms": number(times.least_ms)} if times is not None else made


def ours_row(made: Row, cell: Cell, isa: str, peak: float | None, over: Mapping[str, Over]) -> Row:
    """A row of ours, with what its time is compared with. ``peak``: operations per second of that instruction set."""
    made = made | {"isa": isa}
    if made["least_ms"] is None:
        return made
    rate = 1000 * operations(cell.case) / made["least_ms"]
    return made | {
        "gflops": number(rate / 1e9),
        "of_peak": None if peak is None else number(rate / peak),
        "over": {name: [number(value) for value in found] for name, found in over.items()},
    }


def floor_row(floor: Floor, load: float | None, where: Row) -> Row:
    name = f"ceiling-{floor.name}-{floor.isa}-{counted(floor.threads, '-')}"
    made = shapeless(name, "loop", where, family="llvm")
    return made | made_with(floor.threads, load) | {"isa": floor.isa, "rate": number(floor.rate)}

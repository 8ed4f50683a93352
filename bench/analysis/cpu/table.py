"""From rows of calls on a CPU to ``tritongru/planning/tables/cpu.json``: for small calls, the T * B and the number of
time steps with B > 1 from which the loop is faster than torch's own GRU, by instruction set, pass and hidden size; for
the grid, nn.GRU's time over ours in each cell, also by threads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.analysis.cpu.known import is_green, is_of_loop
from bench.analysis.measured import rows_in
from bench.measure.cpu.cells import CELL, GRID, WORKLOAD
from bench.measure.pair import THEIRS
from bench.measure.rows import Row
from tritongru.planning.instruction_sets import SETS

TABLE = Path(__file__).parents[3] / "tritongru" / "planning" / "tables" / "cpu.json"


def is_told(row: Row) -> bool:
    """A row of ours, green and timed beside torch's: one layer in one direction, with I = H."""
    if not is_of_loop(row) or row["hidden"] != row["inputs"] or (row["layers"], row["directions"]) != (1, 1):
        return False
    return bool(row["isa"] and is_green(row) and THEIRS in (row["over"] or {}))


def is_cell(row: Row) -> bool:
    return bool(row["case"].startswith(f"{CELL}-"))


def pass_of(row: Row) -> str:
    return CELL if is_cell(row) else str(row["mode"])


def is_once(row: Row) -> bool:
    """One time step with B > 1: only products can be faster than in nn.GRU's loop, so T * B does not decide."""
    return bool(row["time"] == 1 and row["batch"] > 1)


def least(ratios: dict[int, float]) -> int:
    """The smallest number from which on no ratio is below 1; if the last one is, one more than the largest."""
    below = [number for number, ratio in ratios.items() if ratio < 1.0]
    return min((number for number in ratios if number > max(below, default=0)), default=max(ratios, default=0) + 1)


def latest_of(rows: Iterable[Row]) -> list[Row]:
    """For each case and CPU the last measurement with that CPU's best instruction set, the one that runs there."""
    found = {(row["cpu"], row["case"], row["isa"]): row for row in rows if is_told(row)}
    best: dict[str, str] = {}
    for row in found.values():
        best[row["cpu"]] = min(best.get(row["cpu"], row["isa"]), row["isa"], key=list(SETS).index)
    return [row for row in found.values() if row["isa"] == best[row["cpu"]]]


def cells(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """The grid, the worst of all CPUs: the ratio, and the last decile of the ratios of single rounds."""
    worst: dict[tuple[Any, ...], tuple[float, float]] = {}
    for row in latest_of(rows):
        if row["case"].startswith(f"{GRID}-"):
            cell = tuple(row[key] for key in ("isa", "threads", "mode", "hidden", "batch"))
            ratio, _, high = row["over"][THEIRS]
            worst[cell] = min(worst.get(cell, (ratio, high)), (ratio, high))
    keys = ("isa", "threads", "pass", "hidden", "batch")
    return [
        {**dict(zip(keys, cell, strict=True)), "over": round(ratio, 2), "high": round(high, 2)}
        for cell, (ratio, high) in sorted(worst.items())
    ]


def table(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """For small calls. The worst of all shapes and threads with the same T * B, and of all CPUs, counts.
    ``least_steps`` is for B > 1: no smaller than for B = 1."""
    latest = latest_of(rows)
    by_rows: dict[tuple[str, str, int], dict[str, dict[int, float]]] = {}
    alone: dict[tuple[str, str, int], dict[int, float]] = {}
    once: set[tuple[str, str, int]] = set()  # where one step with B > 1 is slower
    for row in latest:
        if row["case"].startswith((f"{GRID}-", f"{WORKLOAD}-")):  # these do not sweep over T * B
            continue
        size, ratio = (row["isa"], pass_of(row), row["hidden"]), row["over"][THEIRS][0]
        if is_once(row):
            if ratio < 1.0:
                once.add(size)
            continue
        number = row["time"] * row["batch"]
        own = by_rows.setdefault(size, {}).setdefault(row["cpu"], {})
        own[number] = min(own.get(number, ratio), ratio)
        if row["batch"] == 1:
            steps = alone.setdefault(size, {})
            steps[row["time"]] = min(steps.get(row["time"], ratio), ratio)
    return [
        {
            **dict(zip(("isa", "pass", "hidden"), size, strict=True)),
            "least_rows": max(map(least, by_cpu.values())),
            "least_steps": max(least(alone.get(size, {})), 2 if size in once else 1),
        }
        for size, by_cpu in sorted(by_rows.items())
    ]


def text_of(rows: Sequence[dict[str, Any]], cells: Sequence[dict[str, Any]]) -> str:
    parts = {"rows": rows, "cells": cells}
    lists = (f'"{name}": [\n  ' + ",\n  ".join(map(json.dumps, found)) + "\n]" for name, found in parts.items())
    return "{" + ", ".join(lists) + "}\n"


def write(folder: Path) -> int:
    rows = rows_in(folder)
    found = table(rows)
    if not found:
        print(f"{folder} has no rows of training steps on a CPU; {TABLE.name} is left unchanged.")
        return 2
    grid = cells(rows)
    temporary = TABLE.with_suffix(".tmp")
    temporary.write_text(text_of(found, grid))
    temporary.replace(TABLE)
    print(f"{len(found)} entries for small calls, {len(grid)} cells of the grid: {TABLE}")
    return 0

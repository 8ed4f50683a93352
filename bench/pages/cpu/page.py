"""The parts of README and ``docs/performance.md`` that are made of rows of the loop for CPUs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bench.measure.cases import MODES as ORDER
from bench.measure.cpu.cells import FEW_STEPS, LARGE, STEPS, WORKLOAD, Cell, counted, grid
from bench.measure.cpu.cells import workloads as workload_cells
from bench.measure.pair import THEIRS
from bench.measure.rows import Row
from bench.measure.workloads import CPU_WORKLOADS, WORKLOADS
from bench.pages.cpu.hosts import View, beside, chosen, made_with, views
from bench.pages.evidence import MODES, number, times
from bench.pages.marks import Part, table
from bench.rivals import CUDNN_LSTM
from bench.rivals.on_cpu import REGISTRY

PREFIX = "loop-"  # of the files of figures
COMMAND = "python3 -m bench run --suite cpu"
ABOUT = 'is "about 1" where the first and the last decile of the ratios of single rounds lie on both sides of 1'
# Of the README's table, by field, and of each what is done most. Chosen by name, before there were rows.
FIVE = {
    "speech denoising": ("rnnoise-10s", "forward"),
    "speech enhancement": ("deepfilternet3", "forward"),
    "genome sequencing": ("medaka-inference", "forward"),
    "energy forecasting": ("electricity", "train"),
    "reinforcement learning": ("torchrl", "train"),
}


def figure_of(view: View) -> str:
    """The name of its file."""
    cpu = re.sub(r"[^a-z0-9]+", "-", view.cpu.lower()).strip("-")
    return f"{PREFIX}{cpu}-{view.isa}-{counted(view.threads, '-')}.svg"


def five() -> dict[str, Cell]:
    """By field."""
    found = {(cell.case.label, cell.case.mode): cell for cell in workload_cells()}
    return {field: found[wanted] for field, wanted in FIVE.items()}


# The grid


def summary(view: View) -> str:
    """In each mode the mean and the extremes."""
    parts = []
    for mode in ORDER:
        sizes = [cell for cell in grid() if cell.case.mode == mode]
        found = sorted(view.timed(sizes), key=lambda cell: view.over(cell) or 0.0)
        if found:
            of = f"{len(found)}" if len(found) == len(sizes) else f"{len(found)} of {len(sizes)}"
            parts.append(
                f"{MODES[mode]} {times(view.mean(found))} in the geometric mean of {of} sizes, from "
                f"{_placed(view, found[0])} to {_placed(view, found[-1])}"
            )
    return "; ".join(parts) or "no size has a time"


def _placed(view: View, cell: Cell) -> str:
    return f"{view.text(cell)} (H = {cell.case.hidden}, B = {cell.case.batch})"


def picture(view: View, folder: str) -> str:
    """The figure, and under it of what and with what it was made."""
    return (
        f"![Times nn.GRU's speed over H and B, {view.name}]({folder}/{figure_of(view)})\n\n"
        f"nn.GRU's time over ours: one layer, I = H, T = {STEPS}, or {FEW_STEPS} where H B > {LARGE:,}; fp32; "
        f"{view.made_with(grid())}."
    )


def none_yet(what: str) -> str:
    return f"No row exists yet, so nothing is said here of {what}. `{COMMAND}` makes them."


def grids(rows: Sequence[Row]) -> str:
    """All figures: the README's first, then its CPU's others, then those of other CPUs."""
    found = [view for view in views(rows) if view.rows(grid())]
    first = chosen(found, grid())
    if first is None:
        return none_yet("sizes on a CPU")
    ordered = sorted(found, key=lambda view: (view != first, view.cpu != first.cpu, view.isa != first.isa))
    return "\n\n".join(
        f"{picture(view, 'figures')} As a multiple of nn.GRU's speed: {summary(view)}." for view in ordered
    )


# Workloads


def headline(rows: Sequence[Row]) -> str:
    """Of the README: the figure of one CPU, and five workloads."""
    view = chosen(views(rows), grid())
    if view is None:
        return f"**On a CPU**: {none_yet('its speed')}"
    return (
        f"**On a CPU**, as a multiple of nn.GRU's speed: {summary(view)}.\n\n"
        f"{picture(view, 'docs/figures')} A ratio {ABOUT}. "
        f"[One thread, other CPUs, all workloads](docs/performance.md#on-a-cpu).\n\n{five_table(rows)}"
    )


def five_table(rows: Sequence[Row]) -> str:
    named, every = five(), views(rows)
    cells = list(named.values())
    first = chosen(every, cells)
    if first is None:
        return f"Real workloads have no row on a CPU yet; `{COMMAND} --only {WORKLOAD}` makes them."
    threads = [view for view in beside(every, first) if view.threads in (1, first.threads)]
    head = ["workload"]
    for view in threads:
        head += [f"{counted(view.threads)}: ours, ms", THEIRS, CUDNN_LSTM]
    lines = []
    for field, cell in named.items():
        line = [f"{field}: {title_of(cell)}"]
        for view in threads:
            line += [number(view.ms(cell)), view.text(cell), view.text(cell, CUDNN_LSTM)]
        lines.append(line)
    own = [row for view in threads for row in view.rows(cells)]
    about = f"{first.host}, fp32; {made_with(own)}"
    return (
        "Five workloads, chosen by name and not by result: the least time of ours, and that of nn.GRU "
        f"and of nn.LSTM of the same size as a multiple of it; {about}.\n\n{table(head, lines, right=True)}"
    )


def title_of(cell: Cell) -> str:
    titles = {workload.label: workload.title for workload in (*WORKLOADS, *CPU_WORKLOADS)}
    return f"{titles[cell.case.label]}, {MODES[cell.case.mode]}"


def workloads(rows: Sequence[Row]) -> str:
    """A table for each CPU, instruction set and number of threads."""
    parts = [workload_table(view) for view in views(rows)]
    return "\n\n".join(part for part in parts if part) or none_yet("the workloads on a CPU")


def workload_table(view: View) -> str:
    own = workload_cells()
    if not view.rows(own):
        return ""
    rivals = rivals_of(view, own)
    lines = [
        (
            title_of(cell),
            number(view.ms(cell)),
            *(view.text(cell, name) for name in rivals),
        )
        for cell in own
        if view.row(cell) is not None
    ]
    head = ("workload", "ours, ms", *(f"{name} over ours" for name in rivals))
    said = notes(view, own)
    below = "\n\n" + "\n".join(said) if said else ""
    return f"{view.made_with(own)}; fp32.\n\n{table(head, lines, right=True)}{below}"


def rivals_of(view: View, own: Sequence[Cell]) -> list[str]:
    """With a time, or a reason for having none."""
    asked = {name for row in view.rows(own) for name in row["over"] or {}}
    asked |= {row["impl"] for row in others(view, own)}
    return [name for name in (THEIRS, CUDNN_LSTM, *REGISTRY) if name in asked]


def others(view: View, own: Sequence[Cell]) -> list[Row]:
    """The rows of everybody but ours."""
    names = {cell.row_name(view.threads) for cell in own}
    return [row for (case, _), row in view.known.found.items() if case in names and row["isa"] is None]


def notes(view: View, own: Sequence[Cell]) -> list[str]:
    """How rivals were called, and what there is no time of and why."""
    hows = {row["impl"]: row["how"] for row in others(view, own) if row["how"]}
    why: dict[str, list[str]] = {}
    for cell in own:
        name = f"{cell.case.label}-{cell.case.mode}"
        row = view.row(cell)
        if row is None:
            why.setdefault("not measured yet", []).append(name)
        elif row["least_ms"] is None:
            why.setdefault(f"no time of ours: {row['reason']}", []).append(name)
        for other in others(view, [cell]):
            if other["ms"] is None:
                why.setdefault(f"no time of {other['impl']}: {other['reason']}", []).append(name)
    return [
        *(f"- {name}: {how}" for name, how in hows.items()),
        *(f"- {reason} ({', '.join(names)})" for reason, names in why.items()),
    ]


PARTS: dict[str, Part] = {part.__name__: part for part in (grids, workloads)}

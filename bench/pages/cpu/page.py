"""The parts of ``docs/performance.md`` and ``docs/data/cpu.md`` that are made of rows of the loop for CPUs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bench.analysis.reasons import condensed, hows
from bench.measure.cases import MODES as ORDER
from bench.measure.cpu.cells import FEW_STEPS, LARGE, STEPS, Cell, counted, grid
from bench.measure.cpu.cells import workloads as workload_cells
from bench.measure.pair import THEIRS
from bench.measure.rows import Row
from bench.measure.workloads import TITLES
from bench.pages.cpu.hosts import View, beside, chosen, made_with, views
from bench.pages.evidence import MODES, number, times
from bench.pages.marks import NOTHING, Part, folded, table
from bench.rivals import CUDNN_LSTM
from bench.rivals.on_cpu import REGISTRY

PREFIX = "loop-"  # of the files of figures
# By field, and of each what is done most. Chosen by name, before there were rows.
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
        f"![Speedup over nn.GRU by hidden size and batch size, {view.name}]({folder}/{figure_of(view)})\n\n"
        f"Speedup over nn.GRU: one layer, I = H, T = {STEPS}, or {FEW_STEPS} where H B > {LARGE:,}; fp32; "
        f"{view.made_with(grid())}."
    )


def ordered(found: Sequence[View]) -> list[View]:
    """The README's first, then its CPU's others, then those of other CPUs."""
    first = chosen(found, grid())
    return sorted(found, key=lambda view: (view != first, first is None or view.cpu != first.cpu))


def grids(rows: Sequence[Row]) -> str:
    """All figures, each with a heading of its own."""
    found = [view for view in views(rows) if view.rows(grid())]
    parts = [f"### {view.name}\n\n{picture(view, '../figures')}\n\n{_spoken(view)}" for view in ordered(found)]
    return "\n\n".join(parts) or NOTHING


def _spoken(view: View) -> str:
    text = summary(view)
    return f"{text[0].upper()}{text[1:]}."


# Workloads


def five_table(rows: Sequence[Row]) -> str:
    """Of one CPU, with one thread and with all."""
    named, every = five(), views(rows)
    cells = list(named.values())
    first = chosen(every, cells)
    if first is None:
        return NOTHING
    threads = [view for view in beside(every, first) if view.threads in (1, first.threads)]
    head = ["workload"]
    for view in threads:
        head += [f"{counted(view.threads)}: tritongru, ms", THEIRS, CUDNN_LSTM]
    lines = []
    for field, cell in named.items():
        line = [f"{field}: {title_of(cell)}"]
        for view in threads:
            line += [number(view.ms(cell)), view.text(cell), view.text(cell, CUDNN_LSTM)]
        lines.append(line)
    own = [row for view in threads for row in view.rows(cells)]
    return (
        f"{table(head, lines, right=True)}\n\nSpeedups are over nn.GRU and over nn.LSTM of the same size; "
        f"{first.host}, fp32; {made_with(own)}."
    )


def title_of(cell: Cell) -> str:
    case = cell.case
    return f"{TITLES.get(case.label) or f'H = {case.hidden}, B = {case.batch}'}, {MODES[case.mode]}"


def workloads(rows: Sequence[Row]) -> str:
    """A table for each CPU, instruction set and number of threads, and how the others were called, once."""
    own = workload_cells()
    found = [view for view in ordered(views(rows)) if view.rows(own)]
    if not found:
        return NOTHING
    said = [(row["impl"], row["how"]) for view in found for row in others(view, own) if row["how"]]
    parts = [folded(f"{view.name}: {_count(view, own)}", workload_table(view), view == found[0]) for view in found]
    if said:
        parts.append(folded("How each was called", "\n".join(hows(dict.fromkeys(said)))))
    return "\n\n".join(parts)


def _count(view: View, own: Sequence[Cell]) -> str:
    """Those with a row, timed or not."""
    known = len(view.rows(own))
    return f"all {len(own)} calls" if known == len(own) else f"{known} of {len(own)} calls"


def workload_table(view: View) -> str:
    own = [cell for cell in workload_cells() if view.row(cell) is not None]
    rivals = rivals_of(view, own)
    lines = [(title_of(cell), number(view.ms(cell)), *(view.text(cell, name) for name in rivals)) for cell in own]
    why = notes(view, own)
    below = "\n\n" + "\n".join(why) if why else ""
    return f"{view.made_with(own)}; fp32.\n\n{table(('workload', 'tritongru, ms', *rivals), lines, right=True)}{below}"


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
    """What there is no time of, and why: a line for each reason."""
    untimed = []
    for cell in own:
        row = view.row(cell)
        if row is not None and row["least_ms"] is None:
            untimed.append(("ours", title_of(cell), row["reason"]))
        without = [other for other in others(view, [cell]) if other["ms"] is None]
        untimed += [(other["impl"], title_of(cell), other["reason"]) for other in without]
    return condensed(untimed, len(own))


PARTS: dict[str, Part] = {part.__name__: part for part in (grids, workloads)}

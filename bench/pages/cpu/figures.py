"""The figures of the loop for CPUs: one for each CPU, instruction set and number of threads."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bench.measure.cases import MODES as ORDER
from bench.measure.cpu.cells import BATCHES, HIDDEN, Cell, grid
from bench.measure.rows import Row
from bench.pages.cpu.hosts import View, views
from bench.pages.cpu.page import PREFIX, figure_of
from bench.pages.evidence import MODES
from bench.pages.figures import canvas, digest, heading, svg

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes

__all__ = ["PREFIX", "of_rows"]

MOST = 16.0  # times as fast, or as slow, from where on the colour stays the same: in every figure, so that they compare
TICKS = {1 / 16: "1/16", 1 / 4: "1/4", 1: "1", 4: "4", 16: "16"}
SHOWN = ("case", "impl", "cpu", "isa", "threads", "parity", "over")
BETWEEN = ("#a34700", "#e69f00", "#f7f7f7", "#56b4e9", "#00487a")
LEVELS = 33  # an odd number has a middle; a scale of many more is drawn as a picture of pixels
WHITE_FROM = 0.75  # of the scale, the share from where on dark letters could not be read


def of_rows(rows: Sequence[Row]) -> Mapping[str, Callable[[Sequence[Row]], bytes | None]]:
    """By the names of files."""
    found = [view for view in views(rows) if view.rows(grid())]
    return {figure_of(view): functools.partial(drawn, view) for view in found}


def drawn(view: View, rows: Sequence[Row]) -> bytes:
    """Two heat maps over H and B, forward above training step, with the ratio in each cell."""
    from matplotlib.colors import LogNorm

    norm = LogNorm(1 / MOST, MOST, clip=True)  # 1, where both take the same time, is the neutral middle
    with canvas(5.2, 6.4) as figure:
        both = figure.subplots(len(ORDER))
        for axes, mode in zip(both, ORDER, strict=True):
            cells = {(cell.case.hidden, cell.case.batch): cell for cell in grid() if cell.case.mode == mode}
            mesh = axes.pcolormesh(values(view, cells), cmap=colours(), norm=norm, edgecolor="white", linewidth=1.5)
            for (hidden, batch), cell in cells.items():
                place = BATCHES.index(batch) + 0.5, HIDDEN.index(hidden) + 0.5
                axes.text(*place, view.text(cell), ha="center", va="center_baseline", color=letters(view.over(cell)))
            framed(axes, MODES[mode])
        bar = figure.colorbar(mesh, ax=both, orientation="horizontal", ticks=list(TICKS), aspect=30, pad=0.02)
        bar.ax.set_xticklabels(TICKS.values())
        bar.ax.minorticks_off()
        bar.set_label("speed relative to nn.GRU")
        bar.outline.set_visible(False)
        heading(figure, "How many times as fast as nn.GRU", view.name)
        return svg(figure, f"Speed relative to nn.GRU, {view.name}", digest(view.rows(grid()), SHOWN))


def colours() -> object:
    """Blue where ours is faster, orange where it is slower; grey where there is no ratio."""
    from matplotlib.colors import LinearSegmentedColormap

    found = LinearSegmentedColormap.from_list("ratio", BETWEEN, LEVELS)
    return found.with_extremes(bad="0.8")


def values(view: View, cells: Mapping[tuple[int, int], Cell]) -> list[list[float]]:
    """A line for each H, a column for each B; NaN where there is no ratio."""
    ratios = {size: view.over(cell) for size, cell in cells.items()}
    return [[ratios.get((hidden, batch)) or math.nan for batch in BATCHES] for hidden in HIDDEN]


def letters(ratio: float | None) -> str:
    share = 0.0 if ratio is None else min(abs(math.log(ratio)) / math.log(MOST), 1.0)
    return "white" if share > WHITE_FROM else "black"


def framed(axes: Axes, title: str) -> None:
    axes.set_title(title)
    axes.set_xlabel("batch size B")
    axes.set_ylabel("hidden size H")
    axes.set_xticks([place + 0.5 for place in range(len(BATCHES))], [str(batch) for batch in BATCHES])
    axes.set_yticks([place + 0.5 for place in range(len(HIDDEN))], [str(hidden) for hidden in HIDDEN])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)

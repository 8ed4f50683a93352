"""A sheet to draw on: boxes, arrows and text, placed in inches from its lower left corner."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.measure.rows import Row
from bench.pages.figures import PALETTE, canvas, svg

WIDTH = 6.2
SMALL, NORMAL, TITLE, FORMULA = 9.5, 10.5, 12.0, 13.6  # points; a subscript has 0.7 of its formula's
LEADING = 1.4
INK, QUIET = "#1a1a1a", "#555555"
# What a colour means is the same in all drawings.
WEIGHTS, STATE, DATA, CELL = PALETTE[0], PALETTE[1], PALETTE[2], PALETTE[3]
Point = tuple[float, float]
Draw = Callable[[Sequence[Row]], bytes]


def tint(colour: str, share: float = 0.18) -> str:
    """A colour mixed with white."""
    parts = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(255 - share * (255 - part)):02x}" for part in parts)


class Sheet:
    def __init__(self, figure: Any, height: float) -> None:
        figure.set_layout_engine("none")
        figure.set_facecolor("white")
        self.axes = figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, WIDTH), ylim=(0, height))
        self.axes.axis("off")

    def text(self, x: float, y: float, text: str, size: float = NORMAL, colour: str = INK, **more: Any) -> None:
        """Line by line, so that a reader's own font keeps each of them in its place."""
        more = {"ha": "center", "va": "center"} | more
        lines = text.split("\n")
        for k, line in enumerate(lines):
            middle = y + ((len(lines) - 1) / 2 - k) * LEADING * size / 72
            self.axes.text(x, middle, line, fontsize=size, color=colour, **more)

    def title(self, y: float, text: str) -> None:
        self.text(0.15, y, text, TITLE, ha="left", weight="bold")

    def box(
        self,
        corner: Point,
        size: Point,
        text: str = "",
        colour: str = QUIET,
        fill: str | None = None,
        round_by: float = 0.06,
        points: float = NORMAL,
        line: float = 1.2,
    ) -> None:
        """``fill``: a tint of the colour if it is not named."""
        from matplotlib.patches import FancyBboxPatch

        style = f"round,pad=0,rounding_size={round_by}" if round_by else "square,pad=0"
        fill = tint(colour) if fill is None else fill
        self.axes.add_patch(FancyBboxPatch(corner, *size, style, facecolor=fill, edgecolor=colour, linewidth=line))
        if text:
            self.text(corner[0] + size[0] / 2, corner[1] + size[1] / 2, text, points)

    def node(self, x: float, y: float, sign: str, radius: float = 0.13) -> None:
        """An operation on numbers, element by element."""
        from matplotlib.patches import Circle

        self.axes.add_patch(Circle((x, y), radius, facecolor="white", edgecolor=INK, linewidth=1.2, zorder=3))
        self.text(x, y, sign, NORMAL, zorder=4)

    def dot(self, x: float, y: float, colour: str = INK) -> None:
        """A line branches here."""
        from matplotlib.patches import Circle

        self.axes.add_patch(Circle((x, y), 0.045, facecolor=colour, edgecolor="none", zorder=3))

    def line(self, points: Sequence[Point], colour: str = INK, width: float = 1.6, **more: Any) -> None:
        x, y = zip(*points, strict=True)
        self.axes.plot(x, y, color=colour, linewidth=width, solid_capstyle="butt", solid_joinstyle="round", **more)

    def arrow(self, points: Sequence[Point], colour: str = INK, width: float = 1.6) -> None:
        """Along the points, with its head at the last."""
        head = {"arrowstyle": "-|>,head_width=0.22,head_length=0.42", "shrinkA": 0, "shrinkB": 0}
        if len(points) > 2:
            self.line(points[:-1], colour, width)
        look = {**head, "color": colour, "linewidth": width, "mutation_scale": 12, "joinstyle": "miter"}
        self.axes.annotate("", points[-1], points[-2], arrowprops=look)


def drawing(title: str, height: float, draw: Callable[[Sheet], None]) -> Draw:
    """A figure that depends on no measurement; its digest is that of the code that draws it."""

    def made(rows: Sequence[Row]) -> bytes:
        code = "".join(Path(place).read_text() for place in (__file__, inspect.getfile(draw)))
        with canvas(WIDTH, height) as figure:
            draw(Sheet(figure, height))
            return svg(figure, title, hashlib.sha256(code.encode()).hexdigest())

    return made

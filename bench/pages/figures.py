"""Figures as SVG files that are the same bytes whenever they are drawn from the same rows by the same matplotlib."""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import TYPE_CHECKING, Any

from bench.measure.rows import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart by the colour-blind (Okabe and Ito).
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#000000")
WIDTH = 5.6  # inches, read without zooming at the width of a page
FONT, TITLE = 10, 11  # sizes
STYLE: Any = {
    "svg.hashsalt": "tritongru",
    "svg.fonttype": "none",
    "figure.facecolor": "white",  # opaque: on a dark page a figure is a white card
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "font.size": FONT,
    "axes.titlesize": FONT,
    "axes.titlelocation": "left",
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "figure.titlesize": TITLE,
    "figure.labelsize": FONT,
    "figure.constrained_layout.h_pad": 0.08,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.frameon": False,
}


@contextmanager
def canvas(width: float, height: float) -> Iterator[Figure]:
    """A figure without pyplot: no display, no global state, no user's style. It has to be drawn and saved inside."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield Figure(figsize=(width, height), layout="constrained")


def plain(axes: Axes) -> None:
    """A grid behind the data, and no box around it."""
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def heading(figure: Figure, title: str, about: str = "") -> None:
    """Above all panels, in lines that fit."""
    figure.suptitle(fitting((title, about) if about else (title,), figure, TITLE), x=0.01, ha="left")


def note(figure: Figure, *texts: str) -> None:
    """Below all panels, in lines that fit."""
    figure.supxlabel(fitting(texts, figure, FONT), x=0.01, ha="left")


def fitting(texts: Sequence[str], figure: Figure, size: float) -> str:
    """Each on lines of its own, as few as the width allows, of about the same length."""
    most = int(72 * figure.get_figwidth() / (0.58 * size))  # letters, of the width that they have on the average
    made = []
    for text in texts:
        lines = math.ceil(len(text) / most)
        tries = (textwrap.wrap(text, width) for width in range(math.ceil(len(text) / lines), most + 1))
        made += next((found for found in tries if len(found) == lines), textwrap.wrap(text, most))
    return "\n".join(made)


def named_ends(axes: Axes, ends: Mapping[str, tuple[float, float, str]]) -> None:
    """Names of lines on the right of the axes, which have their limits: by name the last point and the colour."""
    places = [float((axes.transScale + axes.transLimits).transform((x, y))[1]) for x, y, _ in ends.values()]
    gap = 0.175 / (axes.get_window_extent().height / axes.figure.dpi)  # a line's height over that of the axes
    for (name, (x, y, colour)), place in zip(ends.items(), spread(places, gap), strict=True):
        line = {"arrowstyle": "-", "linestyle": ":", "color": colour, "relpos": (0, 0.5), "shrinkA": 0, "shrinkB": 0}
        axes.annotate(
            name,
            (x, y),
            (1.03, place),
            textcoords="axes fraction",
            va="center",
            arrowprops=line,
            annotation_clip=False,
        )


def spread(places: Sequence[float], gap: float) -> list[float]:
    """As near as may be to the same places, in their order, so far apart, and from 0 to 1 where they fit."""
    order = sorted(range(len(places)), key=places.__getitem__)
    blocks: list[list[float]] = []  # of neighbours that meet; less the gaps below, each has one place: its mean
    for rank, one in enumerate(order):
        blocks.append([places[one] - rank * gap])
        while len(blocks) > 1 and fmean(blocks[-2]) > fmean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    most = 1 - (len(places) - 1) * gap
    lows = [min(max(fmean(block), 0), max(most, 0)) for block in blocks for _ in block]
    return [lows[rank] + rank * gap for rank in sorted(range(len(order)), key=order.__getitem__)]


def digest(rows: Sequence[Row], keys: Sequence[str]) -> str:
    """What a figure shows of its rows, in short."""
    shown = [[row[key] for key in keys] for row in rows]
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()


def svg(figure: Figure, title: str, shown: str) -> bytes:
    """The figure with its title and the digest of what it shows as metadata, and without a date."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Title": title, "Description": shown})
    lines = file.getvalue().decode().splitlines()
    return ("\n".join(line.rstrip() for line in lines) + "\n").encode()


def origin(figure: bytes) -> tuple[str, str]:
    """The digest that a figure carries, and the matplotlib that drew it."""
    found = [re.search(rb"<dc:description>(\w+)</dc:description>", figure), re.search(rb"Matplotlib v([\w.]+)", figure)]
    shown, drawn = (match[1].decode() if match else "" for match in found)
    return shown, drawn


def same(made: bytes, kept: bytes) -> bool:
    """Byte for byte where the same matplotlib drew both, otherwise by what they show."""
    return made == kept if origin(made)[1] == origin(kept)[1] else origin(made)[0] == origin(kept)[0]

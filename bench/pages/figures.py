"""Figures as SVG files that are the same bytes whenever they are drawn from the same rows by the same matplotlib."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bench.measure.rows import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart by the colour-blind (Okabe and Ito).
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#000000")


@contextmanager
def canvas(width: float, height: float) -> Iterator[Figure]:
    """A figure without pyplot: no display, no global state. It has to be drawn and saved inside."""
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {"svg.hashsalt": "tritongru", "svg.fonttype": "none", "font.size": 9, "legend.frameon": False}
    with matplotlib.rc_context(style):
        yield Figure(figsize=(width, height), layout="constrained")


def plain(axes: Axes) -> None:
    """A grid behind the data, and no box around it."""
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


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

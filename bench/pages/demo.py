"""The picture of the demo in README.md, from a run's numbers as ``python -m tritongru demo --json`` prints them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from bench.measure.rows import Row
from bench.pages.figures import canvas, digest, svg
from bench.pages.marks import Part
from tritongru.commands.picture import SIZE, TITLE, Shown, fill

FIGURE = "demo.svg"
KEYS = tuple(Shown.__annotations__)


def read(folder: Path) -> list[Row]:
    """A run a file, the newest last."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def drawn(rows: Sequence[Row]) -> bytes | None:
    """Of the newest run."""
    if not rows:
        return None
    with canvas(*SIZE) as figure:
        fill(figure, Shown(**{key: rows[-1][key] for key in KEYS}))
        return svg(figure, TITLE, digest(rows[-1:], KEYS))


def demo(rows: Sequence[Row]) -> str:
    if not rows:
        return "No run has been recorded yet."
    run = rows[-1]
    best = min(run["errors"], key=run["errors"].__getitem__)
    return (
        f"![A week of forecasts, errors by hours ahead, and the error and time of each model](docs/figures/{FIGURE})"
        f"\n\nRun on {run['ran on']} ({run['cpu']}) with torch {run['torch']}; {run['date']}. Lowest error: {best}."
    )


PARTS: dict[str, Part] = {"demo": demo}

"""Whole models of other packages before and after conversion, for docs/performance.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bench.analysis.ratios import ms_text, ratio_text
from bench.measure.cpu.cells import counted
from bench.measure.pair import OURS, THEIRS
from bench.measure.rows import Row
from bench.models.catalogue import MODELS
from bench.models.examine import FORWARD, TRAIN
from bench.models.model import Model
from bench.models.suite import case_name
from bench.pages.marks import NOTHING, Part, folded, table

HEAD = (
    *("package", "field", "model", "training step before, ms", "after, ms", "ratio"),
    *("inference before, ms", "after, ms", "ratio"),
)
NUMBERS = 6  # columns at the end
RED = "red"


class View(NamedTuple):
    """One machine with one number of threads: of each case and implementation the row written last."""

    cpu: str
    threads: int
    found: dict[tuple[str, str], Row]

    def row(self, model: Model, mode: str, impl: str) -> Row | None:
        return self.found.get((case_name(model, mode, self.threads), impl))

    def cells(self, model: Model, mode: str) -> tuple[str, str, str]:
        """Time before, time after, and the first divided by the second."""
        own, before = (self.row(model, mode, impl) for impl in (OURS, THEIRS))
        if own is None:
            return "", "", ""
        if own["least_ms"] is None or before is None:
            return "", "", RED
        ratio, low, high = before["over"][OURS]
        return ms_text(before["least_ms"]), ms_text(own["least_ms"]), ratio_text(ratio, low, high)

    @property
    def title(self) -> str:
        last = [*self.found.values()][-1]
        made = f"torch {last['torch']}, llvmlite {last['llvmlite']}; commit {last['commit']}; {last['date']}"
        return f"{self.cpu}, {counted(self.threads)}; {made}"


def views(rows: Sequence[Row]) -> list[View]:
    """The machine measured last first, and of a machine the most threads first."""
    found: dict[tuple[str, int], View] = {}
    order = list(dict.fromkeys(row["cpu"] for row in reversed(rows)))
    for row in rows:
        own = found.setdefault((row["cpu"], row["threads"]), View(row["cpu"], row["threads"], {})).found
        if row["impl"] == OURS:
            own.pop((row["case"], THEIRS), None)  # a later run replaces an earlier one
        own.pop((row["case"], row["impl"]), None)
        own[row["case"], row["impl"]] = row
    return sorted(found.values(), key=lambda view: (order.index(view.cpu), -view.threads))


def converted(rows: Sequence[Row]) -> str:
    found = views(rows)
    return "\n\n".join(folded(view.title, _table(view), shown=i == 0) for i, view in enumerate(found)) or NOTHING


def _table(view: View) -> str:
    lines = []
    for model in MODELS:
        measured = [own for mode in (TRAIN, FORWARD) if (own := view.row(model, mode, OURS))]
        if measured:
            numbers = (*view.cells(model, TRAIN), *view.cells(model, FORWARD))
            lines.append((measured[-1]["how"], model.field, model.what, *numbers))
    rule = [*["---"] * (len(HEAD) - NUMBERS), *["---:"] * NUMBERS]
    head, *rest = table(HEAD, lines).split("\n")
    return "\n".join((head, f"| {' | '.join(rule)} |", *rest[1:]))


def sizes(rows: Sequence[Row]) -> str:
    """Of the catalogue alone."""
    lines = [(model.package, model.what, model.source) for model in MODELS]
    return folded("Where the sizes come from", table(("package", "model", "sizes"), lines))


PARTS: dict[str, Part] = {"converted": converted, "sizes": sizes}

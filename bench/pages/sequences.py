"""What lengths, resets and single steps cost: a summary for README.md and the tables of docs/guides/sequences.md."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bench.analysis.ratios import ms_text
from bench.measure.pair import OURS, THEIRS
from bench.measure.rows import Row
from bench.pages.evidence import MODES as NAMES
from bench.pages.marks import NOTHING, folded, table
from bench.rivals.on_cpu import ONNX
from bench.sequences.cells import LENGTHS, RESET_SHARE, RESETS, STEP
from bench.sequences.examine import ALIKE, CELL, GRAPH, OURS_PACKED, OUT, PACKED, SPLIT, TORCHRL, WHOLE

# By suite: the ways that are shown beside ours, and how a reader knows them.
SHOWN = {
    LENGTHS: {
        ALIKE: "ours, all steps",
        OURS_PACKED: "ours, packed",
        PACKED: "nn.GRU, packed",
        THEIRS: "nn.GRU, all steps",
    },
    RESETS: {
        WHOLE: "ours, no resets",
        SPLIT: "nn.GRU, split and packed",
        THEIRS: "nn.GRU, no resets",
        **{name: f"TorchRL, {backend}" for backend, name in TORCHRL.items()},
    },
    STEP: {
        OUT: "ours, with out=",
        THEIRS: "nn.GRU, T = 1",
        CELL: "nn.GRUCell",
        ONNX: "onnxruntime",
        f"{OURS}{GRAPH}": "ours, in a CUDA graph",
        f"{THEIRS}{GRAPH}": "nn.GRU, in a CUDA graph",
    },
}
TITLES = {
    LENGTHS: "Lengths, uniformly distributed from 1 to T",
    RESETS: f"Resets, at {100 * RESET_SHARE:.0f} % of the steps",
    STEP: "Single steps, forward",
}
# Of the summary: what users of torch do instead.
COMPARED = (
    ("`lengths`", LENGTHS, PACKED, "`nn.GRU`, packed and unpacked"),
    ("`resets`", RESETS, SPLIT, "`nn.GRU`, split, padded and packed"),
    ("`step`", STEP, THEIRS, "`nn.GRU` with T = 1"),
)


class View(NamedTuple):
    """The rows of one machine, number of threads and commit, the last one, by case and way."""

    title: str
    found: dict[str, dict[str, Row]]
    on_gpu: bool

    def cases(self, suite: str) -> list[str]:
        own = [name for name in self.found if name.startswith(f"{suite}-")]
        return sorted(
            own, key=lambda name: [self.found[name][OURS][key] for key in ("layers", "hidden", "batch", "time")]
        )


def views(rows: Sequence[Row]) -> list[View]:
    """The last rows of each machine and number of threads; cases without a time of ours are left out."""
    grouped: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        grouped.setdefault((row["gpu"] or row["cpu"], row["threads"] or 0), []).append(row)
    found = []
    for (device, threads), own in sorted(grouped.items()):
        by: dict[str, dict[str, Row]] = {}
        for row in own:
            if row["impl"] == OURS:
                by[row["case"]] = {}  # a later run replaces an earlier one
            by.setdefault(row["case"], {})[row["impl"]] = row
        by = {case: ways for case, ways in by.items() if OURS in ways and ways[OURS]["ms"] is not None}
        if by:
            last = own[-1]
            count = f", {threads} thread{'s' if threads > 1 else ''}" if threads else ""
            compiler = f"Triton {last['triton']}" if last["gpu"] else f"llvmlite {last['llvmlite']}"
            made = f"torch {last['torch']}, {compiler}; commit {last['commit']}; {last['date']}"
            found.append(View(f"{device}{count}; {made}", by, bool(last["gpu"])))
    return found


def over(ways: dict[str, Row], name: str) -> list[float] | None:
    """Another way's time divided by ours, and its interval."""
    row = ways.get(name)
    return row["over"][OURS] if row is not None and row["over"] else None


def costs(rows: Sequence[Row]) -> str:
    found = views(rows)
    if not found:
        return NOTHING
    parts = ["Times of other ways divided by ours: above 1 ours is faster. In brackets, the first and last decile."]
    for i, view in enumerate(found):
        tables = [f"**{TITLES[suite]}**\n\n{_table(view, suite)}" for suite in SHOWN if view.cases(suite)]
        parts.append(folded(view.title, "\n\n".join(tables), shown=i == 0))
    return "\n\n".join(parts)


def _table(view: View, suite: str) -> str:
    shown = {
        name: title
        for name, title in SHOWN[suite].items()
        if any(over(view.found[case], name) for case in view.cases(suite))
    }
    lines = []
    for case in view.cases(suite):
        ways = view.found[case]
        own = ways[OURS]
        layers = f", {own['layers']} layers" if own["layers"] > 1 else ""
        time = "" if suite == STEP else f", T = {own['time']}, {NAMES[own['mode']]}"
        size = f"H = {own['hidden']}, B = {own['batch']}{layers}{time}"
        lines.append((size, ms_text(own["least_ms"] or own["ms"]), *(_ratio(over(ways, name)) for name in shown)))
    return table(("", "ours, ms", *shown.values()), lines, right=True)


def _ratio(found: list[float] | None) -> str:
    return "" if found is None else f"{found[0]:.2f} ({found[1]:.2f} to {found[2]:.2f})"


def summary(rows: Sequence[Row]) -> str:
    """For each feature the geometric mean and the range over all sizes, on a GPU and on a CPU with all its threads."""
    found = {view.on_gpu: view for view in views(rows)}
    if not found:
        return NOTHING
    shown = [found[on_gpu] for on_gpu in (True, False) if on_gpu in found]
    lines = []
    for what, suite, name, instead in COMPARED:
        ratios = [[r[0] for case in view.cases(suite) if (r := over(view.found[case], name))] for view in shown]
        lines.append((what, instead, *map(_spread, ratios)))
    titles = [view.title.partition(";")[0] for view in shown]
    made = ". ".join(view.title for view in shown)
    return (
        f"{table(('', 'without tritongru', *titles), lines)}\n\nTheir time divided by ours: geometric mean and range "
        f"over all measured sizes, forward and training. {made}."
    )


def _spread(ratios: Sequence[float]) -> str:
    if not ratios:
        return "not measured yet"
    mean = math.exp(statistics.fmean(map(math.log, ratios)))
    return f"{mean:.2f}x ({min(ratios):.2f}x to {max(ratios):.2f}x)"


Part = Callable[[Sequence[Row]], str]
PARTS: dict[str, Part] = {"costs": costs}
SUMMARY: dict[str, Part] = {"summary": summary}

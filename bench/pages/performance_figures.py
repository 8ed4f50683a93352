"""The figures of ``docs/performance.md``: drawn where a GPU has rows, and not at all where none has."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.measure import ceilings
from bench.measure.cases import Case
from bench.measure.pair import OURS, THEIRS
from bench.measure.rows import Row
from bench.measure.workloads import TITLES, workload_cases
from bench.pages.evidence import MODES, Machine, machines
from bench.pages.figures import PALETTE, WIDTH, canvas, digest, heading, named_ends, note, plain, svg
from bench.pages.performance import HEADLINE, ROOFLINE, SCALING
from bench.rivals import GRAPH
from bench.suites import SWEEPS, sweep

COLOURS = {OURS: PALETTE[0], THEIRS: PALETTE[1], GRAPH: PALETTE[4]}
SIZES = {"time": "time steps T", "batch": "batch size B", "hidden": "hidden size H", "layers": "layers"}
STYLES = {"train": "o-", "forward": "s--"}
NEAR = 1.2  # so near each other, two horizontal lines are one
BESIDE: Any = {"textcoords": "offset points", "va": "center"}
SHOWN = ("case", "impl", "gpu", "ms", "spread", "floor_ms", "rate")


def drawn(machine: Machine, cases: Sequence[Case]) -> str:
    names = {case.name for case in cases}
    return digest([row for row in machine.found.values() if row["case"] in names or row["rate"] is not None], SHOWN)


def first_gpu(rows: Sequence[Row], cases: Sequence[Case]) -> tuple[Machine, list[Case]] | None:
    """The one with the most of the cases: a figure shows one machine."""
    found = [(machine, machine.timed(cases)) for machine in machines(rows, gpu=True)]
    best = max(found, key=lambda one: len(one[1]), default=None)
    return best if best and best[1] else None


def headline(rows: Sequence[Row]) -> bytes | None:
    """Bars: how many times faster a training step is than nn.GRU's, workload by workload."""
    best = first_gpu(rows, [case for case in workload_cases() if case.mode == "train"])
    if best is None:
        return None
    machine, cases = best
    ordered = sorted(cases, key=lambda case: machine.over(case.name) or 0.0)
    with canvas(WIDTH, 0.3 * len(ordered) + 1.9) as figure:
        axes = figure.subplots()
        for place, case in enumerate(ordered):
            ratio = machine.over(case.name) or 0.0
            axes.barh(place, ratio, color=COLOURS[OURS if ratio >= 1 else THEIRS])
            axes.annotate(machine.over_text(case.name), (max(ratio, 1.0), place), (5, 0), **BESIDE)
        usual = statistics.mode(map(ceilings.kind_of, ordered))
        axes.set_yticks(range(len(ordered)), [title_of(case, usual) for case in ordered])
        axes.axvline(1.0, color="black", linewidth=1.2)
        axes.set_xlabel("speed relative to nn.GRU")
        axes.margins(x=0.16, y=0.02)
        plain(axes)
        axes.grid(visible=False, axis="y")
        heading(figure, "How many times as fast as nn.GRU in a training step")
        note(figure, f"Precision: {usual}, unless stated beside the name.", machine.caption(cases))
        return svg(figure, "Training steps of real workloads", drawn(machine, cases))


def title_of(case: Case, usual: str) -> str:
    kind = ceilings.kind_of(case)
    return TITLES[case.label] + (f", {kind}" if kind != usual else "")


def roofline(rows: Sequence[Row]) -> bytes | None:
    """Operations a second over operations a byte of training steps, under the measured roofs; what waits for an
    exchange lies below."""
    best = first_gpu(rows, [case for case in workload_cases() if case.mode == "train"])
    if best is None:
        return None
    machine, cases = best
    cases = [case for case in cases if machine.floors(case.name) is not None]
    copy = machine.row(f"ceiling-{ceilings.COPY}", "torch")
    if not cases or copy is None:
        return None
    found = {kind: machine.row(f"ceiling-{kind}", "torch") for kind in ceilings.KINDS.values()}
    peaks = {kind: row["rate"] for kind, row in found.items() if row}
    with canvas(WIDTH, 6.2) as figure:
        axes = figure.subplots()
        intensity = {case: ceilings.operations(case) / ceilings.moved(case) for case in cases}
        reach = (min(intensity.values()) / 4, max(intensity.values()) * 4)
        for peak in peaks.values():
            corner = peak / copy["rate"]
            points = [x for x in (reach[0], corner, reach[1]) if reach[0] <= x <= reach[1]]
            axes.plot(points, [min(peak, x * copy["rate"]) / 1e12 for x in points], color="0.45")
        for names, rate in alike(peaks):
            axes.annotate(names, (rate / copy["rate"], rate / 1e12), (18, 8), **BESIDE)
        rates = {impl: [_rate(machine, case, impl) for case in cases] for impl in (OURS, THEIRS)}
        axes.vlines(list(intensity.values()), rates[OURS], rates[THEIRS], color="0.6", linewidth=1)
        for impl, marker in ((OURS, "o"), (THEIRS, "x")):
            axes.plot(list(intensity.values()), rates[impl], marker, color=COLOURS[impl], label=impl, markersize=7)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("operations per byte that must be moved")
        axes.set_ylabel(r"$10^{12}$ operations per second")
        axes.set_xlim(*reach)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderpad=0)
        named_ends(axes, {TITLES[case.label]: (x, _rate(machine, case, OURS), "0.6") for case, x in intensity.items()})
        plain(axes)
        heading(figure, "How close training steps come to the limits of the GPU")
        note(figure, "Grey lines: measured limits of memory (slope) and of arithmetic.", machine.caption(cases))
        return svg(figure, "Roofline", drawn(machine, cases))


def _rate(machine: Machine, case: Case, impl: str) -> float:
    """In 10^12 operations a second."""
    return ceilings.operations(case) / (machine.ms(case.name, impl) or 1.0) / 1e9


def alike(peaks: Mapping[str, float]) -> list[tuple[str, float]]:
    """The names of those that could not be told apart together, with the largest."""
    found: list[tuple[str, float]] = []
    for kind, rate in sorted(peaks.items(), key=lambda one: -one[1]):
        if found and found[-1][1] < NEAR * rate:
            found[-1] = f"{found[-1][0]}, {kind}", found[-1][1]
        else:
            found.append((kind, rate))
    return found


def scaling(rows: Sequence[Row]) -> bytes | None:
    """Time of a call over T, B, H and layers."""
    swept = {(name, mode): [case for case in sweep(name) if case.mode == mode] for name in SWEEPS for mode in MODES}
    best = first_gpu(rows, [case for cases in swept.values() for case in cases])
    if best is None:
        return None
    machine, cases = best
    from matplotlib.ticker import LogFormatter

    with canvas(WIDTH, 2.6 * len(SWEEPS) + 1.0) as figure:
        lines = figure.subplots(len(SWEEPS), squeeze=False)[:, 0]
        for axes, name in zip(lines, SWEEPS, strict=True):
            for mode, (impl, colour) in itertools.product(MODES, COLOURS.items()):
                times = {getattr(case, name): machine.ms(case.name, impl) for case in swept[name, mode]}
                points = [(size, ms) for size, ms in times.items() if ms is not None]
                if points:
                    label = f"{impl}, {MODES[mode]}"
                    axes.plot(*zip(*points, strict=True), STYLES[mode], color=colour, label=label)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.4)))
            axes.set_xlabel(SIZES[name])
            axes.set_ylabel("ms per call")
            plain(axes)
        lines[0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderpad=0)
        heading(figure, "Time of a call over its sizes")
        note(figure, machine.caption(cases))
        return svg(figure, "Scaling", drawn(machine, cases))


FIGURES: Mapping[str, Callable[[Sequence[Row]], bytes | None]] = {
    HEADLINE: headline,
    ROOFLINE: roofline,
    SCALING: scaling,
}

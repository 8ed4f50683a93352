"""The figures of ``docs/performance.md``: drawn where a GPU has rows, and not at all where none has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from bench.measure import ceilings
from bench.measure.cases import Case
from bench.measure.pair import OURS, THEIRS
from bench.measure.rows import Row
from bench.measure.workloads import workload_cases
from bench.pages.evidence import MODES, Machine, machines
from bench.pages.figures import PALETTE, canvas, digest, plain, svg
from bench.pages.performance import HEADLINE, ROOFLINE, SCALING
from bench.rivals import GRAPH
from bench.suites import SWEEPS, sweep

COLOURS = {OURS: PALETTE[0], THEIRS: PALETTE[1], GRAPH: PALETTE[4]}
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
    with canvas(8, 0.3 * len(ordered) + 1.4) as figure:
        axes = figure.subplots()
        for place, case in enumerate(ordered):
            ratio = machine.over(case.name) or 0.0
            axes.barh(place, ratio, color=COLOURS[OURS if ratio >= 1 else THEIRS])
            axes.text(ratio, place, f" {machine.over_text(case.name)}", va="center")
        axes.set_yticks(range(len(ordered)), [f"{case.label}, {ceilings.kind_of(case)}" for case in ordered])
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.set_xlabel("nn.GRU's time over ours, training step")
        axes.set_title(machine.caption(cases), fontsize=7, loc="left", wrap=True)
        axes.margins(x=0.12)
        plain(axes)
        return svg(figure, "Training steps of real workloads", drawn(machine, cases))


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
    kinds = [kind for kind in ceilings.KINDS.values() if machine.row(f"ceiling-{kind}", "torch")]
    with canvas(8, 5) as figure:
        axes = figure.subplots()
        intensity = {case: ceilings.operations(case) / ceilings.moved(case) for case in cases}
        reach = (min(intensity.values()) / 4, max(intensity.values()) * 4)
        for kind, colour in zip(kinds, PALETTE[2:], strict=False):
            rate = (machine.row(f"ceiling-{kind}", "torch") or {})["rate"]
            corner = rate / copy["rate"]
            points = [x for x in (reach[0], corner, reach[1]) if reach[0] <= x <= reach[1]]
            roof = [min(rate, x * copy["rate"]) / 1e12 for x in points]
            axes.plot(points, roof, color=colour, label=f"measured roof, {kind}")
        for impl, marker in ((OURS, "o"), (THEIRS, "x")):
            rates = [ceilings.operations(case) / (machine.ms(case.name, impl) or 1.0) / 1e9 for case in cases]
            axes.plot([intensity[case] for case in cases], rates, marker, color=COLOURS[impl], label=impl)
        for case in cases:
            rate = ceilings.operations(case) / (machine.ms(case.name) or 1.0) / 1e9
            axes.annotate(f" {case.label}", (intensity[case], rate), fontsize=6)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("operations of the products for each byte that must be moved")
        axes.set_ylabel("10^12 operations a second")
        axes.set_title(f"Training steps; {machine.caption(cases)}", fontsize=7, loc="left", wrap=True)
        axes.legend(fontsize=7)
        plain(axes)
        return svg(figure, "Roofline", drawn(machine, cases))


def scaling(rows: Sequence[Row]) -> bytes | None:
    """Time of a call over T, B, H and layers."""
    swept = {(name, mode): [case for case in sweep(name) if case.mode == mode] for name in SWEEPS for mode in MODES}
    best = first_gpu(rows, [case for cases in swept.values() for case in cases])
    if best is None:
        return None
    machine, cases = best
    with canvas(11, 6) as figure:
        grid = figure.subplots(len(MODES), len(SWEEPS), squeeze=False)
        for line, mode in zip(grid, MODES, strict=True):
            for axes, name in zip(line, SWEEPS, strict=True):
                for impl, colour in COLOURS.items():
                    points = [
                        (getattr(case, name), ms)
                        for case in swept[name, mode]
                        if (ms := machine.ms(case.name, impl)) is not None
                    ]
                    if points:
                        axes.plot(*zip(*points, strict=True), "o-", color=colour, label=impl, markersize=3)
                axes.set_xscale("log", base=2)
                axes.set_yscale("log")
                axes.set_title(f"{MODES[mode]}, over {name}", loc="left", fontsize=9)
                plain(axes)
        grid[0][0].legend(fontsize=7)
        figure.supylabel("ms of a call", fontsize=9)
        figure.suptitle(machine.caption(cases), fontsize=7)
        return svg(figure, "Scaling", drawn(machine, cases))


FIGURES: Mapping[str, Callable[[Sequence[Row]], bytes | None]] = {
    HEADLINE: headline,
    ROOFLINE: roofline,
    SCALING: scaling,
}

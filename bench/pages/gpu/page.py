"""The parts of ``docs/data/gpu.md`` that hold measurements."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from bench.analysis.reasons import condensed, hows
from bench.measure import ceilings
from bench.measure.cases import Case
from bench.measure.pair import OURS, THEIRS
from bench.measure.rows import Row
from bench.measure.workloads import PRECISIONS, TITLES, WORKLOADS, workload_cases
from bench.pages.evidence import MODES, Machine, exponent, machines, number, times
from bench.pages.marks import NOTHING, Part, folded, table
from bench.pages.performance import ROOFLINE, SCALING
from bench.rivals import ALL_RIVALS, FLOOR
from bench.suites import SHORT, SWEEPS, SWEPT, sweep

FIGURES = "../figures"  # beside the page's folder
PLURAL = {"train": "Training steps", "forward": "Forward passes"}


def for_each(rows: Sequence[Row], text: Callable[[Machine], str]) -> str:
    """Of each GPU with something to say."""
    return "\n\n".join(part for part in map(text, machines(rows, gpu=True)) if part) or NOTHING


# Real workloads


def workloads(rows: Sequence[Row]) -> str:
    return for_each(rows, _workloads)


def _workloads(machine: Machine) -> str:
    found = machine.timed(workload_cases())
    if not found:
        return ""
    parts = [f"{machine.caption(found)}. Medians."]
    for mode, title in PLURAL.items():
        cases = [case for case in found if case.mode == mode]
        if cases:
            mean = f"{times(machine.mean(cases))} in the geometric mean of {len(cases)} workloads"
            parts.append(f"**{title}**: {mean}.\n\n{_times_table(machine, cases)}")
    return "\n\n".join(parts)


def _times_table(machine: Machine, cases: Iterable[Case]) -> str:
    lines = []
    for case in cases:
        ahead = {impl: machine.over(case.name, impl) for impl in machine.rivals(case.name)}
        known = {impl: ratio for impl, ratio in ahead.items() if ratio is not None}
        best = min(known, key=lambda impl: known[impl], default=None)
        lines.append(
            (
                TITLES[case.label],
                number(machine.ms(case.name)),
                number(machine.ms(case.name, THEIRS)),
                machine.over_text(case.name),
                "-" if best is None else f"{best} {machine.over_text(case.name, best)}",
            )
        )
    head = ("workload", "tritongru, ms", "nn.GRU, ms", "speedup over nn.GRU", "over the fastest other")
    return table(head, lines, right=True)


def bounds(rows: Sequence[Row]) -> str:
    """Of the same calls: what ran, how far from the least possible time, and the memory."""
    return for_each(rows, _bounds)


def _bounds(machine: Machine) -> str:
    found = machine.timed(workload_cases())
    lines = []
    for case in found:
        row = machine.row(case.name) or {}
        lines.append(
            (
                f"{TITLES[case.label]}, {MODES[case.mode]}",
                ceilings.kind_of(case),
                row["family"] or "-",
                number(machine.floors(case.name), ".1f"),
                row["bound"] or "-",
                times(_memory(machine, case)),
            )
        )
    head = ("workload", "precision", "kernels", "time over the bound", "bound by", "peak memory over nn.GRU's")
    return folded(f"{machine.name}: {len(lines)} calls", table(head, lines)) if lines else ""


def _memory(machine: Machine, case: Case) -> float | None:
    ours, theirs = ((machine.row(case.name, impl) or {}).get("peak_mib") for impl in (OURS, THEIRS))
    return ours / theirs if ours is not None and theirs else None


def rivals(rows: Sequence[Row]) -> str:
    """Of the training step of each workload: everybody's time over ours, or why there is none."""
    return for_each(rows, _rivals)


def _rivals(machine: Machine) -> str:
    found = [case for case in machine.timed(workload_cases()) if case.mode == "train"]
    asked = [name for name in ALL_RIVALS if name != FLOOR and any(machine.row(case.name, name) for case in found)]
    asked.sort(key=lambda name: name.startswith(OURS))  # ours in other ways last
    names = [name for name in asked if any(machine.ms(case.name, name) is not None for case in found)]
    if not asked:
        return ""
    lines = [(TITLES[case.label], *(machine.over_text(case.name, name) for name in names)) for case in found]
    untimed = [(name, TITLES[case.label], reason) for name, case, reason in machine.untimed(found, asked)]
    said = dict.fromkeys((row["impl"], row["how"]) for row in machine.rows if row["how"] and row["impl"] in names)
    parts = [
        f"{machine.caption(found)}.",
        table(("workload", *names), lines, right=True) if names else "",
        "\n".join(condensed(untimed, len(found))),
        folded("How each was called", "\n".join(hows(said))) if said else "",
    ]
    return "\n\n".join(part for part in parts if part)


def precisions(rows: Sequence[Row]) -> str:
    return for_each(rows, _precisions)


def _precisions(machine: Machine) -> str:
    """Nothing where every workload was timed in its own precision alone: that is in the tables before."""
    own = workload_cases()
    by = {precision: machine.timed(workload_cases(precision)) for precision in PRECISIONS}
    kinds = [precision for precision in PRECISIONS if by[precision]]
    found = [case for kind in kinds for case in by[kind]]
    if not {*found} - {*own}:
        return ""
    lines = []
    for workload in WORKLOADS:
        for mode in reversed(MODES):
            cells = [machine.over_text(workload.case(mode, kind).name) for kind in kinds]
            if set(cells) != {"-"}:
                lines.append((f"{workload.title}, {MODES[mode]}", *cells))
    return f"{machine.caption(found)}.\n\n{table(('workload', *kinds), lines, right=True)}"


# The least possible time, and how it grows


def floor(rows: Sequence[Row]) -> str:
    return for_each(rows, _floor)


def _floor(machine: Machine) -> str:
    measured = _ceilings(machine)
    if not measured:
        return ""
    found = [case for case in machine.timed(workload_cases()) if machine.floors(case.name) is not None]
    figure = f"\n\n![Operations a second over operations a byte]({FIGURES}/{ROOFLINE})" if found else ""
    return f"{machine.caption()}.\n\n{measured}{figure}"


def _ceilings(machine: Machine) -> str:
    lines = []
    for (case, _), row in machine.found.items():
        name = case.removeprefix("ceiling-")
        if name == case or row["rate"] is None:
            continue
        copied = name == ceilings.COPY
        unit = "10^9 bytes/s, read and written" if copied else "10^12 operations/s"
        what = "large copy" if copied else f"product, {name}"
        lines.append((what, number(row["rate"] / (1e9 if copied else 1e12), ".4g"), unit))
    return table(("limit", "measured", "unit"), lines) if lines else ""


def scaling(rows: Sequence[Row]) -> str:
    return for_each(rows, _scaling)


def _scaling(machine: Machine) -> str:
    lines = []
    for name in SWEEPS:
        for mode in MODES:
            swept = [case for case in sweep(name) if case.mode == mode]
            own, theirs = (
                [(_size(case, name), machine.ms(case.name, impl)) for case in swept] for impl in (OURS, THEIRS)
            )
            known = [[(x, y) for x, y in points if y is not None] for points in (own, theirs)]
            if any(known):
                grows = [number(exponent(points), ".2f") for points in known]
                largest = max((x for points in known for x, _ in points), default=0)
                lines.append((f"{name}, {MODES[mode]}", f"{largest:,}", *grows))
    if not lines:
        return ""
    return (
        f"One layer of H = {SWEPT.hidden}, B = {SWEPT.batch}, T = {SWEPT.time}, {SWEPT.dtype}; one size varies (B with "
        f"T = {SHORT}), and the time grows as that power of it between the last two points. {machine.caption()}.\n\n"
        f"{table(('size', 'up to', 'power, ours', 'power, nn.GRU'), lines, right=True)}\n\n"
        f"![Times over T, B, H and layers]({FIGURES}/{SCALING})"
    )


def _size(case: Case, name: str) -> int:
    size: int = getattr(case, name)
    return size


PARTS: dict[str, Part] = {part.__name__: part for part in (workloads, bounds, rivals, precisions, floor, scaling)}

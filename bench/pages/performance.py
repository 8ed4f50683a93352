"""The parts of ``docs/performance.md`` and of the README that are made of the rows of a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.analysis.cpu.known import is_of_loop
from bench.measure import ceilings
from bench.measure.cases import Case
from bench.measure.pair import OURS, THEIRS
from bench.measure.rows import Row
from bench.measure.workloads import PRECISIONS, WORKLOADS, workload_cases
from bench.pages.cpu import page as loop
from bench.pages.evidence import COMMAND, MODES, Machine, exponent, machines, number, times
from bench.pages.marks import Part, table
from bench.rivals import ALL_RIVALS, FLOOR, FORCED
from bench.suites import SHORT, SUITES, SWEEPS, SWEPT, sweep

FIGURES = "figures"  # beside the page
HEADLINE, ROOFLINE, SCALING = (f"performance-{name}.svg" for name in ("workloads", "roofline", "scaling"))
ABOUT = 'a ratio within half the summed spreads of its two times is "about 1"'
ASKED = {
    "workloads": "real workloads, each in its own precision, with every rival",
    "scaling": "time against T, B, H and layers",
    "precisions": "the workloads in the other precisions",
    "grids": "the grids of the persistent and the resident kernels",
}


def none_yet(what: str) -> str:
    return f"No row of a GPU exists yet, so nothing is said here of {what}. `{COMMAND}` on a machine with one makes it."


def for_each(found: Sequence[Machine], text: Callable[[Machine], str], what: str) -> str:
    parts = [part for part in map(text, found) if part]
    return "\n\n".join(parts) or none_yet(what)


def unknown(rows: Sequence[Row]) -> list[str]:
    """What no row of a GPU tells, a sentence for each suite and for what else only a GPU can tell."""
    gpus = machines(rows, gpu=True)
    lines = []
    for suite, jobs in SUITES.items():
        cases = [case for case, _ in jobs()]
        most = max((len(machine.timed(cases)) for machine in gpus), default=0)
        if most < len(cases):
            lines.append(f"{ASKED[suite]}: {most} of {len(cases)} cases measured on a GPU (suite `{suite}`)")
    names = {row["case"] for machine in gpus for row in machine.rows}
    for prefix, what in (
        ("ceiling-", "the ceilings of a GPU, and with them every floor"),
        ("host-", "what a call costs the host on a machine with a GPU"),
        ("first-", "what the first call costs, compilation included, on a GPU"),
    ):
        if not any(name.startswith(prefix) for name in names):
            lines.append(f"{what}: no row")
    return lines


# Parts of the page


def state(rows: Sequence[Row]) -> str:
    gpus = machines(rows, gpu=True)
    have = [f"- {machine.caption()}." for machine in gpus]
    first = "Rows of these GPUs:\n\n" + "\n".join(have) if gpus else "**No row of a GPU exists yet.**"
    lacking = unknown(rows)
    if not lacking:
        return first
    return f"{first}\n\nWhat no row of a GPU tells yet:\n\n" + "\n".join(f"- {line}." for line in lacking)


def workloads(rows: Sequence[Row]) -> str:
    return for_each(machines(rows, gpu=True), _workloads, "how fast the workloads run")


def _workloads(machine: Machine) -> str:
    found = machine.timed(workload_cases())
    if not found:
        return ""
    parts = [_comparison(machine, found)]
    training = [case for case in found if case.mode == "train"]
    if training:
        parts.append(
            f"Training steps: {times(machine.mean(training))} nn.GRU's speed in the geometric mean of {len(training)}, "
            f"{machine.over_text(_worst(machine, training).name)} in the worst."
        )
        parts.append(f"![Times of a training step, ours and nn.GRU's]({FIGURES}/{HEADLINE})")
    return "\n\n".join(parts)


def _worst(machine: Machine, found: Sequence[Case]) -> Case:
    return min(found, key=lambda case: machine.over(case.name) or 0.0)


def _comparison(machine: Machine, found: Sequence[Case]) -> str:
    titles = {workload.label: workload.title for workload in WORKLOADS}
    lines = []
    for case in found:
        row = machine.row(case.name) or {}
        ahead = {impl: machine.over(case.name, impl) for impl in machine.rivals(case.name)}
        known = {impl: ratio for impl, ratio in ahead.items() if ratio is not None}
        best = min(known, key=lambda impl: known[impl], default=None)
        lines.append(
            (
                f"{titles[case.label]}, {MODES[case.mode]}",
                ceilings.kind_of(case),
                row["family"] or "-",
                number(machine.ms(case.name)),
                number(machine.ms(case.name, THEIRS)),
                machine.over_text(case.name),
                "-" if best is None else f"{best} {machine.over_text(case.name, best)}",
                number(machine.floors(case.name), ".1f"),
                row["bound"] or "-",
                times(_memory(machine, case)),
            )
        )
    head = ("workload", "precision", "family", "ours, ms", "nn.GRU, ms", "nn.GRU over ours", "next rival over ours")
    return f"{machine.caption(found)}. Medians; {ABOUT}.\n\n" + table(
        (*head, "ours over the floor", "bound by", "memory over nn.GRU's"), lines
    )


def _memory(machine: Machine, case: Case) -> float | None:
    ours, theirs = ((machine.row(case.name, impl) or {}).get("peak_mib") for impl in (OURS, THEIRS))
    return ours / theirs if ours is not None and theirs else None


def rivals(rows: Sequence[Row]) -> str:
    """Of the training step of each workload: everybody's time over ours, or why there is none."""
    return for_each(machines(rows, gpu=True), _rivals, "the rivals' times")


def _rivals(machine: Machine) -> str:
    found = [case for case in machine.timed(workload_cases()) if case.mode == "train"]
    names = [name for name in ALL_RIVALS if name != FLOOR and any(machine.row(case.name, name) for case in found)]
    if not names:
        return ""
    reasons: dict[str, list[str]] = {}
    lines = []
    for case in found:
        cells = []
        for name in names:
            row = machine.row(case.name, name)
            if row and row["ms"] is None and row["reason"]:
                reasons.setdefault(f"{name}: {row['reason']}", []).append(case.label)
            cells.append(machine.over_text(case.name, name))
        lines.append((case.label, *cells))
    hows = {row["impl"]: row["how"] for row in machine.rows if row["how"] and row["impl"] in names}
    notes = [f"- {name}: {how}" for name, how in hows.items()]
    notes += [f"- no time: {reason} ({', '.join(labels)})" for reason, labels in reasons.items()]
    return (
        f"Training steps, the others' time over ours; {machine.caption(found)}.\n\n"
        f"{table(('workload', *names), lines, right=True)}\n\n" + "\n".join(notes)
    )


def precisions(rows: Sequence[Row]) -> str:
    return for_each(machines(rows, gpu=True), _precisions, "the other precisions")


def _precisions(machine: Machine) -> str:
    everything = [case for precision in PRECISIONS for case in workload_cases(precision)]
    found = machine.timed(everything)
    if not found:
        return ""
    lines = []
    for workload in WORKLOADS:
        for mode in MODES:
            made = [machine.over_text(workload.case(mode, precision).name) for precision in PRECISIONS]
            lines.append((f"{workload.title}, {MODES[mode]}", *made))
    return (
        f"nn.GRU's time over ours in the same precision; {machine.caption(found)}.\n\n"
        f"{table(('workload', *PRECISIONS), lines, right=True)}"
    )


def floor(rows: Sequence[Row]) -> str:
    return for_each(machines(rows, gpu=True), _floor, "the floor")


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
        unit = "10^9 bytes a second, read and written" if copied else "10^12 operations a second"
        lines.append((name, number(row["rate"] / (1e9 if copied else 1e12), ".4g"), unit))
    return table(("ceiling", "measured", "unit"), lines) if lines else ""


def scaling(rows: Sequence[Row]) -> str:
    return for_each(machines(rows, gpu=True), _scaling, "how the time grows")


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
    head = ("swept", "up to", "ours grows as its power", "nn.GRU")
    return (
        f"One layer of H = {SWEPT.hidden}, B = {SWEPT.batch}, T = {SWEPT.time}, {SWEPT.dtype}, of which one size is "
        f"swept (over B with T = {SHORT}); powers between the last two points. {machine.caption()}.\n\n"
        f"{table(head, lines, right=True)}\n\n![Times over T, B, H and layers]({FIGURES}/{SCALING})"
    )


def _size(case: Case, name: str) -> int:
    size: int = getattr(case, name)
    return size


def slower(rows: Sequence[Row]) -> str:
    """Every case in which our kernels, asked for or not, took longer than nn.GRU."""
    return for_each(machines(rows, gpu=True), _slower, "where the kernels are slower than nn.GRU")


def _slower(machine: Machine) -> str:
    lines = []
    forced = f"{OURS}[triton]"
    for case in dict.fromkeys(case for case, _ in machine.found):
        auto = machine.row(case)
        kernels = [FORCED, forced]
        if auto and auto["family"] not in (None, "torch"):
            kernels.append(OURS)
        ratios = {impl: machine.over(case, ours=impl) for impl in kernels}
        below = {impl: ratio for impl, ratio in ratios.items() if ratio is not None and ratio < 1.0}
        if below:
            worst = min(below, key=lambda impl: below[impl])
            does = "was not measured" if auto is None else f"runs {auto['family']}"
            lines.append((case, machine.over_text(case, ours=worst), does))
    if not lines:
        return f"{machine.name}: in none of {len(machine.found)} rows."
    return f"{machine.caption()}.\n\n{table(('case', 'nn.GRU over ours', 'auto'), lines)}"


PARTS: dict[str, Part] = {
    part.__name__: part for part in (state, workloads, rivals, precisions, floor, scaling, slower)
}


def headline(rows: Sequence[Row]) -> str:
    """Of the README: what the rows of CPUs and of GPUs allow to say."""
    return f"{loop.headline([row for row in rows if is_of_loop(row)])}\n\n{_on_gpus(rows)}"


def _on_gpus(rows: Sequence[Row]) -> str:
    gpus = [machine for machine in machines(rows, gpu=True) if _workloads(machine)]
    if not gpus:
        return (
            "**On a GPU**: no row has been measured yet, so no speed-up is claimed: `python3 -m bench run` measures "
            "real workloads on yours, correctness first, and `python3 -m bench plot` makes "
            "[the page of results](docs/performance.md#real-workloads)."
        )
    sentences = []
    for machine in gpus:
        found = [case for case in machine.timed(workload_cases()) if case.mode == "train"]
        worst = _worst(machine, found)
        sentences.append(
            f"**On a GPU**, a training step takes nn.GRU {times(machine.mean(found))} as long as ours in the geometric "
            f"mean of {len(found)} real workloads, in the worst {machine.over_text(worst.name)} ({worst.label}): "
            f"{machine.caption(found)}, each in its own precision. [All results](docs/performance.md#real-workloads)."
        )
    return "\n\n".join(sentences)


HEADLINE_PARTS: dict[str, Part] = {"headline": headline}

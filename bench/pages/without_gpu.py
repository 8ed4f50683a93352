"""The parts of ``docs/performance.md`` that need no GPU: what is measured, what the plan decides, and rows of a CPU."""

from __future__ import annotations

from collections.abc import Sequence

from bench.compile.tables import PAGE, as_read_with
from bench.measure.pair import OURS, THEIRS
from bench.measure.rows import Row
from bench.measure.workloads import CPU_WORKLOADS, WORKLOADS, Workload, workload_cases
from bench.pages.evidence import COMMAND, MODES, Machine, machines, number
from bench.pages.marks import Part, table
from bench.rivals import ALL_RIVALS, REGISTRY
from bench.suites import SUITES
from tritongru.planning.devices import GPUS
from tritongru.planning.plan import plan


def cases(rows: Sequence[Row]) -> str:
    """The list of workloads: no measurement."""
    lines = [(w.title, _shape(w), w.precision, w.source) for w in WORKLOADS]
    lines += [(w.title, _shape(w), "fp32, on CPUs", w.source) for w in CPU_WORKLOADS]
    return table(("workload", "shape", "own precision", "source"), lines)


def _shape(workload: Workload) -> str:
    w = workload
    stack = f"{w.layers} layers, " if w.layers > 1 else ""
    both = "both directions, " if w.directions == 2 else ""
    return f"{stack}{both}I = {w.inputs:,}, H = {w.hidden:,}, B = {w.batch:,}, T = {w.time:,}"


def given_to_torch(rows: Sequence[Row]) -> str:
    """What the plan does, no measurement: of the workloads and the grids, on an H200."""
    found: dict[str, list[str]] = {}
    device = GPUS["h200"]
    with as_read_with(PAGE):
        for suite in ("workloads", "precisions", "grids"):
            for case, _ in SUITES[suite]():
                answer = plan(
                    case.hidden,
                    {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[case.dtype],
                    device,
                    batch=case.batch,
                    time=case.time,
                    directions=case.directions,
                    precision="tf32" if case.tf32 else "ieee",
                    training=case.mode == "train",
                )
                if answer.family == "torch":
                    found.setdefault(suite, []).append(f"`{case.name}`")
    if not found:
        return "None: every case of the suites runs in a kernel."
    return "\n".join(f"- {suite}: {', '.join(names)}." for suite, names in found.items())


def calls(rows: Sequence[Row]) -> str:
    parts = [_calls(machine) for machine in (*machines(rows, gpu=True), *machines(rows, gpu=False))]
    return "\n\n".join(part for part in parts if part) or "No row exists yet."


def _calls(machine: Machine) -> str:
    lines = []
    for (case, _), row in machine.found.items():
        if case.startswith(("host-", "first-")) or case == "import":
            lines.append((case, number(1000 * row["ms"], ".1f"), number(row["spread"], ".2f")))
    return f"{machine.caption()}.\n\n{table(('what', 'us, median', 'spread'), lines, right=True)}" if lines else ""


def cpu(rows: Sequence[Row]) -> str:
    parts = [_cpu(machine) for machine in machines(rows, gpu=False)]
    return "\n\n".join(part for part in parts if part) or f"No row exists yet; `{COMMAND}` makes them."


def _cpu(machine: Machine) -> str:
    found = [case for case in workload_cases("fp32") if machine.over(case.name) is not None]
    if not found:
        return ""
    names = [THEIRS, *(name for name in ALL_RIVALS if any(machine.ms(case.name, name) for case in found))]
    lines = []
    for case in found:
        shares = [machine.over_text(case.name, name) for name in names]
        own = machine.found[case.name, OURS]
        cells = (own["family"] or "-", number(own["ms"]), number(own["spread"], ".2f"))
        lines.append((f"{case.label}, {MODES[case.mode]}", *cells, *shares))
    head = ("workload", "runs", "ours, ms", "spread", *(f"{name} over ours" for name in names))
    missing = dict.fromkeys(
        f"- {row['impl']}: {row['reason']}"
        for case in found
        for name in REGISTRY
        if (row := machine.row(case.name, name)) and row["ms"] is None and row["reason"]
    )
    why = "\n\nNot timed:\n\n" + "\n".join(missing) if missing else ""
    return f"{machine.caption(found)}, fp32.\n\n{table(head, lines, right=True)}{why}"


PARTS: dict[str, Part] = {part.__name__: part for part in (cases, given_to_torch, calls, cpu)}

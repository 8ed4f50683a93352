"""The parts of ``docs/data/gpu.md`` that need no GPU: the list of workloads, what the plan decides, and what calls cost
the host."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from bench.compile.tables import PAGE, as_read_with
from bench.measure.rows import Row
from bench.measure.workloads import CPU_WORKLOADS, WORKLOADS, Workload
from bench.pages.evidence import Machine, machines, number, title_of
from bench.pages.marks import NOTHING, Part, folded, table
from bench.suites import SUITES
from tritongru.planning.devices import GPUS
from tritongru.planning.plan import plan

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
DEVICE = "h200"
FEW = 2  # workloads of one source that are named one by one


def cases(rows: Sequence[Row]) -> str:
    """The list of workloads, those of one source in one line: no measurement."""
    both = _sources(WORKLOADS), _sources(CPU_WORKLOADS)
    titles = "Measured on GPUs and, up to a certain size, on CPUs in fp32", "Measured on CPUs alone, in fp32"
    return "\n\n".join(
        folded(f"{title}: {len(known)} sources", "\n".join(known)) for title, known in zip(titles, both, strict=True)
    )


def _sources(workloads: Iterable[Workload]) -> list[str]:
    by_source: dict[str, list[Workload]] = {}
    for workload in workloads:
        by_source.setdefault(workload.source, []).append(workload)
    return [f"- **{_titles(own)}** ({_shape(own)}): {source}." for source, own in by_source.items()]


def _titles(own: Sequence[Workload]) -> str:
    titles = [workload.title for workload in own]
    return "; ".join(titles) if len(own) <= FEW else f"{titles[0]} to {titles[-1]} ({len(own)} sizes)"


def _shape(own: Sequence[Workload]) -> str:
    first = own[0]
    parts = [f"{first.layers} layers"] if first.layers > 1 else []
    parts += ["both directions"] if first.directions == 2 else []
    sizes = {"I": "inputs", "H": "hidden", "B": "batch", "T": "time"}
    if all(workload.inputs == workload.hidden for workload in own):
        sizes = {"I = H": "hidden", "B": "batch", "T": "time"}
    parts += [f"{name} = {_values(getattr(workload, key) for workload in own)}" for name, key in sizes.items()]
    return ", ".join([*parts, first.precision] if first in WORKLOADS else parts)


def _values(found: Iterable[int]) -> str:
    *first, last = (f"{value:,}" for value in dict.fromkeys(found))
    return f"{', '.join(first)} or {last}" if first else last


def given_to_torch(rows: Sequence[Row]) -> str:
    """What the plan does, no measurement: of the workloads and the grids, on one GPU."""
    found: dict[str, None] = {}
    with as_read_with(PAGE):
        for suite in ("workloads", "precisions", "grids"):
            for case, _ in SUITES[suite]():
                answer = plan(
                    case.hidden,
                    DTYPES[case.dtype],
                    GPUS[DEVICE],
                    batch=case.batch,
                    time=case.time,
                    directions=case.directions,
                    precision="tf32" if case.tf32 else "ieee",
                    training=case.mode == "train",
                )
                if answer.family == "torch":
                    found.setdefault(f"- {title_of(case.name, dataclasses.asdict(case))}")
    return "\n".join(found) or "None: every call above runs in a kernel."


def calls(rows: Sequence[Row]) -> str:
    parts = [_calls(machine) for machine in (*machines(rows, gpu=True), *machines(rows, gpu=False))]
    return "\n\n".join(part for part in parts if part) or NOTHING


def _calls(machine: Machine) -> str:
    lines = []
    for (case, _), row in machine.found.items():
        if case.startswith(("host-", "first-")) or case == "import":
            lines.append((_call(case), number(1000 * row["ms"], ".1f"), number(row["spread"], ".2f")))
    return f"{machine.caption()}.\n\n{table(('what', 'median, us', 'spread'), lines, right=True)}" if lines else ""


def _call(case: str) -> str:
    kind, *rest = case.split("-")
    if kind == "host":
        family, direction, *whole = rest
        return f"{family} kernels, {direction}, until {'the call returns' if whole else 'the kernel starts'}"
    if kind == "first":
        direction, hidden, dtype = rest
        return f"first call of a process, {direction}, H = {int(hidden[1:]):,}, {dtype}"
    return "`import tritongru`, in addition to `import torch`"


PARTS: dict[str, Part] = {part.__name__: part for part in (cases, given_to_torch, calls)}

"""The part of ``docs/data/cpu.md`` on torch's GRU through ours, made of ``bench run`` on a machine without a GPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from bench.analysis.reasons import condensed
from bench.measure.pair import OURS, THEIRS
from bench.measure.rows import Row
from bench.measure.workloads import workload_cases
from bench.pages.evidence import Machine, machines, number, title_of
from bench.pages.marks import NOTHING, Part, table
from bench.rivals import ALL_RIVALS, REGISTRY


def torch_path(rows: Sequence[Row]) -> str:
    parts = [_torch_path(machine) for machine in machines(rows, gpu=False)]
    return "\n\n".join(part for part in parts if part) or NOTHING


def _torch_path(machine: Machine) -> str:
    found = machine.timed(workload_cases("fp32"))
    if not found:
        return ""
    titles = {case.name: title_of(case.name, dataclasses.asdict(case)) for case in found}
    names = [THEIRS, *(name for name in ALL_RIVALS if any(machine.ms(case.name, name) for case in found))]
    lines = []
    for case in found:
        own = machine.found[case.name, OURS]
        cells = (own["family"] or "-", number(own["ms"]), number(own["spread"], ".2f"))
        shares = (machine.over_text(case.name, name) for name in names)
        lines.append((titles[case.name], *cells, *shares))
    untimed = [(name, titles[case.name], reason) for name, case, reason in machine.untimed(found, list(REGISTRY))]
    parts = [
        f"{machine.caption(found)}, fp32.",
        table(("workload", "runs", "tritongru, ms", "spread", *names), lines, True),
    ]
    return "\n\n".join([*parts, *(["\n".join(condensed(untimed, len(found)))] if untimed else [])])


PARTS: dict[str, Part] = {"torch_path": torch_path}

"""What each command measures, the most informative cases first, so that a stop at any moment loses the least.

A job is a case and the names of its rivals besides nn.GRU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from bench.measure.cases import BATCHES, FIRST, HEADLINES, HIDDEN, MODES, Case, grid, small_cases, wide_cases
from bench.measure.ceilings import operations
from bench.measure.workloads import PRECISIONS, WORKLOADS, workload_cases
from bench.rivals import ALL_RIVALS, FLOOR, FORCED, GATE_RIVALS, GRAPH, GRID_RIVALS, OURS_GRAPH
from tritongru.planning.launches import BLOCK_B

Job = tuple[Case, tuple[str, ...]]
Tuned = tuple[str, str, bool, int, int, int]
# Sweeps vary one size of a layer from the middle of the grid.
SWEPT = Case(512, 16, 512, "bf16", "forward")
SWEEPS: dict[str, tuple[int, ...]] = {
    "time": tuple(4**k for k in range(9)),
    "batch": (1, 4, 16, 64, 256, 1024, 4096, 8192),
    "hidden": tuple(2**k for k in range(4, 13)),
    "layers": (1, 2, 4, 8),
}
SHORT = 64  # steps while the batch is swept: float64 keeps every step of 8,192 sequences
SPREAD = 192  # from this hidden size on, some kind of arithmetic needs several programs
OPENING = ("brain-to-text", "deepfilternet2", "gtcrn", "streaming")  # workloads of the first block
CPU_OPERATIONS = 3e9  # of a forward pass that takes a CPU less than a second


def gate_blocks() -> list[list[Case]]:
    """Cases that are compiled together, then measured one by one: those with targets, the first block short enough for
    the gate's default budget; then the middle of every grid, then the cells around it."""
    first = len(MODES) * FIRST
    known = [case for case in workload_cases() if case.mode == "train"]
    opening = [case for case in known if case.label in OPENING]
    bf16, fp32, fp16 = map(wide_cases, ("bf16", "fp32", "fp16"))
    small = small_cases()
    middle = [*bf16[:first], *fp32[: first // 2], *small[:4]]
    training = [case for case in known if case not in opening]
    around = [[*bf16[first:], *small[4:10]], [*fp32[first // 2 :], *small[10:]], fp16]
    return [[*HEADLINES, *opening], training, middle, *around]


def gate_cases() -> list[Case]:
    return [case for block in gate_blocks() for case in block]


def gate_rivals(case: Case) -> tuple[str, ...]:
    if case.label:
        return GATE_RIVALS
    return GRID_RIVALS if case.wide else ()


def tune_cases() -> list[Case]:
    """Shapes to find the best launch for: a layer of each workload that does not fit on one multiprocessor, and the
    grid. Batches up to 16 are one tile to a launch, and both 16-bit types run the same code, so one of each is enough;
    the headline's length is measured by the gate."""
    batches = tuple(batch for batch in BATCHES if batch >= 16)
    cases = [*grid("bf16", HIDDEN, batches), *grid("fp32", HIDDEN[:-1], batches)]
    layers = [
        replace(case, layers=1, inputs=None, label="", time=min(case.time, SWEPT.time) if case.time > 1 else SWEPT.time)
        for case in workload_cases()
        if case.hidden >= SPREAD
    ]
    known: dict[Tuned, Case] = {}
    for case in (*layers, *cases):
        tiles = math.ceil(case.batch / BLOCK_B)
        known.setdefault((case.mode, case.dtype, case.tf32, case.hidden, tiles, case.directions), case)
    return list(known.values())


def sweep(name: str) -> list[Case]:
    """The cases in which one size takes each of its values, in both modes."""
    around = replace(SWEPT, time=SHORT) if name == "batch" else SWEPT
    sizes: list[dict[str, Any]] = [{name: value} for value in SWEEPS[name]]
    return [replace(around, mode=mode, **size) for size in sizes for mode in MODES]


def workloads() -> list[Job]:
    return [(case, ALL_RIVALS) for case in workload_cases()]


def scaling() -> list[Job]:
    return [(case, (GRAPH, FLOOR)) for case in dict.fromkeys(case for name in SWEEPS for case in sweep(name))]


def precisions() -> list[Job]:
    """Every workload in all precisions but its own."""
    own = {case.name for case in workload_cases()}
    cases = [case for precision in PRECISIONS for case in workload_cases(precision)]
    return [(case, (FLOOR,)) for case in cases if case.name not in own]


def grids() -> list[Job]:
    return [(case, gate_rivals(case)) for case in gate_cases() if not case.label]


SUITES: dict[str, Callable[[], list[Job]]] = {
    "workloads": workloads,
    "scaling": scaling,
    "precisions": precisions,
    "grids": grids,
}


def on_cpu(suite: str) -> list[Job]:
    """What a CPU can measure of a suite: for real workloads that take it less than a second, in fp32, the overhead of
    our call over torch's own, and the rivals' times. The smallest first."""
    if suite != "workloads":
        return []
    forward = {workload: workload.case("forward", "fp32") for workload in WORKLOADS}
    small = sorted(
        (w for w in WORKLOADS if operations(forward[w]) <= CPU_OPERATIONS), key=lambda w: operations(forward[w])
    )
    names = tuple(name for name in ALL_RIVALS if name not in (FORCED, OURS_GRAPH, FLOOR))
    return [(workload.case(mode, "fp32"), names) for workload in small for mode in reversed(MODES)]


# A typical call on a CPU, and one so small that only the overhead counts.
CPU_CASES = (Case(64, 16, 64, "fp32", "forward"), Case(8, 1, 1, "fp32", "forward"))

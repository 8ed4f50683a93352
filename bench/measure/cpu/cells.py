"""Which calls of the CPU loop are measured, part by part, the most informative first."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from bench.measure.cases import MODES, Case
from bench.measure.ceilings import operations
from bench.measure.workloads import CPU_WORKLOADS, WORKLOADS, Workload

HIDDEN = (16, 64, 128, 256, 512)
BATCHES = (1, 4, 16, 64, 256)
MIDDLE = (1, 4, 0, 2, 3)  # places in HIDDEN and BATCHES, in an order in which a stop loses only neighbours
STEPS, FEW_STEPS = 100, 20  # of a cell of the grid, and of its largest cells
LARGE = 60_000  # H * B, above which few steps are enough
LONG = 1000  # steps with B = 1
ODD = ((1, 7, 5), (3, 2, 1), (63, 40, 16), (65, 33, 4), (100, 80, 16), (200, 13, 3))  # H, I, B
TINY = (1, 2, 4, 8, 16, 32)  # T * B of a training step, around which torch's own GRU may be faster
ONCE = (4, 16, 64, 256)  # batches of one time step, likewise
GRID, STEP, CELL, TINY_PART, ODD_PART, LONG_PART, WORKLOAD = PARTS = (
    *("grid", "step", "cell", "tiny", "odd", "long", "workload"),
)
WHOLE = 1e11  # operations of a forward pass that takes a CPU seconds
ZONE, ZONE_BATCH = "zone-", 44  # concerns cuDNN: here one of its batches is enough
STEP_CASE = Case(64, 1, 1, "fp32", "forward")


@dataclass(frozen=True)
class Cell:
    """A call. ``part``: one of ``PARTS``; ``CELL`` is a call of GRUCell, without an LSTM beside it."""

    part: str
    case: Case

    @property
    def name(self) -> str:
        return f"{self.part}-{self.case.name}"

    def row_name(self, threads: int) -> str:
        """The case name in rows with this number of threads."""
        return f"{self.name}-{counted(threads, '-')}"


def counted(threads: int, gap: str = " ") -> str:
    return f"{threads}{gap}thread{'s' if threads > 1 else ''}"


def steps_of(hidden: int, batch: int) -> int:
    return FEW_STEPS if hidden * batch > LARGE else STEPS


def grid() -> list[Cell]:
    sizes = [(HIDDEN[i], BATCHES[j]) for i, j in itertools.product(MIDDLE, MIDDLE)]
    return [Cell(GRID, Case(H, B, steps_of(H, B), "fp32", mode)) for H, B in sizes for mode in MODES]


def tiny() -> list[Cell]:
    """Training steps with small T * B, and calls of one step with B > 1."""
    steps = [Cell(TINY_PART, Case(H, 1, T, "fp32", "train")) for H in HIDDEN for T in TINY]
    once = [Cell(TINY_PART, Case(H, B, 1, "fp32", mode)) for H in HIDDEN for B in ONCE for mode in MODES]
    return steps + once


def is_measured_here(workload: Workload) -> bool:
    """Which of the GPU workloads a CPU runs, in full size."""
    if workload.label.startswith(ZONE) and workload.batch != ZONE_BATCH:
        return False
    return operations(workload.case("forward", "fp32")) <= WHOLE


def workloads() -> list[Cell]:
    """Real models in fp32, the smallest first."""
    known = [*CPU_WORKLOADS, *filter(is_measured_here, WORKLOADS)]
    known.sort(key=lambda workload: operations(workload.case("forward", "fp32")))
    return [Cell(WORKLOAD, workload.case(mode, "fp32")) for workload in known for mode in workload.modes]


def cells() -> list[Cell]:
    return [
        Cell(STEP, STEP_CASE),
        *grid(),
        *(Cell(STEP, Case(H, 1, 1, "fp32", "forward")) for H in HIDDEN if STEP_CASE.hidden != H),
        *(Cell(CELL, Case(H, 1, 1, "fp32", "forward")) for H in HIDDEN),
        *tiny(),
        *(Cell(ODD_PART, Case(H, B, STEPS, "fp32", mode, inputs=I)) for H, I, B in ODD for mode in MODES),
        *(Cell(LONG_PART, Case(H, 1, LONG, "fp32", mode)) for H in HIDDEN for mode in MODES),
        *workloads(),
    ]

"""Which calls the suites `lengths`, `resets` and `step` measure, the most informative first."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bench.measure.cases import MODES, Case

LENGTHS, RESETS, STEP = SUITES = ("lengths", "resets", "step")
TIMES = (1000, 10, 100)
SIZES = ((64, 16), (256, 16), (64, 128), (16, 16))  # H, B
RESET_SIZES = ((64, 16), (64, 1), (256, 64))
RESET_TIMES = (100, 1000)
RESET_SHARE = 0.03  # of all steps
LARGE = 5_000_000  # H * B * T above which a call takes a CPU seconds
STEP_BATCHES = (1, 4096)
STEP_LAYERS = (1, 2)
STEP_HIDDEN, GPU_HIDDEN = 64, 512


@dataclass(frozen=True)
class Cell:
    """A call. ``suite``: one of ``SUITES``."""

    suite: str
    case: Case

    @property
    def name(self) -> str:
        return self.case.name


def _cell(suite: str, hidden: int, batch: int, time: int, mode: str, dtype: str, layers: int = 1) -> Cell:
    case = Case(hidden, batch, time, dtype, mode, layers=layers)
    label = f"{suite}-{case.name.removesuffix(f'-{dtype}-{mode}')}"
    return Cell(suite, replace(case, label=label))


def cells(suite: str, on_gpu: bool) -> list[Cell]:
    dtype = "bf16" if on_gpu else "fp32"
    if suite == STEP:
        sizes = [(GPU_HIDDEN, 1, 2)] if on_gpu else []
        sizes += [(STEP_HIDDEN, batch, layers) for batch in STEP_BATCHES for layers in STEP_LAYERS]
        return [_cell(suite, H, B, 1, "forward", dtype, layers) for H, B, layers in sizes]
    times, shapes = (TIMES, SIZES) if suite == LENGTHS else (RESET_TIMES, RESET_SIZES)
    return [
        _cell(suite, H, B, T, mode, dtype)
        for H, B in shapes
        for T in times
        for mode in MODES
        if on_gpu or H * B * T <= LARGE
    ]

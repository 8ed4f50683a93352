"""The targets of the CPU loop, and whether rows reach them."""

from __future__ import annotations

from dataclasses import dataclass

from bench.analysis.cpu.known import ALL, CLASSES, Known, mean
from bench.analysis.targets import Judged, judged_as
from bench.calls.cpu.fresh import CACHED, COLD, PEAK_NAME
from bench.measure.cases import MODES
from bench.measure.cpu.cells import STEP, STEP_CASE, Cell, grid
from bench.measure.cpu.rows import ours
from bench.measure.pair import THEIRS
from bench.rivals import CUDNN_LSTM

WIDE, NARROW = "avx512", "avx2"  # other instruction sets are held to AVX2's targets
# Times nn.GRU's speed on one thread: geometric means of the classes, in the order of ``CLASSES``.
LEAST: dict[str, dict[str, tuple[float | None, ...]]] = {
    WIDE: {"forward": (12.0, 3.1, 4.1, 2.6, 4.6), "train": (13.0, 3.2, 5.5, 2.4, 5.1)},
    NARROW: {"forward": (6.0, 1.7, 2.0, 1.3, None), "train": (7.0, 1.7, 2.5, 1.2, None)},
}
LEAST_OF_A_CELL = {WIDE: 1.5, NARROW: 1.0}
LEAST_OVER_LSTM = {"forward": 1.3, "train": 1.15}
FIRST_S = {COLD: 1.0, CACHED: 0.1}
STEP_LEAST = 3.0  # times nn.GRU's speed for a single step with B = 1
PEAK_MOST = 1.0  # of nn.GRU's memory in a training step
LOST_TO_THREADS = 0.2  # of the ratio with one thread


@dataclass(frozen=True)
class Asked:
    """``sets``: instruction sets, the host's best first; ``threads``: all of the machine."""

    sets: tuple[str, ...]
    threads: int


def judge(known: Known, asked: Asked) -> list[Judged]:
    best, judged = asked.sets[0], []
    for isa in asked.sets:
        judged += _speed(known, isa)
    for mode, least in LEAST_OVER_LSTM.items():
        ratios = known.ratios(_cells(mode), best, 1, CUDNN_LSTM)
        judged.append(_no_cell_below(f"{best}, {mode}: nn.LSTM's time over ours", least, ratios))
    if asked.threads > 1:
        judged += [_all_threads(known, isa, asked.threads) for isa in asked.sets]
    return [*judged, _memory(known, best), *_first(known, best), _step(known, best)]


def _cells(mode: str) -> list[Cell]:
    return [cell for cell in grid() if cell.case.mode == mode]


def held_to(isa: str) -> str:
    """The column of targets that applies."""
    return isa if isa in LEAST else NARROW


def _speed(known: Known, isa: str) -> list[Judged]:
    column, judged = held_to(isa), []
    note = "" if column == isa else f" (held to the targets of {column})"
    for mode in MODES:
        for group, least in zip(CLASSES, LEAST[column][mode], strict=True):
            if least is None:
                continue
            ratios = known.ratios(group.cells(mode), isa, 1)
            what = f"{isa}, {mode}: {group.title}, at least {least:g}x nn.GRU in the mean{note}"
            found, of = mean(ratios), len(group.cells(mode))
            reached = None if found is None or len(ratios) < of else found >= least
            judged.append(judged_as(what, reached, f"{found or 0:.2f}x over {len(ratios)} of {of} cells"))
        ratios = known.ratios(ALL.cells(mode), isa, 1)
        judged.append(_no_cell_below(f"{isa}, {mode}: nn.GRU's time over ours{note}", LEAST_OF_A_CELL[column], ratios))
    return judged


def _no_cell_below(what: str, least: float, ratios: dict[str, float]) -> Judged:
    """For the whole grid; a part of it can only miss the target."""
    below = [name for name, ratio in ratios.items() if ratio < least]
    worst = min(ratios, key=lambda name: ratios[name], default="")
    whole = len(ratios) == len(_cells("forward"))
    reached = False if below else True if whole else None
    value = f"least {ratios.get(worst, 0.0):.2f}x ({worst}), {len(below)} of {len(ratios)} below"
    return judged_as(f"{what}, in each cell at least {least:g}x", reached, value)


def _all_threads(known: Known, isa: str, threads: int) -> Judged:
    one, many = known.ratios(grid(), isa, 1), known.ratios(grid(), isa, threads)
    shares = {name: many[name] / ratio for name, ratio in one.items() if name in many}
    least = 1.0 - LOST_TO_THREADS
    below = [name for name, share in shares.items() if share < least]
    worst = min(shares, key=lambda name: shares[name], default="")
    reached = False if below else True if len(shares) == len(grid()) else None
    value = f"least {shares.get(worst, 0.0):.2f} ({worst}), {len(below)} of {len(shares)} below"
    return judged_as(f"{isa}: ratio with {threads} threads, at least {least:g} of one thread's", reached, value)


def _memory(known: Known, isa: str) -> Judged:
    own, theirs = (known.value(PEAK_NAME, impl, "peak_mib") for impl in (ours(isa), THEIRS))
    share = own / theirs if own is not None and theirs else None
    what = f"training memory, at most {PEAK_MOST:g}x nn.GRU's"
    return judged_as(what, None if share is None else share <= PEAK_MOST, f"{share or 0:.2f}x")


def _first(known: Known, isa: str) -> list[Judged]:
    judged = []
    for state, most in FIRST_S.items():
        ms = known.value(f"first-forward-{state}", ours(isa), "ms")
        what = f"first call of a process, {state}, at most {most:g} s"
        judged.append(judged_as(what, None if ms is None else ms <= 1000 * most, f"{(ms or 0) / 1000:.2f} s"))
    return judged


def _step(known: Known, isa: str) -> Judged:
    ratio = known.over(Cell(STEP, STEP_CASE), isa, 1)
    what = f"a single step, B = 1, H = {STEP_CASE.hidden}, at least {STEP_LEAST:g}x nn.GRU"
    return judged_as(what, None if ratio is None else ratio >= STEP_LEAST, f"{ratio or 0:.2f}x")

"""The targets, and whether a run reaches them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from bench.analysis.report import ASIDE, Result
from bench.calls.first_call import LIMIT_S
from bench.calls.host import LIMITS_US
from bench.measure.cases import HEADLINE, MODES, Case, wide_cases
from bench.measure.pair import OURS, RECOMPUTED, THEIRS
from bench.measure.timing import geomean
from bench.rivals import FLOOR

# Times nn.GRU's speed, over H 256 to 1024 and B 1 to 64.
LEAST = {"forward": {"bf16": 4.0, "fp16": 4.0, "fp32": 3.0}, "train": {"bf16": 3.0, "fp16": 3.0, "fp32": 2.0}}
# Per step; published figures of cuDNN's LSTM on an H100 are 1.96 and 5.07. The goal for the training step is 4.0.
HEADLINE_US = {"forward": 2.0, "train": 5.0}
EDGE = Case(1024, 16, 512, "bf16", "forward")
EDGE_FLOORS = {"forward": 1.6, "train": 2.5}
SAVED_PEAK, RECOMPUTED_PEAK = 1.3, 1.0  # of nn.GRU's peak memory in a training step
WORKLOADS = 2.5  # times nn.GRU's speed in training, the geometric mean over all named workloads
Judged = tuple[bool | None, str]  # reached (None: not measured), and a sentence


@dataclass(frozen=True)
class Calls:
    """The costs of a call besides the device's work, by row name."""

    host_us: Mapping[str, float] = field(default_factory=dict)
    first_s: Mapping[str, float] = field(default_factory=dict)
    earlier: int = 0  # how many of both are from rows of an earlier command
    missing: tuple[str, ...] = ()  # requested, but unanswered


def judge(results: Sequence[Result], calls: Calls | None = None) -> list[Judged]:
    calls = calls or Calls()
    forwards = {name: us for name, us in calls.host_us.items() if "-forward" in name}
    return [
        *_workloads([result for result in results if result.case.label and result.case.mode == "train"]),
        _most("host time of a forward call", LIMITS_US["forward"], "us", forwards),
        _most("first call, kernels compiled", LIMIT_S, "s", calls.first_s),
        *_persistent(results),
    ]


def _workloads(results: Sequence[Result]) -> list[Judged]:
    """For named workloads: against nn.GRU, and against every rival that computes the same and could run."""
    ratios = {result.case.label: result.ratio for result in results if result.green}
    known = {name: ratio for name, ratio in ratios.items() if ratio is not None}
    of = f"of {len(results)} workloads" if results else ""
    what = f"workloads, training, at least {WORKLOADS:.1f}x nn.GRU in the mean"
    judged = [judged_as(what, None, "")]
    if known:
        mean = geomean(known.values())
        judged = [judged_as(what, mean >= WORKLOADS, f"{mean:.2f}x over {len(known)} {of}")]
    slower = {result.case.label: result.ratio for result in results if result.slower}
    judged.append(_none_below("workloads, training, none slower than nn.GRU", known, slower))
    ahead: dict[str, float] = {}
    for result in results:
        for name in set(result.rivals) - {*ASIDE}:
            ratio = result.over(name)
            if result.green and ratio is not None:
                ahead[f"{result.case.label} {name}"] = ratio
    behind = {name: ratio for name, ratio in ahead.items() if ratio < 1.0}
    return [*judged, _none_below("workloads, training, faster than every rival", ahead, behind)]


def _none_below(what: str, ratios: Mapping[str, float], below: Mapping[str, float | None]) -> Judged:
    if not ratios:
        return judged_as(what, None, "")
    worst = min(ratios, key=lambda name: ratios[name])
    return judged_as(what, not below, f"least {ratios[worst]:.2f}x ({worst}), {len(below)} of {len(ratios)} below")


def _most(what: str, most: float, unit: str, values: Mapping[str, float]) -> Judged:
    what = f"{what}, at most {most:.0f} {unit}"
    if not values:
        return judged_as(what, None, "")
    worst = max(values, key=lambda name: values[name])
    return judged_as(what, values[worst] <= most, f"{values[worst]:.1f} {unit} ({worst})")


def _persistent(results: Sequence[Result]) -> list[Judged]:
    found = {result.case: result for result in results if result.green}
    judged: list[Judged] = []
    for mode in MODES:
        judged += [_speed(mode, dtype, least, results) for dtype, least in LEAST[mode].items()]
        judged.append(_headline(mode, found.get(replace(HEADLINE, mode=mode))))
        judged.append(_floors(mode, found.get(replace(EDGE, mode=mode))))
    trained = [result for result in found.values() if result.case.mode == "train"]
    saving = [result for result in trained if _saves(result)]
    judged.append(_memory("saved", SAVED_PEAK, {r.case.name: r.peak(OURS) for r in saving}))
    judged.append(_memory("rebuilt", RECOMPUTED_PEAK, {r.case.name: r.peak(RECOMPUTED) for r in trained}))
    return judged


def _speed(mode: str, dtype: str, least: float, results: Sequence[Result]) -> Judged:
    cells = {case for case in wide_cases(dtype) if case.hidden <= 1024 and case.batch <= 64 and case.mode == mode}
    ratios = [result.over(THEIRS) for result in results if result.case in cells and result.green]
    known = [ratio for ratio in ratios if ratio is not None]
    what = f"{dtype} {mode} at least {least:.0f}x nn.GRU over H 256-1024, B 1-64"
    if not known:
        return judged_as(what, None, "")
    mean = geomean(known)
    return judged_as(what, mean >= least, f"{mean:.2f}x over {len(known)} of {len(cells)} cells")


def _headline(mode: str, result: Result | None) -> Judged:
    most = HEADLINE_US[mode]
    us = result.us(OURS) if result else None
    what = f"H={HEADLINE.hidden} B={HEADLINE.batch} T={HEADLINE.time} bf16 {mode} in at most {most:.2f} us a step"
    return judged_as(what, None if us is None else us <= most, f"{us or 0:.2f} us")


def _floors(mode: str, result: Result | None) -> Judged:
    most = EDGE_FLOORS[mode]
    floors = result.over(FLOOR) if result else None
    what = f"H={EDGE.hidden} B={EDGE.batch} bf16 {mode} in at most {most:.1f}x the floor"
    times = 1 / floors if floors else None
    return judged_as(what, None if times is None else times <= most, f"{times or 0:.2f}x")


def _memory(how: str, most: float, peaks: Mapping[str, float | None]) -> Judged:
    """For the worst case; where the plan chose torch's own GRU, its memory is not judged."""
    known = {name: peak for name, peak in peaks.items() if peak is not None}
    what = f"training memory, gates {how}, at most {most:.1f}x nn.GRU's"
    if not known:
        return judged_as(what, None, "")
    worst = max(known, key=lambda name: known[name])
    return judged_as(what, known[worst] <= most, f"{known[worst]:.2f}x ({worst}), {len(known)} cases")


def _saves(result: Result) -> bool:
    return result.memory == "save"


def judged_as(what: str, reached: bool | None, value: str) -> Judged:
    if reached is None:
        return None, f"{what}: not measured"
    return reached, f"{what}: {'reached' if reached else 'NOT reached'}, {value}"

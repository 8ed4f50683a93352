"""What the persistent forward is meant to reach, and what a run says of it."""

from __future__ import annotations

from collections.abc import Sequence

from bench.cases import HEADLINE, Case, wide_cases
from bench.pair import OURS, THEIRS
from bench.report import Result
from bench.rivals import FLOOR
from bench.timing import geomean

LEAST = {"bf16": 4.0, "fp16": 4.0, "fp32": 3.0}  # times nn.GRU's speed, over H 256 to 1024 and B 1 to 64
HEADLINE_US = 2.0  # a step; cuDNN's LSTM was published at 1.96 on an H100
EDGE = Case(1024, 16, 512, "bf16", "forward")
EDGE_FLOORS = 1.6
Judged = tuple[bool | None, str]  # reached or, without a measurement, None; and a sentence


def judge(results: Sequence[Result]) -> list[Judged]:
    judged = [_speed(dtype, least, results) for dtype, least in LEAST.items()]
    found = {result.case: result for result in results if result.green}
    headline, edge = found.get(HEADLINE), found.get(EDGE)
    us = headline.us(OURS) if headline else None
    what = f"H={HEADLINE.hidden} B={HEADLINE.batch} T={HEADLINE.time} bf16 in at most {HEADLINE_US:.2f} us a step"
    judged.append(_sentence(what, None if us is None else us <= HEADLINE_US, f"{us or 0:.2f} us"))
    floors = edge.over(FLOOR) if edge else None
    what = f"H={EDGE.hidden} B={EDGE.batch} bf16 in at most {EDGE_FLOORS:.1f}x the floor"
    times = 1 / floors if floors else None
    judged.append(_sentence(what, None if times is None else times <= EDGE_FLOORS, f"{times or 0:.2f}x"))
    return judged


def _speed(dtype: str, least: float, results: Sequence[Result]) -> Judged:
    cells = {case for case in wide_cases(dtype) if case.hidden <= 1024 and case.batch <= 64}
    ratios = [result.over(THEIRS) for result in results if result.case in cells and result.green]
    known = [ratio for ratio in ratios if ratio is not None]
    what = f"{dtype} at least {least:.0f}x nn.GRU over H 256-1024, B 1-64"
    if not known:
        return _sentence(what, None, "")
    mean = geomean(known)
    return _sentence(what, mean >= least, f"{mean:.2f}x over {len(known)} of {len(cells)} cells")


def _sentence(what: str, reached: bool | None, value: str) -> Judged:
    if reached is None:
        return None, f"{what}: not measured"
    return reached, f"{what}: {'reached' if reached else 'NOT reached'}, {value}"

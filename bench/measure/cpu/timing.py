"""How a call on a CPU is timed: all implementations in turn, in short batches, by a clock that suits the threads."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

BATCH_MS = 3.0  # least length of a sample, so that reading the clock costs little
ROUNDS, FEWEST_ROUNDS = 21, 5
LONG_MS, FEWEST_OF_LONG = 1000.0, 3  # a call that takes longer, and the rounds it then gets
LIMIT_S = 1.5  # for all rounds together
# One thread is timed by its own CPU time, which other load on the machine does not enter.
CLOCKS: dict[str, Callable[[], float]] = {"thread": time.thread_time, "wall": time.perf_counter}

Over = tuple[float, float, float]  # another's time over ours: of the least times, and its interval


def clock_of(threads: int) -> str:
    return "thread" if threads == 1 else "wall"


@dataclass(frozen=True)
class Entrant:
    """A call and its context, which is entered once per batch so that it costs a call nothing."""

    call: Callable[[], object]
    around: Callable[[], AbstractContextManager[object]] = nullcontext


@dataclass(frozen=True)
class Times:
    ms: float  # median
    least_ms: float
    spread: float
    rounds: int


def batch_ms(clock: str, entrant: Entrant, count: int) -> float:
    """Milliseconds per call, over ``count`` calls in a row."""
    now, call = CLOCKS[clock], entrant.call
    with entrant.around():
        start = now()
        for _ in range(count):
            call()
        return 1000 * (now() - start) / count


def rounds(
    clock: str, entrants: Mapping[str, Entrant], most: int = ROUNDS, limit_s: float = LIMIT_S
) -> dict[str, list[float]]:
    """Samples in ms per call, one of each per round, every second round in reverse order, so that drift affects all
    alike. No round starts after ``limit_s``, but there are at least ``FEWEST_ROUNDS``, or ``FEWEST_OF_LONG`` if a call
    takes longer than ``LONG_MS``."""
    counts, fewest = {}, FEWEST_ROUNDS
    for name, entrant in entrants.items():
        once = batch_ms(clock, entrant, 1)  # first allocations; parity has compiled before
        if once > LONG_MS:
            fewest = FEWEST_OF_LONG
        else:
            once = max(batch_ms(clock, entrant, 1), 1e-4)
        if once < BATCH_MS:
            once = max(batch_ms(clock, entrant, math.ceil(BATCH_MS / 4 / once)), 1e-4)
        counts[name] = max(1, math.ceil(BATCH_MS / once))
    samples: dict[str, list[float]] = {name: [] for name in entrants}
    order, started = list(entrants), time.perf_counter()
    for done in range(most):
        if done >= fewest and time.perf_counter() - started > limit_s:
            break
        for name in order:
            samples[name].append(batch_ms(clock, entrants[name], counts[name]))
        order.reverse()
    return samples


def deciles(samples: Sequence[float]) -> tuple[float, float]:
    """The first and last decile; for few samples, where these would be interpolated inwards, least and largest."""
    if len(samples) < FEWEST_ROUNDS:
        return min(samples), max(samples)
    found = statistics.quantiles(samples, n=10, method="inclusive")
    return found[0], found[-1]


def times_of(samples: Sequence[float]) -> Times:
    low, high = deciles(samples)
    median = statistics.median(samples)
    return Times(median, min(samples), (high - low) / median, len(samples))


def over(theirs: Sequence[float], ours: Sequence[float]) -> Over:
    """The ratio of the least times, and the first and last decile of the ratios of single rounds around it."""
    ratio = min(theirs) / min(ours)
    low, high = deciles([their / our for their, our in zip(theirs, ours, strict=True)])
    return ratio, min(low, ratio), max(high, ratio)

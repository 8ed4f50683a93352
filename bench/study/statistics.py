"""Statistics over a few seeds: means with 95 % confidence intervals by Student's t, and cautious words for them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    mean: float
    low: float
    high: float


def within(t: float, freedom: int) -> float:
    """The probability that Student's t with ``freedom`` degrees of freedom lies between -t and t, for t >= 0.

    The finite sums of Abramowitz and Stegun, "Handbook of mathematical functions", 26.7.3 and 26.7.4."""
    angle = math.atan2(t, math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    total, term = 0.0, cosine if odd else 1.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= cosine**2 * k / (k + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def quantile(freedom: int, level: float = LEVEL) -> float:
    """The t with probability ``level`` between -t and t, by bisection."""
    low, high = 0.0, 1.0
    while within(high, freedom) < level:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle, freedom) < level else (low, middle)
    return high


def interval(values: Sequence[float]) -> Interval:
    """Of the mean of the distribution that the values are drawn from.

    Raises:
        ValueError: for fewer than two values, which say nothing about their variation.
    """
    if len(values) < 2:
        raise ValueError(f"an interval needs at least two values; got {len(values)}")
    mean = statistics.fmean(values)
    half = quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def geometric(values: Sequence[float]) -> Interval:
    """Of the geometric mean, for positive values that differ by factors."""
    logs = interval([math.log(value) for value in values])
    return Interval(math.exp(logs.mean), math.exp(logs.low), math.exp(logs.high))


def paired(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Of the mean difference first - second of paired values."""
    return interval([a - b for a, b in zip(first, second, strict=True)])


def ratio(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Of the geometric mean of first / second of paired values."""
    return geometric([a / b for a, b in zip(first, second, strict=True)])


def difference_in_words(found: Interval, unit: str = "", form: str = ".3g") -> str:
    """The direction of a difference, only if its interval excludes zero."""
    if found.low <= 0 <= found.high:
        return f"no difference was found (95 % interval {found.low:{form}} to {found.high:{form}}{unit})"
    word = "larger" if found.low > 0 else "smaller"
    least, most = sorted((abs(found.low), abs(found.high)))
    return f"{word} by {least:{form}} to {most:{form}}{unit}"


def ratio_in_words(found: Interval, more: str = "larger", less: str = "smaller") -> str:
    """The direction of a ratio, only if its interval excludes one."""
    low, high = found.low, found.high
    if low <= 1 <= high:
        return f"no difference was found (95 % interval of the ratio {_factor(low)} to {_factor(high)})"
    if low > 1:
        return f"{more} by a factor of {_factor(low)} to {_factor(high)}"
    return f"{less} by a factor of {_factor(1 / high)} to {_factor(1 / low)}"


def _factor(value: float) -> str:
    return f"{float(f'{value:.2g}'):,.0f}" if value >= 100 else f"{value:.3g}"

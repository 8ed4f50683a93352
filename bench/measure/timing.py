"""How times are measured: a timer per device, interleaved rounds, and the statistics of the rows."""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch

WARM_S = 0.1  # a GPU raises its clocks only under load
BATCH_MS = 5.0  # least length of a measurement, so that starting it costs little
ROUNDS = 25
FEWEST_ROUNDS = 7


class Timer(Protocol):
    def ms(self, call: Callable[[], object], count: int) -> float:
        """Milliseconds per call, over `count` calls in a row."""
        ...


class CpuTimer:
    def ms(self, call: Callable[[], object], count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            call()
        return 1000 * (time.perf_counter() - start) / count


class CudaTimer:
    """CUDA events around the calls, after a write over all of L2, which also gives the host a head start."""

    def __init__(self, device: torch.device) -> None:
        self.scratch = torch.empty(2 * l2_bytes(device), dtype=torch.uint8, device=device)
        event: Any = torch.cuda.Event
        self.start, self.end = event(enable_timing=True), event(enable_timing=True)

    def ms(self, call: Callable[[], object], count: int) -> float:
        torch.cuda.synchronize(self.scratch.device)
        self.scratch.zero_()
        self.start.record()
        for _ in range(count):
            call()
        self.end.record()
        self.end.synchronize()
        return float(self.start.elapsed_time(self.end)) / count


def l2_bytes(device: torch.device) -> int:
    return int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)) or 64 * 2**20


def timer_for(device: torch.device) -> Timer:
    return CudaTimer(device) if device.type == "cuda" else CpuTimer()


def interleaved(
    timer: Timer, calls: Mapping[str, Callable[[], object]], *, rounds: int = ROUNDS, limit_s: float = 10.0
) -> dict[str, list[float]]:
    """Samples in ms per call, one of each call per round, so that drift affects all alike.

    Stops early after `limit_s`, but not before `FEWEST_ROUNDS` rounds.
    """
    started = time.perf_counter()
    counts = {}
    for name, call in calls.items():
        timer.ms(call, 2)  # compilation, handles, workspaces
        counts[name] = max(1, math.ceil(BATCH_MS / timer.ms(call, 3)))
        for _ in range(max(1, math.ceil(1000 * WARM_S / BATCH_MS))):
            timer.ms(call, counts[name])
            if time.perf_counter() - started > limit_s / 2:
                break
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for done in range(rounds):
        if done >= FEWEST_ROUNDS and time.perf_counter() - started > limit_s:
            break
        for name, call in calls.items():
            samples[name].append(timer.ms(call, counts[name]))
    return samples


def spread(samples: list[float]) -> float:
    """(p90 - p10) / median: at 0.02, four of five samples lie within about 1 % of the median."""
    deciles = statistics.quantiles(samples, n=10, method="inclusive")
    return (deciles[8] - deciles[0]) / statistics.median(samples)


def geomean(values: Iterable[float]) -> float:
    return statistics.geometric_mean(values)

"""Training one model of a task, the same way for all, and what is measured."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

import tritongru
from bench.study.tasks import Task
from tritongru.commands.forecast import Layer
from tritongru.commands.training import Steps

SMALL = "small LSTM"  # with about as many parameters as the GRU
OF_TORCH = "nn.GRU"  # the same function as GRU by torch's own layer; only its time is measured
MODELS: dict[str, Layer] = {"GRU": tritongru.GRU, "LSTM": nn.LSTM, SMALL: nn.LSTM, "RNN": nn.RNN}
TIMED: dict[str, Layer] = MODELS | {OF_TORCH: nn.GRU}
POINTS = 12  # of a curve, after its start


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def width(task: Task, name: str) -> int:
    """The hidden size of a model: the task's, or for ``SMALL`` the one nearest to the GRU in parameters."""
    hidden = task.setup.hidden
    if name != SMALL:
        return hidden

    def count(size: int) -> int:
        return parameters(task.model(TIMED[name], size))

    wanted = parameters(task.model(MODELS["GRU"], hidden))
    above = bisect_left(range(hidden), wanted, lo=1, key=count)
    return min(max(1, above - 1), above, key=lambda size: abs(count(size) - wanted))


class Training:
    """A model and its optimizer in training. The seed decides initial weights and batches."""

    def __init__(
        self,
        task: Task,
        name: str,
        rate: float,
        seed: int,
        device: torch.device,
        steps: int,
        choosing: bool = False,
    ) -> None:
        hidden = width(task, name)  # builds models, so it comes before the seed
        torch.manual_seed(seed)
        self.model = task.model(TIMED[name], hidden).to(device)
        self.step = Steps(self.model, task.losses(self.model, seed, choosing), rate, steps)


@dataclass(frozen=True)
class Trained:
    errors: dict[str, float]
    curve: list[tuple[int, float]]  # steps, and the first of the errors after them
    seconds: float  # in the training steps alone


def train(
    task: Task,
    name: str,
    rate: float,
    seed: int,
    device: torch.device,
    steps: int,
    choosing: bool = False,
    points: int = POINTS,
) -> Trained:
    training = Training(task, name, rate, seed, device, steps, choosing)
    seconds, done = 0.0, 0
    curve = []
    for point in sorted({round(steps * k / points) for k in range(points + 1)}):
        start = now(device)
        for _ in range(done, point):
            training.step()
        seconds, done = seconds + now(device) - start, point
        with torch.no_grad():
            errors = task.errors(training.model, choosing)
        curve.append((point, next(iter(errors.values()))))
    return Trained(errors, curve, seconds)


def clock_of(device: torch.device, threads: int) -> str:
    """On one CPU thread, the process's CPU time, which other load does not enter."""
    return "process" if device.type == "cpu" and threads == 1 else "wall"


def now(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()
    torch.cuda.synchronize(device)
    return time.perf_counter()


class ClockTimer:
    """Like bench.measure.timing.CpuTimer, with the study's clock."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def ms(self, call: Callable[[], object], count: int) -> float:
        start = now(self.device)
        for _ in range(count):
            call()
        return 1000 * (now(self.device) - start) / count

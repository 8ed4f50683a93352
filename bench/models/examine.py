"""One model: correctness first, then its training step and its inference, before and after conversion, in turn."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from bench.measure.children import Failed, sentence
from bench.measure.cpu.timing import Entrant, Over, Times, clock_of, over, rounds, times_of
from bench.measure.pair import OURS, THEIRS
from bench.models.catalogue import BY_NAME
from bench.models.check import Differs, Twins, check, converted, twins
from bench.models.model import Model, loss_of

TRAIN, FORWARD = MODES = ("train", "forward")
RATE = 1e-6  # of Adam: the timed models stay what they are


@dataclass(frozen=True)
class Question:
    """``threads``: numbers of threads, each answered; ``most`` and ``limit_s`` as in ``rounds``."""

    name: str
    threads: tuple[int, ...]
    seed: int
    most: int
    limit_s: float


@dataclass(frozen=True)
class Found:
    """In one mode with one number of threads. ``times``: by OURS and THEIRS, none if ``reason`` says why not; ``over``:
    the time before over that after; ``absent``: the package cannot be imported, which is no verdict."""

    mode: str
    threads: int
    load: float | None
    parity: float | None = None
    times: dict[str, Times] = field(default_factory=dict)
    over: Over | None = None
    reason: str | None = None
    absent: bool = False


def answer(question: Question) -> list[Found]:
    """Runs in a child process."""
    try:
        return list(_examined(question))
    except Exception as error:
        raise Failed(sentence(error)) from None


def _examined(question: Question) -> Iterator[Found]:
    model = BY_NAME[question.name]
    for threads in question.threads:
        torch.set_num_threads(threads)
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        if why := model.why_not():
            yield from (Found(mode, threads, load, reason=why, absent=True) for mode in MODES)
            continue
        try:
            parity = check(model, question.seed % 2**31).parity
        except Differs as differs:
            yield from (Found(mode, threads, load, reason=str(differs)) for mode in MODES)
            continue
        pair = twins(model, question.seed % 2**31)
        converted(model, pair.ours)
        for mode in MODES:
            samples = rounds(clock_of(threads), entrants(model, pair, mode), question.most, question.limit_s)
            times = {name: times_of(taken) for name, taken in samples.items()}
            yield Found(mode, threads, load, parity, times, over(samples[THEIRS], samples[OURS]))


def entrants(model: Model, pair: Twins, mode: str) -> dict[str, Entrant]:
    """A call as a user makes it: a step with the optimizer's, or inference in eval mode."""
    make = training_step if mode == TRAIN else inference
    return {
        name: Entrant(make(model, module, pair), torch.enable_grad if mode == TRAIN else torch.no_grad)
        for name, module in ((OURS, pair.ours), (THEIRS, pair.theirs))
    }


def training_step(model: Model, module: nn.Module, pair: Twins) -> Callable[[], object]:
    module.train()
    optimizer = torch.optim.Adam(module.parameters(), lr=RATE)

    def step() -> None:
        optimizer.zero_grad()
        loss_of(model.run(module, pair.inputs)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def inference(model: Model, module: nn.Module, pair: Twins) -> Callable[[], object]:
    module.eval()
    return lambda: model.run(module, pair.inputs)

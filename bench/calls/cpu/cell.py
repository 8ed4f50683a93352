"""One call of the CPU loop beside torch's: parity first, then the times of all, interleaved in one process."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import tritongru
from bench.measure.cases import Case
from bench.measure.children import Failed, sentence
from bench.measure.cpu.cells import CELL, TINY_PART, Cell
from bench.measure.cpu.timing import LIMIT_S, ROUNDS, Entrant, Over, Times, clock_of, over, rounds, times_of
from bench.measure.pair import THEIRS, Call, Step, random
from bench.measure.parity import Data, Parity, Tensors, compare, quantities, truth
from bench.rivals.builtin import CUDNN_LSTM, LSTM
from bench.rivals.instruction_sets import compiled_for

CPU = torch.device("cpu")
LSTM_NAME = CUDNN_LSTM  # oneDNN's here, in most cases
INPUTS = 3  # in rotation


@dataclass(frozen=True)
class Question:
    """``sets``: instruction sets of ours; ``threads``: numbers of threads, each answered; ``seed``: for all data;
    ``rivals``: of bench/rivals/on_cpu.py, if the question is about them (bench/calls/cpu/beside.py)."""

    cell: Cell
    sets: tuple[str, ...]
    threads: tuple[int, ...]
    seed: int = 0
    most: int = ROUNDS
    limit_s: float = LIMIT_S
    rivals: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """For one number of threads. ``parities`` and ``over`` by instruction set; ``times`` by name for torch, by set for
    ours. A set whose parity is red has no time."""

    threads: int
    load: float | None  # of the machine, just before
    parities: dict[str, Parity]
    times: dict[str, Times] = field(default_factory=dict)
    over: dict[str, dict[str, Over]] = field(default_factory=dict)


class OneStep(nn.Module):
    """A GRUCell called like a layer, for parity."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
        h = self.cell(x[0], h0[0])[None]
        return h, h


@dataclass(frozen=True)
class Layers:
    ours: nn.Module
    theirs: nn.Module
    lstm: nn.Module | None

    def named(self) -> dict[str, nn.Module]:
        """Torch's."""
        return {THEIRS: self.theirs} | ({} if self.lstm is None else {LSTM_NAME: self.lstm})


def layers_of(cell: Cell) -> Layers:
    case = cell.case
    I, H, training = case.width, case.hidden, case.mode == "train"
    stack: dict[str, Any] = {"num_layers": case.layers, "bidirectional": case.directions == 2}
    if cell.part == CELL:
        theirs: nn.Module = nn.GRUCell(I, H)
        ours: nn.Module = tritongru.GRUCell(I, H, impl="llvm")
    else:
        theirs, ours = nn.GRU(I, H, **stack), tritongru.GRU(I, H, **stack, impl="llvm")
    ours.load_state_dict(theirs.state_dict())
    lstm = None if cell.part in (CELL, TINY_PART) else LSTM(I, H, **stack).train(training)
    return Layers(ours.train(training), theirs.train(training), lstm)


def answer(question: Question) -> Any:
    """Runs in a child process: a ``Found`` for each number of threads."""
    return all_of(examined, question)


def all_of(examined: Callable[[Question], Iterator[Any]], question: Question) -> list[Any]:
    """
    Raises:
        Failed: with the error; the child continues.
    """
    torch.manual_seed(question.seed)
    try:
        return list(examined(question))
    except Exception as error:
        raise Failed(sentence(error)) from None


def examined(question: Question) -> Iterator[Found]:
    case, layers = question.cell.case, layers_of(question.cell)
    torch.set_num_threads(max(question.threads))
    data = random(case, CPU)
    as_layer: Callable[[nn.Module], nn.Module] = OneStep if question.cell.part == CELL else lambda layer: layer
    exact = truth(as_layer(layers.theirs), case.mode, data)
    theirs = quantities(as_layer(layers.theirs), case.mode, data)
    for threads in question.threads:
        torch.set_num_threads(threads)
        load, ours = load_now(), as_layer(layers.ours)
        found = Found(threads, load, {isa: parity_of(ours, isa, case, data, theirs, exact) for isa in question.sets})
        green = [isa for isa, parity in found.parities.items() if parity.green]
        yield dataclasses.replace(found, **timed(question, layers, data, green, threads)) if green else found


def load_now() -> float | None:
    """The machine's load average over the last minute, if the system reports it."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def parity_of(layer: nn.Module, isa: str, case: Case, data: Data, theirs: Tensors, exact: Tensors) -> Parity:
    """By the rule for all kernels; ours runs twice."""
    with compiled_for(isa):
        first, second = (quantities(layer, case.mode, data) for _ in range(2))
    found = max((compare(run, theirs, exact, case.rounding) for run in (first, second)), key=lambda run: run.ours)
    return dataclasses.replace(found, repeatable=all(torch.equal(first[name], second[name]) for name in first))


def timed(question: Question, layers: Layers, data: Data, sets: list[str], threads: int) -> dict[str, Any]:
    """Ours, with each of the sets, and torch's in turn."""
    inputs = [torch.randn_like(data.x) for _ in range(INPUTS)]
    calls = {name: call_of(question.cell, layer, inputs, data) for name, layer in layers.named().items()}
    return side_by_side(question, call_of(question.cell, layers.ours, inputs, data), calls, sets, threads)


def side_by_side(
    question: Question, ours: Call, calls: Mapping[str, Call], sets: Sequence[str], threads: int
) -> dict[str, Any]:
    """Times of all, and the ratios of the calls to ours, as in ``Found``."""
    around = no_gradients if question.cell.case.mode == "forward" else with_gradients
    entrants = {isa: Entrant(ours, functools.partial(around, isa)) for isa in sets}
    entrants |= {name: Entrant(call, functools.partial(around, None)) for name, call in calls.items()}
    samples = rounds(clock_of(threads), entrants, question.most, question.limit_s)
    ratios: Mapping[str, dict[str, Over]] = {
        isa: {name: over(samples[name], samples[isa]) for name in calls} for isa in sets
    }
    return {"times": {name: times_of(taken) for name, taken in samples.items()}, "over": ratios}


@contextmanager
def with_gradients(isa: str | None) -> Iterator[None]:
    """Around a batch of calls: selects our instruction set."""
    if isa is None:
        yield
        return
    with compiled_for(isa):
        yield


@contextmanager
def no_gradients(isa: str | None) -> Iterator[None]:
    with torch.no_grad(), with_gradients(isa):
        yield


def call_of(cell: Cell, layer: nn.Module, inputs: list[Tensor], data: Data) -> Callable[[], object]:
    """A call as a user makes it, each time on the next of the inputs; in training, with the gradients of everything but
    the initial state."""
    if cell.case.mode == "train":
        return Step(layer, "train", inputs, data)
    h0 = data.h0[0] if cell.part == CELL else data.h0
    upcoming = itertools.cycle([x[0] for x in inputs] if cell.part == CELL else inputs)
    return lambda: layer(next(upcoming), h0)

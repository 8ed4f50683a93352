"""One cell: correctness of every way first, then the times of all that are right, interleaved in one process."""

from __future__ import annotations

import copy
import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import tritongru
from bench.measure.cases import Case
from bench.measure.children import Failed, sentence
from bench.measure.cpu.timing import Entrant, Over, Times, clock_of, over, rounds, times_of
from bench.measure.pair import DTYPES, OURS, THEIRS, random
from bench.measure.parity import Data, Tensors, compare, tf32
from bench.measure.timing import interleaved, spread, timer_for
from bench.rivals.on_cpu import ONNX
from bench.rivals.rival import Unavailable
from bench.sequences import ways
from bench.sequences.cells import LENGTHS, RESET_SHARE, RESETS, Cell
from bench.sequences.ways import Given, Way

# Names in rows.
PACKED, SPLIT, CELL = f"{THEIRS}[packed]", f"{THEIRS}[split]", "nn.GRUCell"
OURS_PACKED, ALIKE = f"{OURS}[packed]", f"{OURS}[padded]"
WHOLE, OUT, GRAPH = f"{OURS}[no resets]", f"{OURS}[out]", "[graph]"
TORCHRL = {backend: f"torchrl[{backend}]" for backend in ("scan", "triton", "pad")}
INPUTS = 3  # in rotation


@dataclass(frozen=True)
class Question:
    """``threads``: numbers of threads, each answered; ``most`` and ``limit_s`` as in ``rounds``."""

    cell: Cell
    threads: tuple[int, ...]
    device: str
    seed: int
    most: int
    limit_s: float


@dataclass(frozen=True)
class Found:
    """With one number of threads. By way: parity (of the ways that compute the cell's function), times, why there is
    none; and each way's time over ours."""

    threads: int
    load: float | None
    parities: dict[str, float] = field(default_factory=dict)
    times: dict[str, Times] = field(default_factory=dict)
    over: dict[str, Over] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def answer(question: Question) -> list[Found]:
    """Runs in a child process."""
    torch.manual_seed(question.seed)
    try:
        return list(_examined(question))
    except Exception as error:
        raise Failed(sentence(error)) from None


def _examined(question: Question) -> Iterator[Found]:
    cell, device = question.cell, torch.device(question.device)
    case = cell.case
    for threads in question.threads:
        torch.set_num_threads(threads)
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        with tf32(case.tf32):
            yield _of_threads(question, case, device, threads, load)


def _of_threads(question: Question, case: Case, device: torch.device, threads: int, load: float | None) -> Found:
    cell = question.cell
    given = given_of(case, device, threads)
    data = random(case, device)
    found = Found(threads, load)
    exact_layers = copy.deepcopy(given.theirs).double()
    exact_given = Given(given.ours, exact_layers, given.lengths, given.resets, threads)
    truth = _law(cell.suite, exact_layers, exact_given)
    exact = results_of(truth, exact_layers, case.mode, Data(*(t.double() for t in data)), cell.suite)
    theirs = results_of(_law(cell.suite, given.theirs, given), given.theirs, case.mode, data, cell.suite)
    steps: dict[str, Callable[[], object]] = {}
    for name, (make, layer, alike) in entrants(cell.suite, given, device).items():
        try:
            way = make(given)
            if name.endswith(GRAPH):
                x, h0 = _inputs(data, cell.suite)[:2]
                with torch.no_grad():
                    way = ways.captured(way, x, h0)
            if alike:
                parity = compare(results_of(way, layer, case.mode, data, cell.suite), theirs, exact, case.rounding)
                found.parities[name] = parity.ours
                if parity.ours > 1:
                    raise Unavailable(parity.worst)
            steps[name] = step_of(way, layer, case.mode, data, cell.suite)
        except Unavailable as reason:
            found.missing[name] = str(reason)
        except Exception as error:
            found.missing[name] = sentence(error)
    if OURS not in steps:
        return found
    for name, times, ratio in timed(steps, case.mode, device, threads, question):
        found.times[name] = times
        if name != OURS:
            found.over[name] = ratio
    return found


def given_of(case: Case, device: torch.device, threads: int) -> Given:
    T, B = case.time, case.batch
    like: dict[str, Any] = {"device": device, "dtype": DTYPES[case.dtype]}
    theirs = nn.GRU(case.width, case.hidden, case.layers, **like).train(case.mode == "train")
    ours = tritongru.GRU(case.width, case.hidden, case.layers, **like).train(case.mode == "train")
    ours.load_state_dict(theirs.state_dict())
    lengths = torch.randint(1, T + 1, (B,))
    resets = torch.rand(T, B) < RESET_SHARE
    return Given(ours, theirs, lengths, resets.to(device), threads)


Entrants = dict[str, tuple[Callable[[Given], Way], nn.Module, bool]]


def entrants(suite: str, given: Given, device: torch.device) -> Entrants:
    """By name: the way, the layer whose weights it uses, and whether it computes the function of the cell."""
    ours, theirs = given.ours, given.theirs
    if suite == LENGTHS:
        return {
            OURS: (ways.with_lengths, ours, True),
            OURS_PACKED: (partial(ways.packed, ours), ours, True),
            PACKED: (partial(ways.packed, theirs), theirs, True),
            ALIKE: (ways.padded(ours), ours, False),
            THEIRS: (ways.padded(theirs), theirs, False),
        }
    if suite == RESETS:
        torchrl = {TORCHRL[backend]: backend for backend in ("scan", "pad")}
        if device.type == "cuda":
            torchrl[TORCHRL["triton"]] = "triton"
        return {
            OURS: (ways.with_resets, ours, True),
            SPLIT: (partial(ways.split_and_packed, theirs), theirs, True),
            WHOLE: (ways.padded(ours), ours, False),
            THEIRS: (ways.padded(theirs), theirs, False),
            **{name: (partial(ways.torchrl_way, backend), theirs, True) for name, backend in torchrl.items()},
        }
    found: Entrants = {
        OURS: (ways.step, ours, True),
        OUT: (ways.step_out, ours, True),
        THEIRS: (lambda given: ways.as_sequence(theirs), theirs, True),
        CELL: (ways.cells_of, theirs, True),
    }
    if device.type == "cpu":
        return found | {ONNX: (ways.onnx, theirs, True)}
    return found | {
        f"{OURS}{GRAPH}": (ways.step_out, ours, True),
        f"{THEIRS}{GRAPH}": (lambda given: ways.as_sequence(theirs), theirs, True),
    }


def _law(suite: str, gru: nn.GRU, given: Given) -> Way:
    """The function of the cell by torch's GRU."""
    if suite == LENGTHS:
        return ways.packed(gru, given)
    return ways.split_and_packed(gru, given) if suite == RESETS else ways.as_sequence(gru)


def _inputs(data: Data, suite: str) -> tuple[Tensor, Tensor, Tensor]:
    single = suite not in (LENGTHS, RESETS)
    return (data.x[0], data.h0, data.dy[0]) if single else (data.x, data.h0, data.dy)


def results_of(way: Way, layer: nn.Module, mode: str, data: Data, suite: str) -> Tensors:
    x, h0, dy = _inputs(data, suite)
    if mode == "forward":
        with torch.no_grad():
            y, hn = way(x, h0)
        return {"output": y.clone(), "h_n": hn.clone()}
    x, h0 = x.detach().requires_grad_(), h0.detach().requires_grad_()
    y, hn = way(x, h0)
    names, weights = zip(*layer.named_parameters(), strict=True)
    grads = torch.autograd.grad((y, hn), (x, h0, *weights), (dy, data.dhn))
    into = ("input", "h_0", *names)
    return {"output": y.detach(), "h_n": hn.detach(), **{f"d {n}": d for n, d in zip(into, grads, strict=True)}}


def step_of(way: Way, layer: nn.Module, mode: str, data: Data, suite: str) -> Callable[[], object]:
    """A call as a user makes it, each time on the next of the inputs; in training with the gradients of everything but
    the initial state."""
    x, h0, dy = _inputs(data, suite)
    inputs = [torch.randn_like(x).requires_grad_(mode == "train") for _ in range(INPUTS)]
    weights, turn = list(layer.parameters()), iter(range(1 << 62))

    def forward() -> object:
        return way(inputs[next(turn) % INPUTS], h0)

    def train() -> None:
        x = inputs[next(turn) % INPUTS]
        for leaf in (x, *weights):
            leaf.grad = None
        y, _ = way(x, h0)
        torch.autograd.backward(y, dy)

    return train if mode == "train" else forward


def timed(
    steps: dict[str, Callable[[], object]], mode: str, device: torch.device, threads: int, question: Question
) -> Iterator[tuple[str, Times, Over]]:
    around = nullcontext if mode == "train" else torch.no_grad
    if device.type == "cpu":
        calls = {name: Entrant(step, around) for name, step in steps.items()}
        samples = rounds(clock_of(threads), calls, question.most, question.limit_s)
        for name, taken in samples.items():
            yield name, times_of(taken), over(taken, samples[OURS])
        return
    with around():
        found = interleaved(timer_for(device), steps, rounds=question.most, limit_s=question.limit_s)
    for name, taken in found.items():
        yield name, Times(statistics.median(taken), min(taken), spread(taken), len(taken)), over(taken, found[OURS])

"""Rivals of a workload on a CPU: parity first, then the times of those that are green and not too slow, with ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from bench.calls.cpu.cell import CPU, INPUTS, Question, all_of, call_of, layers_of, load_now, side_by_side
from bench.measure.cases import Case
from bench.measure.children import sentence
from bench.measure.cpu.timing import CLOCKS, Over, Times, clock_of
from bench.measure.pair import Call, random
from bench.measure.parity import Data, Parity, Tensors, compare, quantities, truth
from bench.rivals.on_cpu import PREFIX, REGISTRY
from bench.rivals.rival import Unavailable

CHECKED_STEPS = 128  # a wrong formula shows within a few; float64 is slow
SLOWEST_S = 3.0  # of a warm call


@dataclass(frozen=True)
class Beside:
    """With one number of threads. ``times``, ``parities``, ``missing`` (why there is no time) and ``hows`` by rival;
    ``over`` as in ``Found``."""

    threads: int
    load: float | None
    hows: dict[str, str] = field(default_factory=dict)
    parities: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    times: dict[str, Times] = field(default_factory=dict)
    over: dict[str, dict[str, Over]] = field(default_factory=dict)


@dataclass(frozen=True)
class Wanted:
    """What rivals must compute, on the first steps of a case."""

    case: Case
    data: Data
    exact: Tensors
    theirs: Tensors


def answer(question: Question) -> list[Beside]:
    """Runs in a child process: an answer for each number of threads. Ours is known to be green."""
    return all_of(examined, question)


def examined(question: Question) -> Iterator[Beside]:
    case, layers = question.cell.case, layers_of(question.cell)
    gru = layers.theirs
    assert isinstance(gru, nn.GRU)
    torch.set_num_threads(max(question.threads))
    data, wanted = random(case, CPU), wanted_of(case, gru)
    inputs = [torch.randn_like(data.x) for _ in range(INPUTS)]
    ours = call_of(question.cell, layers.ours, inputs, data)
    for threads in question.threads:
        torch.set_num_threads(threads)
        found, calls = Beside(threads, load_now()), {}
        for name in question.rivals:
            found.hows[name] = REGISTRY[name].said()
            try:
                layer = REGISTRY[name].layer_of(case, gru, threads)
                checked(found, name, layer, wanted)
                calls[name] = quick_enough(call_of(question.cell, layer, inputs, data), case.mode, threads)
            except Unavailable as reason:
                found.missing[name] = str(reason)
            except Exception as error:
                found.missing[name] = sentence(error)
        if calls:
            found = dataclasses.replace(found, **side_by_side(question, ours, calls, question.sets, threads))
        yield dataclasses.replace(found, times={name: found.times[name] for name in calls})


def wanted_of(case: Case, gru: nn.Module) -> Wanted:
    short = dataclasses.replace(case, time=min(case.time, CHECKED_STEPS))
    data = random(short, CPU)
    return Wanted(short, data, truth(gru, case.mode, data), quantities(gru, case.mode, data))


def seen(layer: nn.Module, mode: str, data: Data) -> Tensors:
    """Like ``quantities``, but forward in the mode that is timed, because each mode is compiled separately."""
    if mode == "train":
        return {name.replace(PREFIX, ""): value for name, value in quantities(layer, mode, data).items()}
    with torch.no_grad():
        y, hn = layer(data.x, data.h0)
    return {"output": y, "h_n": hn}


def checked(found: Beside, name: str, layer: nn.Module, wanted: Wanted) -> None:
    """
    Raises:
        Unavailable: if the layer computes something else.
    """
    case = wanted.case
    parity: Parity = compare(seen(layer, case.mode, wanted.data), wanted.theirs, wanted.exact, case.rounding)
    found.parities[name] = parity.ours
    if not parity.green:
        raise Unavailable(parity.worst)


def quick_enough(call: Call, mode: str, threads: int) -> Call:
    """
    Raises:
        Unavailable: if a second call is still too slow.
    """
    now = CLOCKS[clock_of(threads)]
    for _ in range(2):
        started = now()
        with torch.set_grad_enabled(mode == "train"):
            call()
        seconds = now() - started
        if seconds <= SLOWEST_S:
            return call
    raise Unavailable(f"one call takes {seconds:.1f} s, and no more than {SLOWEST_S:g} s are spent on one")

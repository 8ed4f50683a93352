"""One case, both implementations with the same weights: compared, then timed. Runs on any device."""

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

import tritongru
from bench.measure.cases import Case
from bench.measure.parity import Data, Parity, compare, poison, quantities, tf32, truth
from bench.measure.timing import interleaved, l2_bytes, spread, timer_for
from tritongru.planning.plan import Plan

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
OURS, THEIRS = "tritongru", "nn.GRU"
RECOMPUTED = f"{OURS}[recompute]"  # ours with memory="recompute"; only its peak is measured


@dataclass(frozen=True)
class Pair:
    ours: torch.nn.Module
    theirs: torch.nn.Module
    plan: Plan  # what ours runs, by `explain`

    def layers(self) -> dict[str, torch.nn.Module]:
        return {OURS: self.ours, THEIRS: self.theirs}


Build = Callable[[Case, str, torch.device], Pair]


def build(case: Case, impl: str, device: torch.device) -> Pair:
    options: dict[str, Any] = {"device": device, "dtype": DTYPES[case.dtype], "bidirectional": case.directions == 2}
    theirs = torch.nn.GRU(case.width, case.hidden, case.layers, **options).train(case.mode == "train")
    theirs.flatten_parameters()
    ours = tritongru.GRU(case.width, case.hidden, case.layers, **options, impl=impl).train(case.mode == "train")
    ours.load_state_dict(theirs.state_dict())
    ours.flatten_parameters()
    return Pair(ours, theirs, tritongru.explain(ours, batch=case.batch, time=case.time, device=device))


def random(case: Case, device: torch.device) -> Data:
    kind: dict[str, Any] = {"device": device, "dtype": DTYPES[case.dtype]}
    state = case.layers * case.directions, case.batch, case.hidden
    x = torch.randn(case.time, case.batch, case.width, **kind)
    dy = torch.randn(case.time, case.batch, case.directions * case.hidden, **kind)
    return Data(x, torch.randn(state, **kind).tanh(), dy, torch.randn(state, **kind))


def check(case: Case, impl: str, device: torch.device, build: Build = build) -> tuple[Parity, Plan]:
    """Parity of one case on fresh random data, and the plan that ran. Ours runs twice: a changing error is a race."""
    with tf32(case.tf32):
        pair = build(case, impl, device)
        data = random(case, device)
        exact = truth(pair.theirs, case.mode, data)
        theirs = quantities(pair.theirs, case.mode, data)
        poison(device)
        first = quantities(pair.ours, case.mode, data)
        poison(device)
        second = quantities(pair.ours, case.mode, data)
        found = max((compare(run, theirs, exact, case.rounding) for run in (first, second)), key=lambda run: run.ours)
        same = all(torch.equal(first[name], second[name]) for name in first)
        return dataclasses.replace(found, repeatable=same), pair.plan


def input_sets(data: Data, device: torch.device) -> list[torch.Tensor]:
    """Enough inputs that one round over them does not stay in L2."""
    size = data.x.numel() * data.x.element_size()
    count = min(64, max(3, 2 * l2_bytes(device) // size)) if device.type == "cuda" else 3
    return list(torch.randn(count, *data.x.shape, device=device, dtype=data.x.dtype).unbind())


class Step:
    """One call of a layer, each time on the next of several inputs: forward in eval mode, or forward and backward."""

    def __init__(self, layer: torch.nn.Module, mode: str, inputs: list[torch.Tensor], data: Data) -> None:
        self.layer, self.mode, self.h0, self.dy = layer, mode, data.h0, data.dy
        # Separate leaves: the two layers of a pair must not add to each other's gradients.
        self.inputs = [x.detach().requires_grad_(mode == "train") for x in inputs]
        self.upcoming = itertools.cycle(self.inputs)
        self.weights = list(layer.parameters())

    def __call__(self) -> None:
        x = next(self.upcoming)
        if self.mode == "forward":
            with torch.inference_mode():
                self.layer(x, self.h0)
            return
        x.grad = None
        for weight in self.weights:
            weight.grad = None
        y, _ = self.layer(x, self.h0)
        y.backward(self.dy)  # the gradient of sum(y * dy), without the product

    def forget(self) -> None:
        for leaf in (*self.inputs, *self.weights):
            leaf.grad = None


def peak_mib(step: Step, device: torch.device) -> float | None:
    """Memory that one call needs beyond inputs and weights."""
    if device.type != "cuda":
        return None
    step()  # allocations that are made once and kept do not count
    step.forget()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    step.forget()
    return peak / 2**20


@contextmanager
def recomputing(layer: tritongru.GRU) -> Iterator[None]:
    before, layer.memory = layer.memory, "recompute"
    try:
        yield
    finally:
        layer.memory = before


def peaks_of(pair: Pair, steps: dict[str, Step], device: torch.device) -> dict[str, float | None]:
    """For each implementation, and for ours again where it can rebuild the gates instead of saving them."""
    peaks = {name: peak_mib(step, device) for name, step in steps.items()}
    ours = pair.ours
    if isinstance(ours, tritongru.GRU) and pair.plan.backward is not None and device.type == "cuda":
        with recomputing(ours):
            peaks[RECOMPUTED] = peak_mib(steps[OURS], device)
    return peaks


def steps_of(pair: Pair, case: Case, device: torch.device) -> dict[str, Step]:
    data = random(case, device)
    inputs = input_sets(data, device)
    return {name: Step(layer, case.mode, inputs, data) for name, layer in pair.layers().items()}


Times = dict[str, dict[str, Any]]
Call = Callable[[], object]


@dataclass(frozen=True)
class Found:
    """The rivals of a case besides nn.GRU: calls that have run once, why others are missing, the error over the allowed
    error of those that compute the same function, and how each was called."""

    calls: dict[str, Call] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    parities: dict[str, float] = field(default_factory=dict)
    hows: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Timed:
    """For each implementation: median in ms, spread, rounds and peak memory; for some only the last. The rest as in
    `Found`."""

    times: Times
    missing: dict[str, str] = field(default_factory=dict)
    parities: dict[str, float] = field(default_factory=dict)
    hows: dict[str, str] = field(default_factory=dict)


Rivals = Callable[[Case, Pair, dict[str, Step]], Found]


def no_rivals(case: Case, pair: Pair, steps: dict[str, Step]) -> Found:
    return Found()


def take_time(
    case: Case, impl: str, device: torch.device, build: Build = build, rivals: Rivals = no_rivals, **limits: Any
) -> Timed:
    """Only for a green case."""
    with tf32(case.tf32):
        pair = build(case, impl, device)
        steps = steps_of(pair, case, device)
        peaks = peaks_of(pair, steps, device)
        found = rivals(case, pair, steps)
        samples = interleaved(timer_for(device), {**steps, **found.calls}, **limits)
    times: Times = {
        name: {
            "ms": statistics.median(taken),
            "spread": spread(taken),
            "rounds": len(taken),
            "peak_mib": peaks.get(name),
        }
        for name, taken in samples.items()
    }
    times |= {name: {"peak_mib": peak} for name, peak in peaks.items() if name not in samples}
    return Timed(times, found.missing, found.parities, found.hows)

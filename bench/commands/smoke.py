"""A first check on a new GPU: each kind of launch once, forward and backward, compared with torch.

Each step has its own child process, so that a kernel that hangs or breaks the CUDA context does not affect the next.
A new step is a function of a `Case` that returns `Found` or raises, and a line in `steps_on`.
"""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch

from bench.measure.cases import Case
from bench.measure.children import STOP_S, Child, Failed, TimedOut
from bench.measure.pair import DTYPES, OURS, Pair, build, check, random
from bench.measure.parity import Data, Parity, Tensors, compare, quantities, tf32, truth
from bench.rivals.forced import Forced
from bench.session.examine import here, say
from tritongru.planning import plan as plans
from tritongru.planning.candidates import kind_of, persistent_options, smallest, stepwise_options
from tritongru.planning.devices import Device, device_facts
from tritongru.planning.launches import AnyLaunch, launch_name, padded
from tritongru.synchronization import synchronize

TOTAL_S = 105.0  # for all steps; the rest of two minutes is for starting the command itself, from a cold disk
# Children at a time. On a GPU a child spends most of its time starting CUDA and compiling, on one core; the kernels
# of several processes take turns on the device.
WORKERS = {"cuda": 10, "cpu": 4}
CHILD_BYTES = 2 * 2**30  # of GPU memory: a CUDA context, and the GiB that `poison` fills


class Absent(Exception):
    """This device has no such launch, which is not a failure."""


@dataclass(frozen=True)
class Found:
    """``form``: of the forward and the backward launch; ``error``: over the allowed error, the worst of all values and
    gradients, as in bench/measure/parity.py; ``fault``: what is wrong, if anything."""

    form: str
    error: float = 0.0
    fault: str = ""
    absent: bool = False


@dataclass(frozen=True)
class Step:
    name: str
    run: Callable[[Case], Found]
    case: Case
    needs_gpu: bool = False


def forms(case: Case, device: Device, family: str, exchange: str = "") -> list[AnyLaunch]:
    """The cheapest forward and backward launches of the requested kind, by the cost model."""
    kind = kind_of(str(DTYPES[case.dtype]).removeprefix("torch."), "tf32" if case.tf32 else "ieee")
    found: list[AnyLaunch] = []
    for kernel in ("forward", "backward"):
        where = (device, kernel, kind, case.hidden, case.batch, case.directions)
        options: list[AnyLaunch | None]
        if family == "persistent":
            by_cost = sorted(persistent_options(*where), key=lambda option: option[0].us)
            options = [launch for _, launch in by_cost if launch.exchange == exchange]
        elif family == "stepwise":
            options = [launch for _, launch in stepwise_options(*where)]
        else:
            options = [smallest(device, kernel, kind, padded(case.hidden))]
        if not options or options[0] is None:
            which = f"{family} {kernel} that exchanges by {exchange}" if exchange else f"{family} {kernel}"
            raise Absent(f"{device.name} has no {which} for H={case.hidden}, B={case.batch} in {kind} arithmetic")
        found.append(options[0])
    return found


def named(launch: AnyLaunch) -> str:
    return launch_name(launch) or f"{launch.block_b} rows, {launch.num_warps}w"


def forced(launches: list[AnyLaunch], case: Case, impl: str, device: torch.device) -> Pair:
    """A layer that runs these launches whatever the plan says, and nn.GRU with the same weights."""
    pair = build(case, "torch", device)
    none = plans.Plan("", "asked for", device.type, case.dtype)
    return Pair(Forced(pair.theirs, launches[0], launches[1]).train(), pair.theirs, none)


def judged(launches: list[AnyLaunch], parity: Parity) -> Found:
    fault = parity.worst if not parity.ours <= 1 else "" if parity.repeatable else "a second run gave different bits"
    if not parity.theirs <= 1:
        fault = f"torch's own error is {parity.theirs:.2g} of the allowed error"
    return Found(" + ".join(map(named, launches)), parity.ours, fault)


def one_launch(family: str, exchange: str, case: Case) -> Found:
    """A training step of one layer, twice, with poisoned memory before each."""
    launches = forms(case, device_facts(here()), family, exchange)
    parity, _ = check(case, "", here(), functools.partial(forced, launches))
    return judged(launches, parity)


resident = functools.partial(one_launch, "resident", "")
stepwise = functools.partial(one_launch, "stepwise", "")
by_counter = functools.partial(one_launch, "persistent", "counter")
by_data = functools.partial(one_launch, "persistent", "data")


@dataclass(frozen=True)
class Compared:
    """A layer under given launches with its input, and how its results are judged."""

    layer: torch.nn.Module
    data: Data
    judge: Callable[[list[Tensors]], Found]


@contextmanager
def compared(case: Case) -> Iterator[Compared]:
    """With the cheapest persistent launch, the kind that demands most of a device."""
    device = here()
    launches = forms(case, device_facts(device), "persistent", "counter")
    with tf32(case.tf32):
        pair, given = forced(launches, case, "", device), random(case, device)
        exact, theirs = truth(pair.theirs, case.mode, given), quantities(pair.theirs, case.mode, given)

        def judge(runs: list[Tensors]) -> Found:
            worst = max((compare(run, theirs, exact, case.rounding) for run in runs), key=lambda found: found.ours)
            same = all(torch.equal(runs[0][name], run[name]) for run in runs[1:] for name in run)
            return judged(launches, replace(worst, repeatable=same))

        yield Compared(pair.layers()[OURS], given, judge)


def stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


def graph(case: Case) -> Found:
    """A captured training step, replayed on another input, then on the one that is compared."""
    with compared(case) as it:
        static = Data(*(tensor.clone() for tensor in it.data))
        side = stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            quantities(it.layer, case.mode, static)
        torch.cuda.current_stream().wait_stream(side)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            found = quantities(it.layer, case.mode, static)
        runs = []
        for inputs in (Data(*(torch.randn_like(tensor) for tensor in it.data)), it.data, it.data):
            for place, value in zip(static, inputs, strict=True):
                place.copy_(value)
            for value in found.values():
                value.fill_(math.nan)
            captured.replay()
            runs.append({name: value.clone() for name, value in found.items()})
        return it.judge(runs[1:])


def streams(case: Case) -> Found:
    """Training steps on three streams at once: more programs than the device holds."""
    with compared(case) as it:
        quantities(it.layer, case.mode, it.data)  # compiles
        torch.cuda.synchronize()
        runs = []
        for one in [stream() for _ in range(3)] * 3:
            with torch.cuda.stream(one):
                runs.append(quantities(it.layer, case.mode, it.data))
        torch.cuda.synchronize()
        return it.judge(runs)


@contextmanager
def one_arrival_short() -> Iterator[None]:
    """Persistent launches inside start with a counter one too low, as if a program were missing."""
    from tritongru.kernels.persistent import launch as persistent

    fresh = persistent.workspace

    def behind(*arguments: Any) -> tuple[Any, ...]:
        counters, *others = fresh(*arguments)
        counters[:1] -= 1
        return counters, *others

    with mock.patch.object(persistent, "workspace", behind):
        yield


def in_vain(case: Case) -> Found:
    """A wait that cannot end is reported, and the next training step is correct."""
    from tritongru.kernels.persistent import launch as persistent

    hurried: dict[str, Any] = {
        name: functools.partial(getattr(persistent, name), limit=1000) for name in ("forward", "backward")
    }
    with compared(case) as it:
        try:
            with one_arrival_short(), mock.patch.multiple(persistent, **hurried):
                quantities(it.layer, case.mode, it.data)
                synchronize()
        except RuntimeError as error:
            if "gave up at its time step 0" not in str(error):
                raise
        else:
            return Found("", math.inf, "a stalled wait was not reported")
        return it.judge([quantities(it.layer, case.mode, it.data)])


def steps_on(kind: str) -> list[Step]:
    """For a kind of torch device. The batch is two tiles, one of them partial, and the time steps wrap around a ring of
    slots. In the interpreter sizes are small, and fp32 products are exact fp32 whatever the TF32 switch says."""
    T, B, tiny, small, large = (33, 20, 64, 256, 1024) if kind == "cuda" else (5, 17, 17, 17, 1024)
    found = []
    for dtype in ("fp32", "bf16"):
        on = {
            H: Case(H, B, T, dtype, "train", tf32=kind == "cuda" and dtype == "fp32", inputs=16)
            for H in (tiny, small, large)
        }
        found += [
            Step(f"resident {dtype}", resident, on[tiny]),
            Step(f"persistent by counter, small, {dtype}", by_counter, on[small]),
            Step(f"persistent by counter, large, {dtype}", by_counter, on[large], needs_gpu=True),
            Step(f"persistent by data, small, {dtype}", by_data, on[small]),
            Step(f"persistent by data, large, {dtype}", by_data, on[large], needs_gpu=True),
            Step(f"stepwise {dtype}", stepwise, on[small]),
            Step(f"graph capture {dtype}", graph, on[large], needs_gpu=True),
            Step(f"three streams {dtype}", streams, replace(on[large], batch=64), needs_gpu=True),
            Step(f"a stalled wait {dtype}", in_vain, on[small]),
        ]
    return found


def limit_of(steps: int, workers: int, total_s: float) -> float:
    """Seconds for each step, ``workers`` at a time: together, with stopping those that do not answer, they take at most
    ``total_s``."""
    return total_s / max(1, math.ceil(steps / workers)) - STOP_S


def answer(step: Step) -> Found:
    """Runs in the child process."""
    torch.manual_seed(0)
    if here().type == "cpu":
        torch.set_num_threads(1)
    try:
        return step.run(step.case)
    except Absent as absent:
        return Found(str(absent), absent=True)


def ask(step: Step, limit_s: float) -> tuple[Step, Found, float]:
    """The step's answer from its own child process, and the seconds it took, start included."""
    child, started = Child(answer), time.monotonic()
    try:
        child.start(limit_s)
        found: Found = child.ask(step, limit_s=max(0.0, limit_s - (time.monotonic() - started)))
    except TimedOut:
        found = Found("", math.inf, f"no answer within {limit_s:.0f} s")
    except Failed as failed:
        found = Found("", math.inf, str(failed))
    child.stop()
    return step, found, time.monotonic() - started


def line(step: Step, found: Found, seconds: float) -> str:
    case, word = step.case, "absent" if found.absent else "FAILED" if found.fault else "ok"
    parts = [f"{word:6} {step.name}, H={case.hidden} B={case.batch} T={case.time}", found.form]
    if not found.absent and found.form:
        parts.append(f"error {found.error:.2g} of the allowed error")
    return "; ".join(part for part in (*parts, found.fault, f"{seconds:.1f} s") if part)


def run_steps(steps: Sequence[Step], workers: int, total_s: float) -> int:
    """Each step in a child process, and a line for each, in order; 0 only if all that can run are ok."""
    started, limit_s = time.monotonic(), limit_of(len(steps), workers, total_s)
    failed: list[str] = []
    absent: list[str] = []
    with ThreadPoolExecutor(workers) as pool:
        for step, found, seconds in pool.map(lambda step: ask(step, limit_s), steps):
            say(line(step, found, seconds))
            if found.absent or found.fault:
                (absent if found.absent else failed).append(step.name)
    ok = len(steps) - len(failed) - len(absent)
    words = [f"{ok} of {len(steps)} steps are ok"]
    words += [f"FAILED: {'; '.join(failed)}"] if failed else []
    words += [f"absent on this device: {'; '.join(absent)}"] if absent else []
    say(f"{'. '.join(words)}. {time.monotonic() - started:.0f} s, {limit_s:.0f} s allowed for each.")
    return 0 if ok and not failed else 1


def smoke(only: str = "") -> int:
    kind = here().type
    if kind == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        say("There is no GPU here; set TRITON_INTERPRET=1 to run what Triton's interpreter can run.")
        return 2
    device = device_facts(here())
    say(f"{device.name}, torch {torch.__version__}: training steps of one layer, compared with torch in float64.")
    chosen = [step for step in steps_on(kind) if only.lower() in step.name.lower()]
    left_out = [step for step in chosen if step.needs_gpu and kind != "cuda"]
    if left_out:
        say(f"Left out because they need a GPU: {'; '.join(step.name for step in left_out)}.")
    steps = [step for step in chosen if step not in left_out]
    if not steps:
        say(f"No step that can run here has a name that contains {only!r}.")
        return 2
    workers = WORKERS[kind]
    if kind == "cuda":
        workers = max(2, min(workers, device.memory_bytes // CHILD_BYTES))
    return run_steps(steps, workers, TOTAL_S)

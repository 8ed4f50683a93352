"""One case: the questions that a child process answers about it, what the answers mean, and its rows."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench import warm
from bench.cases import Case
from bench.children import START_LIMIT_S, Failed, TimedOut, sentence
from bench.forced import builder
from bench.pair import OURS, RECOMPUTED, THEIRS, build, check, no_rivals, take_time
from bench.report import Result
from bench.rivals import FLOOR, RIVALS, exchanges, rivals_of
from bench.rows import Row, facts, row
from tritongru import model
from tritongru.devices import Device, device_facts
from tritongru.plan import Plan

COMPILE_LIMIT_S = 120.0
CASE_LIMIT_S = 30.0
RESERVE_S = 8.0  # with less than this left, no case is begun


class Budget:
    """Seconds that are left."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        return self.end - time.monotonic()

    def to_start(self) -> float:
        """What a child process may take to start."""
        return min(START_LIMIT_S, max(1.0, self.left()))


def answer(what: str, case: Case, impl: str, plan: Plan | None = None) -> Any:
    """Runs in the child process: (Parity, Plan), or times and why some are missing. With a plan, ours is its launch,
    and there are no rivals besides nn.GRU."""
    device = torch.device("cuda")
    torch.seed()  # other data in every run; torch starts each process from the same seed
    make = builder(plan) if plan else build
    try:
        if what == "parity":
            return check(case, impl, device, make)
        return take_time(case, impl, device, make, no_rivals if plan else rivals_of)
    except Exception as error:
        torch.cuda.synchronize()  # raises if the error broke the CUDA context, which ends this process
        raise Failed(sentence(error)) from None


Say = Callable[[str], None]
Ask = Callable[[str, Result, float], Any]  # asks what `answer` answers, with a limit in seconds


def say(line: str) -> None:
    print(line, flush=True)


def introduced(commit: str | None) -> tuple[Row, Device]:
    """Where the rows of this run are made, said and returned, and the facts of the GPU."""
    device = device_facts(torch.device("cuda"))
    where = facts(torch.cuda.get_device_name(0), commit, device.arch)
    say(f"{where['gpu']}, driver {where['driver']}, torch {where['torch']}, triton {where['triton']}.")
    return where, device


def compile_all(jobs: Sequence[warm.Job], impl: str, budget: Budget) -> None:
    """Compile at once for all jobs, and say what does not compile."""
    started = time.monotonic()
    failures = warm.warm(jobs, impl, min(COMPILE_LIMIT_S, budget.left() / 2))
    say(f"Compiled for {len(jobs)} cases in {time.monotonic() - started:.0f} s.")
    for name, reason in failures.items():
        say(f"  not compiled: {name}: {reason}")


def examine(result: Result, ask: Ask, budget: Budget) -> None:
    """Parity, and speed if it is green. A case that hangs or fails is red, whatever was known of it before."""
    for what in ("parity", "speed"):
        result.left_out = what
        if budget.left() < RESERVE_S:
            return
        limit_s = min(CASE_LIMIT_S, budget.left())
        try:
            if what == "parity":
                found, result.plan = ask(what, result, limit_s)
                result.parity, result.their_parity = found.ours, found.theirs
                result.green, result.repeatable = found.green, found.repeatable
                result.failure = None if found.green else found.worst
            else:
                result.times, result.missing = ask(what, result, limit_s)
        except Failed as failed:
            if isinstance(failed, TimedOut) and budget.left() < RESERVE_S:
                return  # the end of the budget stopped it, which says nothing about the case
            result.green, result.failure = False, str(failed)
            result.parity = result.their_parity = None
        result.left_out = None
        if not result.green:
            return


def expected_floor(plan: Plan) -> float | None:
    """Of the passes together; a program that serves several tiles hides what the exchange costs."""
    costs = [found.cost for found in (plan.forward, plan.backward) if found]
    if not exchanges(plan) or any(cost is None or cost.turns > 1 for cost in costs):
        return None
    return sum(cost.exchange + model.L2_LATENCY_US + cost.l2 for cost in costs if cost)


def rows_of(result: Result, impl: str, where: Row) -> list[Row]:
    """One for each implementation, for each rival that was timed or tried in vain, and for a peak without a time."""
    case, plan = result.case, result.plan
    about: dict[str, dict[str, Any]] = {
        OURS: {"family": result.family, "plan": result.launch, "parity": result.parity},
        THEIRS: {"family": "torch", "parity": result.their_parity},
        **{name: {"family": "torch", "parity": None} for name in RIVALS if name in result.times | result.missing},
    }
    if FLOOR in about:
        about[FLOOR] |= {"family": result.family, "plan": result.launch}
    if RECOMPUTED in result.times:
        about[RECOMPUTED] = about[OURS] | {"parity": None}
    if plan is not None:  # of the time loops alone
        passes = 2 if case.mode == "train" else 1
        theirs = plan.torch_us_per_step
        about[OURS]["predicted_us"] = plan.us_per_step
        about[THEIRS]["predicted_us"] = None if theirs is None else passes * theirs
        if FLOOR in about:
            about[FLOOR]["predicted_us"] = expected_floor(plan)
    for name, times in result.times.items():
        about[name] |= times
    names = {OURS: OURS if impl == "auto" else f"{OURS}[{impl}]"}
    return [row(case, names.get(name, name), where, **own) for name, own in about.items()]

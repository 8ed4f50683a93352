"""One case: the questions that a child process answers about it, what the answers mean, and its rows."""

import functools
import math
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from bench.analysis.report import Result
from bench.measure.cases import Case
from bench.measure.ceilings import Ceilings, least, measure
from bench.measure.children import START_LIMIT_S, Child, Failed, TimedOut, sentence
from bench.measure.pair import OURS, RECOMPUTED, THEIRS, Timed, build, check, take_time
from bench.measure.rows import Row, facts, row
from bench.rivals import ALLOWANCES_S, FLOOR, OURS_GRAPH, exchanges, rivals_for
from bench.rivals.forced import builder
from bench.session import warm
from tritongru.planning import cost_model
from tritongru.planning.devices import Device, device_facts
from tritongru.planning.plan import Plan

COMPILE_LIMIT_S = 120.0
CASE_LIMIT_S = 30.0
STEPS_A_SECOND = 500  # added to a limit: float64 forward and backward in torch's own loop
RESERVE_S = 8.0  # with less than this left, no case is started
AGAIN_S = 20.0  # kept for ours if a rival hangs: a new process starts and is asked without rivals


class Budget:
    """Seconds that are left."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        return self.end - time.monotonic()

    @contextmanager
    def at_most(self, seconds: float) -> Iterator[None]:
        """Inside, no more than this is left, however much is left in all."""
        before, self.end = self.end, min(self.end, time.monotonic() + seconds)
        try:
            yield
        finally:
            self.end = before

    def to_start(self) -> float:
        """What a child process may take to start."""
        return min(START_LIMIT_S, max(1.0, self.left()))


@dataclass(frozen=True)
class Question:
    """A question to a child process about a case, "parity" or "speed"; or "ceilings", which concern no case. With a
    plan, ours runs its launch. ``seed``: for all data."""

    what: str
    case: Case
    impl: str
    plan: Plan | None = None
    rivals: tuple[str, ...] = ()
    seed: int = 0


def here() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def answer(question: Question) -> Any:
    """Runs in the child process: (Parity, Plan), a Timed, or Ceilings."""
    device, case = here(), question.case
    torch.manual_seed(question.seed)
    if device.type == "cpu":
        torch.set_num_threads(1)  # several threads make more noise than there is to measure
    make = builder(question.plan) if question.plan else build
    try:
        if question.what == "ceilings":
            return measure(device)
        if question.what == "parity":
            return check(case, question.impl, device, make)
        return take_time(case, question.impl, device, make, functools.partial(rivals_for, names=question.rivals))
    except Exception as error:
        if device.type == "cuda":
            torch.cuda.synchronize()  # raises if the error broke the CUDA context, which ends this process
        raise Failed(sentence(error)) from None


Say = Callable[[str], None]
Ask = Callable[[str, Result, float], Any]  # asks a question that `answer` answers, with a limit in seconds


def say(line: str) -> None:
    print(line, flush=True)


def introduced(commit: str | None) -> tuple[Row, Device]:
    """The machine of this run, printed and returned, and the facts of the device."""
    device = device_facts(here())
    seed = secrets.randbits(48)
    if here().type == "cuda":
        where = facts(torch.cuda.get_device_name(0), commit, device.arch, seed)
        say(f"{where['gpu']}, driver {where['driver']}, torch {where['torch']}, triton {where['triton']}.")
    else:
        where = facts(None, commit, None, seed)
        say(f"There is no GPU here; using one thread of {where['cpu']}, torch {where['torch']}.")
    return where, device


def compile_all(jobs: Sequence[warm.Job], impl: str, budget: Budget, most_s: float = COMPILE_LIMIT_S) -> None:
    """Compile for all jobs at once, and report what does not compile."""
    started = time.monotonic()
    failures = warm.warm(jobs, impl, min(most_s, budget.left() / 2))
    say(f"Compiled for {len(jobs)} cases in {time.monotonic() - started:.0f} s.")
    for name, reason in failures.items():
        say(f"  not compiled: {name}: {reason}")


def asking(child: Child, impl: str, rivals: Callable[[Case], tuple[str, ...]], where: Row, budget: Budget) -> Ask:
    """Asks a child process. If a rival spoils an answer, by a crash that ends the process or by taking too long, the
    question is repeated without rivals and then for each of them alone; a rival that fails alone is left out of the
    rest of the run."""
    broken: dict[str, str] = {}

    def put(question: Question, limit_s: float, spare_s: float = 0.0) -> Any:
        more_s = sum(ALLOWANCES_S.get(name, 0.0) for name in question.rivals)
        left_s = max(1.0, budget.left() - (spare_s if more_s else 0.0))
        return child.ask(question, limit_s=min(limit_s + more_s, left_s), start_s=min(START_LIMIT_S, left_s))

    def ask(what: str, result: Result, limit_s: float) -> Any:
        names = rivals(result.case)
        some = tuple(name for name in names if name not in broken)
        question = Question(what, result.case, impl, None, some, where["seed"])
        if what != "speed":
            return put(question, limit_s)
        missing = {name: broken[name] for name in names if name in broken}
        try:
            timed: Timed = put(question, limit_s, AGAIN_S)
        except Failed as failed:
            if not some or budget.left() < RESERVE_S:
                raise
            own = tuple(name for name in some if name not in ALLOWANCES_S)
            timed = one_by_one(question, limit_s, own, str(failed))
        return replace(timed, missing=missing | timed.missing)

    def one_by_one(question: Question, limit_s: float, own: tuple[str, ...], why: str) -> Timed:
        try:
            timed: Timed = put(replace(question, rivals=own), limit_s)
        except Failed as failed:
            if not own or budget.left() < RESERVE_S:
                raise
            timed = put(replace(question, rivals=()), limit_s)
            timed.missing.update(dict.fromkeys(own, f"all at once: {failed}"))
        for name in question.rivals:
            if name in own:
                continue
            if budget.left() < RESERVE_S:
                timed.missing[name] = f"no time to ask for it alone after: {why}"
                continue
            try:
                one: Timed = put(replace(question, rivals=(name,)), limit_s)
            except Failed as failed:
                timed.missing[name] = broken[name] = f"left out from {question.case.name} on: {failed}"
                continue
            timed.times.update({name: one.times[name]} if name in one.times else {})
            timed.parities.update(one.parities)
            timed.missing.update(one.missing)
            timed.hows.update(one.hows)
        return timed

    return ask


def limit_of(case: Case) -> float:
    """Seconds for one question about a case."""
    return CASE_LIMIT_S + case.time * case.layers * case.directions / STEPS_A_SECOND


def examine(result: Result, ask: Ask, budget: Budget, most_s: float = math.inf) -> None:
    """Parity, and speed if it is green. A case that fails is red, whatever its earlier result; one stopped by a limit,
    of a question or ``most_s`` for the case, is cut off; one stopped by the end of the budget is left out."""
    with budget.at_most(most_s):
        late = _examine(result, ask, budget)
    if result.left_out and budget.left() >= RESERVE_S:
        result.cut, result.left_out = result.left_out, None
        result.failure = f"{result.cut}: {late or f'no time left of the {most_s:.0f} s for this case'}"


def _examine(result: Result, ask: Ask, budget: Budget) -> str | None:
    """Returns why it stopped early, if a question had no answer in time."""
    for what in ("parity", "speed"):
        result.left_out = what
        if budget.left() < RESERVE_S:
            return None
        limit_s = min(limit_of(result.case), budget.left())
        try:
            if what == "parity":
                found, result.plan = ask(what, result, limit_s)
                result.parity, result.their_parity = found.ours, found.theirs
                result.green, result.repeatable = found.green, found.repeatable
                result.failure = None if found.green else found.worst
            else:
                result.timed = ask(what, result, limit_s)
        except TimedOut as late:
            return str(late)
        except Failed as failed:
            result.green, result.failure = False, str(failed)
            result.parity = result.their_parity = None
        result.left_out = None
        if not result.green:
            return None
    return None


def expected_floor(plan: Plan) -> float | None:
    """For both passes together; None if a program serves several tiles, which hides the cost of the exchange."""
    costs = [found.cost for found in (plan.forward, plan.backward) if found]
    if not exchanges(plan) or any(cost is None or cost.turns > 1 for cost in costs):
        return None
    return sum(cost.exchange + cost_model.L2_LATENCY_US + cost.l2 for cost in costs if cost)


def rows_of(result: Result, impl: str, where: Row, ceilings: Ceilings | None = None) -> list[Row]:
    """One for each implementation, for each rival that was timed or failed, and for a peak without a time."""
    case, plan, timed = result.case, result.plan, result.timed
    about: dict[str, dict[str, Any]] = {
        OURS: {"family": result.family, "plan": result.launch, "memory": result.memory, "parity": result.parity},
        THEIRS: {"family": "torch", "parity": result.their_parity},
    }
    for name in (*timed.times, *timed.missing):
        about.setdefault(name, {"family": "torch", "parity": timed.parities.get(name)})
    if FLOOR in about:
        about[FLOOR] |= {"family": result.family, "plan": result.launch}
    for name in (RECOMPUTED, OURS_GRAPH):
        if name in about:
            about[name] = about[OURS] | {"parity": None}
    if RECOMPUTED in about:
        about[RECOMPUTED]["memory"] = "recompute"
    about[OURS]["repeatable"] = None if result.parity is None else result.repeatable
    if plan is not None:  # of the time loops alone
        passes = 2 if case.mode == "train" else 1
        theirs = plan.torch_us_per_step
        about[OURS] |= {"predicted_us": plan.us_per_step, "predicted_terms": result.expected_terms}
        about[THEIRS]["predicted_us"] = None if theirs is None else passes * theirs
        if FLOOR in about:
            about[FLOOR]["predicted_us"] = expected_floor(plan)
    exchange_ms = timed.times.get(FLOOR, {}).get("ms")
    names = {OURS: OURS if impl == "auto" else f"{OURS}[{impl}]"}
    for name, own in about.items():
        own |= timed.times.get(name, {})
        own |= {"how": timed.hows.get(name), "reason": timed.missing.get(name)}
        own["floor_ms"], own["bound"] = least(case, ceilings, exchange_ms if name in (OURS, OURS_GRAPH) else None)
    if result.failure is not None:
        about[OURS]["reason"] = result.failure
    return [row(case, names.get(name, name), where, **own) for name, own in about.items()]

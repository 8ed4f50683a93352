"""Which rivals can run a case, whether they compute what nn.GRU computes, and why the others cannot."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import cache

import torch

from bench.measure.cases import Case
from bench.measure.children import sentence
from bench.measure.pair import THEIRS, Call, Found, Pair, random
from bench.measure.parity import Data, Tensors, compare, quantities, truth
from bench.rivals.builtin import COMPILED, COMPILED_LOOP, CUDNN_LSTM, CUDNNS_LSTM, GRAPH, GRAPHED
from bench.rivals.own_variants import BOUND, FLOOR, FORCED, FORCED_OURS, GRAPHED_OURS, OURS_GRAPH
from bench.rivals.packages import FLASHRNN, GRU_QAT, HASTE, PACKAGES, TORCHRL
from bench.rivals.rival import Rival, Steps, Unavailable

# Graphs are made last, for what a failed capture may leave behind.
REGISTRY = {rival.name: rival for rival in (CUDNNS_LSTM, COMPILED_LOOP, *PACKAGES, FORCED_OURS, GRAPHED, GRAPHED_OURS)}
BOUNDS = {BOUND.name: BOUND}
# Seconds on top of a case's for what others compile or build before their first call: also the names of those whose
# code may hang or crash.
ALLOWANCES_S = {COMPILED: 120.0, GRU_QAT: 20.0, TORCHRL: 240.0, FLASHRNN: 240.0, HASTE: 20.0}
GRID_RIVALS = (GRAPH, CUDNN_LSTM, FLOOR)  # of every wide case
GATE_RIVALS = (GRAPH, OURS_GRAPH, FORCED, GRU_QAT, CUDNN_LSTM, FLOOR)  # of a workload: what compiles in seconds
ALL_RIVALS = (GRAPH, OURS_GRAPH, FORCED, COMPILED, GRU_QAT, TORCHRL, FLASHRNN, HASTE, CUDNN_LSTM, FLOOR)
SLOWEST_S = 3.0
CHECKED_STEPS = 128  # a wrong formula shows in the first few; torch's own loop in float64 is slow


def rivals_for(
    case: Case, pair: Pair, steps: Steps, names: Sequence[str] = ALL_RIVALS, slowest_s: float = SLOWEST_S
) -> Found:
    """Every call has run twice; an error of one rival says that it is missing, and no more."""
    known = BOUNDS | REGISTRY
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ValueError(f"no rival is called {', '.join(unknown)}; there are {', '.join(known)}")
    device, found = steps[THEIRS].h0.device, Found()
    check = checker(case, pair, device)
    for name, rival in known.items():
        if name not in names:
            continue
        found.hows[name] = f"{rival.version()}: {rival.how}"
        try:
            call = rival.make(case, pair, steps)
            seconds_of(call, device)  # compiles
            seconds = seconds_of(call, device)  # and of a floor, tells whether the first gave up
            if seconds > slowest_s:
                raise Unavailable(f"one call takes {seconds:.1f} s, and no more than {slowest_s:g} s are spent on one")
            parity = check(rival, call)
        except Unavailable as reason:
            found.missing[name] = str(reason)
        except Exception as error:
            found.missing[name] = sentence(error)
        else:
            found.calls[name] = call
            if parity is not None:
                found.parities[name] = parity
    return found


def seconds_of(call: Call, device: torch.device) -> float:
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def checker(case: Case, pair: Pair, device: torch.device) -> Callable[[Rival, Call], float | None]:
    """The parity of a rival, by the rule that ours is held to, on the first steps of the case."""
    short = dataclasses.replace(case, time=min(case.time, CHECKED_STEPS))

    @cache  # for those that are checked, once
    def wanted() -> tuple[Data, Tensors, Tensors]:
        data = random(short, device)
        return data, truth(pair.theirs, case.mode, data), quantities(pair.theirs, case.mode, data)

    def check(rival: Rival, call: Call) -> float | None:
        if rival.twin is None:
            return None
        data, exact, theirs = wanted()
        return compare(quantities(rival.twin(call, pair.theirs), case.mode, data), theirs, exact, case.rounding).ours

    return check

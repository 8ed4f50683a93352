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
from bench.rivals.packages import FLASHRNN, FLASHRNN2, GRU_QAT, HASTE, PACKAGES, TORCHRL
from bench.rivals.rival import Rival, Steps, Unavailable

# Graphs come last, because a failed capture may leave state behind.
REGISTRY = {rival.name: rival for rival in (CUDNNS_LSTM, COMPILED_LOOP, *PACKAGES, FORCED_OURS, GRAPHED, GRAPHED_OURS)}
BOUNDS = {BOUND.name: BOUND}
# Extra seconds per case, for what a rival compiles or builds before its first call. The code of these may hang or
# crash.
ALLOWANCES_S = {COMPILED: 120.0, GRU_QAT: 20.0, TORCHRL: 240.0, FLASHRNN: 240.0, FLASHRNN2: 20.0, HASTE: 20.0}
GRID_RIVALS = (GRAPH, CUDNN_LSTM, FLOOR)  # of every wide case
GATE_RIVALS = (GRAPH, OURS_GRAPH, FORCED, GRU_QAT, CUDNN_LSTM, FLOOR)  # of every workload; these compile in seconds
ALL_RIVALS = (GRAPH, OURS_GRAPH, FORCED, COMPILED, GRU_QAT, TORCHRL, FLASHRNN, FLASHRNN2, HASTE, CUDNN_LSTM, FLOOR)
SLOWEST_S = 3.0
CHECKED_STEPS = 128  # a wrong formula shows in the first few; torch's own loop in float64 is slow


def rivals_for(
    case: Case, pair: Pair, steps: Steps, names: Sequence[str] = ALL_RIVALS, slowest_s: float = SLOWEST_S
) -> Found:
    """Each call found has run twice. A rival that raises is reported as missing, and the others go on."""
    known = BOUNDS | REGISTRY
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ValueError(f"unknown rival {', '.join(unknown)}; use one of {', '.join(known)}")
    device, found = steps[THEIRS].h0.device, Found()
    check = checker(case, pair, device)
    for name, rival in known.items():
        if name not in names:
            continue
        found.hows[name] = f"{rival.version()}: {rival.how}"
        try:
            call = rival.make(case, pair, steps)
            seconds_of(call, device)  # compiles
            seconds = seconds_of(call, device)  # a floor raises here if a wait in the first call timed out
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
    """A function that gives a rival's parity over the first steps of the case, by the same rule as for ours."""
    short = dataclasses.replace(case, time=min(case.time, CHECKED_STEPS))

    @cache  # computed once, and only if a rival is checked
    def wanted() -> tuple[Data, Tensors, Tensors]:
        data = random(short, device)
        return data, truth(pair.theirs, case.mode, data), quantities(pair.theirs, case.mode, data)

    def check(rival: Rival, call: Call) -> float | None:
        if rival.twin is None:
            return None
        data, exact, theirs = wanted()
        return compare(quantities(rival.twin(call, pair.theirs), case.mode, data), theirs, exact, case.rounding).ours

    return check

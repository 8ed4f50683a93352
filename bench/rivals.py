"""What a wide forward pass is held against besides nn.GRU. None of them is checked for parity.

nn.GRU[graph]  nn.GRU, all its launches replayed from one CUDA graph, on one input that does not change
nn.LSTM        cuDNN's LSTM of the same size, for which it has a persistent kernel: what is known to be possible
floor          the grid and the exchange of our launch without any math (bench/floor.py)
"""

import itertools
import math
from collections.abc import Callable

import torch

from bench.cases import Case
from bench.children import sentence
from bench.pair import Pair, Step
from tritongru.launches import PersistentLaunch

GRAPH, LSTM, FLOOR = "nn.GRU[graph]", "nn.LSTM", "floor"
RIVALS = (GRAPH, LSTM, FLOOR)
Call = Callable[[], object]


def rivals_of(case: Case, pair: Pair, step: Step) -> tuple[dict[str, Call], dict[str, str]]:
    """The rivals of a case, given a step of nn.GRU, and why those that are missing are. Each has run once."""
    calls: dict[str, Call] = {}
    missing: dict[str, str] = {}
    if not case.wide:
        return calls, missing
    makers: dict[str, Callable[[], Call]] = {
        FLOOR: lambda: floor_of(case, pair, step.h0),
        LSTM: lambda: lstm_of(case, step),
        GRAPH: lambda: graph_of(step, step.h0.device),  # last, for what a failed capture may leave behind
    }
    for name, make in makers.items():
        try:
            call = make()
            for _ in range(2):  # the second launch of a floor tells whether the first gave up
                call()
                if step.h0.is_cuda:
                    torch.cuda.synchronize(step.h0.device)
        except Exception as error:
            missing[name] = sentence(error)
        else:
            calls[name] = call
    return calls, missing


def graph_of(call: Call, device: torch.device) -> Call:
    before, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    side.wait_stream(before)
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    before.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    finally:
        torch.cuda.set_stream(before)  # which a capture that failed does not do
    return graph.replay


def lstm_of(case: Case, step: Step) -> Call:
    """The state stands for the cell as well: its values do not change the time."""
    layer = torch.nn.LSTM(case.hidden, case.hidden, device=step.h0.device, dtype=step.h0.dtype).eval()
    layer.flatten_parameters()
    upcoming = itertools.cycle(step.inputs)

    def call() -> None:
        with torch.inference_mode():
            layer(next(upcoming), (step.h0, step.h0))

    return call


def floor_of(case: Case, pair: Pair, like: torch.Tensor) -> Call:
    launch = pair.plan.forward
    if not isinstance(launch, PersistentLaunch):
        raise LookupError(f"the {pair.plan.family} family has no exchange")
    from bench.floor import floor

    tiles = math.ceil(case.batch / launch.block_b)
    return lambda: floor(like, case.time, tiles, case.directions, case.hidden, launch)

"""What a wide layer is held against besides nn.GRU. None of them is checked for parity.

nn.GRU[graph]  nn.GRU, all its launches, backward's too, replayed from one CUDA graph, on one input that does not change
nn.LSTM        cuDNN's LSTM of the same size, for which it has a persistent kernel: what is known to be possible
floor          the grids and the exchanges of our launches, forward and backward, without any math (bench/floor.py)
"""

import math
from collections.abc import Callable

import torch

from bench.cases import Case
from bench.children import sentence
from bench.pair import Pair, Step
from bench.parity import Data
from tritongru.launches import PersistentLaunch
from tritongru.plan import Plan

GRAPH, CUDNN_LSTM, FLOOR = "nn.GRU[graph]", "nn.LSTM", "floor"
RIVALS = (GRAPH, CUDNN_LSTM, FLOOR)
Call = Callable[[], object]


def rivals_of(case: Case, pair: Pair, step: Step) -> tuple[dict[str, Call], dict[str, str]]:
    """The rivals of a case, given a step of nn.GRU, and why those that are missing are. Each has run once."""
    calls: dict[str, Call] = {}
    missing: dict[str, str] = {}
    if not case.wide:
        return calls, missing
    makers: dict[str, Callable[[], Call]] = {
        FLOOR: lambda: floor_of(case, pair, step.h0),
        CUDNN_LSTM: lambda: lstm_of(case, step),
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


class LSTM(torch.nn.LSTM):
    """Called as a GRU is. The state stands for the cell as well: its values do not change the time."""

    def forward(self, x: torch.Tensor, h0: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        y, (hn, _) = super().forward(x, (h0, h0))
        return y, hn


def lstm_of(case: Case, step: Step) -> Call:
    layer = LSTM(case.hidden, case.hidden, device=step.h0.device, dtype=step.h0.dtype).train(case.mode == "train")
    layer.flatten_parameters()
    return Step(layer, case.mode, step.inputs, Data(step.inputs[0], step.h0, step.dy, step.h0))


def exchanges(plan: Plan) -> list[PersistentLaunch]:
    """The launches of all passes, if all of them exchange: else there is no floor."""
    launches = [found.launch for found in (plan.forward, plan.backward) if found is not None]
    persistent = [launch for launch in launches if isinstance(launch, PersistentLaunch)]
    return persistent if len(persistent) == len(launches) else []


def floor_of(case: Case, pair: Pair, like: torch.Tensor) -> Call:
    launches = exchanges(pair.plan)
    if not launches:
        families = {found.family for found in (pair.plan.forward, pair.plan.backward) if found}
        family = next(iter(families - {"persistent"}), pair.plan.family)
        raise LookupError(f"the {family} family has no exchange")
    from bench.floor import floor

    def call() -> None:
        for launch in launches:
            floor(like, case.time, math.ceil(case.batch / launch.block_b), case.directions, case.hidden, launch)

    return call

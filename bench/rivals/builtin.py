"""Torch's own alternatives to a plain call of nn.GRU."""

from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import linear

from bench.measure.cases import Case
from bench.measure.pair import THEIRS, Call, Pair, Step
from bench.measure.parity import Data
from bench.rivals.rival import Rival, Steps, Unavailable
from bench.rivals.stack import Recurrence, Tensor, stacked

GRAPH, CUDNN_LSTM, COMPILED = f"{THEIRS}[graph]", "nn.LSTM", "torch.compile"
MOST_LAUNCHES = 100_000  # in one graph; each is a node to capture, keep and instantiate
CHUNK = 8  # time steps compiled together: fewer launches, and it still compiles in seconds


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
    """Called like a GRU. h0 also serves as the cell state, because its values do not affect the time."""

    def forward(self, x: torch.Tensor, h0: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        y, (hn, _) = super().forward(x, (h0, h0))
        return y, hn


def lstm_of(case: Case, step: Step) -> Call:
    layer = LSTM(
        case.width,
        case.hidden,
        case.layers,
        bidirectional=case.directions == 2,
        device=step.h0.device,
        dtype=step.h0.dtype,
    ).train(case.mode == "train")
    layer.flatten_parameters()
    return Step(layer, case.mode, step.inputs, Data(step.inputs[0], step.h0, step.dy, step.h0))


def steps(gx: Tensor | Sequence[Tensor], h: Tensor, w_hh: Tensor, b_hh: Tensor) -> tuple[Tensor, Tensor]:
    """nn.GRU's formula for the few steps of gx (C, B, 3H), or C tensors (B, 3H)."""
    outputs = []
    for g in gx:
        (x_r, x_z, x_n), (h_r, h_z, h_n) = g.chunk(3, -1), linear(h, w_hh, b_hh).chunk(3, -1)
        r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
        n = torch.tanh(x_n + r * h_n)
        h = n + z * (h - n)
        outputs.append(h)
    return torch.stack(outputs), h


def compiled_of(case: Case, device: torch.device, backend: str = "inductor") -> Recurrence:
    torch.compiler.reset()  # after a few shapes in one process, torch would stop compiling
    chunk: Callable[..., tuple[Tensor, Tensor]] = torch.compile(steps, backend=backend, dynamic=False, fullgraph=True)

    def run(x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
        outputs = []
        for gx in torch.split(linear(x, w_ih, b_ih), CHUNK):
            # One tensor per step gives identical kernels, which a CPU compiles once: 6 s instead of 21 s.
            y, h = chunk(gx.unbind() if device.type == "cpu" else gx, h, w_hh, b_hh)
            outputs.append(y)
        return torch.cat(outputs)

    return Recurrence(run)


def graphed(name: str, package: str | None, whose: str) -> Rival:
    def make(case: Case, pair: Pair, steps: Steps) -> Call:
        device = steps[whose].h0.device
        if device.type != "cuda":
            raise Unavailable("a CUDA graph needs a GPU")
        launches = 2 * case.time * case.layers * case.directions * (3 if case.mode == "train" else 1)
        if whose == THEIRS and launches > MOST_LAUNCHES:
            raise Unavailable(f"a graph of about {launches:,} launches is left out; {MOST_LAUNCHES:,} are the most")
        return graph_of(steps[whose], device)

    how = f"{whose}, all its launches, backward's too, replayed from one CUDA graph, on one input that does not change"
    return Rival(name, package, how, True, make)


GRAPHED = graphed(GRAPH, None, THEIRS)
CUDNNS_LSTM = Rival(
    CUDNN_LSTM,
    None,
    "cuDNN's LSTM of the same size, for which it has a persistent kernel: what is known to be possible",
    False,
    lambda case, pair, steps: lstm_of(case, steps[THEIRS]),
)
COMPILED_LOOP = stacked(
    COMPILED,
    None,
    f"a Python loop over nn.GRU's formula, {CHUNK} time steps of it compiled by torch.compile, after one product for "
    "the input; layers and directions stacked here",
    compiled_of,
)

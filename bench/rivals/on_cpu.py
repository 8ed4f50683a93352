"""Rivals for real workloads on a CPU, besides nn.GRU and nn.LSTM: layers that are called like nn.GRU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.measure.cases import Case
from bench.measure.cpu.cells import WORKLOAD, Cell
from bench.measure.pair import THEIRS
from bench.rivals.builtin import CHUNK, COMPILED, compiled_of
from bench.rivals.onnx_gru import OnnxGRU
from bench.rivals.rival import installed
from bench.rivals.stack import Recurrence, Stack

COMPILED_GRU, ONNX = f"{THEIRS}[compile]", "onnxruntime"
CPU = torch.device("cpu")
PREFIX = "_orig_mod."  # of parameter names in a module wrapped by torch.compile


@dataclass(frozen=True)
class OnCpu:
    """A rival that computes the same function as nn.GRU."""

    name: str  # in rows
    package: str | None  # as in ``Rival``
    how: str  # one sentence: how it is called
    layer_of: Callable[[Case, nn.GRU, int], nn.Module]  # with the same weights, for this number of threads
    trains: bool = True
    grows: bool = False  # compiles for a long time, so it is measured separately

    def said(self) -> str:
        found = torch.__version__ if self.package is None else installed(self.package)
        return f"{self.package or 'torch'} {found}: {self.how}"


def compiled_gru_of(case: Case, gru: nn.GRU, threads: int) -> nn.Module:
    torch.compiler.reset()
    return torch.compile(copy.deepcopy(gru))  # type: ignore[return-value]


def compiled_loop_of(case: Case, gru: nn.GRU, threads: int) -> nn.Module:
    loop = compiled_of(case, CPU)

    def run(x: Tensor, h: Tensor, *weights: Tensor) -> Tensor:
        # States of later chunks require gradients; a first state that does not would trigger another compilation.
        asks = torch.is_grad_enabled() and not h.requires_grad
        return loop.run(x, h.detach().requires_grad_() if asks else h, *weights)

    return Stack(gru, Recurrence(run), folded=False)


REGISTRY = {
    rival.name: rival
    for rival in (
        OnCpu(
            COMPILED_GRU,
            None,
            "torch.compile(nn.GRU(...)) as a user writes it: dynamo does not trace an RNN unless "
            "torch._dynamo.config.allow_rnn is set, so that nn.GRU itself runs",
            compiled_gru_of,
        ),
        OnCpu(
            ONNX,
            ONNX,
            "a graph of ONNX with its operator GRU, linear_before_reset=1, a node for each layer, on as many intra-op "
            "threads; arrays that share the tensors' memory",
            lambda case, gru, threads: OnnxGRU(gru, threads),
            trains=False,
        ),
        OnCpu(
            COMPILED,
            None,
            f"a Python loop over nn.GRU's formula, {CHUNK} time steps of it compiled by torch.compile, after one "
            "product for the input; layers and directions stacked here",
            compiled_loop_of,
            grows=True,
        ),
    )
}


SIZES = "zone-"  # workloads defined by size alone; slow compilations are skipped for them


def groups(cell: Cell) -> list[tuple[str, ...]]:
    """The rivals of a call, grouped as they are measured together."""
    if cell.part != WORKLOAD:
        return []
    able = [rival for rival in REGISTRY.values() if rival.trains or cell.case.mode == "forward"]
    quick = tuple(rival.name for rival in able if not rival.grows)
    grows = [] if cell.case.label.startswith(SIZES) else [(rival.name,) for rival in able if rival.grows]
    return [names for names in (quick, *grows) if names]


def names(cell: Cell) -> list[str]:
    return [name for group in groups(cell) for name in group]

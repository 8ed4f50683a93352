"""Builds nn.GRU's layers and directions from a kernel for one, as a user of that kernel would."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch

from bench.measure.cases import Case
from bench.measure.pair import THEIRS, Call, Pair, Step
from bench.measure.parity import Data
from bench.rivals.rival import Rival, Steps

Tensor = torch.Tensor
Weights = tuple[Tensor, ...]
NATIVE = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def unchanged(*weights: Tensor) -> Weights:
    return weights


@dataclass(frozen=True)
class Recurrence:
    """A kernel for one layer in one direction."""

    run: Callable[..., Tensor]  # x (T, B, I), h0 (B, H), *weights in its own layout -> y (T, B, H)
    fold: Callable[..., Weights] = unchanged  # nn.GRU's w_ih, w_hh, b_ih, b_hh -> its own layout
    batch_first: bool = False  # x and y are (B, T, .)
    dtype: torch.dtype | None = None  # of its tensors, if it differs from the case's


class Stack(torch.nn.Module):
    """All layers and directions of a GRU. Folded, its weights and inputs have the kernel's own layout and dtype, as for
    a user of the package; otherwise it has nn.GRU's parameters and is called like nn.GRU."""

    def __init__(self, gru: torch.nn.Module, recurrence: Recurrence, folded: bool) -> None:
        super().__init__()
        assert isinstance(gru, torch.nn.RNNBase)
        self.recurrence, self.folded = recurrence, folded
        self.num_layers, self.directions = gru.num_layers, 2 if gru.bidirectional else 1
        self.own = torch.nn.ModuleList()
        if not folded:
            for name, weight in gru.named_parameters():
                self.register_parameter(name, torch.nn.Parameter(weight.detach().clone()))
            return
        for weights in self.native(gru):
            folded_weights = recurrence.fold(*(weight.detach().to(recurrence.dtype) for weight in weights))
            self.own.append(torch.nn.ParameterList(weight.clone() for weight in folded_weights))

    def native(self, module: torch.nn.Module) -> Iterator[list[Tensor]]:
        """nn.GRU's weights for each layer and direction, in its order."""
        for layer, back in itertools.product(range(self.num_layers), ("", "_reverse")[: self.directions]):
            yield [getattr(module, f"{kind}_l{layer}{back}") for kind in NATIVE]

    def weights(self) -> Iterator[Weights]:
        if self.folded:
            yield from (tuple(weights.parameters()) for weights in self.own)
            return
        for weights in self.native(self):
            yield self.recurrence.fold(*(weight.to(self.recurrence.dtype) for weight in weights))

    def forward(self, x: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
        time, dtype = int(self.recurrence.batch_first), x.dtype
        if not self.folded:
            x, h0 = (tensor.to(self.recurrence.dtype) for tensor in (x, h0))
            x = x.transpose(0, time).contiguous()
        weights, states = self.weights(), iter(h0.unbind())
        last = []
        for _ in range(self.num_layers):
            outputs = []
            for direction in range(self.directions):
                own = x.flip(time) if direction else x
                y = self.recurrence.run(own, next(states), *next(weights))
                last.append(y.select(time, -1))
                outputs.append(y.flip(time) if direction else y)
            x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
        hn = torch.stack(last)
        return (x, hn) if self.folded else (x.transpose(0, time).to(dtype), hn.to(dtype))


def stacked(
    name: str, package: str | None, how: str, recurrence_of: Callable[[Case, torch.device], Recurrence]
) -> Rival:
    """A rival made of a kernel for one layer and direction, with inputs prepared in that kernel's layout."""

    def make(case: Case, pair: Pair, steps: Steps) -> Call:
        step = steps[THEIRS]
        recurrence = recurrence_of(case, step.h0.device)

        def own(tensor: Tensor) -> Tensor:
            return tensor.detach().to(recurrence.dtype).transpose(0, int(recurrence.batch_first)).contiguous()

        h0 = step.h0.to(recurrence.dtype)
        inputs = [own(x) for x in step.inputs]
        return Step(Stack(pair.theirs, recurrence, True), case.mode, inputs, Data(inputs[0], h0, own(step.dy), h0))

    def twin(call: Call, gru: torch.nn.Module) -> torch.nn.Module:
        return Stack(gru, cast(Stack, cast(Step, call).layer).recurrence, False)

    return Rival(name, package, how, True, make, twin)

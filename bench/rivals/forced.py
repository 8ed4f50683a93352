"""A GRU that runs the given launches instead of the planned ones, and the matrix products around the time loop."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bench.measure.cases import Case
from bench.measure.pair import DTYPES, Build, Pair, build
from tritongru import layer
from tritongru.arguments.records import LayerCall, OutputGradients, Rows, Saved, Weights
from tritongru.functional import layer_weights
from tritongru.planning.candidates import Option, kind_of, persistent_options, stepwise_options
from tritongru.planning.devices import Device
from tritongru.planning.launches import AnyLaunch, PersistentLaunch, StepwiseLaunch, launch_name
from tritongru.planning.plan import Pass, Plan, plan


class Step(torch.autograd.Function):
    """One layer with saved gates, forward and backward by the given launches."""

    @staticmethod
    def forward(ctx: Any, passes: tuple[AnyLaunch, AnyLaunch], *tensors: Tensor) -> tuple[Tensor, Tensor]:
        x, w_ih, w_hh, b_ih, b_hh, h0 = tensors
        call = LayerCall(x, Weights(w_ih, w_hh, b_ih, b_hh), h0, Rows(h0.shape[1]))
        y, hn, gates = layer.forward(call, True, passes[0])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, y, gates)
        ctx.launch = passes[1]
        return y, hn

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dhn: Tensor | None) -> tuple[Tensor | None, ...]:
        x, w_ih, w_hh, b_ih, b_hh, h0, y, gates = ctx.saved_tensors
        needs, batch = list(ctx.needs_input_grad[1:]), h0.shape[1]
        call = LayerCall(x, Weights(w_ih, w_hh, b_ih, b_hh), h0, Rows(batch))
        found = layer.backward(OutputGradients(dy, dhn), call, Saved(y, gates), [*needs, False], ctx.launch)
        return None, *(grad if need else None for grad, need in zip(found, needs, strict=False))


class Forced(torch.nn.Module):
    """One layer with the names and values of another module's weights, and separate gradients."""

    def __init__(self, like: torch.nn.Module, forward: AnyLaunch, backward: AnyLaunch | None) -> None:
        super().__init__()
        self.launches = forward, backward
        for name, weight in like.named_parameters():
            self.register_parameter(name, torch.nn.Parameter(weight.detach()))

    def forward(self, x: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
        weights = layer_weights(tuple(self.parameters()), 4)
        forward, backward = self.launches
        if backward is None:
            y, hn, _ = layer.forward(LayerCall(x.flatten(0, 1), weights, h0, Rows(x.shape[1])), False, forward)
        else:
            y, hn = Step.apply((forward, backward), x.flatten(0, 1), *weights, h0)  # type: ignore[no-untyped-call]
        return y.view(*x.shape[:2], h0.shape[0] * h0.shape[2]), hn


def plans(case: Case, device: Device) -> list[Plan]:
    """A plan for every launch in the table that can run the case, the cheapest by the model first: forward launches or,
    for training, backward launches after the planned forward pass. If none keeps W_hh on chip, the planned stepwise
    launch.

    Launches are selected by name, which finds the first of those that share one; the others are left out."""
    dtype, precision = str(DTYPES[case.dtype]).removeprefix("torch."), "tf32" if case.tf32 else "ieee"
    kernel = "backward" if case.mode == "train" else "forward"
    where = (device, kernel, kind_of(dtype, precision), case.hidden, case.batch, case.directions)
    options: list[Option] = [*persistent_options(*where)] or [*stepwise_options(*where)[:1]]
    sizes: dict[str, Any] = {"batch": case.batch, "directions": case.directions, "precision": precision}
    first = plan(case.hidden, dtype, device, **sizes, training=False, impl="triton").forward
    named: dict[str | None, Plan] = {}
    for option in options:
        own = pass_of(case, option)
        name = launch_name(own.launch)
        answer = Plan(own.family, f"{name} was requested", device.name, dtype, forward=own)
        if kernel == "backward":
            if first is None:
                continue
            answer = replace(answer, family=first.family, forward=first, backward=own)
        named.setdefault(name, answer)
    return sorted(named.values(), key=lambda plan: plan.us_per_step or 0.0)


def pass_of(case: Case, option: Option) -> Pass:
    cost, launch = option
    tiles = math.ceil(case.batch / launch.block_b)
    if isinstance(launch, PersistentLaunch):
        programs = launch.programs(case.hidden) * launch.groups * case.directions
        return Pass("persistent", launch, programs, math.ceil(tiles / launch.groups), cost)
    assert isinstance(launch, StepwiseLaunch)
    programs = tiles * math.ceil(case.hidden / launch.block_h) * case.directions
    return Pass("stepwise", launch, programs, 1, cost)


def builder(plan: Plan) -> Build:
    return functools.partial(forced, plan)


def forced(plan: Plan, case: Case, impl: str, device: torch.device) -> Pair:
    assert plan.forward is not None
    pair = build(case, "torch", device)
    backward = plan.backward.launch if plan.backward else None
    ours = Forced(pair.theirs, plan.forward.launch, backward).train(case.mode == "train")
    return Pair(ours, pair.theirs, plan)

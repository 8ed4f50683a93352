"""A GRU that runs one given launch, whatever the plan would take: the input product, then the time loop."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from bench.cases import Case
from bench.pair import Build, Pair, build
from tritongru import ops
from tritongru.candidates import kind_of, persistent_options
from tritongru.devices import Device
from tritongru.launches import PersistentLaunch
from tritongru.plan import Plan


class Forced(torch.nn.Module):
    """The forward pass of one layer in one direction. The weights are those of another module."""

    def __init__(self, like: torch.nn.Module, launch: PersistentLaunch) -> None:
        super().__init__()
        self.launch = launch
        self.w_ih, self.w_hh, self.b_ih, self.b_hh = like.parameters()

    def forward(self, x: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
        from tritongru.kernels import persistent

        rows, hidden = x.flatten(0, 1), self.w_hh.shape[1]
        gx = ops._project(rows, self.w_ih, self.b_ih)
        y, hn = gx.new_empty((len(rows), 1, hidden)), torch.empty_like(h0)
        w_hh, b_hh = self.w_hh.unsqueeze(0), self.b_hh.unsqueeze(0)
        persistent.forward(gx, w_hh, b_hh, h0, y, hn, gx.new_empty(0), None, self.launch)
        return y.view(*x.shape[:2], hidden), hn


def plans(case: Case, device: Device) -> list[Plan]:
    """A plan for every launch of the table that can run the case, the cheapest by the model first.

    Of launches that share a name the plan can be told to take the first alone, so the others are left out."""
    kind = kind_of("float32" if case.dtype == "fp32" else case.dtype, "tf32" if case.tf32 else "ieee")
    named: dict[str, Plan] = {}
    for cost, launch in persistent_options(device, kind, case.hidden, case.batch, case.directions):
        reason = f"{launch.name} was asked for"
        plan = Plan("persistent", reason, device.name, case.dtype, forward=launch, cost=cost, us_per_step=cost.us)
        named.setdefault(launch.name, plan)
    return sorted(named.values(), key=lambda plan: plan.us_per_step or 0.0)


def builder(plan: Plan) -> Build:
    return functools.partial(forced, plan)


def forced(plan: Plan, case: Case, impl: str, device: torch.device) -> Pair:
    assert isinstance(plan.forward, PersistentLaunch)
    pair = build(case, "torch", device)
    return Pair(Forced(pair.theirs, plan.forward).eval(), pair.theirs, plan)

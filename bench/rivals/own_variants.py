"""Other ways to run tritongru, and a lower bound: its launches without the math."""

import math

import torch

import tritongru
from bench.measure.cases import Case
from bench.measure.pair import OURS, THEIRS, Call, Pair, Step
from bench.measure.parity import Data
from bench.rivals.builtin import graphed
from bench.rivals.rival import Rival, Steps, Unavailable
from tritongru.planning.launches import PersistentLaunch
from tritongru.planning.plan import Plan

FLOOR, OURS_GRAPH, FORCED = "floor", f"{OURS}[graph]", f"{OURS}[triton]"


def exchanges(plan: Plan) -> list[PersistentLaunch]:
    """The launches of all passes if each of them exchanges states, else none: then there is no floor."""
    launches = [found.launch for found in (plan.forward, plan.backward) if found is not None]
    persistent = [launch for launch in launches if isinstance(launch, PersistentLaunch)]
    return persistent if len(persistent) == len(launches) else []


def floor_of(case: Case, pair: Pair, like: torch.Tensor) -> Call:
    launches = exchanges(pair.plan)
    if not launches:
        families = {found.family for found in (pair.plan.forward, pair.plan.backward) if found}
        family = next(iter(families - {"persistent"}), pair.plan.family)
        raise Unavailable(f"the {family} family has no exchange")
    from bench.measure.exchange_floor import floor

    def call() -> None:
        for launch in launches * case.layers:
            floor(like, case.time, math.ceil(case.batch / launch.block_b), case.directions, case.hidden, launch)

    return call


def forced_like(gru: torch.nn.Module) -> torch.nn.Module:
    assert isinstance(gru, torch.nn.GRU)
    return tritongru.GRU.from_torch(gru, impl="triton", copy=True).train(gru.training)


def forced_of(case: Case, pair: Pair, steps: Steps) -> Call:
    if pair.plan.family != "torch":
        raise Unavailable(f"as shipped, ours takes its {pair.plan.family} kernels here")
    step = steps[OURS]
    return Step(forced_like(pair.theirs), case.mode, step.inputs, Data(step.inputs[0], step.h0, step.dy, step.h0))


BOUND = Rival(
    FLOOR,
    OURS,
    "the grids and the exchanges of our launches, forward and backward, without any math",
    False,
    lambda case, pair, steps: floor_of(case, pair, steps[THEIRS].h0),
)
FORCED_OURS = Rival(
    FORCED,
    OURS,
    "ours with impl='triton' where it would take torch's own GRU",
    True,
    forced_of,
    lambda call, gru: forced_like(gru),
)
GRAPHED_OURS = graphed(OURS_GRAPH, OURS, OURS)

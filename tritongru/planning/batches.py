"""Which batch sizes run the same compiled kernels: in those a sequence has the same bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tritongru.planning.launches import BLOCK_B, PersistentLaunch
from tritongru.planning.plan import Pass, Plan

MOST = 4096  # sequences up to which every batch is looked at


def with_batches(at: Callable[[int], Plan], batch: int) -> Plan:
    """The plan for a batch, and the batches around it, of at most ``MOST`` sequences, for which the plan has the same
    kernels."""
    answer = at(batch)
    if answer.forward is None or batch > MOST:
        return answer
    own, tile = _forms(answer), -(-batch // BLOCK_B)
    low = high = tile
    while low > 1 and _forms(at((low - 1) * BLOCK_B)) == own:
        low -= 1
    while high * BLOCK_B < MOST and _forms(at((high + 1) * BLOCK_B)) == own:
        high += 1
    return replace(answer, batches=((low - 1) * BLOCK_B + 1, high * BLOCK_B))


def _forms(plan: Plan) -> tuple[Any, ...]:
    return tuple(_form(found) for found in (plan.forward, plan.backward))


def _form(found: Pass | None) -> Any:
    launch = None if found is None else found.launch
    return replace(launch, groups=1) if isinstance(launch, PersistentLaunch) else launch

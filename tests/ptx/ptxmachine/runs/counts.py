"""Counts of one time step: those of a run of one step more, less those of a run.

Only the first CTA runs. What it would wait for counts as done: counters of the exchange are far ahead, and its slots
hold zeros, which are no empty words.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from ptxmachine.code.program import Instruction
from ptxmachine.machine.options import Options
from ptxmachine.runs.cases import Case
from ptxmachine.runs.driver import Grid, Host
from ptxmachine.runs.running import blank_saved, results, tensors_of
from ptxmachine.runs.session import Session
from tritongru.planning.launches import AnyLaunch

AHEAD = 1 << 28  # of every target of a few steps, and less than half of what a program that gives up writes
FIRST = 2  # steps of the shorter run: loads that run ahead are then under way


@dataclass
class Step:
    """``instructions``: by category, of one warp; ``memory``: (what, tensor or "shared") -> requests, bytes and sectors
    or wavefronts, of the CTA; ``accesses``: instruction -> [requests, wavefronts, least], of shared memory."""

    instructions: dict[str, float]
    memory: dict[tuple[str, str], Counter[str]]
    accesses: list[tuple[Instruction, list[int]]]

    def total(self, what: str) -> int:
        return sum(found[what] for found in self.memory.values())


class Alone(Session):
    """A session in which only the first CTA of each launch runs, and nothing is checked."""

    def __init__(self) -> None:
        super().__init__(
            Options(
                shared_races=False, global_races=False, uninitialised=False, store_buffer=False, sample=0, checked=1
            )
        )

    def launch(self, compiled: Any, grid: Grid, args: dict[str, Any]) -> None:
        self.options = replace(self.options, absent=tuple(range(1, grid[0] * grid[1] * grid[2])))
        if "counters" in args:  # one buffer, which the slots follow
            words = (args["slots"].data_ptr() - args["counters"].data_ptr()) // 4
            args["counters"][:words] = AHEAD
        super().launch(compiled, grid, args)


def alone(case: Case, host: Host, launch: AnyLaunch) -> Alone:
    """Runs the case's first CTA on operands without values."""
    session = Alone()
    with host.launching(session.launch):
        results(case, tensors_of(case, blank=True), launch, blank_saved(case))
    if host.taken_report() or session.reports:
        raise RuntimeError(f"the run went wrong: {session.lines[:1] or 'a wait was in vain'}")
    return session


def step(case: Case, host: Host, launch: AnyLaunch | None = None) -> Step:
    """Of a case, or of another launch with its sizes; ``case.T`` does not matter."""
    launch = case.launch() if launch is None else launch
    before, after = (alone(replace(case, T=T), host, launch) for T in (FIRST, FIRST + 1))
    warps = after.num_warps
    instructions = {name: (n - before.instructions[name]) / warps for name, n in after.instructions.items()}
    memory = {}
    for key, found in after.memory.items():
        found.subtract(before.memory[key])
        memory[key] = Counter({name: n for name, n in found.items() if n})
    accesses = []
    for place, values in after.accesses.items():
        old = before.accesses.get(place, [0, 0, 0])
        accesses.append((after.places[place], [new - n for new, n in zip(values, old, strict=True)]))
    return Step({name: n for name, n in sorted(instructions.items()) if n}, memory, accesses)

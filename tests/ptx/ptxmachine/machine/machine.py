"""Runs all CTAs of a grid: which group of warps goes next, and when stores become visible, is random."""

from collections import Counter
from collections.abc import Collection, Mapping

import numpy as np

from ptxmachine.code.program import Program
from ptxmachine.machine.cta import Cta
from ptxmachine.machine.group import Group
from ptxmachine.machine.launch import Launch
from ptxmachine.machine.options import Deadlock, Options

TRIES = 200  # how often groups that wait look again though no store has become visible since


class Machine(Launch):
    def __init__(
        self,
        program: Program,
        grid: tuple[int, int, int],
        args: Mapping[str, object],
        options: Options,
        num_warps: int,
        outputs: Collection[str] = (),
        buffered: Collection[str] = ("slots",),
    ) -> None:
        super().__init__(program, grid, args, options, num_warps, outputs, buffered)
        self.cta = [Cta(self, index) for index in range(self.ctas)]
        together = [list(range(num_warps))] if options.lockstep else [[warp] for warp in range(num_warps)]
        for cta in self.cta:
            cta.groups = [Group(self, cta, warps) for warps in together]

    def run(self) -> "Machine":
        with np.errstate(all="ignore"):
            self._run()
        return self

    def _run(self) -> None:
        live = [group for cta in self.cta if cta.index not in self.options.absent for group in cta.groups]
        turns, tries, activity = 0, 0, -1
        while live:
            turns += 1
            if turns > self.options.turns:
                raise Deadlock("too many turns")
            ready = self._ready(live)
            if self.store_buffer and (not ready or self.random.random() < 0.3):
                self.store_buffer.drain_some(whole=not ready)
                if not ready:
                    continue
            if ready:
                group = ready[self.random.randrange(len(ready))]
                group.turn()
                if group.done:
                    live.remove(group)
            else:
                now = sum(allocation.version for allocation in self.memory.allocations)
                tries = tries + 1 if now == activity else 1
                activity = now
                self._look_again(live, tries)
        self.store_buffer.drain_all()

    def _ready(self, live: list[Group]) -> list[Group]:
        ready = [group for group in live if group.ready()]
        if self.options.last is not None and len(ready) > 1:
            return [group for group in ready if group.cta.index != self.options.last] or ready
        return ready

    def _look_again(self, live: list[Group], tries: int) -> None:
        """No group is ready: lets those that look at memory look again, or ends the run."""
        looking = [group for group in live if group.fragments]
        if not looking or tries > TRIES:
            self.report.add("deadlock", None, self._who_waits(live))
            raise Deadlock(self._who_waits(live))
        for group in looking:
            group.stop_waiting()

    def _who_waits(self, live: list[Group]) -> str:
        texts: Counter[str] = Counter()
        for group in live:
            for fragment in group.fragments:
                at = self.program.segments[fragment.segment].body[0]
                texts[f"spins at ptx {at.line} [{at.source}]"] += 1
            for barrier, _ in group.parked:
                texts[f"waits at barrier {barrier}"] += 1
        return "; ".join(f"{n} groups {text}" for text, n in texts.items())

"""Warps that go together, each lane at its own place in the program.

Where lanes part, the group is cut into fragments, each at a segment; fragments that meet are one again.
"""

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from ptxmachine.code.program import Instruction, Segment
from ptxmachine.code.words import Array
from ptxmachine.machine.cta import Cta
from ptxmachine.machine.instructions.approximations import Approximations
from ptxmachine.machine.instructions.asynchronous import Asynchronous
from ptxmachine.machine.instructions.atomics import Atomics
from ptxmachine.machine.instructions.tensor_cores import TensorCores
from ptxmachine.machine.instructions.warp import WarpWide
from ptxmachine.machine.launch import Launch
from ptxmachine.machine.memory import Allocation
from ptxmachine.machine.options import Deadlock

EXIT = -1  # in the place of a segment


@dataclass(eq=False)
class Fragment:
    """Lanes that are at the same place."""

    segment: int
    mask: Array | None  # None: all lanes


class Parted(NamedTuple):
    """How a segment ends whose lanes go two ways."""

    taken: Array
    target: int
    other: int


class Barrier(NamedTuple):
    """How a segment ends at a barrier."""

    ident: int
    lanes: int  # that must come, or 0: all
    after: int


class Group(Atomics, Asynchronous, TensorCores, WarpWide, Approximations):
    """The `k` of the generated code: a method for each instruction that is not plain arithmetic."""

    def __init__(self, launch: Launch, cta: Cta, warps: list[int]) -> None:
        super().__init__(launch, cta, warps)
        self.fragments = [Fragment(0, None)]
        self.parked: list[tuple[int, Fragment]] = []  # by barrier
        self.done = False
        self._registers: list[Any] = []  # None: never written
        self._waiting: tuple[Allocation, int] | None = None  # for a newer version of it
        self._exited: Array | None = None  # lanes

    def ready(self) -> bool:
        if not self.fragments:
            return False
        return self._waiting is None or self._waiting[0].version != self._waiting[1]

    def stop_waiting(self) -> None:
        self._waiting = None

    def go_on(self, barrier: int) -> list[int]:
        """A barrier opens. Returns the agents that waited at it."""
        agents = []
        for ident, fragment in self.parked:
            if ident == barrier:
                self._add(fragment.segment, fragment.mask)
                agents += self.agents_of(fragment.mask).tolist()
        self.parked = [waits for waits in self.parked if waits[0] != barrier]
        return agents

    # Running

    def turn(self) -> None:
        """Runs a fragment until others must have a chance to run."""
        self._waiting = None
        choices = self.launch.random
        if len(self.fragments) > 1 and choices.random() < 0.1:
            fragment: Fragment | None = self.fragments.pop(choices.randrange(len(self.fragments)))
        else:
            fragment = self._take_first()
        while fragment is not None:
            fragment = self._run(fragment)

    def _run(self, fragment: Fragment) -> Fragment | None:
        """Runs one segment. Returns what runs next, or None where the turn ends."""
        segment, mask = self.launch.program.segments[fragment.segment], fragment.mask
        warps = self.num_warps if mask is None else int(mask.any(axis=1).sum())
        self.launch.segment_counts[segment.n] += warps
        if self.counted:
            self.launch.sample_counts[segment.n] += warps
        then = self._call(segment, mask)
        if isinstance(then, Barrier):
            self._park(then, segment, mask)
            return None
        if isinstance(then, Parted):
            self.launch.stats["divergent branches"] += 1
            self._add(then.target, then.taken)
            self._add(then.other, (self.true if mask is None else mask) & ~then.taken)
            return self._take_first()
        if then == EXIT:
            self._exit(mask)
            return None
        if self.launch.program.segments[then].sync_load:
            self._add(then, mask)
            looked = self.looked.get(then)
            if looked is not None and looked[0].version == looked[1]:
                self._waiting = looked
            return None
        if self.fragments:
            self._add(then, mask)
            return self._take_first()
        fragment.segment = then
        return fragment

    def _call(self, segment: Segment, mask: Array | None) -> int | Parted | Barrier:
        program = self.launch.program
        function, origin, _ = program.code(segment, mask is not None)
        missing = len(program.widths) - len(self._registers)
        if missing > 0:
            self._registers += [None] * missing
        try:
            then: int | Parted | Barrier = function(self, self._registers, mask)
        except (TypeError, AttributeError) as error:
            inner = error.__traceback__.tb_next if error.__traceback__ else None
            at = origin.get(inner.tb_lineno) if inner else None
            unwritten = self._unwritten(at) if at else []
            if at is None or not unwritten:
                raise
            self.launch.report.add("uninitialised register", at, f"{unwritten}")
            raise Deadlock(f"uninitialised register {unwritten} at ptx {at.line}: {at.text}") from error
        return then

    def _unwritten(self, at: Instruction) -> list[str]:
        """The registers that an instruction reads and nothing has written."""
        writes = not at.op.startswith(("st", "red.", "cp.", "bra"))  # its first operand
        read = " ".join([at.pred or "", *(at.args[1:] if writes else at.args)])
        special = ("%tid", "%cta", "%ncta")
        names = [name for name in re.findall(r"%[a-z]+_?\w*\d+", read) if not name.startswith(special)]
        return [name for name in names if self._registers[self.launch.program.reg(name)] is None]

    def _park(self, barrier: Barrier, segment: Segment, mask: Array | None) -> None:
        if self.divergent(mask):
            self.launch.report.add("barrier in divergent warp", segment.body[-1], "")
        self.parked.append((barrier.ident, Fragment(barrier.after, mask)))
        self.cta.arrive(barrier.ident, barrier.lanes, self._lanes(mask))

    def _exit(self, mask: Array | None) -> None:
        gone = self.true if mask is None else mask
        self._exited = gone if self._exited is None else self._exited | gone
        self.check_copies_at_exit()
        self.cta.leave(self._lanes(mask))
        if not self.fragments and not self.parked:
            self.done = True

    # Fragments

    def _lanes(self, mask: Array | None) -> int:
        return 32 * self.num_warps if mask is None else int(mask.sum())

    def _take_first(self) -> Fragment:
        """The fragment that is furthest behind."""
        first = min(self.fragments, key=lambda fragment: fragment.segment)
        self.fragments.remove(first)
        return first

    def _add(self, segment: int, mask: Array | None) -> None:
        for fragment in self.fragments:
            if fragment.segment == segment:
                if fragment.mask is not None and mask is not None:
                    both = fragment.mask | mask
                    fragment.mask = None if self._exited is None and both.all() else both
                return
        self.fragments.append(Fragment(segment, mask))

    # How segments end

    def branch(self, predicate: Array, target: int, other: int, M: Array | None) -> int | Parted:
        taken = predicate if M is None else predicate & M
        if not taken.any():
            return other
        if taken.all() if M is None else (taken == M).all():
            return target
        return Parted(taken, target, other)

    def barrier(self, ident: int, count: int, after: int, M: Array | None) -> Barrier:
        return Barrier(ident, count, after)

"""A CTA: its place in the grid, its shared memory, its barriers and its groups of warps."""

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from ptxmachine.machine.launch import Launch
from ptxmachine.machine.shared_memory import SharedMemory

if TYPE_CHECKING:
    from ptxmachine.machine.group import Group


class Cta:
    def __init__(self, launch: Launch, index: int) -> None:
        x, y, _ = launch.grid
        self.index = index
        self.xyz = index % x, index // x % y, index // (x * y)
        self.shared = SharedMemory(launch, index)
        self.groups: list[Group] = []
        self._clocks = launch.clocks
        self._lanes = 32 * launch.num_warps  # that have not left
        self._arrived: defaultdict[int, int] = defaultdict(int)  # lanes, by barrier
        self._counts: dict[int, int] = {}  # lanes that a barrier waits for, or 0: all that have not left

    def arrive(self, barrier: int, count: int, lanes: int) -> None:
        """So many lanes wait at a barrier of `count` lanes, or of all that have not left if that is 0."""
        self._arrived[barrier] += lanes
        self._counts[barrier] = count
        self._open(barrier)

    def leave(self, lanes: int) -> None:
        self._lanes -= lanes
        for barrier, arrived in list(self._arrived.items()):
            if arrived:
                self._open(barrier)

    def _open(self, barrier: int) -> None:
        """Lets those at a barrier go on if all are there."""
        if self._arrived[barrier] < (self._counts[barrier] or self._lanes):
            return
        self._arrived[barrier] = 0
        agents = [agent for group in self.groups for agent in group.go_on(barrier)]
        self._clocks.join(np.unique(agents))

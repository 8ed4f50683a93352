"""Which accesses are ordered: vector clocks with one component an agent.

A barrier joins its warps. A release publishes what its warp knew at its last barrier, for its own lanes' later stores
are not ordered by it; an acquire takes that over. Of words that are their own flags a second set of clocks takes over
the writer's with each volatile read.
"""

import numpy as np

from ptxmachine.code.words import Array, i32


class Clocks:
    def __init__(self, agents: int) -> None:
        self.ordered = np.zeros((agents, agents), i32)  # by barriers, releases and acquires; a row is what one knows
        np.fill_diagonal(self.ordered, 1)
        self.flagged = self.ordered.copy()  # also by words that are their own flags
        self._writers: dict[tuple[int, int], Array] = {}  # (agent, its clock) -> what it knew when it wrote such words
        self._released: dict[int, list[Array]] = {}  # address -> what releases there have published, of both sets

    def join(self, agents: Array) -> None:
        """A barrier of these agents."""
        for known in (self.ordered, self.flagged):
            known[agents] = known[agents].max(axis=0)
        self.advance(agents)

    def advance(self, agents: Array) -> None:
        for known in (self.ordered, self.flagged):
            known[agents, agents] += 1

    def release(self, agent: int, address: int) -> Array:
        """Publishes at an address. Returns the clocks of what must have become visible before."""
        rows: list[Array] = []
        for known in (self.ordered, self.flagged):
            row = known[agent].copy()
            row[agent] -= 1  # lanes of the warp are not ordered with the one that releases
            rows.append(row)
        before = self._released.get(address)
        self._released[address] = (
            rows if before is None else [np.maximum(row, old) for row, old in zip(rows, before, strict=True)]
        )
        return rows[0]

    def acquire(self, agent: int, address: int) -> None:
        for known, published in zip((self.ordered, self.flagged), self._released.get(address, ()), strict=False):
            np.maximum(known[agent], published, out=known[agent])

    def remember(self, agents: Array) -> None:
        """These agents write words that are their own flags."""
        for agent in np.unique(agents).tolist():
            self._writers[agent, int(self.ordered[agent, agent])] = self.flagged[agent].copy()

    def take_over(self, readers: Array, writers: Array, clocks: Array) -> None:
        """Agents (n, 1) read such words, each of which a writer (or -1) wrote at a clock, both (n, words)."""
        keep = writers >= 0
        pairs = np.stack([np.broadcast_to(readers, writers.shape)[keep], writers[keep], clocks[keep]], 1)
        for reader, writer, clock in np.unique(pairs, axis=0).tolist():
            if self.flagged[reader, writer] >= clock:
                continue
            known = self._writers.get((writer, clock))
            if known is not None:
                np.maximum(self.flagged[reader], known, out=self.flagged[reader])
            if self.flagged[reader, writer] < clock:
                self.flagged[reader, writer] = clock

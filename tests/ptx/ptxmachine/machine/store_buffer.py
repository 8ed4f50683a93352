"""Stores that have not become visible yet: they leave late and out of order, unless a release covers them."""

import random
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from ptxmachine.code.words import Array
from ptxmachine.machine.memory import Allocation


@dataclass
class Stores:
    """Stores of one instruction, an entry a word."""

    allocation: Allocation
    size: int  # bytes of a word
    index: Array  # of the word in the allocation
    values: Array
    agent: Array
    clock: Array  # the agent's, at the store

    def leave(self, gone: Array) -> None:
        """Makes some of them visible and keeps the others."""
        self.allocation.views[self.size][self.index[gone]] = self.values[gone]
        self.allocation.version += 1
        self.index, self.values = self.index[~gone], self.values[~gone]
        self.agent, self.clock = self.agent[~gone], self.clock[~gone]

    def blocks(self, nbytes: int) -> Array:
        """The blocks of so many bytes in which they begin."""
        block: Array = self.index * self.size // nbytes
        return block


class StoreBuffer:
    def __init__(self, choices: random.Random, numbers: np.random.Generator) -> None:
        self._random, self._numbers = choices, numbers
        self._stores: defaultdict[int, list[Stores]] = defaultdict(list)  # by CTA

    def __bool__(self) -> bool:
        return bool(self._stores)

    def add(self, cta: int, stores: Stores) -> None:
        self._stores[cta].append(stores)

    def drain_all(self) -> None:
        for cta in list(self._stores):
            self.drain(cta)

    def drain(self, cta: int, known: Array | None = None) -> None:
        """The stores of a CTA that a release covers, whose warp knows these clocks; or all."""
        left = []
        for stores in self._stores.get(cta, ()):
            gone = np.ones(len(stores.index), bool) if known is None else known[stores.agent] >= stores.clock
            if gone.any():
                stores.leave(gone)
            if len(stores.index):
                left.append(stores)
        if left:
            self._stores[cta] = left
        else:
            self._stores.pop(cta, None)

    def drain_some(self, whole: bool) -> None:
        """A random part of the stores of a random instruction, or all of them."""
        cta = self._random.choice(list(self._stores))
        waiting = self._stores[cta]
        i = self._first_of_place(waiting, self._random.randrange(len(waiting)))
        n = len(waiting[i].index)
        waiting[i].leave(np.ones(n, bool) if whole else self._numbers.random(n) < self._random.choice((0.1, 0.5, 1.0)))
        if not len(waiting[i].index):
            waiting.pop(i)
        if not waiting:
            del self._stores[cta]

    def _first_of_place(self, waiting: list[Stores], i: int) -> int:
        """Stores to the same place keep their order: an earlier entry that overlaps goes first."""
        chosen = waiting[i]
        for j in range(i):
            same = waiting[j].allocation is chosen.allocation
            if same and np.intersect1d(waiting[j].blocks(4), chosen.blocks(4)).size:
                return j
        return i

    def overlaps(self, cta: int, allocation: Allocation, offsets: Array) -> bool:
        """Whether a CTA has stores left near byte offsets that it reads."""
        return any(
            stores.allocation is allocation and np.intersect1d(stores.blocks(16), offsets // 16).size > 0
            for stores in self._stores.get(cta, ())
        )

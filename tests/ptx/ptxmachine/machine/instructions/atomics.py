"""Atomic instructions on global memory, lane after lane."""

from typing import Any

import numpy as np

from ptxmachine.code.words import Array
from ptxmachine.machine.instructions.global_memory import GlobalMemory
from ptxmachine.machine.instructions.global_races import Access
from ptxmachine.machine.memory import UINT


class Atomics(GlobalMemory):
    def atomic(
        self,
        addresses: Array,
        mask: Array | None,
        size: int,
        what: str,
        values: list[Array],
        how: str,
        scope: str,
        n: int,
    ) -> Array:
        """What was there before."""
        found = np.zeros(32 * self.num_warps, UINT[size])
        who = self.active(mask)
        if who.size:
            at = self.launch.instructions[n]
            addresses = addresses.ravel()[who]
            self.check_aligned(addresses, size, at, "atomic")
            operands = [value.ravel() for value in values]
            releases = how in ("release", "acq_rel") and scope != "cta"
            acquires = how in ("acquire", "acq_rel") and scope != "cta"
            for allocation, own in self.find(addresses, size, at, "atomic"):
                access = Access(allocation, addresses[own], size, who[own], at)
                self.check_output(access)
                self._atomic(access, what, operands, found, releases, acquires)
        return found.reshape(self.shape)

    def _atomic(
        self, access: Access, what: str, operands: list[Array], found: Array, releases: bool, acquires: bool
    ) -> None:
        allocation, clocks = access.allocation, self.launch.clocks
        words = allocation.views[access.nbytes]
        for address, lane in zip(access.addresses.tolist(), access.who.tolist(), strict=True):
            agent = int(self.agent_of[lane])
            if releases:
                self.launch.store_buffer.drain(self.cta.index, clocks.release(agent, address))
            i = (address - allocation.base) // access.nbytes
            found[lane] = words[i]
            words[i] = combined(what, words[i], [operand[lane] for operand in operands])
            allocation.version += 1
            if acquires:
                clocks.acquire(agent, address)
        self.looked.clear()
        self.count_global(access, "atom")


def combined(what: str, old: Any, operands: list[Any]) -> Any:
    first = operands[0]
    if what == "add":
        return old + first
    if what == "exch":
        return first
    if what == "cas":
        return operands[1] if old == first else old
    if what in ("max", "min"):
        return max(old, first) if what == "max" else min(old, first)
    if what == "or":
        return old | first
    raise NotImplementedError(what)

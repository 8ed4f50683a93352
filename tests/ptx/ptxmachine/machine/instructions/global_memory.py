"""Loads and stores of global memory, and fences."""

from collections.abc import Iterator

import numpy as np

from ptxmachine.code.program import Instruction
from ptxmachine.code.words import Array, u64
from ptxmachine.machine.instructions.global_races import Access, GlobalRaces
from ptxmachine.machine.memory import EMPTY, POISON, UINT, Allocation
from ptxmachine.machine.store_buffer import Stores

WHOLE = slice(None)


class GlobalMemory(GlobalRaces):
    def load_global(
        self, addresses: Array, mask: Array | None, size: int, vector: int, how: str, n: int
    ) -> list[Array]:
        who = self.active(mask)
        if not who.size:
            return [np.zeros(self.shape, UINT[size])] * vector
        at = self.launch.instructions[n]
        addresses = self.of_active(addresses, mask, who)
        self.check_aligned(addresses, size * vector, at, "load")
        values = np.full((who.size, vector), POISON[size], UINT[size])
        for allocation, own in self.find(addresses, size * vector, at, "load"):
            values[own] = self._load(Access(allocation, addresses[own], size * vector, who[own], at), size, how)
        return self.spread(values, mask, who)

    def _load(self, access: Access, size: int, how: str) -> Array:
        allocation, buffer = access.allocation, self.launch.store_buffer
        if allocation.buffered and buffer and buffer.overlaps(self.cta.index, allocation, access.offsets):
            buffer.drain(self.cta.index)
        index = access.offsets // size
        values: Array = allocation.views[size][index[:, None] + np.arange(access.nbytes // size)]
        if allocation.shadow is not None:
            seen = None
            if how == "volatile" and allocation.exchange and size == 4:  # a word that is EMPTY is looked at again
                seen = np.repeat(values != EMPTY, 4 // allocation.granule, axis=1)
            self.check_read(access, how, seen)
        if how in ("volatile", "acquire", "relaxed"):
            self.looked[self.launch.segment_of[access.at.n]] = allocation, allocation.version
        if how == "acquire":
            for address, lane in zip(access.addresses.tolist(), access.who.tolist(), strict=True):
                self.launch.clocks.acquire(int(self.agent_of[lane]), address)
        self.count_global(access, "ld." + how)
        return values

    def store_global(
        self, addresses: Array, mask: Array | None, size: int, vector: int, values: list[Array], how: str, n: int
    ) -> None:
        who = self.active(mask)
        if not who.size:
            return
        at = self.launch.instructions[n]
        addresses = self.of_active(addresses, mask, who)
        self.check_aligned(addresses, size * vector, at, "store")
        self.looked.clear()
        stacked = self.stacked(values, mask, who)
        for allocation, own in self.find(addresses, size * vector, at, "store"):
            self._store(Access(allocation, addresses[own], size * vector, who[own], at), size, stacked[own])

    def _store(self, access: Access, size: int, values: Array) -> None:
        allocation = access.allocation
        self.check_output(access)
        self.check_write(access)
        self.check_same_place(access.offsets, values, access.at, allocation.name, "redundant stores")
        index = (access.offsets // size)[:, None] + np.arange(values.shape[1])
        if allocation.buffered:
            agents = np.repeat(self.agent_of[access.who], values.shape[1])
            clocks = self.launch.clocks.ordered[agents, agents]
            stores = Stores(allocation, size, index.ravel(), values.ravel(), agents, clocks)
            self.launch.store_buffer.add(self.cta.index, stores)
        else:
            allocation.views[size][index] = values
            allocation.version += 1
        self.count_global(access, "st")

    def find(
        self, addresses: Array, nbytes: int, at: Instruction, what: str
    ) -> Iterator[tuple[Allocation, Array | slice]]:
        """Allocations and which of the accesses fall in them. Those that fall in none are reported."""
        around = self.launch.memory.around(addresses, nbytes)
        if around is not None:
            yield around, WHOLE
            return
        nearest = self.launch.memory.nearest(addresses)
        for j in np.unique(nearest).tolist():
            own = np.flatnonzero(nearest == j)
            if j < 0:
                where = f"before all tensors, address {int(addresses[own[0]]):#x}"
                self._report_outside(own, nbytes, at, what, where)
                continue
            allocation = self.launch.memory.allocations[j]
            end = allocation.base + allocation.nbytes
            inside = addresses[own] + u64(nbytes) <= u64(end)
            if inside.any():
                yield allocation, own[inside]
            outside = own[~inside]
            if outside.size:
                after = int(addresses[outside[0]]) - allocation.base
                where = f"{after} bytes after the start of {allocation.name} ({allocation.nbytes} bytes)"
                self._report_outside(outside, nbytes, at, what, where)

    def _report_outside(self, lanes: Array, nbytes: int, at: Instruction, what: str, where: str) -> None:
        text = f"{what} of {nbytes} bytes, {len(lanes)} lanes, {where}; cta {self.cta.index}"
        self.launch.report.add("global out of bounds", at, text)

    def check_aligned(self, addresses: Array, nbytes: int, at: Instruction, what: str) -> None:
        odd = addresses & u64(nbytes - 1)
        if odd.any():
            text = f"{what} of {nbytes} bytes at {int(addresses[odd != 0][0]):#x}"
            self.launch.report.add("misaligned global", at, text)

    def check_output(self, access: Access) -> None:
        if not access.allocation.output:
            self.launch.report.add("write into an input", access.at, access.allocation.name)

    def count_global(self, access: Access, what: str) -> None:
        if self.counted:
            self.launch.accesses.count_global(
                access.allocation.name, what, access.addresses, self.warp_of[access.who], access.nbytes
            )

    # Order

    def fence(self, mask: Array | None) -> None:
        """What these warps knew when they stored, they make visible."""
        for agent in self.agents_of(mask):
            self.launch.store_buffer.drain(self.cta.index, self.launch.clocks.ordered[agent])

    def fence_proxy(self, mask: Array | None) -> None:
        self.shared.fence([self.warps[i] for i in self.warps_of(mask)])

    def warp_sync(self, mask: Array | None) -> None:
        self.launch.clocks.advance(self.agents_of(mask))

"""Copies from global to shared memory that arrive when they are waited for."""

from typing import Any, NamedTuple

import numpy as np

from ptxmachine.code.program import Instruction
from ptxmachine.code.words import Array, i64, u8, u32
from ptxmachine.machine.cta import Cta
from ptxmachine.machine.instructions.global_memory import GlobalMemory
from ptxmachine.machine.instructions.global_races import Access
from ptxmachine.machine.instructions.shared_memory import SharedMemoryAccess
from ptxmachine.machine.launch import Launch


class Copy(NamedTuple):
    offsets: Array  # in shared memory
    values: Array  # (lanes, bytes of each)
    who: Array


class Asynchronous(GlobalMemory, SharedMemoryAccess):
    def __init__(self, launch: Launch, cta: Cta, warps: list[int]) -> None:
        super().__init__(launch, cta, warps)
        self._open: list[Copy] = []  # not in a group of copies yet
        self._committed: list[list[Copy]] = []

    def cp_async(self, target: Any, source: Array, mask: Array | None, nbytes: int, size: Any, n: int) -> None:
        """`size` are the bytes that are read of each lane's `nbytes`, None for all; the others become 0."""
        who = self.active(mask)
        if not who.size:
            return
        at = self.launch.instructions[n]
        offsets = self.shared.inside(self.full(target, u32).ravel()[who], nbytes, at, "cp.async")
        sizes = np.full(who.size, nbytes, i64)
        if size is not None:
            sizes = self.full(size, u32).ravel()[who].astype(i64)
        addresses = source.ravel()[who]
        self.check_aligned(addresses[sizes > 0], nbytes, at, "cp.async")
        values = self._read(addresses, sizes, nbytes, who, at)
        self.shared.begin_copy(offsets, nbytes, self.warp_of[who], self.lane_of[who], at)
        self.count_shared("cp.async", offsets, who, nbytes, at)
        self._open.append(Copy(offsets, values, who))

    def _read(self, addresses: Array, sizes: Array, nbytes: int, who: Array, at: Instruction) -> Array:
        values = np.zeros((who.size, nbytes), u8)
        for size in np.unique(sizes[sizes > 0]).tolist():
            lanes = np.flatnonzero(sizes == size)
            for allocation, own in self.find(addresses[lanes], size, at, "cp.async"):
                rows = lanes[own]
                access = Access(allocation, addresses[rows], size, who[rows], at)
                values[rows, :size] = allocation.bytes[access.offsets[:, None] + np.arange(size)]
                self.check_read(access, "ca")
                self.count_global(access, "cp.async")
        return values

    def cp_commit(self, M: Array | None) -> None:
        self._committed.append(self._open)
        self._open = []

    def cp_wait(self, left: int, M: Array | None) -> None:
        while len(self._committed) > left:
            for offsets, values, who in self._committed.pop(0):
                self.shared.end_copy(offsets, values, self.warp_of[who], self.lane_of[who])

    def check_copies_at_exit(self) -> None:
        if self._open or self._committed:
            text = f"{len(self._committed)} groups at the end"
            self.launch.report.add("cp.async never waited for", None, text)
            self._open, self._committed = [], []

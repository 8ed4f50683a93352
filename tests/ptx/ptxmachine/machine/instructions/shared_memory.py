"""Loads and stores of shared memory, of single lanes and of matrices of eight rows of 16 bytes."""

import numpy as np

from ptxmachine.code.program import Instruction
from ptxmachine.code.words import Array, u16, u32
from ptxmachine.machine.instructions.lanes import Lanes
from ptxmachine.machine.memory import UINT
from ptxmachine.machine.shared_memory import ANY_LANE

ROW = 16  # bytes of a row of a matrix
REDUNDANT = "redundant shared stores"


class SharedMemoryAccess(Lanes):
    def load_shared(self, addresses: Array, mask: Array | None, size: int, vector: int, n: int) -> list[Array]:
        who = self.active(mask)
        if not who.size:
            return [np.zeros(self.shape, UINT[size])] * vector
        at, nbytes = self.launch.instructions[n], size * vector
        offsets = self.shared.inside(self.of_active(addresses, mask, who), nbytes, at, "load")
        self.shared.read(offsets, nbytes, self.warp_of[who], self.lane_of[who], at)
        values = self.shared.views[size][(offsets // size)[:, None] + np.arange(vector)]
        self.count_shared("lds", offsets, who, nbytes, at)
        return self.spread(values, mask, who)

    def store_shared(
        self, addresses: Array, mask: Array | None, size: int, vector: int, values: list[Array], n: int
    ) -> None:
        who = self.active(mask)
        if not who.size:
            return
        at, nbytes = self.launch.instructions[n], size * vector
        offsets = self.shared.inside(self.of_active(addresses, mask, who), nbytes, at, "store")
        stacked = self.stacked(values, mask, who)
        self.check_same_place(offsets, stacked, at, "shared", REDUNDANT)
        self.shared.write(offsets, nbytes, self.warp_of[who], self.lane_of[who], at, stacked)
        self.shared.views[size][(offsets // size)[:, None] + np.arange(vector)] = stacked
        self.count_shared("sts", offsets, who, nbytes, at)

    def ldmatrix(self, addresses: Array, mask: Array | None, count: int, transposed: bool, n: int) -> Array:
        """(matrices, warps, 32)"""
        at = self.launch.instructions[n]
        self.check_whole(mask, at, "ldmatrix")
        warps = self.warps_of(mask)
        found = np.zeros((count, *self.shape), u32)
        if warps.size:
            offsets, who = self._rows(addresses, warps, count, at, "ldmatrix")
            self.shared.read(offsets, ROW, self.warp_of[who], ANY_LANE, at)
            matrices = self.shared.views[2][(offsets // 2)[:, None] + np.arange(8)].reshape(warps.size, count, 8, 8)
            if transposed:
                matrices = matrices.swapaxes(2, 3)
            words = np.ascontiguousarray(matrices).view(u32).reshape(warps.size, count, 32)
            found[:, warps] = words.swapaxes(0, 1)
            self.count_shared("ldsm", offsets, who, ROW, at)
        return found

    def stmatrix(self, addresses: Array, mask: Array | None, values: list[Array], transposed: bool, n: int) -> None:
        at = self.launch.instructions[n]
        self.check_whole(mask, at, "stmatrix")
        warps, count = self.warps_of(mask), len(values)
        if not warps.size:
            return
        offsets, who = self._rows(addresses, warps, count, at, "stmatrix")
        words = np.stack([self.full(value, u32)[warps] for value in values], 1)
        matrices = np.ascontiguousarray(words).view(u16).reshape(warps.size, count, 8, 8)
        if transposed:
            matrices = matrices.swapaxes(2, 3)
        rows = matrices.reshape(-1, 8)
        self.check_same_place(offsets, rows, at, "shared (stmatrix)", REDUNDANT)
        self.shared.write(offsets, ROW, self.warp_of[who], ANY_LANE, at, rows)
        self.shared.views[2][(offsets // 2)[:, None] + np.arange(8)] = rows
        self.count_shared("stsm", offsets, who, ROW, at)

    def _rows(self, addresses: Array, warps: Array, count: int, at: Instruction, what: str) -> tuple[Array, Array]:
        """The offsets of all rows, and the lanes that give them: the first eight of a warp for the first matrix ..."""
        offsets = self.shared.inside(addresses[warps, : 8 * count].ravel(), ROW, at, what)
        return offsets, (warps[:, None] * 32 + np.arange(8 * count)).ravel()

    def count_shared(self, what: str, offsets: Array, who: Array, nbytes: int, at: Instruction) -> None:
        if self.counted:
            self.launch.accesses.count_shared(at, what, offsets, self.warp_of[who], self.lane_of[who], nbytes)

"""The lanes of a group of warps, and the values that they hold: arrays (warps, 32)."""

from typing import Any

import numpy as np

from ptxmachine.code.program import Instruction
from ptxmachine.code.words import Array, i64, u16, u32, u64
from ptxmachine.machine.cta import Cta
from ptxmachine.machine.launch import Launch
from ptxmachine.machine.memory import POISON, Allocation

POISON_OF: dict[Any, Any] = {u16: POISON[2], u32: POISON[4], u64: POISON[8], np.bool_: np.bool_(False)}


class Lanes:
    """`who` are lanes by number, of all warps of the group; `warp_of`, `lane_of` and `agent_of` tell where they are."""

    def __init__(self, launch: Launch, cta: Cta, warps: list[int]) -> None:
        self.launch, self.cta, self.shared = launch, cta, cta.shared
        self.warps, self.num_warps = warps, len(warps)
        self.shape = self.num_warps, 32
        self.counted = launch.options.sample == cta.index  # the accesses of this CTA are
        self.looked: dict[int, tuple[Allocation, int]] = {}  # segments of ordered loads -> the version they have seen
        lane = np.broadcast_to(np.arange(32), self.shape)
        warp = np.broadcast_to(np.array(warps)[:, None], self.shape)
        self.everyone = np.arange(32 * self.num_warps)
        self.warp_of, self.lane_of = warp.astype(i64).ravel(), lane.astype(i64).ravel()
        first = cta.index * launch.num_warps
        self.agent_of = self.warp_of + first
        self.agents = np.array(warps) + first

        # What the generated code reads
        self.params = launch.parameters
        self.true, self.false = np.ones(self.shape, bool), np.zeros(self.shape, bool)
        self.zero32, self.one32 = np.zeros(self.shape, u32), np.ones(self.shape, u32)
        self.laneid, self.tid_x = lane.astype(u32), (warp * 32 + lane).astype(u32)
        self.ntid_x = np.full(self.shape, 32 * launch.num_warps, u32)
        self.cta_x, self.cta_y, self.cta_z = (np.full(self.shape, i, u32) for i in cta.xyz)
        self.ncta_x, self.ncta_y, self.ncta_z = (np.full(self.shape, n, u32) for n in launch.grid)

    # Values

    def full(self, value: Any, dtype: Any) -> Array:
        if isinstance(value, np.ndarray) and value.shape == self.shape:
            return value if value.dtype == dtype else value.astype(dtype)
        return np.full(self.shape, value, dtype)

    def some(self, value: Array | None, dtype: Any) -> Array:
        """Half of a packed register that was never written: LLVM packs such halves and takes only the other out."""
        if value is None:
            self.launch.stats["undefined half packed"] += 1
            return np.full(self.shape, POISON_OF[dtype], dtype)
        return value

    def sel(self, mask: Array, new: Array, old: Array | None) -> Array:
        return np.where(mask, new, POISON_OF[new.dtype.type] if old is None else old)

    def clock(self) -> Array:
        return self.zero32

    # Lanes that take part

    def active(self, mask: Array | None) -> Array:
        return self.everyone if mask is None else np.flatnonzero(mask)

    def of_active(self, values: Array, mask: Array | None, who: Array) -> Array:
        return values.ravel() if mask is None else values.ravel()[who]

    def stacked(self, values: list[Array], mask: Array | None, who: Array) -> Array:
        """(lanes that take part, values of each)"""
        return np.stack([self.of_active(value, mask, who) for value in values], 1)

    def spread(self, values: Array, mask: Array | None, who: Array) -> list[Array]:
        """Such values, each for all lanes: 0 in those that take no part."""
        if mask is None:
            return [column.reshape(self.shape) for column in values.T]
        found = []
        for column in values.T:
            whole = np.zeros(32 * self.num_warps, values.dtype)
            whole[who] = column
            found.append(whole.reshape(self.shape))
        return found

    def agents_of(self, mask: Array | None) -> Array:
        return self.agents if mask is None else self.agents[mask.any(axis=1)]

    def warps_of(self, mask: Array | None) -> Array:
        """The warps that take part, by their place in the group."""
        return np.arange(self.num_warps) if mask is None else np.flatnonzero(mask.any(axis=1))

    # Checks

    def divergent(self, mask: Array | None) -> bool:
        """Whether only a part of a warp takes part."""
        return mask is not None and not (mask.all(axis=1) | ~mask.any(axis=1)).all()

    def check_whole(self, mask: Array | None, at: Instruction | None, what: str) -> None:
        if self.divergent(mask):
            self.launch.report.add("warp-wide instruction in a divergent warp", at, what)

    def check_same_place(self, offsets: Array, values: Array, at: Instruction, where: str, stat: str) -> None:
        """Lanes that store in one place must store the same values, (lanes, n)."""
        if not self.shared.checked or len(np.unique(offsets)) == len(offsets):
            return
        order = np.argsort(offsets, kind="stable")
        same = offsets[order][1:] == offsets[order][:-1]
        if (values[order][1:][same] != values[order][:-1][same]).any():
            self.launch.report.add("lanes store different values in one place", at, where)
        else:
            self.launch.stats[stat] += int(same.sum())

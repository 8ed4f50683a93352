"""Instructions of a warp as a whole: shuffles, reductions, votes."""

from typing import Any

import numpy as np

from ptxmachine.code.words import Array, i64, u32
from ptxmachine.machine.instructions.lanes import Lanes

REDUCTIONS = {
    "max": np.maximum,
    "min": np.minimum,
    "add": np.add,
    "or": np.bitwise_or,
    "and": np.bitwise_and,
    "xor": np.bitwise_xor,
}


class WarpWide(Lanes):
    def shfl(self, mode: str, a: Any, b: Any, c: Any, members: Any, mask: Array | None) -> tuple[Array, Array]:
        """The values of other lanes, and whether there are such lanes. `c` has the clamp and, from bit 8, the mask of
        the segment."""
        b, c = (self.full(value, u32).astype(i64) for value in (b, c))
        lane = self.lane_of.reshape(self.shape)
        segment, clamp = (c >> 8) & 31, c & 31
        low = lane & segment
        bound = low | (clamp & ~segment)
        source = {"bfly": lane ^ b, "idx": low | (b & ~segment), "up": lane - b, "down": lane + b}[mode]
        there = source >= bound if mode == "up" else source <= bound
        source = np.where(there, source, lane) & 31
        if mask is not None and not np.take_along_axis(mask, source, 1)[mask].all():
            self.launch.report.add("shfl from an inactive lane", None, mode)
        return np.take_along_axis(self.full(a, u32), source, 1), there

    def redux(self, what: str, ty: str, a: Any, members: Any, mask: Array | None) -> Array:
        self.check_whole(mask, None, "redux")
        values = self.full(a, np.asarray(a).dtype)
        found = REDUCTIONS[what].reduce(values, axis=1, keepdims=True, dtype=values.dtype)
        return np.repeat(found, 32, 1).view(u32)

    def vote(self, what: str, predicate: Any, mask: Array | None) -> Array:
        predicate = self.full(predicate, np.bool_)
        live = predicate if mask is None else predicate & mask
        if what == "ballot":
            bits = live.astype(u32) << np.arange(32, dtype=u32)
            found = bits.sum(1, keepdims=True, dtype=u32)
        elif what == "any":
            found = live.any(1, keepdims=True)
        elif what == "all":
            found = (predicate if mask is None else predicate | ~mask).all(1, keepdims=True)
        else:
            raise NotImplementedError(what)
        return np.repeat(found, 32, 1)

"""Which rows of the time-major tensors belong to a batch tile at a step."""

import triton
import triton.language as tl


@triton.jit
def tile_at(t, i_b, T, B, offsets, BB: tl.constexpr, PACKED: tl.constexpr):
    """First row of batch tile i_b at step t and how many rows are left from there: none outside [0, T)."""
    inside = (t >= 0) & (t < T)
    if PACKED:
        first = tl.load(offsets + t, mask=inside, other=0)
        count = tl.load(offsets + t + 1, mask=inside, other=0) - first
    else:
        first = t.to(tl.int64) * B
        count = tl.where(inside, B, 0)
    return first + i_b * BB, count - i_b * BB

"""What a kernel locates by its program index: the rows of a batch tile at a step, and the recurrent bias."""

import triton
import triton.language as tl


@triton.jit
def tile_at(t, i_b, T, B, N, offsets, BB: tl.constexpr, PACKED: tl.constexpr):
    """First row of batch tile i_b at step t and how many rows are left from there: none outside [0, T).

    On a GPU ``offsets`` are not checked. Whatever they hold, a step has at most B rows, all among the N."""
    inside = (t >= 0) & (t < T)
    if PACKED:
        # Read without a sign, a negative value lies behind all rows: one minimum sets both bounds, and 32 bits hold it.
        last = N.to(tl.uint64)
        start = tl.minimum(tl.load(offsets + t, mask=inside, other=0).to(tl.uint64), last).to(N.dtype)
        after = tl.minimum(tl.load(offsets + t + 1, mask=inside, other=0).to(tl.uint64), last).to(N.dtype)
        count = tl.minimum(tl.maximum(after - start, 0), B)
        first = start.to(tl.int64)
    else:
        first = t.to(tl.int64) * B
        count = tl.where(inside, B, 0)
    return first + i_b * BB, count - i_b * BB


@triton.jit
def bias_of(b_hh, i_d, GATE: tl.constexpr, o_h, H: tl.constexpr, USE: tl.constexpr):
    if USE:
        return tl.load(b_hh + (i_d * 3 + GATE) * H + o_h, mask=o_h < H, other=0.0).to(tl.float32)
    return tl.zeros_like(o_h).to(tl.float32)

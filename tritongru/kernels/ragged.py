"""Sequences that end early or begin anew: their last steps, and the state that replaces another one.

Step t of a sequence is valid if t < its length. A reset at step f cuts the sequence between the steps f - 1 and f, for
both directions. The state before a step, in the direction of the pass, is "fresh" if it is the reset state.
"""

import triton
import triton.language as tl


@triton.jit
def lengths_of(lengths, o_b, B, T):
    """Steps of the sequences o_b, none past the batch. On a GPU lengths are not checked: here they are clamped."""
    b_len = tl.load(lengths + o_b, mask=o_b < B, other=0)
    return tl.minimum(tl.maximum(b_len, 0), T).to(tl.int32)


@triton.jit
def is_fresh(resets, t, i_d, o_b, b_len, B):
    """Which of the sequences o_b have the reset state before step t, for any t: none has it before its first step in
    direction 1, after its last one, or outside of [0, T)."""
    f = t + i_d  # of the two steps around the cut the later one
    p = resets.to(tl.pointer_type(tl.int8)) + (f.to(tl.int64) * B + o_b)
    return tl.load(p, mask=f < tl.where(t >= 0, b_len, f), other=0) != 0


@triton.jit
def reset_rows_of(reset_state, reset_rows, i_d, o_b, H: tl.constexpr):
    """Pointers to the reset states of the sequences o_b, which may share one row."""
    return reset_state + (i_d.to(tl.int64) * reset_rows + tl.where(reset_rows > 1, o_b, 0)) * H


@triton.jit
def add_where(p, b, m):
    """Adds to fp32 values that only this thread ever touches; nothing is loaded or stored where m is false."""
    tl.store(p, tl.load(p, mask=m, other=0.0) + b, mask=m)


@triton.jit
def longest_of(lengths, o_b, i_g, tiles, groups, B, T, BB: tl.constexpr):
    """The longest length among the batch tiles i_g, i_g + groups, .. that a program serves."""
    steps = tl.full((), 0, tl.int32)
    for i_b in tl.range(i_g, tiles, groups):
        steps = tl.maximum(steps, tl.max(lengths_of(lengths, i_b * BB + o_b, B, T)))
    return steps


@triton.jit
def steps_of_part(first, last, steps, T, i_d):
    """Of the steps first .. last - 1 of the backward walk over [0, T), those that fall on the first ``steps`` steps of
    the sequence: what is left out lies at the walk's begin in direction 0, at its end in direction 1."""
    if i_d == 0:
        first = tl.minimum(tl.maximum(first, T - steps), last)
    else:
        last = tl.maximum(tl.minimum(last, steps), first)
    return first, last

"""A program's slice of W_hh on chip, its product with a batch tile, and the program's own places in tensors and slots.

Blocks of a program's own values are flat, (OWN,): with one dimension there is only one way to distribute them over
threads, the same for every load, store and result.
"""

import triton
import triton.language as tl

from tritongru.kernels.persistent.exchange import (
    collect_counted,
    collect_words,
    first_unit,
    operand_of,
    parts,
    place,
    unit_at,
)
from tritongru.kernels.rounding import is_rounded, operand_of_product


@triton.constexpr_function
def own_values(BB, BH, THREADS):
    """Values of a program's own block. If there are fewer than threads they repeat, so that each thread has one."""
    return max(BB * BH, THREADS)


@triton.jit
def swapped(o):
    """Neighbouring threads take units 0, 2, 1, 3 of four: the compiler would otherwise pair units in a thread for the
    wider loads, and pass every block through shared memory between loads of different widths."""
    return o // 4 * 4 + o % 2 * 2 + o // 2 % 2


@triton.jit
def own_places(i_h, BB: tl.constexpr, BH: tl.constexpr, SPAN: tl.constexpr, OWN: tl.constexpr):
    """For each of a program's own values: row of the tile, unit, and whether it is not a repetition. SPAN units of all
    rows come first, then the next SPAN."""
    o = tl.arange(0, OWN)
    o_u = o // (SPAN * BB) % (BH // SPAN) * SPAN + swapped(o % SPAN)
    return o // SPAN % BB, i_h * BH + o_u, o < BB * BH


@triton.jit
def own_words(i_h, BB: tl.constexpr, BH: tl.constexpr, SPAN: tl.constexpr, OWN: tl.constexpr, E: tl.constexpr):
    """Where the program's own words lie in a slot, and which are not repetitions, in the order of `exchange.words`."""
    WORDS: tl.constexpr = SPAN // E  # of a row's span
    o = tl.arange(0, OWN // E)
    o_u = o % WORDS * E if E == 2 else swapped(o % WORDS)
    o_u = o // (WORDS * BB) % (BH // SPAN) * SPAN + o_u
    return place(o // WORDS % BB, i_h * BH + o_u, BB, E) // E, o < BB * BH // E


@triton.jit
def operand_places(KS: tl.constexpr, K: tl.constexpr, N: tl.constexpr):
    """Place along k (over all KS parts) and column of each value of a right operand: flat, with k running fastest, as
    in shared memory, so that the products' loads from there are wide. A whole operand, for KS == 1, is loaded as a
    block: flat, its many values would spill."""
    if KS == 1:
        o_k = tl.arange(0, K)[None, :, None]
        o_n = tl.arange(0, N)[None, None, :]
    else:
        o = tl.arange(0, KS * N * K)
        o_k = o // (N * K) * K + o % K
        o_n = o // K % N
    return o_k, o_n


@triton.jit
def operand(b, KS: tl.constexpr, N: tl.constexpr):
    if KS > 1:
        b = tl.permute(tl.reshape(b, (KS, N, b.shape[0] // (KS * N))), (0, 2, 1))
    return b


@triton.jit
def barrier_after_rounding(b, KS: tl.constexpr, PRECISION: tl.constexpr):
    """Keeps the loads of the next chunk of weights behind this one's. Values that are rounded pass through registers,
    and where four warps hold the slice (KS is their number, or 1), those of all chunks at once would spill."""
    if is_rounded(b.dtype, PRECISION) and KS <= 4:
        tl.debug_barrier()


@triton.jit
def load_w_forward(
    w_hh,  # (3H, H) of the program's direction
    i_h,
    GATE: tl.constexpr,
    GATES: tl.constexpr,
    H: tl.constexpr,
    BH: tl.constexpr,
    KS: tl.constexpr,
    CHUNKS: tl.constexpr,
    E: tl.constexpr,
    PARTS: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Columns of W_hh^T for the program's units, gates GATE .. GATE + GATES side by side, cut and ordered along k as
    the tile of states is collected."""
    b_w = ()
    for i in tl.static_range(len(CHUNKS)):
        for part in tl.static_range(PARTS):
            o_k, o_n = operand_places(KS, CHUNKS[i] // PARTS, GATES * BH)
            o_k = unit_at(o_k, part, E, PARTS) + first_unit(CHUNKS, KS, i)
            o_g, o_h = GATE + o_n // BH, i_h * BH + o_n % BH
            m = (o_k < H) & (o_h < H) & (o_g < 3)
            b = tl.load(w_hh + (o_g * H + o_h) * H + o_k, mask=m, other=0.0)
            b_w += (operand(operand_of_product(b, UPCAST, PRECISION), KS, GATES * BH),)
            barrier_after_rounding(b, KS, PRECISION)
    return b_w


@triton.jit
def load_w_backward(
    w_hh,  # (3H, H) of the program's direction
    i_h,
    H: tl.constexpr,
    BH: tl.constexpr,
    KS: tl.constexpr,
    CHUNKS: tl.constexpr,
    E: tl.constexpr,
    PARTS: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Columns of W_hh for the program's units, the rows of r, z and n one after the other along k, cut and ordered as
    the tile of gate gradients is collected."""
    UNITS: tl.constexpr = first_unit(CHUNKS, KS, len(CHUNKS)) // 3
    b_w = ()
    for i in tl.static_range(len(CHUNKS)):
        for part in tl.static_range(PARTS):
            o_k, o_n = operand_places(KS, CHUNKS[i] // PARTS, BH)
            o_k = unit_at(o_k, part, E, PARTS) + first_unit(CHUNKS, KS, i)
            o_h = i_h * BH + o_n
            m = (o_k % UNITS < H) & (o_h < H)
            b = tl.load(w_hh + (o_k // UNITS * H + o_k % UNITS) * H + o_h, mask=m, other=0.0)
            b_w += (operand(operand_of_product(b, UPCAST, PRECISION), KS, BH),)
            barrier_after_rounding(b, KS, PRECISION)
    return b_w


@triton.jit
def zero_accumulator(BB: tl.constexpr, N: tl.constexpr, KS: tl.constexpr):
    if KS == 1:
        b = tl.zeros((BB, N), tl.float32)
    else:
        b = tl.zeros((KS, BB, N), tl.float32)
    return b


@triton.jit
def product(b_k, b_w, b_acc, KS: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr):
    """Adds a chunk's product. Each of KS groups of warps has a part of k or, for KS == 1, of the rows."""
    if UPCAST:
        b_k = b_k.to(tl.float32)
    if KS == 1:
        b_k = tl.reshape(b_k, (b_k.shape[1], b_k.shape[2]))
        b_w = tl.reshape(b_w, (b_w.shape[1], b_w.shape[2]))
    return tl.dot(b_k, b_w, b_acc, input_precision=PRECISION)


@triton.jit
def collect_products(
    slot,
    b_w,
    b_w_n,  # of the second product, if TWO
    left,  # of the looks of this step
    N: tl.constexpr,
    N_N: tl.constexpr,
    TWO: tl.constexpr,
    BB: tl.constexpr,
    KS: tl.constexpr,
    CHUNKS: tl.constexpr,
    E: tl.constexpr,
    DATA: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The tile in a slot, chunk by chunk, times the program's slice of W_hh (and a second one): sums over N and N_N
    columns, and the looks left once all words of the tile have arrived."""
    PARTS: tl.constexpr = parts(DATA, E)
    b_acc = zero_accumulator(BB, N, KS)
    b_acc_n = zero_accumulator(BB, N_N, KS)
    for i in tl.static_range(len(CHUNKS)):
        if DATA:
            b_words, left = collect_words(slot, i, left, BB, KS, CHUNKS, E)
        for part in tl.static_range(PARTS):
            if DATA:
                b_k = operand_of(b_words, part, slot.dtype.element_ty, BB, KS, CHUNKS[i], E)
            else:
                b_k = collect_counted(slot, i, BB, KS, CHUNKS, E)
            b_acc = product(b_k, b_w[i * PARTS + part], b_acc, KS, UPCAST, PRECISION)
            if TWO:
                b_acc_n = product(b_k, b_w_n[i * PARTS + part], b_acc_n, KS, UPCAST, PRECISION)
    return b_acc, b_acc_n, left


@triton.jit
def results(
    b_acc,
    GATES: tl.constexpr,
    BB: tl.constexpr,
    BH: tl.constexpr,
    SPAN: tl.constexpr,
    OWN: tl.constexpr,
    KS: tl.constexpr,
):
    """The sum over KS, (GATES, OWN). One trip through shared memory gives each thread its own parts of the results,
    which it adds up."""
    b = tl.reshape(b_acc, (KS, BB, GATES, BH // SPAN, SPAN // 4, 2, 2))
    b = tl.permute(b, (0, 2, 3, 1, 4, 6, 5))
    o = tl.arange(0, KS * GATES * OWN)
    if OWN > BB * BH:
        o = o // OWN * (BB * BH) + o % (BB * BH)
    b = tl.gather(tl.reshape(b, (KS * GATES * BB * BH,)), o, 0)
    return tl.sum(tl.reshape(b, (KS, GATES, OWN)), axis=0)

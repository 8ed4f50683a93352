"""Blocks of hidden units: H is cut into chunks of 128, 64, 32 and at most one of 16, because the sides of a block must
be powers of two and H need not be. A block over all units is a tuple with one block per chunk.
"""

import triton
import triton.language as tl

from tritongru.kernels.rounding import operand_of_product


@triton.constexpr_function
def start(CHUNKS, i):
    return sum(CHUNKS[:i])


@triton.jit
def units(CHUNKS: tl.constexpr, i: tl.constexpr):
    return start(CHUNKS, i) + tl.arange(0, CHUNKS[i])


@triton.jit
def pairs(CHUNKS: tl.constexpr, i: tl.constexpr):
    """Units and slots of a 16-unit chunk laid out over 32 columns, two neighbouring columns per unit.

    A dot only 16 columns wide would give every warp the same work (three times the instructions at H = 112);
    32 columns spread over the warps, and a thread holds neighbouring columns, so extracting a slot costs nothing."""
    o = tl.arange(0, 2 * CHUNKS[i])
    return start(CHUNKS, i) + o // 2, o % 2


@triton.jit
def unpair(b):
    return tl.split(tl.reshape(b, (b.shape[0], b.shape[1] // 2, 2)))


@triton.jit
def load_block(p, mask, UPCAST: tl.constexpr):
    b = tl.load(p, mask=mask, other=0.0)
    return b.to(tl.float32) if UPCAST else b


@triton.jit
def load_operand(p, mask, UPCAST: tl.constexpr, PRECISION: tl.constexpr):
    return operand_of_product(tl.load(p, mask=mask, other=0.0), UPCAST, PRECISION)


@triton.jit
def load_w_forward(w_hh, H: tl.constexpr, CHUNKS: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr):
    """W_hh transposed, chunk j of the outputs outermost, then chunk i of the contraction, then the gates r, z, n;
    where chunk j is 16 wide, r and z share one block of pairs and n has one to itself."""
    b_w = ()
    for j in tl.static_range(len(CHUNKS)):
        for i in tl.static_range(len(CHUNKS)):
            o_k = units(CHUNKS, i)[:, None]
            if CHUNKS[j] == 16:
                o_h, o_s = pairs(CHUNKS, j)
                m = (o_k < H) & (o_h < H)[None, :]
                b_w += (
                    load_operand(w_hh + (o_s * H + o_h)[None, :] * H + o_k, m, UPCAST, PRECISION),
                    load_operand(w_hh + (2 * H + o_h)[None, :] * H + o_k, m & (o_s == 0)[None, :], UPCAST, PRECISION),
                )
            else:
                o_h = units(CHUNKS, j)[None, :]
                for g in tl.static_range(3):
                    b_w += (load_operand(w_hh + (g * H + o_h) * H + o_k, (o_k < H) & (o_h < H), UPCAST, PRECISION),)
    return b_w


@triton.jit
def load_w_backward(w_hh, H: tl.constexpr, CHUNKS: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr):
    """W_hh as it is, chunk j of the columns outermost, then chunk i of the rows, then the gates r, z, n."""
    b_w = ()
    for j in tl.static_range(len(CHUNKS)):
        if CHUNKS[j] == 16:
            o_h, o_s = pairs(CHUNKS, j)
            m_h = (o_h < H) & (o_s == 0)
        else:
            o_h = units(CHUNKS, j)
            m_h = o_h < H
        for i in tl.static_range(len(CHUNKS)):
            o_k = units(CHUNKS, i)[:, None]
            for g in tl.static_range(3):
                b_w += (
                    load_operand(w_hh + (g * H + o_k) * H + o_h[None, :], (o_k < H) & m_h[None, :], UPCAST, PRECISION),
                )
    return b_w


@triton.jit
def load_bias(b_hh, i_d, H: tl.constexpr, CHUNKS: tl.constexpr, USE: tl.constexpr):
    b_bias = ()
    for j in tl.static_range(len(CHUNKS)):
        o_h = units(CHUNKS, j)[None, :]
        for g in tl.static_range(3):
            if USE:
                b_bias += (tl.load(b_hh + (i_d * 3 + g) * H + o_h, mask=o_h < H, other=0.0).to(tl.float32),)
            else:
                b_bias += (tl.zeros_like(o_h).to(tl.float32),)
    return b_bias


@triton.jit
def load_state(p, row, n_b, BB: tl.constexpr, H: tl.constexpr, CHUNKS: tl.constexpr, USE: tl.constexpr):
    """Rows row .. row + n_b of an (..., H) state in fp32; zeros past n_b, and everywhere unless USE."""
    o_b = tl.arange(0, BB)[:, None]
    b_state = ()
    for j in tl.static_range(len(CHUNKS)):
        o_h = units(CHUNKS, j)[None, :]
        m = (o_b < n_b) & (o_h < H)
        if USE:
            b_state += (tl.load(p + row * H + (o_b * H + o_h), mask=m, other=0.0).to(tl.float32),)
        else:
            b_state += (tl.zeros_like(m).to(tl.float32),)
    return b_state


@triton.jit
def store_state(p, b_state, row, n_b, BB: tl.constexpr, H: tl.constexpr, CHUNKS: tl.constexpr):
    o_b = tl.arange(0, BB)[:, None]
    for j in tl.static_range(len(CHUNKS)):
        o_h = units(CHUNKS, j)[None, :]
        m = (o_b < n_b) & (o_h < H)
        tl.store(p + row * H + (o_b * H + o_h), b_state[j].to(p.dtype.element_ty), mask=m)


@triton.jit
def products_forward(b_k, b_w, b_r, b_z, b_a, j: tl.constexpr, CHUNKS: tl.constexpr, PRECISION: tl.constexpr):
    """h W^T for chunk j of all three gates, added to b_r, b_z and b_a."""
    N: tl.constexpr = len(CHUNKS)
    if CHUNKS[j] == 16:
        b_rz = tl.dot(b_k[0], b_w[3 * j * N], input_precision=PRECISION)
        b_a0 = tl.dot(b_k[0], b_w[3 * j * N + 1], input_precision=PRECISION)
        for i in tl.static_range(1, N):
            b_rz = tl.dot(b_k[i], b_w[3 * j * N + 2 * i], b_rz, input_precision=PRECISION)
            b_a0 = tl.dot(b_k[i], b_w[3 * j * N + 2 * i + 1], b_a0, input_precision=PRECISION)
        b_hr, b_hz = unpair(b_rz)
        b_ha, b_zero = unpair(b_a0)
        b_r, b_z, b_a = b_r + b_hr, b_z + b_hz, b_a + b_ha
    else:
        for i in tl.static_range(N):
            b_r = tl.dot(b_k[i], b_w[3 * (j * N + i)], b_r, input_precision=PRECISION)
            b_z = tl.dot(b_k[i], b_w[3 * (j * N + i) + 1], b_z, input_precision=PRECISION)
            b_a = tl.dot(b_k[i], b_w[3 * (j * N + i) + 2], b_a, input_precision=PRECISION)
    return b_r, b_z, b_a


@triton.jit
def products_backward(b_dg, b_w, b_dh, j: tl.constexpr, CHUNKS: tl.constexpr, PRECISION: tl.constexpr):
    """dgh W for chunk j, added to b_dh; b_dg holds dr, dz, da of each chunk."""
    N: tl.constexpr = len(CHUNKS)
    b_acc = tl.zeros((b_dh.shape[0], 32), tl.float32) if CHUNKS[j] == 16 else b_dh
    for i in tl.static_range(3 * N):
        b_acc = tl.dot(b_dg[i], b_w[3 * j * N + i], b_acc, input_precision=PRECISION)
    if CHUNKS[j] == 16:
        b_sum, b_zero = unpair(b_acc)
        b_acc = b_dh + b_sum
    return b_acc

"""The kernel of a single time step: both products and the gates."""

import triton
import triton.language as tl

from tritongru.kernels.batch_tile import bias_of
from tritongru.kernels.chunks import load_block
from tritongru.kernels.gates import gru_step


@triton.jit
def add_product(
    b_g,  # (BB, 4 BH), or (KS, BB, 4 BH): parts of a sum
    p_a,  # (BB, 1) pointers to the rows of x or h
    m_b,  # (BB, 1)
    p_w,  # (1, 4 BH) pointers to the rows of the weights
    m_w,  # (1, 4 BH)
    B,
    K: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
    BK: tl.constexpr,
    KS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """b_g + a W^T."""
    o_k = tl.arange(0, KS * BK)
    # A loop of known length ptxas unrolls until registers spill.
    width = tl.where(B > 0, K, 0)
    for k in tl.range(0, width, KS * BK, num_stages=STAGES):
        m_k = o_k < K - k
        b_a = load_block(p_a + (k + o_k)[None, :], m_b & m_k[None, :], UPCAST)
        b_w = load_block(p_w + (k + o_k)[:, None], m_w & m_k[:, None], UPCAST)
        if KS > 1:  # loaded as (KS, BB, BK), rows would meet bank conflicts
            b_a = tl.permute(tl.reshape(b_a, (b_a.shape[0], KS, BK)), (1, 0, 2))
            b_w = tl.reshape(b_w, (KS, BK, b_w.shape[1]))
        b_g = tl.dot(b_a, b_w, b_g, input_precision=PRECISION)
    return b_g


@triton.constexpr_function
def halvings(KS):
    return KS.bit_length() - 1


@triton.jit
def sum_of_parts(b, BB: tl.constexpr, N: tl.constexpr, KS: tl.constexpr):
    """(KS, BB, N) -> (BB, N), by halves: `tl.sum` over parts in different warps makes 16-way bank conflicts."""
    b = tl.permute(b, (1, 2, 0))
    for i in tl.static_range(halvings(KS)):
        b_even, b_odd = tl.split(tl.reshape(b, (BB, N, KS >> (i + 1), 2)))
        b = b_even + b_odd
    return tl.reshape(b, (BB, N))


@triton.jit
def state_of(h, o, m, USE: tl.constexpr):
    if USE:
        return tl.load(h + o, mask=m, other=0.0).to(tl.float32)
    return tl.zeros_like(m).to(tl.float32)


@triton.jit(do_not_specialize=["B"])
def single_step_kernel(
    x,  # (B, I)
    h,  # (B, H) if USE_H
    reset,  # (B,) bool if USE_RESET
    w_ih,  # (3H, I)
    w_hh,  # (3H, H)
    b_ih,  # (3H,) if USE_BIAS
    b_hh,  # (3H,) if USE_BIAS
    y,  # (B, H) if USE_Y
    hn,  # (B, H)
    B,
    I: tl.constexpr,
    H: tl.constexpr,
    USE_H: tl.constexpr,
    USE_RESET: tl.constexpr,
    USE_BIAS: tl.constexpr,
    USE_Y: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
    BB: tl.constexpr,
    BH: tl.constexpr,
    BI: tl.constexpr,
    BK: tl.constexpr,
    KS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Columns 4u .. 4u + 3 of the sums are r, z, n_x and a of unit u, so that a block takes one product."""
    DT: tl.constexpr = hn.dtype.element_ty
    SERIES: tl.constexpr = DT == tl.float32
    REFINE: tl.constexpr = SERIES and PRECISION != "tf32"
    AHEAD: tl.constexpr = BB <= 32  # a wide tile has no registers for its state
    i_b, i_h = tl.program_id(0), tl.program_id(1)
    row = i_b.to(tl.int64) * BB
    o_b, o_h = tl.arange(0, BB)[:, None], i_h * BH + tl.arange(0, BH)[None, :]
    m_b = o_b < B - i_b * BB
    m, m_h = m_b & (o_h < H), m_b
    if USE_RESET:  # the state of a reset row may be NaN
        m_h = m_b & (tl.load(reset + row + o_b, mask=m_b, other=0) == 0)
    o = row * H + (o_b * H + o_h)
    if AHEAD:
        b_h = state_of(h, o, m, USE_H)
    b_bias_r = bias_of(b_ih, 0, 0, o_h, H, USE_BIAS) + bias_of(b_hh, 0, 0, o_h, H, USE_BIAS)
    b_bias_z = bias_of(b_ih, 0, 1, o_h, H, USE_BIAS) + bias_of(b_hh, 0, 1, o_h, H, USE_BIAS)
    b_bias_n, b_bias_a = bias_of(b_ih, 0, 2, o_h, H, USE_BIAS), bias_of(b_hh, 0, 2, o_h, H, USE_BIAS)
    o_c = tl.arange(0, 4 * BH)[None, :]
    o_w, m_w = (tl.minimum(o_c % 4, 2) * H + i_h * BH + o_c // 4).to(tl.int64), o_c // 4 < H - i_h * BH
    p_x, m_x = x + row * I + o_b * I, m_w & (o_c % 4 != 3)
    b_g = tl.zeros((BB, 4 * BH) if KS == 1 else (KS, BB, 4 * BH), tl.float32)
    b_g = add_product(b_g, p_x, m_b, w_ih + o_w * I, m_x, B, I, UPCAST, PRECISION, BI, KS, STAGES)
    if USE_H:
        p_h, m_a = h + row * H + o_b * H, m_w & (o_c % 4 != 2)
        b_g = add_product(b_g, p_h, m_h, w_hh + o_w * H, m_a, B, H, UPCAST, PRECISION, BK, KS, STAGES)
    if KS > 1:
        b_g = sum_of_parts(b_g, BB, 4 * BH, KS)
    b_rn, b_za = tl.split(tl.reshape(b_g, (BB, BH, 2, 2)))
    b_r, b_n = tl.split(b_rn)
    b_z, b_a = tl.split(b_za)
    if not AHEAD:
        b_h = state_of(h, o, m, USE_H)
    if USE_RESET:  # masked here and not when loaded: the weights' loads would wait behind a load that waits for it
        b_h = tl.where(m_h, b_h, 0.0)
    b_r, b_z, b_n, b_a = b_r + b_bias_r, b_z + b_bias_z, b_n + b_bias_n, b_a + b_bias_a
    b_r, b_z, b_n, b_new = gru_step(b_r, b_z, b_n, b_a, b_h, SERIES, REFINE)
    tl.store(hn + o, b_new.to(DT), mask=m)
    if USE_Y:
        tl.store(y + o, b_new.to(DT), mask=m)

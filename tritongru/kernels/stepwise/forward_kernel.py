"""The forward kernel of the stepwise family: one time step per launch."""

import triton
import triton.language as tl

from tritongru.kernels.batch_tile import bias_of, tile_at
from tritongru.kernels.chunks import load_block
from tritongru.kernels.gates import encode_update, gru_step
from tritongru.kernels.ragged import is_fresh, lengths_of, reset_rows_of


@triton.jit
def product_forward(
    p_h,  # (BB, 1) pointers to the rows of the state
    m_b,  # (BB, 1)
    w,  # (3, H, H) from the program's first unit on
    n_h,  # units left from there
    H: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
    BB: tl.constexpr,
    BH: tl.constexpr,
    BK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """h W^T of the three gates."""
    o_k, o_h = tl.arange(0, BK), tl.arange(0, BH)[None, :]
    p_w = w + o_h * H + o_k[:, None]
    b_r, b_z, b_a = tl.zeros((BB, BH), tl.float32), tl.zeros((BB, BH), tl.float32), tl.zeros((BB, BH), tl.float32)
    for k in tl.range(0, H, BK, num_stages=STAGES):
        m_k = o_k < H - k
        m_w = m_k[:, None] & (o_h < n_h)
        b_h = load_block(p_h + (k + o_k)[None, :], m_b & m_k[None, :], UPCAST)
        b_r = tl.dot(b_h, load_block(p_w + k, m_w, UPCAST), b_r, input_precision=PRECISION)
        b_z = tl.dot(b_h, load_block(p_w + H * H + k, m_w, UPCAST), b_z, input_precision=PRECISION)
        b_a = tl.dot(b_h, load_block(p_w + H * H + H * H + k, m_w, UPCAST), b_a, input_precision=PRECISION)
    return b_r, b_z, b_a


@triton.jit
def inputs(p_x, m, H: tl.constexpr):
    b_r = tl.load(p_x, mask=m, other=0.0)
    b_z = tl.load(p_x + H, mask=m, other=0.0)
    return b_r, b_z, tl.load(p_x + 2 * H, mask=m, other=0.0)


@triton.jit(do_not_specialize=["s", "T", "B", "N", "reset_rows"])
def stepwise_forward_kernel(
    gx,  # (N, D, 3H) input projections with b_ih; N rows in time-major order
    w_hh,  # (D, 3H, H)
    b_hh,  # (D, 3H) if USE_BIAS
    h0,  # (D, B, H) if USE_H0
    y,  # (N, D, H)
    gates,  # (N, D, H, 4) if SAVE_GATES: r, z (see `gates.encode_update`), n and a = W_hn h + b_hn
    state,  # (D, B, H) fp32: h of each row's last step; a program uses only its own units
    offsets,  # (T + 1,) first row of each step, if PACKED
    s,
    T,
    B,
    N,  # rows, if PACKED
    D: tl.constexpr,
    H: tl.constexpr,
    USE_BIAS: tl.constexpr,
    USE_H0: tl.constexpr,
    SAVE_GATES: tl.constexpr,
    PACKED: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
    BB: tl.constexpr,
    BH: tl.constexpr,
    BK: tl.constexpr,
    STAGES: tl.constexpr,
    lengths=None,  # (B,) int64, like the next four if RAGGED
    resets=None,  # (T, B) bool
    reset_state=None,  # (D, reset_rows, H)
    reset_rows=None,  # B, or 1 for all sequences
    RAGGED: tl.constexpr = False,
):
    DT: tl.constexpr = y.dtype.element_ty
    SERIES: tl.constexpr = DT == tl.float32
    REFINE: tl.constexpr = SERIES and PRECISION != "tf32"
    AHEAD: tl.constexpr = BB <= 32  # a wide tile has no registers for its inputs
    i_b, i_h, i_d = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    t = s + i_d * (T - 1 - 2 * s)  # direction 1 walks from the last step to the first
    row, n_b = tile_at(t, i_b, T, B, N, offsets, BB, PACKED)
    row_prev, n_prev = tile_at(t - 1 + 2 * i_d, i_b, T, B, N, offsets, BB, PACKED)
    row, row_prev = row * D + i_d, row_prev * D + i_d
    row_state = i_d.to(tl.int64) * B + i_b * BB
    if RAGGED:
        o_row = i_b * BB + tl.arange(0, BB)[:, None]
        b_len = lengths_of(lengths, o_row, B, T)
        n_b = tl.where(t < tl.max(b_len), n_b, 0)
    if n_b > 0:
        o_b, o_h = tl.arange(0, BB)[:, None], i_h * BH + tl.arange(0, BH)[None, :]
        m_b = o_b < n_b
        if RAGGED:
            m_b = t < b_len
        m = m_b & (o_h < H)
        p_x = gx + row * (3 * H) + (o_b * (D * 3 * H) + o_h)
        if AHEAD:
            b_xr, b_xz, b_xn = inputs(p_x, m, H)
        p_h = y + row_prev * H + o_b * (D * H)
        m_k = o_b < tl.minimum(n_b, n_prev)
        m_prev = o_b < n_prev
        if RAGGED:
            m_prev = m_prev & (t - 1 + 2 * i_d < b_len)
            m_k = m_b & m_prev
        if USE_H0:  # rows that begin at this step
            p_h = tl.where(m_prev, p_h, h0 + row_state * H + o_b * H)
            m_k = m_b
        if RAGGED:
            m_cut = is_fresh(resets, t, i_d, o_row, b_len, B)
            p_reset = reset_rows_of(reset_state, reset_rows, i_d, o_row, H)
            p_h, m_k = tl.where(m_cut, p_reset, p_h), m_k | m_cut
        w = w_hh + (i_d.to(tl.int64) * (3 * H) + i_h * BH) * H
        b_r, b_z, b_a = product_forward(p_h, m_k, w, H - i_h * BH, H, UPCAST, PRECISION, BB, BH, BK, STAGES)
        if not AHEAD:
            b_xr, b_xz, b_xn = inputs(p_x, m, H)
        b_r += b_xr.to(tl.float32) + bias_of(b_hh, i_d, 0, o_h, H, USE_BIAS)
        b_z += b_xz.to(tl.float32) + bias_of(b_hh, i_d, 1, o_h, H, USE_BIAS)
        b_a += bias_of(b_hh, i_d, 2, o_h, H, USE_BIAS)
        p_state = state + row_state * H + (o_b * H + o_h)
        b_h = tl.load(p_state, mask=m, other=0.0)
        if RAGGED:
            b_reset = tl.load(p_reset + o_h, mask=m_cut & (o_h < H), other=0.0).to(tl.float32)
            b_h = tl.where(m_cut, b_reset, b_h)
        b_r, b_z, b_n, b_new = gru_step(b_r, b_z, b_xn.to(tl.float32), b_a, b_h, SERIES, REFINE)
        tl.store(p_state, b_new, mask=m)
        tl.store(y + row * H + (o_b * (D * H) + o_h), b_new.to(DT), mask=m)
        if SAVE_GATES:
            # [..., 0, :] = r z, [..., 1, :] = n a
            b_g = tl.join(tl.join(b_r, b_n), tl.join(encode_update(b_z), b_a)).to(DT)
            o_g = 4 * i_h * BH + tl.arange(0, 4 * BH)[None, :]
            p_g = gates + row * (4 * H) + (o_b * (D * 4 * H) + o_g)
            tl.store(p_g, tl.reshape(b_g, (BB, 4 * BH)), mask=m_b & (o_g < 4 * H))

"""The backward kernel of the stepwise family, the mirror of forward_kernel.py."""

import triton
import triton.language as tl

from tritongru.kernels.batch_tile import tile_at
from tritongru.kernels.chunks import load_block
from tritongru.kernels.gates import gru_step_backward
from tritongru.kernels.ragged import add_where, is_fresh, lengths_of, reset_rows_of


@triton.jit
def product_backward(
    p_dx,  # (BB, 1) pointers to the rows of dgx
    p_da,  # (BB, 1) pointers to the rows of da
    m_b,  # (BB, 1)
    w,  # (3, H, H) from the program's first column on
    n_h,  # columns left from there
    skip,  # whether there is nothing to multiply
    H: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
    BB: tl.constexpr,
    BH: tl.constexpr,
    BK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """(dr, dz, da) W, one block of one gate at a time: from several products into one sum in an iteration the compiler
    makes a chain with exchanges in between (17 barriers instead of 2)."""
    NK: tl.constexpr = (H + BK - 1) // BK
    o_k, o_h = tl.arange(0, BK), tl.arange(0, BH)[None, :]
    p_w = w + o_k[:, None] * H + o_h
    b_dh = tl.zeros((BB, BH), tl.float32)
    for i in tl.range(0, tl.where(skip, 0, 3 * NK), num_stages=STAGES):
        g, k = i // NK, i % NK * BK
        m_k = o_k < H - k
        p_dg = tl.where(g < 2, p_dx + g * H, p_da)
        b_dg = load_block(p_dg + (k + o_k)[None, :], m_b & m_k[None, :], UPCAST)
        b_w = load_block(p_w + (tl.cast(g, tl.int64) * H + k) * H, m_k[:, None] & (o_h < n_h), UPCAST)
        b_dh = tl.dot(b_dg, b_w, b_dh, input_precision=PRECISION)
    return b_dh


@triton.jit(do_not_specialize=["s", "T", "B", "start", "count", "N", "reset_rows"])
def stepwise_backward_kernel(
    dy,  # (N, D, H) if USE_DY
    w_hh,  # (D, 3H, H)
    h0,  # (D, B, H) if USE_H0
    y,  # (N, D, H)
    gates,  # (n, D, H, 4), like the next two only the rows of this part
    dgx,  # (n, D, 3H)
    da,  # (n, D, H)
    dh,  # (D, B, H) fp32: gradient of the state, without the next step's product
    offsets,  # (T + 1,) if PACKED
    s,  # the step of the walk, which begins at the last time step in direction 0
    T,
    B,
    start,  # this part of the walk: steps start .. start + count - 1
    count,
    N,  # rows, if PACKED
    D: tl.constexpr,
    H: tl.constexpr,
    USE_H0: tl.constexpr,
    USE_DY: tl.constexpr,
    PACKED: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
    BB: tl.constexpr,
    BH: tl.constexpr,
    BK: tl.constexpr,
    STAGES: tl.constexpr,
    lengths=None,  # (B,) int64, like the next five if RAGGED
    resets=None,  # (T, B) bool
    reset_state=None,  # (D, reset_rows, H)
    reset_rows=None,  # B, or 1 for all sequences
    d_reset=None,  # (D, B, H) fp32: gradient of the reset states, added to
    RAGGED: tl.constexpr = False,
):
    """The product of the previous step of the walk, then the gates of this step, each if it belongs to this part."""
    DT: tl.constexpr = y.dtype.element_ty
    last = start + count
    i_b, i_h, i_d = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    t = T - 1 - s - i_d * (T - 1 - 2 * s)
    row, n_b = tile_at(t, i_b, T, B, N, offsets, BB, PACKED)
    row_next, n_next = tile_at(t + 1 - 2 * i_d, i_b, T, B, N, offsets, BB, PACKED)
    row_prev, n_prev = tile_at(t - 1 + 2 * i_d, i_b, T, B, N, offsets, BB, PACKED)
    row, row_next, row_prev = row * D + i_d, row_next * D + i_d, row_prev * D + i_d
    row_part = (T - last + i_d * (start + last - T)).to(tl.int64) * B * D  # where the part's tensors begin
    row_state = i_d.to(tl.int64) * B + i_b * BB
    n_b = tl.where(s < last, n_b, 0)
    n_next = tl.where(s > start, n_next, 0)
    if RAGGED:
        o_row = i_b * BB + tl.arange(0, BB)[:, None]
        b_len = lengths_of(lengths, o_row, B, T)
        steps, t_next = tl.max(b_len), t + 1 - 2 * i_d
        n_b = tl.where(t < steps, n_b, 0)
        n_next = tl.where(t_next < steps, n_next, 0)
    if (n_b > 0) | (n_next > 0):
        o_b, o_h = tl.arange(0, BB)[:, None], i_h * BH + tl.arange(0, BH)[None, :]
        p_dx = dgx + (row_next - row_part) * (3 * H) + o_b * (D * 3 * H)
        p_da = da + (row_next - row_part) * H + o_b * (D * H)
        w = w_hh + i_d.to(tl.int64) * (3 * H * H) + i_h * BH
        m_next = o_b < n_next
        if RAGGED:
            m_next = m_next & (t_next < b_len)
        b_dh = product_backward(
            p_dx, p_da, m_next, w, H - i_h * BH, n_next <= 0, H, UPCAST, PRECISION, BB, BH, BK, STAGES
        )
        p_dh = dh + row_state * H + (o_b * H + o_h)
        m_own = (o_b < B - i_b * BB) & (o_h < H)
        b_dh += tl.load(p_dh, mask=m_own, other=0.0)
        m_b = o_b < n_b
        if RAGGED:
            m_cut = is_fresh(resets, t_next, i_d, o_row, b_len, B)  # the state before that step has its gradient now
            add_where(d_reset + row_state * H + (o_b * H + o_h), b_dh, m_cut & (o_h < H))
            b_dh = tl.where(m_cut, 0.0, b_dh)
            m_b = m_b & (t < b_len)
        m = m_b & (o_h < H)
        o_y = o_b * (D * H) + o_h
        o_g = 4 * i_h * BH + tl.arange(0, 4 * BH)[None, :]
        p_g = gates + (row - row_part) * (4 * H) + (o_b * (D * 4 * H) + o_g)
        b_g = tl.load(p_g, mask=m_b & (o_g < 4 * H), other=0.0)
        b_rz, b_na = tl.split(tl.permute(tl.reshape(b_g, (BB, BH, 2, 2)), (0, 1, 3, 2)))
        b_r, b_z = tl.split(b_rz)
        b_n, b_a = tl.split(b_na)
        m_kept, m_prev = m, o_b < n_prev
        if RAGGED:
            m_fresh = is_fresh(resets, t, i_d, o_row, b_len, B)
            m_prev = m_prev & (t - 1 + 2 * i_d < b_len)
            m_kept = m & (m_fresh == 0)
        b_hp = tl.load(y + row_prev * H + o_y, mask=m_kept & m_prev, other=0.0).to(tl.float32)
        if USE_H0:  # rows that began at this step
            p_h0 = h0 + row_state * H + (o_b * H + o_h)
            b_hp += tl.load(p_h0, mask=m_kept & (m_prev == 0 if RAGGED else o_b >= n_prev), other=0.0).to(tl.float32)
        if RAGGED:
            p_reset = reset_rows_of(reset_state, reset_rows, i_d, o_row, H) + o_h
            b_hp += tl.load(p_reset, mask=m & m_fresh, other=0.0).to(tl.float32)
        b_all = b_dh
        if USE_DY:
            b_all += tl.load(dy + row * H + o_y, mask=m, other=0.0).to(tl.float32)
        b_r, b_z, b_n, b_a = b_r.to(tl.float32), b_z.to(tl.float32), b_n.to(tl.float32), b_a.to(tl.float32)
        b_dr, b_dz, b_dn, b_da, b_direct = gru_step_backward(b_all, b_r, b_z, b_n, b_a, b_hp)
        p_dx = dgx + (row - row_part) * (3 * H) + (o_b * (D * 3 * H) + o_h)
        tl.store(p_dx, b_dr.to(DT), mask=m)
        tl.store(p_dx + H, b_dz.to(DT), mask=m)
        tl.store(p_dx + 2 * H, b_dn.to(DT), mask=m)
        tl.store(da + (row - row_part) * H + o_y, b_da.to(DT), mask=m)
        tl.store(p_dh, tl.where(m_b, b_direct, b_dh), mask=m_own)

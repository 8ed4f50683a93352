"""The backward kernel of the resident family, the mirror of forward_kernel.py."""

import triton
import triton.language as tl

from tritongru.kernels.batch_tile import tile_at
from tritongru.kernels.chunks import load_state, load_w_backward, products_backward, store_state, units
from tritongru.kernels.chunks import start as first_of
from tritongru.kernels.gates import gru_step_backward
from tritongru.kernels.ragged import add_where, is_fresh, lengths_of, reset_rows_of, steps_of_part
from tritongru.kernels.rounding import operand_of_product


@triton.jit
def cut_gradient(b_dh, p_reset, m_cut, H: tl.constexpr, CHUNKS: tl.constexpr):
    """The gradient with the rows of m_cut, which belong to the reset states, moved there."""
    b_cut = ()
    for j in tl.static_range(len(CHUNKS)):
        o_h = units(CHUNKS, j)[None, :]
        add_where(p_reset + o_h, b_dh[j], m_cut & (o_h < H))
        b_cut += (tl.where(m_cut, 0.0, b_dh[j]),)
    return b_cut


@triton.jit(do_not_specialize=["T", "B", "start", "count", "N", "reset_rows"])
def resident_backward_kernel(
    dy,  # (N, D, H) if USE_DY
    dh,  # (D, B, H) fp32: in, gradient of the states after these steps; out, of the states before them
    w_hh,  # (D, 3H, H)
    h0,  # (D, B, H) if USE_H0
    y,  # (N, D, H)
    gates,  # (n, D, H, 4), of the rows of these steps, as are dgx and da
    dgx,  # (n, D, 3H)
    da,  # (n, D, H)
    offsets,  # (T + 1,) if PACKED
    T,
    B,
    start,
    count,
    N,  # rows, if PACKED
    D: tl.constexpr,
    H: tl.constexpr,
    USE_H0: tl.constexpr,
    USE_DY: tl.constexpr,
    PACKED: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNKS: tl.constexpr,
    BB: tl.constexpr,
    STAGES: tl.constexpr,
    lengths=None,  # (B,) int64, like the next five if RAGGED
    resets=None,  # (T, B) bool
    reset_state=None,  # (D, reset_rows, H)
    reset_rows=None,  # B, or 1 for all sequences
    d_reset=None,  # (D, B, H) fp32: gradient of the reset states, added to
    RAGGED: tl.constexpr = False,
):
    DT: tl.constexpr = y.dtype.element_ty
    i_b, i_d = tl.program_id(0), tl.program_id(1)
    o_b = tl.arange(0, BB)[:, None]
    n_tile = B - i_b * BB
    row_state = i_d.to(tl.int64) * B + i_b * BB
    b_w = load_w_backward(w_hh + i_d * 3 * H * H, H, CHUNKS, UPCAST, PRECISION)
    b_dh = load_state(dh, row_state, n_tile, BB, H, CHUNKS, True)
    before = ((1 - i_d) * (T - start - count) + i_d * start).to(tl.int64) * B  # rows before those of these steps
    first, last = start, start + count
    if RAGGED:
        o_row = i_b * BB + o_b
        b_len = lengths_of(lengths, o_row, B, T)
        first, last = steps_of_part(first, last, tl.max(b_len), T, i_d)
        p_reset = reset_rows_of(reset_state, reset_rows, i_d, o_row, H)
        m_next = is_fresh(resets, T - 1 - first - i_d * (T - 1 - 2 * first), i_d, o_row, b_len, B)
    for s in tl.range(first, last, num_stages=STAGES):
        t = T - 1 - s - i_d * (T - 1 - 2 * s)
        row, n_b = tile_at(t, i_b, T, B, N, offsets, BB, PACKED)
        row_prev, n_prev = tile_at(t - 1 + 2 * i_d, i_b, T, B, N, offsets, BB, PACKED)
        part = (row - before) * D + i_d
        row, row_prev = row * D + i_d, row_prev * D + i_d
        m_b, m_prev = o_b < n_b, o_b < n_prev
        if RAGGED:
            t_prev = t - 1 + 2 * i_d
            m_b, m_prev = t < b_len, m_prev & (t_prev < b_len)
            m_cut, m_next = m_next, is_fresh(resets, t_prev, i_d, o_row, b_len, B)  # loaded one step ahead
        b_dg, b_direct, b_next = (), (), ()
        for i in tl.static_range(len(CHUNKS)):
            o_h = units(CHUNKS, i)[None, :]
            m = m_b & (o_h < H)
            o_y = o_b * (D * H) + o_h
            o_g = 4 * first_of(CHUNKS, i) + tl.arange(0, 4 * CHUNKS[i])[None, :]
            p_g = gates + part * (4 * H) + (o_b * (D * 4 * H) + o_g)
            b_g = tl.load(p_g, mask=m_b & (o_g < 4 * H), other=0.0)
            b_rz, b_na = tl.split(tl.permute(tl.reshape(b_g, (BB, CHUNKS[i], 2, 2)), (0, 1, 3, 2)))
            b_r, b_z = tl.split(b_rz)
            b_n, b_a = tl.split(b_na)
            # Before the first step of a row comes h0, read by its pointer: blocks kept in registers would force their
            # layout on the gates, with sixteen-way bank conflicts.
            p_hp, m_hp = y + row_prev * H + o_b * (D * H), m_prev
            if USE_H0:
                p_hp = tl.where(m_prev, p_hp, h0 + row_state * H + o_b * H)
                m_hp = o_b < n_tile
            if RAGGED:
                p_hp, m_hp = tl.where(m_cut, p_reset, p_hp), m_b & (m_hp | m_cut)
            b_hp = tl.load(p_hp + o_h, mask=m_hp & (o_h < H), other=0.0).to(tl.float32)
            b_dhi = b_dh[i]
            if USE_DY:
                b_dhi += tl.load(dy + row * H + o_y, mask=m, other=0.0).to(tl.float32)
            if RAGGED:  # nothing of an ended row reaches the product, not even an infinite gradient
                b_dhi = tl.where(m_b, b_dhi, 0.0)
            b_r, b_z, b_n, b_a = b_r.to(tl.float32), b_z.to(tl.float32), b_n.to(tl.float32), b_a.to(tl.float32)
            b_dr, b_dz, b_dn, b_da, b_dhp = gru_step_backward(b_dhi, b_r, b_z, b_n, b_a, b_hp)
            b_dr, b_dz, b_dn, b_da = b_dr.to(DT), b_dz.to(DT), b_dn.to(DT), b_da.to(DT)
            p_dx = dgx + part * (3 * H) + (o_b * (D * 3 * H) + o_h)
            tl.store(p_dx, b_dr, mask=m)
            tl.store(p_dx + H, b_dz, mask=m)
            tl.store(p_dx + 2 * H, b_dn, mask=m)
            tl.store(da + part * H + o_y, b_da, mask=m)
            b_dg += (operand_of_product(b_dr, UPCAST, PRECISION),)
            b_dg += (operand_of_product(b_dz, UPCAST, PRECISION),)
            b_dg += (operand_of_product(b_da, UPCAST, PRECISION),)
            b_direct += (tl.where(m_b, b_dhp, b_dh[i]) if PACKED or RAGGED else b_dhp,)
        for j in tl.static_range(len(CHUNKS)):
            b_next += (products_backward(b_dg, b_w, b_direct[j], j, CHUNKS, PRECISION),)
        b_dh = b_next
        if RAGGED:
            # A branch: the pipeline would move a load outside of it one step ahead, where nothing keeps it behind the
            # store of this step.
            if tl.max(m_cut.to(tl.int32)) > 0:
                b_dh = cut_gradient(b_dh, d_reset + (row_state + o_b) * H, m_cut, H, CHUNKS)
    store_state(dh, b_dh, row_state, n_tile, BB, H, CHUNKS)

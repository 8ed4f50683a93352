"""The backward kernel of the persistent family, the mirror of forward_kernel.py: programs exchange gate gradients."""

import triton
import triton.language as tl

from tritongru.kernels.batch_tile import tile_at
from tritongru.kernels.gates import gru_step_backward
from tritongru.kernels.persistent.exchange import (
    IN_VAIN,
    arrive,
    clear,
    empty_half,
    first_unit,
    parts,
    place,
    publish,
    wait_for_slot,
)
from tritongru.kernels.persistent.slices import (
    collect_products,
    load_w_backward,
    own_places,
    own_values,
    own_words,
    results,
)
from tritongru.kernels.persistent.watchdog import spin_budget
from tritongru.kernels.ragged import add_where, is_fresh, lengths_of, longest_of, reset_rows_of, steps_of_part
from tritongru.kernels.rounding import operand_of_product


@triton.jit
def saved(
    p_g,
    p_y,
    p_h0,
    p_reset,
    p_dy,
    m,
    m_prev,
    m_fresh,
    USE_H0: tl.constexpr,
    USE_DY: tl.constexpr,
    RAGGED: tl.constexpr,
):
    """r, z, n, a, the state before the step and the gradient of its output, of a program's own units."""
    b_g = tl.load(p_g[:, None] + tl.arange(0, 4)[None, :], mask=m[:, None], other=0.0)
    b_rn, b_za = tl.split(tl.reshape(b_g, (b_g.shape[0], 2, 2)))
    b_r, b_n = tl.split(b_rn)
    b_z, b_a = tl.split(b_za)
    b_hp = tl.load(p_y, mask=m_prev, other=0.0).to(tl.float32)
    if USE_H0:
        m_h0 = m & (m_prev == 0)
        if RAGGED:
            m_h0 = m_h0 & (m_fresh == 0)
        b_hp += tl.load(p_h0, mask=m_h0, other=0.0).to(tl.float32)
    if RAGGED:
        b_hp += tl.load(p_reset, mask=m_fresh, other=0.0).to(tl.float32)
    if USE_DY:
        b_dy = tl.load(p_dy, mask=m, other=0.0).to(tl.float32)
    else:
        b_dy = tl.zeros_like(b_hp)
    return b_r.to(tl.float32), b_z.to(tl.float32), b_n.to(tl.float32), b_a.to(tl.float32), b_hp, b_dy


@triton.jit(do_not_specialize=["T", "B", "start", "count", "tiles", "limit", "N", "reset_rows"])
def persistent_backward_kernel(
    dy,  # (N, D, H) if USE_DY
    dh,  # (D, B, H) fp32: in, gradient of the states after these steps; out, of the states before them
    w_hh,  # (D, 3H, H)
    h0,  # (D, B, H) if USE_H0
    y,  # (N, D, H)
    gates,  # (n, D, H, 4), of the rows of these steps, as are dgx and da
    dgx,  # (n, D, 3H)
    da,  # (n, D, H)
    offsets,  # (T + 1,) if PACKED
    slots,  # (D, tiles, SLOTS, BB * 3 units) zeros: the exchange of dr, dz and da
    counters,  # (D, tiles, 32) int32 zeros
    report,  # (1,) int64
    T,
    B,
    start,
    count,
    tiles,
    limit,
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
    BH: tl.constexpr,
    SPAN: tl.constexpr,
    KS: tl.constexpr,
    SLOTS: tl.constexpr,
    DATA: tl.constexpr,
    THREADS: tl.constexpr,
    lengths=None,  # (B,) int64, like the next five if RAGGED
    resets=None,  # (T, B) bool
    reset_state=None,  # (D, reset_rows, H)
    reset_rows=None,  # B, or 1 for all sequences
    d_reset=None,  # (D, B, H) fp32: gradient of the reset states, added to
    RAGGED: tl.constexpr = False,
):
    DT: tl.constexpr = y.dtype.element_ty
    E: tl.constexpr = 32 // DT.primitive_bitwidth
    SLOT: tl.constexpr = BB * first_unit(CHUNKS, KS, len(CHUNKS))
    GATE: tl.constexpr = SLOT // 3
    OWN: tl.constexpr = own_values(BB, BH, THREADS)
    i_h, i_g, i_d = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    programs, groups = tl.num_programs(0), tl.num_programs(1)
    b_w = load_w_backward(w_hh + i_d * 3 * H * H, i_h, H, BH, KS, CHUNKS, E, parts(DATA, E), UPCAST, PRECISION)
    o_b, o_h, m_own = own_places(i_h, BB, BH, SPAN, OWN)
    m_h = m_own & (o_h < H)
    o_slot = place(o_b, o_h, BB, E)
    o_word, m_word = own_words(i_h, BB, BH, SPAN, OWN, E)
    before = ((1 - i_d) * (T - start - count) + i_d * start).to(tl.int64) * B  # rows before those of these steps
    if RAGGED:
        first, last = steps_of_part(
            *(start, start + count, longest_of(lengths, o_b, i_g, tiles, groups, B, T, BB), T, i_d)
        )
        start, count = first, last - first

    for i_b in tl.range(i_g, tiles, groups):
        i_t = (i_d * tiles + i_b).to(tl.int64)
        if DATA:
            p_word = (slots + i_t * (SLOTS * SLOT)).to(tl.pointer_type(tl.uint32)) + SLOT // E + o_word
            for g in tl.static_range(3):
                clear(p_word + g * (GATE // E), SLOTS - 1, SLOT // E, m_word)
        arrive(counters + i_t * 32)

    for s in tl.range(count + 1):  # the first collects zeros; the last one's own step is outside the part
        t = T - 1 - start - s - i_d * (T - 1 - 2 * (start + s))
        for i_b in tl.range(i_g, tiles, groups):
            i_t = (i_d * tiles + i_b).to(tl.int64)
            counter = counters + i_t * 32
            slot = slots + i_t * (SLOTS * SLOT)
            row, n_b = tile_at(t, i_b, T, B, N, offsets, BB, PACKED)
            row_prev, n_prev = tile_at(t - 1 + 2 * i_d, i_b, T, B, N, offsets, BB, PACKED)
            part = (row - before) * D + i_d
            row, row_prev = row * D + i_d, row_prev * D + i_d
            m = m_h & (o_b < tl.where(s < count, n_b, 0))
            o_y = o_b * (D * H) + o_h
            row_state = (i_d.to(tl.int64) * B + i_b * BB) * H
            o_state = o_b * H + o_h
            p_g = gates + part * (4 * H) + (o_b * (D * 4 * H) + o_h * 4)
            p_y, p_dy, p_h0 = y + row_prev * H + o_y, dy, h0
            if USE_DY:
                p_dy = dy + row * H + o_y
            if USE_H0:
                p_h0 = h0 + row_state + o_state
            m_prev = m & (o_b < n_prev)
            p_reset, m_fresh = p_y, m_prev
            if RAGGED:
                o_row = i_b * BB + o_b
                b_len = lengths_of(lengths, o_row, B, T)
                m = m & (t < b_len)
                m_cut = m_h & is_fresh(resets, t + 1 - 2 * i_d, i_d, o_row, b_len, B)
                p_reset = reset_rows_of(reset_state, reset_rows, i_d, o_row, H) + o_h
                m_fresh = m & is_fresh(resets, t, i_d, o_row, b_len, B)
                m_prev = m & (o_b < n_prev) & (t - 1 + 2 * i_d < b_len) & (m_fresh == 0)
            if KS > 1:
                b_r, b_z, b_n, b_a, b_hp, b_dy = saved(
                    *(p_g, p_y, p_h0, p_reset, p_dy, m, m_prev, m_fresh, USE_H0, USE_DY, RAGGED)
                )
            left = wait_for_slot(counter, s, programs, limit, SLOTS, DATA)
            if not DATA:
                limit = spin_budget(report, counter, limit, left, s, start, i_b, i_h, i_d)
            b_acc, _, left = collect_products(
                *(slot + s % SLOTS * SLOT, b_w, b_w, left),
                *(BH, BH, False, BB, KS, CHUNKS, E, DATA, UPCAST, PRECISION),
            )
            if DATA:
                limit = spin_budget(report, counter, limit, left, s, start, i_b, i_h, i_d)
                empty_half(slot, counter, s, o_word, m_word, SLOT, SLOTS, 3, E)
            if KS == 1:
                b_r, b_z, b_n, b_a, b_hp, b_dy = saved(
                    *(p_g, p_y, p_h0, p_reset, p_dy, m, m_prev, m_fresh, USE_H0, USE_DY, RAGGED)
                )
            m_state = m_h & (o_b < B - i_b * BB)
            p_dh = dh + row_state + o_state
            b_dh = tl.load(p_dh, mask=m_state, other=0.0) + tl.where(limit == IN_VAIN, float("nan"), 0.0)
            b_dh += tl.reshape(results(b_acc, 1, BB, BH, SPAN, OWN, KS), (OWN,))
            if RAGGED:  # this is the gradient of the state before the step whose product was collected
                add_where(d_reset + row_state + o_state, b_dh, m_cut)
                b_dh = tl.where(m_cut, 0.0, b_dh)
            b_all = b_dh + b_dy
            if RAGGED:  # nothing of an ended row reaches the product, not even an infinite gradient
                b_all = tl.where(m, b_all, 0.0)
            b_dr, b_dz, b_dn, b_da, b_dhp = gru_step_backward(b_all, b_r, b_z, b_n, b_a, b_hp)
            b_dr, b_dz, b_da = b_dr.to(DT), b_dz.to(DT), b_da.to(DT)
            p_slot = slot + (s + 1) % SLOTS * SLOT
            publish(p_slot, operand_of_product(b_dr, False, PRECISION), o_slot, m_own, o_word, m_word, E, DATA)
            publish(p_slot + GATE, operand_of_product(b_dz, False, PRECISION), o_slot, m_own, o_word, m_word, E, DATA)
            publish(
                p_slot + 2 * GATE, operand_of_product(b_da, False, PRECISION), o_slot, m_own, o_word, m_word, E, DATA
            )
            if not DATA:
                arrive(counter)
            tl.store(p_dh, tl.where(m, b_dhp, b_dh), mask=m_state)
            p_dx = dgx + part * (3 * H) + (o_b * (D * 3 * H) + o_h)
            tl.store(p_dx, b_dr, mask=m)
            tl.store(p_dx + H, b_dz, mask=m)
            tl.store(p_dx + 2 * H, b_dn.to(DT), mask=m)
            tl.store(da + part * H + o_y, b_da, mask=m)

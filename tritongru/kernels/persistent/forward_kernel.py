"""The forward kernel of the persistent family: the whole time loop in one launch, its programs exchanging states."""

import triton
import triton.language as tl

from tritongru.kernels.batch_tile import bias_of, tile_at
from tritongru.kernels.gates import encode_update, gru_step
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
    load_w_forward,
    own_places,
    own_values,
    own_words,
    results,
)
from tritongru.kernels.persistent.watchdog import spin_budget
from tritongru.kernels.ragged import is_fresh, lengths_of, longest_of, reset_rows_of
from tritongru.kernels.rounding import operand_of_product


@triton.jit
def gates_of(
    b_acc,
    b_acc_n,
    BB: tl.constexpr,
    BH: tl.constexpr,
    SPAN: tl.constexpr,
    OWN: tl.constexpr,
    KS: tl.constexpr,
    PAD: tl.constexpr,
):
    """The products for r, z and n, each (OWN,)."""
    if PAD:
        b = tl.reshape(results(b_acc, 4, BB, BH, SPAN, OWN, KS), (2, 2, OWN))
        b_rn, b_z = tl.split(tl.permute(b, (0, 2, 1)))
        b_r, b_n = tl.split(tl.permute(b_rn, (1, 0)))
        b_z, _ = tl.split(tl.permute(b_z, (1, 0)))
    else:
        b_r, b_z = tl.split(tl.permute(results(b_acc, 2, BB, BH, SPAN, OWN, KS), (1, 0)))
        b_n = tl.reshape(results(b_acc_n, 1, BB, BH, SPAN, OWN, KS), (OWN,))
    return b_r, b_z, b_n


@triton.jit
def inputs(p_x, m, H: tl.constexpr):
    b_r = tl.load(p_x, mask=m, other=0.0).to(tl.float32)
    b_z = tl.load(p_x + H, mask=m, other=0.0).to(tl.float32)
    return b_r, b_z, tl.load(p_x + 2 * H, mask=m, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["T", "B", "tiles", "limit", "N", "reset_rows"])
def persistent_forward_kernel(
    gx,  # (N, D, 3H) input projections with b_ih; N rows in time-major order
    w_hh,  # (D, 3H, H)
    b_hh,  # (D, 3H) if USE_BIAS
    h0,  # (D, B, H) if USE_H0
    y,  # (N, D, H)
    hn,  # (D, B, H)
    gates,  # (N, D, H, 4) if SAVE_GATES: r, z (see `gates.encode_update`), n and a = W_hn h + b_hn
    offsets,  # (T + 1,) first row of each step, if PACKED
    slots,  # (D, tiles, SLOTS, BB * units) zeros: the exchange
    state,  # (D, tiles, programs, BB, BH) fp32, each part used by one program only
    counters,  # (D, tiles, 32) int32 zeros, of which the first counts: each counter has its own cache line
    report,  # (1,) int64 that the host can read: where a program gave up waiting
    T,
    B,
    tiles,
    limit,
    N,  # rows, if PACKED
    D: tl.constexpr,
    H: tl.constexpr,
    USE_BIAS: tl.constexpr,
    USE_H0: tl.constexpr,
    SAVE_GATES: tl.constexpr,
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
    PAD: tl.constexpr,
    THREADS: tl.constexpr,
    lengths=None,  # (B,) int64, like the next four if RAGGED
    resets=None,  # (T, B) bool
    reset_state=None,  # (D, reset_rows, H)
    reset_rows=None,  # B, or 1 for all sequences
    RAGGED: tl.constexpr = False,
):
    DT: tl.constexpr = y.dtype.element_ty
    E: tl.constexpr = 32 // DT.primitive_bitwidth
    PARTS: tl.constexpr = parts(DATA, E)
    SERIES: tl.constexpr = DT == tl.float32
    REFINE: tl.constexpr = SERIES and PRECISION != "tf32"
    SLOT: tl.constexpr = BB * first_unit(CHUNKS, KS, len(CHUNKS))
    GATES: tl.constexpr = 4 if PAD else 2  # side by side in one product: r, z, n and padding, or r and z
    OWN: tl.constexpr = own_values(BB, BH, THREADS)
    i_h, i_g, i_d = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    programs, groups = tl.num_programs(0), tl.num_programs(1)
    w_d = w_hh + i_d * 3 * H * H
    b_w = load_w_forward(w_d, i_h, 0, GATES, H, BH, KS, CHUNKS, E, PARTS, UPCAST, PRECISION)
    b_w_n = b_w
    if not PAD:
        b_w_n = load_w_forward(w_d, i_h, 2, 1, H, BH, KS, CHUNKS, E, PARTS, UPCAST, PRECISION)
    o_b, o_h, m_own = own_places(i_h, BB, BH, SPAN, OWN)
    m_h = m_own & (o_h < H)
    o_state = i_h * (BB * BH) + o_b * BH + (o_h - i_h * BH)
    o_slot = place(o_b, o_h, BB, E)
    o_word, m_word = own_words(i_h, BB, BH, SPAN, OWN, E)
    b_bias_r = bias_of(b_hh, i_d, 0, o_h, H, USE_BIAS)
    b_bias_z = bias_of(b_hh, i_d, 1, o_h, H, USE_BIAS)
    b_bias_a = bias_of(b_hh, i_d, 2, o_h, H, USE_BIAS)

    steps = T
    if RAGGED:  # the same for all programs that meet
        steps = longest_of(lengths, o_b, i_g, tiles, groups, B, T, BB)
    for i_b in tl.range(i_g, tiles, groups):
        i_t = (i_d * tiles + i_b).to(tl.int64)
        m = m_h & (o_b < B - i_b * BB)
        if USE_H0:
            p_h0 = h0 + (i_d.to(tl.int64) * B + i_b * BB) * H + (o_b * H + o_h)
            b_h = tl.load(p_h0, mask=m, other=0.0).to(tl.float32)
        else:
            b_h = tl.zeros((OWN,), tl.float32)
        if RAGGED:
            o_row = i_b * BB + o_b
            b_len = lengths_of(lengths, o_row, B, T)
            m_cut = m_h & is_fresh(resets, i_d * (steps - 1), i_d, o_row, b_len, B)
            p_reset = reset_rows_of(reset_state, reset_rows, i_d, o_row, H) + o_h
            b_h = tl.where(m_cut, tl.load(p_reset, mask=m_cut, other=0.0).to(tl.float32), b_h)
        tl.store(state + i_t * (programs * BB * BH) + o_state, b_h, mask=m_own)
        slot = slots + i_t * (SLOTS * SLOT)
        publish(slot, operand_of_product(b_h.to(DT), False, PRECISION), o_slot, m_own, o_word, m_word, E, DATA)
        if DATA:
            clear(slot.to(tl.pointer_type(tl.uint32)) + SLOT // E + o_word, SLOTS - 1, SLOT // E, m_word)
        arrive(counters + i_t * 32)

    for s in tl.range(steps):
        t = s + i_d * (steps - 1 - 2 * s)  # direction 1 walks from the last step to the first
        for i_b in tl.range(i_g, tiles, groups):
            i_t = (i_d * tiles + i_b).to(tl.int64)
            counter = counters + i_t * 32
            slot = slots + i_t * (SLOTS * SLOT)
            row, n_b = tile_at(t, i_b, T, B, N, offsets, BB, PACKED)
            row = row * D + i_d
            m = m_h & (o_b < n_b)
            if RAGGED:  # before the wait, too
                o_row = i_b * BB + o_b
                b_len = lengths_of(lengths, o_row, B, T)
                m = m_h & (t < b_len)
                m_cut = m_h & is_fresh(resets, t + 1 - 2 * i_d, i_d, o_row, b_len, B)
            p_x = gx + row * (3 * H) + (o_b * (D * 3 * H) + o_h)
            if KS > 1:  # before the wait, which hides their latency; a wide tile has no registers for them
                b_r, b_z, b_x = inputs(p_x, m, H)
            left = wait_for_slot(counter, s, programs, limit, SLOTS, DATA)
            if not DATA:  # at once: keeping the value until the end of the products would cost a register
                limit = spin_budget(report, counter, limit, left, s, 0, i_b, i_h, i_d)
            b_acc, b_acc_n, left = collect_products(
                *(slot + s % SLOTS * SLOT, b_w, b_w_n, left),
                *(GATES * BH, BH, not PAD, BB, KS, CHUNKS, E, DATA, UPCAST, PRECISION),
            )
            if DATA:
                limit = spin_budget(report, counter, limit, left, s, 0, i_b, i_h, i_d)
                empty_half(slot, counter, s, o_word, m_word, SLOT, SLOTS, 1, E)
            if KS == 1:
                b_r, b_z, b_x = inputs(p_x, m, H)
            p_h = state + i_t * (programs * BB * BH) + o_state
            b_h = tl.load(p_h, mask=m_own, other=0.0) + tl.where(limit == IN_VAIN, float("nan"), 0.0)
            b_gr, b_gz, b_ga = gates_of(b_acc, b_acc_n, BB, BH, SPAN, OWN, KS, PAD)
            b_a = b_ga + b_bias_a
            b_r, b_z, b_n, b_new = gru_step(
                b_r + (b_gr + b_bias_r), b_z + (b_gz + b_bias_z), b_x, b_a, b_h, SERIES, REFINE
            )
            if H % BH > 0:
                b_new = tl.where(o_h < H, b_new, 0.0)  # 0 times an infinite state would reach all programs as NaN
            if PACKED or RAGGED:
                b_new = tl.where(m, b_new, b_h)
            b_y = b_new.to(DT)
            if RAGGED:  # who writes a state replaces it, so that those who read it need not know
                p_reset = reset_rows_of(reset_state, reset_rows, i_d, i_b * BB + o_b, H) + o_h
                b_new = tl.where(m_cut, tl.load(p_reset, mask=m_cut, other=0.0).to(tl.float32), b_new)
            b_k = operand_of_product(b_new.to(DT) if RAGGED else b_y, False, PRECISION)
            publish(slot + (s + 1) % SLOTS * SLOT, b_k, o_slot, m_own, o_word, m_word, E, DATA)
            tl.store(p_h, b_new, mask=m_own)
            if not DATA:
                arrive(counter)
            tl.store(y + row * H + (o_b * (D * H) + o_h), b_y, mask=m)
            if SAVE_GATES:
                b_g = tl.reshape(tl.join(tl.join(b_r, b_n), tl.join(encode_update(b_z), b_a)).to(DT), (OWN, 4))
                p_g = gates + row * (4 * H) + (o_b * (D * 4 * H) + o_h * 4)
                tl.store(p_g[:, None] + tl.arange(0, 4)[None, :], b_g, mask=m[:, None])

    tl.debug_barrier()
    for i_b in tl.range(i_g, tiles, groups):
        i_t = (i_d * tiles + i_b).to(tl.int64)
        b_h = tl.load(state + i_t * (programs * BB * BH) + o_state, mask=m_own, other=0.0)
        p_hn = hn + (i_d.to(tl.int64) * B + i_b * BB) * H + (o_b * H + o_h)
        tl.store(p_hn, b_h.to(DT), mask=m_h & (o_b < B - i_b * BB))

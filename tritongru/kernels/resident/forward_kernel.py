"""The forward kernel of the resident family: one program runs all time steps of its rows."""

import triton
import triton.language as tl

from tritongru.kernels.batch_tile import tile_at
from tritongru.kernels.chunks import load_bias, load_state, load_w_forward, products_forward, store_state, units
from tritongru.kernels.chunks import start as first_of
from tritongru.kernels.gates import encode_update, gru_step
from tritongru.kernels.ragged import is_fresh, lengths_of, reset_rows_of
from tritongru.kernels.rounding import operand_of_product


@triton.jit
def cut_state(b_h, p_reset, m_cut, H: tl.constexpr, CHUNKS: tl.constexpr):
    """The state with the rows of m_cut replaced; nothing is loaded for others."""
    b_cut = ()
    for j in tl.static_range(len(CHUNKS)):
        o_h = units(CHUNKS, j)[None, :]
        b_reset = tl.load(p_reset + o_h, mask=m_cut & (o_h < H), other=0.0).to(tl.float32)
        b_cut += (tl.where(m_cut, b_reset, b_h[j]),)
    return b_cut


@triton.jit(do_not_specialize=["T", "B", "N", "reset_rows"])
def resident_forward_kernel(
    gx,  # (N, D, 3H) input projections with b_ih; N rows in time-major order
    w_hh,  # (D, 3H, H)
    b_hh,  # (D, 3H) if USE_BIAS
    h0,  # (D, B, H) if USE_H0
    y,  # (N, D, H)
    hn,  # (D, B, H)
    gates,  # (N, D, H, 4) if SAVE_GATES: r, z (see `gates.encode_update`), n and a = W_hn h + b_hn
    offsets,  # (T + 1,) first row of each step, if PACKED
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
    CHUNKS: tl.constexpr,
    BB: tl.constexpr,
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
    i_b, i_d = tl.program_id(0), tl.program_id(1)
    o_b = tl.arange(0, BB)[:, None]
    n_tile = B - i_b * BB
    row_state = i_d.to(tl.int64) * B + i_b * BB
    b_w = load_w_forward(w_hh + i_d * 3 * H * H, H, CHUNKS, UPCAST, PRECISION)
    b_bias = load_bias(b_hh, i_d, H, CHUNKS, USE_BIAS)
    b_h = load_state(h0, row_state, n_tile, BB, H, CHUNKS, USE_H0)
    steps = T
    if RAGGED:
        o_row = i_b * BB + o_b
        b_len = lengths_of(lengths, o_row, B, T)
        steps = tl.max(b_len)
        p_reset = reset_rows_of(reset_state, reset_rows, i_d, o_row, H)
        m_cut = is_fresh(resets, i_d * (steps - 1), i_d, o_row, b_len, B)
        b_h = cut_state(b_h, p_reset, m_cut, H, CHUNKS)
    for s in tl.range(steps, num_stages=STAGES):
        t = s + i_d * (steps - 1 - 2 * s)  # direction 1 walks from the last step to the first
        row, n_b = tile_at(t, i_b, T, B, N, offsets, BB, PACKED)
        row = row * D + i_d
        m_b = o_b < n_b
        if RAGGED:
            m_b = t < b_len
            m_cut = is_fresh(resets, t + 1 - 2 * i_d, i_d, o_row, b_len, B)  # of the next step: needed only at the end
        b_k, b_next = (), ()
        for i in tl.static_range(len(CHUNKS)):
            b_k += (operand_of_product(b_h[i].to(DT), UPCAST, PRECISION),)
        for j in tl.static_range(len(CHUNKS)):
            o_h = units(CHUNKS, j)[None, :]
            m = m_b & (o_h < H)
            p_x = gx + row * (3 * H) + (o_b * (D * 3 * H) + o_h)
            b_r = tl.load(p_x, mask=m, other=0.0).to(tl.float32) + b_bias[3 * j]
            b_z = tl.load(p_x + H, mask=m, other=0.0).to(tl.float32) + b_bias[3 * j + 1]
            b_x = tl.load(p_x + 2 * H, mask=m, other=0.0).to(tl.float32)
            b_a = tl.broadcast_to(b_bias[3 * j + 2], b_x.shape)
            b_r, b_z, b_a = products_forward(b_k, b_w, b_r, b_z, b_a, j, CHUNKS, PRECISION)
            b_r, b_z, b_n, b_new = gru_step(b_r, b_z, b_x, b_a, b_h[j], SERIES, REFINE)
            tl.store(y + row * H + (o_b * (D * H) + o_h), b_new.to(DT), mask=m)
            if SAVE_GATES:
                # [..., 0, :] = r z, [..., 1, :] = n a
                b_g = tl.join(tl.join(b_r, b_n), tl.join(encode_update(b_z), b_a)).to(DT)
                b_g = tl.reshape(b_g, (BB, 4 * CHUNKS[j]))
                o_g = 4 * first_of(CHUNKS, j) + tl.arange(0, 4 * CHUNKS[j])[None, :]
                p_g = gates + row * (4 * H) + (o_b * (D * 4 * H) + o_g)
                tl.store(p_g, b_g, mask=m_b & (o_g < 4 * H))
            b_next += (tl.where(m, b_new, b_h[j]) if PACKED or RAGGED else b_new,)
        b_h = b_next
        if RAGGED:
            if tl.max(m_cut.to(tl.int32)) > 0:  # a branch, or the pipeline would give these loads shared memory
                b_h = cut_state(b_h, p_reset, m_cut, H, CHUNKS)
    store_state(hn, b_h, row_state, n_tile, BB, H, CHUNKS)

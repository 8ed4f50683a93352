"""The persistent kernels: the whole time loop in one launch, the recurrent weights spread over many programs.

A program owns BH hidden units of the batch tiles it serves, in one direction, and keeps its slice of W_hh on chip. At
every step it collects the tile's states (backward: its gate gradients) from the programs that own the other units,
multiplies, and publishes its own. Where there are more tiles than the chip has room for, a program serves several in
turn with the same weights: while one tile's values are on their way, it works on another.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tritongru.kernels.exchange import (
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
from tritongru.kernels.gates import gru_step, gru_step_backward, kept
from tritongru.kernels.launching import kernel_options, launch_together, steps
from tritongru.kernels.rows import tile_at
from tritongru.kernels.slices import (
    collect_products,
    load_w_backward,
    load_w_forward,
    own_places,
    own_values,
    own_words,
    results,
)
from tritongru.kernels.trouble import LIMIT, patience
from tritongru.launches import PersistentLaunch

COUNTER_BYTES = 128  # a cache line for each counter


@triton.jit
def gates_of(
    b_acc, b_acc_n, BB: tl.constexpr, BH: tl.constexpr, OWN: tl.constexpr, KS: tl.constexpr, PAD: tl.constexpr
):
    """What the products are for r, z and n, each (OWN,)."""
    if PAD:
        b = tl.reshape(results(b_acc, 4, BB, BH, OWN, KS), (2, 2, OWN))
        b_rn, b_z = tl.split(tl.permute(b, (0, 2, 1)))
        b_r, b_n = tl.split(tl.permute(b_rn, (1, 0)))
        b_z, _ = tl.split(tl.permute(b_z, (1, 0)))
    else:
        b_r, b_z = tl.split(tl.permute(results(b_acc, 2, BB, BH, OWN, KS), (1, 0)))
        b_n = tl.reshape(results(b_acc_n, 1, BB, BH, OWN, KS), (OWN,))
    return b_r, b_z, b_n


@triton.jit
def inputs(p_x, m, H: tl.constexpr):
    b_r = tl.load(p_x, mask=m, other=0.0).to(tl.float32)
    b_z = tl.load(p_x + H, mask=m, other=0.0).to(tl.float32)
    return b_r, b_z, tl.load(p_x + 2 * H, mask=m, other=0.0).to(tl.float32)


@triton.jit
def bias_of(b_hh, i_d, GATE: tl.constexpr, o_h, H: tl.constexpr, USE: tl.constexpr):
    if USE:
        return tl.load(b_hh + (i_d * 3 + GATE) * H + o_h, mask=o_h < H, other=0.0).to(tl.float32)
    return tl.zeros_like(o_h).to(tl.float32)


@triton.jit(do_not_specialize=["T", "B", "tiles", "limit", "N"])
def persistent_forward_kernel(
    gx,  # (N, D, 3H) input projections with b_ih; N rows in time-major order
    w_hh,  # (D, 3H, H)
    b_hh,  # (D, 3H) if USE_BIAS
    h0,  # (D, B, H) if USE_H0
    y,  # (N, D, H)
    hn,  # (D, B, H)
    gates,  # (N, D, H, 4) if SAVE_GATES: r, z (see `gates.kept`), n and a = W_hn h + b_hn
    offsets,  # (T + 1,) first row of each step, if PACKED
    slots,  # (D, tiles, SLOTS, BB * units) zeros: the exchange
    state,  # (D, tiles, programs, BB, BH) fp32, each part touched by one program alone
    counters,  # (D, tiles, 32) int32 zeros, of which the first counts: each counter has a cache line of its own
    trouble,  # (1,) int64 that the host can read: where a program gave up waiting
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
    KS: tl.constexpr,
    SLOTS: tl.constexpr,
    DATA: tl.constexpr,
    PAD: tl.constexpr,
    THREADS: tl.constexpr,
):
    DT: tl.constexpr = y.dtype.element_ty
    E: tl.constexpr = 32 // DT.primitive_bitwidth
    PARTS: tl.constexpr = parts(DATA, E)
    SERIES: tl.constexpr = DT == tl.float32
    REFINE: tl.constexpr = SERIES and PRECISION != "tf32"
    SLOT: tl.constexpr = BB * first_unit(CHUNKS, KS, len(CHUNKS))
    GATES: tl.constexpr = 4 if PAD else 2  # side by side in one product: r, z, n and nothing, or r and z
    OWN: tl.constexpr = own_values(BB, BH, THREADS)
    i_h, i_g, i_d = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    programs, groups = tl.num_programs(0), tl.num_programs(1)
    w_d = w_hh + i_d * 3 * H * H
    b_w = load_w_forward(w_d, i_h, 0, GATES, H, BH, KS, CHUNKS, E, PARTS, UPCAST)
    b_w_n = b_w
    if not PAD:
        b_w_n = load_w_forward(w_d, i_h, 2, 1, H, BH, KS, CHUNKS, E, PARTS, UPCAST)
    o_b, o_h, m_own = own_places(i_h, BB, BH, OWN)
    m_h = m_own & (o_h < H)
    o_state = i_h * (BB * BH) + o_b * BH + (o_h - i_h * BH)
    o_slot = place(o_b, o_h, BB, E)
    o_word, m_word = own_words(i_h, BB, BH, OWN, E)
    b_bias_r = bias_of(b_hh, i_d, 0, o_h, H, USE_BIAS)
    b_bias_z = bias_of(b_hh, i_d, 1, o_h, H, USE_BIAS)
    b_bias_a = bias_of(b_hh, i_d, 2, o_h, H, USE_BIAS)

    for i_b in tl.range(i_g, tiles, groups):
        i_t = (i_d * tiles + i_b).to(tl.int64)
        m = m_h & (o_b < B - i_b * BB)
        if USE_H0:
            p_h0 = h0 + (i_d.to(tl.int64) * B + i_b * BB) * H + (o_b * H + o_h)
            b_h = tl.load(p_h0, mask=m, other=0.0).to(tl.float32)
        else:
            b_h = tl.zeros((OWN,), tl.float32)
        tl.store(state + i_t * (programs * BB * BH) + o_state, b_h, mask=m_own)
        slot = slots + i_t * (SLOTS * SLOT)
        publish(slot, b_h.to(DT), o_slot, m_own, o_word, m_word, E, DATA)
        if DATA:
            clear(slot.to(tl.pointer_type(tl.uint32)) + SLOT // E + o_word, SLOTS - 1, SLOT // E, m_word)
        arrive(counters + i_t * 32)

    for s in tl.range(T):
        t = s + i_d * (T - 1 - 2 * s)  # direction 1 walks from the last step to the first
        for i_b in tl.range(i_g, tiles, groups):
            i_t = (i_d * tiles + i_b).to(tl.int64)
            counter = counters + i_t * 32
            slot = slots + i_t * (SLOTS * SLOT)
            row, n_b = tile_at(t, i_b, T, B, N, offsets, BB, PACKED)
            row = row * D + i_d
            m = m_h & (o_b < n_b)
            p_x = gx + row * (3 * H) + (o_b * (D * 3 * H) + o_h)
            if KS > 1:  # ahead of the wait, which hides their way; a wide tile has no registers to keep them in
                b_r, b_z, b_x = inputs(p_x, m, H)
            left = wait_for_slot(counter, s, programs, limit, SLOTS, DATA)
            if not DATA:  # at once: a value that waits for the end of the products costs them a register
                limit = patience(trouble, counter, limit, left, s, 0, i_b, i_h, i_d)
            b_acc, b_acc_n, left = collect_products(
                *(slot + s % SLOTS * SLOT, b_w, b_w_n, left),
                *(GATES * BH, BH, not PAD, BB, KS, CHUNKS, E, DATA, UPCAST, PRECISION),
            )
            if DATA:
                limit = patience(trouble, counter, limit, left, s, 0, i_b, i_h, i_d)
                empty_half(slot, counter, s, o_word, m_word, SLOT, SLOTS, 1, E)
            if KS == 1:
                b_r, b_z, b_x = inputs(p_x, m, H)
            p_h = state + i_t * (programs * BB * BH) + o_state
            b_h = tl.load(p_h, mask=m_own, other=0.0) + tl.where(limit == IN_VAIN, float("nan"), 0.0)
            b_gr, b_gz, b_ga = gates_of(b_acc, b_acc_n, BB, BH, OWN, KS, PAD)
            b_a = b_ga + b_bias_a
            b_r, b_z, b_n, b_new = gru_step(
                b_r + (b_gr + b_bias_r), b_z + (b_gz + b_bias_z), b_x, b_a, b_h, SERIES, REFINE
            )
            if H % BH > 0:
                b_new = tl.where(o_h < H, b_new, 0.0)  # of an infinite state, 0 times it would reach everybody as NaN
            if PACKED:
                b_new = tl.where(m, b_new, b_h)
            b_y = b_new.to(DT)
            publish(slot + (s + 1) % SLOTS * SLOT, b_y, o_slot, m_own, o_word, m_word, E, DATA)
            tl.store(p_h, b_new, mask=m_own)
            if not DATA:
                arrive(counter)
            tl.store(y + row * H + (o_b * (D * H) + o_h), b_y, mask=m)
            if SAVE_GATES:
                b_g = tl.reshape(tl.join(tl.join(b_r, b_n), tl.join(kept(b_z), b_a)).to(DT), (OWN, 4))
                p_g = gates + row * (4 * H) + (o_b * (D * 4 * H) + o_h * 4)
                tl.store(p_g[:, None] + tl.arange(0, 4)[None, :], b_g, mask=m[:, None])

    tl.debug_barrier()
    for i_b in tl.range(i_g, tiles, groups):
        i_t = (i_d * tiles + i_b).to(tl.int64)
        b_h = tl.load(state + i_t * (programs * BB * BH) + o_state, mask=m_own, other=0.0)
        p_hn = hn + (i_d.to(tl.int64) * B + i_b * BB) * H + (o_b * H + o_h)
        tl.store(p_hn, b_h.to(DT), mask=m_h & (o_b < B - i_b * BB))


@triton.jit
def saved(p_g, p_y, p_h0, p_dy, m, m_prev, USE_H0: tl.constexpr, USE_DY: tl.constexpr):
    """r, z, n, a, the state before the step and the gradient of its output, of a program's own units."""
    b_g = tl.load(p_g[:, None] + tl.arange(0, 4)[None, :], mask=m[:, None], other=0.0)
    b_rn, b_za = tl.split(tl.reshape(b_g, (b_g.shape[0], 2, 2)))
    b_r, b_n = tl.split(b_rn)
    b_z, b_a = tl.split(b_za)
    b_hp = tl.load(p_y, mask=m_prev, other=0.0).to(tl.float32)
    if USE_H0:
        b_hp += tl.load(p_h0, mask=m & (m_prev == 0), other=0.0).to(tl.float32)
    if USE_DY:
        b_dy = tl.load(p_dy, mask=m, other=0.0).to(tl.float32)
    else:
        b_dy = tl.zeros_like(b_hp)
    return b_r.to(tl.float32), b_z.to(tl.float32), b_n.to(tl.float32), b_a.to(tl.float32), b_hp, b_dy


@triton.jit(do_not_specialize=["T", "B", "start", "count", "tiles", "limit", "N"])
def persistent_backward_kernel(
    dy,  # (N, D, H) if USE_DY
    dh,  # (D, B, H) fp32: of the states after these steps, replaced by that of the states before them
    w_hh,  # (D, 3H, H)
    h0,  # (D, B, H) if USE_H0
    y,  # (N, D, H)
    gates,  # (n, D, H, 4), of the rows of these steps, as are dgx and da
    dgx,  # (n, D, 3H)
    da,  # (n, D, H)
    offsets,  # (T + 1,) if PACKED
    slots,  # (D, tiles, SLOTS, BB * 3 units) zeros: the exchange of dr, dz and da
    counters,  # (D, tiles, 32) int32 zeros
    trouble,  # (1,) int64
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
    KS: tl.constexpr,
    SLOTS: tl.constexpr,
    DATA: tl.constexpr,
    THREADS: tl.constexpr,
):
    DT: tl.constexpr = y.dtype.element_ty
    E: tl.constexpr = 32 // DT.primitive_bitwidth
    SLOT: tl.constexpr = BB * first_unit(CHUNKS, KS, len(CHUNKS))
    GATE: tl.constexpr = SLOT // 3
    OWN: tl.constexpr = own_values(BB, BH, THREADS)
    i_h, i_g, i_d = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    programs, groups = tl.num_programs(0), tl.num_programs(1)
    b_w = load_w_backward(w_hh + i_d * 3 * H * H, i_h, H, BH, KS, CHUNKS, E, parts(DATA, E), UPCAST)
    o_b, o_h, m_own = own_places(i_h, BB, BH, OWN)
    m_h = m_own & (o_h < H)
    o_slot = place(o_b, o_h, BB, E)
    o_word, m_word = own_words(i_h, BB, BH, OWN, E)
    before = ((1 - i_d) * (T - start - count) + i_d * start).to(tl.int64) * B  # rows ahead of those of these steps

    for i_b in tl.range(i_g, tiles, groups):
        i_t = (i_d * tiles + i_b).to(tl.int64)
        if DATA:
            p_word = (slots + i_t * (SLOTS * SLOT)).to(tl.pointer_type(tl.uint32)) + SLOT // E + o_word
            for g in tl.static_range(3):
                clear(p_word + g * (GATE // E), SLOTS - 1, SLOT // E, m_word)
        arrive(counters + i_t * 32)

    for s in tl.range(count + 1):  # the first collects zeros; the last one's own step lies outside
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
            if KS > 1:
                b_r, b_z, b_n, b_a, b_hp, b_dy = saved(p_g, p_y, p_h0, p_dy, m, m_prev, USE_H0, USE_DY)
            left = wait_for_slot(counter, s, programs, limit, SLOTS, DATA)
            if not DATA:
                limit = patience(trouble, counter, limit, left, s, start, i_b, i_h, i_d)
            b_acc, _, left = collect_products(
                *(slot + s % SLOTS * SLOT, b_w, b_w, left),
                *(BH, BH, False, BB, KS, CHUNKS, E, DATA, UPCAST, PRECISION),
            )
            if DATA:
                limit = patience(trouble, counter, limit, left, s, start, i_b, i_h, i_d)
                empty_half(slot, counter, s, o_word, m_word, SLOT, SLOTS, 3, E)
            if KS == 1:
                b_r, b_z, b_n, b_a, b_hp, b_dy = saved(p_g, p_y, p_h0, p_dy, m, m_prev, USE_H0, USE_DY)
            m_state = m_h & (o_b < B - i_b * BB)
            p_dh = dh + row_state + o_state
            b_dh = tl.load(p_dh, mask=m_state, other=0.0) + tl.where(limit == IN_VAIN, float("nan"), 0.0)
            b_dh += tl.reshape(results(b_acc, 1, BB, BH, OWN, KS), (OWN,))
            b_dr, b_dz, b_dn, b_da, b_dhp = gru_step_backward(b_dh + b_dy, b_r, b_z, b_n, b_a, b_hp)
            b_dr, b_dz, b_da = b_dr.to(DT), b_dz.to(DT), b_da.to(DT)
            p_slot = slot + (s + 1) % SLOTS * SLOT
            publish(p_slot, b_dr, o_slot, m_own, o_word, m_word, E, DATA)
            publish(p_slot + GATE, b_dz, o_slot, m_own, o_word, m_word, E, DATA)
            publish(p_slot + 2 * GATE, b_da, o_slot, m_own, o_word, m_word, E, DATA)
            if not DATA:
                arrive(counter)
            tl.store(p_dh, tl.where(m, b_dhp, b_dh), mask=m_state)
            p_dx = dgx + part * (3 * H) + (o_b * (D * 3 * H) + o_h)
            tl.store(p_dx, b_dr, mask=m)
            tl.store(p_dx + H, b_dz, mask=m)
            tl.store(p_dx + 2 * H, b_dn.to(DT), mask=m)
            tl.store(da + part * H + o_y, b_da, mask=m)


def forward(
    gx: Tensor,  # (N, D, 3H)
    w_hh: Tensor,  # (D, 3H, H)
    b_hh: Tensor | None,  # (D, 3H)
    h0: Tensor | None,  # (D, B, H)
    y: Tensor,  # (N, D, H), written
    hn: Tensor,  # (D, B, H), written
    gates: Tensor,  # (N, D, H, 4), written, or empty
    offsets: Tensor | None,  # (T + 1,)
    launch: PersistentLaunch,
    limit: int = LIMIT,
) -> None:
    """Runs the kernel, all of whose programs are on the device at once or none.

    Raises:
        RuntimeError: if an earlier launch on this device gave up waiting.
    """
    D, B, H = hn.shape
    tiles, programs = -(-B // launch.block_b), launch.programs(H)
    counters, slots, state = workspace(y, D * tiles, launch, programs * launch.block_b * launch.block_h)
    launch_together(
        persistent_forward_kernel,
        (programs, launch.groups, D),
        y,
        *(gx, w_hh, b_hh, h0, y, hn, gates, offsets, slots, state, counters),
        T=steps(y, B, offsets),
        B=B,
        N=y.shape[0],
        tiles=tiles,
        limit=limit,
        D=D,
        H=H,
        USE_BIAS=b_hh is not None,
        USE_H0=h0 is not None,
        SAVE_GATES=gates.numel() > 0,
        PACKED=offsets is not None,
        **launch.constants,
        **kernel_options(y, launch.num_warps),
    )


def backward(
    dy: Tensor | None,  # (N, D, H)
    dh: Tensor,  # (D, B, H) fp32: of the states after these steps, replaced by that of the states before them
    w_hh: Tensor,  # (D, 3H, H)
    h0: Tensor | None,  # (D, B, H)
    y: Tensor,  # (N, D, H)
    gates: Tensor,  # (n, D, H, 4)
    dgx: Tensor,  # (n, D, 3H), written
    da: Tensor,  # (n, D, H), written
    offsets: Tensor | None,  # (T + 1,)
    launch: PersistentLaunch,
    start: int = 0,
    count: int | None = None,
    limit: int = LIMIT,
) -> None:
    """Runs the kernel over ``count`` steps (all that are left, if None) from the one that is walked ``start`` steps
    after the first; gates, dgx and da hold the rows of these steps. Packed rows are walked as a whole.

    Raises:
        RuntimeError: if an earlier launch on this device gave up waiting.
    """
    D, B, H = dh.shape
    T = steps(y, B, offsets)
    tiles = -(-B // launch.block_b)
    counters, slots, _ = workspace(y, D * tiles, launch)
    launch_together(
        persistent_backward_kernel,
        (launch.programs(H), launch.groups, D),
        y,
        *(dy, dh, w_hh, h0, y, gates, dgx, da, offsets, slots, counters),
        T=T,
        B=B,
        N=y.shape[0],
        start=start,
        count=T - start if count is None else count,
        tiles=tiles,
        limit=limit,
        D=D,
        H=H,
        USE_H0=h0 is not None,
        USE_DY=dy is not None,
        PACKED=offsets is not None,
        **launch.constants,
        **kernel_options(y, launch.num_warps),
    )


def workspace(
    like: Tensor, tiles: int, launch: PersistentLaunch, state: int = 0
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Counters, slots and ``state`` fp32 values a tile in one buffer, cleared by one memset. Each launch has its own,
    so that launches on two streams, or a graph replayed, never meet the counts of another."""
    words = (tiles * COUNTER_BYTES // 4, tiles * launch.slots * launch.tile_bytes // 4, tiles * state)
    buffer = torch.zeros(sum(words), dtype=torch.int32, device=like.device)
    slots = buffer[words[0] :].view(like.dtype)
    return buffer, slots, buffer[words[0] + words[1] :].view(torch.float32) if state else None

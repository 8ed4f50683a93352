"""The persistent kernels: the whole time loop in one launch, the recurrent weights spread over many programs.

A program owns BH hidden units of the batch tiles it serves, in one direction, and keeps its slice of W_hh on chip. At
every step it collects the tile's state from the programs that own the other units, multiplies, and publishes its own.
Where there are more tiles than the chip has room for, a program serves several in turn with the same weights: while
one tile's state is on its way, it works on another.
"""

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tritongru.kernels import together
from tritongru.kernels.exchange import (
    arrive,
    clear,
    collect_counted,
    collect_words,
    first_unit,
    operand_of,
    parts,
    place,
    publish,
    unit_at,
    wait,
)
from tritongru.kernels.gates import gru_step
from tritongru.kernels.launching import kernel_options, on_device_of, steps
from tritongru.kernels.rows import tile_at
from tritongru.kernels.trouble import LIMIT, raise_trouble, report, trouble_of
from tritongru.launches import PersistentLaunch

COUNTER_BYTES = 128  # a cache line for each counter


@triton.constexpr_function
def block_rows(BB, BH, THREADS):
    """Rows of a block of results. With fewer results than threads the rows repeat, so that each thread has one."""
    return max(BB, THREADS // BH)


@triton.jit
def swapped(o):
    """Neighbouring threads take units 0, 2, 1, 3 of four: the compiler would otherwise pair units in a thread for the
    wider loads, and pass every block through shared memory between loads of different widths."""
    return o // 4 * 4 + o % 2 * 2 + o // 2 % 2


@triton.jit
def load_w(
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
):
    """Columns of W_hh^T for the program's units, gates GATE .. GATE + GATES side by side, cut and ordered along k as
    the tile is collected."""
    o_n = tl.arange(0, GATES * BH)[None, None, :]
    o_g = GATE + o_n // BH
    o_h = i_h * BH + o_n % BH
    b_w = ()
    for i in tl.static_range(len(CHUNKS)):
        for part in tl.static_range(PARTS):
            o_k = unit_at(tl.arange(0, KS * CHUNKS[i] // PARTS), part, E, PARTS) + first_unit(CHUNKS, KS, i)
            o_k = tl.reshape(o_k, (KS, CHUNKS[i] // PARTS, 1))
            m = (o_k < H) & (o_h < H) & (o_g < 3)
            b = tl.load(w_hh + (o_g * H + o_h) * H + o_k, mask=m, other=0.0)
            b_w += (b.to(tl.float32) if UPCAST else b,)
    return b_w


@triton.jit
def nothing(BB: tl.constexpr, N: tl.constexpr, KS: tl.constexpr):
    if KS == 1:
        b = tl.zeros((BB, N), tl.float32)
    else:
        b = tl.zeros((KS, BB, N), tl.float32)
    return b


@triton.jit
def product(b_k, b_w, b_acc, KS: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr):
    """Adds a chunk's product. Each of KS groups of warps has a part of k, or, for KS == 1, of the rows."""
    if UPCAST:
        b_k = b_k.to(tl.float32)
    if KS == 1:
        b_k = tl.reshape(b_k, (b_k.shape[1], b_k.shape[2]))
        b_w = tl.reshape(b_w, (b_w.shape[1], b_w.shape[2]))
    return tl.dot(b_k, b_w, b_acc, input_precision=PRECISION)


@triton.jit
def results(b_acc, GATES: tl.constexpr, BB: tl.constexpr, BH: tl.constexpr, BR: tl.constexpr, KS: tl.constexpr):
    """The sum over KS, (GATES, BR, BH), units swapped. One trip through shared memory hands each thread the parts of
    the results that are its own, and it adds them up."""
    b = tl.permute(tl.reshape(b_acc, (KS, BB, GATES, BH // 4, 2, 2)), (0, 2, 1, 3, 5, 4))
    o = tl.arange(0, KS * GATES * BR * BH)
    if BR > BB:
        o = o // (BR * BH) * (BB * BH) + o % (BB * BH)
    b = tl.gather(tl.reshape(b, (KS * GATES * BB * BH,)), o, 0)
    return tl.sum(tl.reshape(b, (KS, GATES, BR, BH)), axis=0)


@triton.jit
def gates_of(b_acc, b_acc_n, BB: tl.constexpr, BH: tl.constexpr, BR: tl.constexpr, KS: tl.constexpr, PAD: tl.constexpr):
    """What the products are for r, z and n, each (BR, BH)."""
    if PAD:
        b = tl.reshape(results(b_acc, 4, BB, BH, BR, KS), (2, 2, BR, BH))
        b_rn, b_z = tl.split(tl.permute(b, (0, 2, 3, 1)))
        b_r, b_n = tl.split(tl.permute(b_rn, (1, 2, 0)))
        b_z, _ = tl.split(tl.permute(b_z, (1, 2, 0)))
    else:
        b_r, b_z = tl.split(tl.permute(results(b_acc, 2, BB, BH, BR, KS), (1, 2, 0)))
        b_n = tl.reshape(results(b_acc_n, 1, BB, BH, BR, KS), (BR, BH))
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


@triton.jit(do_not_specialize=["T", "B", "tiles", "limit"])
def persistent_forward_kernel(
    gx,  # (N, D, 3H) input projections with b_ih; N rows in time-major order
    w_hh,  # (D, 3H, H)
    b_hh,  # (D, 3H) if USE_BIAS
    h0,  # (D, B, H) if USE_H0
    y,  # (N, D, H)
    hn,  # (D, B, H)
    gates,  # (N, D, H, 4) if SAVE_GATES: r, z, n and a = W_hn h + b_hn
    offsets,  # (T + 1,) first row of each step, if PACKED
    slots,  # (D, tiles, SLOTS, BB * units) zeros: the exchange
    state,  # (D, tiles, programs, BB, BH) fp32, each part touched by one program alone
    counters,  # (D, tiles, 32) int32 zeros, of which the first counts: each counter has a cache line of its own
    trouble,  # (1,) int64 that the host can read: where a program gave up waiting
    T,
    B,
    tiles,
    limit,
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
    HALF: tl.constexpr = SLOTS // 2
    GATES: tl.constexpr = 4 if PAD else 2  # side by side in one product: r, z, n and nothing, or r and z
    BR: tl.constexpr = block_rows(BB, BH, THREADS)
    i_h, i_g, i_d = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    programs, groups = tl.num_programs(0), tl.num_programs(1)
    w_d = w_hh + i_d * 3 * H * H
    b_w = load_w(w_d, i_h, 0, GATES, H, BH, KS, CHUNKS, E, PARTS, UPCAST)
    if not PAD:
        b_w_n = load_w(w_d, i_h, 2, 1, H, BH, KS, CHUNKS, E, PARTS, UPCAST)
    o_row = tl.arange(0, BR)[:, None]
    o_b = o_row % BB
    o_h = i_h * BH + swapped(tl.arange(0, BH))[None, :]
    m_own = (o_row < BB) & (o_h < i_h * BH + BH)
    m_h = m_own & (o_h < H)
    o_state = i_h * (BB * BH) + o_b * BH + swapped(tl.arange(0, BH))[None, :]
    o_slot = place(o_b, o_h, BB, E)
    o_unit = swapped(tl.arange(0, BH)) if E == 1 else 2 * tl.arange(0, BH // 2)
    o_word = place(o_b, i_h * BH + o_unit[None, :], BB, E) // E
    m_word = (o_row < BB) & (o_unit < BH)[None, :]
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
            b_h = tl.zeros((BR, BH), tl.float32)
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
            row, n_b = tile_at(t, i_b, T, B, offsets, BB, PACKED)
            row = row * D + i_d
            m = m_h & (o_b < n_b)
            p_x = gx + row * (3 * H) + (o_b * (D * 3 * H) + o_h)
            if KS > 1:  # ahead of the wait, which hides their way; a wide tile has no registers to keep them in
                b_r, b_z, b_x = inputs(p_x, m, H)
            p_slot = slot + s % SLOTS * SLOT
            if DATA:
                ok = True
                if s % HALF == 0:
                    ok = wait(counter, programs * tl.maximum(s // HALF, 1), limit)
            else:
                ok = wait(counter, programs * (s + 1), limit)
            b_acc = nothing(BB, GATES * BH, KS)
            b_acc_n = nothing(BB, BH, KS)
            for i in tl.static_range(len(CHUNKS)):
                if DATA:
                    b_words, seen = collect_words(p_slot, i, limit, BB, KS, CHUNKS, E)
                    ok = ok & seen
                for part in tl.static_range(PARTS):
                    if DATA:
                        b_k = operand_of(b_words, part, DT, BB, KS, CHUNKS[i], E)
                    else:
                        b_k = collect_counted(p_slot, i, BB, KS, CHUNKS, E)
                    b_acc = product(b_k, b_w[i * PARTS + part], b_acc, KS, UPCAST, PRECISION)
                    if not PAD:
                        b_acc_n = product(b_k, b_w_n[i * PARTS + part], b_acc_n, KS, UPCAST, PRECISION)
            if limit > 0:
                if not ok:
                    tl.store(trouble, report(s, i_b, i_h, i_d))
                    limit = 0
            if DATA:
                if (s % HALF == 0) & (s > 0):  # everybody has read the other half, for they have written this slot
                    p_word = (slot + (s - HALF) % SLOTS * SLOT).to(tl.pointer_type(tl.uint32)) + o_word
                    clear(p_word, HALF, SLOT // E, m_word)
                    arrive(counter)
            if KS == 1:
                b_r, b_z, b_x = inputs(p_x, m, H)
            p_h = state + i_t * (programs * BB * BH) + o_state
            b_h = tl.load(p_h, mask=m_own, other=0.0) + tl.where(limit > 0, 0.0, float("nan"))
            b_gr, b_gz, b_ga = gates_of(b_acc, b_acc_n, BB, BH, BR, KS, PAD)
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
                b_g = tl.reshape(tl.join(tl.join(b_r, b_n), tl.join(b_z, b_a)).to(DT), (BR, BH, 4))
                p_g = gates + row * (4 * H) + (o_b * (D * 4 * H) + o_h * 4)
                tl.store(p_g[:, :, None] + tl.arange(0, 4)[None, None, :], b_g, mask=m[:, :, None])

    tl.debug_barrier()
    for i_b in tl.range(i_g, tiles, groups):
        i_t = (i_d * tiles + i_b).to(tl.int64)
        b_h = tl.load(state + i_t * (programs * BB * BH) + o_state, mask=m_own, other=0.0)
        p_hn = hn + (i_d.to(tl.int64) * B + i_b * BB) * H + (o_b * H + o_h)
        tl.store(p_hn, b_h.to(DT), mask=m_h & (o_b < B - i_b * BB))


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
    tiles, programs = triton.cdiv(B, launch.block_b), launch.programs(H)
    trouble = trouble_of(y.device)
    raise_trouble(trouble)
    slots, state, counters = workspace(y, D * tiles, programs, launch)
    grid = (programs, launch.groups, D)
    with on_device_of(y):
        run = functools.partial(together.launch, persistent_forward_kernel, grid)
        if y.is_cuda:
            run = functools.partial(persistent_forward_kernel[grid], launch_cooperative_grid=True)
        run(
            gx,
            w_hh,
            b_hh,
            h0,
            y,
            hn,
            gates,
            offsets,
            slots,
            state,
            counters,
            trouble,
            T=steps(y, B, offsets),
            B=B,
            tiles=tiles,
            limit=limit,
            D=D,
            H=H,
            USE_BIAS=b_hh is not None,
            USE_H0=h0 is not None,
            SAVE_GATES=gates.numel() > 0,
            PACKED=offsets is not None,
            **blocks(launch),
            **kernel_options(y, launch.num_warps),
        )
    if y.is_cpu:
        raise_trouble(trouble)


def blocks(launch: PersistentLaunch) -> dict[str, Any]:
    return {
        "PRECISION": launch.dot_precision,
        "CHUNKS": launch.chunks,
        "BB": launch.block_b,
        "BH": launch.block_h,
        "KS": launch.k_split,
        "SLOTS": launch.slots,
        "DATA": launch.exchange == "data",
        "PAD": launch.pad,
        "THREADS": 32 * launch.num_warps,
    }


def workspace(y: Tensor, tiles: int, programs: int, launch: PersistentLaunch) -> tuple[Tensor, Tensor, Tensor]:
    """Slots, state and counters in one buffer, cleared by one memset. Each launch has its own, so that launches on two
    streams, or a graph replayed, never meet the counts of another."""
    slots = tiles * launch.slots * launch.block_b * launch.units * y.element_size()
    state = tiles * programs * launch.block_b * launch.block_h * 4
    counters = tiles * COUNTER_BYTES
    buffer = torch.zeros(counters + slots + state, dtype=torch.uint8, device=y.device)
    parts = buffer.split((counters, slots, state))
    return parts[1].view(y.dtype), parts[2].view(torch.float32), parts[0].view(torch.int32)

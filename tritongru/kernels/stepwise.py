"""The stepwise kernels: one launch a time step, for recurrent weights that the chip cannot hold.

A program owns BH hidden units of BB batch rows in one direction: it streams its rows of W_hh past the state of the
step before, and does the gate math where the product ends. The end of a launch is what the programs meet at. Launches
differ in the step alone, a plain number, so that a CUDA graph of them replays without the host.
"""

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tritongru.kernels.chunks import load_block
from tritongru.kernels.gates import gru_step, gru_step_backward, kept
from tritongru.kernels.launching import kernel_options, on_device_of, steps
from tritongru.kernels.rows import tile_at
from tritongru.launches import StepwiseLaunch


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
def product_backward(
    p_dx,  # (BB, 1) pointers to the rows of dgx
    p_da,  # (BB, 1) and of da
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
    """(dr, dz, da) W, one block of one gate at a time: of several products into one sum in an iteration, the compiler
    makes a chain with exchanges between (17 barriers for 2)."""
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


@triton.jit
def inputs(p_x, m, H: tl.constexpr):
    b_r = tl.load(p_x, mask=m, other=0.0)
    b_z = tl.load(p_x + H, mask=m, other=0.0)
    return b_r, b_z, tl.load(p_x + 2 * H, mask=m, other=0.0)


@triton.jit
def bias_of(b_hh, i_d, GATE: tl.constexpr, o_h, H: tl.constexpr, USE: tl.constexpr):
    if USE:
        b = tl.load(b_hh + (i_d * 3 + GATE) * H + o_h, mask=o_h < H, other=0.0).to(tl.float32)
    else:
        b = tl.zeros_like(o_h).to(tl.float32)
    return b


@triton.jit(do_not_specialize=["s", "T", "B", "N"])
def stepwise_forward_kernel(
    gx,  # (N, D, 3H) input projections with b_ih; N rows in time-major order
    w_hh,  # (D, 3H, H)
    b_hh,  # (D, 3H) if USE_BIAS
    h0,  # (D, B, H) if USE_H0
    y,  # (N, D, H)
    gates,  # (N, D, H, 4) if SAVE_GATES: r, z (see `gates.kept`), n and a = W_hn h + b_hn
    state,  # (D, B, H) fp32: h of each row's last step; a program touches its own units alone
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
):
    DT: tl.constexpr = y.dtype.element_ty
    SERIES: tl.constexpr = DT == tl.float32
    REFINE: tl.constexpr = SERIES and PRECISION != "tf32"
    AHEAD: tl.constexpr = BB <= 32  # a wide tile has no registers to keep its inputs in
    i_b, i_h, i_d = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    t = s + i_d * (T - 1 - 2 * s)  # direction 1 walks from the last step to the first
    row, n_b = tile_at(t, i_b, T, B, N, offsets, BB, PACKED)
    row_prev, n_prev = tile_at(t - 1 + 2 * i_d, i_b, T, B, N, offsets, BB, PACKED)
    row, row_prev = row * D + i_d, row_prev * D + i_d
    row_state = i_d.to(tl.int64) * B + i_b * BB
    if n_b > 0:
        o_b, o_h = tl.arange(0, BB)[:, None], i_h * BH + tl.arange(0, BH)[None, :]
        m = (o_b < n_b) & (o_h < H)
        p_x = gx + row * (3 * H) + (o_b * (D * 3 * H) + o_h)
        if AHEAD:
            b_xr, b_xz, b_xn = inputs(p_x, m, H)
        p_h = y + row_prev * H + o_b * (D * H)
        m_k = o_b < tl.minimum(n_b, n_prev)
        if USE_H0:  # rows that begin at this step
            p_h = tl.where(o_b < n_prev, p_h, h0 + row_state * H + o_b * H)
            m_k = o_b < n_b
        w = w_hh + (i_d.to(tl.int64) * (3 * H) + i_h * BH) * H
        b_r, b_z, b_a = product_forward(p_h, m_k, w, H - i_h * BH, H, UPCAST, PRECISION, BB, BH, BK, STAGES)
        if not AHEAD:
            b_xr, b_xz, b_xn = inputs(p_x, m, H)
        b_r += b_xr.to(tl.float32) + bias_of(b_hh, i_d, 0, o_h, H, USE_BIAS)
        b_z += b_xz.to(tl.float32) + bias_of(b_hh, i_d, 1, o_h, H, USE_BIAS)
        b_a += bias_of(b_hh, i_d, 2, o_h, H, USE_BIAS)
        p_state = state + row_state * H + (o_b * H + o_h)
        b_h = tl.load(p_state, mask=m, other=0.0)
        b_r, b_z, b_n, b_new = gru_step(b_r, b_z, b_xn.to(tl.float32), b_a, b_h, SERIES, REFINE)
        tl.store(p_state, b_new, mask=m)
        tl.store(y + row * H + (o_b * (D * H) + o_h), b_new.to(DT), mask=m)
        if SAVE_GATES:
            b_g = tl.join(tl.join(b_r, b_n), tl.join(kept(b_z), b_a)).to(DT)  # [..., 0, :] = r z, [..., 1, :] = n a
            o_g = 4 * i_h * BH + tl.arange(0, 4 * BH)[None, :]
            p_g = gates + row * (4 * H) + (o_b * (D * 4 * H) + o_g)
            tl.store(p_g, tl.reshape(b_g, (BB, 4 * BH)), mask=(o_b < n_b) & (o_g < 4 * H))


@triton.jit(do_not_specialize=["s", "T", "B", "start", "count", "N"])
def stepwise_backward_kernel(
    dy,  # (N, D, H) if USE_DY
    w_hh,  # (D, 3H, H)
    h0,  # (D, B, H) if USE_H0
    y,  # (N, D, H)
    gates,  # (n, D, H, 4), as the next two the rows of this part alone
    dgx,  # (n, D, 3H)
    da,  # (n, D, H)
    dh,  # (D, B, H) fp32: gradient of the state, but for what the next step's product brings
    offsets,  # (T + 1,) if PACKED
    s,  # the step of the walk: in direction 0 it begins at the last step
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
):
    """The product of the step before, if that is one of this part, then the gates of this step, if it is."""
    DT: tl.constexpr = y.dtype.element_ty
    last = start + count
    i_b, i_h, i_d = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    t = T - 1 - s - i_d * (T - 1 - 2 * s)
    row, n_b = tile_at(t, i_b, T, B, N, offsets, BB, PACKED)
    row_next, n_next = tile_at(t + 1 - 2 * i_d, i_b, T, B, N, offsets, BB, PACKED)
    row_prev, n_prev = tile_at(t - 1 + 2 * i_d, i_b, T, B, N, offsets, BB, PACKED)
    row, row_next, row_prev = row * D + i_d, row_next * D + i_d, row_prev * D + i_d
    row_part = (T - last + i_d * (start + last - T)).to(tl.int64) * B * D  # where the part's own tensors begin
    row_state = i_d.to(tl.int64) * B + i_b * BB
    n_b = tl.where(s < last, n_b, 0)
    n_next = tl.where(s > start, n_next, 0)
    if (n_b > 0) | (n_next > 0):
        o_b, o_h = tl.arange(0, BB)[:, None], i_h * BH + tl.arange(0, BH)[None, :]
        p_dx = dgx + (row_next - row_part) * (3 * H) + o_b * (D * 3 * H)
        p_da = da + (row_next - row_part) * H + o_b * (D * H)
        w = w_hh + i_d.to(tl.int64) * (3 * H * H) + i_h * BH
        b_dh = product_backward(
            p_dx, p_da, o_b < n_next, w, H - i_h * BH, n_next <= 0, H, UPCAST, PRECISION, BB, BH, BK, STAGES
        )
        p_dh = dh + row_state * H + (o_b * H + o_h)
        m_own = (o_b < B - i_b * BB) & (o_h < H)
        b_dh += tl.load(p_dh, mask=m_own, other=0.0)
        m_b = o_b < n_b
        m = m_b & (o_h < H)
        o_y = o_b * (D * H) + o_h
        o_g = 4 * i_h * BH + tl.arange(0, 4 * BH)[None, :]
        p_g = gates + (row - row_part) * (4 * H) + (o_b * (D * 4 * H) + o_g)
        b_g = tl.load(p_g, mask=m_b & (o_g < 4 * H), other=0.0)
        b_rz, b_na = tl.split(tl.permute(tl.reshape(b_g, (BB, BH, 2, 2)), (0, 1, 3, 2)))
        b_r, b_z = tl.split(b_rz)
        b_n, b_a = tl.split(b_na)
        b_hp = tl.load(y + row_prev * H + o_y, mask=m & (o_b < n_prev), other=0.0).to(tl.float32)
        if USE_H0:  # rows that began at this step
            p_h0 = h0 + row_state * H + (o_b * H + o_h)
            b_hp += tl.load(p_h0, mask=m & (o_b >= n_prev), other=0.0).to(tl.float32)
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


def forward(
    gx: Tensor,  # (N, D, 3H)
    w_hh: Tensor,  # (D, 3H, H)
    b_hh: Tensor | None,  # (D, 3H)
    h0: Tensor | None,  # (D, B, H)
    y: Tensor,  # (N, D, H), written
    hn: Tensor,  # (D, B, H), written
    gates: Tensor,  # (N, D, H, 4), written, or empty
    offsets: Tensor | None,  # (T + 1,)
    launch: StepwiseLaunch,
) -> None:
    D, B, H = hn.shape
    T = steps(y, B, offsets)
    with on_device_of(y):
        if h0 is None:
            state = torch.zeros(hn.shape, dtype=torch.float32, device=y.device)
        else:
            state = h0.to(torch.float32, copy=True)
        step = functools.partial(
            stepwise_forward_kernel[grid(hn, launch)],
            gx,
            w_hh,
            b_hh,
            h0,
            y,
            gates,
            state,
            offsets,
            T=T,
            B=B,
            N=y.shape[0],
            D=D,
            H=H,
            USE_BIAS=b_hh is not None,
            USE_H0=h0 is not None,
            SAVE_GATES=gates.numel() > 0,
            PACKED=offsets is not None,
            **blocks(launch),
            **kernel_options(y, launch.num_warps),
        )
        for s in range(T):
            step(s=s)
        hn.copy_(state)


def backward(
    dy: Tensor | None,  # (N, D, H)
    dh: Tensor,  # (D, B, H) float32: gradient of the state after the steps, replaced by that of the state before them
    w_hh: Tensor,  # (D, 3H, H)
    h0: Tensor | None,  # (D, B, H)
    y: Tensor,  # (N, D, H)
    gates: Tensor,  # (n, D, H, 4)
    dgx: Tensor,  # (n, D, 3H), written
    da: Tensor,  # (n, D, H), written
    offsets: Tensor | None,  # (T + 1,)
    launch: StepwiseLaunch,
    start: int = 0,
    count: int | None = None,
) -> None:
    """Steps ``start .. start + count - 1`` of the walk back, whose rows alone the last three tensors before ``offsets``
    hold: direction 0 walks from the last step down, direction 1 from the first one up."""
    D, B, H = dh.shape
    T = steps(y, B, offsets)
    count = T - start if count is None else count
    with on_device_of(y):
        step = functools.partial(
            stepwise_backward_kernel[grid(dh, launch)],
            dy,
            w_hh,
            h0,
            y,
            gates,
            dgx,
            da,
            dh,
            offsets,
            T=T,
            B=B,
            N=y.shape[0],
            start=start,
            count=count,
            D=D,
            H=H,
            USE_H0=h0 is not None,
            USE_DY=dy is not None,
            PACKED=offsets is not None,
            **blocks(launch),
            **kernel_options(y, launch.num_warps),
        )
        for s in range(start, start + count + 1):  # the last one is for the product alone
            step(s=s)


def grid(state: Tensor, launch: StepwiseLaunch) -> tuple[int, int, int]:
    """Programs that read the same part of W_hh are neighbours, so that it comes from memory once."""
    D, B, H = state.shape
    return triton.cdiv(B, launch.block_b), triton.cdiv(H, launch.block_h), D


def blocks(launch: StepwiseLaunch) -> dict[str, Any]:
    return {
        "PRECISION": launch.dot_precision,
        "BB": launch.block_b,
        "BH": launch.block_h,
        "BK": launch.block_k,
        "STAGES": launch.stages,
    }

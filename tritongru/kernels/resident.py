"""The resident kernels: one program runs the whole time loop of BB batch rows in one direction.

W_hh is loaded once, before the loop, and the compiler keeps it in shared memory; the state stays in registers, and
what later steps need from memory is fetched ahead by the software pipeline (``STAGES``).
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from tritongru.kernels.chunks import (
    load_bias,
    load_state,
    load_w_backward,
    load_w_forward,
    products_backward,
    products_forward,
    store_state,
    units,
)
from tritongru.kernels.chunks import (
    start as first_of,
)
from tritongru.kernels.gates import gru_step, gru_step_backward, kept
from tritongru.kernels.launching import kernel_options, on_device_of, steps
from tritongru.kernels.rows import tile_at
from tritongru.launches import Launch


@triton.jit(do_not_specialize=["T", "B", "N"])
def resident_forward_kernel(
    gx,  # (N, D, 3H) input projections with b_ih; N rows in time-major order
    w_hh,  # (D, 3H, H)
    b_hh,  # (D, 3H) if USE_BIAS
    h0,  # (D, B, H) if USE_H0
    y,  # (N, D, H)
    hn,  # (D, B, H)
    gates,  # (N, D, H, 4) if SAVE_GATES: r, z (see `gates.kept`), n and a = W_hn h + b_hn
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
):
    DT: tl.constexpr = y.dtype.element_ty
    SERIES: tl.constexpr = DT == tl.float32
    REFINE: tl.constexpr = SERIES and PRECISION != "tf32"
    i_b, i_d = tl.program_id(0), tl.program_id(1)
    o_b = tl.arange(0, BB)[:, None]
    n_tile = B - i_b * BB
    row_state = i_d.to(tl.int64) * B + i_b * BB
    b_w = load_w_forward(w_hh + i_d * 3 * H * H, H, CHUNKS, UPCAST)
    b_bias = load_bias(b_hh, i_d, H, CHUNKS, USE_BIAS)
    b_h = load_state(h0, row_state, n_tile, BB, H, CHUNKS, USE_H0)
    for s in tl.range(T, num_stages=STAGES):
        t = s + i_d * (T - 1 - 2 * s)  # direction 1 walks from the last step to the first
        row, n_b = tile_at(t, i_b, T, B, N, offsets, BB, PACKED)
        row = row * D + i_d
        m_b = o_b < n_b
        b_k, b_next = (), ()
        for i in tl.static_range(len(CHUNKS)):
            b_k += (b_h[i].to(DT).to(tl.float32) if UPCAST else b_h[i].to(DT),)
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
                b_g = tl.join(tl.join(b_r, b_n), tl.join(kept(b_z), b_a)).to(DT)  # [..., 0, :] = r z, [..., 1, :] = n a
                b_g = tl.reshape(b_g, (BB, 4 * CHUNKS[j]))
                o_g = 4 * first_of(CHUNKS, j) + tl.arange(0, 4 * CHUNKS[j])[None, :]
                p_g = gates + row * (4 * H) + (o_b * (D * 4 * H) + o_g)
                tl.store(p_g, b_g, mask=m_b & (o_g < 4 * H))
            b_next += (tl.where(m, b_new, b_h[j]) if PACKED else b_new,)
        b_h = b_next
    store_state(hn, b_h, row_state, n_tile, BB, H, CHUNKS)


@triton.jit(do_not_specialize=["T", "B", "start", "count", "N"])
def resident_backward_kernel(
    dy,  # (N, D, H) if USE_DY
    dh,  # (D, B, H) fp32: of the states after these steps, replaced by that of the states before them
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
):
    DT: tl.constexpr = y.dtype.element_ty
    i_b, i_d = tl.program_id(0), tl.program_id(1)
    o_b = tl.arange(0, BB)[:, None]
    n_tile = B - i_b * BB
    row_state = i_d.to(tl.int64) * B + i_b * BB
    b_w = load_w_backward(w_hh + i_d * 3 * H * H, H, CHUNKS, UPCAST)
    b_h0 = load_state(h0, row_state, n_tile, BB, H, CHUNKS, USE_H0)
    b_dh = load_state(dh, row_state, n_tile, BB, H, CHUNKS, True)
    before = ((1 - i_d) * (T - start - count) + i_d * start).to(tl.int64) * B  # rows ahead of those of these steps
    for s in tl.range(start, start + count, num_stages=STAGES):
        t = T - 1 - s - i_d * (T - 1 - 2 * s)
        row, n_b = tile_at(t, i_b, T, B, N, offsets, BB, PACKED)
        row_prev, n_prev = tile_at(t - 1 + 2 * i_d, i_b, T, B, N, offsets, BB, PACKED)
        part = (row - before) * D + i_d
        row, row_prev = row * D + i_d, row_prev * D + i_d
        m_b, m_prev = o_b < n_b, o_b < n_prev
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
            b_hp = tl.load(y + row_prev * H + o_y, mask=m_prev & (o_h < H), other=0.0).to(tl.float32)
            b_hp = tl.where(m_prev, b_hp, b_h0[i])
            b_dhi = b_dh[i]
            if USE_DY:
                b_dhi += tl.load(dy + row * H + o_y, mask=m, other=0.0).to(tl.float32)
            b_r, b_z, b_n, b_a = b_r.to(tl.float32), b_z.to(tl.float32), b_n.to(tl.float32), b_a.to(tl.float32)
            b_dr, b_dz, b_dn, b_da, b_dhp = gru_step_backward(b_dhi, b_r, b_z, b_n, b_a, b_hp)
            b_dr, b_dz, b_dn, b_da = b_dr.to(DT), b_dz.to(DT), b_dn.to(DT), b_da.to(DT)
            p_dx = dgx + part * (3 * H) + (o_b * (D * 3 * H) + o_h)
            tl.store(p_dx, b_dr, mask=m)
            tl.store(p_dx + H, b_dz, mask=m)
            tl.store(p_dx + 2 * H, b_dn, mask=m)
            tl.store(da + part * H + o_y, b_da, mask=m)
            if UPCAST:
                b_dg += (b_dr.to(tl.float32), b_dz.to(tl.float32), b_da.to(tl.float32))
            else:
                b_dg += (b_dr, b_dz, b_da)
            b_direct += (tl.where(m_b, b_dhp, b_dh[i]) if PACKED else b_dhp,)
        for j in tl.static_range(len(CHUNKS)):
            b_next += (products_backward(b_dg, b_w, b_direct[j], j, CHUNKS, PRECISION),)
        b_dh = b_next
    store_state(dh, b_dh, row_state, n_tile, BB, H, CHUNKS)


def forward(
    gx: Tensor,  # (N, D, 3H)
    w_hh: Tensor,  # (D, 3H, H)
    b_hh: Tensor | None,  # (D, 3H)
    h0: Tensor | None,  # (D, B, H)
    y: Tensor,  # (N, D, H), written
    hn: Tensor,  # (D, B, H), written
    gates: Tensor,  # (N, D, H, 4), written, or empty
    offsets: Tensor | None,  # (T + 1,)
    launch: Launch,
) -> None:
    D, B, H = hn.shape
    with on_device_of(y):
        resident_forward_kernel[(-(-B // launch.block_b), D)](
            gx,
            w_hh,
            b_hh,
            h0,
            y,
            hn,
            gates,
            offsets,
            T=steps(y, B, offsets),
            B=B,
            N=y.shape[0],
            D=D,
            H=H,
            USE_BIAS=b_hh is not None,
            USE_H0=h0 is not None,
            SAVE_GATES=gates.numel() > 0,
            PACKED=offsets is not None,
            **options(y, launch),
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
    launch: Launch,
    start: int = 0,
    count: int | None = None,
) -> None:
    """Runs the kernel over ``count`` steps (all that are left, if None) from the one that is walked ``start`` steps
    after the first; gates, dgx and da hold the rows of these steps. Packed rows are walked as a whole."""
    D, B, H = dh.shape
    T = steps(y, B, offsets)
    with on_device_of(y):
        resident_backward_kernel[(-(-B // launch.block_b), D)](
            dy,
            dh,
            w_hh,
            h0,
            y,
            gates,
            dgx,
            da,
            offsets,
            T=T,
            B=B,
            N=y.shape[0],
            start=start,
            count=T - start if count is None else count,
            D=D,
            H=H,
            USE_H0=h0 is not None,
            USE_DY=dy is not None,
            PACKED=offsets is not None,
            **options(y, launch),
        )


def options(y: Tensor, launch: Launch) -> dict[str, Any]:
    return {
        "CHUNKS": launch.chunks,
        "BB": launch.block_b,
        "STAGES": launch.stages,
        "PRECISION": launch.dot_precision,
        **kernel_options(y, launch.num_warps),
    }

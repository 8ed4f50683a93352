"""The gates of many rows from their two products, for ``memory="recompute"``."""

import triton
import triton.language as tl
from torch import Tensor

from tritongru.kernels.gates import encode_update, gru_step
from tritongru.kernels.launching import on_device_of, options_of

BLOCK = 512
WARPS = 4


@triton.jit(do_not_specialize=["n", "i_d"])
def rebuild_kernel(
    gx,  # (n, 3H)
    gh,  # (n, 3H) products of the previous states, with b_hh
    gates,  # (n, D, H, 4), of which one direction is written
    n,
    i_d,
    D: tl.constexpr,
    H: tl.constexpr,
    REFINE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    DT: tl.constexpr = gx.dtype.element_ty
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, o_h = o // H, o % H
    m = row < n
    o_g = row * (3 * H) + o_h
    g_r = tl.load(gx + o_g, mask=m, other=0.0).to(tl.float32) + tl.load(gh + o_g, mask=m, other=0.0).to(tl.float32)
    g_z = tl.load(gx + o_g + H, mask=m, other=0.0).to(tl.float32)
    g_z += tl.load(gh + o_g + H, mask=m, other=0.0).to(tl.float32)
    b_x = tl.load(gx + o_g + 2 * H, mask=m, other=0.0).to(tl.float32)
    b_a = tl.load(gh + o_g + 2 * H, mask=m, other=0.0).to(tl.float32)
    b_r, b_z, b_n, _ = gru_step(g_r, g_z, b_x, b_a, tl.zeros_like(b_a), DT == tl.float32, REFINE)
    b_g = tl.reshape(tl.join(tl.join(b_r, b_n), tl.join(encode_update(b_z), b_a)).to(DT), (BLOCK, 4))
    p_g = gates + (row * D + i_d) * (4 * H) + o_h * 4
    tl.store(p_g[:, None] + tl.arange(0, 4)[None, :], b_g, mask=m[:, None])


def rebuild(
    gx: Tensor,  # (n, 3H)
    gh: Tensor,  # (n, 3H)
    gates: Tensor,  # (n, D, H, 4), written in direction d
    d: int,
    precision: str,
) -> None:
    n, D, H = gates.shape[:3]
    if n == 0:
        return
    with on_device_of(gates):
        rebuild_kernel[(triton.cdiv(n * H, BLOCK),)](
            gx,
            gh,
            gates,
            n,
            d,
            D=D,
            H=H,
            REFINE=gates.itemsize == 4 and precision != "tf32",
            BLOCK=BLOCK,
            **options_of(WARPS),
        )

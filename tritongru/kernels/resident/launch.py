"""Launches of the resident kernels."""

from typing import Any

from torch import Tensor

from tritongru.kernels.launching import kernel_options, on_device_of, steps
from tritongru.kernels.resident.backward_kernel import resident_backward_kernel
from tritongru.kernels.resident.forward_kernel import resident_forward_kernel
from tritongru.planning.launches import Launch


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

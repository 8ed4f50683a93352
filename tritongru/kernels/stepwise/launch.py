"""Launches of the stepwise kernels, one for each time step."""

import functools
from typing import Any

import torch
import triton
from torch import Tensor

from tritongru.kernels.launching import kernel_options, on_device_of, steps
from tritongru.kernels.stepwise.backward_kernel import stepwise_backward_kernel
from tritongru.kernels.stepwise.forward_kernel import stepwise_forward_kernel
from tritongru.planning.launches import StepwiseLaunch


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

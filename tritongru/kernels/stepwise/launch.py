"""Launches of the stepwise kernels, one for each time step."""

import functools
from typing import Any

import torch
import triton
from torch import Tensor

from tritongru.arguments.records import WHOLE, GateGradients, Outputs, Part, Recurrence, Saved
from tritongru.kernels.launching import backward_sizes, forward_sizes, kernel_options, on_device_of
from tritongru.kernels.stepwise.backward_kernel import stepwise_backward_kernel
from tritongru.kernels.stepwise.forward_kernel import stepwise_forward_kernel
from tritongru.planning.launches import StepwiseLaunch


def forward(
    gx: Tensor,  # (N, D, 3H)
    recurrence: Recurrence,
    outputs: Outputs,  # written
    launch: StepwiseLaunch,
) -> None:
    w_hh, b_hh, h0, rows, _ = recurrence
    y, hn, gates = outputs
    offsets = rows.offsets
    sizes = forward_sizes(recurrence, outputs)
    with on_device_of(y):
        if h0 is None:
            state = torch.zeros(hn.shape, dtype=torch.float32, device=y.device)
        else:
            state = h0.to(torch.float32, copy=True)
        step = functools.partial(
            stepwise_forward_kernel[grid(hn, launch)],
            *(gx, w_hh, b_hh, h0, y, gates, state, offsets),
            **sizes,
            **blocks(launch),
            **kernel_options(y, launch.num_warps),
        )
        for s in range(sizes["T"]):
            step(s=s)
        hn.copy_(state)


def backward(
    dy: Tensor | None,  # (N, D, H)
    dh: Tensor,  # (D, B, H) fp32: in, gradient of the states after these steps; out, of the states before them
    recurrence: Recurrence,
    saved: Saved,
    found: GateGradients,  # written
    launch: StepwiseLaunch,
    part: Part = WHOLE,
) -> None:
    """Runs over a part of the steps; the gates and their gradients hold only its rows."""
    w_hh, _, h0, rows, _ = recurrence
    (y, gates), (dgx, da, _) = saved, found
    offsets = rows.offsets
    sizes = backward_sizes(dy, dh, recurrence, saved, found, part)
    with on_device_of(y):
        step = functools.partial(
            stepwise_backward_kernel[grid(dh, launch)],
            *(dy, w_hh, h0, y, gates, dgx, da, dh, offsets),
            **sizes,
            **blocks(launch),
            **kernel_options(y, launch.num_warps),
        )
        for s in range(part.start, part.start + sizes["count"] + 1):  # the last one only computes the product
            step(s=s)


def grid(state: Tensor, launch: StepwiseLaunch) -> tuple[int, int, int]:
    """Programs that read the same part of W_hh are neighbours, so that it is read from memory once."""
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

"""Launches of the resident kernels."""

from typing import Any

from torch import Tensor

from tritongru.arguments.records import WHOLE, GateGradients, Outputs, Part, Recurrence, Saved
from tritongru.kernels.launching import backward_sizes, forward_sizes, kernel_options, on_device_of
from tritongru.kernels.resident.backward_kernel import resident_backward_kernel
from tritongru.kernels.resident.forward_kernel import resident_forward_kernel
from tritongru.planning.launches import Launch


def forward(
    gx: Tensor,  # (N, D, 3H)
    recurrence: Recurrence,
    outputs: Outputs,  # written
    launch: Launch,
) -> None:
    w_hh, b_hh, h0, rows, _ = recurrence
    y, hn, gates = outputs
    offsets, (D, B, _) = rows.offsets, hn.shape
    sizes = forward_sizes(recurrence, outputs)
    with on_device_of(y):
        resident_forward_kernel[(-(-B // launch.block_b), D)](
            *(gx, w_hh, b_hh, h0, y, hn, gates, offsets),
            **sizes,
            **options(y, launch),
        )


def backward(
    dy: Tensor | None,  # (N, D, H)
    dh: Tensor,  # (D, B, H) fp32: in, gradient of the states after these steps; out, of the states before them
    recurrence: Recurrence,
    saved: Saved,
    found: GateGradients,  # written
    launch: Launch,
    part: Part = WHOLE,
) -> None:
    """Runs the kernel over a part of the steps; the gates and their gradients hold only its rows. Packed rows are
    processed in one part."""
    w_hh, _, h0, rows, _ = recurrence
    (y, gates), (dgx, da, _) = saved, found
    offsets, (D, B, _) = rows.offsets, dh.shape
    sizes = backward_sizes(dy, dh, recurrence, saved, found, part)
    with on_device_of(y):
        resident_backward_kernel[(-(-B // launch.block_b), D)](
            *(dy, dh, w_hh, h0, y, gates, dgx, da, offsets),
            **sizes,
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

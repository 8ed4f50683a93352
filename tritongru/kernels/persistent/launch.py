"""Launches of the persistent kernels, and the memory through which their programs communicate."""

import torch
from torch import Tensor

from tritongru.arguments.records import WHOLE, GateGradients, Outputs, Part, Recurrence, Saved
from tritongru.kernels.launching import backward_sizes, forward_sizes, kernel_options
from tritongru.kernels.persistent.backward_kernel import persistent_backward_kernel
from tritongru.kernels.persistent.cooperative import launch_cooperative
from tritongru.kernels.persistent.forward_kernel import persistent_forward_kernel
from tritongru.kernels.persistent.watchdog import LIMIT
from tritongru.planning.launches import PersistentLaunch

COUNTER_BYTES = 128  # a cache line for each counter


def forward(
    gx: Tensor,  # (N, D, 3H)
    recurrence: Recurrence,
    outputs: Outputs,  # written
    launch: PersistentLaunch,
    limit: int = LIMIT,
) -> None:
    """Runs the kernel with all of its programs on the device at once.

    Raises:
        RuntimeError: if an earlier launch on this device gave up waiting.
    """
    w_hh, b_hh, h0, rows, _ = recurrence
    y, hn, gates = outputs
    offsets, (D, B, H) = rows.offsets, hn.shape
    sizes = forward_sizes(recurrence, outputs)
    tiles, programs = -(-B // launch.block_b), launch.programs(H)
    counters, slots, state = workspace(y, D * tiles, launch, programs * launch.block_b * launch.block_h)
    launch_cooperative(
        persistent_forward_kernel,
        (programs, launch.groups, D),
        y,
        *(gx, w_hh, b_hh, h0, y, hn, gates, offsets, slots, state, counters),
        tiles=tiles,
        limit=limit,
        **sizes,
        **launch.constants,
        **kernel_options(y, launch.num_warps),
    )


def backward(
    dy: Tensor | None,  # (N, D, H)
    dh: Tensor,  # (D, B, H) fp32: in, gradient of the states after these steps; out, of the states before them
    recurrence: Recurrence,
    saved: Saved,
    found: GateGradients,  # written
    launch: PersistentLaunch,
    part: Part = WHOLE,
    limit: int = LIMIT,
) -> None:
    """Runs the kernel over a part of the steps; the gates and their gradients hold only its rows. Packed rows are
    processed in one part.

    Raises:
        RuntimeError: if an earlier launch on this device gave up waiting.
    """
    w_hh, _, h0, rows, _ = recurrence
    (y, gates), (dgx, da, _) = saved, found
    offsets, (D, B, H) = rows.offsets, dh.shape
    sizes = backward_sizes(dy, dh, recurrence, saved, found, part)
    tiles = -(-B // launch.block_b)
    counters, slots, _ = workspace(y, D * tiles, launch)
    launch_cooperative(
        persistent_backward_kernel,
        (launch.programs(H), launch.groups, D),
        y,
        *(dy, dh, w_hh, h0, y, gates, dgx, da, offsets, slots, counters),
        tiles=tiles,
        limit=limit,
        **sizes,
        **launch.constants,
        **kernel_options(y, launch.num_warps),
    )


def workspace(
    like: Tensor, tiles: int, launch: PersistentLaunch, state: int = 0
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Counters, slots and ``state`` fp32 values per tile in one buffer, cleared by one memset. Each launch has its own,
    so that launches on two streams, or replays of a graph, never see the counts of another."""
    words = (tiles * COUNTER_BYTES // 4, tiles * launch.slots * launch.tile_bytes // 4, tiles * state)
    buffer = torch.zeros(sum(words), dtype=torch.int32, device=like.device)
    slots = buffer[words[0] :].view(like.dtype)
    return buffer, slots, buffer[words[0] + words[1] :].view(torch.float32) if state else None

"""Launches of the persistent kernels, and the memory in which their programs meet."""

import torch
from torch import Tensor

from tritongru.kernels.launching import kernel_options, steps
from tritongru.kernels.persistent.backward_kernel import persistent_backward_kernel
from tritongru.kernels.persistent.cooperative import launch_cooperative
from tritongru.kernels.persistent.forward_kernel import persistent_forward_kernel
from tritongru.kernels.persistent.watchdog import LIMIT
from tritongru.planning.launches import PersistentLaunch

COUNTER_BYTES = 128  # a cache line for each counter


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
    launch_cooperative(
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
    launch_cooperative(
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

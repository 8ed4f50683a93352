"""Waiting for a device, and what its kernels had to report by then."""

from __future__ import annotations

import sys

import torch


def synchronize(device: torch.device | str | int | None = None) -> None:
    """Waits for all work of a CUDA device (default: the current one), as ``torch.cuda.synchronize`` does, and raises if
    a kernel gave up waiting for its other programs.

    The next call of a layer reports that by itself. Nothing else does where no call follows: after replays of a CUDA
    graph, and at the end of a program. On a CPU there is nothing to wait for.

    Raises:
        RuntimeError: with the place where a kernel gave up; results since then may be NaN. A second call is silent.
    """
    if device is None:
        found = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    else:
        found = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    if found.type == "cuda":
        torch.cuda.synchronize(found)
        found = torch.device("cuda", torch.cuda.current_device() if found.index is None else found.index)
    trouble = sys.modules.get("tritongru.kernels.trouble")
    if trouble is not None:  # else no kernel has run yet
        trouble.raise_trouble(trouble.trouble_of(found))

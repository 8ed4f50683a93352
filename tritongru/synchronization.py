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
            Also for a CUDA device that is not there.
        TypeError, ValueError: for what is no CPU and no CUDA device.
    """
    found = _device(device)
    if found.type == "cuda":
        torch.cuda.synchronize(found)
    watchdog = sys.modules.get("tritongru.kernels.persistent.watchdog")  # else no kernel has run yet
    if watchdog is not None and found in watchdog.reports:
        watchdog.raise_report(watchdog.reports[found])


def _device(device: torch.device | str | int | None) -> torch.device:
    if isinstance(device, bool) or not isinstance(device, torch.device | str | int | None):
        raise TypeError(f"device should be a torch.device, its name or an index, got {type(device).__name__}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device is None:
        device = "cuda" if count else "cpu"
    found = torch.device("cuda") if isinstance(device, int) else torch.device(device)
    index = device if isinstance(device, int) else found.index
    if found.type == "cpu":
        return torch.device("cpu")
    if found.type != "cuda":
        raise ValueError(f"device should be a CPU or a CUDA device, got {device}")
    if count == 0 or (index is not None and not 0 <= index < count):
        raise RuntimeError(f"device {device} is not there: this process sees {count} CUDA devices")
    return torch.device("cuda", torch.cuda.current_device() if index is None else index)

"""Wait for a device, and raise what its kernels have reported."""

from __future__ import annotations

import sys

import torch


def synchronize(device: torch.device | str | int | None = None) -> None:
    """Wait for all work of a device, like ``torch.cuda.synchronize``, and raise if a kernel reported an error.

    A kernel reports an error if one of its programs waited too long for the others. The next call of a layer raises it
    anyway, so this function is needed only if no call follows: after replays of a CUDA graph, and at the end of a
    program. On a CPU there is nothing to wait for.

    Args:
        device: a CUDA or CPU device, its name or an index. None is the current CUDA device.

    Raises:
        RuntimeError: with the time step at which a kernel gave up waiting; results since then may be NaN. The error is
            raised once. Also if the CUDA device does not exist.
        TypeError, ValueError: if ``device`` is not a CPU or CUDA device.
    """
    found = _device(device)
    if found.type == "cuda":
        torch.cuda.synchronize(found)
    watchdog = sys.modules.get("tritongru.kernels.persistent.watchdog")  # else no kernel has run yet
    if watchdog is not None and found in watchdog.reports:
        watchdog.raise_report(watchdog.reports[found])


def _device(device: torch.device | str | int | None) -> torch.device:
    if isinstance(device, bool) or not isinstance(device, torch.device | str | int | None):
        raise TypeError(f"device should be a torch.device, a device name or an index, got {type(device).__name__}")
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
        raise RuntimeError(
            f"device {device} is not available: this process sees {count} CUDA device{'s' * (count != 1)}"
        )
    return torch.device("cuda", torch.cuda.current_device() if index is None else index)

"""Memory that a call works in, which a thread keeps for its next call."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

MOST_KEPT = 1 << 23  # bytes
_kept = threading.local()


def working_memory(name: str, size: int, dtype: torch.dtype) -> Tensor:
    """At least ``size`` values, whatever they are. What has the same name shares memory, so it is used within one call
    by one thread."""
    held: Tensor | None = getattr(_kept, name, None)
    if held is None or held.numel() < size or held.dtype is not dtype:
        with torch.inference_mode(False):  # what is made in it could not be written to outside of it
            held = torch.empty(size, dtype=dtype, device="cpu")
        if size * dtype.itemsize <= MOST_KEPT:
            setattr(_kept, name, held)
    return held

"""Memory that a call works in, which a thread keeps for its next call; zeros and copies. In a forked child torch's
operators would wait for threads that are not there as soon as a tensor is large.
"""

from __future__ import annotations

import ctypes
import threading

import torch
from torch import Tensor

from tritongru.llvm import forks

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


def clear(tensor: Tensor) -> Tensor:
    """Zeros in a contiguous tensor."""
    if not forks.is_child():
        return tensor.zero_()
    ctypes.memset(tensor.data_ptr(), 0, tensor.nbytes)
    return tensor


def copy_of(tensor: Tensor) -> Tensor:
    """A contiguous one."""
    if not forks.is_child() or not tensor.is_contiguous() or tensor.is_neg():
        return tensor.clone(memory_format=torch.contiguous_format)
    copy = torch.empty_like(tensor)
    ctypes.memmove(copy.data_ptr(), tensor.data_ptr(), tensor.nbytes)
    return copy

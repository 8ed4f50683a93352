"""Fills tensors. In a forked child torch's operators would wait for threads that are not there as soon as a tensor is
large.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from tritongru.llvm import forks

ALONE = 1 << 14  # elements; torch's operators use several threads from twice as many on


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


def select(mask: Tensor, value: Tensor, rows: Tensor, target: Tensor) -> Tensor:
    """``value`` in those rows (:, B, :) that the mask (B,) names, and ``rows`` elsewhere, in ``target``."""
    pieces = rows.numel() // ALONE + 1 if forks.is_child() else 1
    for own, old, new in zip(mask.chunk(pieces), rows.chunk(pieces, 1), target.chunk(pieces, 1), strict=True):
        torch.where(own[:, None], value, old, out=new)
    return target

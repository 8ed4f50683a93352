"""Large pages for large tensors.

glibc maps fresh memory for whatever is larger than 32 MB, in every call anew, and the system fills in page after page
of 4 KiB when they are first written: of 211 MB that took longer than the forward pass that wrote them. Pages of 2 MiB,
where the system has them on demand, took a quarter of that time.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
from collections.abc import Callable

from torch import Tensor

LEAST = 32 << 20  # bytes


@functools.cache
def _advise() -> Callable[[int, int], object] | None:
    """Asks the system for large pages from an address on, for so many bytes; None where there is nobody to ask."""
    wanted = getattr(mmap, "MADV_HUGEPAGE", None)
    try:
        madvise = ctypes.CDLL(None).madvise
    except (AttributeError, OSError, TypeError):
        return None
    if wanted is None:
        return None
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return lambda address, length: madvise(address, length, wanted)  # advice: a refusal costs nothing but time


def in_large_pages(tensor: Tensor) -> Tensor:
    """The tensor, which nobody has written yet."""
    length = tensor.nbytes
    if length < LEAST:
        return tensor
    advise = _advise()
    if advise is not None:
        start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        advise(start, tensor.data_ptr() + length - start)
    return tensor

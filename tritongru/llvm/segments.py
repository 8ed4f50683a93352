"""The segments of ragged rows, found by compiled code, and where it writes them; see ``passes/segments.py``."""

from __future__ import annotations

import ctypes
import functools
import itertools
import struct
from typing import NamedTuple

import torch
from torch import Tensor

from tritongru.llvm.compiling import function_of
from tritongru.llvm.passes.segments import SEGMENTS
from tritongru.llvm.working_memory import working_memory

WORD = 8  # bytes
_COUNTS = struct.Struct("=qqq")  # number, steps, clamped
_CALL = struct.Struct(f"{len(SEGMENTS.fields)}q")


class Segments(NamedTuple):
    """``number``, and ``steps`` of the longest; ``clamped``: whether a length was outside of [0, T]; the others are
    addresses in ``memory``."""

    memory: Tensor
    number: int
    steps: int
    clamped: bool
    offsets: int
    places: int
    source: int
    target: int


def segments_of(lengths: Tensor | None, resets: Tensor | None, T: int, B: int, isa: str) -> Segments:
    """For lengths (B,) of any integers and resets (T, B). Valid until this thread's next call of this function."""
    if lengths is not None and (lengths.dtype is not torch.int64 or not lengths.is_contiguous()):
        lengths = lengths.to(torch.int64).contiguous()
    if resets is not None:
        resets = resets.contiguous()
    size, first = _places(T, B, resets is not None)
    memory = working_memory("segments", size, torch.int64)
    counts = memory.data_ptr()
    places = [counts + at for at in first]
    given = (0 if lengths is None else lengths.data_ptr(), 0 if resets is None else resets.data_ptr())
    function_of(isa, "float", "segments")(_CALL.pack(*given, *places, T, B))
    number, steps, clamped = _COUNTS.unpack(ctypes.string_at(counts, _COUNTS.size))
    return Segments(memory, number, steps, clamped > 0, *places[1:5])


@functools.lru_cache(maxsize=1024)
def _places(T: int, B: int, has_resets: bool) -> tuple[int, list[int]]:
    """Of the working memory: its words, and where each part begins, in bytes."""
    most = B + (T - 1) * B if has_resets else B  # segments
    sizes = (_COUNTS.size // WORD, T + 1, T * B, 2 * most, 2 * most, B, B, T + 1)
    return sum(sizes), [WORD * first for first in itertools.accumulate(sizes[:-1], initial=0)]


def roomy(number: int) -> int:
    """At least ``number``, and one of few: sizes of a call are computed once for each."""
    step = 1 << max(0, number.bit_length() - 4)
    return -(-number // step) * step

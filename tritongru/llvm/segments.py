"""The segments of ragged rows, found by compiled code, and where it writes them; see ``passes/segments.py``."""

from __future__ import annotations

import ctypes
import itertools
import struct
from typing import NamedTuple

import torch
from torch import Tensor

from tritongru.llvm.compiling import function_of
from tritongru.llvm.passes.segments import SEGMENTS

WORD = 8  # bytes
COUNTS = 3
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
    """For lengths (B,) of any integers and resets (T, B)."""
    if lengths is not None:
        lengths = lengths.to(torch.int64).contiguous()
    if resets is not None:
        resets = resets.contiguous()
    most = B if resets is None else B + (T - 1) * B  # segments
    sizes = (COUNTS, T + 1, T * B, 2 * most, 2 * most, B, B, T + 1)
    memory = torch.empty(sum(sizes), dtype=torch.int64)
    counts = memory.data_ptr()
    places = [counts + WORD * first for first in itertools.accumulate(sizes[:-1], initial=0)]
    given = (0 if lengths is None else lengths.data_ptr(), 0 if resets is None else resets.data_ptr())
    function_of(isa, "float", "segments")(_CALL.pack(*given, *places, T, B))
    number, steps, clamped = (ctypes.c_int64 * COUNTS).from_address(counts)
    return Segments(memory, number, steps, clamped > 0, *places[1:5])


def roomy(number: int) -> int:
    """At least ``number``, and one of few: sizes of a call are computed once for each."""
    step = 1 << max(0, number.bit_length() - 4)
    return -(-number // step) * step

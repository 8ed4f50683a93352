"""Where a wgmma finds an operand in shared memory, by its matrix descriptor.

Offsets in the descriptor are in units of 16 bytes: bits 0-13 the start, 16-29 the leading and 32-45 the stride
dimension's; bits 62-63 are the swizzle.
"""

import functools

import numpy as np

from ptxmachine.code.words import Array

SWIZZLES = {0: 16, 1: 128, 2: 64, 3: 32}  # mode -> bytes of a row


@functools.lru_cache(256)
def operand_offsets(descriptor: int, rows: int, K: int, size: int, transposed: bool) -> Array:
    """The byte of each value of an operand (rows, K), flat. Neighbours along K are neighbours unless transposed."""
    start, leading, stride = (((descriptor >> bit) & 0x3FFF) << 4 for bit in (0, 16, 32))
    mode = descriptor >> 62 & 3
    row, k = np.meshgrid(np.arange(rows), np.arange(K), indexing="ij")
    within, across = (row * size, k) if transposed else (k * size, row)  # bytes of a row, and which row
    if mode == 0:
        if transposed:
            leading, stride = stride, leading
        offset = across // 8 * stride + across % 8 * 16 + within // 16 * leading + within % 16
    else:
        width = SWIZZLES[mode]
        offset = across // 8 * stride + across % 8 * width
        offset += within // width * leading + within % width if transposed else within
    address = start + offset
    if mode:
        bits = {128: 7, 64: 3, 32: 1}[SWIZZLES[mode]]
        address = address ^ (((address >> 7) & bits) << 4)
    return address.ravel()

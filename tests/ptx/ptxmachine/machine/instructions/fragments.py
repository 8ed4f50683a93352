"""Which lane holds which value of a matrix, in the registers that tensor cores read and write."""

import functools
from typing import NamedTuple

import numpy as np

from ptxmachine.code.words import Array

LANE = np.arange(32)
GROUP, THREAD = LANE >> 2, LANE & 3  # of four lanes; within it


class Shape(NamedTuple):
    """The operands a (M, K) and b (K, N) of a product: the place in the registers of each value in row-major order."""

    a: Array
    b: Array
    M: int
    N: int
    K: int


def places(cells: list[tuple[Array, Array]], rows: int, columns: int) -> Array:
    """`cells` are the (row, column) of each lane's values in order; a place is `lane * values + value`."""
    row, column = (np.stack([np.broadcast_to(cell[i], 32) for cell in cells], 1) for i in (0, 1))
    found = np.full(rows * columns, -1)
    found[(row * columns + column).ravel()] = np.arange(row.size)
    assert (found >= 0).all()
    return found


def shape_16bit(K: int) -> Shape:
    """Registers hold two neighbours along K."""
    g, t = GROUP, 2 * THREAD
    a = [(g + row, t + k + half) for k in range(0, K, 8) for row in (0, 8) for half in (0, 1)]
    b = [(t + k + half, g) for k in range(0, K, 8) for half in (0, 1)]
    return Shape(places(a, 16, K), places(b, K, 8), 16, 8, K)


def shape_tf32(K: int) -> Shape:
    g, t = GROUP, THREAD
    a = [(g + row, t + k) for k in range(0, K, 4) for row in (0, 8)]
    b = [(t + k, g) for k in range(0, K, 4)]
    return Shape(places(a, 16, K), places(b, K, 8), 16, 8, K)


SHAPES = {("m16n8k16", 2): shape_16bit(16), ("m16n8k8", 2): shape_16bit(8)}  # by name and bytes of a value
SHAPES |= {("m16n8k8", 4): shape_tf32(8), ("m16n8k4", 4): shape_tf32(4)}
SUM = places([(GROUP + row, 2 * THREAD + half) for row in (0, 8) for half in (0, 1)], 16, 8)


@functools.cache
def wide_sum(N: int) -> tuple[Array, Array]:
    """Rows and columns, (32, N / 2), of the sums (16, N) that the lanes of a warp hold after a wgmma."""
    lane, register = np.meshgrid(LANE, np.arange(N // 2), indexing="ij")
    return (lane >> 2) + 8 * (register // 2 % 2), 8 * (register // 4) + 2 * (lane & 3) + register % 2

"""Elementwise kernels around the gate functions and the rounding of operands, for the tests of these."""

import triton
import triton.language as tl

from tritongru.kernels.gates import encode_update, gru_step_backward, sigmoid, tanh
from tritongru.kernels.rounding import operand_of_product


@triton.jit
def sigmoid_kernel(x, y, n, BLOCK: tl.constexpr, REFINE: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + o, sigmoid(tl.load(x + o, mask=o < n), REFINE), mask=o < n)


@triton.jit
def tanh_kernel(x, y, n, BLOCK: tl.constexpr, SERIES: tl.constexpr, REFINE: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + o, tanh(tl.load(x + o, mask=o < n), SERIES, REFINE), mask=o < n)


@triton.jit
def operand_kernel(x, y, n, BLOCK: tl.constexpr, PRECISION: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + o, operand_of_product(tl.load(x + o, mask=o < n), False, PRECISION), mask=o < n)


@triton.jit
def kept_kernel(z, found, DT: tl.constexpr, BLOCK: tl.constexpr):
    """The part of dh that z and 1 - z let through after z was saved in DT: (dh z, dn) of dh = 1, n = 0."""
    o = tl.arange(0, BLOCK)
    b_z = encode_update(tl.load(z + o)).to(DT).to(tl.float32)
    b_one, b_zero = tl.full((BLOCK,), 1.0, tl.float32), tl.zeros((BLOCK,), tl.float32)
    _, _, b_dn, _, b_dh = gru_step_backward(b_one, b_zero, b_z, b_zero, b_zero, b_zero)
    tl.store(found + o, b_dh)
    tl.store(found + BLOCK + o, b_dn)

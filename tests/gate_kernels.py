"""Elementwise kernels around the gate functions, for tests/test_gates.py."""

import triton
import triton.language as tl

from tritongru.kernels.gates import sigmoid, tanh


@triton.jit
def sigmoid_kernel(x, y, n, BLOCK: tl.constexpr, REFINE: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + o, sigmoid(tl.load(x + o, mask=o < n), REFINE), mask=o < n)


@triton.jit
def tanh_kernel(x, y, n, BLOCK: tl.constexpr, SERIES: tl.constexpr, REFINE: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + o, tanh(tl.load(x + o, mask=o < n), SERIES, REFINE), mask=o < n)

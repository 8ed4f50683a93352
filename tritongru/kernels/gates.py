"""Gate math of the GRU, forward and backward: pure functions of fp32 values, shared by every kernel.

With ``e = exp(-x)``, ``sigmoid(x) = 1 / (1 + e)`` is written as the square of one hardware ``rsqrt``: two
special-function instructions and no division. The argument of ``rsqrt`` lies in [1, inf], so an ``e`` that overflows
gives 0 and an ``e`` that underflows gives 1: a finite input never makes a NaN, and a NaN stays one.
"""

import triton
import triton.language as tl


@triton.jit
def reciprocal(y, REFINE: tl.constexpr):
    """1 / y for y >= 1, accurate to about two fp32 ulps (the hardware's ``rsqrt`` to 2^-22.9); ``REFINE`` adds a Newton
    step, which matters with fp32 products and is lost in the error of TF32 or 16-bit ones."""
    root = tl.rsqrt(y)
    inverse = root * root
    if REFINE:
        inverse += tl.where(y < 1e30, inverse * (1.0 - y * inverse), 0.0)  # for an infinite y it would compute inf * 0
    return inverse


@triton.jit
def sigmoid(x, REFINE: tl.constexpr):
    return reciprocal(1.0 + tl.exp2(x * -1.4426950408889634), REFINE)  # exp(-x) = exp2(-x log2 e)


@triton.jit
def tanh(x, SERIES: tl.constexpr, REFINE: tl.constexpr):
    """For fp32 storage (``SERIES``) 1 - 2e / (1 + e) with e = exp(-2|x|), which keeps the last bits near 1; below 1/4,
    where the subtraction would lose them, the Taylor series. For 16-bit storage 2 sigmoid(2x) - 1; below 1/64 x itself,
    with a relative error of 8e-5, a sixth of float16's eps."""
    if SERIES:
        e = tl.exp2(tl.abs(x) * -2.8853900817779268)
        y = 1.0 - 2.0 * e * reciprocal(1.0 + e, REFINE)
        x2 = x * x
        series = x + x * x2 * (-1 / 3 + x2 * (2 / 15 + x2 * (-17 / 315 + x2 * (62 / 2835))))
        y = tl.where(tl.abs(x) < 0.25, series, tl.where(x < 0, -y, y))
    else:
        y = 2.0 * sigmoid(2.0 * x, REFINE) - 1.0
        y = tl.where(tl.abs(x) < 0.015625, x, y)
    return y


@triton.jit
def gru_step(g_r, g_z, gx_n, a, h, SERIES: tl.constexpr, REFINE: tl.constexpr):
    """One step from the summed pre-activations of r and z, the input part of n and ``a = W_hn h + b_hn``."""
    r = sigmoid(g_r, REFINE)
    z = sigmoid(g_z, REFINE)
    n = tanh(gx_n + r * a, SERIES, REFINE)
    return r, z, n, n + z * (h - n)


@triton.jit
def encode_update(z):
    """z as it is saved for the backward pass: z itself or, from 1/2 on, z - 1. In 16 bits a z near 1, a unit with a
    long memory, would round to 1, and no gradient would reach the unit."""
    return z - ((z >= 0.5) & (z < 1.0)).to(tl.float32)  # z = 1 stays: z - 1 = 0 would read as z = 0


@triton.jit
def gru_step_backward(dh, r, z_encoded, n, a, h_prev):
    """Gradients of the pre-activations (of r, z, n and of ``a``) and the part of dh that reaches h_prev directly."""
    z = z_encoded + (z_encoded < 0).to(tl.float32)
    rest = 1.0 - z
    dn = dh * rest * (1.0 - n * n)
    dz = dh * (h_prev - n) * z * rest
    dr = dn * a * r * (1.0 - r)
    return dr, dz, dn, dn * r, dh * z

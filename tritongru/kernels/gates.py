"""Gate math of the GRU, forward and backward: pure functions of fp32 values, shared by every kernel.

With ``e = exp(-x)``, ``sigmoid(x) = 1 / (1 + e)`` is written as the square of one hardware ``rsqrt``: two
special-function instructions and no division. The argument of ``rsqrt`` lies in [1, inf], so an ``e`` that overflows
gives 0 and an ``e`` that underflows gives 1: a finite input never makes a NaN, and a NaN stays one.
"""

import triton
import triton.language as tl


@triton.jit
def sigmoid(x, REFINE: tl.constexpr):
    """Within about two fp32 ulps (the hardware ``rsqrt`` is good to 2^-22.9); ``REFINE`` adds a Newton step, which
    fp32 products deserve and TF32 or 16-bit ones would drown."""
    y = 1.0 + tl.exp2(x * -1.4426950408889634)  # exp(-x) = exp2(-x log2 e)
    if REFINE:
        y = tl.minimum(y, 1e30, propagate_nan=tl.PropagateNan.ALL)  # the step would make inf * 0 of an infinite y
    root = tl.rsqrt(y)
    s = root * root
    if REFINE:
        s += s * (1.0 - y * s)
    return s


@triton.jit
def tanh(x, SERIES: tl.constexpr, REFINE: tl.constexpr):
    """2 sigmoid(2x) - 1, whose absolute error is an fp32 ulp of 1 everywhere. Near 0, where that would be a large
    relative one, fp32 storage takes the Taylor series (``SERIES``, below 1/4) and 16-bit storage x itself (below
    1/64: a relative error of 8e-5, a sixth of float16's eps)."""
    y = 2.0 * sigmoid(2.0 * x, REFINE) - 1.0
    if SERIES:
        x2 = x * x
        series = x + x * x2 * (-1 / 3 + x2 * (2 / 15 + x2 * (-17 / 315 + x2 * (62 / 2835))))
        y = tl.where(tl.abs(x) < 0.25, series, y)
    else:
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
def gru_step_backward(dh, r, z, n, a, h_prev):
    """Gradients of the pre-activations (of r, z, n and of ``a``) and the part of dh that reaches h_prev directly."""
    dn = dh * (1.0 - z) * (1.0 - n * n)
    dz = dh * (h_prev - n) * z * (1.0 - z)
    dr = dn * a * r * (1.0 - r)
    return dr, dz, dn, dn * r, dh * z

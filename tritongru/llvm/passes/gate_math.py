"""The gates of a vector of units, and their gradients.

e^(c x) = 2^n e^r with n = round(c x / ln 2), so that |r| <= ln(2) / 2. With t = x - n ln(2) / c, which is r / c, the
Taylor series of e^r - 1 is a series in t whose coefficients include the powers of c; its first omitted term is below
half a unit in the last place. Its terms are taken in pairs, which shortens the chain of dependent operations.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from tritongru.llvm.language import Function, Value, scalar_of


class _Format(NamedTuple):
    """Constants of one type. ``terms``: of the series; ``mantissa``: bits; ``bias``: of the exponent; ``high + low`` is
    ln 2, with enough trailing zero bits in ``high`` to make its product with n exact; ``lowest`` and ``highest``:
    exponents of e between which 2^n is a normal number."""

    terms: int
    mantissa: int
    bias: int
    high: float
    low: float
    lowest: float
    highest: float


_OF = {
    "float": _Format(7, 23, 127, 0.693359375, math.log(2) - 0.693359375, -87.0, 88.0),
    "double": _Format(13, 52, 1023, 0.693147180369123816490, 1.90821492927058770002e-10, -708.0, 709.0),
}


def _exponential(f: Function, x: Value, c: int) -> tuple[Value, Value]:
    """2^n, and e^r - 1, of e^(c x)."""
    of = _OF[scalar_of(x.kind)]
    x = _bounded(f, x, *sorted((of.lowest / c, of.highest / c)))
    # Adding it rounds to a whole number and leaves the bits of 2^n in the lowest places.
    magic = 1.5 * 2**of.mantissa + of.bias
    shifted = f.fma(c / math.log(2), x, magic)
    n = shifted - magic
    t = f.fma(-of.low / c, n, f.fma(-of.high / c, n, x))
    square = t * t
    pairs = [f.fma(c ** (k + 1) / math.factorial(k + 1), t, c**k / math.factorial(k)) for k in range(2, of.terms, 2)]
    found = pairs.pop()
    while pairs:
        found = f.fma(found, square, pairs.pop())
    return f.floats(f.bits(shifted) << of.mantissa), f.fma(found, square, t + t if c == 2 else f.negative(t))


def _bounded(f: Function, x: Value, lowest: float, highest: float) -> Value:
    """NaN stays NaN: it is neither above nor below."""
    x = f.select(x > highest, f.constant(highest, x.kind), x)
    return f.select(x < lowest, f.constant(lowest, x.kind), x)


def sigmoid(f: Function, x: Value) -> Value:
    """1 / (1 + e^-x), and 0 where e^-x overflows: a closed gate must stop even an infinite state."""
    scale, rest = _exponential(f, x, -1)
    found = 1.0 / f.fma(scale, rest, scale + 1.0)
    return f.select(x < -_OF[scalar_of(x.kind)].highest, f.constant(0.0, x.kind), found)


def tanh(f: Function, x: Value) -> Value:
    """m / (m + 2) with m = e^2x - 1, which has no cancellation near zero."""
    scale, rest = _exponential(f, x, 2)
    less_one = f.fma(scale, rest, scale - 1.0)
    return less_one / (less_one + 2.0)


class Gates(NamedTuple):
    """r, z and n; a = W_hn h + b_hn."""

    r: Value
    z: Value
    n: Value
    a: Value


def step(f: Function, h: Value, gh: tuple[Value, Value, Value], gx: tuple[Value, Value, Value]) -> tuple[Value, Gates]:
    """The new state h' = n + z (h - n) and the gates. ``gh``: state products, with the bias of n; ``gx``: input
    products, with all other biases."""
    r, z = sigmoid(f, gh[0] + gx[0]), sigmoid(f, gh[1] + gx[1])
    n = tanh(f, f.fma(r, gh[2], gx[2]))
    return f.fma(z, h - n, n), Gates(r, z, n, gh[2])


def step_gradients(f: Function, dh: Value, h: Value, gates: Gates) -> tuple[Gates, Value]:
    """Gradients of the pre-activations of r, z and n, and of a; and the part of the gradient of h that passes through
    z. ``h``: the state before the step, ``dh``: the gradient of the state after it."""
    r, z, n, a = gates
    dn = dh * (1.0 - z) * (1.0 - n * n)
    dz = dh * (h - n) * z * (1.0 - z)
    da = dn * r
    dr = dn * a * r * (1.0 - r)
    return Gates(dr, dz, dn, da), dh * z

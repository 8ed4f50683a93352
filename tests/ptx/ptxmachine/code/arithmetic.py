"""The functions of integers and float32 that generated code calls. Arguments are arrays or NumPy scalars."""

from typing import Any

import numpy as np

from .words import Array, f32, f64, i32, i64, u16, u32, u64, width

COMPARISONS: dict[str, Any] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


def held(a: Array | None) -> Array:
    """What a register holds. NumPy takes None for a value in some places, for one in which nothing has been written."""
    if a is None:
        raise TypeError("a register that nothing has written")
    return a


def ftz(x: Array) -> Array:
    """Subnormal values as zeros of their sign."""
    return np.where(np.abs(x) < f32(1.1754944e-38), x * f32(0), x)


def fma32(a: Array, b: Array, c: Array) -> Array:
    return (np.asarray(a).astype(f64) * b + c).astype(f32)


def wide(a: Array, b: Array, bits: int, signed: bool) -> Array:
    """The whole product of two words of half as many ``bits``, as an unsigned word."""
    ty: Any = {(32, True): i32, (64, True): i64, (32, False): u32, (64, False): u64}[bits, signed]
    product: Array = np.asarray(a).astype(ty) * np.asarray(b).astype(ty)
    return product.view(u32 if bits == 32 else u64)


def mulhi(a: Array, b: Array, bits: int, signed: bool) -> Array:
    """The upper half of the product."""
    if bits in (16, 32):
        ty: Any = {(32, True): i64, (32, False): u64, (16, True): i32, (16, False): u32}[bits, signed]
        product: Array = (np.asarray(a).astype(ty) * np.asarray(b).astype(ty)) >> ty(bits)
        return product.astype(u32 if bits == 32 else u16)
    a, b = np.broadcast_arrays(np.asarray(a), np.asarray(b))
    flat = [((int(x) * int(y)) >> 64) & (2**64 - 1) for x, y in zip(a.ravel(), b.ravel(), strict=True)]
    return np.array(flat, dtype=u64).reshape(a.shape)


def int_div(a: Array, b: Array) -> Array:
    """Rounded towards zero; all ones where ``b`` is 0."""
    a, b = np.broadcast_arrays(np.asarray(a), np.asarray(b))
    safe = np.where(b == 0, b.dtype.type(1), b)
    q = a // safe
    if a.dtype.kind == "i":
        q = np.where((a % safe != 0) & ((a < 0) != (safe < 0)), q + a.dtype.type(1), q)
    return np.where(b == 0, ~a.dtype.type(0), q).astype(a.dtype)


def int_rem(a: Array, b: Array) -> Array:
    a, b = np.broadcast_arrays(np.asarray(a), np.asarray(b))
    rest: Array = a - int_div(a, b) * b
    return rest.astype(a.dtype)


def shl(a: Array, b: Array, bits: int) -> Array:
    a, b = np.asarray(a), np.asarray(b)
    shifted: Array = np.left_shift(a, np.minimum(b, bits - 1).astype(a.dtype))
    return np.where(b < bits, shifted, a.dtype.type(0))


def shr(a: Array, b: Array, bits: int) -> Array:
    """Arithmetic of a signed type, where all shifts of ``bits`` and more leave the sign."""
    a, b = np.asarray(a), np.asarray(b)
    shifted: Array = np.right_shift(a, np.minimum(b, bits - 1).astype(a.dtype))
    return shifted if a.dtype.kind == "i" else np.where(b < bits, shifted, a.dtype.type(0))


def bfe(a: Array, first: int, count: int, bits: int, signed: bool) -> Array:
    """The field of ``count`` bits from bit ``first`` on, extended with zeros or with its sign."""
    unsigned: Any = {32: u32, 64: u64}[bits]
    x: Array = np.asarray(a).view(unsigned)
    if count == 0:
        return np.zeros_like(x)
    x = (x >> unsigned(first)) & unsigned((1 << count) - 1)
    if not signed:
        return x
    sign: Any = {32: i32, 64: i64}[bits]
    x = (x << unsigned(bits - count)).view(sign) >> sign(bits - count)
    return x.view(unsigned)


def prmt(a: Array, b: Array, c: Array) -> Array:
    """Four of the eight bytes of ``b`` and ``a``, or their signs, as the nibbles of ``c`` say."""
    ab = np.asarray(a).astype(u64) | (np.asarray(b).astype(u64) << u64(32))
    out: Any = u32(0)
    for i in range(4):
        s = (np.asarray(c) >> u32(4 * i)) & u32(15)
        byte = ((ab >> ((s & u32(7)).astype(u64) * u64(8))) & u64(255)).astype(u32)
        sign = np.where(byte & u32(128), u32(255), u32(0))
        out = out | (np.where(s & u32(8), sign, byte) << u32(8 * i))
    return np.asarray(out)


def lop3(a: Array, b: Array, c: Array, table: int) -> Array:
    """Any function of three bits, by its truth table."""
    out: Any = u32(0)
    for i in range(8):
        if table >> i & 1:
            out = out | ((a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c))
    return np.asarray(out)


def shf(a: Array, b: Array, c: Array, side: str, mode: str) -> Array:
    """The upper (``l``) or lower word of ``b`` and ``a`` together, shifted."""
    ab: Array = np.asarray(a).astype(u64) | (np.asarray(b).astype(u64) << u64(32))
    n = (np.minimum(c, u32(32)) if mode == "clamp" else c & u32(31)).astype(u64)
    return ((ab << n) >> u64(32)).astype(u32) if side == "l" else (ab >> n).astype(u32)


def clz(a: Array, bits: int) -> Array:
    """Leading zeros."""
    a = np.asarray(a)
    if bits == 64:
        high = clz((a >> u64(32)).astype(u32), 32)
        return np.where(high < 32, high, u32(32) + clz(a.astype(u32), 32))
    return (bits - np.frexp(a.astype(f64))[1]).astype(u32)


def to_tf32(bits: Array, rounding: str) -> Array:
    bits = np.asarray(bits)
    if rounding == "rna":
        rounded = (bits + u32(0x1000)) & u32(0xFFFFE000)
    elif rounding == "rn":
        rounded = (bits + u32(0xFFF) + ((bits >> u32(13)) & u32(1))) & u32(0xFFFFE000)
    else:
        raise NotImplementedError(rounding)
    return np.where(np.isnan(bits.view(f32)), u32(0x7FFFFFFF), rounded)


def float_to_int(x: Array, rounding: str, ty: str) -> Array:
    """Saturating, as int64; of NaN 0."""
    function: Any = {"rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil, "rni": np.rint}[rounding]
    bits = width(ty)
    low, high = (0, 2**bits - 1) if ty[0] == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    whole: Array = function(np.nan_to_num(x)).astype(f64)
    return np.clip(whole, low, high).astype(i64)


def compare(a: Array, b: Array, how: str) -> Array:
    """``how`` is ``lt``, ``ltu`` and so on: with u, comparisons with NaN hold; else they do not."""
    nan: Array = np.isnan(a) | np.isnan(b)
    if how in ("num", "nan"):
        return nan if how == "nan" else ~nan
    holds: Array = COMPARISONS[how.removesuffix("u")](a, b)
    return holds | nan if how.endswith("u") else holds & ~nan


FUNCTIONS: dict[str, Any] = {
    function.__name__: function
    for function in (
        *(held, ftz, fma32, wide, mulhi, int_div, int_rem, shl, shr, bfe, prmt, lop3, shf, clz),
        *(to_tf32, float_to_int, compare),
    )
}

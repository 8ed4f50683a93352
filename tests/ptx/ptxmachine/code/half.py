"""Half precision: float16 and bfloat16, alone or packed in pairs. Each operation is float32's, rounded once."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .words import Array, f16, f32, f64, u16, u32


def half(ty: str, a: Array, i: int) -> Array:
    """Value ``i`` of a (packed) register as float32."""
    a = np.asarray(a)
    if a.dtype == u32:
        a = (a >> u32(16 * i)).astype(u16)
    if ty.startswith("bf16"):
        return (a.astype(u32) << u32(16)).view(f32)
    return a.view(f16).astype(f32)


def to_bf16(x: Array, rounding: str = "rn") -> Array:
    bits = np.asarray(x).view(u32)
    if rounding != "rz":
        bits = bits + u32(0x7FFF) + ((bits >> u32(16)) & u32(1))
    rounded = (bits >> u32(16)).astype(u16)
    return np.where(np.isnan(x), u16(0x7FFF), rounded)


def to_f16(x: Array, rounding: str = "rn") -> Array:
    if rounding != "rn":
        raise NotImplementedError(f"float16 rounded {rounding}")
    return np.where(np.isnan(x), u16(0x7FFF), np.asarray(x).astype(f16).view(u16))


def pack2(ty: str, high: Array, low: Array) -> Array:
    narrow = to_bf16 if ty == "bf16x2" else to_f16
    return (narrow(high).astype(u32) << u32(16)) | narrow(low).astype(u32)


def on_halves(function: Callable[..., Any]) -> Callable[..., Array]:
    """A function of float32 as one of registers of half precision: of each value, if they are packed."""

    def apply(ty: str, *args: Array) -> Array:
        low = function(*(half(ty, a, 0) for a in args)).astype(f32)
        if ty.endswith("x2"):
            return pack2(ty, function(*(half(ty, a, 1) for a in args)).astype(f32), low)
        return to_bf16(low) if ty == "bf16" else to_f16(low)

    return apply


FUNCTIONS: dict[str, Any] = {
    "half": half,
    "to_bf16": to_bf16,
    "to_f16": to_f16,
    "pack2": pack2,
    "half_add": on_halves(lambda a, b: a + b),
    "half_sub": on_halves(lambda a, b: a - b),
    "half_mul": on_halves(lambda a, b: a * b),
    "half_fma": on_halves(lambda a, b, c: (a.astype(f64) * b + c).astype(f32)),
    "half_min": on_halves(np.fmin),
    "half_max": on_halves(np.fmax),
    "half_minimum": on_halves(np.minimum),
    "half_maximum": on_halves(np.maximum),
}

"""The words that registers hold: NumPy's types under short names, and the widths of PTX's types."""

import re
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

u8, u16, u32, u64 = np.uint8, np.uint16, np.uint32, np.uint64
i8, i16, i32, i64 = np.int8, np.int16, np.int32, np.int64
f16, f32, f64 = np.float16, np.float32, np.float64

DTYPES: dict[str, Any] = {
    "bool_": np.bool_,
    "u8": u8,
    "u16": u16,
    "u32": u32,
    "u64": u64,
    "i8": i8,
    "i16": i16,
    "i32": i32,
    "i64": i64,
    "f16": f16,
    "f32": f32,
    "f64": f64,
}
UNSIGNED = {8: "u8", 16: "u16", 32: "u32", 64: "u64"}
SIGNED = {8: "i8", 16: "i16", 32: "i32", 64: "i64"}


def width(ty: str) -> int:
    """Bits of a PTX type: 16 of ``bf16``, 32 of ``f16x2``, 1 of ``pred``."""
    if ty in ("f16x2", "bf16x2", "tf32"):
        return 32
    return int(re.sub(r"\D", "", ty) or 1)

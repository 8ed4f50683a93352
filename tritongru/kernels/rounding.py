"""What a block of values becomes before the tensor cores multiply it."""

import triton
import triton.language as tl

# The interpreter multiplies fp32 values as they are, whatever precision is asked for; rounding would hide errors there.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def operand_of_product(b, UPCAST: tl.constexpr, PRECISION: tl.constexpr):
    """For a TF32 product, fp32 values rounded to its 11 bits, ties away from zero.

    Tensor cores ignore the 13 low bits, so without this every operand would be cut off: up to twice the error, and
    always towards zero. A NaN stays as it is, because the carry would turn it into a zero."""
    if UPCAST:
        b = b.to(tl.float32)
    if b.dtype == tl.float32 and PRECISION == "tf32" and not INTERPRETED:
        b_rounded = (b.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
        b = tl.where(b == b, b_rounded.to(tl.float32, bitcast=True), b)
    return b

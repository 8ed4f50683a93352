"""What a block of values becomes before the tensor cores multiply it."""

import triton
import triton.language as tl

# The interpreter multiplies fp32 values as they are, whatever precision is asked for, and runs no assembly.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.constexpr_function
def is_rounded(dtype, PRECISION):
    return dtype == tl.float32 and PRECISION == "tf32"


@triton.jit
def operand_of_product(b, UPCAST: tl.constexpr, PRECISION: tl.constexpr):
    """For a TF32 product, fp32 values rounded to its 11 bits, ties away from zero, by one instruction each.

    Tensor cores ignore the 13 low bits, so without this every operand would be cut off: up to twice the error, and
    always towards zero. AMD GPUs multiply fp32 values as they are and are never asked for TF32."""
    if UPCAST:
        b = b.to(tl.float32)
    if is_rounded(b.dtype, PRECISION) and not INTERPRETED:
        b = tl.inline_asm_elementwise("cvt.rna.tf32.f32 $0, $1;", "=r,r", [b], dtype=tl.float32, is_pure=True, pack=1)
    return b

"""What instructions compute, against Python's integers, exact fractions, torch's dtypes and PTX's own definitions."""

from __future__ import annotations

import functools
import math
import operator
import random
import re
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from small_kernels import Kernel, Run, words, zeros
from torch import Tensor

N = 128  # values of each operand: four warps
BITS = {torch.int16: 16, torch.int32: 32, torch.int64: 64}
CLASSES = {16: "rs", 32: "r", 64: "rd"}


def computed(instruction: str, *operands: Tensor, bits: int = 32, grid: int = 1) -> list[int]:
    """D as unsigned words, of an instruction of A, B and C, which are the operands' bits; of P, which is a predicate, 1
    or 0."""
    body = ""
    arguments: dict[str, Tensor] = {}
    for name, operand in zip("ABC", operands, strict=False):
        integers = operand.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[operand.itemsize])
        size = BITS[integers.dtype]
        arguments[name] = integers
        body += f"ld.global.b{size} %{CLASSES[size]}_{name}1, [%rd_{name}_own];\n"
        instruction = re.sub(rf"\b{name}\b", f"%{CLASSES[size]}_{name}1", instruction)
    instruction = re.sub(r"\bD\b", f"%{CLASSES[bits]}1", instruction)
    if re.search(r"\bP\b", instruction):
        instruction = re.sub(r"\bP\b", "%p1", instruction) + " selp.b32 %r1, 1, 0, %p1;"
    registers = "".join(f".reg .b{n} %{c}_A1, %{c}_B1, %{c}_C1;\n" for n, c in CLASSES.items())
    body = f"{registers}{body}{instruction}\nst.global.b{bits} [%rd_y_own], %{CLASSES[bits]}1;"
    y = torch.zeros(N * grid, dtype={16: torch.int16, 32: torch.int32, 64: torch.int64}[bits])
    run = Kernel(body, arguments | {"y": y}, warps=4, grid=(grid, 1, 1)).run()
    assert not run.kinds, run.lines
    return [value % 2**bits for value in run.y.tolist()]


def integers(bits: int, seed: int) -> Tensor:
    """Of any size, with the ends of the ranges among them."""
    choices = random.Random(seed)
    ends = [0, 1, 2, 2**bits - 1, 2 ** (bits - 1), 2 ** (bits - 1) - 1, 2 ** (bits - 1) + 1, 31, 32, 33, 63, 64, 65]
    values = [v % 2**bits for v in ends] + [choices.getrandbits(choices.randint(1, bits)) for _ in range(N)]
    values = (values[seed:] + values[:seed])[:N]
    return torch.from_numpy(np.array(values, dtype=f"uint{bits}").view(f"int{bits}"))


def unsigned(operand: Tensor) -> list[int]:
    return [v % 2 ** (8 * operand.itemsize) for v in operand.tolist()]


def signed(value: int, bits: int = 32) -> int:
    half = 1 << (bits - 1)
    return (value + half) % (2 * half) - half


def quotient(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def funnel(a: int, b: int, c: int, left: bool, wrap: bool) -> int:
    n, both = c % 32 if wrap else min(c, 32), b << 32 | a
    return (both << n) >> 32 if left else both >> n


def field(a: int, first: int, count: int, sign: bool) -> int:
    found = a >> first & (1 << count) - 1
    return found - (1 << count) if sign and found >> (count - 1) else found


def permuted(a: int, b: int, c: int) -> int:
    both, out = (b << 32 | a).to_bytes(8, "little"), []
    for i in range(4):
        choice = c >> 4 * i & 15
        byte = both[choice & 7]
        out.append((255 if byte >> 7 else 0) if choice & 8 else byte)
    return int.from_bytes(bytes(out), "little")


def by_table(a: int, b: int, c: int, table: int) -> int:
    return sum((table >> (4 * (a >> i & 1) + 2 * (b >> i & 1) + (c >> i & 1)) & 1) << i for i in range(32))


Of = Callable[..., int]
S = signed

# Instruction, bits of the operands, bits of the result, and the result of unsigned operands: its lower bits count.
INTEGERS: list[tuple[str, int, int, Of]] = [
    ("add.s32 D, A, B;", 32, 32, lambda a, b: a + b),
    ("add.s64 D, A, B;", 64, 64, lambda a, b: a + b),
    ("add.s16 D, A, B;", 16, 16, lambda a, b: a + b),
    ("sub.u32 D, A, B;", 32, 32, lambda a, b: a - b),
    ("sub.s32 D, A, -7;", 32, 32, lambda a, b: a + 7),
    ("mul.lo.s32 D, A, B;", 32, 32, lambda a, b: a * b),
    ("mul.lo.s64 D, A, B;", 64, 64, lambda a, b: a * b),
    ("mul.lo.s16 D, A, B;", 16, 16, lambda a, b: a * b),
    ("mul.hi.u32 D, A, B;", 32, 32, lambda a, b: a * b >> 32),
    ("mul.hi.s32 D, A, B;", 32, 32, lambda a, b: S(a) * S(b) >> 32),
    ("mul.hi.u64 D, A, B;", 64, 64, lambda a, b: a * b >> 64),
    ("mul.hi.s64 D, A, B;", 64, 64, lambda a, b: S(a, 64) * S(b, 64) >> 64),
    ("mul.hi.u16 D, A, B;", 16, 16, lambda a, b: a * b >> 16),
    ("mul.hi.s16 D, A, B;", 16, 16, lambda a, b: S(a, 16) * S(b, 16) >> 16),
    ("mul.wide.u32 D, A, B;", 32, 64, lambda a, b: a * b),
    ("mul.wide.s32 D, A, B;", 32, 64, lambda a, b: S(a) * S(b)),
    ("mul.wide.u16 D, A, B;", 16, 32, lambda a, b: a * b),
    ("mul.wide.s16 D, A, B;", 16, 32, lambda a, b: S(a, 16) * S(b, 16)),
    ("mad.lo.s32 D, A, B, C;", 32, 32, lambda a, b, c: a * b + c),
    ("mad.wide.u32 D, A, B, 5;", 32, 64, lambda a, b: a * b + 5),
    ("mad.wide.s32 D, A, B, 5;", 32, 64, lambda a, b: S(a) * S(b) + 5),
    ("div.u32 D, A, B;", 32, 32, lambda a, b: a // b if b else 2**32 - 1),
    ("div.s32 D, A, B;", 32, 32, lambda a, b: quotient(S(a), S(b)) if b else -1),
    ("rem.u32 D, A, B;", 32, 32, lambda a, b: a % b if b else a),
    ("rem.s32 D, A, B;", 32, 32, lambda a, b: S(a) - quotient(S(a), S(b)) * S(b) if b else a),
    ("div.s32 D, A, -3;", 32, 32, lambda a, b: quotient(S(a), -3)),
    ("rem.s32 D, A, -3;", 32, 32, lambda a, b: S(a) + 3 * quotient(S(a), -3)),
    ("div.s64 D, A, B;", 64, 64, lambda a, b: quotient(S(a, 64), S(b, 64)) if b else -1),
    ("min.u32 D, A, B;", 32, 32, min),
    ("min.s32 D, A, B;", 32, 32, lambda a, b: min(S(a), S(b))),
    ("max.u64 D, A, B;", 64, 64, max),
    ("max.s32 D, A, B;", 32, 32, lambda a, b: max(S(a), S(b))),
    ("neg.s32 D, A;", 32, 32, lambda a, b: -a),
    ("abs.s32 D, A;", 32, 32, lambda a, b: abs(S(a))),
    ("and.b32 D, A, B;", 32, 32, lambda a, b: a & b),
    ("or.b64 D, A, B;", 64, 64, lambda a, b: a | b),
    ("xor.b16 D, A, B;", 16, 16, lambda a, b: a ^ b),
    ("not.b32 D, A;", 32, 32, lambda a, b: ~a),
    ("shl.b32 D, A, B;", 32, 32, lambda a, b: a << min(b, 32)),
    ("shr.u32 D, A, B;", 32, 32, lambda a, b: a >> min(b, 32)),
    ("shr.s32 D, A, B;", 32, 32, lambda a, b: S(a) >> min(b, 32)),
    ("shl.b32 D, A, 5;", 32, 32, lambda a, b: a << 5),
    ("shl.b32 D, A, 32;", 32, 32, lambda a, b: 0),
    ("shr.u32 D, A, 40;", 32, 32, lambda a, b: 0),
    ("shr.s32 D, A, 31;", 32, 32, lambda a, b: S(a) >> 31),
    ("shr.s32 D, A, 99;", 32, 32, lambda a, b: S(a) >> 31),
    ("shl.b64 D, A, 33;", 64, 64, lambda a, b: a << 33),
    ("shr.u64 D, A, 33;", 64, 64, lambda a, b: a >> 33),
    ("shr.s64 D, A, 3;", 64, 64, lambda a, b: S(a, 64) >> 3),
    ("shr.u16 D, A, 3;", 16, 16, lambda a, b: a >> 3),
    ("bfe.u32 D, A, 3, 7;", 32, 32, lambda a, b: field(a, 3, 7, False)),
    ("bfe.s32 D, A, 3, 7;", 32, 32, lambda a, b: field(a, 3, 7, True)),
    ("bfe.u32 D, A, 0, 32;", 32, 32, lambda a, b: a),
    ("bfe.u32 D, A, 8, 0;", 32, 32, lambda a, b: 0),
    ("bfe.u64 D, A, 30, 9;", 64, 64, lambda a, b: field(a, 30, 9, False)),
    ("bfe.s64 D, A, 30, 9;", 64, 64, lambda a, b: field(a, 30, 9, True)),
    ("bfi.b32 D, A, B, 4, 9;", 32, 32, lambda a, b: b & ~(511 << 4) | (a & 511) << 4),
    ("bfi.b64 D, A, B, 20, 30;", 64, 64, lambda a, b: b & ~((1 << 30) - 1 << 20) | (a & (1 << 30) - 1) << 20),
    ("prmt.b32 D, A, B, C;", 32, 32, permuted),
    ("prmt.b32 D, A, B, 0x5410;", 32, 32, lambda a, b: a & 0xFFFF | b << 16),
    ("lop3.b32 D, A, B, C, 0x96;", 32, 32, lambda a, b, c: a ^ b ^ c),
    ("lop3.b32 D, A, B, C, 0xca;", 32, 32, lambda a, b, c: a & b | ~a & c),
    ("lop3.b32 D, A, B, C, 0x2b;", 32, 32, lambda a, b, c: by_table(a, b, c, 0x2B)),
    ("shf.l.wrap.b32 D, A, B, C;", 32, 32, lambda a, b, c: funnel(a, b, c, True, True)),
    ("shf.l.clamp.b32 D, A, B, C;", 32, 32, lambda a, b, c: funnel(a, b, c, True, False)),
    ("shf.r.wrap.b32 D, A, B, C;", 32, 32, lambda a, b, c: funnel(a, b, c, False, True)),
    ("shf.r.clamp.b32 D, A, B, C;", 32, 32, lambda a, b, c: funnel(a, b, c, False, False)),
    ("clz.b32 D, A;", 32, 32, lambda a, b: 32 - a.bit_length()),
    ("clz.b64 D, A;", 64, 32, lambda a, b: 64 - a.bit_length()),
    ("popc.b32 D, A;", 32, 32, lambda a, b: a.bit_count()),
    ("popc.b64 D, A;", 64, 32, lambda a, b: a.bit_count()),
    ("cvt.u32.u16 D, A;", 16, 32, lambda a, b: a),
    ("cvt.s32.s16 D, A;", 16, 32, lambda a, b: S(a, 16)),
    ("cvt.u16.u32 D, A;", 32, 16, lambda a, b: a),
    ("cvt.s64.s32 D, A;", 32, 64, lambda a, b: S(a)),
    ("cvt.u64.u32 D, A;", 32, 64, lambda a, b: a),
    ("cvt.u32.u64 D, A;", 64, 32, lambda a, b: a),
    ("cvt.s16.s32 D, A;", 32, 32, lambda a, b: S(a % 2**16, 16)),  # of a register that is wider
    ("cvt.u16.u32 D, A;", 32, 32, lambda a, b: a % 2**16),
    ("cvt.s8.s16 D, A;", 16, 16, lambda a, b: S(a % 256, 8)),
    ("cvt.s32.s8 D, A;", 32, 32, lambda a, b: S(a % 256, 8)),
    ("cvt.u32.u8 D, A;", 32, 32, lambda a, b: a % 256),
    ("mov.b64 D, {A, B};", 32, 64, lambda a, b: b << 32 | a),
    ("mov.b32 D, {A, B};", 16, 32, lambda a, b: b << 16 | a),
    ("mov.f32 D, 0f40490FDB;", 32, 32, lambda a, b: 0x40490FDB),
    ("mov.f64 D, 0d3FF8000000000000;", 64, 64, lambda a, b: 0x3FF8000000000000),
    ("mov.b32 D, -5;", 32, 32, lambda a, b: -5),
    ("{ .reg .b32 %u; mov.b64 {%u, D}, A; }", 64, 32, lambda a, b: a >> 32),
    ("{ .reg .b16 u; mov.b32 {D, u}, A; }", 32, 16, lambda a, b: a),
    ("setp.eq.s32 P, A, B;", 32, 32, lambda a, b: a == b),
    ("setp.ne.b64 P, A, B;", 64, 32, lambda a, b: a != b),
    ("setp.lt.s32 P, A, B;", 32, 32, lambda a, b: S(a) < S(b)),
    ("setp.le.s64 P, A, B;", 64, 32, lambda a, b: S(a, 64) <= S(b, 64)),
    ("setp.gt.u32 P, A, B;", 32, 32, lambda a, b: a > b),
    ("setp.ge.s16 P, A, B;", 16, 32, lambda a, b: S(a, 16) >= S(b, 16)),
    ("setp.lo.u32 P, A, B;", 32, 32, lambda a, b: a < b),
    ("setp.ls.u32 P, A, B;", 32, 32, lambda a, b: a <= b),
    ("setp.hi.u32 P, A, B;", 32, 32, lambda a, b: a > b),
    ("setp.hs.u32 P, A, B;", 32, 32, lambda a, b: a >= b),
    ("setp.lt.u32 %p2|P, A, B;", 32, 32, lambda a, b: a >= b),
    ("setp.lt.s32 %p2, A, 0; and.pred P, %p2, %p2; not.pred P, P;", 32, 32, lambda a, b: S(a) >= 0),
    (
        "setp.lt.s32 %p2, A, 0; setp.lt.s32 %p3, B, 0; xor.pred P, %p2, %p3;",
        32,
        32,
        lambda a, b: (S(a) < 0) != (S(b) < 0),
    ),
    ("setp.lt.s32 %p2, A, 0; selp.b32 D, A, B, %p2;", 32, 32, lambda a, b: a if S(a) < 0 else b),
    ("setp.lt.s32 %p2, A, 0; mov.b32 D, A; @%p2 add.s32 D, B, 1;", 32, 32, lambda a, b: b + 1 if S(a) < 0 else a),
    ("setp.lt.s32 %p2, A, 0; mov.b32 D, A; @!%p2 add.s32 D, B, 1;", 32, 32, lambda a, b: a if S(a) < 0 else b + 1),
]


@pytest.mark.parametrize("instruction, of, to, expected", INTEGERS, ids=[row[0] for row in INTEGERS])
def test_integers(instruction: str, of: int, to: int, expected: Of) -> None:
    operands = [integers(of, seed) for seed in (0, 5, 8)]
    count = max(2, expected.__code__.co_argcount if hasattr(expected, "__code__") else 2)
    found = computed(instruction, *operands[:count], bits=to)
    rows = zip(*map(unsigned, operands[:count]), strict=True)
    assert found == [int(expected(*row)) % 2**to for row in rows]


# --- floats

Torch = Callable[..., Tensor]


def floats(seed: int, small: bool = False) -> Tensor:
    """Of any size, NaN and infinity among them; or between -8 and 8."""
    generator = torch.Generator().manual_seed(seed)
    if small:
        return (torch.rand(N, generator=generator) - 0.5) * 16
    found = torch.randint(-(2**31), 2**31, (N,), generator=generator).to(torch.int32).view(torch.float32)
    special = [0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, -1.0, 3e38, 1e-40, 65504.0, 65520.0, 1 + 2**-8, 1 + 2**-9]
    special += [1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-12, -1 - 2**-11, 2.5, -2.5, 3e9, -3e9, 0.5, 1.5]
    place = 3 * seed
    found[place : place + len(special)] = torch.tensor(special)
    return found


def as_floats(found: Sequence[int]) -> Tensor:
    return torch.tensor(np.array(found, dtype="uint32").view("float32"))


def same(found: Tensor, expected: Tensor) -> bool:
    """Bit by bit, but for what kind of NaN."""
    nan = expected.isnan()
    whole = {2: torch.int16, 4: torch.int32}[expected.itemsize]
    return found.isnan().equal(nan) and found.view(whole)[~nan].equal(expected.view(whole)[~nan])


def nearest(x: Fraction) -> float:
    """The closest float32, ties to even."""
    near = np.float32(float(x))
    around = [np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf))]
    return float(min(around, key=lambda f: (abs(Fraction(float(f)) - x), int(f.view(np.uint32)) & 1)))


def without_nan(function: Torch, a: Tensor, b: Tensor) -> Tensor:
    """NaN only where both are: torch's own fmin does not take all NaN for such."""
    return function(torch.where(a.isnan(), b, a), torch.where(b.isnan(), a, b))


FLOATS: list[tuple[str, Torch]] = [
    ("add.f32 D, A, B;", lambda a, b: a + b),
    ("add.rn.f32 D, A, 0f3F800000;", lambda a, b: a + 1),
    ("sub.f32 D, A, B;", lambda a, b: a - b),
    ("mul.f32 D, A, B;", lambda a, b: a * b),
    ("div.rn.f32 D, A, B;", lambda a, b: a / b),
    ("rcp.rn.f32 D, A;", lambda a, b: 1 / a),
    ("sqrt.rn.f32 D, A;", lambda a, b: a.double().sqrt().float()),
    ("neg.f32 D, A;", lambda a, b: -a),
    ("abs.f32 D, A;", lambda a, b: a.abs()),
    ("min.f32 D, A, B;", lambda a, b: without_nan(torch.minimum, a, b)),
    ("max.f32 D, A, B;", lambda a, b: without_nan(torch.maximum, a, b)),
    ("min.NaN.f32 D, A, B;", torch.minimum),
    ("max.NaN.f32 D, A, B;", torch.maximum),
    ("setp.lt.f32 %p2, A, B; selp.f32 D, A, B, %p2;", lambda a, b: torch.where(a < b, a, b)),
]


@pytest.mark.parametrize("instruction, expected", FLOATS, ids=[row[0] for row in FLOATS])
def test_floats(instruction: str, expected: Torch) -> None:
    a, b = floats(0), floats(1)
    assert same(as_floats(computed(instruction, a, b)), expected(a, b))


def test_a_fused_product_and_sum_is_rounded_once() -> None:
    a, b, c = (floats(seed, small=True) for seed in range(3))
    a[:2], b[:2], c[:2] = 1 + 2**-12, 1 + 2**-12, torch.tensor([-1.0, -1 - 2**-11])  # 2 ** -24 is left
    rows = zip(a.tolist(), b.tolist(), c.tolist(), strict=True)
    expected = [nearest(Fraction(x) * Fraction(y) + Fraction(z)) for x, y, z in rows]
    assert as_floats(computed("fma.rn.f32 D, A, B, C;", a, b, c)).tolist() == expected
    assert expected[1] == 2**-24


def test_subnormal_numbers_are_flushed_where_that_is_asked_for() -> None:
    a = torch.tensor([1e-20, -1e-20, 1e-19, 1.0] * 32)
    product = a * 1e-20
    assert as_floats(computed("mul.f32 D, A, 0f1E3CE508;", a)).ne(0).all()
    flushed = as_floats(computed("mul.ftz.f32 D, A, 0f1E3CE508;", a))
    assert flushed.tolist() == torch.where(product.abs() < 2**-126, product.sign() * 0, product).tolist()


HOW: dict[str, Callable[[float, float], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b and a == a and b == b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "equ": lambda a, b: not (a < b or a > b),
    "neu": lambda a, b: a != b,
    "ltu": lambda a, b: not a >= b,
    "leu": lambda a, b: not a > b,
    "gtu": lambda a, b: not a <= b,
    "geu": lambda a, b: not a < b,
    "num": lambda a, b: a == a and b == b,
    "nan": lambda a, b: a != a or b != b,
}


@pytest.mark.parametrize("how", HOW)
def test_comparisons_of_floats_with_nan_among_them(how: str) -> None:
    a, b = floats(0), floats(0).roll(1)
    b[:40] = a[:40]
    rows = zip(a.tolist(), b.tolist(), strict=True)
    assert computed(f"setp.{how}.f32 P, A, B;", a, b) == [int(HOW[how](x, y)) for x, y in rows]


# --- half precision

HALF = {"f16": torch.float16, "bf16": torch.bfloat16}
OPERATIONS: dict[str, Torch] = {
    "add": lambda a, b, c: a + b,
    "sub": lambda a, b, c: a - b,
    "mul": lambda a, b, c: a * b,
    "fma.rn": lambda a, b, c: a.double() * b.double() + c.double(),
    "min": lambda a, b, c: without_nan(torch.minimum, a, b),
    "max": lambda a, b, c: without_nan(torch.maximum, a, b),
    "min.NaN": lambda a, b, c: torch.minimum(a, b),
    "max.NaN": lambda a, b, c: torch.maximum(a, b),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("ty", HALF)
def test_half_precision(ty: str, name: str) -> None:
    """Alone and in pairs; sums and products are float32's, rounded once."""
    dtype = HALF[ty]
    a, b, c = (floats(seed, small=True).to(dtype) for seed in range(3))
    a[:3] = torch.tensor([math.nan, 0.0, math.inf])
    operands = (a, b, c)[: 3 if name == "fma.rn" else 2]
    expected = OPERATIONS[name](a.float(), b.float(), c.float()).float().to(dtype)
    letters = ", ".join("ABC"[: len(operands)])
    alone = computed(f"{name}.{ty} D, {letters};", *operands, bits=16)
    assert same(torch.tensor(np.array(alone, dtype="uint16").view("int16")).view(dtype), expected)
    pairs = [torch.stack([v, v.flip(0)], 1).view(torch.int32).ravel() for v in operands]
    found = computed(f"{name}.{ty}x2 D, {letters};", *pairs)
    low, high = torch.tensor(np.array(found, dtype="uint32").view("int16")).view(dtype).view(N, 2).unbind(1)
    assert same(low, expected)
    assert same(high, expected.flip(0))


@pytest.mark.parametrize("ty", HALF)
def test_signs_and_comparisons_of_half_precision(ty: str) -> None:
    a, b = floats(0, small=True).to(HALF[ty]), floats(1, small=True).to(HALF[ty])
    a[0], b[1:3] = math.nan, a[1:3]
    negated = computed(f"neg.{ty} D, A;", a, bits=16)
    assert negated == [v ^ 0x8000 for v in unsigned(a.view(torch.int16))]
    assert computed(f"setp.lt.{ty} P, A, B;", a, b) == a.lt(b).int().tolist()
    pairs = [torch.stack([v, v.flip(0)], 1).view(torch.int32).ravel() for v in (a, b)]
    assert computed(f"neg.{ty}x2 D, A;", pairs[0]) == [v ^ 0x80008000 for v in unsigned(pairs[0])]
    assert computed(f"setp.geu.{ty}x2 %p2|P, A, B;", *pairs) == (~a.lt(b)).flip(0).int().tolist()
    assert computed(f"setp.geu.{ty}x2 P|%p2, A, B;", *pairs) == (~a.lt(b)).int().tolist()


@pytest.mark.parametrize("ty", HALF)
def test_conversions_to_and_from_half_precision(ty: str) -> None:
    a, b, dtype = floats(0), floats(1), HALF[ty]
    found = torch.tensor(np.array(computed(f"cvt.rn.{ty}.f32 D, A;", a, bits=16), dtype="uint16").view("int16"))
    assert same(found.view(dtype), a.to(dtype))
    pairs = torch.tensor(np.array(computed(f"cvt.rn.{ty}x2.f32 D, A, B;", a, b), dtype="uint32").view("int16"))
    low, high = pairs.view(dtype).view(N, 2).unbind(1)
    assert same(high, a.to(dtype))  # the first operand is the upper half
    assert same(low, b.to(dtype))
    assert same(as_floats(computed(f"cvt.f32.{ty} D, A;", a.to(dtype))), a.to(dtype).float())


def test_bfloat16_cut_off() -> None:
    a = floats(0)
    a[50] = torch.tensor(0x7F800001).int().view(torch.float32)  # a NaN that looks like infinity when cut off
    found = torch.tensor(np.array(computed("cvt.rz.bf16.f32 D, A;", a, bits=16), dtype="uint16").view("int16"))
    expected = torch.where(a.isnan(), torch.tensor(math.nan), (a.view(torch.int32) & -65536).view(torch.float32))
    assert same(found.view(torch.bfloat16), expected.to(torch.bfloat16))


@pytest.mark.parametrize("rounding", ["rna", "rn"])
def test_conversion_to_tf32(rounding: str) -> None:
    """Ten bits after the point are left; ties go away from zero, or to even."""
    a = torch.cat([floats(0)[:100], torch.tensor([1 + 2**-11, 1 + 3 * 2**-11, -1 - 2**-11, 2 - 2**-11])])
    a = torch.cat([a, floats(1, small=True)])[:N]
    a[99] = torch.tensor(0x7FFFFFFF).int().view(torch.float32)
    found = as_floats(computed(f"cvt.{rounding}.tf32.f32 D, A;", a))

    def rounded(x: float) -> float:
        if not math.isfinite(x) or x == 0:
            return x
        unit = Fraction(2) ** (max(math.frexp(x)[1], -125) - 11)
        units = abs(Fraction(x)) / unit
        whole = math.floor(units + Fraction(1, 2)) if rounding == "rna" else round(units)
        return math.copysign(float(whole * unit), x)

    assert same(found, torch.tensor([rounded(x) for x in a.tolist()], dtype=torch.float64).float())


@pytest.mark.parametrize(
    "how, function", [("rzi", math.trunc), ("rni", round), ("rmi", math.floor), ("rpi", math.ceil)]
)
@pytest.mark.parametrize("ty", ["s32", "u32", "s16", "s8", "u8"])
def test_floats_to_integers(how: str, function: Callable[[float], int], ty: str) -> None:
    """Saturated; NaN becomes 0."""
    bits, a = int(ty[1:]), floats(0)
    a[40:] = floats(1, small=True)[40:] * 40
    half = 1 << (bits - 1)
    low, high = (-half, half - 1) if ty[0] == "s" else (0, 2 * half - 1)

    def converted(x: float) -> int:
        if math.isnan(x):
            return 0
        whole = function(max(-1e30, min(1e30, x)))
        return max(low, min(high, whole))

    to = max(16, bits)
    assert computed(f"cvt.{how}.{ty}.f32 D, A;", a, bits=to) == [converted(x) % 2**to for x in a.tolist()]
    assert computed(f"cvt.{how}.{ty}.f32 D, A;", a) == [converted(x) % 2**32 for x in a.tolist()]


def test_integers_to_floats() -> None:
    a = integers(32, 0)
    assert as_floats(computed("cvt.rn.f32.s32 D, A;", a)).tolist() == a.float().tolist()
    assert as_floats(computed("cvt.rn.f32.u32 D, A;", a)).tolist() == [np.float32(v) for v in unsigned(a)]
    assert as_floats(computed("cvt.rn.f32.s16 D, A;", a.short())).tolist() == a.short().float().tolist()


# --- approximations


@pytest.mark.parametrize(
    "name, bound, exact", [("ex2.approx", 2**-22, torch.exp2), ("rsqrt.approx", 2**-22.4, torch.rsqrt)]
)
def test_approximations_stay_within_the_documented_error(name: str, bound: float, exact: Torch) -> None:
    """ex2: 2 units of the last place; rsqrt: 2 ** -22.4."""
    x = floats(0, small=True)
    x = x.abs() if name == "rsqrt.approx" else x
    found = as_floats(computed(f"{name}.f32 D, A;", x)).double()
    error = found / exact(x.double()) - 1
    assert error.abs().max() <= bound
    assert error.abs().max() > 2**-24  # more than rounding alone
    assert error.min() < 0 < error.max()


def test_noise_depends_on_the_value_alone_and_can_be_left_out() -> None:
    kernel = Kernel(
        "ld.global.b32 %r1, [%rd_x_own]; ex2.approx.f32 %r2, %r1; st.global.b32 [%rd_y_own], %r2;",
        {"x": floats(0, small=True), "y": torch.zeros(N)},
        warps=4,
    )
    noisy, again, exact = kernel.run().y, kernel.run(seed=7).y, kernel.run(noise=False).y
    assert noisy.equal(again)
    assert not noisy.equal(exact)
    x = kernel.arguments["x"]
    assert isinstance(x, Tensor)
    assert exact.equal(x.double().exp2().float())


def test_ends_of_approximations() -> None:
    x = torch.tensor([-math.inf, math.inf, math.nan, 0.0, 128.0, -150.0, -140.0, 1.0] * 16)
    found = as_floats(computed("ex2.approx.f32 D, A;", x))[:8]
    assert found[[0, 1, 3, 4, 5, 7]].tolist() == pytest.approx([0, math.inf, 1, math.inf, 0, 2], rel=2**-21)
    assert found[2].isnan()
    assert found[6] > 0
    flushed = as_floats(computed("ex2.approx.ftz.f32 D, A;", x))[:8]
    assert flushed[6] == 0
    root = as_floats(computed("rsqrt.approx.f32 D, A;", x))[:8]
    assert root[1] == 0
    assert root[3] == math.inf
    assert root[0].isnan()


# --- lanes of a warp


def shuffled(mode: str, a: Sequence[int], b: int, c: int) -> tuple[list[int], list[int]]:
    """By the definition of PTX: values, and whether the source lane is in range."""
    values, there = [], []
    for lane in range(N):
        within, warp = lane % 32, lane // 32 * 32
        segment, clamp = c >> 8 & 31, c & 31
        most = (within & segment) | (clamp & ~segment & 31)
        least = within & segment
        j = {"up": within - b, "down": within + b, "bfly": within ^ b, "idx": least | (b & ~segment & 31)}[mode]
        ok = j >= most if mode == "up" else j <= most
        values.append(a[warp + (j if ok else within)])
        there.append(int(ok))
    return values, there


@pytest.mark.parametrize(
    "mode, b, c",
    [
        ("bfly", 1, 31),
        ("bfly", 16, 31),
        ("bfly", 8, 7 | 24 << 8),
        ("idx", 5, 31),
        ("idx", 3, 7 | 24 << 8),
        ("up", 1, 0),
        ("up", 3, 16 << 8),
        ("down", 1, 31),
        ("down", 4, 15 | 16 << 8),
    ],
)
def test_shuffles(mode: str, b: int, c: int) -> None:
    a = integers(32, 0)
    values, there = shuffled(mode, unsigned(a), b, c)
    assert computed(f"shfl.sync.{mode}.b32 D, A, {b}, {c}, 0xffffffff;", a) == values
    assert computed(f"shfl.sync.{mode}.b32 %r2|P, A, {b}, {c}, 0xffffffff;", a) == there


def test_a_shuffle_whose_lanes_differ() -> None:
    a, b = integers(32, 0), (torch.arange(N) * 7 % 32).int()
    expected = [unsigned(a)[i // 32 * 32 + j] for i, j in enumerate(b.tolist())]
    assert computed("shfl.sync.idx.b32 D, A, B, 31, 0xffffffff;", a, b) == expected


REDUCED: dict[str, Callable[[list[int]], int]] = {
    "max.s32": lambda v: max(map(signed, v)),
    "min.s32": lambda v: min(map(signed, v)),
    "max.u32": max,
    "min.u32": min,
    "add.s32": sum,
    "add.u32": sum,
    "and.b32": lambda v: functools.reduce(operator.and_, v),
    "or.b32": lambda v: functools.reduce(operator.or_, v),
    "xor.b32": lambda v: functools.reduce(operator.xor, v),
}


@pytest.mark.parametrize("how", REDUCED)
def test_reductions_of_a_warp(how: str) -> None:
    a = integers(32, 0)
    expected = [REDUCED[how](unsigned(a)[i // 32 * 32 :][:32]) % 2**32 for i in range(N)]
    assert computed(f"redux.sync.{how} D, A, 0xffffffff;", a) == expected


def test_votes() -> None:
    a = torch.arange(N).int()
    where = "setp.eq.u32 %p2, A, 70;"
    assert computed(f"{where} vote.sync.any.pred P, %p2, 0xffffffff;", a) == [int(i // 32 == 2) for i in range(N)]
    where = "setp.ne.u32 %p2, A, 70;"
    assert computed(f"{where} vote.sync.all.pred P, %p2, 0xffffffff;", a) == [int(i // 32 != 2) for i in range(N)]
    where = "and.b32 %r2, A, 3; setp.eq.u32 %p2, %r2, 1;"
    assert computed(f"{where} vote.sync.ballot.b32 D, %p2, 0xffffffff;", a) == [0x22222222] * N


def test_votes_of_lanes_that_have_parted() -> None:
    kernel = Kernel(
        """
        setp.lt.u32 %p0, %r_lane, 12;
        setp.lt.u32 %p1, %r_lane, 20;
        mov.b32 %r1, 0;
        @%p0 bra END;
        vote.sync.ballot.b32 %r1, %p1, 0xfffff000;
        vote.sync.all.pred %p2, %p1, 0xfffff000;
        vote.sync.any.pred %p3, %p0, 0xfffff000;
        selp.b32 %r2, 1, 0, %p2;
        selp.b32 %r3, 1, 0, %p3;
        or.b32 %r1, %r1, %r2;
        or.b32 %r1, %r1, %r3;
    END:
        st.global.b32 [%rd_y_own], %r1;
        """,
        {"y": zeros(32)},
    )
    assert kernel.run().y.tolist() == [0] * 12 + [0xFF000] * 20


# --- where a thread is, and where it goes


def test_special_registers() -> None:
    place: dict[str, Callable[[int], int]] = {
        "%tid.x": lambda i: i % N,
        "%laneid": lambda i: i % 32,
        "%ntid.x": lambda i: N,
        "%ctaid.x": lambda i: i // N,
        "%nctaid.x": lambda i: 3,
        "%ctaid.y": lambda i: 0,
        "%nctaid.z": lambda i: 1,
        "%tid.y": lambda i: 0,
        "%ntid.z": lambda i: 1,
    }
    for name, expected in place.items():
        assert computed(f"mov.u32 D, {name};", grid=3) == [expected(i) for i in range(3 * N)], name


def test_a_grid_of_three_dimensions() -> None:
    kernel = Kernel(
        """
        mov.u32 %r1, %ctaid.x;
        mov.u32 %r2, %ctaid.y;
        mov.u32 %r3, %ctaid.z;
        mad.lo.s32 %r4, %r2, 10, %r1;
        mad.lo.s32 %r4, %r3, 100, %r4;
        mov.u32 %r5, %nctaid.x;
        mov.u32 %r6, %nctaid.y;
        mad.lo.s32 %r7, %r3, %r6, %r2;
        mad.lo.s32 %r7, %r7, %r5, %r1;
        mad.wide.u32 %rd1, %r7, 4, %rd_y;
        setp.eq.u32 %p0, %r_tid, 0;
        @%p0 st.global.b32 [%rd1], %r4;
        """,
        {"y": zeros(24)},
        grid=(2, 3, 4),
    )
    assert kernel.run().y.tolist() == [100 * z + 10 * y + x for z in range(4) for y in range(3) for x in range(2)]


@pytest.mark.parametrize("lockstep", [True, False])
def test_each_lane_goes_its_own_way(lockstep: bool) -> None:
    """Steps of the Collatz sequence: the lanes of a warp leave the loop at different times and take both branches."""
    kernel = Kernel(
        """
        add.u32 %r1, %r_tid, 1;
        mov.b32 %r2, 0;
    LOOP:
        setp.eq.u32 %p0, %r1, 1;
        @%p0 bra DONE;
        add.u32 %r2, %r2, 1;
        and.b32 %r3, %r1, 1;
        setp.eq.u32 %p1, %r3, 0;
        @%p1 bra EVEN;
        mad.lo.s32 %r1, %r1, 3, 1;
        bra LOOP;
    EVEN:
        shr.u32 %r1, %r1, 1;
        bra LOOP;
    DONE:
        st.global.b32 [%rd_y_own], %r2;
        """,
        {"y": zeros(64)},
        warps=2,
    )

    def steps(n: int) -> int:
        return 0 if n == 1 else 1 + steps(3 * n + 1 if n % 2 else n // 2)

    run = kernel.run(lockstep=lockstep)
    assert run.y.tolist() == [steps(n) for n in range(1, 65)]
    assert not run.kinds


def test_integer_parameters_and_floats_in_them() -> None:
    kernel = Kernel(
        "add.s32 %r1, %r_n, %r_m; st.global.b32 [%rd_y_own], %r1;", {"n": -5, "y": zeros(32), "m": 2**31 - 1}
    )
    assert kernel.run().y.tolist() == [2**31 - 6] * 32


def test_names_within_braces_are_of_their_own() -> None:
    kernel = Kernel(
        """
        {
            .reg .b32 t;
            mov.b32 t, 1;
            add.s32 %r1, t, 4;
        }
        {
            .reg .b64 t;
            mov.b64 t, %rd_y_own;
            { .reg .b32 u; add.s32 u, %r1, 2;
            st.global.b32 [t], u; }
        }
        """,
        {"y": zeros(32)},
    )
    assert kernel.run().y.tolist() == [7] * 32


def test_what_is_not_known_is_refused() -> None:
    for instruction in ("sin.approx.f32 %r1, %r1;", "add.sat.s32 %r1, %r1, %r1;", "cvt.f64.f32 %rd1, %r1;"):
        with pytest.raises(NotImplementedError, match=re.escape(instruction[:8])):
            Kernel(f"mov.b32 %r1, 0; {instruction}").run()
    with pytest.raises(NotImplementedError, match="%r1 narrower than u64"):
        Kernel("mov.b32 %r1, 0; add.s64 %rd1, %r1, 1;").run()


# --- memory


def test_loads_of_each_width() -> None:
    data = torch.tensor(np.random.default_rng(0).integers(0, 256, 512, dtype=np.uint8))
    raw = data.numpy()
    of: list[tuple[str, str, int]] = [("u8", "B", 1), ("s8", "b", 1), ("u16", "H", 2), ("s16", "h", 2), ("b32", "I", 4)]
    for ty, code, size in of:
        kernel = Kernel(
            f"""
            mul.wide.u32 %rd1, %r_lane, {size};
            add.s64 %rd1, %rd_x, %rd1;
            ld.global.{ty} %r1, [%rd1];
            st.global.b32 [%rd_y_own], %r1;
            """,
            {"x": data, "y": zeros(32)},
        )
        expected = struct.unpack(f"<32{code}", raw[: 32 * size].tobytes())
        assert [v % 2**32 for v in kernel.run().y.tolist()] == [v % 2**32 for v in expected]


def test_vectors_and_narrow_words_through_shared_memory() -> None:
    kernel = Kernel(
        """
        shl.b32 %r1, %r_lane, 4;
        mad.wide.u32 %rd1, %r_lane, 16, %rd_x;
        mad.wide.u32 %rd2, %r_lane, 16, %rd_y;
        ld.global.v2.b64 {%rd3, %rd4}, [%rd1];
        st.shared.v2.b64 [%r1], {%rd4, %rd3};
        ld.shared.v4.b32 {%r2, %r3, %r4, %r5}, [%r1];
        st.shared.b8 [%r1 + 1], %r_lane;
        ld.shared.u16 %r6, [%r1];
        st.global.v4.b32 [%rd2], {%r2, %r3, %r4, %r6};
        """,
        {"x": words(128) * 65537, "y": zeros(128)},
        shared=512,
    )
    x = words(128).view(32, 4) * 65537
    expected = x[:, [2, 3, 0, 2]]
    expected[:, 3] = (x[:, 2] & 255) + 256 * torch.arange(32)
    assert kernel.run().y.view(32, 4).equal(expected)


ATOMICS: dict[str, tuple[str, Callable[[int, int], int]]] = {
    "add.u32": ("%r_tid", lambda old, i: old + i),
    "exch.b32": ("%r_tid", lambda old, i: i),
    "cas.b32": ("1000, %r_tid", lambda old, i: i if old == 1000 else old),
    "max.u32": ("%r_tid", max),
    "min.u32": ("%r_tid", min),
    "or.b32": ("%r_tid", lambda old, i: old | i),
}


@pytest.mark.parametrize("what", ATOMICS)
def test_atomics_give_what_was_there(what: str) -> None:
    operands, function = ATOMICS[what]
    kernel = Kernel(
        f"atom.global.{what} %r1, [%rd_last], {operands}; st.global.b32 [%rd_y_own], %r1;",
        {"last": torch.tensor([1000], dtype=torch.int32), "y": zeros(32)},
        outputs=("y", "last"),
    )
    run, value, before = kernel.run(), 1000, []
    for i in range(32):
        before.append(value)
        value = function(value, i)
    assert run.y.tolist() == before
    assert run.tensors["last"].item() == value


def staged(size: int, how: str, rest: str = "") -> Run:
    """Copies of so many bytes a lane, the last bytes of which are then stored to y."""
    return Kernel(
        f"""
        mul.lo.s32 %r1, %r_lane, {size};
        mad.wide.u32 %rd1, %r_lane, {size}, %rd_x;
        sub.s32 %r3, {size}, 4;
        and.b32 %r4, %r_lane, 1;
        setp.eq.u32 %p0, %r4, 0;
        selp.b32 %r5, {size}, {size // 2}, %p0;
        cp.async.{how}.shared.global [%r1], [%rd1], {size}{rest};
        cp.async.commit_group;
        cp.async.wait_group 0;
        add.s32 %r1, %r1, %r3;
        ld.shared.b32 %r2, [%r1];
        st.global.b32 [%rd_y_own], %r2;
        """,
        {"x": words(8 * size), "y": zeros(32)},
        shared=32 * size,
    ).run()


@pytest.mark.parametrize("size, how", [(4, "ca"), (8, "ca"), (16, "ca"), (16, "cg")])
def test_asynchronous_copies(size: int, how: str) -> None:
    run = staged(size, how)
    assert not run.kinds, run.lines
    last = [size // 4 * i + size // 4 - 1 for i in range(32)]
    assert run.y.tolist() == last
    run = staged(size, how, ", %r5") if size > 4 else run  # of every second lane the first half alone; zeros follow
    assert not run.kinds, run.lines
    assert run.y.tolist() == (last if size == 4 else [0 if i % 2 else v for i, v in enumerate(last)])


def test_a_copy_takes_what_is_there_when_it_is_issued_and_arrives_when_it_is_waited_for() -> None:
    kernel = Kernel(
        """
        st.shared.b32 [%r_own], 5;
        cp.async.ca.shared.global [%r_own], [%rd_x_own], 4;
        cp.async.commit_group;
        ld.shared.b32 %r1, [%r_own];
        cp.async.wait_group 0;
        ld.shared.b32 %r2, [%r_own];
        mad.lo.s32 %r1, %r1, 100, %r2;
        st.global.b32 [%rd_y_own], %r1;
        """,
        {"x": words(32), "y": zeros(32)},
        shared=128,
    )
    assert kernel.run().y.tolist() == [500 + i for i in range(32)]

"""Matrix instructions against products of whole matrices. Where a lane holds what, and where shared memory does, is
written down here from PTX's manual. Last, the search for registers used while a product runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from ptxmachine.code.hazards import wgmma_hazards
from ptxmachine.code.program import Program
from small_kernels import Kernel, Run, words, zeros
from torch import Tensor

LANES = torch.arange(32)
GROUP, THREAD = LANES // 4, LANES % 4
TYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "tf32": torch.float32}


def registers(count: int, first: int = 0) -> str:
    return ", ".join(f"%r{first + i}" for i in range(count))


def small_integers(*shape: int, seed: int = 0) -> Tensor:
    """Exact in every type, as are their products and sums."""
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(seed)).float()


def packed(values: Tensor) -> Tensor:
    """The last dimension in words of 32 bits."""
    return values.contiguous().view(torch.int32)


def load(name: str, count: int, first: int) -> str:
    """Registers from a tensor (threads, count)."""
    lines = [f"mad.wide.u32 %rd9, %r_tid, {4 * count}, %rd_{name};"]
    return "\n".join([*lines, *(f"ld.global.b32 %r{first + i}, [%rd9 + {4 * i}];" for i in range(count))])


def store(name: str, count: int, first: int) -> str:
    lines = [f"mad.wide.u32 %rd9, %r_tid, {4 * count}, %rd_{name};"]
    return "\n".join([*lines, *(f"st.global.b32 [%rd9 + {4 * i}], %r{first + i};" for i in range(count))])


def checked(run: Run) -> Run:
    assert not run.kinds, run.lines
    return run


# --- ldmatrix, stmatrix


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_matrices_from_and_to_shared_memory(count: int, turned: bool) -> None:
    """Lane l holds the two values at row l / 4, columns 2 (l mod 4) and the next, of each matrix of 8 x 8."""
    trans = ".trans" if turned else ""
    kernel = Kernel(
        f"""
        mad.wide.u32 %rd1, %r_lane, 16, %rd_x;
        ld.global.v4.b32 {{{registers(4)}}}, [%rd1];
        mul.lo.s32 %r9, %r_lane, 48; // rows are apart
        st.shared.v4.b32 [%r9], {{{registers(4)}}};
        bar.sync 0;
        ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{registers(count, 10)}}}, [%r9];
        {store("y", count, 10)}
        bar.sync 0;
        stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [%r9 + 16], {{{registers(count, 10)}}};
        bar.sync 0;
        mov.b32 %r0, 0;
        setp.lt.u32 %p0, %r_lane, {8 * count};
        @%p0 ld.shared.v4.b32 {{{registers(4)}}}, [%r9 + 16];
        mad.wide.u32 %rd1, %r_lane, 16, %rd_z;
        @%p0 st.global.v4.b32 [%rd1], {{{registers(4)}}};
        """,
        {"x": words(128) * 65537 + 17, "y": zeros(32 * count), "z": zeros(128)},
        shared=2048,
        outputs=("y", "z"),
    )
    run = checked(kernel.run())
    rows = run.tensors["x"].view(torch.int16).view(4, 8, 8)  # matrix, row, column
    matrices = rows.mT if turned else rows
    held = torch.stack([matrices[:, GROUP, 2 * THREAD], matrices[:, GROUP, 2 * THREAD + 1]], -1)
    assert run.y.view(32, count).equal(packed(held)[:count, :, 0].T)
    assert run.tensors["z"].view(torch.int16).view(4, 8, 8)[:count].equal(rows[:count])


# --- mma


def operand_a(a: Tensor, ty: str) -> Tensor:
    """(32, registers) of a (16, K)."""
    K = a.shape[1]
    if ty == "tf32":
        return packed(torch.stack([a[GROUP + row, THREAD + k] for k in range(0, K, 4) for row in (0, 8)], 1))
    pairs = [
        torch.stack([a[GROUP + row, 2 * THREAD + k + half] for half in (0, 1)], 1)
        for k in range(0, K, 8)
        for row in (0, 8)
    ]
    return packed(torch.stack(pairs, 1))[..., 0]


def operand_b(b: Tensor, ty: str) -> Tensor:
    """(32, registers) of b (K, 8)."""
    K = b.shape[0]
    if ty == "tf32":
        return packed(torch.stack([b[THREAD + k, GROUP] for k in range(0, K, 4)], 1))
    pairs = [torch.stack([b[2 * THREAD + k + half, GROUP] for half in (0, 1)], 1) for k in range(0, K, 8)]
    return packed(torch.stack(pairs, 1))[..., 0]


def sums(c: Tensor) -> Tensor:
    """(32, 4) of c (16, 8)."""
    return torch.stack([c[GROUP + row, 2 * THREAD + half] for row in (0, 8) for half in (0, 1)], 1)


def product(ty: str, K: int, a: Tensor, b: Tensor, c: Tensor, **options: Any) -> Tensor:
    """What the lanes hold of the sums (warps, 32, 4), of a (warps, 16, K), b (warps, K, 8) and c (warps, 16, 8)."""
    warps, na, nb = len(a), 2 * K // (4 if ty == "tf32" else 8), K // (4 if ty == "tf32" else 8)
    arguments: dict[str, Tensor | int] = {
        "a": torch.cat([operand_a(v.to(TYPES[ty]), ty) for v in a]),
        "b": torch.cat([operand_b(v.to(TYPES[ty]), ty) for v in b]),
        "c": torch.cat([packed(sums(v)) for v in c]),
        "y": torch.zeros(warps * 32, 4),
    }
    name = f"mma.sync.aligned.m16n8k{K}.row.col.f32.{ty}.{ty}.f32"
    body = f"""
    {load("a", na, 10)}
    {load("b", nb, 20)}
    {load("c", 4, 30)}
    {name} {{{registers(4, 30)}}}, {{{registers(na, 10)}}}, {{{registers(nb, 20)}}}, {{{registers(4, 30)}}};
    {store("y", 4, 30)}
    """
    return checked(Kernel(body, arguments, warps=warps).run(**options)).y.view(warps, 32, 4)


@pytest.mark.parametrize("ty, K", [("bf16", 16), ("bf16", 8), ("f16", 16), ("f16", 8), ("tf32", 8), ("tf32", 4)])
def test_products_of_matrices(ty: str, K: int) -> None:
    a, b, c = small_integers(3, 16, K), small_integers(3, K, 8, seed=1), small_integers(3, 16, 8, seed=2) * 100
    expected = a @ b + c
    assert product(ty, K, a, b, c).equal(torch.stack([sums(v) for v in expected]))


def test_sums_are_cut_off_and_not_rounded() -> None:
    a, b = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) - 0.5
    a, b, c = a.bfloat16().float(), b[..., :8].bfloat16().float(), small_integers(1, 16, 8)
    exact = torch.stack([sums(v) for v in a.double() @ b.double() + c])
    cut, rounded = product("bf16", 16, a, b, c), product("bf16", 16, a, b, c, truncate=False)
    assert rounded.equal(exact.float())
    assert (cut.abs() <= exact.abs()).all()
    assert ((exact - cut).abs() <= exact.abs() * 2**-23).all()
    assert (cut != rounded).any()


def test_tf32_takes_the_upper_bits_of_its_operands() -> None:
    a, b, c = torch.zeros(1, 16, 8), torch.zeros(1, 8, 8), torch.zeros(1, 16, 8)
    a[0, :, 0], b[0, 0] = 1 + 2**-10 + 2**-12, 1 + 2**-13
    assert product("tf32", 8, a, b, c).eq(1 + 2**-10).all()


def test_what_is_not_finite_goes_through_products() -> None:
    a, b, c = small_integers(1, 16, 16), small_integers(1, 16, 8, seed=1), small_integers(1, 16, 8)
    a[0, 3, 2], c[0, 5, 1], c[0, 6, 2] = torch.nan, torch.inf, -torch.inf
    found, expected = product("bf16", 16, a, b, c)[0], sums((a @ b + c)[0])
    assert found.isnan().equal(expected.isnan())
    assert found.isinf().sum() == 2
    assert found[expected.isfinite()].equal(expected[expected.isfinite()])


# --- wgmma


def placed(matrix: Tensor, swizzle: int, along: int, across: int) -> Tensor:
    """The bytes of a matrix (rows, columns) whose rows are laid out in pieces of ``swizzle`` bytes, or of 16 if that is
    0, in blocks of eight rows: ``along`` bytes from one piece of a row to the next, ``across`` from eight rows to the
    next. In a block, units of 16 bytes change places with each other, in a pattern that repeats after eight rows."""
    rows, width = matrix.shape[0], swizzle or 16
    raw = matrix.contiguous().view(torch.uint8).view(rows, -1)
    size = (rows // 8 - 1) * across + (raw.shape[1] // width - 1) * along + 8 * width
    found = torch.zeros(size, dtype=torch.uint8)
    for row in range(rows):
        for unit in range(raw.shape[1] // 16):
            piece, place = divmod(unit, width // 16)
            moved = place ^ (row % 8 * width // 128)
            start = row // 8 * across + piece * along + row % 8 * width + 16 * moved
            found[start : start + 16] = raw[row, 16 * unit : 16 * unit + 16]
    return found


def descriptor(start: int, along: int, across: int, swizzle: int) -> int:
    mode = {0: 0, 128: 1, 64: 2, 32: 3}[swizzle]
    return start >> 4 | along >> 4 << 16 | across >> 4 << 32 | mode << 62


def wide_sums(c: Tensor) -> Tensor:
    """(128, N / 2) of c (64, N): a warp has 16 rows."""
    rows = [
        torch.stack(
            [
                w[GROUP + row, n + 2 * THREAD + half]
                for n in range(0, c.shape[1], 8)
                for row in (0, 8)
                for half in (0, 1)
            ],
            1,
        )
        for w in c.view(4, 16, -1)
    ]
    return torch.cat(rows)


def wide_product(
    ty: str,
    N: int,
    image: Tensor,
    descriptors: tuple[int, int],
    flags: str,
    c: Tensor | None = None,
    a: Tensor | None = None,
) -> Tensor:
    """The sums that 128 threads hold, (128, N / 2); operands lie as ``image`` in shared memory, or a is
    in registers."""
    image = torch.nn.functional.pad(image, (0, -len(image) % 2048)).view(torch.int32)
    K, count = (8 if ty == "tf32" else 16), N // 2
    arguments: dict[str, Tensor | int] = {"image": image, "y": torch.zeros(128, count)}
    first = "%rd1"
    body = ""
    for part in range(len(image) // 512):
        body += f"""
        mad.wide.u32 %rd9, %r_tid, 16, %rd_image;
        ld.global.v4.b32 {{{registers(4)}}}, [%rd9 + {2048 * part}];
        shl.b32 %r9, %r_tid, 4;
        st.shared.v4.b32 [%r9 + {2048 * part}], {{{registers(4)}}};
        """
    if a is not None:
        arguments["a"] = a
        body += load("a", 4, 20)
        first = f"{{{registers(4, 20)}}}"
    if c is not None:
        arguments["c"] = packed(c)
        body += load("c", count, 30)
    body += f"""
    mov.b64 %rd1, {descriptors[0]:#x};
    mov.b64 %rd2, {descriptors[1]:#x};
    fence.proxy.async.shared::cta;
    bar.sync 0;
    setp.ne.u32 %p1, %r_all, {0 if c is not None else 128};
    wgmma.fence.sync.aligned;
    wgmma.mma_async.sync.aligned.m64n{N}k{K}.f32.{ty}.{ty} {{{registers(count, 30)}}}, {first}, %rd2, %p1, {flags};
    wgmma.commit_group.sync.aligned;
    wgmma.wait_group.sync.aligned 0;
    {store("y", count, 30)}
    """
    return checked(Kernel(body, arguments, warps=4, shared=4 * len(image)).run()).y


WIDE_SIZE = {"bf16": 2, "f16": 2, "tf32": 4}


@pytest.mark.parametrize("swizzle", [0, 32, 64, 128])
@pytest.mark.parametrize("ty", TYPES)
def test_wide_products(ty: str, swizzle: int) -> None:
    """Rows of a and b are as long as the swizzle's; a product takes 32 bytes of them."""
    size, dtype, N = WIDE_SIZE[ty], TYPES[ty], 24
    K, columns = 32 // size, (swizzle or 32) // size
    a, b, c = small_integers(64, columns), small_integers(N, columns, seed=1), small_integers(64, N, seed=2)
    along, across = (1024 + 128, 128) if swizzle == 0 else (16, 8 * swizzle)
    flags = "1, 1" if ty == "tf32" else "1, 1, 0, 0"
    more = 1 + 2**-12 if ty == "tf32" else 1  # which its ten bits after the point do not hold
    image_a, image_b = (placed((more * v).to(dtype), swizzle, along, across) for v in (a, b))
    base = -(-len(image_a) // 1024) * 1024
    image = torch.cat([torch.nn.functional.pad(image_a, (0, base - len(image_a))), image_b])
    for step in range(columns // K):
        k = slice(step * K, step * K + K)
        found = wide_product(
            ty,
            N,
            image,
            (descriptor(32 * step, along, across, swizzle), descriptor(base + 32 * step, along, across, swizzle)),
            flags,
            wide_sums(c),
        )
        assert found.equal(wide_sums(a[:, k] @ b[:, k].T + c))


@pytest.mark.parametrize("swizzle", [0, 32, 64, 128])
@pytest.mark.parametrize("ty", ["bf16", "f16"])
def test_wide_products_of_transposed_operands(ty: str, swizzle: int) -> None:
    """a and b lie with their rows, a's 64 and b's 128 values long, along K."""
    dtype, N, width = TYPES[ty], 128, swizzle or 16
    a, b = small_integers(64, 16), small_integers(N, 16, seed=1)
    along, across = (2 * 8 * width, 8 * width)  # eight rows and then the other eight, for each piece
    image_a, image_b = (placed(v.T.to(dtype), swizzle, along, across) for v in (a, b))
    assert len(image_a) == 2048
    strides = (across, along) if swizzle == 0 else (along, across)  # where nothing is swizzled they change their names
    descriptors = descriptor(0, *strides, swizzle), descriptor(2048, *strides, swizzle)
    found = wide_product(ty, N, torch.cat([image_a, image_b]), descriptors, "1, 1, 1, 1")
    assert found.equal(wide_sums(a @ b.T))


@pytest.mark.parametrize("ty", TYPES)
def test_wide_products_of_registers(ty: str) -> None:
    size, dtype, N = WIDE_SIZE[ty], TYPES[ty], 8
    a, b = small_integers(64, 32 // size), small_integers(N, 32 // size, seed=1)
    held = torch.cat([operand_a(v.to(dtype), ty) for v in a.view(4, 16, -1)])
    flags = "1, 1" if ty == "tf32" else "1, 1, 0"
    there = descriptor(0, 128, 256, 0)
    found = wide_product(ty, N, placed(b.to(dtype), 0, 128, 256), (there, there), flags, a=held)
    assert found.equal(wide_sums(a @ b.T))


def test_a_wide_product_that_begins_anew_needs_no_sums() -> None:
    """Its registers may never have been written; with the sums added, what is in them is not zero."""
    kernel = Kernel(
        """
        shl.b32 %r1, %r_tid, 4;
        mov.b32 %r2, 0;
        st.shared.v4.b32 [%r1], {%r2, %r2, %r2, %r2};
        fence.proxy.async.shared::cta;
        bar.sync 0;
        mov.b64 %rd1, 0x0000001000080000;
        setp.eq.u32 %p0, %r_n, 1;
        wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%r3, %r4, %r5, %r6}, %rd1, %rd1, %p0, 1, 1, 0, 0;
        st.global.b32 [%rd_y_own], %r3;
        """,
        {"y": torch.ones(128), "n": 0},
        warps=4,
        shared=2048,
    )
    assert checked(kernel.run()).y.eq(0).all()
    added = replace(kernel, arguments={**kernel.arguments, "n": 1})
    assert checked(added.run()).y.ne(0).all()


# --- registers of a product that runs

RUNNING = """
    wgmma.fence.sync.aligned;
    wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%r1, %r2, %r3, %r4}, {%r5, %r6, %r7, %r8}, %rd1, 1, 1, 1, 0;
    wgmma.commit_group.sync.aligned;
    BEFORE
    wgmma.wait_group.sync.aligned 0;
    AFTER
"""


@pytest.mark.parametrize(
    "instruction, wrong",
    [
        ("add.f32 %r9, %r2, %r2;", ["%r2", "%r2"]),
        ("st.global.b32 [%rd2], %r4;", ["%r4"]),
        ("mov.b32 %r3, 0;", ["%r3"]),
        ("mov.b32 %r6, 0;", ["%r6"]),
        ("add.f32 %r9, %r6, %r6;", []),
        ("mov.b64 %rd3, %rd1;", []),
    ],
)
def test_registers_used_while_a_product_runs(instruction: str, wrong: list[str]) -> None:
    """Its sums may be neither read nor written until it is waited for, its operands not written."""

    def hazards(body: str) -> list[list[str]]:
        text = Kernel(body.replace("BEFORE", "").replace("AFTER", "")).text()
        return [hazard.registers for hazard in wgmma_hazards(Program(text, 0))]

    assert hazards(RUNNING.replace("BEFORE", instruction)) == ([wrong] if wrong else [])
    assert hazards(RUNNING.replace("AFTER", instruction)) == []


@pytest.mark.parametrize("end", ["bar.sync 0;", "wgmma.wait_group.sync.aligned 1; bar.sync 0;"])
def test_a_product_that_nobody_waits_for(end: str) -> None:
    [hazard] = wgmma_hazards(Program(Kernel(RUNNING.split("BEFORE")[0] + end).text(), 0))
    assert hazard.text == "in flight at the end of a segment"
    assert hazard.registers == ["%r1", "%r2", "%r3", "%r4"]

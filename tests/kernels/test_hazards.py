"""The faults of warp-group products are found in machine code that has them, and in none that has not."""

import pytest

from bench.compile.hazards import early_writes, unfenced

pytestmark = pytest.mark.quick

PTX = """
    cp.async.cg.shared.global [%r1], [%rd1], 16;
    cp.async.commit_group;
    cp.async.wait_group 2;
    bar.sync 0;
    fence.proxy.async.shared::cta;
    wgmma.fence.sync.aligned;
    wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%f1}, %rd2, %rd3, 1, 1, 1, 0, 1;
    wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%f1}, %rd2, %rd4, 1, 1, 1, 0, 1;
    wgmma.commit_group.sync.aligned;
"""


@pytest.mark.parametrize(
    "before, after, count",
    [
        ("", "", 0),
        ("    fence.proxy.async.shared::cta;\n", "", 2),
        ("    fence.proxy.async.shared::cta;\n", "    fence.proxy.alias;\n", 2),
        ("cp.async.wait_group 2", "cp.async.wait_all", 0),
        ("    cp.async.wait_group 2;\n    bar.sync 0;\n    fence", "    fence", 0),
        ("    wgmma.commit", "    cp.async.wait_group 0;\n    wgmma.mma_async x;\n    wgmma.commit", 1),
    ],
    ids=["fenced", "no fence", "another fence", "all waited for", "nothing copied", "waited for again"],
)
def test_copies_need_a_fence_before_a_product(before, after, count):
    assert before in PTX
    assert unfenced(PTX.replace(before, after, 1) if before else PTX) == count


SASS = """
    LDG.E.128 R4, desc[UR6][R2.64]
    WARPGROUP.ARRIVE
    HGMMA.64x32x16.F32.BF16 R24, R4, gdesc[UR8], R24
    LDG.E.128 R8, desc[UR6][R2.64+0x200]
    HGMMA.64x32x16.F32.BF16 R24, R8, gdesc[UR8], R24, gsb0
    LDG.E.128 R12, desc[UR6][R2.64+0x400]
    WARPGROUP.DEPBAR.LE gsb0, 0x0
    IMAD.MOV.U32 R4, RZ, RZ, R40
    FADD R8, R24, R25
    STG.E desc[UR6][R2.64], R8
"""
LOOP = """
    WARPGROUP.DEPBAR.LE gsb0, 0x1
    LDG.E.128 R4, desc[UR6][R2.64]
    WARPGROUP.ARRIVE
    HGMMA.64x32x16.F32.BF16 R24, R4, gdesc[UR8], R24, gsb0
    @P0 BRA 0x0
    WARPGROUP.DEPBAR.LE gsb0, 0x0
"""


def code(text):
    return [(16 * i, line.strip()) for i, line in enumerate(text.strip().splitlines())]


def test_registers_may_be_written_again_after_the_wait():
    assert early_writes(code(SASS)) == []


@pytest.mark.parametrize(
    "planted, register",
    [
        ("IMAD.MOV.U32 R5, RZ, RZ, R40", "R5"),
        ("LDG.E.128 R4, desc[UR6][R2.64]", "R4"),
        ("LDG.E.64 R10, desc[UR6][R2.64]", "R10"),
        ("@P1 FADD R11, R24, R25", "R11"),
        ("LDSM.16.M88.4 R1, [R60]", "R4"),
        ("IMAD.WIDE.U32 R6, R60, 0x10, R62", "R6"),
    ],
)
def test_a_register_that_a_product_still_reads_is_found(planted, register):
    early = SASS.replace("    LDG.E.128 R12", f"    {planted}\n    LDG.E.128 R12")
    assert early_writes(code(early)) == [f"{planted} ({register})"]


@pytest.mark.parametrize(
    "planted",
    [
        "STG.E.128 desc[UR6][R2.64], R4",
        "IMAD.MOV.U32 R12, RZ, RZ, R4",
        "LDG.E.64 R2, desc[UR6][R2.64]",
        "ISETP.GE.AND P0, PT, R4, R5, PT",
        "BAR.SYNC.DEFER_BLOCKING 0x0",
    ],
)
def test_what_writes_other_registers_or_none_is_left_alone(planted):
    assert early_writes(code(SASS.replace("    LDG.E.128 R12", f"    {planted}\n    LDG.E.128 R12"))) == []


def test_the_end_of_a_loop_meets_its_beginning():
    """One group may still be under way there: the load then writes what it reads."""
    (found,) = early_writes(code(LOOP))
    assert found == "LDG.E.128 R4, desc[UR6][R2.64] (R4)"
    assert early_writes(code(LOOP.replace("gsb0, 0x1", "gsb0, 0x0"))) == []
    assert early_writes(code(LOOP.replace("    @P0 BRA 0x0\n", ""))) == []

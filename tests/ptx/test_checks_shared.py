"""Faults planted in kernels' use of shared memory are found, and the same kernels without them are clean."""

from __future__ import annotations

import pytest
from small_kernels import Fault, Kernel, words, zeros

# Each of two warps reads what the other wrote.
SWAP = Kernel(
    """
    st.shared.b32 [%r_own], %r_tid;
    bar.sync 0;
    xor.b32 %r1, %r_own, 128;
    ld.shared.b32 %r2, [%r1];
    st.global.b32 [%rd_y_own], %r2;
    """,
    {"y": zeros(64)},
    warps=2,
    shared=256,
)
ROOMY = Kernel(SWAP.body, SWAP.arguments, warps=2, shared=512)  # whose upper half nothing writes

REUSE = Kernel(
    """
    st.shared.b32 [%r_own], %r_tid;
    bar.sync 0;
    xor.b32 %r1, %r_own, 128;
    ld.shared.b32 %r2, [%r1];
    barrier.sync 0;
    st.shared.b32 [%r_own], %r2;
    """,
    warps=2,
    shared=256,
)

IN_TURN = Kernel(
    """
    shl.b32 %r1, %r_lane, 2;
    setp.eq.u32 %p0, %r_warp, 0;
    @%p0 st.shared.b32 [%r1], %r_tid;
    bar.sync 0;
    @!%p0 st.shared.b32 [%r1], %r_tid;
    """,
    warps=2,
    shared=128,
)

# Each lane has a row of a matrix; each of two warps reads the other's four matrices and writes them back in reverse.
MATRICES = Kernel(
    """
    shl.b32 %r1, %r_tid, 4;
    xor.b32 %r2, %r1, 512;
    st.shared.v4.b32 [%r1], {%r_tid, %r_tid, %r_tid, %r_tid};
    bar.sync 0;
    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r3, %r4, %r5, %r6}, [%r2];
    barrier.sync 0;
    stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r1], {%r6, %r5, %r4, %r3};
    """,
    warps=2,
    shared=1024,
)
SPACIOUS = Kernel(MATRICES.body, warps=2, shared=2048)

COPY = Kernel(
    """
    cp.async.ca.shared.global [%r_own], [%rd_x_own], 4;
    cp.async.commit_group;
    cp.async.wait_group 0;
    bar.sync 0;
    xor.b32 %r1, %r_own, 128;
    ld.shared.b32 %r2, [%r1];
    barrier.sync 0;
    cp.async.ca.shared.global [%r_own], [%rd_x_own], 4; // again
    cp.async.wait_all;
    """,
    {"x": words(64)},
    warps=2,
    shared=512,
)

TWO_COPIES = Kernel(
    """
    st.shared.b32 [%r_own], %r_tid;
    cp.async.ca.shared.global [%r_own], [%rd_x_own], 4;
    cp.async.commit_group;
    cp.async.ca.shared.global [%r_own + 256], [%rd_x_own], 4;
    cp.async.commit_group;
    cp.async.wait_group 1;
    ld.shared.b32 %r1, [%r_own];
    cp.async.wait_group 0;
    st.shared.b32 [%r_own + 256], %r1;
    cp.async.wait_all;
    """,
    {"x": words(64)},
    warps=2,
    shared=512,
)

# a (64, 16) and b (8, 16), blocks of 8 rows of 16 bytes: 128 bytes from one to the next along K, 256 along the rows.
WIDE = Kernel(
    """
    shl.b32 %r1, %r_tid, 4;
    st.shared.v4.b32 [%r1], {%r_tid, %r_tid, %r_tid, %r_tid};
    setp.lt.u32 %p0, %r_tid, 16;
    @%p0 st.shared.v4.b32 [%r1 + 2048], {%r_tid, %r_tid, %r_tid, %r_tid};
    fence.proxy.async.shared::cta;
    bar.sync 0;
    mov.b64 %rd1, 0x0000001000080000; // from 0
    mov.b64 %rd2, 0x0000001000080080; // from 2048
    mov.b32 %r3, 0;
    mov.b32 %r4, 0;
    mov.b32 %r5, 0;
    mov.b32 %r6, 0;
    wgmma.fence.sync.aligned;
    wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%r3, %r4, %r5, %r6}, %rd1, %rd2, 1, 1, 1, 0, 0;
    wgmma.commit_group.sync.aligned;
    wgmma.wait_group.sync.aligned 0;
    barrier.sync 0;
    @%p0 st.shared.v4.b32 [%r1 + 2048], {%r3, %r4, %r5, %r6};
    """,
    warps=4,
    shared=2304,
)
LOOSE = Kernel(WIDE.body, warps=4, shared=4096)

# Of the four words that a thread reads another warp has written the last.
LAST_WORD = Kernel(
    """
    shl.b32 %r1, %r_tid, 4;
    st.shared.v4.b32 [%r1], {%r_tid, %r_tid, %r_tid, %r_tid};
    xor.b32 %r2, %r1, 512;
    barrier.sync 0;
    st.shared.b32 [%r2 + 12], %r_lane;
    bar.sync 0;
    ld.shared.v4.b32 {%r3, %r4, %r5, %r6}, [%r1];
    """,
    warps=2,
    shared=1024,
)
HALVES = Kernel(
    """
    shl.b32 %r1, %r_tid, 4;
    st.shared.v2.b32 [%r1], {%r_tid, %r_tid};
    st.shared.v2.b32 [%r1 + 8], {%r_tid, %r_tid};
    ld.shared.v4.b32 {%r2, %r3, %r4, %r5}, [%r1];
    """,
    shared=512,
)

OUTSIDE, ODD, NEVER = "shared out of bounds", "misaligned shared", "shared memory never written"
DIFFERENT = "lanes store different values in one place"
ON_THE_WAY = "a cp.async that nobody waited for"
UNFENCED = "wgmma reads what no fence.proxy.async made visible"
AGAIN = "[%r_own], [%rd_x_own], 4; // again"
ARRIVES = "cp.async.wait_group 0;\n    bar.sync 0;"
FENCE = "fence.proxy.async.shared::cta;"
B_AT = "0x0000001000080080"

FAULTS = [
    Fault("shared race: read", "ld", SWAP, "bar.sync 0;", ""),
    Fault("shared race: read", "ld of four words", LAST_WORD, "bar.sync 0;", ""),
    Fault("shared race: write after write", "st of four words", LAST_WORD, "barrier.sync 0;", ""),
    Fault("shared race: read", "ldmatrix", MATRICES, "bar.sync 0;", ""),
    Fault("shared race: read", "ld of what was copied", COPY, "bar.sync 0;", ""),
    Fault(
        "shared race: read", "ld of what was waited for late", COPY, ARRIVES, "bar.sync 0;\n    cp.async.wait_group 0;"
    ),
    Fault("shared race: read", "wgmma", WIDE, "bar.sync 0;", ""),
    Fault("shared race: write after read", "st", REUSE, "barrier.sync 0;", ""),
    Fault("shared race: write after read", "stmatrix", MATRICES, "barrier.sync 0;", ""),
    Fault("shared race: write after read", "cp.async", COPY, "barrier.sync 0;", ""),
    Fault("shared race: write after read", "st over what wgmma reads", WIDE, "barrier.sync 0;", ""),
    Fault("shared race: write after write", "st", IN_TURN, "bar.sync 0;", ""),
    Fault(OUTSIDE, "ld", SWAP, "%r2, [%r1]", "%r2, [%r1 + 128]"),
    Fault(OUTSIDE, "ld before the start", SWAP, "%r2, [%r1]", "%r2, [%r1 + -128]"),
    Fault(OUTSIDE, "st", IN_TURN, "@!%p0 st.shared.b32 [%r1]", "@!%p0 st.shared.b32 [%r1 + 4]"),
    Fault(OUTSIDE, "ldmatrix", MATRICES, "%r6}, [%r2]", "%r6}, [%r2 + 16]"),
    Fault(OUTSIDE, "stmatrix", MATRICES, "[%r1], {%r6", "[%r1 + 16], {%r6"),
    Fault(OUTSIDE, "cp.async", COPY, AGAIN, AGAIN.replace("%r_own", "%r_own + 260", 1)),
    Fault(OUTSIDE, "wgmma", WIDE, B_AT, "0x0000001000080088"),
    Fault(ODD, "ld", ROOMY, "%r2, [%r1]", "%r2, [%r1 + 2]"),
    Fault(ODD, "ld of two words", ROOMY, "ld.shared.b32 %r2, [%r1]", "ld.shared.v2.b32 {%r2, %r3}, [%r_own]"),
    Fault(ODD, "st", ROOMY, "[%r_own], %r_tid", "[%r_own + 1], %r_tid"),
    Fault(ODD, "ldmatrix", MATRICES, "xor.b32 %r2, %r1, 512", "mov.b32 %r2, 8"),
    Fault(ODD, "stmatrix", SPACIOUS, "[%r1], {%r6", "[%r1 + 4], {%r6"),
    Fault(ODD, "cp.async", COPY, AGAIN, AGAIN.replace("%r_own", "%r_own + 2", 1)),
    Fault(NEVER, "ld", ROOMY, "%r2, [%r1]", "%r2, [%r1 + 256]"),
    Fault(NEVER, "ldmatrix", SPACIOUS, "%r6}, [%r2]", "%r6}, [%r2 + 1024]"),
    Fault(NEVER, "ld of the first half", HALVES, "[%r1], {", "[%r1 + 8], {"),
    Fault(NEVER, "ld of the second half", HALVES, "[%r1 + 8]", "[%r1]"),
    Fault(NEVER, "wgmma", LOOSE, B_AT, "0x0000001000080088"),
    Fault(NEVER, "ld of what no copy fills", COPY, "%r2, [%r1]", "%r2, [%r1 + 256]"),
    Fault(DIFFERENT, "st", REUSE, "st.shared.b32 [%r_own], %r2", "and.b32 %r3, %r_own, 0xf8; st.shared.b32 [%r3], %r2"),
    Fault(DIFFERENT, "stmatrix", MATRICES, "stmatrix", "and.b32 %r1, %r1, 0x3e0; stmatrix"),
    Fault(f"read of {ON_THE_WAY}", "no wait", TWO_COPIES, "cp.async.wait_group 1;", ""),
    Fault(f"read of {ON_THE_WAY}", "a wait for less", TWO_COPIES, "wait_group 1;", "wait_group 2;"),
    Fault(f"write over {ON_THE_WAY}", "st", TWO_COPIES, "cp.async.wait_group 0;", ""),
    Fault("cp.async never waited for", "not committed", COPY, "cp.async.wait_all;", ""),
    Fault("cp.async never waited for", "committed", COPY, "cp.async.wait_all;", "cp.async.commit_group;"),
    Fault(UNFENCED, "no fence", WIDE, FENCE, ""),
    Fault(UNFENCED, "a fence of other warps", WIDE, FENCE, f"setp.ne.u32 %p1, %r_warp, 0; @%p1 {FENCE}"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_planted_fault_is_found(fault: Fault) -> None:
    fault.check()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kernel", [SWAP, REUSE, COPY], ids=["swap", "reuse", "copy"])
def test_a_missing_barrier_is_found_whatever_warp_runs_first(kernel: Kernel, seed: int) -> None:
    assert not kernel.run(lockstep=False, seed=seed).kinds
    assert kernel.edited("bar.sync 0;", "").run(lockstep=False, seed=seed).kinds


def test_warps_may_store_the_same_values_in_one_place() -> None:
    run = (
        IN_TURN.edited("bar.sync 0;", "")
        .edited("@!%p0 st.shared.b32 [%r1], %r_tid", "@!%p0 st.shared.b32 [%r1], %r_lane")
        .run()
    )
    assert not run.kinds
    assert run.machine.stats["redundant shared stores of several warps"] == 32


@pytest.mark.parametrize("ty, size", [("b8", 1), ("b16", 2), ("b32", 4)])
def test_neighbours_are_no_race_however_small_they_are(ty: str, size: int) -> None:
    kernel = Kernel(
        f"""
        mul.lo.s32 %r1, %r_lane, {2 * size};
        mad.lo.s32 %r1, %r_warp, {size}, %r1; // the warps take turns
        cvt.u16.u32 %rs1, %r_tid;
        st.shared.{ty} [%r1], {"%r_tid" if size == 4 else "%rs1"};
        xor.b32 %r2, %r1, {size};
        bar.sync 0;
        ld.shared.{ty} {"%r3" if size == 4 else "%rs3"}, [%r2];
        """,
        warps=2,
        shared=256,
    )
    assert not kernel.run().kinds
    assert set(kernel.edited("bar.sync 0;", "").run().kinds) == {"shared race: read"}


def test_lanes_of_a_warp_that_exchange_without_a_barrier_are_counted() -> None:
    """They may: no report."""
    rotate = SWAP.edited("xor.b32 %r1, %r_own, 128", "xor.b32 %r1, %r_own, 4")
    for kernel, times in ((rotate.edited("bar.sync 0;", ""), 1), (rotate, 0)):
        run = kernel.run()
        assert not run.kinds
        assert run.machine.stats["shared: lanes of a warp exchange without a barrier"] == times
        assert len(run.machine.intra) == times


@pytest.mark.parametrize(
    "option, faulty",
    [
        ("shared_races", SWAP.edited("bar.sync 0;", "")),
        ("shared_races", WIDE.edited("fence.proxy.async.shared::cta;", "")),
        ("uninitialised", ROOMY.edited("%r2, [%r1]", "%r2, [%r1 + 256]")),
        ("uninitialised", LOOSE.edited(B_AT, "0x0000001000080088")),
    ],
)
def test_a_check_can_be_left_out(option: str, faulty: Kernel) -> None:
    assert faulty.run().kinds
    assert not faulty.run(uninitialised=option != "uninitialised", shared_races=option != "shared_races").kinds


def test_of_many_programs_some_are_checked_for_races_and_all_for_bounds() -> None:
    """Of 64: every eighth, the last, and the one whose accesses are counted."""
    many = Kernel(SWAP.body.replace("bar.sync 0;", ""), {"y": zeros(64 * 64)}, warps=2, grid=(64, 1, 1), shared=256)
    assert many.run(sample=None).machine.report.found.popitem()[1].times == 9
    assert many.run(sample=3).machine.report.found.popitem()[1].times == 10
    outside = many.edited("[%r1]", "[%r1 + 128]").run()
    [times] = [found.times for (kind, _), found in outside.machine.report.found.items() if kind == OUTSIDE]
    assert times == 64

"""Counts of known patterns: wavefronts of shared memory, sectors of global memory, instructions of a loop."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from ptxmachine.machine.counting import wavefronts
from small_kernels import Kernel, words, zeros

LANES = np.arange(32)

# Byte offsets of the lanes, bytes of each, and how often the 32 banks of four bytes work for them.
PATTERNS = {
    "neighbouring words": (4 * LANES, 4, 1),
    "any order of words": (4 * np.random.default_rng(0).permutation(32), 4, 1),
    "every second word": (8 * LANES, 4, 2),
    "every fourth word": (16 * LANES, 4, 4),
    "every 32nd word": (128 * LANES, 4, 32),
    "every 33rd word": (132 * LANES, 4, 1),
    "one word": (0 * LANES, 4, 1),
    "two words of a bank": (128 * (LANES % 2), 4, 2),
    "two words of two banks": (132 * (LANES % 2), 4, 1),
    "bytes": (LANES, 1, 1),
    "bytes of every 32nd word": (128 * LANES, 1, 32),
    "halves of words": (2 * LANES, 2, 1),
    "neighbours of 8 bytes": (8 * LANES, 8, 2),
    "every second 8 bytes": (16 * LANES, 8, 4),
    "one place of 8 bytes": (0 * LANES, 8, 2),  # half a warp at a time
    "neighbours of 16 bytes": (16 * LANES, 16, 4),
    "every second 16 bytes": (32 * LANES, 16, 8),
    "rows of 128 bytes, 16 of each": (128 * LANES, 16, 32),
    "rows of 144 bytes, 16 of each": (144 * LANES, 16, 4),
    "rows of 128 bytes, swizzled": (128 * LANES + 16 * (LANES % 8), 16, 4),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_wavefronts_of_a_pattern(name: str) -> None:
    offsets, nbytes, expected = PATTERNS[name]
    assert wavefronts(offsets, LANES, nbytes) == expected


def test_wavefronts_of_some_lanes_alone() -> None:
    assert wavefronts(128 * LANES[:8], LANES[:8], 4) == 8
    assert wavefronts(16 * LANES[:8], LANES[:8], 16) == 1
    assert wavefronts(16 * LANES[::8], LANES[::8], 16) == 4  # a lane of each of four parts
    assert wavefronts(4 * LANES[5:6], LANES[5:6], 4) == 1


def shared_counts(instruction: str, offset: str, warps: int = 1) -> dict[str, Counter[str]]:
    kernel = Kernel(
        f"{offset} st.shared.b32 [%r_own], 0; st.shared.b32 [%r_own + 128], 0; {instruction}", warps=warps, shared=8192
    )
    sampled = kernel.run(uninitialised=False, shared_races=False).machine.sampled
    return {what: count for (what, tensor), count in sampled.items() if tensor == "shared"}


# Instruction, the offset %r1, and what is counted: requests, wavefronts, the fewest possible, bytes.
SHARED = [
    ("lds", "ld.shared.b32 %r2, [%r1];", "shl.b32 %r1, %r_lane, 2;", (1, 1, 1, 128)),
    ("lds", "ld.shared.b32 %r2, [%r1];", "shl.b32 %r1, %r_lane, 7;", (1, 32, 1, 128)),
    ("lds", "ld.shared.b16 %rs2, [%r1];", "shl.b32 %r1, %r_lane, 1;", (1, 1, 1, 64)),
    ("lds", "ld.shared.v2.b32 {%r2, %r3}, [%r1];", "shl.b32 %r1, %r_lane, 3;", (1, 2, 2, 256)),
    ("lds", "ld.shared.v4.b32 {%r2, %r3, %r4, %r5}, [%r1];", "shl.b32 %r1, %r_lane, 4;", (1, 4, 4, 512)),
    ("lds", "ld.shared.v4.b32 {%r2, %r3, %r4, %r5}, [%r1];", "shl.b32 %r1, %r_lane, 5;", (1, 8, 4, 512)),
    ("ldsm", "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r2}, [%r1];", "shl.b32 %r1, %r_lane, 4;", (1, 1, 1, 128)),
    ("ldsm", "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r2}, [%r1];", "shl.b32 %r1, %r_lane, 7;", (1, 8, 1, 128)),
    (
        "ldsm",
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r2, %r3, %r4, %r5}, [%r1];",
        "shl.b32 %r1, %r_lane, 4;",
        (1, 4, 4, 512),
    ),
    (
        "stsm",
        "stmatrix.sync.aligned.m8n8.x2.shared.b16 [%r1], {%r_lane, %r_lane};",
        "shl.b32 %r1, %r_lane, 5;",
        (1, 4, 2, 256),
    ),
]


@pytest.mark.parametrize("what, instruction, offset, expected", SHARED)
def test_shared_accesses_of_a_kernel(what: str, instruction: str, offset: str, expected: tuple[int, ...]) -> None:
    found = shared_counts(instruction, offset)
    assert tuple(found[what][name] for name in ("requests", "wavefronts", "least", "bytes")) == expected
    assert found["sts"] == {"requests": 2, "wavefronts": 2, "least": 2, "bytes": 256}


def test_accesses_are_counted_by_warp_and_by_instruction() -> None:
    kernel = Kernel(
        """
        shl.b32 %r1, %r_tid, 3;
        st.shared.b32 [%r1], %r_tid;
        bar.sync 0;
        setp.lt.u32 %p0, %r_tid, 48;
        @%p0 ld.shared.b32 %r2, [%r1];
        """,
        warps=2,
        shared=512,
    )
    machine = kernel.run().machine
    assert {machine.instructions[n].op: counts for n, counts in machine.by_instruction.items()} == {
        "st.shared.b32": [2, 4, 2],
        "ld.shared.b32": [2, 3, 2],  # 16 lanes of every second word: no bank twice
    }


def test_copies_are_counted_on_both_sides() -> None:
    kernel = Kernel(
        """
        shl.b32 %r1, %r_lane, 4;
        cvt.u64.u32 %rd1, %r1;
        add.s64 %rd1, %rd_x, %rd1;
        cp.async.cg.shared.global [%r1], [%rd1], 16;
        cp.async.wait_all;
        """,
        {"x": words(128)},
        shared=512,
    )
    sampled = kernel.run().machine.sampled
    assert sampled["cp.async", "shared"] == {"requests": 1, "wavefronts": 4, "least": 4, "bytes": 512}
    assert sampled["cp.async", "x"] == {"requests": 1, "sectors": 16, "bytes": 512}


# A shift of the lane, an offset in bytes, the load, and the sectors of 32 bytes that it touches.
SECTORS = [
    (2, 0, "ld.global.b32 %r2, [%rd1];", 4),
    (2, 4, "ld.global.b32 %r2, [%rd1];", 5),
    (2, 32, "ld.global.b32 %r2, [%rd1];", 4),
    (1, 0, "ld.global.b16 %rs2, [%rd1];", 2),
    (0, 0, "ld.global.b8 %rs2, [%rd1];", 1),
    (3, 0, "ld.global.b32 %r2, [%rd1];", 8),
    (5, 0, "ld.global.b32 %r2, [%rd1];", 32),
    (6, 0, "ld.global.b32 %r2, [%rd1];", 32),
    (4, 0, "ld.global.v4.b32 {%r2, %r3, %r4, %r5}, [%rd1];", 16),
    (4, 16, "ld.global.v4.b32 {%r2, %r3, %r4, %r5}, [%rd1];", 17),
    (31, 0, "ld.global.b32 %r2, [%rd1];", 1),  # one word
]


@pytest.mark.parametrize("shift, offset, load, sectors", SECTORS)
def test_sectors_of_a_pattern(shift: int, offset: int, load: str, sectors: int) -> None:
    """Tensors begin at a multiple of 64 bytes."""
    place = (
        f"shl.b32 %r1, %r_lane, {shift}; and.b32 %r1, %r1, 0xffff; cvt.u64.u32 %rd1, %r1; add.s64 %rd1, %rd_x, %rd1;"
    )
    kernel = Kernel(f"{place} add.s64 %rd1, %rd1, {offset}; {load}", {"x": words(600)})
    [(key, count)] = kernel.run().machine.sampled.items()
    assert key == ("ld.ca", "x")
    assert count["sectors"] == sectors
    assert count["requests"] == 1


def test_global_accesses_are_named_by_what_they_are() -> None:
    kernel = Kernel(
        """
        ld.global.cg.b32 %r1, [%rd_y_own];
        ld.volatile.global.b32 %r1, [%rd_y_own];
        ld.relaxed.gpu.global.b32 %r1, [%rd_y_own];
        ld.acquire.gpu.global.b32 %r1, [%rd_y_own];
        st.global.b32 [%rd_y_own], %r1;
        atom.global.add.u32 %r1, [%rd_y_own], 1;
        """,
        {"y": zeros(32)},
    )
    found = kernel.run().machine.sampled
    assert set(found) == {
        (f"{what}", "y") for what in ("ld.cg", "ld.volatile", "ld.relaxed", "ld.acquire", "st", "atom")
    }
    assert all(count == {"requests": 1, "sectors": 4, "bytes": 128} for count in found.values())


# --- instructions

LOOP = Kernel(
    """
    mov.b32 %r1, 0;
    mov.b32 %r2, 0;
LOOP:
    add.f32 %r2, %r2, %r2;
    fma.rn.f32 %r2, %r2, %r2, %r2;
    ex2.approx.f32 %r2, %r2;
    st.shared.b32 [%r_own], %r2;
    bar.sync 0;
    ld.shared.b32 %r2, [%r_own];
    shfl.sync.bfly.b32 %r3, %r2, 1, 31, 0xffffffff;
    ld.global.b32 %r4, [%rd_x_own];
    st.global.b32 [%rd_y_own], %r4;
    mov.b32 %r5, %r4;
    red.relaxed.gpu.global.add.u32 [%rd_y_own], 1;
    add.u32 %r1, %r1, 1;
    setp.lt.u32 %p0, %r1, %r_n;
    @%p0 bra LOOP;
    """,
    {"x": words(256), "y": zeros(256), "n": 1},
    warps=4,
    grid=(2, 1, 1),
    shared=512,
)
STEP = {
    "fp": 2,
    "mufu": 1,
    "sts": 1,
    "bar": 1,
    "lds": 1,
    "shfl": 1,
    "ldg": 1,
    "stg": 1,
    "mov": 1,
    "atom": 1,
    "branch": 1,
    "int": 2,
    "all": 14,
}


def loop(times: int) -> Kernel:
    return replace(LOOP, arguments={**LOOP.arguments, "n": times})


@pytest.mark.parametrize("lockstep", [True, False])
def test_one_more_step_of_a_loop(lockstep: bool) -> None:
    """Counts are over all warps: of one program for the sample, else of all."""
    more, fewer = (loop(times).run(lockstep=lockstep).machine for times in (4, 3))
    step = more.totals(more.sample_counts) - fewer.totals(fewer.sample_counts)
    assert step == {name: 4 * n for name, n in STEP.items()}
    assert more.totals() - fewer.totals() == {name: 8 * n for name, n in STEP.items()}


def test_memory_of_one_more_step() -> None:
    more, fewer = (loop(times).run().machine.sampled for times in (4, 3))
    step = {key: more[key] - fewer[key] for key in more}
    assert step == {
        ("lds", "shared"): {"requests": 4, "wavefronts": 4, "least": 4, "bytes": 512},
        ("sts", "shared"): {"requests": 4, "wavefronts": 4, "least": 4, "bytes": 512},
        ("ld.ca", "x"): {"requests": 4, "sectors": 16, "bytes": 512},
        ("st", "y"): {"requests": 4, "sectors": 16, "bytes": 512},
        ("atom", "y"): {"requests": 4, "sectors": 16, "bytes": 512},
    }


def test_warps_that_take_different_ways_are_counted_where_they_go() -> None:
    kernel = Kernel(
        """
        setp.lt.u32 %p0, %r_warp, 3;
        @%p0 bra MORE;
        ret;
    MORE:
        setp.lt.u32 %p0, %r_lane, 5;
        @%p0 bra END;
        sqrt.rn.f32 %r1, %r_tid;
    END:
        rcp.rn.f32 %r1, %r_tid;
        """,
        warps=4,
    )
    machine = kernel.run().machine
    assert machine.totals()["mufu"] == 3 + 3
    assert machine.stats["divergent branches"] == 2


def test_nothing_is_sampled_of_other_programs() -> None:
    machine = loop(2).run(sample=None).machine
    assert not machine.sampled
    assert not machine.sample_counts
    assert machine.totals()["bar"] == 16

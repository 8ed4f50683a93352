"""Faults planted in kernels' use of global memory are found, and the same kernels without them are clean."""

from __future__ import annotations

import pytest
import torch
from ptxmachine.code.program import Program
from ptxmachine.machine.machine import Machine
from ptxmachine.machine.options import Options
from small_kernels import Fault, Kernel, words, zeros

COPY = Kernel(
    """
    ld.global.b32 %r1, [%rd_x_own];
    st.global.b32 [%rd_y_own], %r1;
    """,
    {"x": words(64), "y": zeros(64)},
    warps=2,
)
GUARDED = Kernel(  # threads past the end are left out
    """
    setp.lt.u32 %p0, %r_tid, %r_n;
    @%p0 ld.global.b32 %r1, [%rd_x_own];
    @%p0 st.global.b32 [%rd_y_own], %r1;
    """,
    {"x": words(50), "y": zeros(50), "n": 50},
    warps=2,
)
PAIRS = Kernel(
    """
    shl.b32 %r1, %r_tid, 3;
    cvt.u64.u32 %rd1, %r1;
    add.s64 %rd2, %rd_x, %rd1;
    add.s64 %rd3, %rd_y, %rd1;
    ld.global.v2.b32 {%r2, %r3}, [%rd2];
    st.global.v2.b32 [%rd3], {%r2, %r3};
    """,
    {"x": words(66), "y": zeros(66)},
)
ADD = Kernel("atom.global.add.u32 %r1, [%rd_y_own], %r_tid;", {"x": words(32), "y": zeros(32)})
STAGE = Kernel(
    """
    cp.async.ca.shared.global [%r_own], [%rd_x_own], 4;
    cp.async.wait_all;
    """,
    {"x": words(33)},
    shared=128,
)
# Lanes read their neighbours' words.
ROTATE = Kernel(
    """
    st.global.b32 [%rd_y_own], %r_tid;
    bar.warp.sync 0xffffffff;
    xor.b32 %r1, %r_own, 4;
    cvt.u64.u32 %rd1, %r1;
    add.s64 %rd1, %rd_y, %rd1;
    ld.global.b32 %r2, [%rd1];
    bar.sync 0;
    st.global.b32 [%rd_y_own], %r2;
    """,
    {"y": zeros(64)},
    warps=2,
)
# Warps read each other's words.
SWAP = Kernel(
    ROTATE.body.replace("%r_own, 4", "%r_own, 128").replace("warp.sync 0xffffffff", "sync 1"), {"y": zeros(64)}, 2
)
# Of the four words that a thread reads another warp has written the last.
LAST_WORD = Kernel(
    """
    mad.wide.u32 %rd1, %r_tid, 16, %rd_y;
    xor.b32 %r1, %r_tid, 32;
    mad.wide.u32 %rd2, %r1, 16, %rd_y;
    st.global.b32 [%rd1 + 12], %r_tid;
    bar.sync 0;
    ld.global.v4.b32 {%r2, %r3, %r4, %r5}, [%rd2];
    bar.sync 1;
    st.global.v4.b32 [%rd1], {%r2, %r3, %r4, %r5};
    """,
    {"y": zeros(256)},
    warps=2,
)
# Warps copy each other's words.
STAGED = Kernel(
    """
    st.global.b32 [%rd_y_own], %r_tid;
    bar.sync 0;
    xor.b32 %r1, %r_own, 128;
    cvt.u64.u32 %rd1, %r1;
    add.s64 %rd1, %rd_y, %rd1;
    cp.async.ca.shared.global [%r_own], [%rd1], 4;
    cp.async.wait_all;
    """,
    {"y": zeros(64)},
    warps=2,
    shared=256,
)
# Warps write the same words one after the other.
IN_TURN = Kernel(
    """
    mad.wide.u32 %rd1, %r_lane, 4, %rd_y;
    setp.eq.u32 %p0, %r_warp, 0;
    @%p0 st.global.b32 [%rd1], %r_tid;
    bar.sync 0;
    @!%p0 st.global.b32 [%rd1], %r_tid;
    """,
    {"y": zeros(32)},
    warps=2,
)
# The first of two programs writes.
ONE_WRITES = Kernel(
    """
    setp.eq.u32 %p0, %r_cta, 0;
    mad.wide.u32 %rd1, %r_lane, 4, %rd_y;
    @%p0 st.global.b32 [%rd1], %r_tid;
    """,
    {"y": zeros(32)},
    grid=(2, 1, 1),
)

OUTSIDE, ODD, INPUT = "global out of bounds", "misaligned global", "write into an input"
LANES, IN_WARP = "lanes store different values in one place", "global race within a warp"
READ, OVER, OVER_READ = (f"global race: {what}" for what in ("read", "write after write", "write after read"))

FAULTS = [
    Fault(OUTSIDE, "ld", COPY, "[%rd_x_own]", "[%rd_x_own + 4]"),
    Fault(OUTSIDE, "ld of all lanes", COPY, "[%rd_x_own]", "[%rd_x_own + 256]"),
    Fault(OUTSIDE, "ld below all tensors", COPY, "ld.global.b32 %r1, [", "mov.b64 %rd_x_own, 16; ld.global.b32 %r1, ["),
    Fault(OUTSIDE, "st", COPY, "[%rd_y_own]", "[%rd_y_own + 4]"),
    Fault(OUTSIDE, "ld without its guard", GUARDED, "@%p0 ld", "ld"),
    Fault(OUTSIDE, "st without its guard", GUARDED, "@%p0 st", "st"),
    Fault(OUTSIDE, "ld of two words", PAIRS, "[%rd2]", "[%rd2 + 16]"),
    Fault(OUTSIDE, "atom", ADD, "[%rd_y_own]", "[%rd_y_own + 4]"),
    Fault(OUTSIDE, "cp.async", STAGE, "[%rd_x_own]", "[%rd_x_own + 8]"),
    Fault(ODD, "ld", GUARDED, "[%rd_x_own]", "[%rd_x + 2]"),
    Fault(ODD, "ld of two words", PAIRS, "[%rd2]", "[%rd2 + 4]"),
    Fault(ODD, "st of two words", PAIRS, "[%rd3]", "[%rd3 + 4]"),
    Fault(ODD, "atom", ADD, "[%rd_y_own]", "[%rd_y + 2]"),
    Fault(ODD, "cp.async", STAGE, "[%rd_x_own]", "[%rd_x_own + 2]"),
    Fault(INPUT, "st", COPY, "[%rd_y_own]", "[%rd_x_own]"),
    Fault(INPUT, "atom", ADD, "[%rd_y_own]", "[%rd_x_own]"),
    Fault(LANES, "st", COPY, "[%rd_y_own]", "[%rd_y]"),
    Fault(IN_WARP, "ld", ROTATE, "bar.warp.sync 0xffffffff;", ""),
    Fault(IN_WARP, "st", ROTATE, "bar.sync 0;", "st.global.b32 [%rd1], %r1;"),
    Fault(READ, "ld", SWAP, "bar.sync 1;", ""),
    Fault(READ, "ld of four words", LAST_WORD, "bar.sync 0;", ""),
    Fault(OVER_READ, "st of four words", LAST_WORD, "bar.sync 1;", ""),
    Fault(READ, "cp.async", STAGED, "bar.sync 0;", ""),
    Fault(OVER_READ, "st", SWAP, "bar.sync 0;", ""),
    Fault(OVER, "st of two warps", IN_TURN, "bar.sync 0;", ""),
    Fault(OVER, "st of two programs", ONE_WRITES, "@%p0 st", "st"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_planted_fault_is_found(fault: Fault) -> None:
    fault.check()


def test_a_report_tells_where() -> None:
    [line] = COPY.edited("[%rd_y_own]", "[%rd_y_own + 8]").run().lines
    assert "global out of bounds: store of 4 bytes, 2 lanes, 256 bytes after the start of y (256 bytes)" in line
    assert "st.global.b32 [%rd_y_own + 8], %r1]" in line


def test_what_is_out_of_bounds_is_not_accessed() -> None:
    """A load gives something else than zero, and no store is made."""
    load = COPY.edited("[%rd_x_own]", "[%rd_x_own + 4]").run()
    assert load.y.tolist() == [*range(1, 64), 0x7FA5A5A5]
    store = COPY.edited("[%rd_y_own]", "[%rd_y_own + 4]").run()
    assert store.y.tolist() == [0, *range(63)]


def test_a_part_of_a_tensor_ends_where_the_part_ends() -> None:
    """Though the memory around it belongs to the process."""
    whole, program = words(192), Program(COPY.edited("[%rd_x_own]", "[%rd_x_own + 4]").text(), 0)
    machine = Machine(program, (1, 1, 1), {"x": whole[64:128], "y": zeros(64)}, Options(), 2, ("y",)).run()
    assert set(machine.report.kinds()) == {OUTSIDE}


def test_where_tensors_overlap_the_one_that_begins_later_counts() -> None:
    whole = words(192)
    arguments = {"x": words(64), "y": whole[:128], "z": whole[64:]}
    text = Kernel(COPY.edited("[%rd_y_own]", "[%rd_y_own + 128]").body, arguments, warps=2).text()
    for outputs, kinds in ((("y",), {INPUT}), (("y", "z"), set())):
        machine = Machine(Program(text, 0), (1, 1, 1), arguments, Options(), 2, outputs).run()
        assert set(machine.report.kinds()) == kinds


def test_lanes_may_store_the_same_value_in_one_place() -> None:
    run = COPY.edited("[%rd_x_own]", "[%rd_x + 12]").edited("[%rd_y_own]", "[%rd_y]").run()
    assert not run.kinds
    assert run.machine.stats["redundant stores"] == 63
    assert run.y.tolist() == [3] + [0] * 63


@pytest.mark.parametrize("kernel", [SWAP.edited("bar.sync 1;", ""), IN_TURN.edited("bar.sync 0;", "")])
def test_the_check_for_races_can_be_left_out(kernel: Kernel) -> None:
    assert kernel.run().kinds
    assert not kernel.run(global_races=False).kinds


@pytest.mark.parametrize(
    "arguments, text",
    [
        ({"x": 1, "y": zeros(64)}, "parameter 0 has 64 bits"),
        ({"x": words(64), "y": zeros(64), "n": zeros(1)}, "parameter 2 has 32 bits"),
        ({"x": words(64), "y": zeros(64), "n": 64, "m": 1}, "4 arguments for 3 parameters"),
        ({"x": torch.empty(64, device="meta"), "y": zeros(64)}, "on the CPU"),
    ],
)
def test_arguments_must_be_what_the_kernel_takes(arguments: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Machine(Program(GUARDED.text(), 0), (1, 1, 1), arguments, Options(), 2)

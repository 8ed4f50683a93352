"""Faults in what warps do as a whole are found: barriers and warp-wide instructions where lanes have parted, registers
that nothing has written. Last, every report of the machine has its planted fault."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import test_checks_exchange
import test_checks_global
import test_checks_shared
from ptxmachine import machine
from ptxmachine.machine.report import Report
from small_kernels import Fault, Kernel, zeros

WGMMA = "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16"


def parting(instruction: str) -> Kernel:
    """Of eight warps four leave an instruction out."""
    body = f"""
    shl.b32 %r2, %r_tid, 4;
    mov.b32 %r3, 0;
    mov.b32 %r4, 0;
    mov.b32 %r5, 0;
    mov.b32 %r6, 0;
    mov.b64 %rd1, 0x0000001000080000; // of wgmma's operands, from byte 0
    st.shared.v4.b32 [%r2], {{%r3, %r4, %r5, %r6}};
    fence.proxy.async.shared::cta;
    bar.sync 1;
    setp.lt.u32 %p0, %r_warp, 4;
    @%p0 bra AFTER;
    {instruction}
AFTER:
    st.global.b32 [%rd_y_own], %r3;
    """
    return Kernel(body, {"y": zeros(256)}, warps=8, shared=4096)


WRITES = {"%r9": "mov.b32 %r9, 0;", "%rd9": "mov.b64 %rd9, %rd_y;", "%p9": "setp.lt.s32 %p9, %r_lane, 40;"}


def needing(register: str, instruction: str) -> Kernel:
    """An instruction that reads a register, which a line before it writes."""
    body = f"""
    mov.b32 %r1, 1;
    mov.b32 %r2, 2;
    mov.b32 %r3, 3;
    mov.b32 %r4, 4;
    setp.eq.s32 %p1, %r_lane, 3;
    {WRITES[register]}
    {instruction}
END:
    """
    return Kernel(body, {"y": zeros(32)}, shared=128)


WHOLE, IN_PART = "setp.lt.u32 %p0, %r_warp, 4", "setp.lt.u32 %p0, %r_lane, 16"
WARP_WIDE, NEVER = "warp-wide instruction in a divergent warp", "uninitialised register"
PARTING = {
    "barrier in divergent warp": {"bar.sync": "bar.sync 2, 128;", "barrier.sync": "barrier.sync 2, 128;"},
    "shfl from an inactive lane": {"shfl": "shfl.sync.bfly.b32 %r3, %r2, 16, 31, 0xffffffff;"},
    WARP_WIDE: {
        "ldmatrix": "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r3, %r4, %r5, %r6}, [%r2];",
        "stmatrix": "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r2], {%r3, %r4, %r5, %r6};",
        "redux": "redux.sync.max.s32 %r3, %r2, 0xffffffff;",
        "mma": "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%r3, %r4, %r5, %r6}, {%r3, %r4, %r5, %r6}, {%r3, %r4}, {%r3, %r4, %r5, %r6};",
        "wgmma": f"{WGMMA} {{%r3, %r4, %r5, %r6}}, %rd1, %rd1, 1, 1, 1, 0, 0;",
    },
}
NEEDING = {
    "a value": ("%r9", "add.s32 %r1, %r2, %r9;"),
    "a copied value": ("%r9", "mov.b32 %r5, %r9; add.s32 %r1, %r2, %r5;"),
    "a part of a value": ("%r9", "mov.b32 {%rs1, %rs2}, %r9;"),
    "a compared value": ("%r9", "setp.eq.s32 %p2, %r9, 0;"),
    "a float that is compared": ("%r9", "setp.neu.f32 %p2, %r9, 0f00000000;"),
    "a selected value": ("%r9", "selp.b32 %r1, %r9, %r2, %p1;"),
    "a selection's predicate": ("%p9", "selp.b32 %r1, %r2, %r3, %p9;"),
    "a sum's predicate": ("%p9", "@%p9 add.s32 %r1, %r2, %r3;"),
    "a negated predicate": ("%p9", "@!%p9 add.s32 %r1, %r2, %r3;"),
    "a load's predicate": ("%p9", "@%p9 ld.global.b32 %r1, [%rd_y_own];"),
    "a store's predicate": ("%p9", "@%p9 st.global.b32 [%rd_y_own], %r1;"),
    "a branch's predicate": ("%p9", "@%p9 bra END;"),
    "a combined predicate": ("%p9", "and.pred %p2, %p1, %p9;"),
    "a vote's predicate": ("%p9", "vote.sync.any.pred %p2, %p9, 0xffffffff;"),
    "a load's address": ("%rd9", "ld.global.b32 %r1, [%rd9];"),
    "a store's address": ("%rd9", "st.global.b32 [%rd9], 0;"),
    "a stored value": ("%r9", "st.global.b32 [%rd_y_own], %r9;"),
    "a value stored in shared memory": ("%r9", "st.shared.b32 [%r_own], %r9;"),
    "an added value": ("%r9", "red.global.add.u32 [%rd_y], %r9;"),
    "an atomic's address": ("%rd9", "red.global.add.u32 [%rd9], %r1;"),
    "a copy's source": ("%rd9", "cp.async.ca.shared.global [%r_own], [%rd9], 4; cp.async.wait_all;"),
    "a shuffled value": ("%r9", "shfl.sync.bfly.b32 %r1, %r9, 16, 31, 0xffffffff;"),
    "a matrix": (
        "%r9",
        "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 "
        "{%r1, %r2, %r3, %r4}, {%r9, %r2}, {%r3}, {%r1, %r2, %r3, %r4};",
    ),
}
FAULTS = [
    *(
        Fault(kind, name, parting(instruction), WHOLE, IN_PART)
        for kind, instructions in PARTING.items()
        for name, instruction in instructions.items()
    ),
    *(
        Fault(NEVER, name, needing(register, instruction), WRITES[register], "")
        for name, (register, instruction) in NEEDING.items()
    ),
]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_planted_fault_is_found(fault: Fault) -> None:
    fault.check()


def test_a_register_written_in_some_lanes_alone_is_no_fault_and_not_zero_in_the_others() -> None:
    """Compilers leave such registers, and take them in those lanes only."""
    kernel = Kernel(
        "setp.lt.s32 %p0, %r_lane, 8; @%p0 mov.b32 %r1, 5; st.global.b32 [%rd_y_own], %r1;", {"y": zeros(32)}
    )
    run = kernel.run()
    assert not run.kinds
    assert run.y.tolist() == [5] * 8 + [0x7FA5A5A5] * 24


def test_half_of_a_packed_register_may_be_unwritten() -> None:
    kernel = Kernel("mov.b32 %r1, {%rs1, %rs2}; mov.b32 {%rs3, %rs4}, %r1;", {"y": zeros(32)})
    run = kernel.run()
    assert not run.kinds
    assert run.machine.stats["undefined half packed"] == 2


# --- every report


class Place(NamedTuple):
    """A function that reports, and of what kind: a pattern, for a part of it may be known only when it runs."""

    file: str
    function: str
    kind: str


def places() -> Iterator[Place]:
    """All in the machine's code."""
    for path in Path(machine.__path__[0]).rglob("*.py"):
        tree = ast.parse(path.read_text())
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef):
                yield from (Place(path.name, function.name, pattern(kind)) for kind in reported(function))


def reported(function: ast.FunctionDef) -> Iterator[ast.expr]:
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add":
            of = node.func.value
            name = of.attr if isinstance(of, ast.Attribute) else of.id if isinstance(of, ast.Name) else ""
            if name in ("report", "_report"):
                yield node.args[0]


def pattern(kind: ast.expr) -> str:
    if isinstance(kind, ast.Constant):
        return re.escape(str(kind.value))
    assert isinstance(kind, ast.JoinedStr)
    return "".join(pattern(part) if isinstance(part, ast.Constant) else ".+" for part in kind.values)


def test_every_report_has_a_planted_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[tuple[str, str, str]] = set()
    add = Report.add

    def watched(self: Report, kind: str, *rest: Any) -> None:
        code = sys._getframe(1).f_code
        seen.add((Path(code.co_filename).name, code.co_name, kind))
        add(self, kind, *rest)

    monkeypatch.setattr(Report, "add", watched)
    planted = [*FAULTS, *test_checks_exchange.FAULTS, *test_checks_global.FAULTS, *test_checks_shared.FAULTS]
    for fault in planted:
        fault.kernel.edited(fault.old, fault.new).run()
    known = set(places())
    assert len(known) > 20
    missed = [
        place
        for place in known
        if not any((file, name) == place[:2] and re.fullmatch(place.kind, kind) for file, name, kind in seen)
    ]
    assert not missed
    kinds = {fault.kind for fault in planted}
    assert kinds == {kind for _, _, kind in seen}
    assert all(any(re.fullmatch(place.kind, kind) for place in known) for kind in kinds)

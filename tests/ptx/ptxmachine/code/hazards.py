"""Finds registers of an asynchronous matrix product that are used while it may still run."""

import re
from typing import NamedTuple

from .program import Program, Segment
from .reading import Instruction, listed


class Hazard(NamedTuple):
    line: int  # of the PTX text
    text: str
    registers: list[str]


def wgmma_hazards(program: Program) -> list[Hazard]:
    """Uses of a wgmma's sums, and writes to its inputs, between its issue and the wait for it, within each segment."""
    return [hazard for segment in program.segments for hazard in segment_hazards(segment)]


def segment_hazards(segment: Segment) -> list[Hazard]:
    found = []
    sums: dict[str, None] = {}  # registers of products in flight, in order
    inputs: set[str] = set()
    for ins in segment.body:
        if ins.op.startswith("wgmma.mma_async"):
            sums |= dict.fromkeys(listed(ins.args[0]))
            inputs.update(listed(ins.args[1]))
        elif ins.op.startswith("wgmma.wait_group"):
            if int(ins.args[0]) == 0:
                sums, inputs = {}, set()
        elif not ins.op.startswith("wgmma"):
            used = [x for arg in ins.args for x in re.findall(r"%\w+", arg) if x in sums]
            if wrong := used or [x for x in written(ins) if x in inputs]:
                found.append(Hazard(ins.line, ins.text, wrong))
    if sums:
        found.append(Hazard(segment.body[-1].line, "in flight at the end of a segment", list(sums)[:4]))
    return found


def written(ins: Instruction) -> list[str]:
    return listed(ins.args[0]) if ins.args and not ins.op.startswith(("st", "bar", "bra")) else []

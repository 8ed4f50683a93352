"""Two faults in machine code for warp-group products (sm_90) that results on other chips do not show.

fence     The tensor cores read shared memory through another path (the async proxy) than the copies that fill it. A
          ``fence.proxy.async`` must stand between a copy's arrival and the product that reads it (PTX ISA, "async
          proxy"); Triton 3.6 leaves it out (Triton's pull requests 9610, 10537, 10552).
register  A product reads the registers of its left operand until it is waited for. ptxas before 12.9 may overwrite
          them earlier (Triton's pull request 11781).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

COPIED = re.compile(r"\bcp\.async\.wait_(?:group|all)\b")
FENCE = re.compile(r"\bfence\.proxy\.async\b")
PRODUCT = re.compile(r"\bwgmma\.mma_async\b")
INSTRUCTION = re.compile(r"(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*)")
# Instructions whose first register is not a destination.
WRITES_NONE = re.compile(r"ST|RED|BAR|BRA|BS|CCTL|MEMBAR|ERRBAR|EXIT|NOP|WARP|DEPBAR|LDGSTS|LDGDEPBAR")
WIDTHS = {"64": 2, "128": 4}


def unfenced(ptx: str) -> int:
    """Products that read data of asynchronous copies without a fence since the wait for the copies."""
    count, fenced = 0, True
    for line in ptx.splitlines():
        if COPIED.search(line):
            fenced = False
        elif FENCE.search(line):
            fenced = True
        elif PRODUCT.search(line):
            count += not fenced
    return count


Code = Sequence[tuple[int, str]]  # address and text of each instruction


def backward_branches(code: Code) -> dict[int, int]:
    """End and beginning of each loop, as indices into the code."""
    place = {address: i for i, (address, _) in enumerate(code)}
    found = {}
    for i, (_, text) in enumerate(code):
        branch = re.search(r"\bBRA\b.*0x([0-9a-f]+)", text)
        to = place.get(int(branch[1], 16)) if branch else None
        if to is not None and to < i:
            found[i] = to
    return found


def early_writes(code: Code) -> list[str]:
    """Instructions that write a register which a warp-group product may still be reading."""
    found: list[str] = []
    reading: list[set[int]] = []  # of each group of products in flight, the oldest first
    is_open = False  # whether the last of them takes more products
    for text in _as_run(code):
        match = INSTRUCTION.match(text)
        op, operands = (match[1], match[2]) if match else ("", "")
        if op.startswith(("HGMMA", "QGMMA", "IGMMA")):
            if not is_open:
                reading.append(set())
            operand = re.match(r"R(\d+)", operands.split(",")[1].strip())
            if operand:
                reading[-1] |= set(range(int(operand[1]), int(operand[1]) + 4))
            is_open = "gsb" not in operands
        elif "DEPBAR" in op and "gsb" in operands:
            under_way = int(operands.rsplit("0x", 1)[1].split()[0].rstrip(","), 16)
            reading = reading[len(reading) - under_way :] if under_way else []
            is_open = False
        elif early := _written(op, operands) & set().union(*reading):
            found.append(f"{text} (R{min(early)})")
    return found


def _as_run(code: Code) -> Iterator[str]:
    """The instructions, each loop twice, so that its end is followed by its beginning."""
    branches, i = backward_branches(code), 0
    while i < len(code):
        yield code[i][1]
        i = branches.pop(i, i + 1)


def _written(op: str, operands: str) -> set[int]:
    first = re.match(r"R(\d+)\b", operands)
    if not op or first is None or WRITES_NONE.match(op):
        return set()
    parts = op.split(".")
    width = next((WIDTHS[part] for part in parts if part in WIDTHS), 1)
    if parts[0] == "LDSM":
        width = int(parts[-1]) if parts[-1].isdigit() else 1
    elif "WIDE" in parts:
        width = 2
    elif parts[0] in ("HMMA", "IMMA"):
        width = 4
    return set(range(int(first[1]), int(first[1]) + width))

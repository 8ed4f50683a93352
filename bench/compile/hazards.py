"""Two faults of machine code for warp-group products (sm_90) that no result on another chip shows.

fence     The tensor cores read shared memory by another way (the async proxy) than the copies that fill it. Between a
          copy's arrival and the product that reads it stands ``fence.proxy.async`` (PTX ISA, "async proxy"); Triton 3.6
          leaves it out (Triton's pull requests 9610, 10537, 10552).
register  A product goes on reading the registers of its left operand until it is waited for. ptxas before 12.9 may
          write them earlier (Triton's pull request 11781).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

COPIED = re.compile(r"\bcp\.async\.wait_(?:group|all)\b")
FENCE = re.compile(r"\bfence\.proxy\.async\b")
PRODUCT = re.compile(r"\bwgmma\.mma_async\b")
INSTRUCTION = re.compile(r"(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*)")
# Instructions whose first register is no destination.
WRITES_NONE = re.compile(r"ST|RED|BAR|BRA|BS|CCTL|MEMBAR|ERRBAR|EXIT|NOP|WARP|DEPBAR|LDGSTS|LDGDEPBAR")
WIDTHS = {"64": 2, "128": 4}


def unfenced(ptx: str) -> int:
    """Products that read what asynchronous copies have brought, without a fence since the copies were waited for."""
    count, fenced = 0, True
    for line in ptx.splitlines():
        if COPIED.search(line):
            fenced = False
        elif FENCE.search(line):
            fenced = True
        elif PRODUCT.search(line):
            count += not fenced
    return count


def early_writes(code: Sequence[tuple[int, str]]) -> list[str]:
    """Instructions that write a register which a warp-group product may still be reading. ``code``: address and text of
    each instruction. A loop is gone through twice, so that its end meets its beginning."""
    found: list[str] = []
    place = {address: i for i, (address, _) in enumerate(code)}
    reading: list[set[int]] = []  # of each group of products under way, the oldest first; the last is open
    i, again = 0, set()
    open_group = False
    while i < len(code):
        text = code[i][1]
        match = INSTRUCTION.match(text)
        op, operands = (match[1], match[2]) if match else ("", "")
        if op.startswith(("HGMMA", "QGMMA", "IGMMA")):
            if not open_group:
                reading.append(set())
                open_group = True
            left = re.match(r"R(\d+)", operands.split(",")[1].strip())
            if left:
                reading[-1] |= set(range(int(left[1]), int(left[1]) + 4))
            if "gsb" in operands:
                open_group = False
        elif "DEPBAR" in op and "gsb" in operands:
            left_open = int(operands.rsplit("0x", 1)[1].split()[0].rstrip(","), 16)
            reading = reading[len(reading) - left_open :] if left_open else []
            open_group = False
        elif early := _written(op, operands) & set().union(*reading):
            found.append(f"{text} (R{min(early)})")
        branch = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text)
        back = place.get(int(branch[1], 16)) if branch else None
        if back is not None and back < i and i not in again:
            again.add(i)
            i = back
            continue
        i += 1
    return found


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

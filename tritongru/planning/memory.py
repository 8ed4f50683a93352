"""What a layer keeps for its backward and what else it needs, in bytes, and the parts in which its backward is walked.

With ``memory="save"`` the forward writes four gate values for each output, which the backward reads. With
``"recompute"`` it keeps the states alone, and the backward rebuilds the gates from them. Either way the backward walks
the steps in parts, so that what it needs besides is a part's and not the whole sequence's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MEMORIES = ("auto", "save", "recompute")
SHARE = 8  # "auto" saves the gates of all layers where they take at most this part of the device's memory
MIB = 1024**2
PART_BYTES = 128 * MIB  # of a part: long enough that launching its products costs little
PARTS = 8  # at least, where gates are rebuilt, for whom memory counts more than time
LEAST_STEPS = 16  # of a part
# Values of a part for each output: with saved gates, their gradients (3), da and the states before; rebuilt ones (4)
# come from a product of the inputs (3) and one of the states before (3), which are gone when the gradients come.
SAVED_VALUES, REBUILT_VALUES = 5, 11


@dataclass(frozen=True)
class Memory:
    """Bytes of a stack of layers, without weights, input and the exchange between programs. ``mode``: "save",
    "recompute", or "none" without a backward. ``kept``: from the forward to the backward, outputs included.
    ``forward``, ``backward``: the most during each, the latter with the gradients of output and input. ``parts``: in
    which a layer's backward is walked."""

    mode: str
    kept: int
    forward: int
    backward: int
    parts: int

    def lines(self) -> list[str]:
        found = [f"  memory besides weights and input: {self.forward / MIB:.1f} MiB at most in the forward"]
        if self.parts:
            what = "gates saved" if self.mode == "save" else "gates rebuilt in the backward"
            found[0] += f", {self.kept / MIB:.1f} kept ({what})"
            parts = f"{self.parts} part{'s' if self.parts != 1 else ''}"
            found.append(f"    {self.backward / MIB:.1f} MiB at most in the backward, walked in {parts}")
        return found


def saves(memory: str, gate_bytes: int, device_bytes: int) -> bool:
    """Whether the forward saves the gates: as asked for or, for "auto", where they take a small share of the device."""
    return memory == "save" or (memory == "auto" and gate_bytes * SHARE <= device_bytes)


def gate_bytes(rows: int, hidden: int, directions: int, layers: int, itemsize: int) -> int:
    """Of the gates of all layers."""
    return 4 * rows * hidden * directions * layers * itemsize


def part_steps(time: int, batch: int, hidden: int, directions: int, itemsize: int, saved: bool) -> int:
    """Steps of a part of the backward; the last part may have fewer."""
    values = SAVED_VALUES if saved else REBUILT_VALUES
    most = max(1, PART_BYTES // max(1, values * batch * hidden * directions * itemsize))
    if not saved:
        most = min(most, max(LEAST_STEPS, math.ceil(time / PARTS)))
    return math.ceil(time / math.ceil(time / most))


def memory_of(
    time: int,
    batch: int,
    inputs: int,
    hidden: int,
    *,
    layers: int,
    directions: int,
    itemsize: int,
    memory: str,
    device_bytes: int,
    learns: bool,
) -> Memory:
    """Of layers of ``hidden`` units in each direction, of which the first has ``inputs`` input features."""
    row = directions * hidden * itemsize
    output = time * batch * row
    if not learns:  # a layer's input is gone when its output is there
        return Memory("none", output, (5 if layers > 1 else 4) * output, 0, 0)
    saved = saves(memory, gate_bytes(time * batch, hidden, directions, layers, itemsize), device_bytes)
    kept = layers * output * (5 if saved else 1)
    each = part_steps(time, batch, hidden, directions, itemsize, saved)
    part = (SAVED_VALUES if saved else REBUILT_VALUES) * each * batch * row
    widest = max(inputs, directions * hidden) if layers > 1 else inputs
    gradients = output + time * batch * widest * itemsize
    mode = "save" if saved else "recompute"
    return Memory(mode, kept, kept + 3 * output, kept + gradients + part, math.ceil(time / each))

"""What a layer keeps for its backward pass and what else it needs, in bytes, and the parts of the backward pass.

With ``memory="save"`` the forward pass writes four gate values for each output, which the backward pass reads. With
``"recompute"`` it keeps only the states, and the backward pass rebuilds the gates from them. Either way the backward
pass processes the steps in parts, so that its temporary memory is that of a part, not of the whole sequence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MEMORIES = ("auto", "save", "recompute")
SHARE = 8  # "auto" saves the gates of all layers if they take at most 1 / SHARE of the device's memory
MIB = 1024**2
PART_BYTES = 128 * MIB  # of a part: enough that launching its products costs little
PARTS = 8  # at least, if gates are rebuilt: then memory matters more than time
LEAST_STEPS = 16  # of a part
# Values of a part for each output: with saved gates, their gradients (3), da and the previous states; rebuilt gates (4)
# come from a product of the inputs (3) and one of the previous states (3), which are freed before the gradients exist.
SAVED_VALUES, REBUILT_VALUES = 5, 11


@dataclass(frozen=True)
class Memory:
    """Memory of a stack of layers in bytes, without weights, input and the exchange between programs.

    Attributes:
        mode: "save", "recompute", or "none" without a backward pass.
        kept: kept from the forward to the backward pass, outputs included.
        forward: peak of the forward pass.
        backward: peak of the backward pass, including the gradients of output and input.
        parts: parts of a layer's backward pass.
    """

    mode: str
    kept: int
    forward: int
    backward: int
    parts: int

    def lines(self) -> list[str]:
        found = [f"  memory besides weights and input: at most {self.forward / MIB:.1f} MiB in the forward pass"]
        if self.parts:
            what = "gates saved" if self.mode == "save" else "gates recomputed"
            found[0] += f", {self.kept / MIB:.1f} MiB kept ({what})"
            parts = f"{self.parts} part{'s' if self.parts != 1 else ''}"
            found.append(f"    at most {self.backward / MIB:.1f} MiB in the backward pass, in {parts}")
        return found


def saves(memory: str, gate_bytes: int, device_bytes: int) -> bool:
    """Whether the forward pass saves the gates: as requested or, for "auto", if they take little of the device."""
    return memory == "save" or (memory == "auto" and gate_bytes * SHARE <= device_bytes)


def gate_bytes(rows: int, hidden: int, directions: int, layers: int, itemsize: int) -> int:
    """Size of the gates of all layers."""
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
    """For layers with ``hidden`` units in each direction, the first with ``inputs`` input features."""
    row = directions * hidden * itemsize
    output = time * batch * row
    if not learns:  # a layer's input is freed once its output exists
        return Memory("none", output, (5 if layers > 1 else 4) * output, 0, 0)
    saved = saves(memory, gate_bytes(time * batch, hidden, directions, layers, itemsize), device_bytes)
    kept = layers * output * (5 if saved else 1)
    each = part_steps(time, batch, hidden, directions, itemsize, saved)
    part = (SAVED_VALUES if saved else REBUILT_VALUES) * each * batch * row
    widest = max(inputs, directions * hidden) if layers > 1 else inputs
    gradients = output + time * batch * widest * itemsize
    mode = "save" if saved else "recompute"
    return Memory(mode, kept, kept + 3 * output, kept + gradients + part, math.ceil(time / each))

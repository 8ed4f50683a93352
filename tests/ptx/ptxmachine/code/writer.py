"""What all instructions share when they are translated: operands as expressions, and assignments under a mask.

A line of the generated code sees ``k`` (the warps that run it), ``R`` (their registers) and ``M`` (the lanes that have
not diverged, in masked code), the functions of ``arithmetic`` and ``half``, and constants ``C0``, ``C1`` ...
"""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from .reading import Instruction, address_parts
from .words import SIGNED, UNSIGNED, width

if TYPE_CHECKING:
    from .program import Program, Segment

SPECIAL = {
    "%tid.x": "k.tid_x",
    "%tid.y": "k.zero32",
    "%tid.z": "k.zero32",
    "%ctaid.x": "k.cta_x",
    "%ctaid.y": "k.cta_y",
    "%ctaid.z": "k.cta_z",
    "%nctaid.x": "k.ncta_x",
    "%nctaid.y": "k.ncta_y",
    "%nctaid.z": "k.ncta_z",
    "%ntid.x": "k.ntid_x",
    "%ntid.y": "k.one32",
    "%ntid.z": "k.one32",
    "%laneid": "k.laneid",
    "%cluster_ctarank": "k.zero32",
    "%cluster_ctaid.x": "k.zero32",
}
HALVES = ("f16", "bf16", "f16x2", "bf16x2")


def word_of(ty: str) -> str:
    """The NumPy type in which an operand of a PTX type is handed on; of half precision it is the bits."""
    if ty in ("f32", "f64"):
        return ty
    return (SIGNED if ty[0] == "s" else UNSIGNED)[width(ty)]


class Writer:
    def __init__(self, program: "Program", segment: "Segment", masked: bool) -> None:
        self.program, self.segment, self.masked = program, segment, masked
        self.lines: list[str] = []
        self.origin: dict[int, Instruction] = {}  # by line of the function, whose first is its def
        self.ins: Instruction | None = None
        self.ended = False

    def write(self, line: str) -> None:
        self.lines.append(line)
        if self.ins is not None:
            self.origin[len(self.lines) + 1] = self.ins

    # --- operands
    def value(self, operand: str, ty: str) -> str:
        """An operand as an array (or a scalar) of a PTX type."""
        if ty == "pred":
            if operand in ("-1", "1", "0"):
                return "k.false" if operand == "0" else "k.true"
            return f"held(R[{self.program.reg(operand)}])"
        word = word_of(ty)
        if operand in SPECIAL:
            return SPECIAL[operand] if word == "u32" else f"{SPECIAL[operand]}.view({word})"
        if operand.startswith("%clock") or operand == "%globaltimer":
            return "k.clock()"
        if operand.startswith("%"):
            return self._register(operand, ty, word)
        if operand.startswith("0f"):
            return self.program.constant(int(operand[2:], 16), word if word[0] == "f" else "u32")
        if operand.startswith("0d"):
            return self.program.constant(int(operand[2:], 16), word if word[0] == "f" else "u64")
        if re.match(r"^-?(0x[0-9A-Fa-f]+|\d+)U?$", operand) and word[0] != "f":
            return self.program.constant(literal(operand), word)
        if operand == "global_smem":
            return self.program.constant(0, "u32")
        if operand in self.program.params:
            return f"k.params[{self.program.params[operand][0]}]"
        raise NotImplementedError(f"operand {operand} as {ty}")

    def _register(self, name: str, ty: str, word: str) -> str:
        i, bits = self.program.reg(name), width(ty)
        held = self.program.widths[i]
        if held == 1:
            return f"R[{i}]"
        if held < bits:
            raise NotImplementedError(f"{name} narrower than {ty}")
        narrow = f".astype({UNSIGNED[bits]})" if held > bits else ""
        view = "" if word == UNSIGNED[bits] else f".view({word})"
        return f"R[{i}]{narrow}{view}"

    def whole(self, operand: str, ty: str) -> str:
        """As ``value``, of the full shape also where it is a scalar."""
        return f"k.full({self.value(operand, ty)}, {word_of(ty)})"

    def held(self, operand: str, ty: str) -> str:
        """As ``value``, where NumPy would not fail of itself for a register that nothing has written."""
        return f"held({self.value(operand, ty)})"

    def values(self, operands: Iterable[str], ty: str) -> list[str]:
        return [self.value(operand, ty) for operand in operands]

    def address(self, operand: str, bits: int) -> str:
        base, offset = address_parts(operand)
        ty = f"u{bits}"
        if base == "global_smem":
            return f"k.full({self.program.constant(offset, 'u32')}, u32)"
        start = self.value(base, ty)
        return start if offset == 0 else f"{start} + {self.program.constant(offset, ty)}"

    # --- lanes
    def predicate(self) -> str | None:
        if self.ins is None or self.ins.pred is None:
            return None
        return f"{'~' if self.ins.negated else ''}held(R[{self.program.reg(self.ins.pred)}])"

    def mask(self) -> str | None:
        """The lanes that act, or None for all."""
        p = self.predicate()
        if self.masked:
            return f"(M & {p})" if p else "M"
        return p

    # --- results
    def assign(self, name: str, expr: str) -> None:
        """Any expression, also a scalar or of another type."""
        if name != "_":
            bits = self.program.widths[self.program.reg(name)]
            self.assign_array(name, f"k.full({expr}, {'bool_' if bits == 1 else UNSIGNED[bits]})")

    def assign_array(self, name: str, expr: str) -> None:
        """An expression that surely is an array of the register's type."""
        if name != "_":
            i, m = self.program.reg(name), self.mask()
            self.write(f"R[{i}] = {expr}" if m is None else f"R[{i}] = k.sel({m}, {expr}, R[{i}])")

    def assign_arrays(self, names: Iterable[str]) -> None:
        """The list ``_v``."""
        for i, name in enumerate(names):
            self.assign_array(name, f"_v[{i}]")


def literal(operand: str) -> int:
    return int(operand.rstrip("U"), 0)


def joined(values: Iterable[str]) -> str:
    return "[" + ", ".join(values) + "]"


def unsupported(ins: Instruction) -> NotImplementedError:
    return NotImplementedError(f"{ins.text} (line {ins.line})")

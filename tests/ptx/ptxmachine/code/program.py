"""A kernel's PTX as a program: its instructions cut into segments, each compiled to a Python function on demand.

A register is an array (warps, 32) of unsigned integers of its width, or of bools. A segment ends where control may go
elsewhere or where another warp may have to run first: at a branch, a barrier, and before an atomic, a volatile or an
ordered load. ``Program.code(segment, masked)`` compiles it; ``masked`` is for warps that have diverged.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from . import arithmetic, half
from .reading import Instruction, Item, entry_name, read_items, read_parameters, required_threads
from .translation import Translation
from .words import DTYPES

__all__ = ["Compiled", "Instruction", "Program", "Segment"]

REGISTER_BITS = {"p": 1, "rs": 16, "r": 32, "rd": 64, "f": 32, "fd": 64, "rh": 16, "h": 16, "hh": 32}
SYNCHRONISES = re.compile(r"^(atom|red\.|ld\..*(volatile|acquire|relaxed))")
CATEGORIES = [
    (name, re.compile(pattern))
    for name, pattern in (
        ("mma", r"^(mma|wgmma\.mma)"),
        ("bar", r"^(bar\.sync|barrier|bar\.warp)"),
        ("ldmatrix", r"^ldmatrix"),
        ("stmatrix", r"^stmatrix"),
        ("cp.async", r"^cp\.async\.c[ag]"),
        ("lds", r"^ld\.shared"),
        ("sts", r"^st\.shared"),
        ("ldg", r"^ld\..*global"),
        ("stg", r"^st\..*global"),
        ("atom", r"^(atom|red\.)"),
        ("mufu", r"^(ex2|rsqrt|rcp|sqrt|lg2)"),
        ("shfl", r"^(shfl|redux|vote)"),
        ("mov", r"^(mov|cvta|ld\.param)"),
        ("branch", r"^(bra|ret|exit)"),
        ("fp", r"\.(f32|f16|bf16|bf16x2|f16x2)$"),
    )
]


class Compiled(NamedTuple):
    function: Callable[..., Any]  # (k, R, M) -> the next segment, or what Group.branch or Group.barrier returns
    origin: dict[int, Instruction]  # by line of the text
    text: str


@dataclass
class Segment:
    n: int
    body: list[Instruction] = field(default_factory=list)
    next: int | None = None
    sync_load: bool = False  # begins with an atomic or an ordered load
    counts: Counter[str] = field(default_factory=Counter)  # instructions by category, and "all"
    functions: dict[bool, Compiled] = field(default_factory=dict)

    def falls_through(self) -> bool:
        last = self.body[-1]
        return last.op not in ("bra", "bra.uni", "ret", "exit") or last.pred is not None


class Program:
    def __init__(self, text: str, shared_bytes: int) -> None:
        self.text = text
        self.shared_bytes = shared_bytes
        self.lines = text.splitlines()
        self.name = entry_name(text)
        self.reqntid = required_threads(text)
        self.params = read_parameters(text)
        self.items = read_items(text)
        self.segments, self.labels = cut(self.items)
        self.widths: list[int] = []  # bits of each register
        self._registers: dict[str, int] = {}
        self._constants: dict[tuple[int, str], str] = {}
        self._globals: dict[str, Any] = {"np": np, **DTYPES, **arithmetic.FUNCTIONS, **half.FUNCTIONS}

    def reg(self, name: str) -> int:
        """The number of a register."""
        if name not in self._registers:
            m = re.match(r"%([a-z]+)", name)
            if m is None:
                raise NotImplementedError(f"register {name}")
            self._registers[name] = len(self.widths)
            self.widths.append(REGISTER_BITS[m[1]])
        return self._registers[name]

    def constant(self, value: int, dtype: str) -> str:
        """The name, in the generated code, of the NumPy scalar of a type that has these bits."""
        key = value, dtype
        if key not in self._constants:
            name = self._constants[key] = f"C{len(self._constants)}"
            bits = int(dtype[1:])
            word = np.array([value & ((1 << bits) - 1)], dtype=f"uint{bits}")
            self._globals[name] = word.view(DTYPES[dtype])[0]
        return self._constants[key]

    def code(self, segment: Segment, masked: bool) -> Compiled:
        if masked not in segment.functions:
            out = Translation(self, segment, masked)
            for ins in segment.body:
                out.emit(ins)
            if not out.ended:
                out.write(f"return {-1 if segment.next is None else segment.next}")
            name = f"seg{segment.n}{'m' if masked else ''}"
            text = f"def {name}(k, R, M):\n" + "\n".join("    " + line for line in out.lines) + "\n"
            scope: dict[str, Any] = {}
            exec(compile(text, f"<{self.name}:{segment.n}>", "exec"), self._globals, scope)
            segment.functions[masked] = Compiled(scope[name], out.origin, text)
        return segment.functions[masked]


def cut(items: Sequence[Item]) -> tuple[list[Segment], dict[str, int]]:
    """The segments, and the segment at which each label stands. After the last instruction comes an empty segment."""
    segments, labels = [Segment(0)], {}

    def begin() -> Segment:
        before = segments[-1]
        if not before.body:
            return before
        segment = Segment(len(segments))
        if before.falls_through():
            before.next = segment.n
        segments.append(segment)
        return segment

    for item in items:
        if isinstance(item, str):
            labels[item] = begin().n
            continue
        if SYNCHRONISES.search(item.op):
            begin().sync_load = True
        segments[-1].body.append(item)
        segments[-1].counts.update((category(item.op), "all"))
        if item.op.split(".")[0] in ("bra", "ret", "exit") or item.op.startswith(("bar.sync", "barrier", "bar.arrive")):
            begin()
    return segments, labels


def category(op: str) -> str:
    return next((name for name, pattern in CATEGORIES if pattern.search(op)), "int")

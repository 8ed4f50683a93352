"""A small vector language: Python that writes LLVM IR, as Triton's does for GPUs.

A ``Module`` is text that grows function by function. Values know their LLVM type, so Python's operators can choose the
instruction; a Python number takes the type of the other operand. Nothing here is specific to GRUs.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Union

from tritongru.planning.instruction_sets import InstructionSet

I8, I32, I64, BOOL, PTR = "i8", "i32", "i64", "i1", "ptr"
BITS = {"float": 32, "double": 64, I8: 8, I32: 32, I64: 64}
Operand = Union["Value", int, float]


def scalar_of(kind: str) -> str:
    """``float`` of ``<8 x float>``."""
    return kind.split(" x ")[1][:-1] if kind.startswith("<") else kind


def lanes_of(kind: str) -> int:
    return int(kind[1:].split(" ")[0]) if kind.startswith("<") else 1


def like(kind: str, scalar: str) -> str:
    """The vector type with the same number of lanes, of another scalar."""
    return f"<{lanes_of(kind)} x {scalar}>" if kind.startswith("<") else scalar


def is_float(kind: str) -> bool:
    return scalar_of(kind) in ("float", "double")


def _literal(number: float, scalar: str) -> str:
    if scalar == "double":
        return f"0x{struct.unpack('<Q', struct.pack('<d', number))[0]:016X}"
    if scalar == "float":  # LLVM writes a float as the bits of the equal double
        single = struct.unpack("<f", struct.pack("<f", number))[0]
        return f"0x{struct.unpack('<Q', struct.pack('<d', single))[0]:016X}"
    return str(int(number))


@dataclass(frozen=True)
class Value:
    """An LLVM value. ``function``: the function that it belongs to."""

    function: Function
    kind: str
    name: str

    def __add__(self, other: Operand) -> Value:
        return self.function.binary("add", self, other)

    def __radd__(self, other: Operand) -> Value:
        return self.function.binary("add", other, self)

    def __sub__(self, other: Operand) -> Value:
        return self.function.binary("sub", self, other)

    def __rsub__(self, other: Operand) -> Value:
        return self.function.binary("sub", other, self)

    def __mul__(self, other: Operand) -> Value:
        return self.function.binary("mul", self, other)

    def __rmul__(self, other: Operand) -> Value:
        return self.function.binary("mul", other, self)

    def __truediv__(self, other: Operand) -> Value:
        return self.function.binary("div", self, other)

    def __rtruediv__(self, other: Operand) -> Value:
        return self.function.binary("div", other, self)

    def __floordiv__(self, other: Operand) -> Value:
        """For non-negative numbers."""
        return self.function.binary("udiv", self, other)

    def __mod__(self, other: Operand) -> Value:
        """For non-negative numbers."""
        return self.function.binary("urem", self, other)

    def __lshift__(self, other: Operand) -> Value:
        return self.function.binary("shl", self, other)

    def __lt__(self, other: Operand) -> Value:
        return self.function.compare("lt", self, other)

    def __le__(self, other: Operand) -> Value:
        return self.function.compare("le", self, other)

    def __gt__(self, other: Operand) -> Value:
        return self.function.compare("gt", self, other)

    def __ge__(self, other: Operand) -> Value:
        return self.function.compare("ge", self, other)

    def equals(self, other: Operand) -> Value:
        return self.function.compare("eq", self, other)


class Variable:
    """A value that a loop changes; LLVM keeps it in a register."""

    def __init__(self, function: Function, initial: Value) -> None:
        self.kind = initial.kind
        self.function = function
        self.place = function.local(initial.kind)
        self.set(initial)

    def get(self) -> Value:
        return self.function.load(self.place, self.kind)

    def set(self, value: Operand) -> None:
        self.function.store(self.function.coerce(value, self.kind), self.place)


class Function:
    """One function of a module, while it is being written. ``parameters``: name -> LLVM type."""

    def __init__(self, module: Module, name: str, parameters: dict[str, str], public: bool) -> None:
        self.module, self.name, self.public = module, name, public
        self.parameters = parameters
        self.locals: list[str] = []
        self.lines: list[str] = []
        self.count = 0
        self.block = "entry"

    def arguments(self) -> list[Value]:
        return [Value(self, kind, f"%{name}") for name, kind in self.parameters.items()]

    def text(self) -> str:
        given = ", ".join(
            f"{kind}{' noundef' if kind != PTR else ''} %{name}" for name, kind in self.parameters.items()
        )
        linkage = "" if self.public else "internal "
        body = "\n".join((*self.locals, "  br label %entered.", "entered.:", *self.lines, "  ret void"))
        return f"define {linkage}void @{self.name}({given}) #0 {{\nentry:\n{body}\n}}\n"

    def fresh(self, hint: str = "v") -> str:
        self.count += 1
        return f"{hint}{self.count}"

    def emit(self, line: str) -> None:
        self.lines.append(f"  {line}")

    def make(self, kind: str, instruction: str) -> Value:
        name = f"%{self.fresh()}"
        self.emit(f"{name} = {instruction}")
        return Value(self, kind, name)

    # Values

    def constant(self, number: float, kind: str) -> Value:
        text = _literal(number, scalar_of(kind))
        if kind.startswith("<"):
            text = "<" + ", ".join([f"{scalar_of(kind)} {text}"] * lanes_of(kind)) + ">"
        return Value(self, kind, text)

    def integer(self, number: int) -> Value:
        return self.constant(number, I64)

    def null(self) -> Value:
        return Value(self, PTR, "null")

    def coerce(self, value: Operand, kind: str) -> Value:
        if isinstance(value, Value):
            if value.kind != kind:
                raise TypeError(f"{value.kind} where {kind} is expected, in {self.name}")
            return value
        return self.constant(value, kind)

    def _pair(self, a: Operand, b: Operand) -> tuple[Value, Value]:
        kind = a.kind if isinstance(a, Value) else b.kind if isinstance(b, Value) else I64
        return self.coerce(a, kind), self.coerce(b, kind)

    def binary(self, operation: str, a: Operand, b: Operand) -> Value:
        x, y = self._pair(a, b)
        prefix = "f" if is_float(x.kind) else ""
        return self.make(x.kind, f"{prefix}{operation} {x.kind} {x.name}, {y.name}")

    def compare(self, relation: str, a: Operand, b: Operand) -> Value:
        """For floats an ordered comparison: false if one is NaN."""
        x, y = self._pair(a, b)
        if is_float(x.kind):
            text = f"fcmp o{relation} {x.kind} {x.name}, {y.name}"
        else:
            sign = "" if relation == "eq" else "s"
            text = f"icmp {sign}{relation} {x.kind} {x.name}, {y.name}"
        return self.make(like(x.kind, BOOL), text)

    def select(self, condition: Value, a: Operand, b: Operand) -> Value:
        x, y = self._pair(a, b)
        return self.make(x.kind, f"select {condition.kind} {condition.name}, {x.kind} {x.name}, {y.kind} {y.name}")

    def least(self, a: Operand, b: Operand) -> Value:
        """The smaller number; for floats the second if the first is NaN."""
        x, y = self._pair(a, b)
        return self.select(x < y, x, y)

    def most(self, a: Operand, b: Operand) -> Value:
        x, y = self._pair(a, b)
        return self.select(x > y, x, y)

    def is_there(self, pointer: Value) -> Value:
        return self.make(BOOL, f"icmp ne ptr {pointer.name}, null")

    def both(self, a: Value, b: Value) -> Value:
        return self.make(BOOL, f"and {BOOL} {a.name}, {b.name}")

    def negative(self, value: Value) -> Value:
        return self.make(value.kind, f"fneg {value.kind} {value.name}")

    def bits(self, value: Value) -> Value:
        """The bits of floats as integers."""
        scalar = I32 if scalar_of(value.kind) == "float" else I64
        kind = like(value.kind, scalar)
        return self.make(kind, f"bitcast {value.kind} {value.name} to {kind}")

    def floats(self, value: Value) -> Value:
        kind = like(value.kind, "float" if scalar_of(value.kind) == I32 else "double")
        return self.make(kind, f"bitcast {value.kind} {value.name} to {kind}")

    def fma(self, a: Operand, b: Value, c: Operand) -> Value:
        """a b + c, rounded once if the instruction set can. Rounding never depends on the surrounding code: the same
        expression has the same bits in every function."""
        x, y = self._pair(a, b)
        z = self.coerce(c, y.kind)
        if not self.module.isa.fuses:
            return x * y + z
        scalar = scalar_of(y.kind)
        suffix = {"float": "f32", "double": "f64"}[scalar]
        name = f"llvm.fma.v{lanes_of(y.kind)}{suffix}" if y.kind.startswith("<") else f"llvm.fma.{suffix}"
        kinds = ", ".join([y.kind] * 3)
        self.module.declare(f"declare {y.kind} @{name}({kinds})")
        return self.make(y.kind, f"call {y.kind} @{name}({y.kind} {x.name}, {y.kind} {y.name}, {y.kind} {z.name})")

    def splat(self, value: Value, lanes: int) -> Value:
        kind = f"<{lanes} x {value.kind}>"
        one = self.make(kind, f"insertelement {kind} poison, {value.kind} {value.name}, i32 0")
        return self.make(kind, f"shufflevector {kind} {one.name}, {kind} poison, <{lanes} x i32> zeroinitializer")

    def insert(self, vector: Value, value: Value, lane: int) -> Value:
        kind = vector.kind
        return self.make(kind, f"insertelement {kind} {vector.name}, {value.kind} {value.name}, i32 {lane}")

    def shuffle(self, a: Value, b: Value, order: Sequence[int]) -> Value:
        indices = ", ".join(f"i32 {k}" for k in order)
        kind = f"<{len(order)} x {scalar_of(a.kind)}>"
        return self.make(kind, f"shufflevector {a.kind} {a.name}, {b.kind} {b.name}, <{len(order)} x i32> <{indices}>")

    # Memory

    def local(self, kind: str, count: int = 1) -> Value:
        """Uninitialized memory for the duration of a call."""
        name = f"%{self.fresh('m')}"
        array = kind if count == 1 else f"[{count} x {kind}]"
        self.locals.append(f"  {name} = alloca {array}, align 64")
        return Value(self, PTR, name)

    def at(self, pointer: Value, index: Operand, kind: str) -> Value:
        """The address of an element of type ``kind``."""
        where = self.coerce(index, I64)
        return self.make(PTR, f"getelementptr {kind}, ptr {pointer.name}, i64 {where.name}")

    def load(self, pointer: Value, kind: str, align: int | None = None) -> Value:
        scalar = scalar_of(kind)
        align = align or (8 if scalar == PTR else max(1, BITS[scalar] // 8))
        return self.make(kind, f"load {kind}, ptr {pointer.name}, align {align}")

    def store(self, value: Value, pointer: Value, align: int | None = None) -> None:
        scalar = scalar_of(value.kind)
        align = align or (8 if scalar == PTR else max(1, BITS[scalar] // 8))
        self.emit(f"store {value.kind} {value.name}, ptr {pointer.name}, align {align}")

    def first_lanes(self, count: Value, lanes: int) -> Value:
        """A mask of the first ``count`` lanes."""
        kind = f"<{lanes} x i64>"
        steps = Value(self, kind, "<" + ", ".join(f"i64 {k}" for k in range(lanes)) + ">")
        return steps < self.splat(count, lanes)

    def masked_load(self, pointer: Value, kind: str, mask: Value) -> Value:
        """Zero where the mask is false."""
        scalar, lanes = scalar_of(kind), lanes_of(kind)
        name = f"llvm.masked.load.v{lanes}{'f' if is_float(kind) else 'i'}{BITS[scalar]}.p0"
        self.module.declare(f"declare {kind} @{name}(ptr, i32, {mask.kind}, {kind})")
        size = BITS[scalar] // 8
        return self.make(
            kind,
            f"call {kind} @{name}(ptr {pointer.name}, i32 {size}, {mask.kind} {mask.name}, {kind} zeroinitializer)",
        )

    def masked_store(self, value: Value, pointer: Value, mask: Value) -> None:
        scalar, lanes = scalar_of(value.kind), lanes_of(value.kind)
        name = f"llvm.masked.store.v{lanes}{'f' if is_float(value.kind) else 'i'}{BITS[scalar]}.p0"
        self.module.declare(f"declare void @{name}({value.kind}, ptr, i32, {mask.kind})")
        size = BITS[scalar] // 8
        self.emit(
            f"call void @{name}({value.kind} {value.name}, ptr {pointer.name}, i32 {size}, {mask.kind} {mask.name})"
        )

    def load_lanes(self, pointer: Value, kind: str, mask: Value | None) -> Value:
        """All lanes, or those of a mask, the others zero."""
        return self.load(pointer, kind) if mask is None else self.masked_load(pointer, kind, mask)

    def store_lanes(self, value: Value, pointer: Value, mask: Value | None) -> None:
        if mask is None:
            self.store(value, pointer)
        else:
            self.masked_store(value, pointer, mask)

    def next_number(self, pointer: Value) -> Value:
        """The number at ``pointer``, incremented atomically for the next caller in any thread."""
        return self.make(I64, f"atomicrmw add ptr {pointer.name}, i64 1 monotonic, align 8")

    # Control

    def variable(self, initial: Value) -> Variable:
        return Variable(self, initial)

    def label(self, name: str) -> None:
        self.lines.append(f"{name}:")

    @contextmanager
    def loop(self, start: Operand, stop: Operand, step: Operand = 1) -> Iterator[Value]:
        """start, start + step, .. below stop."""
        index = Variable(self, self.coerce(start, I64))
        end = self.coerce(stop, I64)
        head, body, done = (self.fresh(name) for name in ("head", "body", "done"))
        self.emit(f"br label %{head}")
        self.label(head)
        now = index.get()
        more = now < end
        self.emit(f"br i1 {more.name}, label %{body}, label %{done}")
        self.label(body)
        yield now
        index.set(now + step)
        self.emit(f"br label %{head}")
        self.label(done)

    @contextmanager
    def forever(self) -> Iterator[str]:
        """A loop until a jump to the label that it yields."""
        head, done = self.fresh("head"), self.fresh("done")
        self.emit(f"br label %{head}")
        self.label(head)
        yield done
        self.emit(f"br label %{head}")
        self.label(done)

    def leave(self, where: str, condition: Value) -> None:
        stay = self.fresh("stay")
        self.emit(f"br i1 {condition.name}, label %{where}, label %{stay}")
        self.label(stay)

    @contextmanager
    def given(self, condition: Value) -> Iterator[None]:
        then, done = self.fresh("then"), self.fresh("done")
        self.emit(f"br i1 {condition.name}, label %{then}, label %{done}")
        self.label(then)
        yield
        self.emit(f"br label %{done}")
        self.label(done)

    @contextmanager
    def otherwise(self, condition: Value) -> Iterator[None]:
        done, then = self.fresh("done"), self.fresh("then")
        self.emit(f"br i1 {condition.name}, label %{done}, label %{then}")
        self.label(then)
        yield
        self.emit(f"br label %{done}")
        self.label(done)

    def call(self, callee: Function | Value, *arguments: Operand, kinds: Sequence[str] | None = None) -> None:
        kinds = list(callee.parameters.values()) if isinstance(callee, Function) else kinds
        assert kinds is not None
        assert len(kinds) == len(arguments), (callee, arguments)
        given = [self.coerce(value, kind) for value, kind in zip(arguments, kinds, strict=True)]
        target = f"@{callee.name}" if isinstance(callee, Function) else callee.name
        self.emit(f"call void {target}({', '.join(f'{v.kind} {v.name}' for v in given)})")

    def address(self, function: Function) -> Value:
        return Value(self, PTR, f"@{function.name}")


class Module:
    """Functions for one instruction set and one type of numbers."""

    def __init__(self, isa: InstructionSet, scalar: str) -> None:
        self.isa, self.scalar = isa, scalar
        self.lanes = isa.bytes * 8 // BITS[scalar]
        self.vector = f"<{self.lanes} x {scalar}>"
        self.functions: list[str] = []
        self.declared: dict[str, None] = {}
        self.written: dict[str, Function] = {}

    def declare(self, line: str) -> None:
        self.declared[line] = None

    @contextmanager
    def function(self, name: str, parameters: dict[str, str], public: bool = False) -> Iterator[Any]:
        """Writes a function that returns nothing; yields the function and its arguments."""
        function = Function(self, name, parameters, public)
        yield function, *function.arguments()
        self.functions.append(function.text())

    def once(self, name: str, write: Callable[[Module], Function]) -> Function:
        """The function of that name, written when first needed."""
        if name not in self.written:
            self.written[name] = write(self)
        return self.written[name]

    def text(self) -> str:
        width = self.isa.bytes * 8
        attributes = (
            f'nounwind noinline "no-builtins" "min-legal-vector-width"="{width}" "prefer-vector-width"="{width}"'
        )
        return "\n".join((*self.declared, "", *self.functions, f"attributes #0 = {{ {attributes} }}", ""))


class Record:
    """A structure in memory with fields of eight bytes, in which a call passes its arguments."""

    def __init__(self, **fields: str) -> None:
        self.fields = fields  # name -> I64 or PTR

    def place(self, f: Function, pointer: Value, name: str) -> Value:
        return f.at(pointer, list(self.fields).index(name), I64)

    def get(self, f: Function, pointer: Value, name: str) -> Value:
        return f.load(self.place(f, pointer, name), self.fields[name])

    def set(self, f: Function, pointer: Value, **values: Operand) -> None:
        for name, value in values.items():
            f.store(f.coerce(value, self.fields[name]), self.place(f, pointer, name))

    def packed(self, *values: int) -> bytes:
        """For ctypes: numbers, and addresses of tensors, in the order of the fields."""
        assert len(values) == len(self.fields)
        return struct.pack(f"{len(values)}q", *values)

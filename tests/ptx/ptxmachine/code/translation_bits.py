"""Translates operations on bits, moves and conversions."""

from .reading import Instruction, listed
from .words import SIGNED, UNSIGNED, width
from .writer import SPECIAL, Writer, literal, unsupported, word_of


class BitsTranslation(Writer):
    def _logic(self, ins: Instruction, mods: list[str], sign: str) -> None:
        a, b = self.values(ins.args[1:], mods[-1])
        self.assign(ins.args[0], f"{a} {sign} {b}")

    def op_and(self, ins: Instruction, mods: list[str]) -> None:
        self._logic(ins, mods, "&")

    def op_or(self, ins: Instruction, mods: list[str]) -> None:
        self._logic(ins, mods, "|")

    def op_xor(self, ins: Instruction, mods: list[str]) -> None:
        self._logic(ins, mods, "^")

    def op_not(self, ins: Instruction, mods: list[str]) -> None:
        self.assign(ins.args[0], f"~{self.value(ins.args[1], mods[-1])}")

    def op_shl(self, ins: Instruction, mods: list[str]) -> None:
        self._shift(ins, mods, "shl", "<<")

    def op_shr(self, ins: Instruction, mods: list[str]) -> None:
        self._shift(ins, mods, "shr", ">>")

    def _shift(self, ins: Instruction, mods: list[str], function: str, sign: str) -> None:
        ty, by = mods[-1], ins.args[2]
        bits, word, signed = width(ty), word_of(ty), ty[0] == "s"
        a = self.value(ins.args[1], ty)
        if by.startswith("%"):
            expr = f"{function}({a}, {self.value(by, 'u32')}, {bits})"
        elif literal(by) < bits:
            expr = f"{a} {sign} {self.program.constant(literal(by), word)}"
        elif signed:
            expr = f"{a} >> {self.program.constant(bits - 1, word)}"
        else:
            expr = f"{a} * {word}(0)"
        self.assign(ins.args[0], f"({expr}).view({UNSIGNED[bits]})" if signed else expr)

    def op_bfe(self, ins: Instruction, mods: list[str]) -> None:
        ty, place = mods[-1], ins.args[2:]
        if any(x.startswith("%") for x in place):
            raise unsupported(ins)
        a, (first, count) = self.value(ins.args[1], ty), map(literal, place)
        self.assign(ins.args[0], f"bfe({a}, {first}, {count}, {width(ty)}, {ty[0] == 's'})")

    def op_bfi(self, ins: Instruction, mods: list[str]) -> None:
        ty, place = mods[-1], ins.args[3:]
        a, b = self.values(ins.args[1:3], ty)
        if any(x.startswith("%") for x in place):
            raise unsupported(ins)
        first, count = map(literal, place)
        word, field = UNSIGNED[width(ty)], ((1 << count) - 1) << first
        inside, outside = self.program.constant(field, word), self.program.constant(~field, word)
        by = self.program.constant(first, word)
        self.assign(ins.args[0], f"(({a} << {by}) & {inside}) | ({b} & {outside})")

    def op_prmt(self, ins: Instruction, mods: list[str]) -> None:
        if mods != ["b32"]:
            raise unsupported(ins)
        a, b, c = self.values(ins.args[1:], "b32")
        self.assign(ins.args[0], f"prmt({a}, {b}, {c})")

    def op_lop3(self, ins: Instruction, mods: list[str]) -> None:
        a, b, c = self.values(ins.args[1:4], "b32")
        self.assign(ins.args[0], f"lop3({a}, {b}, {c}, {literal(ins.args[4])})")

    def op_shf(self, ins: Instruction, mods: list[str]) -> None:
        a, b, c = self.values(ins.args[1:], "b32")
        self.assign(ins.args[0], f"shf({a}, {b}, {c}, {mods[0]!r}, {mods[1]!r})")

    def op_clz(self, ins: Instruction, mods: list[str]) -> None:
        self.assign(ins.args[0], f"clz({self.value(ins.args[1], mods[-1])}, {width(mods[-1])})")

    def op_popc(self, ins: Instruction, mods: list[str]) -> None:
        self.assign(ins.args[0], f"np.bitwise_count({self.value(ins.args[1], mods[-1])}).astype(u32)")

    # --- moves
    def op_mov(self, ins: Instruction, mods: list[str]) -> None:
        ty, (to, source) = mods[-1], ins.args
        bits = width(ty)
        if ty == "pred":
            self.assign_array(to, self.value(source, ty))
        elif to.startswith("{"):
            self._unpack(listed(to), source, bits)
        elif source.startswith("{"):
            self._pack(to, listed(source), bits)
        elif source.startswith("%") and source not in SPECIAL:
            self.assign_array(to, self.value(source, f"b{bits}"))
        else:
            self.assign(to, self.value(source, f"u{bits}"))

    def _unpack(self, names: list[str], source: str, bits: int) -> None:
        part, word = bits // len(names), UNSIGNED[bits]
        self.write(f"_v = {self.value(source, f'b{bits}')}")
        for i, name in enumerate(names):
            self.assign(name, f"(_v >> {self.program.constant(i * part, word)}).astype({UNSIGNED[part]})")

    def _pack(self, to: str, names: list[str], bits: int) -> None:
        part, word = bits // len(names), UNSIGNED[bits]
        placed = []
        for i, name in enumerate(names):
            some = f"k.some({self.value(name, f'b{part}')}, {UNSIGNED[part]})"
            placed.append(f"(np.asarray({some}).astype({word}) << {self.program.constant(i * part, word)})")
        self.assign(to, " | ".join(placed))

    def op_cvta(self, ins: Instruction, mods: list[str]) -> None:
        self.assign_array(ins.args[0], self.value(ins.args[1], "u64"))

    # --- conversions
    def op_cvt(self, ins: Instruction, mods: list[str]) -> None:
        to, source = mods[-2:]
        rounding = mods[0] if len(mods) > 2 else ""
        if source == "f32" and to in ("bf16x2", "f16x2"):
            high, low = self.values(ins.args[1:], "f32")
            expr = f"pack2({to!r}, {high}, {low})"
        elif source == "f32" and to in ("bf16", "f16"):
            expr = f"to_{to}({self.value(ins.args[1], 'f32')}, {rounding!r})"
        elif to == "f32" and source in ("bf16", "f16"):
            expr = f"half({source!r}, {self.value(ins.args[1], source)}, 0).view(u32)"
        elif to == "tf32":
            expr = f"to_tf32({self.value(ins.args[1], 'b32')}, {rounding!r})"
        elif to == "f32" and source[0] in "us":
            expr = f"np.asarray({self.held(ins.args[1], source)}).astype(f32).view(u32)"
        elif source == "f32" and to[0] in "us":
            a = self.value(ins.args[1], source)
            held = self.program.widths[self.program.reg(ins.args[0])]
            expr = f"float_to_int({a}, {rounding!r}, {to!r}).astype({UNSIGNED[held]})"
        elif to[0] in "us" and source[0] in "us":
            expr = self._between_integers(ins, to, source)
        else:
            raise unsupported(ins)
        self.assign(ins.args[0], expr)

    def _between_integers(self, ins: Instruction, to: str, source: str) -> str:
        """Extended to the register's width, by the sign if ``to`` has one."""
        expr = f"np.asarray({self.value(ins.args[1], source)}).astype({word_of(to)})"
        held = self.program.widths[self.program.reg(ins.args[0])]
        if held != width(to):
            expr += f".astype({(SIGNED if to[0] == 's' else UNSIGNED)[held]})"
        return expr + f".view({UNSIGNED[held]})" if to[0] == "s" else expr

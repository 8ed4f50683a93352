"""Translates arithmetic, comparisons and selections."""

from .reading import Instruction, listed
from .words import UNSIGNED, width
from .writer import HALVES, Writer, unsupported

COMPARISONS = {
    "eq": "==",
    "ne": "!=",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "lo": "<",
    "ls": "<=",
    "hi": ">",
    "hs": ">=",
}


class ArithmeticTranslation(Writer):
    def _binary(self, ins: Instruction, ty: str, expr: str) -> None:
        """``expr`` of {a} and {b}, both of type ``ty`` as the result is."""
        a, b = self.values(ins.args[1:3], ty)
        expr, bits = expr.format(a=a, b=b), width(ty)
        if ty[0] == "s" or ty in ("f32", "f64"):
            expr = f"({expr}).view({UNSIGNED[bits]})"
        name = ins.args[0]
        held = bits if name == "_" else self.program.widths[self.program.reg(name)]
        if held not in (bits, 1):
            expr = f"({expr}).astype({UNSIGNED[held]})"
        if any(part.startswith("%") for arg in ins.args[1:] for part in listed(arg)):
            self.assign_array(name, expr)
        else:  # of two constants, a scalar
            self.assign(name, expr)

    def _halves(self, ins: Instruction, ty: str, function: str) -> None:
        self.assign(ins.args[0], f"{function}({ty!r}, {', '.join(self.values(ins.args[1:], ty))})")

    def op_add(self, ins: Instruction, mods: list[str]) -> None:
        self._sum(ins, mods, "{a} + {b}", "half_add")

    def op_sub(self, ins: Instruction, mods: list[str]) -> None:
        self._sum(ins, mods, "{a} - {b}", "half_sub")

    def _sum(self, ins: Instruction, mods: list[str], expr: str, function: str) -> None:
        ty = mods[-1]
        if ty in HALVES:
            self._halves(ins, ty, function)
            return
        if "sat" in mods or "cc" in mods:
            raise unsupported(ins)
        if ty == "f32" and "ftz" in mods:
            expr = f"ftz({expr})"
        self._binary(ins, ty if ty[0] == "f" else "u" + ty[1:], expr)

    def op_mul(self, ins: Instruction, mods: list[str]) -> None:
        ty = mods[-1]
        if ty in HALVES:
            self._halves(ins, ty, "half_mul")
        elif ty[0] == "f":
            self._binary(ins, ty, "ftz({a} * {b})" if "ftz" in mods else "{a} * {b}")
        elif mods[0] == "lo":
            self._binary(ins, "u" + ty[1:], "{a} * {b}")
        elif mods[0] == "wide":
            self.assign(ins.args[0], self._wide(ins, ty))
        elif mods[0] == "hi":
            a, b = self.values(ins.args[1:], ty)
            self.assign(ins.args[0], f"mulhi({a}, {b}, {width(ty)}, {ty[0] == 's'})")
        else:
            raise unsupported(ins)

    def _wide(self, ins: Instruction, ty: str) -> str:
        a, b = self.values(ins.args[1:3], ty)
        return f"wide({a}, {b}, {2 * width(ty)}, {ty[0] == 's'})"

    def op_mad(self, ins: Instruction, mods: list[str]) -> None:
        ty = mods[-1]
        if mods[0] == "lo":
            a, b, c = self.values(ins.args[1:], "u" + ty[1:])
            self.assign(ins.args[0], f"{a} * {b} + {c}")
        elif mods[0] == "wide":
            product = self._wide(ins, ty)
            self.assign(ins.args[0], f"{product} + {self.value(ins.args[3], f'u{2 * width(ty)}')}")
        else:
            raise unsupported(ins)

    def op_fma(self, ins: Instruction, mods: list[str]) -> None:
        ty = mods[-1]
        if ty == "f32":
            a, b, c = self.values(ins.args[1:], ty)
            self.assign(ins.args[0], f"fma32({a}, {b}, {c}).view(u32)")
        else:
            self._halves(ins, ty, "half_fma")

    def op_neg(self, ins: Instruction, mods: list[str]) -> None:
        ty, bits = mods[-1], width(mods[-1])
        signs = {"f32": 0x80000000, "f16": 0x8000, "bf16": 0x8000, "f16x2": 0x80008000, "bf16x2": 0x80008000}
        if ty in signs:
            a = self.value(ins.args[1], f"b{bits}")
            self.assign(ins.args[0], f"{a} ^ {self.program.constant(signs[ty], UNSIGNED[bits])}")
        elif ty[0] == "s":
            self.assign(ins.args[0], f"({UNSIGNED[bits]}(0) - {self.value(ins.args[1], 'u' + ty[1:])})")
        else:
            raise unsupported(ins)

    def op_abs(self, ins: Instruction, mods: list[str]) -> None:
        ty = mods[-1]
        if ty == "f32":
            a = self.value(ins.args[1], "b32")
            self.assign(ins.args[0], f"{a} & {self.program.constant(0x7FFFFFFF, 'u32')}")
        elif ty[0] == "s":
            self.assign(ins.args[0], f"np.abs({self.value(ins.args[1], ty)}).view({UNSIGNED[width(ty)]})")
        else:
            raise unsupported(ins)

    def op_min(self, ins: Instruction, mods: list[str]) -> None:
        self._extreme(ins, mods, "min")

    def op_max(self, ins: Instruction, mods: list[str]) -> None:
        self._extreme(ins, mods, "max")

    def _extreme(self, ins: Instruction, mods: list[str], name: str) -> None:
        ty = mods[-1]
        if ty == "f32":
            function = f"np.{name}imum" if "NaN" in mods else f"np.f{name}"
            self._binary(ins, ty, function + "({a}, {b})")
        elif ty[0] in "us":
            self._binary(ins, ty, f"np.{name}imum" + "({a}, {b})")
        else:
            self._halves(ins, ty, f"half_{name}imum" if "NaN" in mods else f"half_{name}")

    def op_div(self, ins: Instruction, mods: list[str]) -> None:
        self._binary(ins, mods[-1], "{a} / {b}" if mods[-1][0] == "f" else "int_div({a}, {b})")

    def op_rem(self, ins: Instruction, mods: list[str]) -> None:
        self._binary(ins, mods[-1], "int_rem({a}, {b})")

    def op_ex2(self, ins: Instruction, mods: list[str]) -> None:
        if mods[-1] != "f32":
            raise unsupported(ins)
        self.assign(ins.args[0], f"k.ex2({self.value(ins.args[1], 'f32')}, {'ftz' in mods}).view(u32)")

    def op_rsqrt(self, ins: Instruction, mods: list[str]) -> None:
        self.assign(ins.args[0], f"k.rsqrt({self.value(ins.args[1], 'f32')}, {'ftz' in mods}).view(u32)")

    def op_rcp(self, ins: Instruction, mods: list[str]) -> None:
        self.assign(ins.args[0], f"(f32(1) / {self.value(ins.args[1], 'f32')}).view(u32)")

    def op_sqrt(self, ins: Instruction, mods: list[str]) -> None:
        self.assign(ins.args[0], f"np.sqrt({self.value(ins.args[1], 'f32')}).view(u32)")

    def op_selp(self, ins: Instruction, mods: list[str]) -> None:
        ty = mods[-1]
        a, b = (self.held(x, "b" + ty[1:] if ty[0] in "fsu" else ty) for x in ins.args[1:3])
        self.assign_array(ins.args[0], f"np.where({self.value(ins.args[3], 'pred')}, {a}, {b})")

    def op_setp(self, ins: Instruction, mods: list[str]) -> None:
        how, ty = mods[0], mods[-1]
        if len(mods) - mods.count("ftz") > 2:
            raise unsupported(ins)
        names = [name.strip() for name in ins.args[0].split("|")]
        a, b = (self.held(x, ty) for x in ins.args[1:3])
        if ty in HALVES:  # of a packed pair, a result for each half
            for i, name in enumerate(names if ty.endswith("x2") else names[:1]):
                self.assign_array(name, f"compare(half({ty!r}, {a}, {i}), half({ty!r}, {b}, {i}), {how!r})")
            return
        expr = f"compare({a}, {b}, {how!r})" if ty[0] == "f" else f"{a} {COMPARISONS[how]} {b}"
        self.assign(names[0], expr)
        if len(names) > 1:
            self.assign(names[1], f"~({expr})")

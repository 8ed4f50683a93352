"""Translates loads, stores, atomics and asynchronous copies. ``k`` gets the instruction's number, for reports."""

import re
from collections.abc import Sequence

from .reading import Instruction, address_parts, listed
from .words import SIGNED, UNSIGNED, width
from .writer import Writer, joined, literal, unsupported

ATOMICS = ("add", "exch", "cas", "max", "min", "or", "and", "inc")


def first_of(names: Sequence[str], mods: list[str], otherwise: str) -> str:
    return next((name for name in names if name in mods), otherwise)


def elements(mods: list[str]) -> int:
    """4 of ``v4``."""
    return next((int(m[1:]) for m in mods if re.fullmatch(r"v\d", m)), 1)


def is_shared(mods: list[str]) -> bool:
    return any(m.startswith("shared") for m in mods)


class MemoryTranslation(Writer):
    def op_ld(self, ins: Instruction, mods: list[str]) -> None:
        ty, count = mods[-1], elements(mods)
        size = width(ty) // 8
        if "param" in mods:
            name, offset = address_parts(ins.args[1])
            if offset or count > 1:
                raise unsupported(ins)
            self.assign(ins.args[0], f"k.params[{self.program.params[name][0]}]")
            return
        m = self.mask()
        if "global" in mods:
            how = first_of(("volatile", "acquire", "relaxed", "cg"), mods, "ca")
            if how == "acquire" and "cta" in mods:  # orders nothing between CTAs
                how = "relaxed"
            where = self.address(ins.args[1], 64)
            self.write(f"_v = k.load_global({where}, {m}, {size}, {count}, {how!r}, {ins.n})")
        elif is_shared(mods):
            where = self.address(ins.args[1], 32)
            self.write(f"_v = k.load_shared({where}, {m}, {size}, {count}, {ins.n})")
        else:
            raise unsupported(ins)
        for i, name in enumerate(listed(ins.args[0])):
            self.assign_array(name, f"_v[{i}]" + self._extension(name, ty))

    def _extension(self, name: str, ty: str) -> str:
        """What makes a loaded value as wide as its register."""
        held, bits = self.program.widths[self.program.reg(name)], width(ty)
        if held == bits:
            return ""
        if ty[0] == "s":
            return f".view({SIGNED[bits]}).astype({SIGNED[held]}).view({UNSIGNED[held]})"
        return f".astype({UNSIGNED[held]})"

    def op_st(self, ins: Instruction, mods: list[str]) -> None:
        size, count = width(mods[-1]) // 8, elements(mods)
        values = joined(self.whole(x, f"b{8 * size}") for x in listed(ins.args[1]))
        m = self.mask()
        if "global" in mods:
            how = first_of(("volatile", "release", "relaxed"), mods, "weak")
            where = self.address(ins.args[0], 64)
            self.write(f"k.store_global({where}, {m}, {size}, {count}, {values}, {how!r}, {ins.n})")
        elif is_shared(mods):
            where = self.address(ins.args[0], 32)
            self.write(f"k.store_shared({where}, {m}, {size}, {count}, {values}, {ins.n})")
        else:
            raise unsupported(ins)

    def op_atom(self, ins: Instruction, mods: list[str]) -> None:
        self._atomic(ins, mods, ins.args[0], ins.args[1:])

    def op_red(self, ins: Instruction, mods: list[str]) -> None:
        self._atomic(ins, mods, "_", ins.args)

    def _atomic(self, ins: Instruction, mods: list[str], to: str, args: list[str]) -> None:
        bits = width(mods[-1])
        how = first_of(("acq_rel", "release", "acquire", "relaxed"), mods, "relaxed")
        what = first_of(ATOMICS, mods, "")
        if not what:
            raise unsupported(ins)
        values = joined(self.whole(x, f"b{bits}") for x in args[1:])
        scope = first_of(("cta", "gpu", "sys", "cluster"), mods, "gpu")
        where, m = self.address(args[0], 64), self.mask()
        self.write(f"_v = k.atomic({where}, {m}, {bits // 8}, {what!r}, {values}, {how!r}, {scope!r}, {ins.n})")
        self.assign_array(to, "_v")

    def op_cp(self, ins: Instruction, mods: list[str]) -> None:
        if mods[0] != "async":
            raise unsupported(ins)
        if mods[1] == "commit_group":
            self.write("k.cp_commit(M)")
        elif mods[1] == "wait_group":
            self.write(f"k.cp_wait({literal(ins.args[0])}, M)")
        elif mods[1] == "wait_all":  # also of copies that are in no group yet
            self.write("k.cp_commit(M)")
            self.write("k.cp_wait(0, M)")
        elif mods[1] in ("ca", "cg"):
            count = literal(ins.args[2])
            size = self.value(ins.args[3], "u32") if len(ins.args) > 3 else None
            to, source = self.address(ins.args[0], 32), self.address(ins.args[1], 64)
            self.write(f"k.cp_async({to}, {source}, {self.mask()}, {count}, {size}, {ins.n})")
        else:
            raise unsupported(ins)

    def op_ldmatrix(self, ins: Instruction, mods: list[str]) -> None:
        names = listed(ins.args[0])
        where, m = self.address(ins.args[1], 32), self.mask()
        self.write(f"_v = k.ldmatrix({where}, {m}, {len(names)}, {'trans' in mods}, {ins.n})")
        self.assign_arrays(names)

    def op_stmatrix(self, ins: Instruction, mods: list[str]) -> None:
        values = joined(self.values(listed(ins.args[1]), "b32"))
        where, m = self.address(ins.args[0], 32), self.mask()
        self.write(f"k.stmatrix({where}, {m}, {values}, {'trans' in mods}, {ins.n})")

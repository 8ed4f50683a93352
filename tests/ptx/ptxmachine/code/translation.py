"""The translation of a segment: every group of instructions, with control flow and what a warp does as a whole."""

import re

from .reading import Instruction, listed
from .translation_arithmetic import ArithmeticTranslation
from .translation_bits import BitsTranslation
from .translation_memory import MemoryTranslation
from .writer import Writer, joined, literal, unsupported


class ControlTranslation(Writer):
    def _end(self, line: str) -> None:
        self.write(line)
        self.ended = True

    def op_bra(self, ins: Instruction, mods: list[str]) -> None:
        target, p = self.program.labels[ins.args[0]], self.predicate()
        self._end(f"return {target}" if p is None else f"return k.branch({p}, {target}, {self.segment.next}, M)")

    def op_ret(self, ins: Instruction, mods: list[str]) -> None:
        end, p = self.program.segments[-1].n, self.predicate()  # the last segment is empty
        self._end("return -1" if p is None else f"return k.branch({p}, {end}, {self.segment.next}, M)")

    op_exit = op_ret

    def op_bar(self, ins: Instruction, mods: list[str]) -> None:
        if mods[0] == "warp":
            self.write(f"k.warp_sync({self.mask()})")
            return
        if ins.pred is not None or mods[0] != "sync":
            raise unsupported(ins)
        ident, count = int(ins.args[0]), int(ins.args[1]) if len(ins.args) > 1 else 0
        self._end(f"return k.barrier({ident}, {count}, {self.segment.next}, M)")

    def op_barrier(self, ins: Instruction, mods: list[str]) -> None:
        self.op_bar(ins, [m for m in mods if m not in ("cta", "aligned")])

    def op_fence(self, ins: Instruction, mods: list[str]) -> None:
        self.write(f"k.{'fence_proxy' if mods[0] == 'proxy' else 'fence'}({self.mask()})")

    def op_membar(self, ins: Instruction, mods: list[str]) -> None:
        self.write(f"k.fence({self.mask()})")

    def op_griddepcontrol(self, ins: Instruction, mods: list[str]) -> None:
        self.write("pass")

    def op_nanosleep(self, ins: Instruction, mods: list[str]) -> None:
        self.write("pass")


class WarpTranslation(Writer):
    def op_shfl(self, ins: Instruction, mods: list[str]) -> None:
        values = ", ".join(self.values(ins.args[1:], "b32"))
        self.write(f"_v = k.shfl({mods[1]!r}, {values}, {self.mask()})")
        self.assign_arrays(name.strip() for name in ins.args[0].split("|"))

    def op_redux(self, ins: Instruction, mods: list[str]) -> None:
        what, ty = mods[1], mods[2]
        a, members = self.value(ins.args[1], ty), self.value(ins.args[2], "b32")
        self.assign(ins.args[0], f"k.redux({what!r}, {ty!r}, {a}, {members}, {self.mask()})")

    def op_vote(self, ins: Instruction, mods: list[str]) -> None:
        self.write(f"_v = k.vote({mods[1]!r}, {self.value(ins.args[1], 'pred')}, {self.mask()})")
        self.assign_array(ins.args[0], "_v")

    def op_mma(self, ins: Instruction, mods: list[str]) -> None:
        types = mods[-4:]
        if types[0] != "f32" or types[3] != "f32":
            raise unsupported(ins)
        d, a, b, c = map(listed, ins.args)
        va, vb = joined(self.values(a, "b32")), joined(self.values(b, "b32"))
        vc = joined(self.whole(x, "f32") for x in c)
        self.write(f"_v = k.mma({shape(mods)!r}, {types[1]!r}, {va}, {vb}, {vc}, {self.mask()})")
        self.assign_arrays(d)

    def op_wgmma(self, ins: Instruction, mods: list[str]) -> None:
        if mods[0] == "mma_async":
            self._wgmma(ins, mods)
        elif mods[0] == "fence":
            self.write("k.wgmma_fence()")
        elif mods[0] == "commit_group":
            self.write("k.wgmma_commit()")
        elif mods[0] == "wait_group":
            self.write(f"k.wgmma_wait({literal(ins.args[0])})")
        else:
            raise unsupported(ins)

    def _wgmma(self, ins: Instruction, mods: list[str]) -> None:
        d, a = listed(ins.args[0]), listed(ins.args[1])
        vd = joined(f"R[{self.program.reg(x)}]" for x in d)
        va = joined(self.values(a, "b32")) if len(a) > 1 else self.value(a[0], "b64")  # registers or a descriptor
        scale, vb = self.value(ins.args[3], "pred"), self.value(ins.args[2], "b64")
        flags = [literal(x) for x in ins.args[4:]]
        operands = f"{vd}, {va}, {vb}, {scale}, {flags}"
        self.write(f"_v = k.wgmma({shape(mods)!r}, {mods[-1]!r}, {operands}, {self.mask()}, {ins.n})")
        self.assign_arrays(d)


def shape(mods: list[str]) -> str:
    return next(m for m in mods if re.fullmatch(r"m\d+n\d+k\d+", m))


class Translation(ArithmeticTranslation, BitsTranslation, MemoryTranslation, ControlTranslation, WarpTranslation):
    def emit(self, ins: Instruction) -> None:
        self.ins = ins
        root, *mods = ins.op.split(".")
        method = getattr(self, f"op_{root}", None)
        if method is None:
            raise unsupported(ins)
        method(ins, mods)

"""Reads the PTX of one kernel and turns its straight-line segments into Python functions over NumPy registers.

A register is an array (warps, 32) of unsigned integers of its width, or of bools. A segment ends where control may go
elsewhere or where another warp may have to run first: at a branch, a barrier, and before an atomic, a volatile or an
ordered load. ``Program.code(segment, masked)`` compiles it on demand; ``masked`` is for warps that have diverged.
"""

import re
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

UNSIGNED = {8: "u8", 16: "u16", 32: "u32", 64: "u64"}
SIGNED = {8: "i8", 16: "i16", 32: "i32", 64: "i64"}
REGCLASS = {"p": 1, "rs": 16, "r": 32, "rd": 64, "f": 32, "fd": 64, "rh": 16, "h": 16, "hh": 32}
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
SYNC_OPS = re.compile(
    r"^(atom|red\.|ld\.(volatile|acquire|relaxed)|ld\.global\.\w*\.?(acquire|relaxed|volatile))|^ld\..*(volatile|acquire|relaxed)"
)


@dataclass
class Ins:
    n: int
    line: int  # of the PTX text
    source: str
    pred: str | None
    negated: bool
    op: str
    args: list
    text: str


@dataclass
class Segment:
    n: int
    body: list = field(default_factory=list)
    next: int | None = None
    sync_load: bool = False
    counts: Counter = field(default_factory=Counter)
    functions: dict = field(default_factory=dict)


def width(ty):
    return int(
        re.sub(r"\D", "", ty.replace("bf16x2", "32").replace("f16x2", "32").replace("tf32", "32").replace("x2", ""))
        or 1
    )


def category(ins):
    op = ins.op
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
    ):
        if re.search(pattern, op):
            return name
    return "int"


class Program:
    def __init__(self, text, shared_bytes):
        self.text = text
        self.shared_bytes = shared_bytes
        self.lines = text.splitlines()
        self.name = re.search(r"\.entry\s+(\w+)", text)[1]
        self.reqntid = int((re.search(r"\.reqntid\s+(\d+)", text) or [0, 0])[1])
        self.params = self._params()
        self.regs = {}
        self.widths = []
        self.consts = {}
        self.globals = dict(GLOBALS)
        self._parse()
        self._split()

    # ------------------------------------------------------------------ reading
    def _params(self):
        head = self.text[self.text.index(".entry") :]
        head = head[head.index("(") : head.index("\n)")]
        found = {}
        for line in head.splitlines():
            m = re.search(r"\.param\s+(?:\.align \d+ )?\.(\w+)\s.*?(\w+_param_\d+)", line)
            if m:
                found[m[2]] = (int(m[2].rsplit("_", 1)[1]), width(m[1]))
        return found

    def _parse(self):
        self.files = dict(re.findall(r'\.file\s+(\d+)\s+"([^"]*)"', self.text))
        start = next(i for i, line in enumerate(self.lines) if line.strip() == "{")
        self.items = []  # Ins or label
        source, pending, scope, renames = "", "", 0, []
        pline = 0
        for i in range(start + 1, len(self.lines)):
            raw = self.lines[i]
            line, _, comment = raw.partition("//")
            line = line.strip()
            if raw.startswith("}") or "End function" in raw:
                break
            if not line:
                continue
            if line.startswith(".loc"):
                m = re.match(r"\.loc\s+(\d+)\s+(\d+)\s+(\d+)", line)
                name = self.files.get(m[1], m[1]).rsplit("/", 1)[-1]
                source = comment.strip() or f"{name}:{m[2]}:{m[3]}"
                continue
            if line == "{":
                scope += 1
                renames.append({})
                continue
            if line == "}":
                scope -= 1
                if renames:
                    renames.pop()
                continue
            while m := re.match(r"^([$\w]+):\s*(.*)$", line):
                self.items.append(m[1])
                line = m[2]
            if not line:
                continue
            if not pending:
                pline = i + 1
            pending += " " + line
            while ";" in pending:
                statement, _, pending = pending.partition(";")
                statement = statement.strip()
                pending = pending.strip()
                while statement.startswith("{") and not re.match(r"^\{[^}]*\}", statement):
                    statement = statement[1:].strip()
                    renames.append({})
                if statement in ("", "}"):
                    continue
                self._statement(statement, pline, source, renames)
        del scope

    def _statement(self, s, line, source, renames):
        if s.startswith(".reg"):
            if m := re.match(r"\.reg\s+\.(\w+)\s+%(\w+)<(\d+)>", s):
                return
            m = re.match(r"\.reg\s+\.(\w+)\s+(.*)", s)
            for name in m[2].split(","):
                name = name.strip()
                alias = (
                    f"%{'p' if m[1] == 'pred' else {16: 'rs', 32: 'r', 64: 'rd'}[width(m[1])]}_{name.strip('%')}_{line}"
                )
                (renames[-1] if renames else {})[name] = alias
            return
        if s.startswith(".pragma") or s.startswith(".shared") or s.startswith(".local"):
            if not s.startswith(".pragma"):
                raise NotImplementedError(s)
            return
        for names in renames:
            for name, alias in names.items():
                s = re.sub(rf"(?<![\w%]){re.escape(name)}(?!\w)", alias, s)
        pred, negated = None, False
        text = s
        if m := re.match(r"^@(!?)(%\w+)\s+(.*)$", s):
            negated, pred, s = bool(m[1]), m[2], m[3]
        op, _, rest = s.partition(" ")
        if "\t" in op:
            op, _, r2 = op.partition("\t")
            rest = r2 + " " + rest
        args, depth, current = [], 0, ""
        for c in rest.strip():
            if c in "{[(":
                depth += 1
            if c in "}])":
                depth -= 1
            if c == "," and depth == 0:
                args.append(current.strip())
                current = ""
            else:
                current += c
        if current.strip():
            args.append(current.strip())
        self.items.append(Ins(len(self.items), line, source, pred, negated, op.strip(), args, text))

    # ------------------------------------------------------------------ segments
    def _split(self):
        self.segments = [Segment(0)]
        labels = {}

        def new():
            before = self.segments[-1]
            if not before.body and before.n not in labels.values():
                return before
            if not before.body:
                return before
            segment = Segment(len(self.segments))
            if before.next is None and not (
                before.body and before.body[-1].op in ("bra", "bra.uni", "ret", "exit") and before.body[-1].pred is None
            ):
                before.next = segment.n
            self.segments.append(segment)
            return segment

        for item in self.items:
            if isinstance(item, str):
                labels[item] = new().n
                continue
            if SYNC_OPS.search(item.op):
                new().sync_load = True
            segment = self.segments[-1]
            segment.body.append(item)
            segment.counts[category(item)] += 1
            segment.counts["all"] += 1
            root = item.op.split(".")[0]
            if root in ("bra", "ret", "exit") or item.op.startswith(("bar.sync", "barrier", "bar.arrive")):
                new()
        self.labels = labels

    # ------------------------------------------------------------------ code
    def reg(self, name):
        if name not in self.regs:
            cls = re.match(r"%([a-z]+)", name)[1]
            self.regs[name] = len(self.widths)
            self.widths.append(REGCLASS[cls])
        return self.regs[name]

    def wreg(self, name):
        return self.widths[self.reg(name)]

    def const(self, value, dtype):
        key = (int(value), dtype)
        if key not in self.consts:
            name = f"C{len(self.consts)}"
            self.consts[key] = name
            bits = int(re.sub(r"\D", "", dtype))
            v = int(value) & ((1 << bits) - 1)
            u = np.array([v], dtype=f"uint{bits}")
            self.globals[name] = u.view(getattr(np, {"u": "uint", "i": "int", "f": "float"}[dtype[0]] + str(bits)))[0]
        return self.consts[key]

    def val(self, op, ty):
        """An operand as an array (or scalar) of a PTX type."""
        if ty == "pred":
            if op in ("-1", "1"):
                return "k.true"
            if op == "0":
                return "k.false"
            return f"R[{self.reg(op)}]"
        bits = width(ty)
        kind = ty[0] if ty[0] in "suf" and ty not in ("f16x2",) else "b"
        np_ty = {"s": SIGNED, "u": UNSIGNED, "b": UNSIGNED, "f": {16: "f16", 32: "f32", 64: "f64"}}[kind][bits]
        if ty in ("f16", "bf16", "bf16x2", "f16x2", "tf32"):
            np_ty = UNSIGNED[bits]
        if op in SPECIAL:
            return SPECIAL[op] if np_ty == "u32" else f"{SPECIAL[op]}.view({np_ty})"
        if op.startswith("%clock") or op == "%globaltimer":
            return "k.clock()"
        if op.startswith("%"):
            w = self.wreg(op)
            if w == 1:
                return f"R[{self.reg(op)}]"
            if w > bits:
                return f"R[{self.reg(op)}].astype({UNSIGNED[bits]})" + (
                    "" if np_ty == UNSIGNED[bits] else f".view({np_ty})"
                )
            if w < bits:
                raise NotImplementedError(f"{op} narrower than {ty}")
            return f"R[{self.reg(op)}]" + ("" if np_ty == UNSIGNED[bits] else f".view({np_ty})")
        if op.startswith("0f"):
            return self.const(int(op[2:], 16), np_ty if np_ty[0] == "f" else "u32")
        if op.startswith("0d"):
            return self.const(int(op[2:], 16), "f64")
        if re.match(r"^-?(0x[0-9A-Fa-f]+|\d+)U?$", op):
            value = int(op.rstrip("U"), 0)
            if np_ty[0] == "f":
                raise NotImplementedError(f"integer {op} as {ty}")
            return self.const(value, np_ty)
        if op in self.params or op == "global_smem":
            return self.const(0, "u32") if op == "global_smem" else f"k.params[{self.params[op][0]}]"
        raise NotImplementedError(f"operand {op} as {ty}")

    def code(self, segment, masked):
        if masked not in segment.functions:
            out = Writer(self, segment, masked)
            for ins in segment.body:
                out.ins = ins
                out.emit(ins)
            if not out.ended:
                out.w(f"return {segment.next}")
            name = f"seg{segment.n}{'m' if masked else ''}"
            text = f"def {name}(k, R, M):\n" + "\n".join("    " + line for line in out.lines) + "\n"
            scope = {}
            exec(compile(text, f"<{self.name}:{segment.n}>", "exec"), self.globals, scope)
            segment.functions[masked] = (scope[name], out.origin, text)
        return segment.functions[masked]


def addr_parts(arg):
    """[ %rd1 + 8 ] -> (base, offset)"""
    inner = arg.strip()[1:-1].strip()
    m = re.match(r"^([%\w$.]+)\s*(?:\+\s*(-?(?:0x)?[0-9A-Fa-f]+))?$", inner)
    if not m:
        raise NotImplementedError(arg)
    return m[1], int(m[2] or "0", 0)


def listed(arg):
    arg = arg.strip()
    if arg.startswith("{"):
        return [part.strip() for part in arg[1:-1].split(",")]
    return [arg]


class Writer:
    def __init__(self, program, segment, masked):
        self.p, self.segment, self.masked = program, segment, masked
        self.lines, self.origin, self.ended = [], {}, False

    def w(self, line):
        self.lines.append(line)
        self.origin[len(self.lines) + 1] = self.ins if hasattr(self, "ins") else None

    def mask(self):
        """Expression of the lanes that act, or None for all."""
        ins = self.ins
        p = None
        if ins.pred:
            p = f"R[{self.p.reg(ins.pred)}]"
            if ins.negated:
                p = f"~{p}"
        if self.masked:
            return f"(M & {p})" if p else "M"
        return p

    def dst(self, name, expr, ty="u32"):
        if name == "_":
            return
        i = self.p.reg(name)
        w = self.p.widths[i]
        m = self.mask()
        expr = f"k.full({expr}, {'bool_' if w == 1 else UNSIGNED[w]})"
        if m is None:
            self.w(f"R[{i}] = {expr}")
        else:
            self.w(f"R[{i}] = k.sel({m}, {expr}, R[{i}])")

    def arr(self, name, expr):
        """As dst, of an expression that surely is an array of the right type."""
        if name == "_":
            return
        i = self.p.reg(name)
        m = self.mask()
        self.w(f"R[{i}] = {expr}" if m is None else f"R[{i}] = k.sel({m}, {expr}, R[{i}])")

    def emit(self, ins):
        op = ins.op
        root = op.split(".")[0]
        handler = getattr(self, "op_" + root.replace("-", "_"), None)
        if handler is None:
            raise NotImplementedError(f"{ins.text} (line {ins.line})")
        handler(ins, op.split(".")[1:])

    # --- arithmetic
    def _regbits(self, ty):
        return width(ty)

    def _binary(self, ins, ty, expr):
        """expr of a, b typed"""
        a, b = self.p.val(ins.args[1], ty), self.p.val(ins.args[2], ty)
        self.put(ins.args[0], expr.format(a=a, b=b), ty)

    def put(self, name, expr, ty):
        bits = width(ty)
        if ty != "pred" and (ty[0] == "s" or ty in ("f32", "f64")):
            expr = f"({expr}).view({UNSIGNED[bits]})"
        w = self.p.wreg(name) if name != "_" else bits
        if w != bits and w != 1:
            expr = f"({expr}).astype({UNSIGNED[w]})"
        # both operands constant would give a scalar
        self.dst(name, expr) if not any(a.startswith("%") for a in ins_args(self.ins)) else self.arr(name, expr)

    def op_add(self, ins, mods):
        self._arith(ins, mods, "{a} + {b}", "add")

    def op_sub(self, ins, mods):
        self._arith(ins, mods, "{a} - {b}", "sub")

    def _arith(self, ins, mods, expr, name):
        ty = mods[-1]
        if ty in ("f16", "bf16", "f16x2", "bf16x2"):
            self._half(ins, ty, f"half_{name}")
            return
        if "sat" in mods or "cc" in mods:
            raise NotImplementedError(ins.text)
        if ty == "f32" and "ftz" in mods:
            expr = f"ftz({expr})"
        self._binary(ins, ty if ty[0] == "f" else "u" + ty[1:], expr)

    def _half(self, ins, ty, fn, n=2):
        args = ", ".join(self.p.val(a, ty) for a in ins.args[1 : 1 + n])
        self.dst(ins.args[0], f"{fn}({ty!r}, {args})")

    def op_mul(self, ins, mods):
        ty = mods[-1]
        if ty in ("f16", "bf16", "f16x2", "bf16x2"):
            self._half(ins, ty, "half_mul")
        elif ty[0] == "f":
            self._binary(ins, ty, "ftz({a} * {b})" if "ftz" in mods else "{a} * {b}")
        elif mods[0] == "lo":
            self._binary(ins, "u" + ty[1:], "{a} * {b}")
        elif mods[0] == "wide":
            a, b = self.p.val(ins.args[1], ty), self.p.val(ins.args[2], ty)
            self.dst(ins.args[0], f"wide({a}, {b}, {2 * width(ty)}, {ty[0] == 's'})")
        elif mods[0] == "hi":
            a, b = self.p.val(ins.args[1], ty), self.p.val(ins.args[2], ty)
            self.dst(ins.args[0], f"mulhi({a}, {b}, {width(ty)}, {ty[0] == 's'})")
        else:
            raise NotImplementedError(ins.text)

    def op_mad(self, ins, mods):
        ty = mods[-1]
        if mods[0] == "lo":
            a, b, c = (self.p.val(x, "u" + ty[1:]) for x in ins.args[1:])
            self.dst(ins.args[0], f"{a} * {b} + {c}")
        elif mods[0] == "wide":
            a, b = self.p.val(ins.args[1], ty), self.p.val(ins.args[2], ty)
            c = self.p.val(ins.args[3], f"u{2 * width(ty)}")
            self.dst(ins.args[0], f"wide({a}, {b}, {2 * width(ty)}, {ty[0] == 's'}) + {c}")
        else:
            raise NotImplementedError(ins.text)

    def op_fma(self, ins, mods):
        ty = mods[-1]
        if ty == "f32":
            a, b, c = (self.p.val(x, ty) for x in ins.args[1:])
            self.dst(ins.args[0], f"fma32({a}, {b}, {c}).view(u32)")
        else:
            self._half(ins, ty, "half_fma", 3)

    def op_neg(self, ins, mods):
        ty = mods[-1]
        a = self.p.val(ins.args[1], ty)
        if ty == "f32":
            self.dst(ins.args[0], f"{self.p.val(ins.args[1], 'b32')} ^ {self.p.const(0x80000000, 'u32')}")
        elif ty[0] == "s":
            self.dst(ins.args[0], f"({UNSIGNED[width(ty)]}(0) - {self.p.val(ins.args[1], 'u' + ty[1:])})")
        elif ty in ("bf16", "f16"):
            self.dst(ins.args[0], f"{a} ^ {self.p.const(0x8000, 'u16')}")
        elif ty in ("bf16x2", "f16x2"):
            self.dst(ins.args[0], f"{a} ^ {self.p.const(0x80008000, 'u32')}")
        else:
            raise NotImplementedError(ins.text)

    def op_abs(self, ins, mods):
        ty = mods[-1]
        if ty == "f32":
            self.dst(ins.args[0], f"{self.p.val(ins.args[1], 'b32')} & {self.p.const(0x7FFFFFFF, 'u32')}")
        elif ty[0] == "s":
            self.dst(ins.args[0], f"np.abs({self.p.val(ins.args[1], ty)}).view({UNSIGNED[width(ty)]})")
        else:
            raise NotImplementedError(ins.text)

    def _minmax(self, ins, mods, name):
        ty = mods[-1]
        if ty == "f32":
            fn = f"np.{name}imum" if "NaN" in mods else f"np.f{name}"
            self._binary(ins, ty, fn + "({a}, {b})")
        elif ty[0] in "us":
            self._binary(ins, ty, f"np.{name}imum" + "({a}, {b})")
        else:
            self._half(ins, ty, f"half_{name}")

    def op_min(self, ins, mods):
        self._minmax(ins, mods, "min")

    def op_max(self, ins, mods):
        self._minmax(ins, mods, "max")

    def _logic(self, ins, mods, sign):
        ty = mods[-1]
        a, b = self.p.val(ins.args[1], ty), self.p.val(ins.args[2], ty)
        self.dst(ins.args[0], f"{a} {sign} {b}")

    def op_and(self, ins, mods):
        self._logic(ins, mods, "&")

    def op_or(self, ins, mods):
        self._logic(ins, mods, "|")

    def op_xor(self, ins, mods):
        self._logic(ins, mods, "^")

    def op_not(self, ins, mods):
        self.dst(ins.args[0], f"~{self.p.val(ins.args[1], mods[-1])}")

    def op_shl(self, ins, mods):
        self._shift(ins, mods, "shl")

    def op_shr(self, ins, mods):
        self._shift(ins, mods, "shr")

    def _shift(self, ins, mods, name):
        ty = mods[-1]
        bits = width(ty)
        signed = ty[0] == "s"
        a = self.p.val(ins.args[1], ty)
        np_ty = (SIGNED if signed else UNSIGNED)[bits]
        if not ins.args[2].startswith("%"):
            n = int(ins.args[2].rstrip("U"), 0)
            sign = "<<" if name == "shl" else ">>"
            if n >= bits:
                expr = f"{a} * {np_ty}(0)" if not signed else f"{a} >> {self.p.const(bits - 1, np_ty)}"
            else:
                expr = f"{a} {sign} {self.p.const(n, np_ty)}"
        else:
            b = self.p.val(ins.args[2], "u32")
            expr = f"{name}({a}, {b}, {bits})"
        self.dst(ins.args[0], f"({expr}).view({UNSIGNED[bits]})" if signed else expr)

    def op_bfe(self, ins, mods):
        ty = mods[-1]
        a, b, c = self.p.val(ins.args[1], ty), ins.args[2], ins.args[3]
        if b.startswith("%") or c.startswith("%"):
            raise NotImplementedError(ins.text)
        self.dst(ins.args[0], f"bfe({a}, {int(b, 0)}, {int(c, 0)}, {width(ty)}, {ty[0] == 's'})")

    def op_bfi(self, ins, mods):
        ty = mods[-1]
        a, b = self.p.val(ins.args[1], ty), self.p.val(ins.args[2], ty)
        if ins.args[3].startswith("%") or ins.args[4].startswith("%"):
            raise NotImplementedError(ins.text)
        pos, n, bits = int(ins.args[3], 0), int(ins.args[4], 0), width(ty)
        m = ((1 << n) - 1) << pos
        cm, ci = self.p.const(m, UNSIGNED[bits]), self.p.const(~m, UNSIGNED[bits])
        self.dst(ins.args[0], f"(({a} << {self.p.const(pos, UNSIGNED[bits])}) & {cm}) | ({b} & {ci})")

    def op_prmt(self, ins, mods):
        if mods != ["b32"]:
            raise NotImplementedError(ins.text)
        a, b, c = (self.p.val(x, "b32") for x in ins.args[1:])
        self.dst(ins.args[0], f"prmt({a}, {b}, {c})")

    def op_lop3(self, ins, mods):
        a, b, c = (self.p.val(x, "b32") for x in ins.args[1:4])
        self.dst(ins.args[0], f"lop3({a}, {b}, {c}, {int(ins.args[4].rstrip('U'), 0)})")

    def op_shf(self, ins, mods):
        a, b, c = (self.p.val(x, "b32") for x in ins.args[1:4])
        self.dst(ins.args[0], f"shf({a}, {b}, {c}, {mods[0]!r}, {mods[1]!r})")

    def op_clz(self, ins, mods):
        self.dst(ins.args[0], f"clz({self.p.val(ins.args[1], mods[-1])}, {width(mods[-1])})")

    def op_popc(self, ins, mods):
        self.dst(ins.args[0], f"np.bitwise_count({self.p.val(ins.args[1], mods[-1])}).astype(u32)")

    def op_selp(self, ins, mods):
        ty = mods[-1]
        ty = "b" + ty[1:] if ty[0] in "fsu" else ty
        a, b, c = self.p.val(ins.args[1], ty), self.p.val(ins.args[2], ty), self.p.val(ins.args[3], "pred")
        self.arr(ins.args[0], f"np.where({c}, {a}, {b})")

    def op_setp(self, ins, mods):
        cmp, ty = mods[0], mods[-1]
        if len([m for m in mods if m not in ("ftz",)]) > 2:
            raise NotImplementedError(ins.text)
        names = ins.args[0].split("|")
        a, b = ins.args[1], ins.args[2]
        if ty in ("bf16x2", "f16x2"):
            va, vb = self.p.val(a, ty), self.p.val(b, ty)
            for i, name in enumerate(names):
                self.arr(name.strip(), f"compare(half({ty!r}, {va}, {i}), half({ty!r}, {vb}, {i}), {cmp!r})")
            return
        if ty in ("bf16", "f16"):
            va, vb = self.p.val(a, ty), self.p.val(b, ty)
            self.arr(names[0], f"compare(half({ty!r}, {va}, 0), half({ty!r}, {vb}, 0), {cmp!r})")
            return
        va, vb = self.p.val(a, ty), self.p.val(b, ty)
        if ty[0] == "f":
            expr = f"compare({va}, {vb}, {cmp!r})"
        else:
            sign = {
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
            }[cmp]
            expr = f"{va} {sign} {vb}"
        self.dst(names[0], expr)
        if len(names) > 1:
            self.dst(names[1].strip(), f"~({expr})")

    # --- conversions and moves
    def op_mov(self, ins, mods):
        ty = mods[-1]
        d, s = ins.args
        if ty == "pred":
            self.arr(d, f"{self.p.val(s, 'pred')}")
        elif d.startswith("{"):
            parts = listed(d)
            bits = width(ty) // len(parts)
            v = self.p.val(s, ty)
            self.w(f"_v = {v}")
            for i, name in enumerate(parts):
                self.dst(name, f"(_v >> {self.p.const(i * bits, UNSIGNED[width(ty)])}).astype({UNSIGNED[bits]})")
        elif s.startswith("{"):
            parts = listed(s)
            bits = width(ty) // len(parts)
            np_ty = UNSIGNED[width(ty)]
            expr = " | ".join(
                f"(np.asarray(k.some({self.p.val(x, f'b{bits}')}, {UNSIGNED[bits]})).astype({np_ty}) << {self.p.const(i * bits, np_ty)})"
                for i, x in enumerate(parts)
            )
            self.dst(d, expr)
        elif s.startswith("%") and s not in SPECIAL:
            self.arr(d, self.p.val(s, "b" + str(width(ty))))
        else:
            t = "u" + str(width(ty)) if not s.startswith(("0f", "0d")) else ty
            if s.startswith("0f"):
                t = "b32"
            self.dst(d, self.p.val(s, t))

    def op_cvta(self, ins, mods):
        self.arr(ins.args[0], self.p.val(ins.args[1], "u64"))

    def op_cvt(self, ins, mods):
        d, s = mods[-2], mods[-1]
        if s == "f32" and d in ("bf16x2", "f16x2"):
            a, b = self.p.val(ins.args[1], "f32"), self.p.val(ins.args[2], "f32")
            self.dst(ins.args[0], f"pack2({d!r}, {a}, {b})")
            return
        rounding = mods[0] if len(mods) > 2 else ""
        if s == "f32" and d in ("bf16", "f16"):
            self.dst(ins.args[0], f"to_{d}({self.p.val(ins.args[1], 'f32')}, {rounding!r})")
        elif d == "f32" and s in ("bf16", "f16"):
            self.dst(ins.args[0], f"half({s!r}, {self.p.val(ins.args[1], s)}, 0).view(u32)")
        elif d == "tf32":
            self.dst(ins.args[0], f"to_tf32({self.p.val(ins.args[1], 'b32')}, {rounding!r})")
        elif d == "f32" and s[0] in "us":
            self.dst(ins.args[0], f"np.asarray({self.p.val(ins.args[1], s)}).astype(f32).view(u32)")
        elif s == "f32" and d[0] in "us":
            self.dst(
                ins.args[0],
                f"float_to_int({self.p.val(ins.args[1], s)}, {rounding!r}, {d!r}).astype({UNSIGNED[width(d)]})",
            )
        elif d[0] in "us" and s[0] in "us":
            target = (SIGNED if d[0] == "s" else UNSIGNED)[width(d)]
            expr = f"np.asarray({self.p.val(ins.args[1], s)}).astype({target})"
            if d[0] == "s":
                expr += f".view({UNSIGNED[width(d)]})"
            w = self.p.wreg(ins.args[0])
            if w != width(d):
                expr += f".astype({UNSIGNED[w]})"
            self.dst(ins.args[0], expr)
        else:
            raise NotImplementedError(ins.text)

    def op_ex2(self, ins, mods):
        ty = mods[-1]
        if ty != "f32":
            raise NotImplementedError(ins.text)
        self.dst(ins.args[0], f"k.ex2({self.p.val(ins.args[1], 'f32')}, {'ftz' in mods}).view(u32)")

    def op_rsqrt(self, ins, mods):
        self.dst(ins.args[0], f"k.rsqrt({self.p.val(ins.args[1], 'f32')}, {'ftz' in mods}).view(u32)")

    def op_rcp(self, ins, mods):
        self.dst(ins.args[0], f"(f32(1) / {self.p.val(ins.args[1], 'f32')}).view(u32)")

    def op_sqrt(self, ins, mods):
        self.dst(ins.args[0], f"np.sqrt({self.p.val(ins.args[1], 'f32')}).view(u32)")

    def op_div(self, ins, mods):
        ty = mods[-1]
        if ty[0] == "f":
            self._binary(ins, ty, "{a} / {b}")
        else:
            self._binary(ins, ty, "int_div({a}, {b})")

    def op_rem(self, ins, mods):
        self._binary(ins, mods[-1], "int_rem({a}, {b})")

    # --- control
    def op_bra(self, ins, mods):
        target = self.p.labels[ins.args[0]]
        if ins.pred is None:
            self.w(f"return {target}")
        else:
            p = f"R[{self.p.reg(ins.pred)}]"
            if ins.negated:
                p = f"~{p}"
            self.w(f"return k.branch({p}, {target}, {self.segment.next}, M)")
        self.ended = True

    def op_ret(self, ins, mods):
        if ins.pred is not None:
            p = f"R[{self.p.reg(ins.pred)}]"
            p = f"~{p}" if ins.negated else p
            self.w(f"return k.branch({p}, -1, {self.segment.next}, M)")
        else:
            self.w("return -1")
        self.ended = True

    op_exit = op_ret

    def op_bar(self, ins, mods):
        if mods[0] == "warp":
            self.w(f"k.warp_sync({self.mask()})")
            return
        if ins.pred is not None or mods[0] != "sync":
            raise NotImplementedError(ins.text)
        ident = int(ins.args[0])
        count = int(ins.args[1]) if len(ins.args) > 1 else 0
        self.w(f"return k.barrier({ident}, {count}, {self.segment.next}, M)")
        self.ended = True

    def op_barrier(self, ins, mods):
        self.op_bar(ins, [m for m in mods if m != "cta" and m != "aligned"])

    def op_fence(self, ins, mods):
        if mods[0] != "proxy":
            self.w(f"k.fence({self.mask()})")
        else:
            self.w(f"k.fence_proxy({self.mask()})")

    def op_membar(self, ins, mods):
        self.w(f"k.fence({self.mask()})")

    def op_griddepcontrol(self, ins, mods):
        self.w("pass")

    def op_nanosleep(self, ins, mods):
        self.w("pass")

    # --- memory
    def address(self, arg, bits):
        base, offset = addr_parts(arg)
        ty = f"u{bits}"
        if base == "global_smem":
            return f"k.full({self.p.const(offset, 'u32')}, u32)"
        v = self.p.val(base, ty)
        return v if offset == 0 else f"{v} + {self.p.const(offset, ty)}"

    def op_ld(self, ins, mods):
        ty = mods[-1]
        bits = width(ty)
        vec = next((int(m[1:]) for m in mods if re.fullmatch(r"v\d", m)), 1)
        if "param" in mods:
            base, offset = addr_parts(ins.args[1])
            assert offset == 0 and vec == 1
            self.dst(ins.args[0], f"k.params[{self.p.params[base][0]}]", ty)
            return
        names = listed(ins.args[0])
        m = self.mask()
        if "global" in mods:
            how = next((h for h in ("volatile", "acquire", "relaxed") if h in mods), "cg" if "cg" in mods else "ca")
            self.w(
                f"_v = k.load_global({self.address(ins.args[1], 64)}, {m}, {bits // 8}, {vec}, {how!r}, {self.ins.n})"
            )
        elif any(x.startswith("shared") for x in mods):
            self.w(f"_v = k.load_shared({self.address(ins.args[1], 32)}, {m}, {bits // 8}, {vec}, {self.ins.n})")
        else:
            raise NotImplementedError(ins.text)
        for i, name in enumerate(names):
            w = self.p.wreg(name)
            expr = f"_v[{i}]"
            if w != bits:
                expr += (
                    f".view({SIGNED[bits]}).astype({SIGNED[w]}).view({UNSIGNED[w]})"
                    if ty[0] == "s"
                    else f".astype({UNSIGNED[w]})"
                )
            self.arr(name, expr)

    def op_st(self, ins, mods):
        ty = mods[-1]
        bits = width(ty)
        vec = next((int(m[1:]) for m in mods if re.fullmatch(r"v\d", m)), 1)
        values = (
            "[" + ", ".join(f"k.full({self.p.val(x, f'b{bits}')}, {UNSIGNED[bits]})" for x in listed(ins.args[1])) + "]"
        )
        m = self.mask()
        if "global" in mods:
            how = next((h for h in ("volatile", "release", "relaxed") if h in mods), "weak")
            self.w(
                f"k.store_global({self.address(ins.args[0], 64)}, {m}, {bits // 8}, {vec}, {values}, {how!r}, {ins.n})"
            )
        elif any(x.startswith("shared") for x in mods):
            self.w(f"k.store_shared({self.address(ins.args[0], 32)}, {m}, {bits // 8}, {vec}, {values}, {ins.n})")
        else:
            raise NotImplementedError(ins.text)

    def op_atom(self, ins, mods):
        ty = mods[-1]
        how = next((h for h in ("acq_rel", "release", "acquire", "relaxed") if h in mods), "relaxed")
        what = next(h for h in ("add", "exch", "cas", "max", "min", "or", "and", "inc") if h in mods)
        red = ins.op.startswith("red")
        args = ins.args if not red else ["_"] + ins.args
        values = ", ".join(f"k.full({self.p.val(x, f'b{width(ty)}')}, {UNSIGNED[width(ty)]})" for x in args[2:])
        scope = next((s for s in ("cta", "gpu", "sys", "cluster") if s in mods), "gpu")
        self.w(
            f"_v = k.atomic({self.address(args[1], 64)}, {self.mask()}, {width(ty) // 8}, {what!r}, [{values}], {how!r}, {scope!r}, {ins.n})"
        )
        self.arr(args[0], "_v")

    op_red = op_atom

    def op_cp(self, ins, mods):
        if mods[:2] == ["async", "commit_group"]:
            self.w("k.cp_commit(M)")
        elif mods[:2] == ["async", "wait_group"]:
            self.w(f"k.cp_wait({int(ins.args[0], 0)}, M)")
        elif mods[:2] == ["async", "wait_all"]:
            self.w("k.cp_wait(0, M)")
        elif mods[0] == "async" and mods[1] in ("ca", "cg"):
            n = int(ins.args[2], 0)
            size = self.p.val(ins.args[3], "u32") if len(ins.args) > 3 else "None"
            self.w(
                f"k.cp_async({self.address(ins.args[0], 32)}, {self.address(ins.args[1], 64)}, {self.mask()}, {n}, {size}, {ins.n})"
            )
        else:
            raise NotImplementedError(ins.text)

    def op_ldmatrix(self, ins, mods):
        names = listed(ins.args[0])
        self.w(
            f"_v = k.ldmatrix({self.address(ins.args[1], 32)}, {self.mask()}, {len(names)}, {'trans' in mods}, {ins.n})"
        )
        for i, name in enumerate(names):
            self.arr(name, f"_v[{i}]")

    def op_stmatrix(self, ins, mods):
        names = listed(ins.args[1])
        values = "[" + ", ".join(self.p.val(x, "b32") for x in names) + "]"
        self.w(f"k.stmatrix({self.address(ins.args[0], 32)}, {self.mask()}, {values}, {'trans' in mods}, {ins.n})")

    def op_mma(self, ins, mods):
        shape = next(m for m in mods if re.fullmatch(r"m\d+n\d+k\d+", m))
        types = mods[-4:]
        if types[0] != "f32" or types[3] != "f32":
            raise NotImplementedError(ins.text)
        d, a, b, c = (listed(x) for x in ins.args)
        va, vb = ("[" + ", ".join(self.p.val(x, "b32") for x in v) + "]" for v in (a, b))
        vc = "[" + ", ".join(f"k.full({self.p.val(x, 'f32')}, f32)" for x in c) + "]"
        self.w(f"_v = k.mma({shape!r}, {types[1]!r}, {va}, {vb}, {vc}, {self.mask()})")
        for i, name in enumerate(d):
            self.arr(name, f"_v[{i}]")

    def op_wgmma(self, ins, mods):
        if mods[0] == "mma_async":
            shape = next(m for m in mods if re.fullmatch(r"m\d+n\d+k\d+", m))
            d, a = listed(ins.args[0]), listed(ins.args[1])
            vd = "[" + ", ".join(f"R[{self.p.reg(x)}]" for x in d) + "]"
            va = "[" + ", ".join(self.p.val(x, "b32") for x in a) + "]" if len(a) > 1 else self.p.val(a[0], "b64")
            scale = self.p.val(ins.args[3], "pred")
            rest = [int(x, 0) for x in ins.args[4:]]
            self.w(
                f"_v = k.wgmma({shape!r}, {mods[-1]!r}, {vd}, {va}, {self.p.val(ins.args[2], 'b64')}, {scale}, {rest}, {self.mask()}, {ins.n})"
            )
            for i, name in enumerate(d):
                self.arr(name, f"_v[{i}]")
        elif mods[0] == "fence":
            self.w("k.wgmma_fence()")
        elif mods[0] == "commit_group":
            self.w("k.wgmma_commit()")
        elif mods[0] == "wait_group":
            self.w(f"k.wgmma_wait({int(ins.args[0])})")
        else:
            raise NotImplementedError(ins.text)

    def op_shfl(self, ins, mods):
        d = ins.args[0].split("|")
        a, b, c, members = (self.p.val(x, "b32") for x in ins.args[1:])
        self.w(f"_v = k.shfl({mods[1]!r}, {a}, {b}, {c}, {members}, {self.mask()})")
        self.arr(d[0].strip(), "_v[0]")
        if len(d) > 1:
            self.arr(d[1].strip(), "_v[1]")

    def op_redux(self, ins, mods):
        self.dst(
            ins.args[0],
            f"k.redux({mods[1]!r}, {mods[2]!r}, {self.p.val(ins.args[1], mods[2])}, {self.p.val(ins.args[2], 'b32')}, {self.mask()})",
        )

    def op_vote(self, ins, mods):
        self.w(f"_v = k.vote({mods[1]!r}, {self.p.val(ins.args[1], 'pred')}, {self.mask()})")
        self.arr(ins.args[0], "_v")


def ins_args(ins):
    return [x for arg in ins.args[1:] for x in listed(arg)]


# ---------------------------------------------------------------------- arithmetic
u8, u16, u32, u64 = np.uint8, np.uint16, np.uint32, np.uint64
i8, i16, i32, i64 = np.int8, np.int16, np.int32, np.int64
f16, f32, f64 = np.float16, np.float32, np.float64


def ftz(x):
    return np.where(np.abs(x) < f32(1.1754944e-38), x * f32(0), x)


def fma32(a, b, c):
    return (
        (np.asarray(a).astype(f64) * b + c).astype(f32)
        if np.ndim(a)
        else (np.asarray(b).astype(f64) * a + c).astype(f32)
    )


def wide(a, b, bits, signed):
    ty = {(32, True): i32, (64, True): i64, (32, False): u32, (64, False): u64}[bits, signed]
    x = np.asarray(a).astype(ty) * np.asarray(b).astype(ty)
    return x.view({32: u32, 64: u64}[bits])


def mulhi(a, b, bits, signed):
    if bits == 32:
        ty = i64 if signed else u64
        return ((np.asarray(a).astype(ty) * np.asarray(b).astype(ty)) >> ty(32)).astype(u32)
    if bits == 16:
        ty = i32 if signed else u32
        return ((np.asarray(a).astype(ty) * np.asarray(b).astype(ty)) >> ty(16)).astype(u16)
    a, b = np.broadcast_arrays(np.asarray(a), np.asarray(b))
    flat = [((int(x) * int(y)) >> 64) & (2**64 - 1) for x, y in zip(a.ravel(), b.ravel())]
    return np.array(flat, dtype=u64).reshape(a.shape)


def shl(a, b, bits):
    ty = np.asarray(a).dtype.type
    b = np.asarray(b)
    return np.where(b < bits, np.left_shift(a, np.minimum(b, bits - 1).astype(ty)), ty(0))


def shr(a, b, bits):
    ty = np.asarray(a).dtype.type
    b = np.asarray(b)
    shifted = np.right_shift(a, np.minimum(b, bits - 1).astype(ty))
    return shifted if ty in (i16, i32, i64) else np.where(b < bits, shifted, ty(0))


def bfe(a, pos, n, bits, signed):
    uns = {32: u32, 64: u64}[bits]
    a = np.asarray(a).view(uns)
    if n == 0:
        return a * uns(0)
    x = (a >> uns(pos)) & uns((1 << n) - 1)
    if signed:
        sign = {32: i32, 64: i64}[bits]
        top = uns(bits - n)
        x = ((x << top).view(sign) >> sign(bits - n)).view(uns)
    return x


def prmt(a, b, c):
    ab = np.asarray(a).astype(u64) | (np.asarray(b).astype(u64) << u64(32))
    out = u32(0)
    for i in range(4):
        s = (np.asarray(c) >> u32(4 * i)) & u32(15)
        byte = ((ab >> ((s & u32(7)).astype(u64) * u64(8))) & u64(255)).astype(u32)
        signed = np.where(byte & u32(128), u32(255), u32(0))
        byte = np.where(s & u32(8), signed, byte)
        out = out | (byte << u32(8 * i))
    return out


def lop3(a, b, c, lut):
    out = u32(0)
    for i in range(8):
        if lut >> i & 1:
            out = out | ((a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c))
    return out


def shf(a, b, c, side, mode):
    ab = np.asarray(a).astype(u64) | (np.asarray(b).astype(u64) << u64(32))
    n = (np.minimum(c, u32(32)) if mode == "clamp" else c & u32(31)).astype(u64)
    if side == "l":
        return ((ab << n) >> u64(32)).astype(u32)
    return (ab >> n).astype(u32)


def clz(a, bits):
    return (bits - np.frexp(np.asarray(a).astype(f64))[1]).astype(u32)


def half(ty, a, i):
    """Value i of a (packed) half precision register as float32."""
    a = np.asarray(a)
    if a.dtype == u32:
        a = (a >> u32(16 * i)).astype(u16)
    if ty.startswith("bf16"):
        return (a.astype(u32) << u32(16)).view(f32)
    return a.view(f16).astype(f32)


def to_bf16(x, rounding="rn"):
    bits = np.asarray(x).view(u32)
    if rounding == "rz":
        return (bits >> u32(16)).astype(u16)
    rounded = ((bits + u32(0x7FFF) + ((bits >> u32(16)) & u32(1))) >> u32(16)).astype(u16)
    return np.where(np.isnan(x), u16(0x7FFF), rounded)


def to_f16(x, rounding="rn"):
    assert rounding == "rn"
    return np.where(np.isnan(x), u16(0x7FFF), np.asarray(x).astype(f16).view(u16))


def pack2(ty, hi, lo):
    fn = to_bf16 if ty == "bf16x2" else to_f16
    return (fn(hi).astype(u32) << u32(16)) | fn(lo).astype(u32)


def to_tf32(bits, rounding):
    bits = np.asarray(bits)
    if rounding == "rna":
        return (bits + u32(0x1000)) & u32(0xFFFFE000)
    if rounding == "rn":
        return (bits + u32(0xFFF) + ((bits >> u32(13)) & u32(1))) & u32(0xFFFFE000)
    raise NotImplementedError(rounding)


def float_to_int(x, rounding, ty):
    x = {"rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil, "rni": np.rint}[rounding](np.nan_to_num(x))
    lo, hi = (0, 2 ** width(ty) - 1) if ty[0] == "u" else (-(2 ** (width(ty) - 1)), 2 ** (width(ty) - 1) - 1)
    return np.clip(x.astype(f64), lo, hi).astype(i64)


def _half_op(fn):
    def go(ty, *args):
        narrow = to_bf16 if ty.startswith("bf16") else to_f16
        if ty.endswith("x2"):
            lo, hi = (narrow(fn(*(half(ty, a, i) for a in args)).astype(f32)).astype(u32) for i in (0, 1))
            return (hi << u32(16)) | lo
        return narrow(fn(*(half(ty, a, 0) for a in args)).astype(f32))

    return go


half_add, half_sub, half_mul = _half_op(lambda a, b: a + b), _half_op(lambda a, b: a - b), _half_op(lambda a, b: a * b)
half_fma = _half_op(lambda a, b, c: (a.astype(f64) * b + c).astype(f32))
half_min, half_max = _half_op(np.fmin), _half_op(np.fmax)


def compare(a, b, cmp):
    if cmp in ("num", "nan"):
        either = np.isnan(a) | np.isnan(b)
        return either if cmp == "nan" else ~either
    unordered = cmp.endswith("u") and cmp != "u"
    base = cmp[:-1] if unordered else cmp
    x = {
        "eq": np.equal,
        "ne": np.not_equal,
        "lt": np.less,
        "le": np.less_equal,
        "gt": np.greater,
        "ge": np.greater_equal,
    }[base](a, b)
    if base == "ne" and not unordered:
        return x & ~(np.isnan(a) | np.isnan(b))
    if unordered:
        return x | np.isnan(a) | np.isnan(b)
    return x


def int_div(a, b):
    a, b = np.broadcast_arrays(np.asarray(a), np.asarray(b))
    safe = np.where(b == 0, b.dtype.type(1), b)
    q = a // safe
    if a.dtype.kind == "i":
        q = np.where((a % safe != 0) & ((a < 0) != (safe < 0)), q + a.dtype.type(1), q)
    return np.where(b == 0, ~a.dtype.type(0), q).astype(a.dtype)


def int_rem(a, b):
    a, b = np.broadcast_arrays(np.asarray(a), np.asarray(b))
    return (a - int_div(a, b) * b).astype(a.dtype)


bool_ = np.bool_
GLOBALS = {name: value for name, value in globals().items() if not name.startswith("__")}


def wgmma_hazards(program):
    """Uses of registers of a wgmma between its issue and the wait for it, in straight lines."""
    found = []
    for segment in program.segments:
        flying, inputs = {}, {}
        for ins in segment.body:
            names = [x for a in ins.args for x in re.findall(r"%\w+", a)]
            if ins.op.startswith("wgmma.mma_async"):
                for x in listed(ins.args[0]):
                    flying[x] = ins
                for x in listed(ins.args[1]):
                    inputs[x] = ins
                continue
            if ins.op.startswith("wgmma.wait_group"):
                if int(ins.args[0]) == 0:
                    flying, inputs = {}, {}
                continue
            if ins.op.startswith("wgmma"):
                continue
            used = [x for x in names if x in flying]
            written = (
                [x for x in listed(ins.args[0]) if x in inputs]
                if ins.args and not ins.op.startswith(("st", "bar", "bra"))
                else []
            )
            if used or written:
                found.append((ins.line, ins.text, used or written))
        if flying:
            found.append((segment.body[-1].line, "in flight at the end of a segment", list(flying)[:4]))
    return found

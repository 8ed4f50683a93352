"""Lists of cases and the check of one. A case is a dict; see `case`."""

import dataclasses
import math
import time

import audit  # first: it finds the package
import loops
import torch
from machine import Options

from tritongru.kernels.persistent import launch as persistent
from tritongru.kernels.resident import launch as resident
from tritongru.kernels.stepwise import launch as stepwise
from tritongru.planning import launches

FAMILIES = {"resident": resident, "persistent": persistent, "stepwise": stepwise}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TF32_EPS = 2**-12


def rows_of(family, kernel, kind, size=None):
    if family == "resident":
        return launches.launches().get(("cuda", kernel, kind, size), ())
    if family == "persistent":
        return launches.persistent_launches().get(("cuda", kernel, kind, size), ())
    return launches.stepwise_launches().get(("cuda", kernel, kind), ())


def excess(actual, exact, same, eps):
    """Error over what the tolerance rule allows."""
    actual, exact, same = (v.detach().double() for v in (actual, exact, same))
    if not actual.numel():
        return 0.0
    error = (actual - exact).abs().max().item()
    allowed = 2 * (same - exact).abs().max().item() + 8 * eps * exact.abs().max().item()
    return math.inf if math.isnan(error) else error / allowed


def eps_of(dtype, kind):
    return TF32_EPS if dtype == torch.float32 and kind == "tf32" else torch.finfo(dtype).eps


def packed_rows(T, B):
    lengths = sorted((T - (b * (T - 1) // max(1, B - 1)) for b in range(B)), reverse=True)
    counts = [sum(n > t for n in lengths) for t in range(T)]
    return lengths, torch.tensor([0, *torch.tensor(counts).cumsum(0)]), sum(counts)


def expected_packed(tensors, T, B, dtype):
    lengths, offsets, N = packed_rows(T, B)
    D, H = tensors["w_hh"].shape[0], tensors["w_hh"].shape[2]
    out = None
    # rows of equal length go together
    for length in sorted(set(lengths)):
        bs = [b for b in range(B) if lengths[b] == length]
        rows = [int(offsets[t]) + b for t in range(length) for b in bs]
        own = {
            name: (value if value is None or name not in ("gx", "dy") else value[rows])
            for name, value in tensors.items()
        }
        own |= {name: None if tensors[name] is None else tensors[name][:, bs] for name in ("h0", "dhn")}
        found = loops.expected(own, len(bs), dtype)
        if out is None:
            out = [torch.zeros(N, *found[0].shape[1:], dtype=dtype), torch.zeros(D, B, H, dtype=dtype)]
            out += [torch.zeros(N, *found[i].shape[1:], dtype=dtype) for i in (2, 3, 4)] + [
                torch.zeros(D, B, H, dtype=dtype)
            ]
        for i, v in enumerate(found):
            if i in (1, 5):
                out[i][:, bs] = v.to(dtype)
            else:
                out[i][rows] = v.to(dtype)
    return out


def launch_of(c):
    launch = rows_of(c["family"], c["kernel"], c["kind"], c.get("size"))[c["row"]]
    if c["family"] == "persistent":
        tiles = -(-c["B"] // launch.block_b)
        launch = dataclasses.replace(launch, groups=c.get("groups") or tiles)
    return launch


def run(c, options=None):
    """Runs a case in the machine and returns what was found."""
    launch = launch_of(c)
    dtype = DTYPES[c["dtype"]]
    T, B, H, D = c["T"], c["B"], c["H"], c.get("D", 1)
    packed = c.get("packed", False)
    offsets, N = None, T * B
    if packed:
        _, offsets, N = packed_rows(T, B)
    tensors = loops.layer_tensors(T, B, H, D, dtype, c.get("bias", True), c.get("h0", True), c.get("dy", True), rows=N)

    for name in c.get("unaligned", ()):  # tensors that begin one element after a multiple of 16 bytes
        v = tensors[name]
        if v is not None:
            tensors[name] = torch.empty(v.numel() + 1, dtype=v.dtype)[1:].view_as(v).copy_(v)

    def expect(dt):
        return expected_packed(tensors, T, B, dt) if packed else loops.expected(tensors, B, dt)

    exact, same = expect(torch.float64), expect(dtype)
    S = audit.SESSION = audit.Session(options or Options(**c.get("options", {})))
    started = time.perf_counter()
    family = FAMILIES[c["family"]]
    names = {}
    if c["kernel"] == "forward":
        found = loops.run_forward(family, tensors, launch, B, c.get("gates", True), offsets)
        names = dict(zip(("y", "hn", "gates"), zip(found, exact[:3], same[:3])))
        if not c.get("gates", True):
            names.pop("gates")
    else:
        y, gates = exact[0].to(dtype), exact[2].to(dtype)
        parts = c.get("parts")
        found = loops.run_backward(family, tensors, y, gates, launch, offsets, parts)
        same[5] = same[5].float()
        names = dict(zip(("dgx", "da", "dh"), zip(found, exact[3:], same[3:])))
    eps = eps_of(dtype, c["kind"])
    parity = {name: round(excess(*v, eps), 3) for name, v in names.items()}
    if audit.WORD is not None and int(audit.WORD[0]):
        S.lines.append(f"watchdog report {int(audit.WORD[0])}")
        S.reports["watchdog"] += 1
        audit.WORD.zero_()
    m = S.last
    return {
        "case": c,
        "parity": parity,
        "worst": max(parity.values()),
        "reports": dict(S.reports),
        "stats": dict(S.stats),
        "lines": S.lines[:12],
        "seconds": round(S.seconds, 2),
        "wall": round(time.perf_counter() - started, 2),
        "launches": len(S.machines),
        "ctas": m.ctas,
        "regs": getattr(S.compiled, "regs", None),
        "intra": dict(getattr(m, "intra", {})),
    }


def lists():
    out = {}
    out["first"] = [
        dict(family="resident", kernel="forward", kind="tf32", size=32, row=0, dtype="fp32", H=32, T=3, B=3)
    ]
    res = []
    i = 0
    for kind in ("16-bit", "tf32", "ieee"):
        for size in range(32, 193, 16):
            for kernel in ("forward", "backward"):
                for row, l in enumerate(rows_of("resident", kernel, kind, size)):
                    i += 1
                    dt = "fp32" if kind != "16-bit" else ("bf16", "fp16")[i % 2]
                    base = dict(family="resident", kernel=kernel, kind=kind, size=size, row=row, dtype=dt)
                    res.append(base | dict(H=size, T=4, B=16, D=1))
                    res.append(
                        base
                        | dict(
                            H=size - (15, 1, 8, 3)[i % 4],
                            T=4,
                            B=19,
                            D=2,
                            packed=i % 2 == 0,
                            h0=i % 3 > 0,
                            gates=i % 4 < 2,
                            bias=i % 5 > 0,
                            dy=i % 4 > 0,
                        )
                    )
    out["resident"] = res
    every = ("gx", "w_hh", "b_hh", "h0", "dy")
    ext = []
    for kernel in ("forward", "backward"):
        r = dict(family="resident", kernel=kernel)
        for kind, dt in (("16-bit", "bf16"), ("tf32", "fp32"), ("ieee", "fp32"), ("16-bit", "fp16")):
            ext.append(r | dict(kind=kind, size=32, row=0, dtype=dt, H=16, T=5, B=3, D=2))
            ext.append(r | dict(kind=kind, size=32, row=0, dtype=dt, H=1, T=1, B=1, D=1))
            ext.append(r | dict(kind=kind, size=80, row=0, dtype=dt, H=65, T=3, B=33, D=2, unaligned=every))
        ext.append(
            r | dict(kind="16-bit", size=128, row=0, dtype="bf16", H=128, T=5, B=33, D=1, unaligned=("w_hh", "b_hh"))
        )
        ext.append(r | dict(kind="16-bit", size=112, row=0, dtype="fp16", H=100, T=6, B=18, D=2, packed=True))
        p = dict(family="persistent", kernel=kernel)
        for kind, dt in (("16-bit", "bf16"), ("tf32", "fp32"), ("ieee", "fp32")):
            size = 128 if kind == "ieee" and rows_of("persistent", kernel, "ieee", 128) else 256
            rows = rows_of("persistent", kernel, kind, size)
            for ex in ("counter", "data"):
                row = next((i for i, l in enumerate(rows) if l.exchange == ex and l.block_b == 16), None)
                if row is None:
                    continue
                b = p | dict(kind=kind, size=size, row=row, dtype=dt)
                ext.append(
                    b | dict(H=96, T=4, B=37, D=2, groups=1)
                )  # the last tile has five rows; many tiles a program
                ext.append(b | dict(H=101, T=3, B=16, D=1, unaligned=every))
                ext.append(b | dict(H=96, T=1, B=1, D=2, h0=False))
                ext.append(b | dict(H=96, T=6, B=20, D=2, packed=True, groups=1))
        s = dict(family="stepwise", kernel=kernel)
        for kind, dt in (("16-bit", "bf16"), ("tf32", "fp32")):
            ext.append(s | dict(kind=kind, row=0, dtype=dt, H=101, T=3, B=20, D=2, unaligned=every))
    for family, kind, size, H, dt in (
        ("resident", "16-bit", 80, 65, "bf16"),
        ("resident", "tf32", 48, 40, "fp32"),
        ("persistent", "16-bit", 256, 101, "fp16"),
        ("persistent", "tf32", 256, 96, "fp32"),
        ("stepwise", "16-bit", None, 101, "bf16"),
    ):
        for parts in ((2, 3), (1, 1, 3)):
            ext.append(
                dict(
                    family=family,
                    kernel="backward",
                    kind=kind,
                    size=size,
                    row=0,
                    dtype=dt,
                    H=H,
                    T=5,
                    B=19,
                    D=2,
                    parts=parts,
                )
            )
    out["extra"] = ext
    per = []
    i = 0
    for kind in ("16-bit", "tf32", "ieee"):
        for size in (128, 256, 384, 512, 768, 1024, 1536, 2048):
            for kernel in ("forward", "backward"):
                for row, l in enumerate(rows_of("persistent", kernel, kind, size)):
                    i += 1
                    dt = "fp32" if kind != "16-bit" else ("bf16", "fp16")[i % 2]
                    base = dict(
                        family="persistent", kernel=kernel, kind=kind, size=size, row=row, dtype=dt, name=l.name
                    )
                    per.append(base | dict(H=size, T=3, B=l.block_b, D=1))
                    if size <= 512:
                        B = 2 * l.block_b + 3
                        per.append(
                            base
                            | dict(
                                H=size - (1, 8, 3, 60)[i % 4],
                                T=4,
                                B=B,
                                D=2,
                                groups=(1, 2)[i % 2],
                                packed=i % 2 == 0,
                                h0=i % 3 > 0,
                                gates=i % 4 < 2,
                                bias=i % 5 > 0,
                                dy=i % 4 > 0,
                            )
                        )
    per.sort(key=lambda c: c["size"])
    out["persistent"] = [c for c in per if c.get("D") == 1]
    out["persistent-other"] = [c for c in per if c.get("D") == 2]
    step = []
    i = 0
    for kind in ("16-bit", "tf32", "ieee"):
        for kernel in ("forward", "backward"):
            for row, l in enumerate(rows_of("stepwise", kernel, kind)):
                i += 1
                dt = "fp32" if kind != "16-bit" else ("bf16", "fp16")[i % 2]
                base = dict(family="stepwise", kernel=kernel, kind=kind, row=row, dtype=dt)
                step.append(base | dict(H=288, T=3, B=l.block_b, D=1))
                step.append(
                    base
                    | dict(
                        H=(137, 264, 99)[i % 3],
                        T=4,
                        B=l.block_b + 5,
                        D=2,
                        packed=i % 2 == 0,
                        h0=i % 3 > 0,
                        gates=i % 4 < 2,
                        bias=i % 5 > 0,
                        dy=i % 4 > 0,
                    )
                )
    out["stepwise"] = step
    return out

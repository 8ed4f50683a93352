"""Dynamic counts of one time step: a run of T + 1 steps less a run of T, for one CTA that never waits in vain.

python counts.py NAME [NAME ...]      (names of FORMS below; all without names)
"""

import json
import os
import sys
from collections import Counter

import audit

arch = int(os.environ.get("ARCH", "90"))
audit.WORD = audit.install(arch)
sys.modules["audit"].WORD = audit.WORD

import cases
import machine

FORMS = {}


def pick(kernel, kind, size, name):
    rows = cases.rows_of("persistent", kernel, kind, size)
    return next((i for i, row in enumerate(rows) if row.name == name), None)


def forms():
    for kernel in ("forward", "backward"):
        for i, _ in enumerate(cases.rows_of("resident", kernel, "16-bit", 128)):
            FORMS[f"res-{kernel}-128-{i}"] = dict(
                family="resident", kernel=kernel, kind="16-bit", size=128, row=i, dtype="bf16", H=128, B=16, D=1
            )
    for kind in ("16-bit", "tf32", "ieee"):
        for size in range(32, 193, 16):
            for kernel in ("forward", "backward"):
                for i, _ in enumerate(cases.rows_of("resident", kernel, kind, size)):
                    FORMS[f"all-res-{kernel}-{kind}-{size}-{i}"] = dict(
                        family="resident",
                        kernel=kernel,
                        kind=kind,
                        size=size,
                        row=i,
                        dtype="bf16" if kind == "16-bit" else "fp32",
                        H=size,
                        B=16,
                        D=1,
                    )
    for kind in ("tf32", "ieee"):
        for size in (256, 512, 1024):
            for kernel in ("forward", "backward"):
                for i, row in enumerate(cases.rows_of("persistent", kernel, kind, size)):
                    if row.block_b == 16:
                        FORMS[f"{kind}-{kernel}-{size}-{row.name}"] = dict(
                            family="persistent",
                            kernel=kernel,
                            kind=kind,
                            size=size,
                            row=i,
                            dtype="fp32",
                            H=size,
                            B=16,
                            D=1,
                        )
    for size in (256, 512, 768, 1024):
        for kernel in ("forward", "backward"):
            for i, row in enumerate(cases.rows_of("persistent", kernel, "16-bit", size)):
                if row.block_b == 16:
                    FORMS[f"per-{kernel}-{size}-{row.name}"] = dict(
                        family="persistent",
                        kernel=kernel,
                        kind="16-bit",
                        size=size,
                        row=i,
                        dtype="bf16",
                        H=size,
                        B=16,
                        D=1,
                    )


def once(c, T):
    o = machine.Options(
        shared_races=False, global_races=False, uninitialised=False, store_buffer=False, last=0, sample=0, checked=1
    )
    r = cases.run(c | {"T": T}, o)
    m = audit.SESSION.last
    return m.totals(m.sample_counts), {k: Counter(v) for k, v in m.sampled.items()}, r, m


def step(c, first=3):
    a, am, _, _ = once(c, first)
    b, bm, r, m = once(c, first + 1)
    warps = m.nw
    ops = {k: (b[k] - a[k]) / warps for k in sorted(b) if b[k] - a[k]}
    mem = {}
    for key in bm:
        d = Counter(bm[key])
        d.subtract(am.get(key, Counter()))
        if any(d.values()):
            mem[f"{key[0]} {key[1]}"] = {k: v for k, v in d.items() if v}
    return ops, mem, m


def main():
    forms()
    asked = sys.argv[1:] or [""]
    names = [f for f in FORMS for a in asked if f == a or (a and f.startswith(a))] or [
        f for f in FORMS if not f.startswith(("all", "tf32", "ieee"))
    ]
    for name in names:
        c = FORMS[name]
        launch = cases.launch_of(c)
        ops, mem, m = step(c)
        shared = {
            k: sum(v.get(k, 0) for key, v in mem.items() if key.endswith(" shared")) for k in ("wavefronts", "least")
        }
        sectors = {key: v["sectors"] for key, v in mem.items() if "sectors" in v}
        print(
            json.dumps(
                {
                    "form": name,
                    "arch": arch,
                    "ctas": m.ctas,
                    "warps": m.nw,
                    "ptx_per_warp": {k: round(v, 1) for k, v in ops.items()},
                    "sass_per_warp_table": launch.instructions,
                    "barriers_table": launch.barriers,
                    "shared_wavefronts_cta": shared,
                    "shared": {k: v for k, v in mem.items() if k.endswith(" shared")},
                    "sectors_cta": sectors,
                    "l2_read_bytes_cta": 32 * sum(v for k, v in sectors.items() if k.startswith(("ld", "cp"))),
                    "stored_bytes_cta": sum(v["bytes"] for k, v in mem.items() if k.startswith("st ")),
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()

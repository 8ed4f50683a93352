"""The generated parts of ``docs/kernels.md``: the launches in ``tritongru/planning/tables``, and the
rows of compile times."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from bench.compile.compile_seconds import STAGES
from bench.compile.tables import PAGE
from bench.measure.rows import Row
from bench.pages.marks import Part, table
from tritongru.planning.launches import rows_of

COUNTS = ("shared_bytes", "registers", "instructions", "barriers", "tensor_core")
COLUMNS = {
    "resident": ("backend", "kernel", "kind", "hidden", "chunks", "num_warps", "stages", *COUNTS),
    "persistent": (
        *("kernel", "kind", "units", "block_b", "block_h", "num_warps", "k_split", "chunks", "pad", "exchange"),
        *COUNTS,
    ),
    "stepwise": (
        *("kernel", "kind", "block_b", "block_h", "block_k", "num_warps", "stages"),
        *("shared_bytes", "instructions", "barriers"),
    ),
}
SHARES = ("compiler in Python", "MLIR", "LLVM", "ptxas")


def launches(rows: Sequence[Row], family: str) -> str:
    """What the plan can take, as one Triton compiles it."""
    columns = COLUMNS[family]
    lines = []
    for row in rows_of(family):
        launch = row | row["readings"][PAGE]
        cells = {name: "-" if launch[name] is None else str(launch[name]) for name in columns}
        if "chunks" in cells:
            cells["chunks"] = " + ".join(map(str, launch["chunks"]))
        lines.append([cells[name] for name in columns])
    return f"As Triton {PAGE} compiles them.\n\n{table([name.replace('_', ' ') for name in columns], lines)}"


def compile_times(rows: Sequence[Row]) -> str:
    if not rows:
        return "There is no row yet."
    last = rows[-1]
    total = sum(row["seconds"] for row in rows)
    shares = (sum(row[key] for row in rows) / total for key in ("python_s", *STAGES))
    spent = ", ".join(f"{name} {100 * share:.0f} %" for name, share in zip(SHARES, shares, strict=True))
    about = (
        f"Seconds for {last['arch']}, one kernel after the other, with Triton {last['triton']} on a machine of "
        f"{last['cores']} cores ({last['cpu']}) that others use too; the least of {last['rounds']} rounds; commit "
        f"{last['commit']}, {last['date']}. Of all of it: {spent}."
    )
    lines = []
    for hidden, dtype in dict.fromkeys((row["hidden"], row["dtype"]) for row in rows):
        both = {row["kernel"]: row for row in rows if (row["hidden"], row["dtype"]) == (hidden, dtype)}
        cells = [f"{row['seconds']:.2f} ({row['family']})" for row in (both["forward"], both["backward"])]
        first, cached = (sum(row[key] for row in both.values()) for key in ("seconds", "cached_s"))
        tf32 = ", TF32" if dtype == "float32" else ""
        lines.append((str(hidden), f"{dtype}{tf32}", *cells, f"{first:.2f}", f"{cached:.4f}"))
    head = ("hidden size", "dtype", "forward", "backward", "a training step's first call", "the same from disk")
    return f"{about}\n\n{table(head, lines)}"


PARTS: dict[str, Part] = {
    "compile_times": compile_times,
    **{family: partial(launches, family=family) for family in COLUMNS},
}

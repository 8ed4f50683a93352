"""The generated parts of ``docs/kernels.md``, compile times, and of ``docs/data/launches.md``, the launches in
``tritongru/planning/tables``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from bench.compile.compile_seconds import STAGES
from bench.compile.tables import PAGE
from bench.measure.rows import Row
from bench.pages.marks import NOTHING, Part, folded, table
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
    found = table([name.replace("_", " ") for name in columns], lines, right=True)
    return folded(f"{len(lines)} configurations, as Triton {PAGE} compiles them", found)


def compile_times(rows: Sequence[Row]) -> str:
    if not rows:
        return NOTHING
    last = rows[-1]
    total = sum(row["seconds"] for row in rows)
    shares = (sum(row[key] for row in rows) / total for key in ("python_s", *STAGES))
    spent = ", ".join(f"{name} {100 * share:.0f} %" for name, share in zip(SHARES, shares, strict=True))
    about = (
        f"Seconds for {last['arch']}, one kernel after the other, Triton {last['triton']}, on a shared machine with "
        f"{last['cores']} cores ({last['cpu']}); the shortest of {last['rounds']} rounds; commit {last['commit']}, "
        f"{last['date']}. Share of the total: {spent}."
    )
    lines = []
    for hidden, dtype in dict.fromkeys((row["hidden"], row["dtype"]) for row in rows):
        both = {row["kernel"]: row for row in rows if (row["hidden"], row["dtype"]) == (hidden, dtype)}
        families = " and ".join(dict.fromkeys(both[kernel]["family"] for kernel in ("forward", "backward")))
        cells = [f"{both[kernel]['seconds']:.2f}" for kernel in ("forward", "backward")]
        first, cached = (sum(row[key] for row in both.values()) for key in ("seconds", "cached_s"))
        tf32 = ", TF32" if dtype == "float32" else ""
        lines.append((str(hidden), f"{dtype}{tf32}", families, *cells, f"{first:.2f}", f"{cached:.4f}"))
    head = ("hidden size", "dtype", "kernels", "forward", "backward", "both, compiled", "both, from disk")
    return f"{about}\n\n{table(head, lines)}"


PARTS: dict[str, Part] = {"compile_times": compile_times}
LAUNCHES: dict[str, Part] = {family: partial(launches, family=family) for family in COLUMNS}

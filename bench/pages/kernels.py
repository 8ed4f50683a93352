"""The generated parts of ``docs/kernels.md``, compile times, and of ``docs/data/launches.md``, the launches in
``tritongru/planning/tables`` and what the cost model predicts for each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from bench.compile.compile_seconds import STAGES
from bench.compile.readings import RAGGED
from bench.compile.tables import HOME, PAGE
from bench.compile.wavefronts import SIZES
from bench.measure.rows import Row
from bench.pages.marks import NOTHING, Part, folded, table
from tritongru.planning.candidates import fits, persistent_options, resident_cost, stepwise_cost
from tritongru.planning.cost_model import L2_LATENCY_US, STEP_LAUNCH_US, TERMS, Cost
from tritongru.planning.devices import GPUS
from tritongru.planning.launches import (
    BLOCK_B,
    SPARED,
    AnyLaunch,
    Launch,
    PersistentLaunch,
    StepwiseLaunch,
    launch_of,
    rows_of,
)

DEVICE = GPUS["h100"]  # of the predictions
STEPWISE_SIZE = 4096  # of the predictions for stepwise launches, which serve every size
RAGGED_COUNTS = ("ragged_registers", "ragged_stack")
COUNTS = ("shared_bytes", "registers", *RAGGED_COUNTS, "instructions", "barriers", "tensor_core", "wavefronts")
COLUMNS = {
    "resident": ("backend", "kernel", "kind", "hidden", "chunks", "num_warps", "stages", *COUNTS),
    "persistent": (
        *("kernel", "kind", "units", "block_b", "block_h", "num_warps", "k_split"),
        *("chunks", "pad", "span", "exchange", *COUNTS),
    ),
    "stepwise": (
        *("kernel", "kind", "block_b", "block_h", "block_k", "num_warps", "stages"),
        *("shared_bytes", *RAGGED_COUNTS, "instructions", "barriers"),
    ),
}
SHARES = ("compiler in Python", "MLIR", "LLVM", "ptxas")


def launches(rows: Sequence[Row], family: str) -> str:
    """What the plan can take, as one Triton compiles it."""
    columns = COLUMNS[family]
    lines = []
    for row in rows_of(family):
        launch = row | row["readings"][PAGE] | ragged(row)
        if "wavefronts" in columns:
            launch["wavefronts"] = launch_of(family, row, PAGE).wavefronts
        cells = {name: "-" if launch[name] is None else str(launch[name]) for name in columns}
        if "chunks" in cells:
            cells["chunks"] = " + ".join(map(str, launch["chunks"]))
        lines.append([cells[name] for name in columns])
    found = table([name.replace("_", " ") for name in columns], lines, right=True)
    return folded(f"{len(lines)} configurations, as Triton {PAGE} compiles them", f"{OF_RAGGED}\n\n{found}")


def ragged(row: Row) -> Row:
    """Registers and stack of the form for ragged rows."""
    reading = row["readings"][PAGE].get(RAGGED, {"registers": None, "stack": {}})
    return {"ragged_registers": reading["registers"], "ragged_stack": reading["stack"].get(HOME)}


OF_RAGGED = (
    '"ragged registers" and "ragged stack" (bytes) are those of the form for calls with lengths or resets, which is '
    f"compiled and read on its own; where its stack is larger than {SPARED}, such calls get another configuration. All "
    "else is of the form without."
)


def predicted(rows: Sequence[Row]) -> str:
    """The model's prediction for a step of each launch that the device may use, by its terms."""
    parts = [ABOUT]
    for family in COLUMNS:
        lines = []
        for row in rows_of(family):
            launch = launch_of(family, row, PAGE)
            if row["backend"] != DEVICE.backend or not fits(launch, DEVICE):
                continue
            size = row[SIZES[family]] if family in SIZES else STEPWISE_SIZE
            size, cost = largest(launch, row["kernel"], row["kind"], size)
            figures = (f"{us:.3f}" for us in (cost.us, *cost.terms.values()))
            lines.append((row["kernel"], row["kind"], str(size), form_of(launch), *figures))
        head = ("kernel", "kind", "size", "form", "predicted us", *TERMS)
        parts.append(folded(f"{family.capitalize()} family: {len(lines)} forms", table(head, lines, right=True)))
    return "\n\n".join(parts)


ABOUT = (
    f"What `tritongru/planning/cost_model.py` expects on an {DEVICE.name} ({DEVICE.arch}, {DEVICE.clock_mhz} MHz, "
    f"{DEVICE.multiprocessors} multiprocessors) with the readings of Triton {PAGE}: microseconds of one time step, for "
    "one direction and one batch tile. These are predictions, not measurements. "
    "A resident step takes the larger of `shared` and `issue`, plus `barriers`. "
    f"A persistent step takes `exchange` + {L2_LATENCY_US} us (the latency of L2) + `l2` + the largest of `tensor`, "
    "`shared` and `issue` + `barriers`. "
    f"A stepwise step takes the largest of `l2`, `tensor` and {STEP_LAUNCH_US:g} us (a launch), here with "
    f"H = {STEPWISE_SIZE}. "
    "Where wavefronts were not counted, `shared` is 0 for a resident form and estimated from the bytes for a "
    "persistent one."
)


def form_of(launch: AnyLaunch) -> str:
    if isinstance(launch, Launch):
        return f"{'+'.join(map(str, launch.chunks))}-{launch.num_warps}w-{launch.stages}s"
    return launch.name


def largest(launch: AnyLaunch, kernel: str, kind: str, size: int) -> tuple[int, Cost]:
    """The largest hidden size up to ``size`` at which all programs fit on the device, and a step of one batch tile."""
    if isinstance(launch, PersistentLaunch):
        for hidden in range(size, 0, -launch.block_h):
            if options := persistent_options(DEVICE, kernel, kind, hidden, launch.block_b, 1, (launch,)):
                return hidden, options[0][0]
    if isinstance(launch, StepwiseLaunch):
        return size, stepwise_cost(DEVICE, launch, kind, size, launch.block_b, 1)
    if isinstance(launch, Launch) and (cost := resident_cost(DEVICE, launch, BLOCK_B, 1)):
        return size, cost
    raise LookupError(f"no prediction for {kernel} {kind} {size} {form_of(launch)}")


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
LAUNCHES: dict[str, Part] = {family: partial(launches, family=family) for family in COLUMNS} | {"predicted": predicted}

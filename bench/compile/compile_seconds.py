"""Compile time in the first call: seconds that Triton takes for a layer's two kernels, without a GPU.

Each kernel is compiled with an empty disk cache, then loaded from it; the least of a few such rounds counts, because
other load on the machine only makes it slower. Not included: a process's one-off costs (imports, Triton's hash of its
own files), and loading the machine code onto a GPU.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.compile import persistent, resident, stepwise
from bench.measure.rows import Row, cpu_name, facts, file_name
from tritongru.planning.devices import GPUS
from tritongru.planning.launches import Launch, PersistentLaunch
from tritongru.planning.plan import Pass, plan

ROWS = Path(__file__).parents[1] / "results" / "compile"
GPU, BATCH, ROUNDS = "h200", 16, 3
CASES = ((128, "bfloat16"), (128, "float32"), *((h, d) for h in (512, 768, 1024) for d in ("bfloat16", "float32")))
CASES += ((4096, "bfloat16"),)
STAGES = {"mlir_s": ("ttir", "ttgir"), "llvm_s": ("llir", "ptx"), "ptxas_s": ("cubin",)}


def compile_pass(kernel: str, found: Pass, hidden: int, dtype: str, arch: str) -> None:
    """A forward pass that saves its gates, or a backward pass, as launched by a training step with an initial state."""
    launch = found.launch
    if isinstance(launch, Launch):
        resident.compile_kernel(kernel, hidden, dtype, launch, arch)
    elif isinstance(launch, PersistentLaunch):
        persistent.compile_launch(launch, hidden, dtype, arch)
    else:
        stepwise.compile_launch(kernel, launch, hidden, dtype, arch)


def timed(compile_: Callable[[], None]) -> Row:
    """Seconds of a compilation and its parts, and of loading from the disk cache; the least of a few."""
    from triton import knobs

    taken: list[tuple[bool, Any]] = []
    before = knobs.cache.dir, knobs.compilation.listener
    knobs.compilation.listener = lambda *, times, cache_hit, **_: taken.append((cache_hit, times))
    try:
        for _ in range(ROUNDS):
            with tempfile.TemporaryDirectory() as folder:
                knobs.cache.dir = folder
                compile_()
                compile_()
    finally:
        knobs.cache.dir, knobs.compilation.listener = before
    if [hit for hit, _ in taken] != [False, True] * ROUNDS:
        raise RuntimeError(f"expected to compile and to load from disk in turn, got {[hit for hit, _ in taken]}")
    cold = min((times for hit, times in taken if not hit), key=lambda times: times.total)
    parts = {name: sum(us for stage, us in cold.lowering_stages if stage in some) for name, some in STAGES.items()}
    found = min(times.total for hit, times in taken if hit)
    numbers = {"seconds": cold.total, "python_s": cold.ir_initialization, **parts, "cached_s": found}
    return {name: round(us / 1e6, 3 if name != "cached_s" else 6) for name, us in numbers.items()}


def measure() -> None:
    device = GPUS[GPU]
    where = {key: value for key, value in facts(None).items() if key in ("torch", "triton", "commit", "date")}
    where |= {"cpu": cpu_name(), "cores": os.cpu_count(), "python": platform.python_version(), "rounds": ROUNDS}
    path = ROWS / file_name("compile", None, where["date"])
    path.parent.mkdir(exist_ok=True)
    for i, (hidden, dtype) in enumerate(CASES):
        answer = plan(hidden, dtype, device, batch=BATCH, impl="triton")
        for kernel, found in (("forward", answer.forward), ("backward", answer.backward)):
            if found is None:
                sys.exit(f"no kernel for {dtype}, hidden size {hidden}: {answer.reason}")
            compile_ = functools.partial(compile_pass, kernel, found, hidden, dtype, device.arch)
            if i == 0 and kernel == "forward":
                compile_()  # the one-off costs
            about = {"hidden": hidden, "batch": BATCH, "dtype": dtype, "kernel": kernel, "family": found.family}
            row = about | {"arch": device.arch} | timed(compile_) | where
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{found.family} {kernel}, H={hidden} {dtype}: {row['seconds']:.2f} s", file=sys.stderr, flush=True)


def read(folder: Path) -> list[Row]:
    """The last row of each case and kernel in the newest file."""
    files = sorted(folder.glob("compile-*.jsonl"))
    rows = [json.loads(line) for line in files[-1].read_text().splitlines()] if files else []
    return list({(row["hidden"], row["dtype"], row["kernel"]): row for row in rows}.values())

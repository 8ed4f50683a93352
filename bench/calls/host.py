"""The host's part of a call: on a GPU as it is, on a CPU with the device's work removed.

``python -m bench.calls.host HIDDEN [--gpu]`` prints the samples of one layer as JSON. It needs its own process: on a
CPU, kernels, products and zero-filling are replaced, and TRITON_INTERPRET=1 makes the CPU stand in for a GPU. Their
results are still allocated; the time in Triton's and torch's launchers is left out.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Collection
from typing import Any

from bench.measure.cases import Case
from bench.measure.children import Failed, json_of
from bench.measure.pair import OURS
from bench.measure.rows import Row, RowFile, row
from bench.measure.timing import spread

HIDDEN = {"resident": 64, "persistent": 768}
LIMITS_US = {"forward": 60.0, "backward": 100.0}  # until the time loop's kernel starts; the rest overlaps with it
LIMIT_S = 1200.0  # for a family, which takes ten seconds; the limit only ends what hangs
GPU_LIMIT_S = 25.0  # of a family on a GPU: torch's start, compiling three kernels, 20 blocks of 100 calls
ROUNDS, BLOCKS, PAUSE_S = 100, 20, 0.1  # calls in a block, and the time between blocks
# Keep freed memory, as a GPU's allocator does; otherwise each workspace would come page by page from the system.
KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}

started: list[float] = []  # when kernels were launched


class _NoKernel:
    """Stands in for a kernel: any grid, any arguments, does nothing."""

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return _no_launch


def _no_launch(*args: object, **kwargs: object) -> None:
    started.append(time.perf_counter())


def without_launches() -> None:
    from tritongru.kernels import interpreter_threads, rebuild
    from tritongru.kernels.persistent import launch as persistent
    from tritongru.kernels.resident import launch as resident
    from tritongru.kernels.stepwise import launch as stepwise

    for module in (persistent, rebuild, resident, stepwise):
        for name in vars(module):
            if name.endswith("_kernel"):
                setattr(module, name, _NoKernel())
    interpreter_threads.launch = _no_launch


def without_products_and_zeros() -> None:
    import torch

    def product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        return a.new_empty((a.shape[0], b.shape[1])) if out is None else out

    replaced: dict[str, Any] = {"mm": product, "addmm": lambda c, a, b: product(a, b), "zeros": torch.empty}
    of_tensor: dict[str, Any] = {"__matmul__": product, "addmm_": lambda c, a, b: c}
    for module, names in ((torch, replaced), (torch.Tensor, of_tensor)):
        for name, function in names.items():
            setattr(module, name, function)


def samples(hidden: int) -> dict[str, list[float]]:
    """Microseconds of a forward pass without gradients and of the backward pass of a training step, each until the time
    loop's kernel starts and (``-whole``) until the call returns. The quietest of several blocks of calls counts: other
    load can only add time, for seconds on end, which is why timeit's manual recommends the minimum."""
    import torch

    import tritongru

    torch.set_num_threads(1)
    without_launches()
    gru = tritongru.GRU(8, hidden, impl="triton", memory="save")
    x, hx, dy = torch.ones(2, 1, 8), torch.ones(1, 1, hidden), torch.ones(2, 1, hidden)
    gru(x, hx)  # made once for all calls: the plan, and the kernels' report word, which must be zero
    without_products_and_zeros()

    def timed(call: Callable[[], object]) -> tuple[float, float]:
        started.clear()
        start = time.perf_counter()
        call()
        end = time.perf_counter()
        (kernel,) = started
        return 1e6 * (kernel - start), 1e6 * (end - start)

    def forward() -> tuple[float, float]:
        with torch.no_grad():
            return timed(lambda: gru(x, hx))

    def backward() -> tuple[float, float]:
        gru.zero_grad()
        y, _ = gru(x, hx)
        return timed(lambda: y.backward(dy))

    found: dict[str, list[float]] = {}
    for name, call in (("forward", forward), ("backward", backward)):
        blocks = []
        for _ in range(BLOCKS):
            time.sleep(PAUSE_S)
            blocks.append([list(part) for part in zip(*(call() for _ in range(ROUNDS)), strict=True)])
        found[name], found[f"{name}-whole"] = min(blocks, key=lambda block: statistics.median(block[1]))
    return found


def measured(hidden: int) -> dict[str, list[float]]:
    """``samples`` from a fresh process."""
    found: dict[str, list[float]] = json_of(
        "bench.calls.host", str(hidden), limit_s=LIMIT_S, TRITON_INTERPRET="1", **KEPT_MEMORY
    )
    return found


def row_of(family: str, name: str, us: list[float], where: Row) -> Row:
    """A row about the host's part of one call."""
    case = Case(HIDDEN[family], 1, 2, "fp32", "forward" if name.startswith("forward") else "train", inputs=8)
    times: dict[str, Any] = {"ms": statistics.median(us) / 1000, "spread": spread(us), "rounds": len(us)}
    about = row(case, OURS, where, family=family, parity=None, **times)
    return about | {"case": f"host-{family}-{name}", "us_per_step": None}


def on_device(hidden: int) -> dict[str, list[float]]:
    """Microseconds until a call on an idle GPU returns: with the launches, without their work."""
    import torch

    import tritongru

    gru = tritongru.GRU(8, hidden, impl="triton", memory="save", device="cuda")
    x, hx, dy = (torch.ones(*shape, device="cuda") for shape in ((2, 1, 8), (1, 1, hidden), (2, 1, hidden)))

    def timed(call: Callable[[], object]) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        return 1e6 * (time.perf_counter() - start)

    def forward() -> float:
        with torch.no_grad():
            return timed(lambda: gru(x, hx))

    def backward() -> float:
        gru.zero_grad()
        y, _ = gru(x, hx)
        return timed(lambda: y.backward(dy))

    found = {}
    for name, call in (("forward-whole", forward), ("backward-whole", backward)):
        for _ in range(ROUNDS):
            call()
        found[name] = [call() for _ in range(BLOCKS * ROUNDS)]
    return found


def names_of(family: str) -> list[str]:
    """Names of the rows made on a GPU."""
    return [f"host-{family}-{direction}-whole" for direction in LIMITS_US]


NAMES = [name for family in HIDDEN for name in names_of(family)]


def on_gpu(file: RowFile, where: Row, limit_s: float, known: Collection[str] = ()) -> dict[str, float]:
    """Rows of each family without known rows, each from a fresh process; returns the medians in microseconds by row
    name. Takes at most ``limit_s``."""
    medians, end = {}, time.monotonic() + limit_s
    for family, hidden in HIDDEN.items():
        if set(names_of(family)) <= set(known):
            continue
        most_s = max(0.0, min(GPU_LIMIT_S, end - time.monotonic()))
        try:
            found = json_of("bench.calls.host", str(hidden), "--gpu", limit_s=most_s)
        except Failed as failed:
            print(f"Host, {family}: {failed}", flush=True)
            continue
        for name, us in found.items():
            one = row_of(family, name, us, where)
            file.append(one)
            medians[one["case"]] = statistics.median(us)
            direction = name.removesuffix("-whole")
            print(f"Host, {family} {direction}: {medians[one['case']]:.1f} us until the call returns.", flush=True)
    return medians


def main(arguments: list[str]) -> int:
    hidden, *gpu = arguments
    print(json.dumps(on_device(int(hidden)) if gpu else samples(int(hidden))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

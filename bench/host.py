"""What a call costs on the host: measured on a CPU with kernels and products replaced by nothing.

``python -m bench.host HIDDEN`` prints the samples of one layer as JSON. It has to be a process of its own, because
kernels and products are replaced and TRITON_INTERPRET=1 makes the CPU stand in for a GPU. What a product returns is
still allocated; what Triton's own launcher and torch's dispatch of a product take is left out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

HIDDEN = {"resident": 128, "persistent": 768}
LIMITS_US = {"forward": 60.0, "backward": 100.0}  # until the time loop's kernel starts; the rest runs beside it
ROUNDS = 400

started: list[float] = []  # when kernels were launched


class _NoKernel:
    """Takes a kernel's place: any grid, any arguments, nothing happens."""

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return _no_launch


def _no_launch(*args: object, **kwargs: object) -> None:
    started.append(time.perf_counter())


def without_launches() -> None:
    from tritongru.kernels import persistent, rebuild, resident, stepwise, together

    for room in (persistent, rebuild, resident, stepwise):
        for name in vars(room):
            if name.endswith("_kernel"):
                setattr(room, name, _NoKernel())
    together.launch = _no_launch


def without_products() -> None:
    import torch

    def product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        return a.new_empty((a.shape[0], b.shape[1])) if out is None else out

    replaced: dict[str, Any] = {"mm": product, "addmm": lambda c, a, b: product(a, b)}
    of_tensor: dict[str, Any] = {"__matmul__": product, "addmm_": lambda c, a, b: c}
    for room, names in ((torch, replaced), (torch.Tensor, of_tensor)):
        for name, function in names.items():
            setattr(room, name, function)


def samples(hidden: int) -> dict[str, list[float]]:
    """Microseconds of a forward without gradients and of the backward of a training step, each until the kernel of the
    time loop starts and (``-whole``) until the call returns."""
    import torch

    import tritongru

    torch.set_num_threads(1)
    without_launches()
    without_products()
    gru = tritongru.GRU(8, hidden, impl="triton", memory="save")
    x, hx = torch.zeros(2, 1, 8), torch.zeros(1, 1, hidden)
    dy = torch.zeros(2, 1, hidden)

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
        for _ in range(ROUNDS // 8):
            call()
        both = [call() for _ in range(ROUNDS)]
        found[name], found[f"{name}-whole"] = [list(part) for part in zip(*both, strict=True)]
    return found


def measured(hidden: int) -> dict[str, list[float]]:
    """``samples`` of a fresh process."""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "bench.host", str(hidden)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: dict[str, list[float]] = json.loads(done.stdout)
    return found


def main(arguments: list[str]) -> int:
    print(json.dumps(samples(int(arguments[0]))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What needs a fresh process to measure: the CPU loop's first call, and the peak memory of a training step.

``python -m bench.calls.cpu.fresh first`` and ``... peak ours|theirs`` print it as JSON.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.measure.cases import Case
from bench.measure.children import Failed, json_of
from bench.measure.cpu.rows import made_with, ours
from bench.measure.pair import OURS, THEIRS
from bench.measure.rows import Row, number, row

FIRST = Case(128, 16, 100, "fp32", "train")
PEAK = Case(256, 64, 400, "fp32", "train")
COLD, CACHED = "cold", "cached"
LIMIT_S = 60.0  # of a process, torch's import included
FIRST_NAMES = [f"first-{way}-{state}" for state in (COLD, CACHED) for way in ("forward", "backward")]
PEAK_NAME = f"peak-{PEAK.name}"
Append = Callable[[Row], None]


def first() -> dict[str, float]:
    """Seconds of the first forward and backward pass of a training step."""
    import torch

    import tritongru

    gru = tritongru.GRU(FIRST.width, FIRST.hidden, impl="llvm")
    x = torch.randn(FIRST.time, FIRST.batch, FIRST.width)
    start = time.perf_counter()
    y, _ = gru(x)
    forward = time.perf_counter() - start
    dy = torch.ones_like(y)
    start = time.perf_counter()
    y.backward(dy)
    return {"forward": forward, "backward": time.perf_counter() - start}


def most_memory() -> float:
    """Peak MiB of this process. `getrusage` would start with the parent's peak."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if not found:
        raise OSError("this system does not report the peak memory of a process")
    return int(found[1]) / 1024


def peak(which: str) -> float:
    """MiB by which the peak memory of the process grows in a training step, after inputs, weights and a small step: all
    that a step needs, whoever allocates it."""
    import torch

    import tritongru

    sizes = PEAK.width, PEAK.hidden
    layer = tritongru.GRU(*sizes, impl="llvm") if which == OURS else torch.nn.GRU(*sizes)
    x, dy = torch.randn(2, PEAK.time, PEAK.batch, PEAK.width).unbind()
    x.requires_grad_()
    small = torch.randn(2, 2, PEAK.width, requires_grad=True)
    layer(small)[0].sum().backward()
    layer.zero_grad()
    before = most_memory()
    layer(x)[0].backward(dy)
    return most_memory() - before


def measured_first(append: Append, where: Row, isa: str, threads: int) -> None:
    """Rows of a process with an empty cache of compiled code, and of a second one with the cache of the first."""
    with tempfile.TemporaryDirectory() as folder:
        for state in (COLD, CACHED):
            try:
                found = json_of("bench.calls.cpu.fresh", "first", limit_s=LIMIT_S, XDG_CACHE_HOME=folder)
            except Failed as failed:
                print(f"First call, {state}: {failed}", flush=True)
                return
            for way, seconds in found.items():
                one = row(FIRST, ours(isa), where, family="llvm", parity=None, ms=1000 * seconds, rounds=1)
                one |= made_with(threads, None) | {"clock": "wall", "isa": isa}
                append(one | {"case": f"first-{way}-{state}", "us_per_step": None})
                print(f"First {way}, {state}: {seconds:.2f} s.", flush=True)


def measured_peaks(append: Append, where: Row, isa: str, threads: int) -> None:
    """Rows of ours and of nn.GRU, each from its own process."""
    mib = {}
    for which in (OURS, THEIRS):
        try:
            mib[which] = json_of("bench.calls.cpu.fresh", "peak", which, limit_s=LIMIT_S)
        except Failed as failed:
            print(f"Memory of a training step, {which}: {failed}", flush=True)
            return
    for which, impl, set_of in ((OURS, ours(isa), isa), (THEIRS, THEIRS, None)):
        one = row(PEAK, impl, where, family="llvm" if set_of else "torch", parity=None, peak_mib=number(mib[which]))
        append(one | made_with(threads, None) | {"clock": None, "case": PEAK_NAME, "isa": set_of})
    print(f"Memory of a training step: {mib[OURS]:.0f} MiB, nn.GRU {mib[THEIRS]:.0f} MiB.", flush=True)


def main(arguments: list[str]) -> int:
    print(json.dumps(first() if arguments[0] == "first" else peak(arguments[1])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

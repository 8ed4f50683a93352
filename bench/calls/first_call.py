"""The cost of the first call of a process with an empty kernel cache on a GPU, when Triton compiles.

``python -m bench.calls.first_call HIDDEN DTYPE`` prints, as JSON, the seconds of the first forward and backward pass.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Collection

from bench.measure.cases import HEADLINE, Case
from bench.measure.children import Failed, json_of
from bench.measure.pair import DTYPES, OURS
from bench.measure.rows import Row, RowFile, row

CASES = (  # one of each family that keeps W_hh on chip
    Case(HEADLINE.hidden, HEADLINE.batch, HEADLINE.time, HEADLINE.dtype, "train"),
    Case(128, 16, 512, "fp32", "train", tf32=True),
)
LIMIT_S = 10.0
START_S = 15.0  # for torch to start on a GPU
GPU_LIMIT_S = START_S + 2 * LIMIT_S  # of a case: its first forward and backward pass


def seconds(hidden: int, dtype: str) -> dict[str, float]:
    """By the host's clock, until the device has finished; torch's own one-off set-up comes before."""
    import torch

    import tritongru

    case = next(case for case in CASES if (case.hidden, case.dtype) == (hidden, dtype))
    gru = tritongru.GRU(hidden, hidden, device="cuda", dtype=DTYPES[dtype])
    x = torch.randn(case.time, case.batch, hidden, device="cuda", dtype=DTYPES[dtype], requires_grad=True)
    torch.autograd.grad(torch.nn.functional.linear(x, torch.ones_like(gru.all_weights[0][0])).sum(), x)
    torch.cuda.synchronize()
    found = {}
    start = time.perf_counter()
    y, _ = gru(x)
    torch.cuda.synchronize()
    found["forward"] = time.perf_counter() - start
    start = time.perf_counter()
    y.backward(torch.ones_like(y))
    torch.cuda.synchronize()
    found["backward"] = time.perf_counter() - start
    return found


def row_of(case: Case, name: str, taken: float, where: Row) -> Row:
    about = row(case, OURS, where, family=None, parity=None, ms=1000 * taken, rounds=1)
    return about | {"case": name_of(case, name), "us_per_step": None}


def name_of(case: Case, name: str) -> str:
    return f"first-{name}-h{case.hidden}-{case.dtype}"


def names_of(case: Case) -> list[str]:
    return [name_of(case, name) for name in ("forward", "backward")]


NAMES = [name for case in CASES for name in names_of(case)]


def on_gpu(file: RowFile, where: Row, limit_s: float, known: Collection[str] = ()) -> dict[str, float]:
    """Rows of each case without known rows, each from a fresh process with its own cache; returns the seconds by row
    name. Takes at most ``limit_s``."""
    seconds, end = {}, time.monotonic() + limit_s
    for case in CASES:
        if set(names_of(case)) <= set(known):
            continue
        most_s = max(0.0, min(GPU_LIMIT_S, end - time.monotonic()))
        with tempfile.TemporaryDirectory() as folder:
            sizes = str(case.hidden), case.dtype
            try:
                found = json_of("bench.calls.first_call", *sizes, limit_s=most_s, TRITON_CACHE_DIR=folder)
            except Failed as failed:
                print(f"First call, H={case.hidden} {case.dtype}: {failed}", flush=True)
                continue
        for name, taken in found.items():
            one = row_of(case, name, taken, where)
            file.append(one)
            seconds[one["case"]] = taken
            print(f"First {name}, H={case.hidden} {case.dtype}: {taken:.1f} s ({LIMIT_S:.0f} allowed).", flush=True)
    return seconds


def main(arguments: list[str]) -> int:
    print(json.dumps(seconds(int(arguments[0]), arguments[1])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

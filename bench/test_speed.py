"""`pytest bench`: both implementations side by side, in the format of pytest-benchmark.

These are times by the host's clock, to the end of the work on the device. For times of the device alone, see the gate.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from bench.cases import Case
from bench.pair import OURS, THEIRS, build, steps_of

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPES = {"tiny": (8, 1, 1), "small": (64, 16, 64), "wide": (128, 64, 64)}  # H, B, T


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """On a CPU that is shared, threads that wait for each other turn milliseconds into seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.benchmark(max_time=0.5)
@pytest.mark.parametrize("impl", [OURS, THEIRS])
@pytest.mark.parametrize("mode", ["forward", "train"])
@pytest.mark.parametrize("shape", SHAPES)
def test_speed(benchmark: Any, shape: str, mode: str, impl: str) -> None:
    hidden, batch, time = SHAPES[shape]
    case = Case(hidden, batch, time, "fp32", mode)
    benchmark.group = case.name
    step = steps_of(build(case, "auto", DEVICE), case, DEVICE)[impl]

    def call() -> None:
        step()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    call()  # compilation and first allocations
    benchmark(call)

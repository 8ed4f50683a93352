"""`pytest bench --benchmark-only`: both implementations side by side, in the format of pytest-benchmark.

Times are by the host's clock, until the device has finished. For device times alone, see the gate.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from bench.measure.cases import Case
from bench.measure.ceilings import operations
from bench.measure.cpu import cells
from bench.measure.pair import OURS, THEIRS, build, steps_of
from bench.measure.parity import tf32
from bench.session.examine import here
from bench.suites import CPU_CASES, on_cpu, workloads

DEVICE = here()
# On a GPU the real workloads in their own precision; on a CPU those that take it less than a second.
NAMED = [case for case, _ in (workloads() if DEVICE.type == "cuda" else on_cpu("workloads"))]
SMALL = 1e8  # operations of a call that takes a CPU less than a tenth of a second
ON_CPU = [] if DEVICE.type == "cuda" else [cell.case for cell in cells.workloads() if operations(cell.case) < SMALL]
CASES = list(dict.fromkeys((*CPU_CASES, *(case for case in NAMED if case.label), *ON_CPU)))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """On a shared CPU, threads waiting for each other can turn milliseconds into seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.benchmark(max_time=0.5)
@pytest.mark.parametrize("impl", [OURS, THEIRS])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_speed(benchmark: Any, case: Case, impl: str) -> None:
    benchmark.group = case.name
    with tf32(case.tf32):
        measure(benchmark, case, impl)


def measure(benchmark: Any, case: Case, impl: str) -> None:
    both = build(case, "auto", DEVICE)
    benchmark.extra_info["family"] = both.plan.family
    step = steps_of(both, case, DEVICE)[impl]

    def call() -> None:
        step()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    call()  # compilation and first allocations
    benchmark(call)

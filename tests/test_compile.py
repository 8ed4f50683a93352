"""The compile matrix: every row that the plan picks, for every chip, without a GPU."""

import importlib.metadata
import json

import pytest
from processes import python

from tritongru.devices import GPUS

ARCHS = ["sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "gfx942", "gfx950"]
TABLE_MADE_WITH = "3.7.1"  # Triton whose counts stand in the tables


def most_loads(kernel, row, name):
    """Global loads of a turn of the longest loop, by each thread.

    resident: the inputs of a step. persistent: the tile by sixteen bytes, and of each own value the inputs, of which
    the backward has more (five or six loads were seen, and a few of offsets). stepwise: a block of the operands, by
    sixteen bytes where rows are aligned, and a few to count what is under way."""
    planned = row["plan"]
    family, _, direction = kernel.rpartition("-")
    threads = 32 * planned["num_warps"]
    if family == "persistent":
        gates, inputs, more = (3, 6, 8) if direction == "backward" else (1, 4, 16)
        tile = gates * planned["block_b"] * planned["units"] * planned["bits"] // 8
        own = max(1, planned["block_b"] * planned["block_h"] // threads)
        return tile // threads // 16 + inputs * own + more
    if family == "stepwise":
        gates = 3 if direction == "forward" else 1
        values = (planned["block_b"] + gates * planned["block_h"]) * planned["block_k"] / threads
        wide = values * (2 if row["kind"] == "16-bit" else 4) / 16
        return (2 * wide if name == "plain" else values) + 6
    return 40 * len(planned["chunks"])


DIRECTIONS = ("forward", "backward")
KERNELS = [(arch, kernel) for arch in ARCHS for kernel in DIRECTIONS]
KERNELS += [(arch, f"persistent-{name}") for arch in ARCHS[:5] for name in DIRECTIONS]
# The stepwise table says itself where a row spills, so that one kernel for each chip is enough.
KERNELS += [("sm_90", "stepwise-forward"), ("sm_90", "stepwise-backward"), ("sm_80", "stepwise-backward")]


@pytest.mark.parametrize("arch, kernel", KERNELS)
def test_every_row_compiles(arch, kernel):
    done = python("-m", "bench.compile", "check", arch, kernel)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["kind"] for row in rows} == {"16-bit", "tf32", "ieee"}
    rows = [row for row in rows if arch not in row["plan"]["spills_on"]]
    limit = min(gpu.shared_bytes for gpu in GPUS.values() if gpu.family == arch)
    same_triton = importlib.metadata.version("triton") == TABLE_MADE_WITH
    for row in rows:
        planned = row["plan"]
        assert row["found"]
        for name, found in row["found"].items():
            assert found["stack"] == 0, (name, row)
            assert found["shared_bytes"] <= planned["shared_bytes"] <= limit, (name, row)
            if arch.startswith("sm_"):
                assert found["registers"] * 32 * planned["num_warps"] <= 65536, (name, row)
                assert found["tensor_core"] > 0, (name, row)
                assert found["loads"] <= most_loads(kernel, row, name), ("W_hh is read again every step", name, row)
        if arch == "sm_90" and same_triton:
            found = row["found"]["plain"]
            assert found["instructions"] <= 1.02 * planned["instructions"], row
            assert found["barriers"] <= planned["barriers"], row

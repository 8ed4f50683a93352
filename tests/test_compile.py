"""The compile matrix: every row that the plan picks, for every chip, without a GPU."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tritongru.devices import GPUS

ROOT = Path(__file__).parents[1]
ARCHS = ["sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "gfx942", "gfx950"]
TABLE_MADE_WITH = "3.7.1"  # Triton whose counts stand in the tables


def most_loads(planned):
    """Global loads of a step and thread: the inputs, and for a persistent kernel the tile by sixteen bytes."""
    if "block_h" not in planned:
        return 40 * len(planned["chunks"])
    threads = 32 * planned["num_warps"]
    tile = planned["block_b"] * planned["units"] * planned["bits"] // 8
    own = max(1, planned["block_b"] * planned["block_h"] // threads)
    return tile // threads // 16 + 4 * own + 16


KERNELS = [(arch, kernel) for arch in ARCHS for kernel in ("forward", "backward", "persistent")]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("arch, kernel", [pair for pair in KERNELS if pair[0][:2] == "sm" or pair[1] != "persistent"])
def test_every_row_compiles(arch, kernel):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.compile", "check", arch, kernel]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["kind"] for row in rows} == {"16-bit", "tf32", "ieee"}
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
                assert found["loads"] <= most_loads(planned), ("W_hh is read again every step", name, row)
        if arch == "sm_90" and same_triton:
            assert row["found"]["plain"]["instructions"] <= 1.02 * planned["instructions"], row
            assert row["found"]["plain"]["barriers"] <= planned["barriers"], row

"""The compile matrix: a part of the rows that the plan takes, for every chip, as the installed Triton compiles them."""

import json

import pytest
from processes import python

from bench.compile.readings import RAGGED, RAGGED_FORMS
from tritongru.planning import triton_versions
from tritongru.planning.candidates import fits
from tritongru.planning.devices import GPUS
from tritongru.planning.launches import SPARED, launch_of, rows_of, tritons_read

ARCHS = ["sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "gfx942", "gfx950"]
VERSION = triton_versions.installed()


def most_loads(family, row):
    """Global loads of a turn of the longest loop, by each thread, of a plain form.

    resident: the inputs of a step. persistent: the tile by sixteen bytes, and of each own value the inputs, of which
    the backward has more (five or six loads were seen, and a few of offsets). stepwise: a block of the operands, by
    sixteen bytes, up to four times as often where Triton 3.8 and later divide them, and up to ten to count what is
    under way."""
    if family == "resident":
        return 40 * len(row["chunks"])
    backward = row["kernel"] == "backward"
    threads, size = 32 * row["num_warps"], 2 if row["kind"] == "16-bit" else 4
    if family == "stepwise":
        columns = row["block_h"] * (1 if backward else 3)
        return 4 * (row["block_b"] + columns) * row["block_k"] * size / threads / 16 + 10
    gates, inputs, more = (3, 6, 8) if backward else (1, 4, 16)
    own = max(1, row["block_b"] * row["block_h"] // threads)
    return gates * row["block_b"] * row["units"] * size // threads // 16 + inputs * own + more


DIRECTIONS = ("forward", "backward")
KERNELS = [(arch, kernel) for arch in ARCHS for kernel in DIRECTIONS]
KERNELS += [(arch, f"persistent-{name}") for arch in ARCHS[:5] for name in DIRECTIONS]
# One kernel more for each chip is enough of the few rows of the stepwise table.
KERNELS += [("sm_90", "stepwise-forward"), ("sm_90", "stepwise-backward"), ("sm_80", "stepwise-backward")]

OFTEN = {(arch, kernel) for arch, kernel in KERNELS if arch in ("sm_90", "gfx942")}
OFTEN |= {
    ("sm_80", "backward"),
    ("sm_80", "persistent-forward"),
    ("sm_100", "persistent-backward"),
    ("gfx950", "forward"),
}


@pytest.mark.parametrize(
    "arch, kernel",
    [pytest.param(*one, marks=pytest.mark.slow if one in OFTEN else pytest.mark.rare) for one in KERNELS],
)
def test_a_row_compiles_as_it_was_read(arch, kernel):
    family = kernel.rpartition("-")[0] or "resident"
    if not any(arch in row["readings"].get(VERSION, {"stack": ()})["stack"] for row in rows_of(family)):
        read = ", ".join(tritons_read())
        pytest.skip(f"the tables hold readings of Triton {read}, of {VERSION} none for {arch}")
    done = python("-m", "bench.compile", "check", arch, kernel)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["row"]["kind"] for line in lines} == {"16-bit", "tf32", "ieee"}
    most = max(gpu.shared_bytes for gpu in GPUS.values() if gpu.family == arch)
    for line in lines:
        row = line["row"]
        assert line["found"]
        for name, found in line["found"].items():
            ragged, reading = name in RAGGED_FORMS, row["readings"][VERSION]
            reading = reading[RAGGED] if ragged else reading
            launch = launch_of(line["family"], row, VERSION, ragged)
            offered = any(fits(launch, gpu) for gpu in GPUS.values() if gpu.family == arch)
            assert found["stack"] <= reading["stack"][arch], (name, line)
            assert found["shared_bytes"] <= reading["shared_bytes"], (name, line)
            assert set(found["faults"]) <= set(reading["faults"]), (name, line)
            if offered:
                assert found["stack"] <= (SPARED if ragged else 0), (name, line)
                assert found["shared_bytes"] <= most, (name, line)
            if arch.startswith("sm_"):
                assert found["registers"] * 32 * row["num_warps"] <= 65536, (name, line)
            if arch == "sm_90":
                assert found["registers"] <= reading["registers"], (name, line)
            if found["instructions"] is not None:
                assert name == "plain"
                assert found["instructions"] <= 1.02 * reading["instructions"], line
                assert found["barriers"] <= reading["barriers"], line
                assert found["tensor_core"] > 0, line


@pytest.mark.parametrize("version", tritons_read())
@pytest.mark.parametrize("family", ["resident", "persistent", "stepwise"])
def test_no_form_reads_w_hh_again_at_every_step(family, version):
    """By the readings. A stepwise kernel does so by design, but by wide loads."""
    for row in (row for row in rows_of(family) if row["backend"] == "cuda"):
        reading = row["readings"][version]
        if not reading["stack"]["sm_90"]:
            assert reading["loads"] <= most_loads(family, row), (version, row)

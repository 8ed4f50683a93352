"""A sample of the launch forms, compiled for sm_90 and run in the PTX machine: parity, races, bounds, deadlock.

Everything is run by ``python tests/ptx/audit.py LIST``, list by list; with ``--out FILE`` the same command goes on.
"""

import json
from pathlib import Path

import pytest
from processes import python

AUDIT = Path(__file__).with_name("audit.py")
KNOWN = ((3, 6), (3, 7), (3, 8), (3, 9))  # Tritons whose PTX the machine has run
# List -> the part of it that a test run takes, and the largest hidden size.
SAMPLE = {
    "resident": ("1/28", 256),
    "stepwise": ("1/18", 512),
    "extra": ("1/22", 256),
    "persistent": ("1/38", 512),
    "persistent-other": ("0/32", 256),
}


@pytest.fixture(autouse=True)
def known_triton():
    import triton

    version = tuple(map(int, triton.__version__.split(".")[:2]))
    if version not in KNOWN:
        pytest.skip(f"the machine has not run what Triton {triton.__version__} compiles")


def audit(arguments, cache, out):
    done = python(str(AUDIT), *arguments, "--out", str(out), TRITON_CACHE_DIR=str(cache))
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_runs_clean(name, tmp_path):
    part, largest = SAMPLE[name]
    rows = audit([name, "--part", part, "--largest", str(largest)], tmp_path, tmp_path / "rows.jsonl")
    assert len(rows) > 1
    for row in rows:
        assert row.get("worst", 2) <= 1, row
        assert not row["reports"], row


FAULT = """
import sys
sys.path.insert(0, {folder!r})
import audit
audit.WORD = audit.install(90)
import cases, machine
case = dict(family="persistent", kernel="forward", kind="16-bit", size=256, row=0, dtype="bf16", H=64, T=3, B=16)
found = cases.run(case, machine.Options(absent={absent}))
print(sum(found["reports"].values()), found["worst"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("absent", [(), (1,)])
def test_a_program_that_never_runs_is_reported(absent, tmp_path):
    code = FAULT.format(folder=str(AUDIT.parent), absent=absent)
    done = python("-c", code, TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    reports, worst = done.stdout.split()[-2:]
    assert (int(reports) > 0 or float(worst) > 1) == bool(absent)

"""A sample of the lists, compiled for an H100 and run in the PTX machine: parity, races, bounds, deadlock.

Everything is run by ``python tests/ptx/sweep.py --list NAME``.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from processes import python
from ptxmachine.runs.results import FILES, Table

from tritongru.planning.triton_versions import installed, minor_of

SWEEP = Path(__file__).with_name("sweep.py")
KNOWN = ((3, 6), (3, 7), (3, 8), (3, 9))  # Tritons whose PTX the machine has run
# List -> the part of it that a test run takes, and the largest hidden size.
SAMPLE = {
    "resident": ("5/40", 256),
    "stepwise": ("1/6", 256),
    "extra": ("1/22", 256),
    "persistent": ("1/60", 384),
    "persistent-other": ("2/30", 256),
    "ragged": ("1/45", 256),
    "single": ("1/6", 256),
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        minor_of(installed() or "") not in KNOWN, reason=f"the machine has not run what Triton {installed()} compiles"
    ),
]


@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_runs_clean(name: str, tmp_path: Path) -> None:
    part, largest = SAMPLE[name]
    limits = ("--part", part, "--largest", str(largest))
    done = python(
        str(SWEEP), "--list", name, *limits, "--results", str(tmp_path / "results"), TRITON_CACHE_DIR=str(tmp_path)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert sum(len(Table(tmp_path / "results").rows(family)) for family in FILES) > 1


BEGIN = f"""
import sys
sys.path.insert(0, {str(SWEEP.parent)!r})
import sweep
from ptxmachine.machine.options import Options
from ptxmachine.runs import case_lists
device = sweep.DEVICES["sm_90"]
"""
FAULT = """
host = sweep.MachineRunner(device).host
from ptxmachine.runs import running
case = next(c for c in case_lists.extra() if c.family == "persistent" and c.kernel == "forward")
found = running.run(case, host, Options(absent={absent}))
print(sum(found.reports.values()), found.worst)
"""


def output_of(code: str, cache: Path) -> list[str]:
    done = python("-c", BEGIN + code, TRITON_CACHE_DIR=str(cache))
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("absent", [(), (1,)])
def test_a_program_that_never_runs_is_reported(absent: tuple[int, ...], tmp_path: Path) -> None:
    reports, worst = output_of(FAULT.format(absent=absent), tmp_path)[-1].split()
    assert (int(reports) > 0 or float(worst) > 1) == bool(absent)


# One step as `counts` counts it, where only the first CTA runs; then with all of them, the first always the last.
STEPS = """
host = sweep.MachineRunner(device).host
from dataclasses import replace
from ptxmachine.runs import counts, running, session
for exchange in ("counter", "data"):
    case = next(c for c in case_lists.persistent() if c.size <= 256 and exchange in c.form)
    step = counts.step(case, host)
    print(step.total("wavefronts"), step.instructions)
    found = []
    for T in (2, 3):
        own = replace(case, T=T)
        found.append(session.Session(Options(last=0, store_buffer=False, shared_races=False, global_races=False)))
        with host.launching(found[-1].launch):
            running.results(own, running.tensors_of(own), own.launch(), running.blank_saved(own))
    of_step = {name: n - found[0].instructions[name] for name, n in sorted(found[1].instructions.items())}
    of_step = {name: n / found[1].num_warps for name, n in of_step.items() if n}
    print(found[1].total("wavefronts") - found[0].total("wavefronts"), of_step)
"""


def test_a_cta_alone_counts_as_it_does_among_others(tmp_path: Path) -> None:
    alone, among, alone_by_data, among_by_data = output_of(STEPS, tmp_path)
    assert alone == among
    assert alone_by_data == among_by_data


COUNT = """
import dataclasses, json
form = next(case_lists.all_forms("resident"))
asked = {name: form.start[name] for name in ("family", "kernel", "kind", "size")}
good = json.dumps(asked | {"launch": dataclasses.asdict(form.launch)})
print(sweep.count([good, "no JSON", json.dumps(asked)], device))
"""


def test_a_form_without_an_answer_gets_a_reason(tmp_path: Path) -> None:
    good, no_json, no_launch, code = map(json.loads, output_of(COUNT, tmp_path))
    assert good["wavefronts"] >= good["least"] > 0
    assert good["barriers"] > 0
    assert "JSON" in no_json["error"]
    assert "launch" in no_launch["error"]
    assert code == 1

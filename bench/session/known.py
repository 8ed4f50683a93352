"""Results from rows of the same machine and commit, so that the same command can resume a stopped one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.analysis.measured import rows_in
from bench.analysis.report import Result
from bench.analysis.targets import Calls
from bench.calls import first_call, host
from bench.measure.cases import Case
from bench.measure.pair import OURS, RECOMPUTED, THEIRS, Timed
from bench.measure.rows import MACHINE_KEYS, Row, RowFile
from bench.session.examine import RESERVE_S, Budget
from bench.suites import Job

SAME = (*MACHINE_KEYS, "commit")  # equal in rows that this run need not measure again
TIMES = ("ms", "spread", "rounds", "peak_mib")


def known_in(folder: Path, where: Row) -> list[Row]:
    """The rows of the same machine and commit, the latest last."""
    return [row for row in rows_in(folder) if all(row[key] == where[key] for key in SAME)]


def results_of(rows: Sequence[Row], jobs: Sequence[Job], impl: str) -> dict[str, Result]:
    """Results by case name, for cases that need not be measured again: green and timed in their last run, with a row of
    every rival of the job."""
    found = {}
    for case, rivals in jobs:
        own = [row for row in rows if row["case"] == case.name]
        # The rows of a case from one run share a seed. Only a forced path has no rows of ours as shipped.
        runs = {seed: {row["impl"]: row for row in own if row["seed"] == seed} for seed in (row["seed"] for row in own)}
        runs = {seed: by for seed, by in runs.items() if (OURS in by) is (impl == "auto")}
        last = next(reversed(runs.values()), {})
        ours = last.pop(OURS if impl == "auto" else f"{OURS}[{impl}]", None)
        if ours is None or THEIRS not in last or not {*rivals} <= {*last, ours["impl"]}:
            continue
        if ours["rounds"] is not None and ours["parity"] is not None and ours["parity"] <= 1.0:
            found[case.name] = _result(case, ours, last)
    return found


def _result(case: Case, ours: Row, others: dict[str, Row]) -> Result:
    rows = {OURS: ours} | others
    times = {name: {key: row[key] for key in TIMES} for name, row in rows.items() if row["ms"] is not None}
    times |= {name: {"peak_mib": rows[name]["peak_mib"]} for name in (RECOMPUTED,) if name in rows}
    rivals = {name: row for name, row in others.items() if name not in (THEIRS, RECOMPUTED)}
    timed = Timed(
        times,
        {name: row["reason"] for name, row in rivals.items() if row["ms"] is None},
        {name: row["parity"] for name, row in rivals.items() if row["parity"] is not None},
        {name: row["how"] for name, row in rivals.items() if row["how"] is not None},
    )
    about = {"parity": ours["parity"], "their_parity": others[THEIRS]["parity"], "repeatable": ours["repeatable"]}
    return Result(case, green=True, timed=timed, earlier=ours, **about)


def calls_on_gpu(file: RowFile, where: Row, known: Sequence[Row], budget: Budget) -> Calls:
    """The costs of a call besides the device's work: from rows, otherwise measured."""
    ms = {row["case"]: row["ms"] for row in known if row["impl"] == OURS and row["ms"] is not None}
    calls = Calls(
        {name: 1000 * ms[name] for family in host.HIDDEN for name in host.names_of(family) if name in ms},
        {name: ms[name] / 1000 for case in first_call.CASES for name in first_call.names_of(case) if name in ms},
        len({*host.NAMES, *first_call.NAMES} & {*ms}),
    )
    host_us, first_s = dict(calls.host_us), dict(calls.first_s)
    if {*host.NAMES} - {*ms} and budget.left() > RESERVE_S:
        host_us |= host.on_gpu(file, where, budget.left(), known={*ms})
    if {*first_call.NAMES} - {*ms} and budget.left() > RESERVE_S:
        first_s |= first_call.on_gpu(file, where, budget.left(), known={*ms})
    missing = {*host.NAMES, *first_call.NAMES} - {*host_us, *first_s}
    return Calls(host_us, first_s, calls.earlier, tuple(sorted(missing)))

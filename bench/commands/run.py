"""The run: real workloads with every rival, scaling, precisions and grids, correctness first, each compared with the
floor measured in the same run; then, on request, the pages and figures.

A case has its rows on disk before the next begins, and the same command resumes a stopped one: cases with rows of the
same machine and commit are not measured again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.analysis.report import Result, line, reasons, workload_table
from bench.commands import cpu
from bench.commands.plot import published
from bench.measure import ceilings
from bench.measure.cases import Case
from bench.measure.ceilings import Ceilings
from bench.measure.children import Child, Failed
from bench.measure.pair import build
from bench.measure.rows import Row, RowFile, file_name
from bench.pages import evidence
from bench.pages.performance import unknown
from bench.session.examine import (
    RESERVE_S,
    Budget,
    Question,
    Say,
    answer,
    asking,
    compile_all,
    examine,
    introduced,
    rows_of,
    say,
)
from bench.session.known import calls_on_gpu, known_in, results_of
from bench.study import command
from bench.suites import SUITES, Job, on_cpu

TOGETHER = 16  # cases that are compiled at once
CEILINGS_S = 60.0


def jobs_of(suites: Sequence[str], has_gpu: bool, only: str) -> list[Job]:
    """The jobs of the suites; a case in several of them is one job with all their rivals."""
    found: dict[Case, tuple[str, ...]] = {}
    for suite in suites:
        for case, names in SUITES[suite]() if has_gpu else on_cpu(suite):
            if only in case.name:
                found[case] = tuple(dict.fromkeys((*found.get(case, ()), *names)))
    return list(found.items())


def ceilings_of(child: Child, file: RowFile, where: Row, budget: Budget) -> Ceilings | None:
    """Measured by the child and written to disk; None if that failed: the rows then have no floor."""
    question = Question("ceilings", Case(1, 1, 1, "fp32", "forward"), "auto", seed=where["seed"])
    try:
        found: Ceilings = child.ask(question, limit_s=min(CEILINGS_S, budget.left()), start_s=budget.to_start())
    except Failed as failed:
        say(f"The ceilings were not measured: {failed}")
        return None
    for name, one in found.items():
        file.append(ceilings.row_of(name, one, where))
        unit = "10^9 bytes" if name == ceilings.COPY else "10^12 operations"
        scale = 1e9 if name == ceilings.COPY else 1e12
        say(f"Ceiling, {name}: {one.rate / scale:.4g} {unit} per second.")
    return found


def chunks(jobs: Sequence[Job]) -> Iterator[Sequence[Job]]:
    for start in range(0, len(jobs), TOGETHER):
        yield jobs[start : start + TOGETHER]


def measure(
    jobs: Sequence[Job],
    child: Child,
    file: RowFile,
    where: Row,
    limits: Ceilings | None,
    budget: Budget,
    has_gpu: bool,
    say: Say = say,
) -> list[Result]:
    """Case by case; each has its rows on disk before the next begins."""
    results = []
    ask = asking(child, "auto", dict(jobs).__getitem__, where, budget)
    for some in chunks(jobs):
        if has_gpu and budget.left() > RESERVE_S:
            compile_all([(case, build) for case, _ in some], "auto", budget)
        for case, _ in some:
            result = Result(case)
            results.append(result)
            examine(result, ask, budget)
            if result.left_out is None:
                for one in rows_of(result, "auto", where, limits):
                    file.append(one)
                say(line(result))
    return results


def run(
    seconds: float, out: Path, only: str, commit: str | None, suites: Sequence[str], studies: bool, publish: bool
) -> int:
    budget = Budget(seconds)
    where, device = introduced(commit)
    has_gpu = device.backend != "cpu"
    jobs = jobs_of(suites, has_gpu, only)
    if not jobs:
        place = "" if has_gpu else " that a CPU can measure"
        say(f"No case of {', '.join(suites)}{place} has a name that contains {only!r}.")
        return 2
    rows = known_in(out, where)
    known = results_of(rows, jobs, "auto")
    todo = [job for job in jobs if job[0].name not in known]
    say(f"To measure: {len(todo)} cases; already measured with commit {where['commit']}: {len(jobs) - len(todo)}.")
    file = RowFile(out / file_name("run" if has_gpu else "run-cpu", where["gpu"], where["date"]))
    child = Child(answer)
    try:
        limits = ceilings_of(child, file, where, budget) if todo else None
        results = measure(todo, child, file, where, limits, budget, has_gpu)
    finally:
        child.stop()
    if not only:
        about_a_call(file, where, rows, has_gpu, budget)
    for text in (*reasons(results), f"Rows: {file.path}", *workload_table(results)):
        say(text)
    left = [result.case.name for result in results if result.left_out]
    if left:
        say(f"No time for {len(left)} cases; run the same command with the same commit to resume.")
    code = 0
    if studies:
        code = command.beside(out, commit)
    for text in unknown(evidence.read(out)):
        say(f"Not measured yet: {text}.")
    if not any(row["gpu"] for row in command.read(out / command.FOLDER)):
        say("Not measured yet: GRU, LSTM and plain RNN on a GPU (`run --study`, or `study`).")
    cut = [f"{result.case.name} ({result.failure})" for result in results if result.cut]
    if cut:
        say(f"Cut off by their time limit, no verdict on the kernels: {', '.join(cut)}.")
    red = [result.case.name for result in results if result.red]
    say(f"Red: {', '.join(red)}." if red else "No case was red.")
    published(out, publish)
    return 1 if red or cut else code


def about_a_call(file: RowFile, where: Row, known: Sequence[Row], has_gpu: bool, budget: Budget) -> None:
    """The host's part of a call and the cost of the first call."""
    if has_gpu:
        calls_on_gpu(file, where, known, budget)
    elif not any(row["case"].startswith("host-") for row in known):
        cpu.hosts(file, where)
        cpu.imports(file, where, budget.left)

"""The tuning run: every launch the plan could use for a shape, correctness first, in the order of predicted speed.

The best-predicted launch of every shape comes first, then the second-best of every shape, and so on. Timed are the
input product and the loop, or a training step with each backward launch after the forward launch of the plan, against
all of nn.GRU.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.analysis.measured import TUNED, best_launch, is_good, rows_in
from bench.analysis.report import Result, line
from bench.measure.cases import Case
from bench.measure.children import Child
from bench.measure.pair import THEIRS
from bench.measure.rows import Row, RowFile, file_name
from bench.rivals.forced import builder, plans
from bench.session.examine import (
    RESERVE_S,
    Ask,
    Budget,
    Question,
    Say,
    answer,
    compile_all,
    examine,
    introduced,
    rows_of,
    say,
)
from bench.suites import tune_cases
from tritongru.planning.devices import Device

IMPL = "tune"  # rows are of tritongru[tune]
Waves = Sequence[Sequence[Result]]


def waves(cases: Sequence[Case], device: Device, known: Sequence[Row]) -> list[list[Result]]:
    """Launches to try, those of the same rank together, without those that have rows of this code."""
    done = {(row["case"], row["plan"]) for row in known}
    ranked = [(case, plans(case, device)) for case in cases]
    found = []
    for rank in range(max((len(each) for _, each in ranked), default=0)):
        wave = [Result(case, each[rank]) for case, each in ranked if rank < len(each)]
        found.append([result for result in wave if (result.case.name, result.launch) not in done])
    return [wave for wave in found if wave]


def run(
    waves: Waves,
    prepare: Callable[[Sequence[Result]], None],
    ask: Ask,
    file: RowFile,
    where: Row,
    budget: Budget,
    known: Sequence[Row],
    say: Say = say,
) -> int:
    """Launch by launch; each has its rows on disk before the next begins."""
    rows, left, red, cut = list(known), 0, 0, 0
    for wave in waves:
        if budget.left() > RESERVE_S:
            prepare(wave)
        for result in wave:
            launch = result.launch
            examine(result, ask, budget)
            if result.left_out:
                left += 1
                continue
            red += result.red
            cut += result.cut is not None
            for one in rows_of(result, IMPL, where):
                file.append(one)
                rows.append(one)
            say(line(result) + ("" if result.green and not result.cut else f" ({launch})"))
    for text in (f"Rows: {file.path}", *table(rows)):
        say(text)
    if left:
        say(f"No time for {left} launches; run the same command with the same commit to resume.")
    say((f"{red} launches red." if red else "No launch was red.") + (f" {cut} cut off by the limit." if cut else ""))
    return 1 if red or cut else 0


def table(rows: Sequence[Row]) -> list[str]:
    """For each case the best launch so far, its time, what the model expected, and torch's time."""
    good = [row for row in rows if is_good(row)]
    tried = [row for row in rows if row["impl"] == TUNED]
    lines = []
    for case in dict.fromkeys(row["case"] for row in tried):
        ours = [row for row in good if row["case"] == case and row["impl"] == TUNED]
        if not ours:
            lines.append(f"{case:<34} no launch was green")
            continue
        us, launch = best_launch(ours)
        expected = next(row["predicted_us"] for row in ours if row["plan"] == launch)
        others = (row["us_per_step"] for row in good if row["case"] == case and row["impl"] == THEIRS)
        theirs = min(others, default=math.nan)
        numbers = f"{us:8.3f} {expected:9.3f} {theirs:8.3f} {theirs / us:6.2f}x"
        lines.append(f"{case:<34} {launch:<24} {numbers} {len(ours):>4}")
    head = f"{'us per step':<34} {'best launch':<24} {'ours':>8} {'expected':>9} {'nn.GRU':>8} {'ratio':>7} {'of':>4}"
    return [head, *lines] if lines else ["Nothing was measured."]


def tune(seconds: float, out: Path, only: str, commit: str | None) -> int:
    budget = Budget(seconds)
    cases = [case for case in tune_cases() if only in case.name]
    if not cases:
        say(f"No case name contains {only!r}; names look like {tune_cases()[0].name}.")
        return 2
    if not torch.cuda.is_available():
        say("There is no GPU here, and timing launches needs one; --table and --cpu-table need none.")
        return 2
    where, device = introduced(commit)
    known = [row for row in rows_in(out) if all(row[key] == where[key] for key in ("gpu", "commit"))]
    known = [row for row in known if row["case"] in {case.name for case in cases}]
    todo = waves(cases, device, [row for row in known if row["impl"] == TUNED])
    if not todo and not known:
        say(f"planning/tables/persistent.json has no launch that {device.name} can run; there is nothing to tune.")
        return 2
    tried = sum(row["impl"] == TUNED for row in known)
    say(f"{sum(map(len, todo))} launches to try, {tried} already tried with commit {where['commit']}.")
    file = RowFile(out / file_name("tune", where["gpu"], where["date"]))
    child = Child(answer)

    def prepare(wave: Sequence[Result]) -> None:
        compile_all([(result.case, builder(result.plan)) for result in wave if result.plan], IMPL, budget)

    def ask(what: str, result: Result, limit_s: float) -> Any:
        question = Question(what, result.case, IMPL, result.plan, seed=where["seed"])
        return child.ask(question, limit_s=limit_s, start_s=budget.to_start())

    try:
        return run(todo, prepare, ask, file, where, budget, known)
    finally:
        child.stop()

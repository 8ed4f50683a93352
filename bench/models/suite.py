"""The suite `models` of `run`: whole models of other packages on this CPU, before and after conversion."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path

from bench.measure.children import Child, Failed
from bench.measure.cpu.cells import counted
from bench.measure.cpu.rows import made_with, of_this_cpu
from bench.measure.cpu.timing import LIMIT_S, ROUNDS
from bench.measure.pair import OURS
from bench.measure.rows import MACHINE_KEYS, Row, RowFile, facts, file_name, number, read_all, shapeless
from bench.models.catalogue import MODELS
from bench.models.examine import MODES, Found, Question, answer
from bench.models.model import Model
from bench.session.examine import RESERVE_S, Budget, say

FOLDER = "models"
MODEL_S = 200.0  # for a model, with each number of threads
RED = 2  # exit code of a command that measures nothing
SAME = (*MACHINE_KEYS, "commit")


def suite(seconds: float, out: Path, only: str, commit: str | None, threads: Sequence[int]) -> int:
    """Measures what has no rows yet for this machine, commit and package version; 1 if a converted model is red."""
    chosen = [model for model in MODELS if only in model.name]
    if not chosen:
        say(f"No model has a name that contains {only!r}.")
        return RED
    budget, where = Budget(seconds), facts_here(commit)
    file = RowFile(out / FOLDER / file_name("models", where["cpu"], where["date"]))
    same = [one for one in rows_in(out) if one["impl"] == OURS and all(one[key] == where[key] for key in SAME)]
    known = {(one["case"], one["how"]) for one in same}
    absent = {model.name: why for model in chosen if (why := _absent(model))}
    todo = [
        (model, open_)
        for model in chosen
        if model.name not in absent
        and (
            open_ := tuple(
                n for n in threads if not {(case_name(model, mode, n), how(model)) for mode in MODES} <= known
            )
        )
    ]
    say(f"{where['cpu']}; torch {where['torch']}. To measure: {len(todo)} of {len(chosen)} models.")
    child, red, left = Child(answer), [], []
    try:
        for model, open_ in todo:
            if budget.left() < RESERVE_S:
                left.append(model.name)
                continue
            question = Question(model.name, open_, where["seed"], ROUNDS, LIMIT_S)
            try:
                limit_s = min(MODEL_S * len(open_), budget.left())
                answers: list[Found] = child.ask(question, limit_s=limit_s, start_s=budget.to_start())
            except Failed as failed:
                red.append(f"{model.name} ({failed})")
                continue
            for found in answers:
                if found.absent:
                    absent[model.name] = str(found.reason)
                    continue
                for one in rows_of(model, found, where):
                    file.append(one)
                say(line(model, found))
                if found.reason:
                    red.append(f"{model.name} ({found.reason})")
    finally:
        child.stop()
    say(f"Rows: {file.path}")
    for name, why in absent.items():
        say(f"Left out: {name} ({why}).")
    if left:
        say(f"No time for {len(left)} models; run the same command with the same commit to resume.")
    say(f"Red: {'; '.join(dict.fromkeys(red))}." if red else "No model was red.")
    return 1 if red else 0


def _absent(model: Model) -> str | None:
    """Without an import: the child process imports what is installed."""
    return None if model.version else model.why_not()


def facts_here(commit: str | None) -> Row:
    return of_this_cpu(facts(None, commit, None, secrets.randbits(48)))


def rows_in(out: Path) -> list[Row]:
    return read_all(out / FOLDER)


def how(model: Model) -> str:
    """The package and its version."""
    return f"{model.package} {model.version}"


def case_name(model: Model, mode: str, threads: int) -> str:
    return f"models-{model.name}-{mode}-{counted(threads, '-')}"


def rows_of(model: Model, found: Found, where: Row) -> list[Row]:
    """A row of the converted model and, if there are times, one of the model as it was, with its time over ours."""
    rows = []
    for impl in found.times or (OURS,):
        times = found.times.get(impl)
        made = shapeless(case_name(model, found.mode, found.threads), impl, where, how=how(model))
        made |= {"dtype": "fp32", "mode": found.mode, "reason": found.reason, **made_with(found.threads, found.load)}
        if impl == OURS:
            made["parity"] = number(found.parity)
        if times is not None:
            made |= {"ms": number(times.ms), "spread": number(times.spread), "rounds": times.rounds}
            made["least_ms"] = number(times.least_ms)
        if impl != OURS and found.over:
            made["over"] = {OURS: [number(value) for value in found.over]}
        rows.append(made)
    return rows


def line(model: Model, found: Found) -> str:
    about = f"{model.name}, {found.mode}, {counted(found.threads)}"
    if found.over is None:
        return f"{about}: {found.reason}"
    times = ", ".join(f"{name} {one.least_ms:.4g} ms" for name, one in found.times.items())
    return f"{about}: {times}; times ours: {found.over[0]:.2f} ({found.over[1]:.2f} to {found.over[2]:.2f})"

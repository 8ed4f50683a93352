"""The generated parts of ``docs/data/study.md``: every number behind ``docs/models.md``, for each machine."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from itertools import product

from bench.measure.cpu.cells import counted
from bench.measure.rows import Row
from bench.pages.marks import Part, table
from bench.pages.study.rows import TASKS, Machine, Trainings, deciles, points
from bench.pages.study.sentences import error_in_words, parted, time_ratio
from bench.study.statistics import Interval
from bench.study.training import MODELS, OF_TORCH, SMALL, TIMED

RIVALS = ("LSTM", SMALL, "RNN")


def tasks(rows: Sequence[Row]) -> str:
    told = [
        f"- **{task}**: {a.what} ({a.source}). Held-out data: {a.held_out}. Error: {a.title}. Baselines: {a.baselines}."
        for task, a in TASKS.items()
    ]
    return "\n\n".join(("\n".join(told), parted(rows, _sizes)))


def _sizes(machine: Machine) -> str:
    head = ("task", "hidden size", "batch", "time steps", "training steps", "seeds", "learning rates tried")
    lines = []
    for task in machine.tasks:
        trained = machine.trainings(task, "GRU").rows
        rates = ", ".join(f"{rate:g}" for rate in machine.rates(task, "GRU"))
        counts = (f"{trained[-1][key]:,}" for key in ("hidden", "batch", "time", "steps"))
        lines.append((task, *counts, str(len(trained)), rates))
    return table(head, lines)


# Learning rates


def rates(rows: Sequence[Row]) -> str:
    """What the choice was made from."""

    def lines_of(machine: Machine) -> Iterator[tuple[str, ...]]:
        for task, model in product(machine.tasks, MODELS):
            taken = machine.trainings(task, model).rows[-1]["rate"]
            cells = []
            for rate, error in sorted(machine.choices(task, model).items()):
                text = f"{error:{TASKS[task].form}}" if math.isfinite(error) else "not finite"
                cells.append(f"{rate:g}: **{text}**" if rate == taken else f"{rate:g}: {text}")
            yield task, model, "; ".join(cells)

    head = ("task", "model", "learning rate: error on the validation data, the smallest in bold")
    return parted(rows, lambda machine: f"{table(head, list(lines_of(machine)))}\n\n{_ranks(machine)}")


def _ranks(machine: Machine) -> str:
    """Whether validation data and held-out data put the same model first."""
    lines = []
    for task in machine.tasks:
        first, best = machine.leaders(task)
        told = f"the {first} has the smallest error on the validation data and on the held-out data"
        if first != best:
            told = (
                f"on the validation data, used to choose learning rates, the {first} has the smallest error; "
                f"on the held-out data the {best} has"
            )
        ends = sum(_at_an_end(machine, task, model) for model in MODELS)
        lines.append(
            f"- {task}: {told}. The best rate was the lowest or highest tried for {ends} of {len(MODELS)} models."
        )
    return "\n".join(lines)


def _at_an_end(machine: Machine, task: str, model: str) -> bool:
    tried = machine.rates(task, model)
    return machine.trainings(task, model).rows[-1]["rate"] in (tried[0], tried[-1])


# Errors


def accuracy(rows: Sequence[Row]) -> str:
    return parted(rows, lambda machine: "\n\n".join(_accuracy(machine, task) for task in machine.tasks))


def _accuracy(machine: Machine, task: str) -> str:
    about = TASKS[task]
    lines = []
    for model in MODELS:
        trained = machine.trainings(task, model)
        row, errors = trained.rows[-1], list(trained.errors.values())
        mean = trained.mean(errors)
        seeds = f"{len(errors)}" if len(errors) == len(trained.rows) else f"{len(errors)} of {len(trained.rows)} finite"
        lines.append(
            (
                *(model, f"{row['hidden']:,}", f"{row['parameters']:,}", f"{row['rate']:g}", seeds),
                f"{mean.mean:{about.form}}" if mean else "-",
                _span(mean, about.form),
                f"{min(errors):{about.form}} to {max(errors):{about.form}}" if errors else "-",
                *_second(trained),
            )
        )
    bars = ", ".join(f"{name} {bar:{about.form}}" for name, bar in machine.bars(task).items())
    kind = "geometric mean" if about.by_factors else "mean"
    head = ["model", "hidden size", "parameters", "rate", "seeds", kind, "95 % interval", "best to worst seed"]
    if about.second:
        key, title, form = about.second
        best = list(machine.bars(task))[-1]
        head += [f"{title} ({best} {machine.baselines(task)[best][key]:{form}})"]
    return (
        f"{task}, {about.title} on the held-out data{',' if about.unit else ''}{about.unit}. "
        f"Baselines: {bars}.\n\n{table(head, lines, right=True)}"
    )


def _second(trained: Trainings) -> list[str]:
    if not trained.about.second:
        return []
    key, _, form = trained.about.second
    mean = trained.mean(list(trained.finite(key).values()))
    return [f"{mean.mean:{form}} ({_span(mean, form)})" if mean else "-"]


def _span(found: Interval | None, form: str) -> str:
    return f"{found.low:{form}} to {found.high:{form}}" if found else "-"


def differences(rows: Sequence[Row]) -> str:
    """Seed by seed, the GRU against each of the others."""

    def of(machine: Machine) -> str:
        lines = [(task, *(error_in_words(machine, task, rival) for rival in RIVALS)) for task in machine.tasks]
        return table(("task", *(f"GRU and {rival}" for rival in RIVALS)), lines)

    return parted(rows, of)


# Times


def times(rows: Sequence[Row]) -> str:
    return parted(rows, lambda machine: "\n\n".join(_times(machine, task) for task in machine.tasks))


def _times(machine: Machine, task: str) -> str:
    goal, about = target(machine, task), TASKS[task]
    told = f"{goal:{about.form}}{about.unit}" if goal is not None else "none"
    head = (
        f"{task}: an epoch is {machine.epoch(task):,} steps; the error to reach is {told}, the larger of the final "
        "errors of GRU and LSTM."
    )
    tables = (f"{_with(machine, threads)}{_of_threads(machine, task, threads)}" for threads in machine.threads)
    return "\n\n".join((head, *tables))


def _with(machine: Machine, threads: int) -> str:
    return "" if machine.has_gpu else f"{counted(threads).capitalize()}:\n\n"


def _of_threads(machine: Machine, task: str, threads: int) -> str:
    head = ("model", "path", "ms per step", "10 % to 90 %", "s per epoch", "s to the error", "relative to the GRU")
    lines = []
    for model in TIMED:
        samples, path = machine.samples(task, model, threads), machine.family(task, model)
        if not samples:
            lines.append((model, path, *["-"] * 5))
            continue
        ms, (low, high), epoch = statistics.median(samples), deciles(samples), machine.epoch(task)
        steps = reached(machine, task, model if model != OF_TORCH else "GRU")
        over = time_ratio(machine, task, model, threads)
        found = f"{over.mean:.2f} ({_span(over, '.2f')})" if over else "-"
        lines.append(
            (
                *(model, path, f"{ms:.2f}", f"{low:.2f} to {high:.2f}", f"{ms * epoch / 1000:.2f}"),
                f"{ms * steps / 1000:.1f}" if steps is not None else "not reached",
                "1" if model == "GRU" else found,
            )
        )
    return table(head, lines, right=True)


def reached(machine: Machine, task: str, model: str) -> float | None:
    """The training steps after which a model's mean error is first as small as ``target``; a straight line, or in
    logarithms where errors are compared by factors, between the points of the curve."""
    goal, about = target(machine, task), TASKS[task]
    before: tuple[int, float] | None = None
    for steps, error, *_ in points(machine.trainings(task, model)):
        if goal is not None and error <= goal:
            if before is None:
                return float(steps)
            scale = math.log if about.by_factors else float
            start, end, at = scale(before[1]), scale(error), scale(goal)
            return before[0] + (steps - before[0]) * (start - at) / (start - end)
        before = steps, error
    return None


def target(machine: Machine, task: str) -> float | None:
    """The larger of the errors that the GRU and the LSTM of the same size end with."""
    found = [machine.trainings(task, model).center for model in ("GRU", "LSTM")]
    return None if None in found else max(error for error in found if error is not None)


PARTS: dict[str, Part] = {part.__name__: part for part in (tasks, rates, accuracy, differences, times)}

"""The generated parts of ``docs/models.md``, from the rows of ``python3 -m bench study`` alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from itertools import product

from bench.measure.cpu.cells import counted
from bench.measure.rows import Row
from bench.pages.marks import Part, table
from bench.pages.study_rows import TASKS, Machine, Trainings, deciles, machines, points, together
from bench.study.command import read as read  # a page comes with what reads its rows
from bench.study.statistics import Interval, difference_in_words, paired, ratio, ratio_in_words
from bench.study.training import MODELS, OF_TORCH, SMALL, TIMED

COMMAND = "python3 -m bench study"
RIVALS = ("LSTM", SMALL, "RNN")
NAMED = {
    "LSTM": "an LSTM of the same hidden size",
    SMALL: "an LSTM with as many parameters",
    OF_TORCH: "torch's own nn.GRU",
}


def parted(rows: Sequence[Row], of_machine: Callable[[Machine], str]) -> str:
    found = [f"{machine.caption()}.\n\n{of_machine(machine)}" for machine in machines(rows)]
    return "\n\n".join(found) or f"No rows exist yet; `{COMMAND}` makes them."


# Words


def error_in_words(machine: Machine, task: str, rival: str) -> str:
    """The GRU's error against a rival's."""
    about = TASKS[task]
    own, other = together(machine.trainings(task, "GRU").errors, machine.trainings(task, rival).errors)
    if len(own) < 2:
        return "too few seeds to tell"
    if about.by_factors:
        return ratio_in_words(ratio(own, other))
    return difference_in_words(paired(own, other), about.unit, about.form)


def time_ratio(machine: Machine, task: str, model: str, threads: int) -> Interval | None:
    """A model's time of a training step over the GRU's, from samples of the same rounds."""
    other, own = (machine.samples(task, name, threads) for name in (model, "GRU"))
    return ratio(other, own) if len(own) > 1 and len(own) == len(other) else None


def time_in_words(machine: Machine, model: str) -> str:
    """What the intervals of all tasks and numbers of threads span."""
    pairs = [(task, threads) for task in machine.tasks for threads in machine.threads]
    found = [one for one in (time_ratio(machine, task, model, threads) for task, threads in pairs) if one]
    if not found:
        return "not measured"
    return f"{min(one.low for one in found):.2f} to {max(one.high for one in found):.2f} times"


def _with(machine: Machine, threads: int) -> str:
    return f" ({counted(threads)})" if len(machine.threads) > 1 else ""


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


def span(found: Interval | None, form: str) -> str:
    return f"{found.low:{form}} to {found.high:{form}}" if found else "-"


# The generated parts


def state(rows: Sequence[Row]) -> str:
    found = machines(rows)
    lines = [f"- {machine.caption()}; {_cost(machine)}." for machine in found]
    if not any(machine.has_gpu for machine in found):
        lines.append(f"- No GPU measurements yet: `{COMMAND}` on a machine with one makes them.")
    return "\n".join(lines)


def _cost(machine: Machine) -> str:
    taken = [row["seconds"] for row in machine.rows if row["seconds"] is not None]
    return f"{len(taken)} trainings, {sum(taken) / 60:.0f} minutes of training steps"


def answer(rows: Sequence[Row]) -> str:
    """The question of the study, answered by intervals in three sentences: time, error, and whether it was worth it."""
    return parted(rows, lambda machine: "\n".join((_speed(machine), _accuracy_told(machine), _baselines(machine))))


def _speed(machine: Machine) -> str:
    told = [f"{NAMED[rival]} {time_in_words(machine, rival)}" for rival in ("LSTM", SMALL, OF_TORCH)]
    where = f" with {' and '.join(map(str, machine.threads))} threads" if len(machine.threads) > 1 else ""
    lstm, *others = told
    ours = f"a training step takes {lstm} as long as the GRU"
    return f"- **Speed**: {_tasks_of(machine)}{where}, {ours}, {', and '.join(others)}."


def _tasks_of(machine: Machine) -> str:
    return "over all tasks" if len(machine.tasks) == len(TASKS) else f"on {' and '.join(machine.tasks)}"


def _accuracy_told(machine: Machine) -> str:
    parts = []
    for rival in ("LSTM", SMALL):
        words = (f"{error_in_words(machine, task, rival)} ({task})" for task in machine.tasks)
        parts.append(f"the GRU's error against that of {NAMED[rival]}: {', '.join(words)}")
    return f"- **Accuracy**: {'; '.join(parts)}.{_other_order(machine)}"


def _other_order(machine: Machine) -> str:
    """Where the data that chose the rates put another model first."""
    parts = []
    for task in machine.tasks:
        first, best = machine.leaders(task)
        if first != best:
            parts.append(f"on {task} the {first}, here the {best}")
    return f" On the data that chose the rates another model was ahead: {'; '.join(parts)}." if parts else ""


def _baselines(machine: Machine) -> str:
    parts = []
    for task in machine.tasks:
        about, bars = TASKS[task], machine.bars(task)
        for name, bar in bars.items():
            ahead = [model for model in MODELS if _ahead(machine.trainings(task, model), bar)]
            if len(ahead) < len(MODELS) or len(bars) == 1:
                parts.append(f"{name} ({task}, {bar:{about.form}}{about.unit}) is beaten by {_together(ahead)}")
    return f"- **Without a network**: {'; '.join(parts) or 'every baseline is beaten by all models'}."


def _together(models: Sequence[str]) -> str:
    if len(models) in (0, len(MODELS)):
        return "all models" if models else "no model"
    return " and ".join((", ".join(models[:-1]), models[-1])) if len(models) > 1 else models[0]


def _ahead(trained: Trainings, bar: float) -> bool:
    """By the whole interval."""
    found = trained.mean(list(trained.errors.values()))
    return found is not None and found.high < bar


def tasks(rows: Sequence[Row]) -> str:
    head = ("task", "what is learned", "source", "held out", "error", "baselines")
    lines = [(task, a.what, a.source, a.held_out, a.title, a.baselines) for task, a in TASKS.items()]

    def of(machine: Machine) -> str:
        sizes = ("task", "hidden size", "batch", "time steps", "training steps", "seeds", "rates to choose from")
        found = []
        for task in machine.tasks:
            trained = machine.trainings(task, "GRU").rows
            row = trained[-1]
            rates = ", ".join(f"{rate:g}" for rate in machine.rates(task, "GRU"))
            counts = (f"{row[key]:,}" for key in ("hidden", "batch", "time", "steps"))
            found.append((task, *counts, str(len(trained)), rates))
        return table(sizes, found)

    return f"{table(head, lines)}\n\n{parted(rows, of)}"


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
                model,
                f"{row['hidden']:,}",
                f"{row['parameters']:,}",
                f"{row['rate']:g}",
                seeds,
                f"{mean.mean:{about.form}}" if mean else "-",
                span(mean, about.form),
                f"{min(errors):{about.form}} to {max(errors):{about.form}}" if errors else "-",
                *_second(trained),
            )
        )
    bars = ", ".join(f"{name} {bar:{about.form}}" for name, bar in machine.bars(task).items())
    kind = "geometric mean" if about.by_factors else "mean"
    head = ["model", "hidden", "parameters", "rate", "seeds", kind, "95 % interval", "best to worst seed"]
    if about.second:
        key, title, form = about.second
        best = list(machine.bars(task))[-1]
        head += [f"{title} ({best} {machine.baselines(task)[best][key]:{form}})"]
    return (
        f"{task}, {about.title} on what is held out{',' if about.unit else ''}{about.unit}. "
        f"Baselines: {bars}.\n\n{table(head, lines, right=True)}"
    )


def _second(trained: Trainings) -> list[str]:
    if not trained.about.second:
        return []
    key, _, form = trained.about.second
    mean = trained.mean(list(trained.finite(key).values()))
    return [f"{mean.mean:{form}} ({span(mean, form)})" if mean else "-"]


def differences(rows: Sequence[Row]) -> str:
    """Seed by seed, the GRU against each of the others."""

    def of(machine: Machine) -> str:
        lines = [(task, *(error_in_words(machine, task, rival) for rival in RIVALS)) for task in machine.tasks]
        return table(("task", *(f"the GRU's error against the {rival}'s" for rival in RIVALS)), lines)

    return parted(rows, of)


def times(rows: Sequence[Row]) -> str:
    return parted(rows, lambda machine: "\n\n".join(_times(machine, task) for task in machine.tasks))


def _times(machine: Machine, task: str) -> str:
    goal, about = target(machine, task), TASKS[task]
    lines = []
    for model in TIMED:
        steps = reached(machine, task, model if model != OF_TORCH else "GRU")
        cells: list[str] = []
        for threads in machine.threads:
            samples = machine.samples(task, model, threads)
            if not samples:
                cells += ["-"] * 5
                continue
            ms, (low, high), epoch = statistics.median(samples), deciles(samples), machine.epoch(task)
            over = time_ratio(machine, task, model, threads)
            cells += [f"{ms:.2f}", f"{low:.2f} to {high:.2f}", f"{ms * epoch / 1000:.2f}"]
            cells.append(f"{ms * steps / 1000:.1f}" if steps is not None else "not reached")
            cells.append("1" if model == "GRU" else f"{over.mean:.2f} ({span(over, '.2f')})" if over else "-")
        lines.append((model, machine.family(task, model), *cells))
    head = [
        f"{title}{_with(machine, threads)}"
        for threads in machine.threads
        for title in ("ms a step", "10 % to 90 %", "s an epoch", "s to the error", "over the GRU's")
    ]
    told = f"{goal:{about.form}}{about.unit}" if goal is not None else "none"
    return (
        f"{task}: an epoch is {machine.epoch(task):,} steps; the error to reach is {told}, the larger of those that "
        f"GRU and LSTM end with.\n\n{table(('model', 'path', *head), lines, right=True)}"
    )


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

    head = ("task", "model", "rate: error on the validation part, the smallest in bold")
    return parted(rows, lambda machine: f"{table(head, list(lines_of(machine)))}\n\n{_ranks(machine)}")


def _ranks(machine: Machine) -> str:
    """Whether the part to choose by and the part that is held out put the same model first."""
    lines = []
    for task in machine.tasks:
        first, best = machine.leaders(task)
        told = f"the {first} has the smallest error on both parts"
        if first != best:
            told = f"the {first} has the smallest error on the validation part, the {best} on what is held out"
        ends = sum(_at_an_end(machine, task, model) for model in MODELS)
        lines.append(f"- {task}: {told}; {ends} of {len(MODELS)} models took a rate at an end of the range.")
    return "\n".join(lines)


def _at_an_end(machine: Machine, task: str, model: str) -> bool:
    tried = machine.rates(task, model)
    return machine.trainings(task, model).rows[-1]["rate"] in (tried[0], tried[-1])


PARTS: dict[str, Part] = {part.__name__: part for part in (state, answer, tasks, accuracy, differences, times, rates)}

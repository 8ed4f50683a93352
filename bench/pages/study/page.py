"""The generated parts of ``docs/models.md``: the answer and one table for each of accuracy and speed, on the CPU."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from bench.measure.rows import Row
from bench.pages.marks import Part, table
from bench.pages.study.rows import TASKS, Machine, machines
from bench.pages.study.sentences import COMMAND, NONE_YET, baselines, both, of_cpu, smaller, time_ratio
from bench.study.training import MODELS, OF_TORCH, TIMED


def answer(rows: Sequence[Row]) -> str:
    """A paragraph for each machine."""
    return "\n\n".join(_paragraph(machine) for machine in machines(rows)) or NONE_YET


def _paragraph(machine: Machine) -> str:
    told = both(machine)
    missing = [task for task in TASKS if task not in machine.tasks]
    return f"{told} Not measured there: {', '.join(missing)}." if missing else told


def small(rows: Sequence[Row]) -> str:
    return "\n".join(f"- {smaller(machine)}" for machine in machines(rows)) or NONE_YET


def state(rows: Sequence[Row]) -> str:
    found = machines(rows)
    lines = [f"- {machine.caption()}; {_cost(machine)}." for machine in found]
    if not any(machine.has_gpu for machine in found):
        lines.append(f"- No GPU measurements yet; `{COMMAND}` on a machine with a GPU makes them.")
    return "\n".join(lines)


def _cost(machine: Machine) -> str:
    taken = [row["seconds"] for row in machine.rows if row["seconds"] is not None]
    return f"{len(taken)} training runs, {sum(taken) / 60:.0f} minutes of training steps"


def accuracy(rows: Sequence[Row]) -> str:
    machine = of_cpu(rows)
    if machine is None:
        return NONE_YET
    lines = []
    for task in machine.tasks:
        about, (name, bar) = TASKS[task], list(machine.bars(task).items())[-1]
        title = f"{task}: {about.title}{',' if about.unit else ''}{about.unit}"
        lines.append((title, *(_error(machine, task, model) for model in MODELS), f"{bar:{about.form}} ({name})"))
    return f"{table(('task', *MODELS, 'best baseline'), lines, right=True)}\n\n{baselines(machine)}"


def _error(machine: Machine, task: str, model: str) -> str:
    form, trained = TASKS[task].form, machine.trainings(task, model)
    found = trained.mean(list(trained.errors.values()))
    return f"{found.mean:{form}} ({found.low:{form}} to {found.high:{form}})" if found else "-"


def times(rows: Sequence[Row]) -> str:
    machine = of_cpu(rows)
    if machine is None:
        return NONE_YET
    others = [model for model in TIMED if model != "GRU"]
    lines = []
    for task in machine.tasks:
        for threads in machine.threads:
            own = machine.samples(task, "GRU", threads)
            ratios = (time_ratio(machine, task, model, threads) for model in others)
            cells = (f"{found.mean:.2f}x" if found else "-" for found in ratios)
            lines.append((task, str(threads), f"{statistics.median(own):.1f}" if own else "-", *cells))
    head = ("task", "threads", "GRU, ms", *(f"torch's {model}" if model == OF_TORCH else model for model in others))
    return table(head, lines, right=True)


PARTS: dict[str, Part] = {part.__name__: part for part in (answer, state, accuracy, times, small)}

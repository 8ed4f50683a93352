"""The generated parts of ``docs/models.md``, from the rows of ``python3 -m bench study`` alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from itertools import product

from bench.measure.rows import Row
from bench.pages.marks import Part, table
from bench.pages.study_rows import TASKS, Machine, Trainings, deciles, machines, together
from bench.study.command import read as read  # a page comes with what reads its rows
from bench.study.statistics import Interval, difference_in_words, interval, paired, ratio, ratio_in_words
from bench.study.training import MODELS, SMALL

COMMAND = "python3 -m bench study"
RIVALS = ("LSTM", SMALL, "RNN")


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


def time_ratio(machine: Machine, task: str, rival: str) -> Interval | None:
    """The GRU's seconds of training over a rival's."""
    own, other = together(machine.trainings(task, "GRU").seconds, machine.trainings(task, rival).seconds)
    return ratio(own, other) if len(own) > 1 else None


def time_in_words(machine: Machine, task: str, rival: str) -> str:
    found = time_ratio(machine, task, rival)
    return ratio_in_words(found, "longer", "shorter") if found else "too few seeds to tell"


def span(found: Interval | None, form: str) -> str:
    return f"{found.low:{form}} to {found.high:{form}}" if found else "-"


# The generated parts


def state(rows: Sequence[Row]) -> str:
    found = machines(rows)
    lines = [f"- {machine.caption()}; {_cost(machine)}." for machine in found]
    if not any(machine.has_gpu for machine in found):
        lines.append(
            "- **No row of a GPU exists yet.** Nothing here says how fast the kernels of tritongru are: on a CPU "
            f"`tritongru.GRU` is torch's own GRU. `{COMMAND}` on a machine with a GPU makes the rows."
        )
    return "\n".join(lines)


def _cost(machine: Machine) -> str:
    taken = [row["seconds"] for row in machine.rows if row["seconds"] is not None]
    return f"{len(taken)} trainings, {sum(taken) / 60:.0f} minutes of training steps"


def answer(rows: Sequence[Row]) -> str:
    """The question of the study, answered for each task by its intervals."""
    return parted(rows, lambda machine: "\n".join(_answer(machine, task) for task in machine.tasks))


def _answer(machine: Machine, task: str) -> str:
    first, best = machine.leaders(task)
    told = (
        f"- **{task}**: against an LSTM of the same hidden size, the GRU's error: "
        f"{error_in_words(machine, task, 'LSTM')}; its training time: {time_in_words(machine, task, 'LSTM')}. "
        f"Against an LSTM with as many parameters, its error: {error_in_words(machine, task, SMALL)}; its "
        f"training time: {time_in_words(machine, task, SMALL)}."
    )
    if first == best:
        return told
    return f"{told} On the data that chose the rates the order is another: there the {first} is ahead, here the {best}."


def tasks(rows: Sequence[Row]) -> str:
    head = ("task", "what is learned", "source", "held out", "error", "baseline")
    lines = [(task, a.what, a.source, a.held_out, a.title, a.baseline) for task, a in TASKS.items()]

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
    baseline = machine.trainings(task, "GRU").rows[-1]["baseline"][about.error]
    kind = "geometric mean" if about.by_factors else "mean"
    head = ["model", "hidden", "parameters", "rate", "seeds", kind, "95 % interval", "best to worst seed"]
    if about.second:
        key, title, form = about.second
        head += [f"{title} (baseline {machine.trainings(task, 'GRU').rows[-1]['baseline'][key]:{form}})"]
    return (
        f"{task}, {about.title} on what is held out{',' if about.unit else ''}{about.unit}. "
        f"Baseline ({about.baseline}): {baseline:{about.form}}.\n\n{table(head, lines, right=True)}"
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
    lines = []
    for model in MODELS:
        trained = machine.trainings(task, model)
        samples = machine.of("step", task, model)[-1]["samples_ms"]
        seconds = list(trained.seconds.values())
        found = interval(seconds) if len(seconds) > 1 else None
        over = time_ratio(machine, task, model) if model != "GRU" else None
        lines.append(
            (
                model,
                trained.rows[-1]["family"],
                f"{statistics.median(samples):.2f}",
                "{:.2f} to {:.2f}".format(*deciles(samples)),
                f"{found.mean:.1f}" if found else "-",
                span(found, ".1f"),
                f"{over.mean:.2f} ({span(over, '.2f')})" if over else "-",
            )
        )
    head = ("model", "path", "ms a step", "10 % to 90 %", "seconds of training", "95 % interval")
    return f"{task}:\n\n{table((*head, 'GRU over this'), lines, right=True)}"


def rates(rows: Sequence[Row]) -> str:
    """What the choice was made from."""

    def lines_of(machine: Machine) -> Iterator[tuple[str, ...]]:
        for task, model in product(machine.tasks, MODELS):
            taken = machine.trainings(task, model).rows[-1]["rate"]
            cells = []
            for row in sorted(machine.of("choice", task, model), key=lambda row: row["rate"]):
                error = row["errors"][TASKS[task].error]
                text = "not finite" if error is None else f"{error:{TASKS[task].form}}"
                cells.append(f"{row['rate']:g}: **{text}**" if row["rate"] == taken else f"{row['rate']:g}: {text}")
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

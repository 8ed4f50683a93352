"""What the rows of the study say, in sentences that claim no more than the intervals do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

from bench.measure.cpu.cells import counted
from bench.measure.rows import Row
from bench.pages.study.rows import TASKS, Machine, Trainings, machines, together
from bench.study.statistics import Interval, difference_in_words, paired, ratio, ratio_in_words
from bench.study.training import MODELS, OF_TORCH, SMALL

COMMAND = ".venv/bin/python -m bench study"
NONE_YET = f"No measurements yet; `{COMMAND}` makes them."
UNCLEAR = "no difference was found"


def parted(rows: Sequence[Row], of_machine: Callable[[Machine], str]) -> str:
    """A text for each machine, with its caption above."""
    return "\n\n".join(f"{_caption(machine)}\n\n{of_machine(machine)}" for machine in machines(rows)) or NONE_YET


def _caption(machine: Machine) -> str:
    return f"**{machine.name}**{machine.caption().removeprefix(machine.name)}."


def of_cpu(rows: Sequence[Row]) -> Machine | None:
    return next((machine for machine in machines(rows) if not machine.has_gpu), None)


def listing(words: Sequence[str]) -> str:
    """One, two and three."""
    if len(words) < 3:
        return " and ".join(words)
    return f"{', '.join(words[:-1])}, and {words[-1]}"


# Facts


def error_in_words(machine: Machine, task: str, rival: str) -> str:
    """The GRU's error compared with a rival's."""
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


def _range(machine: Machine, model: str) -> tuple[float, float] | None:
    """What the intervals of a model's times span, over all tasks and numbers of threads."""
    pairs = product(machine.tasks, machine.threads)
    found = [one for one in (time_ratio(machine, task, model, threads) for task, threads in pairs) if one]
    return (min(one.low for one in found), max(one.high for one in found)) if found else None


def _times_as_long(machine: Machine, model: str) -> str:
    found = _range(machine, model)
    return f"{found[0]:.2f} to {found[1]:.2f} times" if found else "an unknown number of times"


# Sentences


def answer(rows: Sequence[Row]) -> str:
    """Two sentences about the CPU: how long a training step takes, and how large the errors are."""
    machine = of_cpu(rows)
    return both(machine) if machine else NONE_YET


def both(machine: Machine) -> str:
    return f"{speed(machine)} {accuracy(machine)}"


def speed(machine: Machine) -> str:
    spans = [_range(machine, model) for model in ("LSTM", OF_TORCH)]
    slower = all(span and span[1] < 1 for span in spans)
    return (
        f"On a {_place(machine)}, a training step of an LSTM with the same hidden size takes "
        f"{_times_as_long(machine, 'LSTM')} as long as one of tritongru's GRU, and a step of torch's own `{OF_TORCH}` "
        f"{_times_as_long(machine, OF_TORCH)} as long{', so tritongru is the slowest of the three' if slower else ''}."
    )


def _place(machine: Machine) -> str:
    first = machine.rows[0]
    if machine.has_gpu:
        return f"GPU ({first['gpu']})"
    *most, last = machine.threads
    return f"CPU ({first['cpu']}, {' and '.join([*map(str, most), counted(last)])})"


def accuracy(machine: Machine) -> str:
    told = _compared(machine, "LSTM", "the LSTM")
    return f"After the same number of steps, {told}{'' if UNCLEAR in told else ' (95 % confidence intervals)'}."


def smaller(machine: Machine) -> str:
    """About the LSTM that has as many parameters as the GRU."""
    return (
        f"On a {_place(machine)}, a step of that LSTM takes {_times_as_long(machine, SMALL)} as long as one of "
        f"the GRU; {_compared(machine, SMALL, 'the LSTM')}."
    )


def _compared(machine: Machine, rival: str, name: str) -> str:
    """The GRU's error and a rival's on all tasks, those with the same outcome together."""
    apart: dict[str, list[str]] = {}
    clauses = []
    for task in machine.tasks:
        words, doing = error_in_words(machine, task, rival), TASKS[task].doing
        first, by = words.split(" ", 1)
        if first in ("smaller", "larger"):
            apart.setdefault(first, []).append(f"{by} in {doing}")
        else:
            clauses.append(
                f"{UNCLEAR} in {doing}{words.removeprefix(UNCLEAR)}" if UNCLEAR in words else f"{words}, {doing}"
            )
    told = [f"the GRU's error is {first} than {name}'s {listing(parts)}" for first, parts in apart.items()]
    return "; ".join((*told, *clauses))


def baselines(machine: Machine) -> str:
    """Which models do better than anything without a network."""
    parts = []
    for task in machine.tasks:
        *_, bar = machine.bars(task).values()
        ahead = [model for model in MODELS if _below(machine.trainings(task, model), bar)]
        told = listing(ahead) if len(ahead) < len(MODELS) else "all"
        parts.append(f"{told or 'none'} on {task}")
    return f"Models with a smaller error than the best baseline: {'; '.join(parts)}."


def _below(trained: Trainings, bar: float) -> bool:
    """By the whole interval."""
    found = trained.mean(list(trained.errors.values()))
    return found is not None and found.high < bar

"""The rows of ``python3 -m bench study`` as its page reads them: by machine, task and model, all seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from bench.measure.rows import Row
from bench.study.statistics import Interval, geometric, interval
from bench.study.training import MODELS


@dataclass(frozen=True)
class About:
    """What a page says of a task besides its rows."""

    what: str
    source: str
    held_out: str
    baseline: str
    error: str  # the key that counts
    title: str  # of that error
    unit: str = ""
    form: str = ".3g"
    by_factors: bool = False  # of errors that may be a hundred times each other, logarithms are averaged
    second: tuple[str, str, str] | None = None  # another error: its key, title and form


TASKS = {
    "electricity": About(
        "half-hourly electricity demand of England and Wales, forecast one step ahead from two days",
        "Taylor, 2003, as pmdarima ships it; the task of `python -m tritongru demo`",
        "the last two of twelve weeks",
        "the same half hour a week before",
        *("rmse", "RMSE", " MW", ".1f"),
        second=("smape", "sMAPE, %", ".3f"),
    ),
    "adding": About(
        "the sum of two marked numbers in a sequence of random ones",
        "Hochreiter and Schmidhuber, 1997",
        "2,000 sequences of a seed of their own",
        "always 1, the mean of the target",
        *("mse", "mean squared error", "", ".1e"),
        by_factors=True,
    ),
    "characters": About(
        "the next character of Python's language reference",
        "`pydoc_data.topics` of the standard library",
        "the last tenth of the text, of which no paragraph occurs before",
        "how often each character occurs",
        *("nats", "cross entropy", " nats per character", ".3f"),
    ),
}


@dataclass(frozen=True)
class Trainings:
    """Of one model on one task and machine, all seeds."""

    about: About
    rows: tuple[Row, ...]

    @cached_property
    def errors(self) -> dict[int, float]:
        return self.finite(self.about.error)

    def finite(self, key: str) -> dict[int, float]:
        """The errors by seed, where they are numbers."""
        found = {row["seed"]: row["errors"][key] for row in self.rows}
        return {seed: error for seed, error in found.items() if error is not None}

    @cached_property
    def seconds(self) -> dict[int, float]:
        return {row["seed"]: row["seconds"] for row in self.rows}

    @property
    def center(self) -> float | None:
        found = self.mean(list(self.errors.values()))
        return found.mean if found else None

    def mean(self, values: Sequence[float]) -> Interval | None:
        """None of fewer than two values, which tell no interval."""
        if len(values) < 2:
            return None
        return geometric(values) if self.about.by_factors else interval(values)


@dataclass(frozen=True)
class Machine:
    rows: tuple[Row, ...]

    @property
    def has_gpu(self) -> bool:
        return self.rows[0]["gpu"] is not None

    @property
    def name(self) -> str:
        first = self.rows[0]
        return str(first["gpu"]) if self.has_gpu else f"{first['threads']} thread of the CPU {first['cpu']}"

    def caption(self) -> str:
        kept = {key: listed(row[key] for row in self.rows) for key in ("torch", "precision", "commit", "date")}
        clock = "wall clock" if self.has_gpu else "time of the process"
        return (
            f"{self.name}, torch {kept['torch']}, fp32 ({kept['precision']}), {clock}; "
            f"commit {kept['commit']}; {kept['date']}"
        )

    def of(self, kind: str, task: str, model: str) -> list[Row]:
        about = {"kind": kind, "task": task, "model": model}
        return [row for row in self.rows if all(row[key] == value for key, value in about.items())]

    def trainings(self, task: str, model: str) -> Trainings:
        """Those of the settings that were used last."""
        rows = self.of("training", task, model)
        keys = ("hidden", "batch", "time", "steps", "rate", "clip")
        return Trainings(TASKS[task], tuple(row for row in rows if all(row[key] == rows[-1][key] for key in keys)))

    def rates(self, task: str, model: str) -> list[float]:
        """Those that one was chosen from."""
        return sorted({row["rate"] for row in self.of("choice", task, model)})

    def leaders(self, task: str) -> tuple[str, str]:
        """The models with the smallest error on the validation part, at its best rate, and on what is held out."""
        key = TASKS[task].error
        before = {model: least(row["errors"][key] for row in self.of("choice", task, model)) for model in MODELS}
        after = {model: least([self.trainings(task, model).center]) for model in MODELS}
        return min(MODELS, key=before.__getitem__), min(MODELS, key=after.__getitem__)

    @cached_property
    def tasks(self) -> list[str]:
        """Those on which every model was trained and timed."""

        def whole(task: str) -> bool:
            return all(self.of(kind, task, model) for kind, model in product(("training", "step"), MODELS))

        return [task for task in TASKS if whole(task)]


def least(errors: Iterable[float | None]) -> float:
    """The smallest; infinity if none is a number."""
    return min((error for error in errors if error is not None), default=math.inf)


def listed(values: Iterable[object]) -> str:
    return ", ".join(sorted({str(value) for value in values}))


def machines(rows: Sequence[Row]) -> list[Machine]:
    """By GPU or CPU and torch, in the order of their rows."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["gpu"] or row["cpu"], row["torch"]), []).append(row)
    return [machine for machine in (Machine(tuple(own)) for own in found.values()) if machine.tasks]


def together(first: dict[int, float], second: dict[int, float]) -> tuple[list[float], list[float]]:
    """What two models have of the same seeds."""
    seeds = sorted(first.keys() & second.keys())
    return [first[seed] for seed in seeds], [second[seed] for seed in seeds]


def deciles(samples: Sequence[float]) -> tuple[float, float]:
    found = statistics.quantiles(samples, n=10, method="inclusive")
    return found[0], found[-1]

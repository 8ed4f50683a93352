"""The rows of ``python3 -m bench study`` as their pages read them: by machine, task and model, all seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from bench.measure.rows import Row
from bench.study.command import mean_error
from bench.study.statistics import Interval, geometric, interval
from bench.study.training import MODELS, TIMED
from tritongru.commands.forecast import BASELINES


@dataclass(frozen=True)
class About:
    """What a page says of a task besides its rows."""

    doing: str  # in a sentence
    what: str
    source: str
    held_out: str
    baselines: str
    error: str  # the key that counts
    title: str  # of that error
    unit: str = ""
    form: str = ".3g"
    by_factors: bool = False  # of errors that may be a hundred times each other, logarithms are averaged
    second: tuple[str, str, str] | None = None  # another error: its key, title and form


TASKS = {
    "electricity": About(
        "forecasting electricity demand",
        "electricity demand in England and Wales, 48 half hours ahead, from the demand of the last two days and its "
        "difference from the week before",
        "Taylor, 2003, included in pmdarima; also the task of `python -m tritongru demo`",
        "the last two of twelve weeks, with a forecast from every half hour",
        "; ".join(f"{name} ({what})" for name, what in BASELINES.items()),
        *("rmse", "RMSE", " MW", ".0f"),
        second=("mape", "MAPE, %", ".2f"),
    ),
    "adding": About(
        "adding two marked numbers",
        "the sum of two marked numbers in a sequence of random ones",
        "Hochreiter and Schmidhuber, 1997",
        "2,000 sequences from a separate random seed",
        "always 1 (the mean of the targets)",
        *("mse", "mean squared error", "", ".1e"),
        by_factors=True,
    ),
    "characters": About(
        "predicting text",
        "the next character of Python's language reference",
        "`pydoc_data.topics` of the standard library",
        "the last tenth of the text; none of its paragraphs occurs earlier",
        "frequencies (each character predicted by how often it occurs)",
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
        return str(first["gpu"]) if self.has_gpu else f"CPU {first['cpu']}"

    def caption(self) -> str:
        kept = {
            key: listed(row[key] for row in self.rows) for key in ("torch", "precision", "commit", "date", "llvmlite")
        }
        path = listed(row["family"] for row in self.rows if row["model"] == "GRU")
        made = f", llvmlite {kept['llvmlite']}" if path == "llvm" else ""
        return (
            f"{self.name}, torch {kept['torch']}{made}, fp32 ({kept['precision']}), GRU path {path}; "
            f"commit {kept['commit']}; {kept['date']}"
        )

    def of(self, kind: str, task: str, model: str) -> list[Row]:
        about = {"kind": kind, "task": task, "model": model}
        return [row for row in self.rows if all(row[key] == value for key, value in about.items())]

    def trainings(self, task: str, model: str) -> Trainings:
        """Those of the settings that were used last."""
        rows = self.of("training", task, model)
        keys = ("hidden", "batch", "time", "steps", "rate", "clip", "family")
        return Trainings(TASKS[task], tuple(row for row in rows if all(row[key] == rows[-1][key] for key in keys)))

    def samples(self, task: str, model: str, threads: int) -> list[float]:
        """Milliseconds of a training step with so many threads, one sample a round; empty if there is no row."""
        rows = [row for row in self.of("step", task, model) if row["threads"] == threads]
        return list(rows[-1]["samples_ms"]) if rows else []

    @cached_property
    def threads(self) -> list[int]:
        """Those that training steps were timed with, one first. On a GPU they are the host's."""
        found = sorted({row["threads"] for row in self.rows if row["kind"] == "step"})
        return found[:1] if self.has_gpu else found

    def epoch(self, task: str) -> int:
        """In training steps."""
        found: int = self.of("step", task, "GRU")[-1]["epoch"]
        return found

    def family(self, task: str, model: str) -> str:
        """The path that ran it."""
        found: str = self.of("step", task, model)[-1]["family"]
        return found

    def baselines(self, task: str) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = self.trainings(task, "GRU").rows[-1]["baselines"]
        return found

    def bars(self, task: str) -> dict[str, float]:
        """The baselines' errors, the smallest last."""
        errors = {name: found[TASKS[task].error] for name, found in self.baselines(task).items()}
        return dict(sorted(errors.items(), key=lambda one: -one[1]))

    def rates(self, task: str, model: str) -> list[float]:
        """Those that one was chosen from."""
        return sorted(self.choices(task, model))

    def choices(self, task: str, model: str) -> dict[float, float]:
        """By rate, the mean error on the validation part."""
        rows = self.of("choice", task, model)
        rates = {row["rate"]: [own for own in rows if own["rate"] == row["rate"]] for row in rows}
        return {rate: mean_error(own, TASKS[task].error) for rate, own in rates.items()}

    def leaders(self, task: str) -> tuple[str, str]:
        """The models with the smallest error on the validation part, at its best rate, and on what is held out."""
        before = {model: min(self.choices(task, model).values()) for model in MODELS}
        after = {model: least([self.trainings(task, model).center]) for model in MODELS}
        return min(MODELS, key=before.__getitem__), min(MODELS, key=after.__getitem__)

    @cached_property
    def tasks(self) -> list[str]:
        """Those on which every model was trained and timed."""

        def whole(task: str) -> bool:
            trained = all(self.of(kind, task, model) for kind, model in product(("choice", "training"), MODELS))
            return trained and all(self.of("step", task, model) for model in TIMED)

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


def points(trained: Trainings) -> Iterator[tuple[int, float, float, float]]:
    """Of each point of the curves of all seeds: steps, mean error, and its interval."""
    for values in zip(*(row["curve"] for row in trained.rows), strict=True):
        found = trained.mean([error for _, error in values if error is not None])
        if found:
            yield values[0][0], found.mean, found.low, found.high


def together(first: dict[int, float], second: dict[int, float]) -> tuple[list[float], list[float]]:
    """What two models have of the same seeds."""
    seeds = sorted(first.keys() & second.keys())
    return [first[seed] for seed in seeds], [second[seed] for seed in seeds]


def deciles(samples: Sequence[float]) -> tuple[float, float]:
    found = statistics.quantiles(samples, n=10, method="inclusive")
    return found[0], found[-1]

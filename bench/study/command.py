"""``python -m bench study``: choose a learning rate for each model, then train all models on all tasks."""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import tritongru
from bench.measure.cpu.cells import counted
from bench.measure.rows import Row, append, facts, file_name, lines_of, number
from bench.measure.timing import CudaTimer, interleaved
from bench.study.tasks import TASKS, Task
from bench.study.training import (
    MODELS,
    OF_TORCH,
    POINTS,
    TIMED,
    ClockTimer,
    Trained,
    Training,
    clock_of,
    parameters,
    train,
    width,
)
from tritongru.commands.training import CLIP, one_thread
from tritongru.planning.devices import device_facts
from tritongru.planning.plan import fp32_precision

CHOOSING_SEED = 1000  # the first seed for choosing; not among those that count
FOLDER = "study"  # for its rows, beside those of cases
UNENDING = 10**6  # steps of a schedule that no timing reaches the end of
TIMED_S = 60.0
# Two rows with these keys alike measure the same thing; the commit is left out.
SAME = (
    *("kind", "task", "model", "hidden", "batch", "time", "steps", "seed", "rate", "clip", "family", "threads"),
    *("gpu", "cpu", "torch"),
)


def read(folder: Path) -> list[Row]:
    """The rows of a folder in the order of writing; of two measurements of the same thing, the later one."""
    found: dict[str, Row] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for row in lines_of(path):
            found.pop(sameness(row), None)
            found[sameness(row)] = row
    return list(found.values())


def sameness(row: Row) -> str:
    return json.dumps([row[key] for key in SAME])


class Study:
    """Rows of one machine; those that the folder already has are not measured again."""

    def __init__(self, out: Path, where: Row, device: torch.device) -> None:
        self.where, self.device = where, device
        self.path = out / file_name("study", where["gpu"], where["date"])
        self.found = {sameness(row): row for row in read(out)}

    def about(self, task: Task, name: str, kind: str, seed: int | None, rate: float | None) -> Row:
        """A row without measured values."""
        setup = task.setup
        hidden = width(task, name)
        gpu = self.device.type == "cuda"
        timed = kind == "step"
        return {
            "kind": kind,
            "task": task.name,
            "model": name,
            "hidden": hidden,
            "parameters": parameters(task.model(TIMED[name], hidden)),
            "batch": setup.batch,
            "time": setup.time,
            "steps": None if timed else setup.steps,
            "epoch": task.epoch,
            "rate": rate,
            "rates": list(setup.rates),
            "clip": CLIP,
            "family": self.family(task, name),
            "precision": fp32_precision() if gpu else "ieee",
            "clock": clock_of(self.device, torch.get_num_threads()),
            "threads": torch.get_num_threads(),
            "baselines": {
                name: {key: number(value) for key, value in errors.items()} for name, errors in task.baselines.items()
            },
            "errors": None,
            "curve": None,
            "seconds": None,
            "samples_ms": None,
            **self.where,
            "seed": seed,
        }

    def family(self, task: Task, name: str) -> str:
        """The family that ran tritongru's GRU; the other models are torch's own."""
        if name != "GRU":
            return "torch"
        layer: Any = task.model(MODELS[name], task.setup.hidden)
        plan = tritongru.explain(layer.rnn, batch=task.setup.batch, time=task.setup.time, device=self.device)
        return plan.family

    def add(self, row: Row) -> Row:
        self.found[sameness(row)] = row
        append(self.path, row)
        return row

    def trained(self, task: Task, name: str, kind: str, seed: int, rate: float) -> Row:
        about = self.about(task, name, kind, seed, rate)
        kept = self.found.get(sameness(about))
        if kept:
            return kept
        choosing = kind == "choice"
        points = 1 if choosing else POINTS
        result = train(task, name, rate, seed, self.device, task.setup.steps, choosing, points)
        row = self.add(about | measured(result))
        first, error = next(iter(row["errors"].items()))
        say(f"  {name}, {kind}, seed {seed}, rate {rate:g}: {first} {error}, {result.seconds:.1f} s")
        return row

    def choose(self, task: Task, name: str) -> float:
        """The rate with the smallest mean error on the validation part."""
        found: dict[float, float] = {}
        for rate in task.setup.rates:
            seeds = range(CHOOSING_SEED, CHOOSING_SEED + task.setup.choices)
            rows = [self.trained(task, name, "choice", seed, rate) for seed in seeds]
            found[rate] = mean_error(rows, next(iter(rows[0]["errors"])))
        return min(found, key=lambda rate: found[rate])

    def time_steps(self, task: Task, rates: dict[str, float]) -> None:
        """A training step of each model in turn, so that drift affects all alike, with torch's threads."""
        rows = {name: self.about(task, name, "step", None, None) for name in TIMED}
        if all(sameness(row) in self.found for row in rows.values()):
            return
        rates = rates | {OF_TORCH: rates["GRU"]}
        calls = {name: Training(task, name, rates[name], 0, self.device, UNENDING).step for name in TIMED}
        timer = CudaTimer(self.device) if self.device.type == "cuda" else ClockTimer(self.device)
        for name, samples in interleaved(timer, calls, limit_s=TIMED_S).items():
            self.add(rows[name] | {"samples_ms": [number(sample) for sample in samples]})
            say(f"  {name}, {counted(torch.get_num_threads())}: {statistics.median(samples):.2f} ms per training step")


def mean_error(rows: Sequence[Row], key: str) -> float:
    """Infinity if one of them is missing."""
    errors = [row["errors"][key] for row in rows]
    return math.inf if None in errors else statistics.fmean(errors)


def measured(result: Trained) -> Row:
    return {
        "errors": {key: number(value) for key, value in result.errors.items()},
        "curve": [[steps, number(error)] for steps, error in result.curve],
        "seconds": number(result.seconds),
    }


def say(line: str) -> None:
    print(line, flush=True)


def study(out: Path, commit: str | None, only: str, seeds: int | None, steps: int | None) -> int:
    names = [name for name in TASKS if only in name]
    if not names:
        print(f"No task name contains {only!r}; the tasks are {', '.join(TASKS)}.", file=sys.stderr)
        return 2
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = facts(None, commit)
    if device.type == "cuda":
        where = facts(torch.cuda.get_device_name(device), commit, device_facts(device).arch)
    own = Study(out, where, device)
    for name in names:
        code = run(own, name, seeds, steps)
        if code:
            return code
    say(f"Rows: {own.path}")
    return 0


def beside(out: Path, commit: str | None) -> int:
    """All tasks, with their rows in a folder beside those of cases."""
    return study(out / FOLDER, commit, "", None, None)


def run(own: Study, name: str, seeds: int | None, steps: int | None) -> int:
    make = TASKS[name]
    setup = replace(make.setup, steps=steps or make.setup.steps, seeds=seeds or make.setup.seeds)
    try:
        task: Task = make(setup, own.device)
    except ImportError as error:
        print(f"The task {name} needs the package {error.name}, which is not installed.", file=sys.stderr)
        return 2
    errors = [f"{rule} {value:.4g}" for rule, found in task.baselines.items() for value in list(found.values())[:1]]
    say(f"{name}: {setup.steps} steps, {setup.seeds} seeds; baselines: {', '.join(errors)}")
    with one_thread():
        for model in MODELS:  # compiling and loading at first use are not training
            train(task, model, setup.rates[0], 0, own.device, steps=2, points=1)
        rates = {model: own.choose(task, model) for model in MODELS}
        for seed in range(setup.seeds):
            for model in MODELS:
                own.trained(task, model, "training", seed, rates[model])
        own.time_steps(task, rates)
    if own.device.type == "cpu" and torch.get_num_threads() > 1:
        own.time_steps(task, rates)
    return 0

"""``python -m tritongru demo``: GRU, LSTM and plain RNN forecast tomorrow's electricity demand, next to simple rules.

``forecast.py`` describes the data and the task, ``picture.py`` draws the results.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import tritongru
from tritongru.commands.env import report
from tritongru.commands.forecast import (
    BASELINES,
    BATCH,
    EPOCHS,
    LAST_WEEK,
    LINEAR,
    SHIFTED,
    WINDOW,
    Forecaster,
    Layer,
    Task,
    baselines,
    batches,
    losses,
    make_task,
    mape,
    read_series,
    rmse,
)
from tritongru.commands.picture import draw, picture, shown
from tritongru.commands.training import Steps, one_thread
from tritongru.planning.instruction_sets import INSTALL
from tritongru.planning.plan import fp32_precision

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

EXTRAS = ("matplotlib", "pmdarima", "rich")
SEED = 0
OURS, THEIRS = "GRU", "nn.GRU"
MODELS: dict[str, Layer] = {OURS: tritongru.GRU, THEIRS: nn.GRU, "LSTM": nn.LSTM, "RNN": nn.RNN}
# Highest learning rates of the schedule: of those that the study tried (`python3 -m bench study`), each model's best on
# the two weeks before the held-out ones. It is the same for all.
RATES = dict.fromkeys(MODELS, 2.5e-3)
Errors = dict[str, tuple[float, float]]  # by name: RMSE in MW, MAPE in percent


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the demo. Each value is checked here, so that no error comes after a minute of training."""
    add = parser.add_argument
    add("--epochs", type=count(1000), default=EPOCHS, metavar="N", help="passes over the training weeks (%(default)s)")
    add("--hidden", type=count(2048), default=64, metavar="N", help="hidden size of every model (%(default)s)")
    add("--out", type=picture, default="demo.png", metavar="FILE", help="file of the picture (%(default)s)")
    add("--json", action="store_true", help="print what the picture shows as JSON, and all else on standard error")
    add("--device", type=_device, default="auto", help="auto (a GPU if there is one), cpu, cuda or cuda:N")


def count(limit: int) -> Callable[[str], int]:
    """The type of an option: a whole number from 1 to ``limit``."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and len(text) < 20 and 1 <= int(text) <= limit):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {limit}")
        return int(text)

    return parse


def _device(text: str) -> torch.device:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    present = ["auto", "cpu"] + (["cuda"] if gpus else []) + [f"cuda:{index}" for index in range(gpus)]
    if text not in present:
        raise argparse.ArgumentTypeError(f"{text!r} is not a device of this machine; choose from {', '.join(present)}")
    return torch.device(text if text != "auto" else "cuda" if gpus else "cpu")


def run(args: argparse.Namespace) -> int:
    """Train, print the table, write the picture. Returns the exit code."""
    missing = [name for name in EXTRAS if importlib.util.find_spec(name) is None]
    if missing:
        print(f'the demo needs {", ".join(missing)}; run: pip install "tritongru[demo]"', file=sys.stderr)
        return 1
    from rich.console import Console

    console = Console(stderr=args.json, highlight=False, markup=False, emoji=False)
    say = partial(console.print, soft_wrap=True)
    say("Reading the demand of England and Wales in summer 2000 (importing pmdarima takes a few seconds)")
    task = make_task(read_series(), args.device)
    say(
        f"Training on {_name(args.device)}: hidden size {args.hidden}, {args.epochs} epoch{'s' * (args.epochs > 1)} of "
        f"{batches(task.training)} batches, each with {BATCH} windows of two days"
    )
    results = train_all(task, args.hidden, args.epochs, args.device, console)
    truth = task.truth
    forecasts = {result.name: result.forecast for result in results} | baselines(task)
    errors = {name: (rmse(truth, forecast), mape(truth, forecast)) for name, forecast in forecasts.items()}
    show(console, results, errors)
    for sentence in findings(results, errors, args.device):
        say(sentence)
    about = shown(truth, forecasts, {name: value for name, (value, _) in errors.items()}, seconds_of(results))
    try:
        draw(args.out, about)
    except OSError as error:
        print(f"cannot write {str(args.out)!r} ({error.strerror}); choose another --out", file=sys.stderr)
        return 1
    say(f"Picture: {args.out}")
    if args.json:
        ran = {"date": f"{datetime.date.today()}", "ran on": _name(args.device), **report()}
        print(json.dumps({**ran, "hidden": args.hidden, "epochs": args.epochs, **dataclasses.asdict(about)}))
    return 0


@dataclass
class Result:
    name: str
    model: Forecaster
    seconds: list[float] = field(default_factory=list)  # of each epoch
    forecast: Tensor = field(default_factory=lambda: torch.zeros(0))  # (N, DAY) in MW, float64 on the CPU


class Training:
    """Trains a model one epoch at a time: the same width, seed, batches and optimizer for all."""

    def __init__(self, task: Task, name: str, hidden: int, epochs: int, device: torch.device) -> None:
        torch.manual_seed(SEED)
        self.result = Result(name, Forecaster(MODELS[name], hidden).to(device))
        self.model, self.device, self.batches = self.result.model, device, batches(task.training)
        self.step = Steps(self.model, losses(self.model, task.training, SEED), RATES[name], epochs * self.batches)

    def epoch(self, after_batch: Callable[[], None]) -> None:
        start = _now(self.device)
        for _ in range(self.batches):
            self.step()
            after_batch()
        self.result.seconds.append(_now(self.device) - start)


def train_all(task: Task, hidden: int, epochs: int, device: torch.device, console: Console) -> list[Result]:
    """Train every model of ``MODELS``, an epoch of each in turn, so that a slow phase of the machine affects all."""
    with one_thread():
        trainings = {name: Training(task, name, hidden, epochs, device) for name in MODELS}
        # A progress bar would fill a pipe with noise.
        with _progress(console) as bars:
            tasks = {name: bars.add_task(name, total=epochs * own.batches) for name, own in trainings.items()}
            for _ in range(epochs):
                for name, own in trainings.items():
                    own.epoch(partial(bars.advance, tasks[name]))
        for own in trainings.values():
            with torch.no_grad():
                own.result.forecast = task.megawatts(own.model(task.held_out))
    return [own.result for own in trainings.values()]


def _progress(console: Console) -> Progress:
    from rich.progress import Progress

    return Progress(console=console, transient=True, disable=not console.is_terminal)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _name(device: torch.device) -> str:
    if device.type == "cpu":
        return "one thread of the CPU"
    return f"{torch.cuda.get_device_name(device)} (fp32 products of recurrent layers: {fp32_precision()})"


def seconds_of(results: list[Result]) -> dict[str, float]:
    """The median over the epochs."""
    return {result.name: statistics.median(result.seconds) for result in results}


def show(console: Console, results: list[Result], errors: Errors) -> None:
    """The table; on a terminal that is too narrow for it, one number per line."""
    table = _table(results, errors)
    if console.measure(table, options=console.options.update(width=1000)).maximum <= console.width:
        console.print(table)
        return
    for name, cells in _cells(results, errors).items():
        console.print(name, soft_wrap=True)
        for heading, cell in zip(HEADINGS, cells, strict=True):
            if cell != "-":
                console.print(f"  {heading}: {cell}", soft_wrap=True)


HEADINGS = ("parameters", "s per epoch", "s in total", "RMSE, MW", "MAPE, %")


def _cells(results: list[Result], errors: Errors) -> dict[str, tuple[str, ...]]:
    medians = seconds_of(results)
    costs = {
        result.name: (
            f"{sum(parameter.numel() for parameter in result.model.parameters()):,}",
            f"{medians[result.name]:.2f}",
            f"{sum(result.seconds):.1f}",
        )
        for result in results
    }
    return {
        name: (*costs.get(name, ("-", "-", "-")), f"{megawatts:.0f}", f"{percent:.2f}")
        for name, (megawatts, percent) in errors.items()
    }


def _table(results: list[Result], errors: Errors) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("forecast by", no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, cells in _cells(results, errors).items():
        table.add_row(name, *cells)
    return table


def findings(results: list[Result], errors: Errors, device: torch.device) -> Iterator[str]:
    """What the table shows, in sentences made from the measured numbers."""
    yield "Errors are over all forecasts of the next 48 half hours within the last two weeks, which were held out."
    for name, what in BASELINES.items():
        yield f"'{name}' is {what}."
    rule = min((LAST_WEEK, SHIFTED), key=lambda name: errors[name][0])
    for result in results:
        if result.name != THEIRS:
            own = errors[result.name][0]
            told = (f"{_against(own, errors[name][0])} '{name}'" for name in (rule, LINEAR))
            yield f"{result.name}: {', '.join(told)}."
    by_name = {result.name: result for result in results}
    with one_thread():
        plan = tritongru.explain(by_name[OURS].model.rnn, batch=BATCH, time=WINDOW, device=device)
    yield f"{OURS} is tritongru.GRU, which ran on {plan.device} (path {plan.family}: {plan.reason})."
    medians = seconds_of(results)
    ours = medians[OURS]
    others = [f"{name} {_ratio(medians[name] / ours)}" for name in MODELS if name != OURS]
    yield f"An epoch took {OURS} {ours:.2f} s; {', '.join(others)}."
    if plan.family == "torch" and device.type == "cpu":
        yield f"On a CPU torch runs a GRU as a loop of small operations; for a compiled loop, run: {INSTALL}"


def _against(megawatts: float, bar: float) -> str:
    share = 100 * (megawatts / bar - 1)
    if megawatts < bar:
        return f"{bar - megawatts:.0f} MW ({-share:.0f} %) better than"
    return f"{megawatts - bar:.0f} MW ({share:.0f} %) worse than"


def _ratio(theirs: float) -> str:
    """Of another model's time to our GRU's."""
    return "about as long" if 0.95 < theirs < 1.05 else f"{theirs:.1f} times as long"

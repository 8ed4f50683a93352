"""``python -m tritongru demo``: GRU, LSTM and plain RNN forecast a real electricity demand, next to a naive forecast.

The series is the half-hourly demand of England and Wales in MW from Monday 5 June to Sunday 27 August 2000 (Taylor,
"Short-term electricity demand forecasting using double seasonal exponential smoothing", 2003), which pmdarima ships.
A window of two days forecasts the next half hour; the last two weeks are held out.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import tritongru
from tritongru.planning.instruction_sets import INSTALL
from tritongru.planning.plan import fp32_precision

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

EXTRAS = ("matplotlib", "pmdarima", "rich")
ENDINGS = (".png", ".pdf", ".svg")
HELD_OUT_FROM = datetime.date(2000, 8, 14)  # a Monday
DAY = 48  # half hours
WEEK = 7 * DAY
HELD_OUT = 2 * WEEK
WINDOW = 2 * DAY
BATCH = 64
RATE = 5e-3  # peak; at 1e-2 and windows of a day the RNN missed weeks 9 and 10 by 915 MW, the naive forecast by 883
SEED = 0
MODELS: dict[str, Callable[[int, int], nn.RNNBase]] = {"GRU": tritongru.GRU, "LSTM": nn.LSTM, "RNN": nn.RNN}
NAIVE = "week before"
COLOURS = {"GRU": "#0072B2", "LSTM": "#E69F00", "RNN": "#009E73", NAIVE: "#999999"}  # told apart by the colour-blind


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the demo. Each value is checked here, so that nobody trains for a minute to meet an error."""
    add = parser.add_argument
    add("--epochs", type=count(1000), default=12, metavar="N", help="passes over the training weeks (%(default)s)")
    add("--hidden", type=count(2048), default=64, metavar="N", help="hidden size of every model (%(default)s)")
    add("--out", type=_picture, default="demo.png", metavar="FILE", help="where the picture goes (%(default)s)")
    add("--device", type=_device, default="auto", help="auto (a GPU if there is one), cpu, cuda or cuda:N")


def count(limit: int) -> Callable[[str], int]:
    """The type of an option: a whole number from 1 to ``limit``."""

    def parse(text: str) -> int:
        if not (text.isdecimal() and len(text) < 20 and 1 <= int(text) <= limit):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {limit}; give such a number")
        return int(text)

    return parse


def _picture(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in ENDINGS:
        raise argparse.ArgumentTypeError(f"{text!r} does not end in {', '.join(ENDINGS)}; give a name that does")
    try:
        is_link, target = path.is_symlink(), _target(path)
        if target.is_dir():
            raise argparse.ArgumentTypeError(f"{text!r} is a folder; give the name of a file")
        if is_link and not target.exists():
            raise argparse.ArgumentTypeError(
                f"{text!r} is a link to {str(target)!r}, where no file is; remove the link or give another name"
            )
        if target.exists() and not (target.is_file() and os.access(target, os.W_OK)):
            raise argparse.ArgumentTypeError(f"{text!r} is no file that can be written; give another name")
        tempfile.TemporaryFile(dir=target.parent).close()
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"no file can be written as {text!r} ({error.strerror}); name a file in a folder where one can"
        ) from error
    return path


def _target(path: Path) -> Path:
    """The file itself: what is written through a link leaves the link a link."""
    return Path(os.path.realpath(path))


def _device(text: str) -> torch.device:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    present = ["auto", "cpu"] + (["cuda"] if gpus else []) + [f"cuda:{index}" for index in range(gpus)]
    if text not in present:
        raise argparse.ArgumentTypeError(f"{text!r} is no device of this machine; choose from {', '.join(present)}")
    return torch.device(text if text != "auto" else "cuda" if gpus else "cpu")


def run(args: argparse.Namespace) -> int:
    """Train, print the table, write the picture. Returns the exit code."""
    missing = [name for name in EXTRAS if importlib.util.find_spec(name) is None]
    if missing:
        print(f'the demo needs {", ".join(missing)}; run: pip install "tritongru[demo]"', file=sys.stderr)
        return 1
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    say = partial(console.print, soft_wrap=True)
    say("Reading the demand of England and Wales (importing pmdarima takes some seconds)")
    series = read_series()
    task = make_task(series, args.device)
    say(f"Training on {_name(args.device)}: hidden size {args.hidden}, epochs {args.epochs}, windows {task.training}")
    results = train_all(task, args.hidden, args.epochs, args.device, console)
    truth = series[-HELD_OUT:]
    naive = series[-HELD_OUT - WEEK : -WEEK]
    forecasts = {result.name: result.forecast for result in results} | {NAIVE: naive}
    errors = {name: (smape(truth, forecast), rmse(truth, forecast)) for name, forecast in forecasts.items()}

    console.print(_table(results, errors))
    for sentence in _findings(results, errors, args.device):
        say(sentence)
    try:
        draw(args.out, truth, forecasts, errors)
    except OSError as error:
        print(f"{str(args.out)!r} was not written ({error.strerror}); give another --out", file=sys.stderr)
        return 1
    say(f"Picture: {args.out}")
    return 0


def read_series() -> Tensor:
    """The demand in MW, (4032,) float64 on the CPU."""
    from pmdarima.datasets import load_taylor

    return torch.tensor(load_taylor(), dtype=torch.float64)


@dataclass(frozen=True)
class Task:
    """Sliding windows over the normalised series, in time order; the last ``HELD_OUT`` are for testing."""

    windows: Tensor  # (WINDOW, N)
    targets: Tensor  # (N,), the value after each window
    training: int  # windows to train on: the first ones
    mean: float  # MW
    deviation: float  # MW


def make_task(series: Tensor, device: torch.device) -> Task:
    """Normalise ``series`` (L,) by the mean and the deviation of its training part alone, and cut it into windows."""
    seen = series[:-HELD_OUT]
    mean, deviation = seen.mean().item(), seen.std().item()
    normal = ((series - mean) / deviation).to(device, torch.float32)
    windows = normal.unfold(0, WINDOW, 1)[:-1].T.contiguous()
    return Task(windows, normal[WINDOW:], len(seen) - WINDOW, mean, deviation)


class Forecaster(nn.Module):
    """A recurrent layer over windows (T, B), and a linear head that forecasts each one's next value, (B,)."""

    def __init__(self, layer: Callable[[int, int], nn.RNNBase], hidden: int) -> None:
        super().__init__()
        self.rnn = layer(1, hidden)
        self.head = nn.Linear(hidden, 1)

    def forward(self, window: Tensor) -> Tensor:
        states, _ = self.rnn(window.unsqueeze(-1))
        # The head learns the change from the last value: a few epochs then do the work of many.
        change: Tensor = self.head(states[-1]).squeeze(-1)
        return window[-1] + change


@dataclass(frozen=True)
class Result:
    name: str
    model: Forecaster
    seconds: list[float]  # of each epoch
    forecast: Tensor  # (HELD_OUT,) in MW, float64 on the CPU


def train_all(task: Task, hidden: int, epochs: int, device: torch.device, console: Console) -> list[Result]:
    """Train every model of ``MODELS``: same width, seed, batches and optimiser."""
    from rich.progress import Progress

    results = []
    # A bar redrawn into a pipe would be a page of noise; there, the line after each model has to do.
    with _one_thread(), Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
        for name in MODELS:
            bar = bars.add_task(name, total=epochs)
            results.append(train(task, name, hidden, epochs, device, after_epoch=partial(bars.advance, bar)))
            bars.remove_task(bar)
            console.print(f"{name:<4} trained in {sum(results[-1].seconds):.1f} s")
    return results


def train(
    task: Task, name: str, hidden: int, epochs: int, device: torch.device, after_epoch: Callable[[], None]
) -> Result:
    """Train one model and let it forecast the held-out half hours."""
    torch.manual_seed(SEED)
    shuffle = torch.Generator().manual_seed(SEED)
    model = Forecaster(MODELS[name], hidden).to(device)
    optimiser = torch.optim.Adam(model.parameters(), lr=RATE)
    steps = epochs * -(-task.training // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    seconds = []
    for _ in range(epochs):
        start = _now(device)
        for rows in torch.split(torch.randperm(task.training, generator=shuffle).to(device), BATCH):
            optimiser.zero_grad()
            loss = nn.functional.mse_loss(model(task.windows[:, rows]), task.targets[rows])
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # the plain RNN's gradients can explode
            optimiser.step()
            schedule.step()
        seconds.append(_now(device) - start)
        after_epoch()
    with torch.no_grad():
        normal = model(task.windows[:, task.training :])
    return Result(name, model, seconds, normal.double().cpu() * task.deviation + task.mean)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Layers this small gain nothing from a second thread, and on a machine that is busy elsewhere they wait for it:
    an epoch of the GRU took 1.2 s on one thread and 13.8 s on two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _name(device: torch.device) -> str:
    if device.type == "cpu":
        return "one thread of the CPU"
    return f"{torch.cuda.get_device_name(device)} (fp32 products of recurrent layers: {fp32_precision()})"


def smape(truth: Tensor, forecast: Tensor) -> float:
    """Symmetric mean absolute percentage error: the mean of 2 |y - f| / (|y| + |f|), in percent, from 0 to 200.

    The definition is that of the M4 competition (Makridakis, Spiliotis and Assimakopoulos, 2020)."""
    return 100 * (2 * (truth - forecast).abs() / (truth.abs() + forecast.abs())).mean().item()


def rmse(truth: Tensor, forecast: Tensor) -> float:
    """Root mean squared error, in the unit of the data."""
    return (truth - forecast).square().mean().sqrt().item()


def _table(results: list[Result], errors: dict[str, tuple[float, float]]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("model")
    for heading in ("parameters", "s per epoch", "s in all", "sMAPE, %", "RMSE, MW"):
        table.add_column(heading, justify="right")
    costs = {
        result.name: (
            f"{sum(parameter.numel() for parameter in result.model.parameters()):,}",
            f"{statistics.median(result.seconds):.2f}",
            f"{sum(result.seconds):.1f}",
        )
        for result in results
    }
    for name, (percent, megawatts) in errors.items():
        table.add_row(name, *costs.get(name, ("-", "-", "-")), f"{percent:.3f}", f"{megawatts:.1f}")
    return table


def _findings(results: list[Result], errors: dict[str, tuple[float, float]], device: torch.device) -> Iterator[str]:
    """What the table shows, in sentences: each is drawn from the measured numbers."""
    yield f"Errors are of the {HELD_OUT} held-out half hours; '{NAIVE}' is the same half hour a week earlier."
    percent, megawatts = errors[NAIVE]
    beaten = [r.name for r in results if errors[r.name][0] < percent and errors[r.name][1] < megawatts]
    behind = [r.name for r in results if r.name not in beaten]
    if beaten:
        yield f"Better than the naive forecast in both errors: {', '.join(beaten)}."
    if behind:
        yield f"NOT better than the naive forecast: {', '.join(behind)}; train longer (--epochs) or wider (--hidden)."
    by_name = {result.name: result for result in results}
    plan = tritongru.explain(by_name["GRU"].model.rnn, batch=BATCH, time=WINDOW, device=device)
    yield f"The GRU ran {plan}"
    gru, lstm = (statistics.median(by_name[name].seconds) for name in ("GRU", "LSTM"))
    comparison = f"{gru / lstm:.1f} times slower" if gru > lstm else f"{lstm / gru:.1f} times faster"
    yield f"An epoch took the GRU {gru:.2f} s and the LSTM {lstm:.2f} s: here the GRU is {comparison}."
    if plan.family == "torch" and device.type == "cpu":
        yield f"On a CPU torch runs a GRU as a loop of small operations; a compiled one comes with {INSTALL}."


def draw(path: Path, truth: Tensor, forecasts: dict[str, Tensor], errors: dict[str, tuple[float, float]]) -> None:
    """Write the picture to ``path``: the first held-out week against its forecasts, and all errors as bars."""
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    figure = Figure(figsize=(13, 7), layout="constrained")
    figure.suptitle("Electricity demand of England and Wales, half-hourly, forecast one step ahead", fontweight="bold")
    grid = figure.add_gridspec(2, 2, width_ratios=(7, 2))
    demand = figure.add_subplot(grid[0, 0], ylabel="GW")
    misses = figure.add_subplot(grid[1, 0], ylabel="MW", sharex=demand)
    demand.set_title("Demand in the first held-out week", loc="left")
    demand.plot(forecasts[NAIVE][:WEEK] / 1000, color=COLOURS[NAIVE], label=NAIVE)
    demand.plot(forecasts["GRU"][:WEEK] / 1000, color=COLOURS["GRU"], label="GRU")
    demand.plot(truth[:WEEK] / 1000, "k.", markersize=3, label="true")
    demand.tick_params(labelbottom=False)
    misses.set_title("Forecast minus true", loc="left")
    for name in reversed(forecasts):  # the GRU last, on top
        misses.plot((forecasts[name] - truth)[:WEEK], color=COLOURS[name], linewidth=1, label=name)
    days = [HELD_OUT_FROM + datetime.timedelta(days=day) for day in range(7)]
    misses.set_xticks(range(0, WEEK, DAY), [f"{day:%a} {day.day} {day:%b}" for day in days], ha="left")
    for axes in (demand, misses):
        axes.margins(x=0)
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=4, frameon=False, borderpad=0)
    colours = [COLOURS[name] for name in errors]
    for place, (title, form) in enumerate((("sMAPE, %, both weeks", "%.2f"), ("RMSE, MW, both weeks", "%.0f"))):
        bars = figure.add_subplot(grid[place, 1])
        bars.set_title(title, loc="left")
        drawn = bars.barh(list(errors), [error[place] for error in errors.values()], color=colours)
        bars.bar_label(drawn, fmt=form, padding=4)
        bars.margins(x=0.2)
        bars.invert_yaxis()
        bars.tick_params(left=False)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="0.9")
        axes.set_axisbelow(True)

    target = _target(path)
    unfinished = target.with_name(f".{os.getpid()}.unfinished")  # any name that fits leaves room for this one
    try:
        figure.savefig(unfinished, format=path.suffix[1:].lower(), dpi=140)
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)

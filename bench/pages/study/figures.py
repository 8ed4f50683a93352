"""The figures of ``docs/models.md``, from the rows of ``python3 -m bench study`` alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from bench.measure.rows import Row
from bench.pages.figures import PALETTE, WIDTH, canvas, digest, heading, named_ends, note, plain, svg
from bench.pages.study.rows import TASKS, Machine, deciles, machines, points
from bench.study.training import MODELS, TIMED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = dict(zip(TIMED, PALETTE, strict=False))
SHOWN = ("kind", "task", "model", "seed", "rate", "hidden", "errors", "baselines", "curve", "threads", "samples_ms")
ZOOM = 0.95, 1.35  # where a linear axis of curves begins and ends, as multiples of the smallest error at their ends
FITS = 20  # letters of a label beside an axis
ENOUGH = 5  # seeds; the intervals of fewer are so wide that they would cover all lines
Panel = Callable[["Axes", Machine, str], str]  # returns what its title says below


def figure_of(rows: Sequence[Row], title: str, about: Sequence[str], panel: Panel, height: float) -> bytes | None:
    """For each machine and task a panel, one above the other."""
    found = machines(rows)
    if not found:
        return None
    wanted = [(machine, task) for machine in found for task in machine.tasks]
    with canvas(WIDTH, height * len(wanted) + 0.6) as figure:
        lines = figure.subplots(len(wanted), squeeze=False)[:, 0]
        for axes, (machine, task) in zip(lines, wanted, strict=True):
            plain(axes)
            below = panel(axes, machine, task)
            axes.set_title(f"{task}: {machine.name}, torch {machine.rows[0]['torch']}\n{below}")
        heading(figure, title)
        note(figure, *about)
        drawn = [row for machine in found for row in machine.rows]
        return svg(figure, title, digest(drawn, SHOWN))


def _scale(axes: Axes, task: str) -> None:
    about = TASKS[task]
    gap = "\n" if len(about.title + about.unit) > FITS else " "
    axes.set_ylabel(f"{about.title},{gap}{about.unit.strip()}" if about.unit else about.title)
    if about.by_factors:
        axes.set_yscale("log")


def _baseline(axes: Axes, machine: Machine, task: str) -> str:
    """The best one in words, and as a line where the axis reaches it: to extend the axis would press all else
    together."""
    about = TASKS[task]
    name, value = list(machine.bars(task).items())[-1]
    low, high = axes.get_ylim()
    where = "dashed" if low < value < high else f"{'below' if value <= low else 'above'} the scale"
    if where == "dashed":
        axes.axhline(value, color="black", linestyle="--", linewidth=1.2)
    return f"{where}: {name}, {float(format(value, about.form)):g}{about.unit}"


def errors(axes: Axes, machine: Machine, task: str) -> str:
    _scale(axes, task)
    for place, model in enumerate(MODELS):
        trained = machine.trainings(task, model)
        own = list(trained.errors.values())
        axes.plot([place + 0.2] * len(own), own, "o", color=COLOURS[model], alpha=0.5, markersize=4)
        mean = trained.mean(own)
        if mean:
            arms = [[mean.mean - mean.low], [mean.high - mean.mean]]
            axes.errorbar([place], [mean.mean], arms, fmt="o", color=COLOURS[model], capsize=5, markersize=7)
    axes.set_xticks(range(len(MODELS)), list(MODELS), fontsize=10)
    return _baseline(axes, machine, task)


def curves(axes: Axes, machine: Machine, task: str, over_time: bool) -> str:
    _scale(axes, task)
    ends = {}
    for model in MODELS:
        trained = machine.trainings(task, model)
        steps, means, lows, highs = zip(*points(trained), strict=True)
        scale = statistics.median(machine.samples(task, model, machine.threads[0])) / 1000 if over_time else 1
        x = [scale * step for step in steps]
        ends[model] = x[-1], means[-1], COLOURS[model]
        axes.plot(x, means, color=COLOURS[model], zorder=3)
        axes.plot(x[-1:], means[-1:], "o", color=COLOURS[model], zorder=3)
        alpha = 0.1 if len(trained.rows) >= ENOUGH else 0.05
        axes.fill_between(x, lows, highs, color=COLOURS[model], alpha=alpha, linewidth=0)
    axes.set_xlabel(f"seconds of training, {_threads(machine)}" if over_time else "training steps")
    if not TASKS[task].by_factors:
        least = min(error for _, error, _ in ends.values())
        axes.set_ylim(*(factor * least for factor in ZOOM))
    named_ends(axes, ends)
    return _baseline(axes, machine, task)


def times(axes: Axes, machine: Machine, task: str) -> str:
    """A bar for each model, the GRU's on top, with its time in numbers."""
    for place, model in enumerate(TIMED):
        samples = machine.samples(task, model, machine.threads[0])
        middle, (low, high) = statistics.median(samples), deciles(samples)
        arms = [[middle - low], [high - middle]]
        bar = {"elinewidth": 1.5, "capsize": 4}
        axes.barh([place], [middle], xerr=arms, color=COLOURS[model], error_kw=bar)
        axes.annotate(f"{middle:#.3g}", (max(middle, high), place), (5, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(TIMED)), list(TIMED), fontsize=10)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("ms per training step")
    return _threads(machine)


def _threads(machine: Machine) -> str:
    return "GPU" if machine.has_gpu else "one thread"


BASELINE = "Below each title: the best baseline without a network."
BANDS = ("Lines: means over the seeds. Bands: 95 % confidence intervals.", BASELINE)
FIGURES: dict[str, Callable[[Sequence[Row]], bytes | None]] = {
    "study-errors.svg": partial(
        figure_of,
        title="Error on held-out data",
        about=("Large dots: means, 95 % confidence intervals. Small dots: seeds.", BASELINE),
        panel=errors,
        height=2.5,
    ),
    "study-speed.svg": partial(
        figure_of,
        title="Error on held-out data over training time",
        about=BANDS,
        panel=partial(curves, over_time=True),
        height=2.7,
    ),
    "study-curves.svg": partial(
        figure_of,
        title="Error on held-out data over training steps",
        about=BANDS,
        panel=partial(curves, over_time=False),
        height=2.7,
    ),
    "study-times.svg": partial(
        figure_of,
        title="Time of a training step",
        about=("Bars: medians. Lines: from the first to the last decile.",),
        panel=times,
        height=2.1,
    ),
}

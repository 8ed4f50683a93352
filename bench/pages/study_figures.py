"""The figures of ``docs/models.md``, from the rows of ``python3 -m bench study`` alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from bench.measure.rows import Row
from bench.pages.figures import PALETTE, canvas, digest, plain, svg
from bench.pages.study_rows import TASKS, Machine, deciles, machines, points
from bench.study.training import MODELS, TIMED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = dict(zip(TIMED, PALETTE, strict=False))
SHOWN = ("kind", "task", "model", "seed", "rate", "hidden", "errors", "baselines", "curve", "threads", "samples_ms")
ZOOM = 1.5  # a linear axis of curves goes up to so many times the smallest error at their ends
Panel = Callable[["Axes", Machine, str], None]


def figure_of(rows: Sequence[Row], title: str, panels: Sequence[Panel], height: float) -> bytes | None:
    """For each machine and panel a line of axes, one for each task."""
    found = machines(rows)
    if not found:
        return None
    with canvas(12, height * len(found) * len(panels)) as figure:
        lines = [(machine, panel) for machine in found for panel in panels]
        grid = figure.subplots(len(lines), len(TASKS), squeeze=False)
        for line, (machine, panel) in zip(grid, lines, strict=True):
            for axes, task in zip(line, TASKS, strict=True):
                if task not in machine.tasks:
                    axes.set_visible(False)
                    continue
                plain(axes)
                panel(axes, machine, task)
                axes.set_title(task, loc="left", fontsize=10)
            line[0].annotate(f"{machine.name}, torch {machine.rows[0]['torch']}, fp32", (0, 1.16), **ABOVE)
        drawn = [row for machine in found for row in machine.rows]
        return svg(figure, title, digest(drawn, SHOWN))


ABOVE = {"xycoords": "axes fraction", "fontsize": 8, "color": "0.4", "annotation_clip": False}


def _error_axis(task: str) -> str:
    return f"{TASKS[task].title}{',' if TASKS[task].unit else ''}{TASKS[task].unit}"


def _scale(axes: Axes, machine: Machine, task: str) -> None:
    """The baseline as a line where the axis is logarithmic; elsewhere it would press all else together."""
    about = TASKS[task]
    name, value = list(machine.bars(task).items())[-1]
    axes.set_title(f"{name} {value:{about.form}}", loc="right", fontsize=8, color="0.4")
    axes.set_ylabel(_error_axis(task), fontsize=8)
    if about.by_factors:
        axes.set_yscale("log")
        axes.axhline(value, color="0.5", linestyle="--", linewidth=1)


def errors(axes: Axes, machine: Machine, task: str) -> None:
    _scale(axes, machine, task)
    for place, model in enumerate(MODELS):
        trained = machine.trainings(task, model)
        own = list(trained.errors.values())
        axes.plot([place + 0.18] * len(own), own, "o", color=COLOURS[model], alpha=0.35, markersize=3)
        mean = trained.mean(own)
        if mean:
            arms = [[mean.mean - mean.low], [mean.high - mean.mean]]
            axes.errorbar([place], [mean.mean], arms, fmt="o", color=COLOURS[model], capsize=4)
    axes.set_xticks(range(len(MODELS)), list(MODELS), fontsize=8)


def curves(axes: Axes, machine: Machine, task: str, over_time: bool) -> None:
    _scale(axes, machine, task)
    ends = []
    for model in MODELS:
        trained = machine.trainings(task, model)
        steps, means, lows, highs = zip(*points(trained), strict=True)
        scale = statistics.median(machine.samples(task, model, machine.threads[0])) / 1000 if over_time else 1
        x = [scale * step for step in steps]
        ends.append(means[-1])
        axes.plot(x, means, color=COLOURS[model], label=model)
        axes.fill_between(x, lows, highs, color=COLOURS[model], alpha=0.2, linewidth=0)
    axes.set_xlabel(f"seconds of training, {_threads(machine)}" if over_time else "training steps", fontsize=8)
    if not TASKS[task].by_factors:
        axes.set_ylim(0.95 * min(ends), ZOOM * min(ends))
    axes.legend(fontsize=7)


def steps(axes: Axes, machine: Machine, task: str) -> None:
    for place, model in enumerate(TIMED):
        samples = machine.samples(task, model, machine.threads[0])
        middle, (low, high) = statistics.median(samples), deciles(samples)
        arms = [[middle - low], [high - middle]]
        axes.bar([place], [middle], yerr=arms, color=COLOURS[model], error_kw={"elinewidth": 1, "capsize": 3})
    axes.set_xticks(range(len(TIMED)), list(TIMED), fontsize=8)
    axes.set_ylabel(f"ms a training step, {_threads(machine)}", fontsize=8)


def _threads(machine: Machine) -> str:
    return "GPU" if machine.has_gpu else "one thread"


FIGURES: dict[str, Callable[[Sequence[Row]], bytes | None]] = {
    "study-errors.svg": partial(figure_of, title="Error on what is held out", panels=(errors,), height=3.4),
    "study-speed.svg": partial(
        figure_of, title="Error against training time", panels=(partial(curves, over_time=True),), height=3.4
    ),
    "study-curves.svg": partial(
        figure_of, title="Error against training steps", panels=(partial(curves, over_time=False),), height=3.4
    ),
    "study-times.svg": partial(figure_of, title="Time of a training step", panels=(steps,), height=3.0),
}

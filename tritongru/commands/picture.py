"""The demo's picture: a held-out week of forecasts, errors by hours ahead, and the error and time of each model."""

from __future__ import annotations

import argparse
import datetime
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from tritongru.commands.forecast import BASELINES, DAY, HELD_OUT_FROM, LAST_WEEK, LINEAR, SHIFTED, WEEK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ENDINGS = (".png", ".pdf", ".svg")
GRU, GRU_OF_TORCH, TRUE = "GRU", "nn.GRU", "true"
# Distinguishable for the colour-blind (Okabe and Ito); the baselines are grey.
COLOURS = {
    GRU: "#0072B2",
    GRU_OF_TORCH: "#56B4E9",
    "LSTM": "#E69F00",
    "RNN": "#009E73",
    LAST_WEEK: "#BBBBBB",
    SHIFTED: "#888888",
    LINEAR: "#444444",
}
SIZE, DPI = (6.4, 9.2), 150  # inches, one panel a row: text that can be read in a page's column
TITLE = "Electricity demand of England and Wales, forecast a day ahead"


@dataclass(frozen=True)
class Shown:
    """What the picture shows. Each by the name of the forecast."""

    week: dict[str, list[float]]  # of TRUE, SHIFTED and GRU: MW of each half hour of the first held-out week
    horizon: dict[str, list[float]]  # RMSE in MW of each half hour ahead, (DAY,)
    errors: dict[str, float]  # RMSE in MW of all half hours
    seconds: dict[str, float]  # of an epoch; of the models alone


def shown(
    truth: Tensor,  # (N, DAY) in MW: the actual demand, from each origin on
    forecasts: Mapping[str, Tensor],  # as ``truth``
    errors: Mapping[str, float],
    seconds: Mapping[str, float],
) -> Shown:
    """Each day of the week as it was forecast when it began."""

    def days(of: Tensor) -> list[float]:
        return _rounded(of[:WEEK:DAY].flatten())

    return Shown(
        {TRUE: days(truth), SHIFTED: days(forecasts[SHIFTED]), GRU: days(forecasts[GRU])},
        {name: _rounded((truth - own).square().mean(0).sqrt()) for name, own in forecasts.items()},
        {name: round(value, 1) for name, value in errors.items()},
        {name: round(value, 4) for name, value in seconds.items()},
    )


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 1) for value in values.tolist()]


def picture(text: str) -> Path:
    """The type of an option: a writable picture file."""
    path = Path(text)
    if path.suffix.lower() not in ENDINGS:
        raise argparse.ArgumentTypeError(f"{text!r} should end in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}")
    try:
        is_link, target = path.is_symlink(), _target(path)
        if target.is_dir():
            raise argparse.ArgumentTypeError(f"{text!r} is a folder; give a file name")
        if is_link and not target.exists():
            raise argparse.ArgumentTypeError(
                f"{text!r} is a link to {str(target)!r}, which does not exist; remove the link or give another name"
            )
        if target.exists() and not (target.is_file() and os.access(target, os.W_OK)):
            raise argparse.ArgumentTypeError(f"{text!r} is not a writable file; give another name")
        tempfile.TemporaryFile(dir=target.parent).close()
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"cannot write {text!r} ({error.strerror}); give a file in a writable folder"
        ) from error
    return path


def _target(path: Path) -> Path:
    """The file itself: writing through a link must not replace the link."""
    return Path(os.path.realpath(path))


def draw(path: Path, about: Shown) -> None:
    """Write the picture to ``path``."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    with rc_context({"font.size": 10}):
        figure = Figure(figsize=SIZE, layout="constrained")
        fill(figure, about)
        _save(figure, path)


def fill(figure: Figure, about: Shown) -> None:
    """The week, the errors by hours ahead, and the models, one below the other."""
    week, horizon, models = figure.subplots(3, height_ratios=(3, 3, 2.4))
    figure.suptitle(TITLE, fontweight="bold")
    _week(week, about.week)
    _horizon(horizon, about.horizon)
    _models(models, about.errors, about.seconds)
    for own in (week, horizon, models):
        own.spines[["top", "right"]].set_visible(False)
        own.grid(color="0.92")
        own.set_axisbelow(True)
    figure.supxlabel("tritongru; data: Taylor (2003), half-hourly, 2000", x=1, ha="right", fontsize=9, color="0.4")


def _week(axes: Axes, week: Mapping[str, list[float]]) -> None:
    axes.set_title(f"{HELD_OUT_FROM:%B %Y}: each day as forecast at its beginning, GW", loc="left")
    gigawatts = {name: [value / 1000 for value in values] for name, values in week.items()}
    axes.plot(gigawatts[TRUE], "k.", markersize=3, label=TRUE)
    axes.plot(gigawatts[SHIFTED], color=COLOURS[SHIFTED], linewidth=1, label=SHIFTED)
    axes.plot(gigawatts[GRU], color=COLOURS[GRU], linewidth=1.5, label=GRU)
    dates = [HELD_OUT_FROM + datetime.timedelta(days=day) for day in range(7)]
    axes.set_xticks(range(0, WEEK, DAY), [f"{date:%a} {date.day}" for date in dates], ha="left")
    axes.margins(x=0)
    axes.legend(loc="lower right", ncols=3, frameon=False)


def _horizon(axes: Axes, horizon: Mapping[str, list[float]]) -> None:
    hours = [half_hour / 2 for half_hour in range(1, DAY + 1)]
    for name in reversed(list(horizon)):  # the GRU last, on top
        if name != GRU_OF_TORCH:  # the same as our GRU, but for rounding
            line = "--" if name in BASELINES else "-"
            axes.plot(hours, horizon[name], line, color=COLOURS[name], label=name)
    axes.set_title("Error by hours ahead (RMSE, MW)", loc="left")
    axes.set_xticks(range(0, 25, 4))
    axes.set_ylim(bottom=0)
    axes.margins(x=0)
    axes.legend(fontsize=9, frameon=False, loc="lower right", ncols=3)


def _models(axes: Axes, errors: Mapping[str, float], seconds: Mapping[str, float]) -> None:
    axes.set_title("Error of all forecasts (RMSE, MW), and seconds per epoch", loc="left")
    drawn = axes.barh(list(errors), list(errors.values()), color=[COLOURS[name] for name in errors])
    times = {name: f", {seconds[name]:.2f} s" for name in seconds}
    axes.bar_label(drawn, [f"{value:.0f} MW{times.get(name, '')}" for name, value in errors.items()], padding=3)
    axes.margins(x=0.3)
    axes.invert_yaxis()
    axes.tick_params(left=False, bottom=False, labelbottom=False)


def _save(figure: Figure, path: Path) -> None:
    """Writes the whole file or nothing."""
    target = _target(path)
    unfinished = target.with_name(f".{os.getpid()}.unfinished")  # any name that fits leaves room for this one
    try:
        figure.savefig(unfinished, format=path.suffix[1:].lower(), dpi=DPI)
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)

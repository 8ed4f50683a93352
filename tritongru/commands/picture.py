"""The demo's picture: a held-out week of forecasts, errors by horizon and by model, and the time of an epoch."""

from __future__ import annotations

import argparse
import datetime
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from tritongru.commands.forecast import BASELINES, DAY, HELD_OUT_FROM, LAST_WEEK, LINEAR, SHIFTED, WEEK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ENDINGS = (".png", ".pdf", ".svg")
GRU, GRU_OF_TORCH = "GRU", "nn.GRU"
# Told apart by the colour-blind (Okabe and Ito); the baselines are grey.
COLOURS = {
    GRU: "#0072B2",
    GRU_OF_TORCH: "#56B4E9",
    "LSTM": "#E69F00",
    "RNN": "#009E73",
    LAST_WEEK: "#BBBBBB",
    SHIFTED: "#888888",
    LINEAR: "#444444",
}
SIZE, DPI = (9.0, 8.6), 150  # inches, of which a page shows about 830 pixels of width
LAYOUT = "WW;HE;HS"  # the week, the horizon, errors and seconds


def picture(text: str) -> Path:
    """The type of an option: a file that a picture can be written to."""
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


def draw(
    path: Path,
    truth: Tensor,  # (N, DAY) in MW: what came, from each origin on
    forecasts: Mapping[str, Tensor],  # as ``truth``
    errors: Mapping[str, float],  # RMSE in MW
    seconds: Mapping[str, float],  # of an epoch
) -> None:
    """Write the picture to ``path``."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    with rc_context({"font.size": 10}):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplot_mosaic(LAYOUT, height_ratios=(3, 2, 1.4), width_ratios=(5, 4))
        figure.suptitle("Electricity demand of England and Wales, forecast a day ahead", fontweight="bold")
        _week(axes["W"], truth, forecasts)
        _horizon(axes["H"], truth, forecasts)
        _bars(axes["E"], errors, "Error of all forecasts (RMSE, MW)", "%.0f")
        _bars(axes["S"], seconds, "Time of an epoch (s)", "%.2f")
        for own in axes.values():
            own.spines[["top", "right"]].set_visible(False)
            own.grid(color="0.92")
            own.set_axisbelow(True)
        figure.text(1, 0, "tritongru; data: Taylor (2003), half-hourly, 2000", ha="right", va="bottom", fontsize=8)
        _save(figure, path)


def _week(axes: Axes, truth: Tensor, forecasts: Mapping[str, Tensor]) -> None:
    """The first held-out week, each day as it was forecast when it began."""

    def days(of: Tensor) -> Tensor:
        return of[:WEEK:DAY].flatten() / 1000

    axes.set_title(f"{HELD_OUT_FROM:%B %Y}: every day as it was forecast at its beginning, GW", loc="left")
    axes.plot(days(truth), "k.", markersize=3, label="true")
    axes.plot(days(forecasts[SHIFTED]), color=COLOURS[SHIFTED], linewidth=1, label=SHIFTED)
    axes.plot(days(forecasts[GRU]), color=COLOURS[GRU], linewidth=1.5, label=GRU)
    dates = [HELD_OUT_FROM + datetime.timedelta(days=day) for day in range(7)]
    axes.set_xticks(range(0, WEEK, DAY), [f"{date:%a} {date.day}" for date in dates], ha="left")
    axes.margins(x=0)
    axes.legend(loc="lower right", ncols=3, frameon=False)


def _rmse(truth: Tensor, forecast: Tensor) -> Tensor:
    """Of each half hour ahead, (DAY,)."""
    return (truth - forecast).square().mean(0).sqrt()


def _horizon(axes: Axes, truth: Tensor, forecasts: Mapping[str, Tensor]) -> None:
    hours = [half_hour / 2 for half_hour in range(1, DAY + 1)]
    for name in reversed(list(forecasts)):  # the GRU last, on top
        if name != GRU_OF_TORCH:  # as ours, but for rounding
            line = "--" if name in BASELINES else "-"
            axes.plot(hours, _rmse(truth, forecasts[name]), line, color=COLOURS[name], label=name)
    axes.set_title("Error by hours ahead (RMSE, MW)", loc="left")
    axes.set_xticks(range(0, 25, 4))
    axes.set_ylim(bottom=0)
    axes.margins(x=0)
    axes.legend(fontsize=8, frameon=False, loc="lower right")


def _bars(axes: Axes, values: Mapping[str, float], title: str, form: str) -> None:
    axes.set_title(title, loc="left")
    drawn = axes.barh(list(values), list(values.values()), color=[COLOURS[name] for name in values])
    axes.bar_label(drawn, fmt=form, padding=3)
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.tick_params(left=False, labelbottom=False)


def _save(figure: Figure, path: Path) -> None:
    """All of it or nothing."""
    target = _target(path)
    unfinished = target.with_name(f".{os.getpid()}.unfinished")  # any name that fits leaves room for this one
    try:
        figure.savefig(unfinished, format=path.suffix[1:].lower(), dpi=DPI)
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)

"""The figures and generated parts of ``docs/numerics.md``, from the rows of ``bench/study/numerics.py``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import torch

from bench.measure.rows import Row
from bench.measure.timing import geomean
from bench.pages.figures import WIDTH, canvas, digest, heading, named_ends, note, plain, svg
from bench.pages.marks import Part, folded, table
from bench.study.numerics import (
    AS_IT_IS,
    CUT_OFF,
    DROPPED,
    ERRORS,
    FORMATS,
    GATES,
    MEMORY,
    OURS,
    RECOMPUTE,
    SCALE,
    STATE,
    STORAGE,
    TORCH,
    storage_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WEIGHTS = {"default": "torch's initial weights", "long": "long-memory weights"}
NAMES = dict(zip(ERRORS, ("last y", "dx", "dh0", "dW_hh"), strict=True))
COLOURS = {
    OURS: "#0072b2",
    TORCH: "#d55e00",
    STATE: "#cc79a7",
    GATES: "#009e73",
    AS_IT_IS: "#e69f00",
    RECOMPUTE: "#8c564b",
    "ours, tf32": "#56b4e9",
    "ours, operands cut off, tf32": "#cc79a7",
    "ours, tf32 everywhere": "#000000",
}
MARGIN = 1.1  # two errors whose ratio is smaller count as equal
SHORT = {"fp32": "fp32, IEEE", "tf32": "fp32, TF32 recurrence", "fp16": "fp16", "bf16": "bf16"}


# Rows


def mean(rows: Sequence[Row], key: str, **about: Any) -> float | None:
    """Geometric mean over the seeds of the matching rows; None if one of them was not finite."""
    values = [row[key] for row in rows if all(row[name] == value for name, value in about.items())]
    return geomean(values) if values and None not in values else None


def lengths_of(rows: Sequence[Row]) -> list[int]:
    return sorted({row["time"] for row in rows})


def implementations() -> list[tuple[str, str]]:
    """(format, implementation), in the order of the page."""
    found = [(form, impl) for form in FORMATS for impl in FORMATS[form]]
    return found + [(form, TORCH) for form in STORAGE]


def number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1e}"


def percent(value: float) -> str:
    """Two digits; 0 % and 100 % only for exactly none and all."""
    return f"{100 * value:.2g} %" if value < 0.995 or value == 1 else f"{min(100 * value, 99.99):.2f} %"


# The generated parts


def formats(rows: Sequence[Row]) -> str:
    lines = []
    for name, dtype in {**STORAGE, "tf32": torch.float32}.items():
        about, tf32 = torch.finfo(dtype), name == "tf32"
        eps = about.eps * 2**DROPPED if tf32 else about.eps
        smallest = about.tiny * eps
        lines.append((name, f"2^{math.log2(eps):.0f}", *map(number, (about.tiny, smallest, about.max))))
    return table(("format", "eps", "smallest normal", "smallest subnormal", "largest"), lines)


def source(rows: Sequence[Row]) -> str:
    growth = [row for row in rows if row["kind"] == "growth"]

    def all_of(key: str) -> str:
        return ", ".join(sorted({str(row[key]) for row in growth}))

    seeds = len({row["seed"] for row in growth})
    return (
        f"Emulated on a CPU with torch {all_of('torch')}: H = {all_of('hidden')}, B = {all_of('batch')}, T = 1 to "
        f"{lengths_of(growth)[-1]:,}, {seeds} draws of data; commit {all_of('commit')}, {all_of('date')}. Long memory: "
        f"time constants of 1 to {MEMORY:,} steps. Reproduce: `.venv/bin/python -m bench numerics`, then "
        f"`.venv/bin/python -m bench plot`."
    )


def summary(rows: Sequence[Row]) -> str:
    growth = [row for row in rows if row["kind"] == "growth"]
    last = lengths_of(growth)[-1]
    columns = [(key, weights) for key in ("error_y", "error_dw_hh") for weights in WEIGHTS]
    lines = []
    for form, name in SHORT.items():
        about = {"format": form, "impl": OURS, "time": last}
        lines.append((name, *(number(mean(growth, key, weights=weights, **about)) for key, weights in columns)))
    head = ("precision", *(f"{NAMES[key]}, {WEIGHTS[weights]}" for key, weights in columns))
    return f"Relative errors of ours after T = {last:,} steps, compared with float64:\n\n{table(head, lines)}"


def errors(rows: Sequence[Row]) -> str:
    growth = [row for row in rows if row["kind"] == "growth"]
    last = lengths_of(growth)[-1]
    columns = [("error_y", 1), ("error_y", last), ("error_dw_hh", 1), ("error_dw_hh", last)]
    columns += [("error_dx", last), ("error_dh0", last)]
    head = ("format", "implementation", *(f"{NAMES[key]}, T = {time:,}" for key, time in columns))
    parts = []
    for weights, title in WEIGHTS.items():
        lines = []
        for form, impl in implementations():
            about = {"weights": weights, "format": form, "impl": impl}
            lines.append((form, impl, *(number(mean(growth, key, time=time, **about)) for key, time in columns)))
        parts.append(folded(f"Errors with {title}", table(head, lines)))
    return "\n\n".join(parts)


def findings(rows: Sequence[Row]) -> str:
    growth = [row for row in rows if row["kind"] == "growth"]
    last = lengths_of(growth)[-1]
    columns = (OURS, STATE, TORCH, AS_IT_IS, RECOMPUTE, GATES)
    lines = []
    for form, key in product(("fp16", "bf16"), ("error_y", "error_dw_hh", "error_dx")):
        about = {"weights": "long", "format": form, "time": last}
        own = [number(mean(growth, key, impl=impl, **about)) for impl in columns]
        lines.append((form, NAMES[key], *own))
    ones = (f"{4 / torch.finfo(STORAGE[form]).eps:,.0f} steps in {form}" for form in ("fp16", "bf16"))
    head = ("format", "quantity", *columns)
    return (
        f"With long-memory weights, at T = {last:,}:\n\n{table(head, lines)}\n\nSaved as it is, z rounds to 1 for "
        f"units that remember for at least {' or '.join(ones)}."
    )


def operands(rows: Sequence[Row]) -> str:
    """TF32 operands rounded and cut off: the errors of both, and how many times as large the second are."""
    some = [row for row in rows if row["kind"] in ("growth", "width") and row["format"] == "tf32"]
    shapes = sorted({(row["hidden"], row["time"]) for row in some})
    longest = dict(shapes)  # of each H
    every, last, ratios = [], [], []
    for weights, (hidden, time) in product(WEIGHTS, shapes):
        about = {"weights": weights, "hidden": hidden, "time": time}
        pairs = [[mean(some, key, impl=impl, **about) for impl in (OURS, CUT_OFF)] for key in ERRORS]
        ratios += [cut_off / rounded for rounded, cut_off in pairs if rounded and cut_off]
        values = (f"{number(rounded)}, {number(cut_off)}" for rounded, cut_off in pairs)
        every.append((WEIGHTS[weights], f"{hidden:,}", f"{time:,}", *values))
        last += every[-1:] if time == longest[hidden] else []
    head = ("weights", "H", "T", *(NAMES[key] for key in ERRORS))
    times = f"{min(ratios):.1f} to {max(ratios):.1f} times as large, {geomean(ratios):.1f} times in the mean"
    return (
        f"Errors with operands rounded, then with operands cut off. The second are {times}:\n\n{table(head, last)}\n\n"
        f"{folded('All lengths', table(head, every))}"
    )


def worse(rows: Sequence[Row]) -> str:
    """Cases in which a rival's error is smaller than ours; for each format, rival, weights and quantity the worst T."""
    growth = [row for row in rows if row["kind"] == "growth"]
    lines = []
    for form, impl in implementations():
        if impl not in (TORCH, STATE):
            continue
        for weights in WEIGHTS:
            for key in ERRORS:
                ratios = []
                for time in lengths_of(growth):
                    about = {"weights": weights, "format": form, "time": time}
                    ours, theirs = (mean(growth, key, impl=name, **about) for name in (OURS, impl))
                    if ours and theirs:
                        ratios.append((ours / theirs, time, number(ours), number(theirs)))
                if ratios and max(ratios)[0] > MARGIN:
                    ratio, time, ours_is, theirs_is = max(ratios)
                    cell = (form, WEIGHTS[weights], NAMES[key], f"{time:,}", ours_is, impl, theirs_is, f"{ratio:.2f}")
                    lines.append(cell)
    if not lines:
        return f"In no case is ours worse than another by more than a factor of {MARGIN}."
    head = ("format", "weights", "quantity", "T", "ours", "other", "its error", "ratio")
    return f"Cases in which ours is worse by more than a factor of {MARGIN}, at the worst T:\n\n{table(head, lines)}"


def underflow(rows: Sequence[Row]) -> str:
    under = [row for row in rows if row["kind"] == "underflow"]
    lines = []
    for time in lengths_of(under):
        line = [f"{time:,}"]
        for form, scale in (("fp16", 1.0), ("fp16", SCALE), ("bf16", 1.0)):
            about = {"format": form, "scale": scale, "time": time}
            own = [row for row in under if all(row[key] == value for key, value in about.items())]
            zero, subnormal = (sum(row[key] for row in own) / len(own) for key in ("zero", "subnormal"))
            line += [percent(zero), percent(subnormal), number(mean(own, "error_dw_hh"))]
        lines.append(line)
    kinds = ("fp16", f"fp16, loss times {SCALE:,.0f}", "bf16")
    head = ["T", *(f"{kind}: {what}" for kind in kinds for what in ("zero", "subnormal", "error of dW_hh"))]
    scaled = [row for row in under if row["format"] == "fp16" and row["scale"] == SCALE]
    largest = max(row["largest"] for row in scaled)
    over = max(row["overflow"] for row in scaled)
    room = torch.finfo(torch.float16).max / largest
    length, zero, subnormal, error, scaled_zero, scaled_subnormal, scaled_error, *_ = lines[-1]
    return (
        f"At T = {length}, {zero} of dgh is zero in fp16, {subnormal} is subnormal, and the error of dW_hh is {error}. "
        f"With the loss times {SCALE:,.0f} these are {scaled_zero}, {scaled_subnormal} and {scaled_error}; the largest "
        f"dgh is then {largest:.3g}, and {percent(over)} of the values overflow: fp16 could hold {room:.0f} times as "
        f"much.\n\n{folded('All lengths, also in bf16', table(head, lines))}"
    )


PARTS: dict[str, Part] = {
    part.__name__: part for part in (summary, formats, source, findings, errors, operands, worse, underflow)
}


# The figures


def draw(rows: Sequence[Row], key: str, title: str) -> bytes:
    """An SVG: for each kind of weights and storage dtype the error over T, means and ranges of the seeds."""
    growth = [row for row in rows if row["kind"] == "growth"]
    lengths = lengths_of(growth)
    panels = list(product(STORAGE, WEIGHTS))
    with canvas(WIDTH, 1.9 * len(panels) + 0.8) as figure:
        lines = figure.subplots(len(panels), sharex=True, sharey=True)
        drawn = [_panel(axes, growth, key, *of) for axes, of in zip(lines, panels, strict=True)]
        lines[0].set_xscale("log", base=4)
        lines[0].set_yscale("log")
        lines[0].set_xticks(lengths, [f"{time:,}" for time in lengths])
        lines[0].minorticks_off()
        for axes, ends in zip(lines, drawn, strict=True):
            named_ends(axes, ends)
        lines[-1].set_xlabel("time steps T")
        heading(figure, f"Relative error of {title}, compared with float64")
        note(figure, "Lines: means over the seeds. Bands: from the smallest to the largest.")
        shown = digest(growth, ("weights", "format", "impl", "time", "seed", key))
        return svg(figure, f"Error of {title} over T", shown)


def _panel(axes: Axes, growth: Sequence[Row], key: str, storage: str, weights: str) -> dict[str, tuple[Any, Any, str]]:
    """The lines of a storage dtype; by name the last point and the colour."""
    lengths, ends = lengths_of(growth), {}
    for form, impl in implementations():
        same = key == "error_y" and impl in (GATES, AS_IT_IS, RECOMPUTE)  # what is saved does not change y
        if same or storage_of(form) != storage:
            continue
        label = impl if form in STORAGE else f"{impl}, {form}"
        own = [row for row in growth if (row["weights"], row["format"], row["impl"]) == (weights, form, impl)]
        by_length = [[row[key] or math.nan for row in own if row["time"] == time] for time in lengths]
        means = [geomean(values) if min(values) > 0 else math.nan for values in by_length]
        style, width = "o--" if impl == TORCH else "o-", 3.5 if label == OURS else 1.6  # ours is seen under others
        axes.plot(lengths, means, style, color=COLOURS[label], linewidth=width, markersize=4, zorder=3)
        lows, highs = ([most(values) for values in by_length] for most in (min, max))
        axes.fill_between(lengths, lows, highs, color=COLOURS[label], alpha=0.15, linewidth=0)
        name = label.removeprefix(f"{OURS}, ").removesuffix(" at every step")
        finite = [point for point in zip(lengths, means, strict=True) if not math.isnan(point[1])]
        if finite:
            ends[name] = *finite[-1], COLOURS[label]
    axes.set_title(f"{storage}, {WEIGHTS[weights]}")
    plain(axes)
    return ends


FIGURES = {
    "numerics-state.svg": partial(draw, key="error_y", title="the last output y"),
    "numerics-weights.svg": partial(draw, key="error_dw_hh", title="the gradient of W_hh"),
}

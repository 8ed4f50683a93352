"""The figures and the generated parts of ``docs/numerics.md``, from the rows of ``bench/study/numerics.py`` alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from bench.measure.rows import Row
from bench.measure.timing import geomean
from bench.pages.figures import canvas, digest, plain, svg
from bench.pages.marks import Part, table
from bench.study.numerics import (
    AS_IT_IS,
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

WEIGHTS = {"default": "torch's initial weights", "long": "weights that remember long"}
NAMES = dict(zip(ERRORS, ("last y", "dx", "dh0", "dW_hh"), strict=True))
COLOURS = {
    OURS: "#0072b2",
    TORCH: "#d55e00",
    STATE: "#cc79a7",
    GATES: "#009e73",
    AS_IT_IS: "#e69f00",
    RECOMPUTE: "#8c564b",
    "ours, tf32": "#56b4e9",
    "ours, tf32 everywhere": "#000000",
}
MARGIN = 1.1  # below it, a ratio of two errors is no difference


# Rows


def mean(rows: Sequence[Row], key: str, **about: Any) -> float | None:
    """Geometric mean over the seeds of the rows about this; None if one of them was not finite."""
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
    """Two digits, and never 0 % or 100 % of what is not all or nothing."""
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
        return ", ".join(sorted({str(row[key]) for row in rows}))

    seeds = len({row["seed"] for row in growth})
    return (
        f"Emulated on a CPU with torch {all_of('torch')}: H = {all_of('hidden')}, B = {all_of('batch')}, T = 1 to "
        f"{lengths_of(growth)[-1]:,}, {seeds} draws of data; commit {all_of('commit')}, {all_of('date')}. Long memory: "
        f"time constants of 1 to {MEMORY:,} steps. Rows: `python3 -m bench numerics`; this page: `python3 -m "
        f"bench plot`."
    )


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
        parts.append(f"Errors with {title}:\n\n{table(head, lines)}")
    return "\n\n".join(parts)


def findings(rows: Sequence[Row]) -> str:
    growth = [row for row in rows if row["kind"] == "growth"]
    last = lengths_of(growth)[-1]
    lines = []
    for form in ("fp16", "bf16"):
        about = {"weights": "long", "format": form, "time": last}
        y = {impl: number(mean(growth, "error_y", impl=impl, **about)) for impl in (OURS, STATE, TORCH)}
        lines.append(
            f"- {form}, last y: {y[OURS]} for ours, {y[STATE]} with the state rounded at every step, {y[TORCH]} for "
            "torch CPU."
        )
        for key in ("error_dw_hh", "error_dx"):
            own = {impl: number(mean(growth, key, impl=impl, **about)) for impl in (*FORMATS[form], TORCH)}
            lines.append(
                f"- {form}, {NAMES[key]}: {own[OURS]} for ours, {own[TORCH]} for torch CPU. With one decision changed: "
                f"{own[AS_IT_IS]} with z saved as it is, {own[RECOMPUTE]} with the gates recomputed, {own[GATES]} with "
                "the gates saved in fp32."
            )
    ones = (f"{4 / torch.finfo(STORAGE[form]).eps:,.0f} steps in {form}" for form in ("fp16", "bf16"))
    lines.append(f"- Saved as it is, z is 1 in a unit that remembers for {' or '.join(ones)}, and for more.")
    return f"With weights that remember long, at T = {last:,}:\n\n" + "\n".join(lines)


def worse(rows: Sequence[Row]) -> str:
    """Where a rival's error is smaller than ours, of each format, weights, rival and quantity the worst length."""
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
        return f"In no cell is ours worse than one of the others by more than a factor of {MARGIN}."
    head = ("format", "weights", "quantity", "T", "ours", "the other", "its error", "ours over it")
    return (
        f"All cells where ours is worse by more than a factor of {MARGIN}, each at its worst T:\n\n{table(head, lines)}"
    )


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
    return (
        f"{table(head, lines)}\n\nThe largest dgh of the scaled runs is {largest:.3g}, and {percent(over)} of the "
        f"values overflow: fp16 would hold {room:.0f} times as much."
    )


PARTS: dict[str, Part] = {part.__name__: part for part in (formats, source, findings, errors, worse, underflow)}


# The figures


def draw(rows: Sequence[Row], key: str) -> bytes:
    """An SVG: for each kind of weights and storage dtype the error over T, means and ranges of the seeds."""
    growth = [row for row in rows if row["kind"] == "growth"]
    lengths = lengths_of(growth)
    with canvas(11, 6) as figure:
        grid = figure.subplots(2, 3, sharex=True, sharey=True)
        for line, weights in zip(grid, WEIGHTS, strict=True):
            for axes, storage in zip(line, STORAGE, strict=True):
                for form, impl in implementations():
                    same = key == "error_y" and impl in (GATES, AS_IT_IS, RECOMPUTE)  # what is saved does not change y
                    if same or storage_of(form) != storage:
                        continue
                    label = impl if form in STORAGE else f"{impl}, {form}"
                    own = [
                        row for row in growth if (row["weights"], row["format"], row["impl"]) == (weights, form, impl)
                    ]
                    by_length = [[row[key] or math.nan for row in own if row["time"] == time] for time in lengths]
                    means = [geomean(values) if min(values) > 0 else math.nan for values in by_length]
                    line_style = "o--" if impl == TORCH else "o-"
                    axes.plot(lengths, means, line_style, color=COLOURS[label], label=label, markersize=3, zorder=3)
                    axes.fill_between(
                        lengths,
                        [min(values) for values in by_length],
                        [max(values) for values in by_length],
                        color=COLOURS[label],
                        alpha=0.15,
                        linewidth=0,
                    )
                axes.set_title(f"{storage}, {WEIGHTS[weights]}", loc="left", fontsize=9)
                axes.set_xscale("log", base=4)
                axes.set_yscale("log")
                axes.set_xticks(lengths, [f"{time:,}" for time in lengths], fontsize=7)
                axes.minorticks_off()
                plain(axes)
        for axes in grid[0]:
            axes.legend(fontsize=7)
        for axes in grid[1]:
            axes.set_xlabel("T, steps")
        figure.supylabel(f"relative error of {NAMES[key]} against float64", fontsize=9)
        shown = digest(growth, ("weights", "format", "impl", "time", "seed", key))
        return svg(figure, f"Error of {NAMES[key]} over T", shown)


FIGURES = {
    "numerics-state.svg": partial(draw, key="error_y"),
    "numerics-weights.svg": partial(draw, key="error_dw_hh"),
}

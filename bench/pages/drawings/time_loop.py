"""The time loop of a GRU: a launch for each step, and one launch for all."""

from __future__ import annotations

from bench.pages.drawings.sheet import DATA, INK, QUIET, SMALL, STATE, WEIGHTS, WIDTH, Sheet, drawing

LEFT, STEP = 0.15, 1.2
GAP = (WIDTH - 2 * LEFT - 4 * STEP) / 3
STEPS = ("step 1", "step 2", "step 3", "step T")
PLACES = [LEFT + (STEP + GAP) * k for k in range(4)]


def _memory(sheet: Sheet, y: float, text: str) -> None:
    sheet.box((LEFT, y), (WIDTH - 2 * LEFT, 0.36), text, QUIET)


def _usual(sheet: Sheet, y: float) -> None:
    sheet.title(y + 2.55, "The usual way: one or two launches per step")
    _memory(sheet, y, "GPU memory: weights, states, inputs, outputs")
    for place, step in zip(PLACES, STEPS, strict=True):
        sheet.box((place, y + 1.35), (STEP, 0.85), f"launch\n{step}", INK, "white")
        up = y + 0.36, y + 1.35
        for share, colour, width in ((0.16, WEIGHTS, 4.5), (0.40, STATE, 1.6), (0.62, DATA, 1.6)):
            sheet.arrow([(place + share * STEP, up[0]), (place + share * STEP, up[1])], colour, width)
        x = place + 0.86 * STEP
        sheet.arrow([(x, up[1]), (x, up[0])], STATE)
        if step in STEPS[:2]:
            sheet.arrow([(place + STEP, y + 1.77), (place + STEP + GAP, y + 1.77)], QUIET, 1.2)
    sheet.text(PLACES[3] - GAP / 2, y + 1.77, "…", 14)


def _ours(sheet: Sheet, y: float) -> None:
    sheet.title(y + 3.2, "tritongru: one launch for all steps")
    _memory(sheet, y, "GPU memory: weights, inputs, outputs")
    sheet.box((LEFT, y + 0.95), (WIDTH - 2 * LEFT, 1.95), "", INK, "white")
    sheet.text(
        LEFT + 0.12,
        y + 2.7,
        "one launch: weights and state stay on chip for the whole sequence",
        SMALL,
        QUIET,
        ha="left",
    )
    sheet.box((LEFT + 0.15, y + 2.05), (WIDTH - 2 * LEFT - 0.3, 0.42), "recurrent weights W_hh, loaded once", WEIGHTS)
    sheet.arrow([(LEFT + 0.32, y + 0.36), (LEFT + 0.32, y + 2.05)], WEIGHTS, 4.5)
    start, wide, gap = 0.92, 0.92, 0.42
    for k, step in enumerate(STEPS):
        x = start + (wide + gap) * k
        sheet.box((x, y + 1.15), (wide, 0.42), step, STATE)
        sheet.arrow([(x + wide / 2, y + 2.05), (x + wide / 2, y + 1.57)], WEIGHTS)
        sheet.arrow([(x + 0.25 * wide, y + 0.36), (x + 0.25 * wide, y + 1.15)], DATA)
        sheet.arrow([(x + 0.75 * wide, y + 1.15), (x + 0.75 * wide, y + 0.36)], DATA)
        if k < 2:
            sheet.arrow([(x + wide, y + 1.36), (x + wide + gap, y + 1.36)], STATE)
        if k == 2:
            sheet.text(x + wide + gap / 2, y + 1.36, "…", 14)


def _key(sheet: Sheet, y: float) -> None:
    parts = ((WEIGHTS, "W_hh", 4.5), (STATE, "state h", 1.6), (DATA, "inputs and outputs", 1.6))
    for x, (colour, text, width) in zip((0.6, 1.95, 3.45), parts, strict=True):
        sheet.line([(x, y), (x + 0.35, y)], colour, width)
        sheet.text(x + 0.45, y, text, ha="left")


def draw(sheet: Sheet) -> None:
    _usual(sheet, 4.05)
    _ours(sheet, 0.5)
    _key(sheet, 0.22)


MADE = drawing("The time loop: a launch per step, and one launch for all steps", 6.85, draw)

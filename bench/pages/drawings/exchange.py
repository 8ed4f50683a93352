"""Who exchanges what in the persistent family, at H = 1024 with eight hidden units a program."""

from __future__ import annotations

from bench.pages.drawings.sheet import INK, QUIET, SMALL, STATE, WEIGHTS, WIDTH, Sheet, drawing

H, UNITS, TILE = 1024, 8, 16  # hidden units, those of a program, sequences of a batch tile
LAST = H // UNITS - 1
PROGRAMS = (0, 1, LAST)
LEFT, WIDE, GAPS = 0.15, 1.6, (0.35, 0.75)
PLACES = (LEFT, LEFT + WIDE + GAPS[0], LEFT + 2 * WIDE + sum(GAPS))
OMITTED = PLACES[2] - GAPS[1] / 2  # the middle of what is left out


def _units(program: int) -> str:
    return f"units {program * UNITS}\u2013{program * UNITS + UNITS - 1}"


def _state(sheet: Sheet, y: float) -> None:
    """The state of one step, of which each program writes a part."""
    sheet.box((LEFT, y), (WIDTH - 2 * LEFT, 0.36), "", STATE, "white", round_by=0)
    edges = (LEFT, PLACES[1] - GAPS[0] / 2, PLACES[2]), (WIDE + GAPS[0] / 2, WIDE + GAPS[0], WIDE)
    for x, wide, program in zip(*edges, PROGRAMS, strict=True):
        sheet.box((x, y), (wide, 0.36), _units(program), STATE, round_by=0, points=SMALL)
    sheet.text(OMITTED, y + 0.18, "…", 14)


def _step(sheet: Sheet, y: float) -> None:
    sheet.title(y + 4.6, "One step of one batch tile")
    sheet.text(LEFT, y + 4.24, f"L2 cache: state of step t \u2212 1, {TILE} sequences \u00d7 {H} units", ha="left")
    _state(sheet, y + 3.7)
    middles = [place + WIDE / 2 for place in PLACES]
    sheet.line([(WIDTH / 2, y + 3.7), (WIDTH / 2, y + 3.2)], STATE)
    sheet.text(WIDTH / 2 + 0.12, y + 3.45, "each program reads all of it", SMALL, ha="left")
    sheet.line([(middles[0], y + 3.2), (middles[2], y + 3.2)], STATE)
    for place, middle, program in zip(PLACES, middles, PROGRAMS, strict=True):
        sheet.arrow([(middle, y + 3.21), (middle, y + 2.85)], STATE)
        sheet.box((place, y + 1.4), (WIDE, 1.45), "", INK, "white")
        sheet.text(middle, y + 2.66, f"program {program}")
        sheet.box((place + 0.1, y + 1.9), (WIDE - 0.2, 0.56), f"W_hh of\n{_units(program)}", WEIGHTS, points=SMALL)
        sheet.text(middle, y + 1.64, "gates, new state", SMALL)
        sheet.arrow([(middle, y + 1.4), (middle, y + 0.76)], STATE)
    sheet.text(OMITTED, y + 2.12, "…", 14)
    sheet.text(middles[1] + 0.12, y + 1.1, "each publishes its own units", SMALL, ha="left")
    _state(sheet, y + 0.4)
    sheet.text(LEFT, y + 0.2, f"L2 cache: state of step t, {TILE} sequences \u00d7 {H} units", ha="left")


def _groups(sheet: Sheet, y: float) -> None:
    sheet.title(y + 1.95, "Exchange only within a tile and a direction")
    wide = (WIDTH - 2 * LEFT - 0.2) / 2
    for line, column in ((line, column) for line in range(2) for column in range(2)):
        x, low = LEFT + column * (wide + 0.2), y + 0.9 - 0.9 * line
        sheet.box((x, low), (wide, 0.78), "", QUIET, "white", line=0.8)
        sheet.text(x + 0.12, low + 0.62, f"batch tile {column}, direction {line}", SMALL, ha="left")
        sheet.line([(x + 0.32, low + 0.12), (x + 0.32 + 0.43 * 5, low + 0.12)], STATE, 2.2)
        for k in range(6):
            place = x + 0.32 + 0.43 * k
            sheet.line([(place, low + 0.12), (place, low + 0.26)], STATE)
            sheet.box((place - 0.12, low + 0.24), (0.24, 0.22), "", INK, "white", round_by=0.03)


def draw(sheet: Sheet) -> None:
    _step(sheet, 2.45)
    _groups(sheet, 0.15)


MADE = drawing("The exchange of the persistent family", 7.3, draw)

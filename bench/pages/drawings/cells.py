"""One step of a GRU and of an LSTM, in the notation of ``docs/models.md``."""

from __future__ import annotations

from bench.pages.drawings.sheet import CELL, DATA, FORMULA, INK, SMALL, STATE, WEIGHTS, Sheet, drawing

LEFT, RIGHT = 0.72, 5.62  # ends of the lines of a state
COLUMNS = (1.45, 2.67, 3.89, 5.11)  # of the gates
WIDE, HIGH = 1.06, 0.56
ASIDE = 0.24  # from the middle of a box to where a line enters it
NODE = 0.13
# Heights in a cell: the lines of x and h that feed the boxes, the boxes, products of two of them, the state.
X_LINE, H_LINE, BOXES, PRODUCT, UPPER, LINE = 0.1, 0.42, 0.8, 1.9, 2.45, 3.0
TOP = BOXES + HIGH


def _boxes(sheet: Sheet, y: float, names: tuple[str, ...], of_h: tuple[int, ...], of_x: tuple[int, ...]) -> None:
    """What is multiplied with weights, and the lines of h and x that lead there."""
    for height, colour, side, fed in ((H_LINE, STATE, -ASIDE, of_h), (X_LINE, DATA, ASIDE, of_x)):
        sheet.line([(LEFT, y + height), (COLUMNS[fed[-1]] + side, y + height)], colour)
        for k in fed:
            x = COLUMNS[k] + side
            sheet.arrow([(x, y + height), (x, y + BOXES)], colour)
    sheet.text(LEFT - 0.08, y + X_LINE, "$x_t$", FORMULA, ha="right")
    for x, name in zip(COLUMNS, names, strict=True):
        points = FORMULA if "$" in name else SMALL
        sheet.box((x - WIDE / 2, y + BOXES), (WIDE, HIGH), name, WEIGHTS, points=points)


def _gru(sheet: Sheet, y: float) -> None:
    sheet.title(y + 3.5, "GRU: one state h")
    names = "update gate\nz = \u03c3(·)", "reset gate\nr = \u03c3(·)", "$W_{hn}\\,h_{t-1}$", "candidate\nn = tanh(·)"
    _boxes(sheet, y, names, of_h=(0, 1, 2), of_x=(0, 1, 3))
    z, r, a, n = COLUMNS
    line, upper, product, top = (y + height for height in (LINE, UPPER, PRODUCT, TOP))
    sheet.text(LEFT - 0.08, line, "$h_{t-1}$", FORMULA, ha="right")
    sheet.text(RIGHT + 0.06, line, "$h_t$", FORMULA, ha="left")
    sheet.line([(LEFT, line), (LEFT, y + H_LINE)], STATE)
    for start, end in ((LEFT, z - NODE), (z + NODE, n - NODE), (n + NODE, RIGHT)):
        sheet.arrow([(start, line), (end, line)], STATE)
    sheet.arrow([(z, top), (z, line - NODE)])
    sheet.arrow([(z, upper), (a - 0.27, upper)])
    sheet.dot(z, upper)
    sheet.box((a - 0.27, upper - 0.15), (0.54, 0.3), "1 \u2212 z", INK, "white", points=SMALL)
    sheet.arrow([(a + 0.27, upper), (n - NODE, upper)])
    sheet.arrow([(r, top), (r, product), (a - NODE, product)])
    sheet.arrow([(a, top), (a, product - NODE)])
    sheet.arrow([(a + NODE, product), (n - ASIDE, product), (n - ASIDE, top)])
    sheet.arrow([(n, top), (n, upper - NODE)])
    sheet.arrow([(n, upper + NODE), (n, line - NODE)])
    for place, sign in (((z, line), "\u00d7"), ((n, line), "+"), ((n, upper), "\u00d7"), ((a, product), "\u00d7")):
        sheet.node(*place, sign, NODE)


def _lstm(sheet: Sheet, y: float) -> None:
    sheet.title(y + 3.5, "LSTM: two states, c and h")
    names = (
        "forget gate\nf = \u03c3(·)",
        "input gate\ni = \u03c3(·)",
        "candidate\ng = tanh(·)",
        "output gate\no = \u03c3(·)",
    )
    _boxes(sheet, y, names, of_h=(0, 1, 2, 3), of_x=(0, 1, 2, 3))
    f, i, g, o = COLUMNS
    line, upper, product, top = (y + height for height in (LINE, UPPER, PRODUCT, TOP))
    sheet.text(LEFT - 0.08, line, "$c_{t-1}$", FORMULA, ha="right")
    sheet.text(RIGHT + 0.06, line, "$c_t$", FORMULA, ha="left")
    sheet.text(LEFT - 0.08, y + H_LINE, "$h_{t-1}$", FORMULA, ha="right")
    sheet.text(RIGHT + 0.06, product, "$h_t$", FORMULA, ha="left")
    for start, end in ((LEFT, f - NODE), (f + NODE, g - NODE), (g + NODE, RIGHT)):
        sheet.arrow([(start, line), (end, line)], CELL)
    sheet.arrow([(f, top), (f, line - NODE)])
    sheet.arrow([(i, top), (i, product), (g - NODE, product)])
    sheet.arrow([(g, top), (g, product - NODE)])
    sheet.arrow([(g, product + NODE), (g, line - NODE)])
    sheet.dot(o, line, CELL)
    sheet.arrow([(o, line), (o, upper + 0.15)], CELL)
    sheet.box((o - 0.27, upper - 0.15), (0.54, 0.3), "tanh", INK, "white", points=SMALL)
    sheet.arrow([(o, upper - 0.15), (o, product + NODE)])
    sheet.arrow([(o, top), (o, product - NODE)])
    sheet.arrow([(o + NODE, product), (RIGHT, product)], STATE)
    for place, sign in (((f, line), "\u00d7"), ((g, line), "+"), ((g, product), "\u00d7"), ((o, product), "\u00d7")):
        sheet.node(*place, sign, NODE)


def draw(sheet: Sheet) -> None:
    _gru(sheet, 4.55)
    _lstm(sheet, 0.65)
    sheet.box((0.2, 0.12), (0.3, 0.22), "", WEIGHTS)
    sheet.text(0.6, 0.23, "products with weights", SMALL, ha="left")
    for x, sign, what in ((2.75, "\u00d7", "multiply"), (4.0, "+", "add, element by element")):
        sheet.node(x, 0.23, sign, NODE)
        sheet.text(x + 0.22, 0.23, what, SMALL, ha="left")


MADE = drawing("One step of a GRU and of an LSTM", 8.3, draw)

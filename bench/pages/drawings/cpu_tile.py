"""A register tile of the loop for CPUs: AVX2, fp32."""

from __future__ import annotations

from bench.pages.drawings.sheet import DATA, SMALL, STATE, WEIGHTS, WIDTH, Sheet, drawing
from tritongru.planning.instruction_sets import SETS

AVX2 = SETS["avx2"]
R, (V, *_) = AVX2.rows, AVX2.gate_tiles[AVX2.rows]
LANES, REGISTERS = AVX2.bytes // 4, 16
GATES = ("r", "z", "n")
LEFT, FIRST, WIDE, HIGH, GAP = 0.15, 1.45, 1.4, 0.36, 0.2


def _vector(sheet: Sheet, x: float, y: float, colour: str) -> None:
    """A register and its lanes."""
    sheet.box((x, y), (WIDE, HIGH), "", colour, round_by=0, line=1.4)
    for k in range(1, LANES):
        sheet.line([(x + k * WIDE / LANES, y), (x + k * WIDE / LANES, y + HIGH)], colour, 0.6)


def _column(v: int) -> float:
    return FIRST + v * (WIDE + GAP)


def _tile(sheet: Sheet, y: float) -> None:
    sheet.text(FIRST, y + 3.3, "for each k: the weights W_hh of hidden unit k,", ha="left")
    sheet.text(FIRST, y + 3.08, f"packed as gates r, z, n of {LANES} units side by side", ha="left")
    for v in range(V):
        sheet.text(_column(v) + WIDE / 2, y + 2.8, GATES[v], weight="bold")
        _vector(sheet, _column(v), y + 2.3, WEIGHTS)
        sheet.arrow([(_column(v) + WIDE / 2, y + 2.3), (_column(v) + WIDE / 2, y + 1.98)], WEIGHTS)
    sheet.text(LEFT, y + 2.48, "states,", ha="left")
    sheet.text(LEFT, y + 2.26, "broadcast", ha="left")
    for r in range(R):
        low = y + 1.6 - 0.48 * r
        sheet.box((LEFT, low), (0.95, HIGH), f"h[{r}, k]", STATE)
        sheet.arrow([(LEFT + 0.95, low + HIGH / 2), (FIRST, low + HIGH / 2)], STATE)
        for v in range(V):
            _vector(sheet, _column(v), low, DATA)
    sheet.text(
        FIRST, y - 0.1, f"{R} \u00d7 {V} sums of {LANES} numbers stay in registers for 128 values of k,", ha="left"
    )
    sheet.text(FIRST, y - 0.32, "then become the gates of the tile", ha="left")


def _registers(sheet: Sheet, y: float) -> None:
    sheet.text(LEFT, y + 0.75, f"The {REGISTERS} vector registers of {AVX2.title}", ha="left", weight="bold")
    side = (WIDTH - 2 * LEFT) / REGISTERS
    taken = [DATA] * (R * V) + [WEIGHTS] * V + [STATE]
    for k, colour in enumerate(taken):
        sheet.box((LEFT + k * side, y + 0.28), (side, 0.28), "", colour, round_by=0)
    middles = (R * V / 2, R * V + V / 2)
    sheet.text(LEFT + middles[0] * side, y + 0.1, f"{R * V} sums", SMALL)
    sheet.text(LEFT + middles[1] * side, y + 0.1, f"{V} weights", SMALL)
    sheet.text(WIDTH - LEFT, y + 0.1, "1 state", SMALL, ha="right")


def draw(sheet: Sheet) -> None:
    sheet.title(5.5, f"A register tile: {R} sequences times {V} vectors")
    _tile(sheet, 1.78)
    _registers(sheet, 0.1)


MADE = drawing("A register tile of the loop for CPUs", 5.72, draw)

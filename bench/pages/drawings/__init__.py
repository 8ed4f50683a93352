"""Drawings that explain how things work. They depend on no measurement."""

from bench.pages.drawings import cells, cpu_tile, exchange, time_loop

OF_PAGES = {
    "kernels": {
        "drawing-time-loop.svg": time_loop.MADE,
        "drawing-exchange.svg": exchange.MADE,
        "drawing-cpu-tile.svg": cpu_tile.MADE,
    },
    "models": {"drawing-gru-lstm.svg": cells.MADE},
}

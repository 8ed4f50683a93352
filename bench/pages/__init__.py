"""Documents from rows: what stands between marks in a page, and every figure, is made by `python3 -m bench plot`."""

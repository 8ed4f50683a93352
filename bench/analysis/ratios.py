"""How times and their ratios are printed."""


def ms_text(ms: float) -> str:
    return f"{ms:.3g}" if ms < 1000 else f"{ms:.0f}"


def ratio_text(ratio: float, low: float, high: float) -> str:
    """`about 1` if the interval [low, high] contains 1: such a ratio does not tell which is faster."""
    return "about 1" if low <= 1 <= high else f"{ratio:.2f}x"

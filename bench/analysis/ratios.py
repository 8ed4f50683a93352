"""How a ratio of two times is written where it is read."""


def ratio_text(ratio: float, low: float, high: float) -> str:
    """`about 1` where the interval [low, high] holds 1: such a ratio does not say who is faster."""
    return "about 1" if low <= 1 <= high else f"{ratio:.2f}x"

"""Cases, and the grids of the persistent and the resident kernels."""

import itertools
from dataclasses import dataclass, replace

EPS = {"fp32": 2.0**-23, "fp16": 2.0**-10, "bf16": 2.0**-7}
FEW = 8  # as in tests/support/tolerance.py
# With TF32 on, products keep 10 bits in any implementation. Simulated with truncated operands at T=512 and H=128, the
# largest error over outputs and gradients is 1.3e-3 of the largest value.
TF32_ROUNDING = 2.0**-9
WIDE = 256  # from this hidden size on, W_hh has to be spread over several programs


@dataclass(frozen=True)
class Case:
    """One GRU call."""

    hidden: int
    batch: int
    time: int
    dtype: str  # a key of EPS
    mode: str  # "forward": eval, inference mode; "train": forward and backward
    tf32: bool = False
    layers: int = 1
    directions: int = 1
    inputs: int | None = None  # width of the input; None: as wide as the hidden state
    label: str = ""  # name of a workload

    @property
    def name(self) -> str:
        number = "-tf32" if self.tf32 else ""
        stack = (f"-l{self.layers}" if self.layers > 1 else "") + ("-bi" if self.directions == 2 else "")
        width = f"-i{self.inputs}" if self.inputs not in (None, self.hidden) else ""
        sizes = self.label or f"h{self.hidden}-b{self.batch}-t{self.time}{width}{stack}"
        return f"{sizes}-{self.dtype}{number}-{self.mode}"

    @property
    def width(self) -> int:
        """Features of the input."""
        return self.hidden if self.inputs is None else self.inputs

    @property
    def rounding(self) -> float:
        """The error that is always allowed, relative to the largest value."""
        return TF32_ROUNDING if self.tf32 else FEW * EPS[self.dtype]

    @property
    def wide(self) -> bool:
        """A layer for the persistent kernels, with rivals besides nn.GRU."""
        return self.hidden >= WIDE


MODES = ("forward", "train")
HEADLINE = Case(768, 16, 1024, "bf16", "forward")  # a published LSTM figure has this shape
HEADLINES = (HEADLINE, replace(HEADLINE, mode="train"))
# The middle of the table first, then one step away from it, then the corners.
HIDDEN = (768, 1024, 512, 384, 256, 2048)
BATCHES = (16, 64, 1, 128, 32)
SMALL = ((128, 64), (100, 64), (64, 64), (128, 16), (128, 256), (64, 16), (64, 256), (100, 16), (100, 256))
FIRST = 6  # the most important cells of a wide grid


def grid(dtype: str, hidden: tuple[int, ...] = HIDDEN, batches: tuple[int, ...] = BATCHES) -> list[Case]:
    """From the middle outwards, each cell in both modes."""
    cells = sorted(itertools.product(range(len(hidden)), range(len(batches))), key=sum)
    return [Case(hidden[i], batches[j], 512, dtype, mode, tf32=dtype == "fp32") for i, j in cells for mode in MODES]


def wide_cases(dtype: str) -> list[Case]:
    """The grid of the persistent kernels. H = 2048 fits on chip only in 16 bit; fp16 runs the same code as bf16, so the
    middle of its grid is enough."""
    if dtype == "fp16":
        return grid(dtype)[: len(MODES) * FIRST]
    return grid(dtype) if dtype == "bf16" else grid(dtype, HIDDEN[:-1], BATCHES[:-1])


def small_cases() -> list[Case]:
    """The grid of the resident kernels."""
    return [
        Case(hidden, batch, 512, dtype, mode, tf32=dtype == "fp32")
        for i, (hidden, batch) in enumerate(SMALL)
        for dtype in (("bf16", "fp32", "fp16") if i < 3 else ("bf16", "fp32"))
        for mode in ("train", "forward")
    ]

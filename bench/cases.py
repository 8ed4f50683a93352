"""What is measured: the shapes, in order of information, so that a short budget drops the least."""

from dataclasses import dataclass

EPS = {"fp32": 2.0**-23, "fp16": 2.0**-10, "bf16": 2.0**-7}
FEW = 8  # as in tests/tolerance.py
# With the TF32 switch on, products keep 10 bits, whoever computes them. Simulated with truncated operands at T=512 and
# H=128, the largest error over outputs and gradients is 1.3e-3 of the largest value.
TF32_ROUNDING = 2.0**-9


@dataclass(frozen=True)
class Case:
    """One GRU call. The input is as wide as the hidden state, so a row needs no width of its own."""

    hidden: int
    batch: int
    time: int
    dtype: str  # a key of EPS
    mode: str  # "forward": eval, inference mode; "train": forward and backward
    tf32: bool = False
    layers: int = 1
    directions: int = 1

    @property
    def name(self) -> str:
        number = "-tf32" if self.tf32 else ""
        stack = (f"-l{self.layers}" if self.layers > 1 else "") + ("-bi" if self.directions == 2 else "")
        return f"h{self.hidden}-b{self.batch}-t{self.time}{stack}-{self.dtype}{number}-{self.mode}"

    @property
    def rounding(self) -> float:
        """What is always allowed, as a part of the largest value."""
        return TF32_ROUNDING if self.tf32 else FEW * EPS[self.dtype]


# The middle of the table first, then one step away from it, then the corners.
SHAPES = ((128, 64), (100, 64), (64, 64), (128, 16), (128, 256), (64, 16), (64, 256), (100, 16), (100, 256))


def gate_cases() -> list[Case]:
    return [
        Case(hidden, batch, 512, dtype, mode, tf32=dtype == "fp32")
        for hidden, batch in SHAPES
        for dtype in ("bf16", "fp16", "fp32")
        for mode in ("train", "forward")
    ]


# A call as a CPU user makes it, and one so small that only the way to the operator counts.
CPU_CASES = (Case(64, 16, 64, "fp32", "forward"), Case(8, 1, 1, "fp32", "forward"))

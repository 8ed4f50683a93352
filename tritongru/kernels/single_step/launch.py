"""The launch of a single time step: nothing is allocated and nothing waits, so that a CUDA graph can hold it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from tritongru.kernels.launching import device_of, kernel_options, on_device_of
from tritongru.kernels.single_step.kernel import single_step_kernel
from tritongru.planning.candidates import kind_of
from tritongru.planning.devices import device_facts
from tritongru.planning.launches import dot_precision
from tritongru.planning.plan import precision_of
from tritongru.planning.triton_versions import has_fences


@dataclass(frozen=True)
class Form:
    """A compiled form of the kernel. A program owns ``block_h`` hidden units of ``block_b`` rows; groups of warps
    multiply ``k_split`` parts of the contraction side by side, each in blocks of ``block_k``, with loads ``stages - 1``
    blocks ahead. ``largest``: up to this batch size it is used, None without a limit."""

    largest: int | None
    block_b: int
    block_h: int
    block_k: int
    k_split: int
    num_warps: int
    stages: int

    @property
    def name(self) -> str:
        return f"{self.block_b}x{self.block_h}x{self.k_split}x{self.block_k}-{self.num_warps}w-{self.stages}s-single"


# By kind of arithmetic; none spills registers or needs more than 64 KB of shared memory. A narrow tile is for latency:
# many programs, and eight short chains of products instead of one of (I + H) / 16. A wide one reads weights less often.
FORMS = {
    "16-bit": (Form(32, 16, 8, 32, 8, 8, 3), Form(512, 64, 16, 32, 1, 4, 4), Form(None, 128, 32, 32, 1, 8, 4)),
    "tf32": (Form(32, 16, 8, 16, 8, 8, 3), Form(512, 64, 16, 16, 1, 4, 4), Form(None, 128, 32, 16, 1, 8, 4)),
    "ieee": (Form(32, 16, 8, 16, 8, 8, 3), Form(512, 64, 16, 16, 1, 8, 4), Form(None, 128, 16, 16, 1, 8, 3)),
}

# Instead of the wider ones where Triton leaves out a fence before the products of warp groups, of which a product of
# several parts is never one (docs/kernels.md, "fence").
WITHOUT_FENCES = {"16-bit": Form(None, 64, 16, 32, 2, 8, 3), "tf32": Form(None, 64, 16, 16, 2, 8, 3)}
HAS_FENCES = has_fences(triton.__version__)


def step(
    x: Tensor,  # (B, I)
    h: Tensor | None,  # (B, H), zeros if None
    reset: Tensor | None,  # (B,) bool: rows whose state counts as zero
    w_ih: Tensor,  # (3H, I)
    w_hh: Tensor,  # (3H, H)
    b_ih: Tensor | None,  # (3H,), both biases or none
    b_hh: Tensor | None,  # (3H,)
    y: Tensor | None,  # (B, H), written
    hn: Tensor,  # (B, H), written: the same values
) -> None:
    """One step of one layer in one direction, without gradients. All tensors are contiguous and of one dtype. Neither
    y nor hn may share memory with h: each program reads all of it."""
    (B, I), H = x.shape, hn.shape[1]
    form = form_of(B, x.dtype, device_of(hn))
    with on_device_of(hn):
        single_step_kernel[grid(B, H, form)](
            *(x, h, None if h is None else reset, w_ih, w_hh, b_ih, b_hh, y, hn),
            B=B,
            USE_H=h is not None,
            USE_RESET=h is not None and reset is not None,
            USE_BIAS=b_ih is not None,
            USE_Y=y is not None,
            **constants(form, kind(x.dtype), I, H),
            **kernel_options(hn, form.num_warps),
        )


def kind(dtype: torch.dtype) -> str:
    """Of the products, under torch's current precision setting."""
    return kind_of(str(dtype).removeprefix("torch."), precision_of(dtype))


def form_of(batch: int, dtype: torch.dtype, device: torch.device) -> Form:
    forms = forms_of(kind(dtype), device_facts(device).family)
    return next(form for form in forms if form.largest is None or batch <= form.largest)


def forms_of(kind: str, chip: str, has_fences: bool = HAS_FENCES) -> tuple[Form, ...]:
    """By batch size, for a chip of the compile matrix and this or another Triton."""
    first, *wider = FORMS[kind]
    if kind in WITHOUT_FENCES and chip in ("sm_90", "sm_100") and not has_fences:
        wider = [WITHOUT_FENCES[kind]]
    return first, *wider


def grid(batch: int, hidden: int, form: Form) -> tuple[int, int]:
    """Programs that read the same weights are neighbours, so that these are read from memory once."""
    return triton.cdiv(batch, form.block_b), triton.cdiv(hidden, form.block_h)


def constants(form: Form, kind: str, inputs: int, hidden: int, backend: str | None = None) -> dict[str, Any]:
    """What the kernel is compiled for, besides its flags; ``backend``: that of this build of torch, if None."""

    def block(width: int) -> int:
        """No wider than the operand needs."""
        return min(form.block_k, max(16, int(triton.next_power_of_2(triton.cdiv(width, form.k_split)))))

    return {
        "I": inputs,
        "H": hidden,
        "PRECISION": dot_precision(backend or ("hip" if torch.version.hip else "cuda"), kind),
        "BB": form.block_b,
        "BH": form.block_h,
        "BI": block(inputs),
        "BK": block(hidden),
        "KS": form.k_split,
        "STAGES": form.stages,
    }

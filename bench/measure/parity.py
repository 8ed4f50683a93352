"""Is it the same function? The error against float64, relative to the error that torch itself makes.

    allowed = 2 * (torch's error, same dtype) + (a few eps) * (largest value)      parity = error / allowed

`parity` is the worst over the output, h_n and, in training, every gradient. At most 1 is green; NaN never is.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch

Tensors = dict[str, torch.Tensor]


class Data(NamedTuple):
    x: torch.Tensor  # (T, B, I)
    h0: torch.Tensor  # (layers * directions, B, H)
    dy: torch.Tensor  # gradient of the output (T, B, directions * H)
    dhn: torch.Tensor  # gradient of h_n, as h0


@dataclass(frozen=True)
class Parity:
    ours: float
    theirs: float
    worst: str  # the quantity that decided `ours`, with its errors
    repeatable: bool  # a second run on the same input gave the same bits

    @property
    def green(self) -> bool:
        return self.ours <= 1.0 and self.theirs <= 1.0


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Both TF32 switches at once: cuDNN's, which governs nn.GRU's recurrence, and the matrix product's.

    Only the boolean switches are used: torch keeps the newer `fp32_precision` names in step with these,
    but raises on reading the booleans after a change through the newer names.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = on
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


def poison(device: torch.device) -> None:
    """Fill the allocator's free memory with NaN in any dtype, so that unwritten elements show."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        sizes = [2**30] + [2**20] * 64  # large and small allocations come from separate pools
        held = [torch.full((size,), 255, dtype=torch.uint8, device=device) for size in sizes]
        del held


def quantities(layer: torch.nn.Module, mode: str, data: Data) -> Tensors:
    """All results of one call."""
    if mode == "forward":
        with torch.inference_mode():
            y, hn = layer(data.x, data.h0)
        return {"output": y, "h_n": hn}
    x, h0 = data.x.detach().requires_grad_(), data.h0.detach().requires_grad_()
    y, hn = layer(x, h0)
    names, parameters = zip(*layer.named_parameters(), strict=True)
    into = ("input", "h_0", *names)
    found = torch.autograd.grad((y, hn), (x, h0, *parameters), (data.dy, data.dhn))
    return {"output": y.detach(), "h_n": hn.detach(), **{f"d {n}": d for n, d in zip(into, found, strict=True)}}


def truth(layer: torch.nn.Module, mode: str, data: Data) -> Tensors:
    """The same call in float64 and without cuDNN, so that it shares no kernel with what is checked."""
    exact = copy.deepcopy(layer).double()
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        return quantities(exact, mode, Data(*(tensor.double() for tensor in data)))
    finally:
        torch.backends.cudnn.enabled = before


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Largest absolute difference; infinite if it is NaN or the shape is wrong."""
    if found.shape != exact.shape:
        return math.inf
    difference = (found.double() - exact).abs().max().item() if exact.numel() else 0.0
    return math.inf if math.isnan(difference) else difference


def compare(ours: Tensors, theirs: Tensors, exact: Tensors, rounding: float) -> Parity:
    """Ratios of the errors to the allowed error, the worst of all quantities."""
    missing = sorted(set(exact) ^ set(ours))
    if missing:
        return Parity(math.inf, 0.0, f"only one side has {', '.join(missing)}", True)
    worst, our_ratio, their_ratio = "", 0.0, 0.0
    for name, value in exact.items():
        our_error, their_error = error(ours[name], value), error(theirs[name], value)
        allowed = 2 * their_error + rounding * (value.abs().max().item() if value.numel() else 0.0)
        if ours[name].dtype != theirs[name].dtype or not math.isfinite(allowed):
            our_error = math.inf
        ratio = ratio_of(our_error, allowed)
        if ratio >= our_ratio:
            our_ratio, worst = ratio, f"{name}: error {our_error:.2e}, torch's {their_error:.2e}, allowed {allowed:.2e}"
        their_ratio = max(their_ratio, ratio_of(their_error, allowed))
    return Parity(our_ratio, their_ratio, worst, True)


def ratio_of(error: float, allowed: float) -> float:
    if not math.isfinite(error):
        return math.inf
    return 0.0 if error == 0.0 else error / allowed if allowed else math.inf

"""How ours is compared with torch's: rounding by two rules, against float64 and on a CPU; refusals by their words."""

import torch
from torch import Tensor

from tritongru.planning.instruction_sets import refusal

EPS_ALLOWED = 8  # a few units of rounding, for values on which torch happens to be exact
# The mean error of an operand of a TF32 product, which keeps 11 bits, as a part of the power of two below the operand.
# The largest error is twice as large.
TF32_ROUNDED = 2**-12  # rounded to nearest: by the resident and the persistent kernels
TF32_CUT_OFF = 2**-11  # cut off by the tensor cores, always towards zero: the stepwise kernels leave it to them


def rounding(dtype: torch.dtype, kind: str, family: str) -> float:
    """eps of the rule below. ``kind``: of the arithmetic, as in the launch tables (16-bit, tf32 or ieee)."""
    if dtype != torch.float32 or kind != "tf32":
        return torch.finfo(dtype).eps
    return TF32_CUT_OFF if family == "stepwise" else TF32_ROUNDED


def eps_of(actual: Tensor) -> float:
    """Of any family, so fp32 as where it is rounded. cuDNN may leave TF32 unused where the switch allows it, at odd
    sizes say; then its own error tells nothing."""
    tf32 = actual.is_cuda and torch.backends.cudnn.rnn.fp32_precision == "tf32"
    return rounding(actual.dtype, "tf32" if tf32 else "ieee", "")


def assert_close_to_float64(actual: Tensor, expected64: Tensor, torch_same_dtype: Tensor, what: str) -> None:
    """Accept `actual` when its error is at most twice torch's own, plus a few eps of the largest value.

    Both errors are the largest absolute difference from `expected64`, the same computation done in float64.
    `torch_same_dtype` is torch's result in the dtype of `actual`. NaN or infinity in `actual` is never accepted.
    """
    assert actual.shape == expected64.shape == torch_same_dtype.shape, f"{what}: shape {tuple(actual.shape)}"
    assert actual.dtype == torch_same_dtype.dtype, f"{what}: {actual.dtype}, torch gives {torch_same_dtype.dtype}"
    assert expected64.dtype == torch.float64, f"{what}: the reference is {expected64.dtype}, not float64"
    if actual.numel() == 0:
        return
    eps = eps_of(actual)
    actual, expected64, torch_same_dtype = (v.detach().cpu() for v in (actual, expected64, torch_same_dtype))
    error = (actual.double() - expected64).abs().max().item()
    torch_error = (torch_same_dtype.double() - expected64).abs().max().item()
    allowed = 2 * torch_error + EPS_ALLOWED * eps * expected64.abs().max().item()
    assert error <= allowed, (
        f"{what}: error {error:.3e} against float64, torch's own error {torch_error:.3e}, allowed {allowed:.3e}"
    )


ROUNDING = {2: 8, 4: 16, 8: 16}  # eps of the largest value, by bytes of one; 3.3, 5.5 and 4.1 were seen


def is_torchs(impl: str) -> bool:
    """Whether a call on a CPU is torch's own GRU, bit for bit."""
    return impl == "torch" or (impl == "auto" and refusal() != "")


def assert_same(ours: Tensor, torchs: Tensor, what: str = "result", impl: str = "auto") -> None:
    """Accept `ours` where no value is further from torch's than a few eps of the largest one, and NaN and infinities
    lie in the same places; where torch's own GRU runs, no value differs at all."""
    assert ours.dtype == torchs.dtype, f"{what}: {ours.dtype}, torch gives {torchs.dtype}"
    found = torch.finfo(ours.dtype)
    ours, torchs = ours.detach().double(), torchs.detach().double()
    largest = max(torchs[torchs.isfinite()].abs().tolist(), default=0.0)
    units = 0 if is_torchs(impl) else ROUNDING[found.bits // 8]
    rule = {"rtol": 0, "atol": units * found.eps * largest, "equal_nan": True}
    torch.testing.assert_close(ours, torchs, **rule, msg=lambda text: f"{what}: {text}")


def failure(call, *args, **kwargs):
    """What a call raises, as type and text; None for a call that is accepted."""
    try:
        call(*args, **kwargs)
    except Exception as error:
        return type(error), str(error)
    return None


def assert_same_failure(ours, theirs, *args, **kwargs):
    expected = failure(theirs, *args, **kwargs)
    assert expected is not None
    assert failure(ours, *args, **kwargs) == expected

"""The one rule by which the tests accept a rounding error."""

import torch
from torch import Tensor

EPS_ALLOWED = 8  # a few units of rounding, for values on which torch happens to be exact
TF32_EPS = 2**-12  # half a unit of TF32's 11 bits, to which products on a GPU round fp32 operands


def eps_of(actual: Tensor) -> float:
    """cuDNN may leave TF32 unused where the switch allows it, at odd sizes say; then its own error tells nothing."""
    if actual.is_cuda and actual.dtype == torch.float32 and torch.backends.cudnn.rnn.fp32_precision == "tf32":
        return TF32_EPS
    return torch.finfo(actual.dtype).eps


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
    rounding = EPS_ALLOWED * eps * expected64.abs().max().item()
    assert error <= 2 * torch_error + rounding, (
        f"{what}: error {error:.3e} against float64, torch's own error {torch_error:.3e}, "
        f"allowed {2 * torch_error + rounding:.3e}"
    )

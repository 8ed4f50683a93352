"""The one rule by which the tests accept a rounding error."""

import torch
from torch import Tensor

EPS_ALLOWED = 8  # a few units of rounding, for values on which torch happens to be exact


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
    actual, expected64, torch_same_dtype = (v.detach().cpu() for v in (actual, expected64, torch_same_dtype))
    error = (actual.double() - expected64).abs().max().item()
    torch_error = (torch_same_dtype.double() - expected64).abs().max().item()
    rounding = EPS_ALLOWED * torch.finfo(actual.dtype).eps * expected64.abs().max().item()
    assert error <= 2 * torch_error + rounding, (
        f"{what}: error {error:.3e} against float64, torch's own error {torch_error:.3e}, "
        f"allowed {2 * torch_error + rounding:.3e}"
    )

"""How far a result is from the oracle, as a part of what the tests' rule for rounding allows."""

from __future__ import annotations

import math

from tolerance import EPS_ALLOWED
from torch import Tensor


def parity(actual: Tensor, exact: Tensor, same_dtype: Tensor, eps: float) -> float:
    """The rule of `tolerance.assert_close_to_float64` as a quotient: the error over twice the error of the oracle in
    the same dtype and a few ``eps`` of the largest value. Above 1 the result is wrong."""
    actual, exact, same_dtype = (value.detach().double() for value in (actual, exact, same_dtype))
    if not actual.numel():
        return 0.0
    error = (actual - exact).abs().max().item()
    allowed = 2 * (same_dtype - exact).abs().max().item() + EPS_ALLOWED * eps * exact.abs().max().item()
    if math.isnan(error):
        return math.inf
    return error / allowed if allowed else (math.inf if error else 0.0)

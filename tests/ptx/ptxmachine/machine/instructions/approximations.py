"""Functions that the hardware approximates, with errors of the size that it may have."""

from typing import Any

import numpy as np

from ptxmachine.code.words import Array, f32, f64, u32
from ptxmachine.machine.instructions.lanes import Lanes

LEAST_NORMAL = 1.1754944e-38


class Approximations(Lanes):
    def ex2(self, x: Any, flush: bool) -> Array:
        exact = np.exp2(np.asarray(x).astype(f64))
        if flush:
            exact = np.where(exact < LEAST_NORMAL, 0.0, exact)
        return self._noisy(exact.astype(f32), 2.0**-22.5)

    def rsqrt(self, x: Any, flush: bool) -> Array:
        return self._noisy((1.0 / np.sqrt(np.asarray(x).astype(f64))).astype(f32), 2.0**-22.9)

    def _noisy(self, values: Array, size: float) -> Array:
        """With a relative error of up to ``size`` that looks random and depends on the value alone."""
        if not self.launch.options.noise:
            return values
        unit = ((values.view(u32) * u32(2654435761)) >> u32(8)).astype(f64) / (1 << 23) - 1.0
        return (values.astype(f64) * (1.0 + size * unit)).astype(f32)

"""What belongs together on the way from an operator to a kernel.

Sizes: ``N`` rows, ``D`` directions (1 or 2), ``B`` batch, ``T`` time steps, ``I`` inputs, ``H`` hidden units. Rows are
time-major and without padding: row ``t * B + b`` or, for packed input, ``offsets[t] + b``.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Weights(NamedTuple):
    """Of one layer, both directions."""

    w_ih: Tensor  # (D 3H, I)
    w_hh: Tensor  # (D, 3H, H)
    b_ih: Tensor | None  # (D 3H,)
    b_hh: Tensor | None  # (D, 3H)


class Rows(NamedTuple):
    """Which rows belong to which time step."""

    batch: int  # B
    offsets: Tensor | None = None  # (T + 1,) int64 on the rows' device: first row of each step, for packed rows

    def steps(self, count: int) -> int:
        """Time steps T of so many rows."""
        return count // self.batch if self.offsets is None else self.offsets.shape[0] - 1


class LayerCall(NamedTuple):
    """What one layer is given. ``leaves`` are in the order of ``needs``: what may want a gradient."""

    x: Tensor  # (N, I)
    weights: Weights
    h0: Tensor | None  # (D, B, H), zeros if None
    rows: Rows

    @classmethod
    def of(
        cls,
        x: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None,
        b_hh: Tensor | None,
        h0: Tensor | None,
        offsets: Tensor | None,
        batch: int,
    ) -> LayerCall:
        """From the flat arguments of an operator."""
        return cls(x, Weights(w_ih, w_hh, b_ih, b_hh), h0, Rows(batch, offsets))

    @property
    def leaves(self) -> tuple[Tensor | None, ...]:
        return self.x, *self.weights, self.h0

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """N, D, B, H."""
        D, _, H = self.weights.w_hh.shape
        return self.x.shape[0], D, self.rows.batch, H


class Recurrence(NamedTuple):
    """What the time loop itself reads of a layer, each tensor contiguous."""

    w_hh: Tensor  # (D, 3H, H)
    b_hh: Tensor | None  # (D, 3H); a backward reads none
    h0: Tensor | None  # (D, B, H)
    rows: Rows


class Outputs(NamedTuple):
    y: Tensor  # (N, D, H)
    hn: Tensor  # (D, B, H)
    gates: Tensor  # (N, D, H, 4), or (0,) where they are not saved


class Saved(NamedTuple):
    """What a backward has of the forward: the outputs, and the gates of the rows that it walks."""

    y: Tensor  # (N, D, H)
    gates: Tensor  # (n, D, H, 4), or (0,): then they are rebuilt


class OutputGradients(NamedTuple):
    dy: Tensor | None  # (N, D, H)
    dhn: Tensor | None  # (D, B, H)


class GateGradients(NamedTuple):
    """Of the rows that a backward walks: of the pre-activations, and of ``a = W_hn h + b_hn``."""

    dgx: Tensor  # (n, D, 3H)
    da: Tensor  # (n, D, H)


class Part(NamedTuple):
    """``length`` steps of a backward (all that are left, if None) from the one that is walked ``start`` steps after the
    first. Direction 0 walks from the last step down, direction 1 from the first one up."""

    start: int = 0
    length: int | None = None

    def steps(self, time: int) -> int:
        return time - self.start if self.length is None else self.length


WHOLE = Part()

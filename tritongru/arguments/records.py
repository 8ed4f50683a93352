"""Records of what belongs together between an operator and a kernel.

Sizes: ``N`` rows, ``D`` directions (1 or 2), ``B`` batch, ``T`` time steps, ``I`` inputs, ``H`` hidden units. Rows are
time-major: row ``t * B + b`` or, for packed input, which has no padding, ``offsets[t] + b``.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Weights(NamedTuple):
    """Weights of one layer, both directions."""

    w_ih: Tensor  # (D 3H, I)
    w_hh: Tensor  # (D, 3H, H)
    b_ih: Tensor | None  # (D 3H,)
    b_hh: Tensor | None  # (D, 3H)


class Rows(NamedTuple):
    """Which rows belong to which time step, and which steps a sequence has. Packed rows have neither lengths nor
    resets."""

    batch: int  # B
    offsets: Tensor | None = None  # (T + 1,) int64 on the rows' device: first row of each step, for packed rows
    lengths: Tensor | None = None  # (B,) int32 or int64 on the rows' device: steps of each sequence, T if None
    resets: Tensor | None = None  # (T, B) bool on the rows' device: where a state is replaced before the step

    def steps(self, count: int) -> int:
        """Time steps T of ``count`` rows."""
        return count // self.batch if self.offsets is None else self.offsets.shape[0] - 1

    @property
    def ragged(self) -> bool:
        """Whether sequences end early or begin anew."""
        return self.lengths is not None or self.resets is not None


class LayerCall(NamedTuple):
    """The inputs of one layer. ``leaves``: those that may need a gradient, in the order of ``needs``."""

    x: Tensor  # (N, I)
    weights: Weights
    h0: Tensor | None  # (D, B, H), zeros if None
    rows: Rows
    reset_state: Tensor | None = None  # (D, B or 1, H): the state after a reset, zeros if None

    @classmethod
    def of(
        cls,
        x: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None,
        b_hh: Tensor | None,
        h0: Tensor | None,
        reset_state: Tensor | None,
        offsets: Tensor | None,
        lengths: Tensor | None,
        resets: Tensor | None,
        batch: int,
    ) -> LayerCall:
        """From the flat arguments of an operator."""
        return cls(x, Weights(w_ih, w_hh, b_ih, b_hh), h0, Rows(batch, offsets, lengths, resets), reset_state)

    @property
    def leaves(self) -> tuple[Tensor | None, ...]:
        return self.x, *self.weights, self.h0, self.reset_state

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """N, D, B, H."""
        D, _, H = self.weights.w_hh.shape
        return self.x.shape[0], D, self.rows.batch, H


class Recurrence(NamedTuple):
    """What the time loop itself reads, each tensor contiguous. Of ragged rows, lengths, resets and ``reset_state`` are
    all there."""

    w_hh: Tensor  # (D, 3H, H)
    b_hh: Tensor | None  # (D, 3H); not read by the backward pass
    h0: Tensor | None  # (D, B, H)
    rows: Rows
    reset_state: Tensor | None = None  # (D, B or 1, H)


class Outputs(NamedTuple):
    y: Tensor  # (N, D, H)
    hn: Tensor  # (D, B, H)
    gates: Tensor  # (N, D, H, 4), or (0,) if not saved


class Saved(NamedTuple):
    """What the backward pass gets from the forward pass: the outputs, and the gates of the rows that it processes."""

    y: Tensor  # (N, D, H)
    gates: Tensor  # (n, D, H, 4), or (0,) if they are to be rebuilt


class OutputGradients(NamedTuple):
    dy: Tensor | None  # (N, D, H)
    dhn: Tensor | None  # (D, B, H)


class GateGradients(NamedTuple):
    """Gradients of the pre-activations and of ``a = W_hn h + b_hn``, for the rows that a backward pass processes."""

    dgx: Tensor  # (n, D, 3H)
    da: Tensor  # (n, D, H)
    reset_state: Tensor | None = None  # (D, B, H) fp32, of ragged rows: the kernel adds to it


class Part(NamedTuple):
    """``length`` steps of a backward pass (all remaining ones if None), after the first ``start`` that it processes.
    Direction 0 runs from the last time step down, direction 1 from the first one up."""

    start: int = 0
    length: int | None = None

    def steps(self, time: int) -> int:
        return time - self.start if self.length is None else self.length


WHOLE = Part()

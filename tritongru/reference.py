"""The reference: one GRU layer as a plain loop in any float dtype, and its backward pass derived by hand.

The kernels are tested against it; it is written to be read, not to be fast. Shapes: x ``(T, B, I)``, h0 and hn
``(B, H)``, w_ih ``(3H, I)``, w_hh ``(3H, H)``, b_ih and b_hh ``(3H,)``, y ``(T, B, H)``; gates in the order r, z, n.
Equations as in `torch.nn.GRU` (reset gate after the product).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Gates(NamedTuple):
    """Values of every step, each ``(T, B, H)``; ``a = W_hn h + b_hn``."""

    r: Tensor
    z: Tensor
    n: Tensor
    a: Tensor


class Gradients(NamedTuple):
    x: Tensor
    h0: Tensor
    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor
    b_hh: Tensor
    reset_state: Tensor | None = None  # as it was given


class Ragged(NamedTuple):
    """Sequences that end early or begin anew. Step t of a sequence is valid if ``t < length``: only then its state
    changes, and the outputs of other steps are zero. ``resets``: True at step t cuts a sequence between the steps t - 1
    and t, in both directions: a pass that crosses the cut goes on from ``reset_state``."""

    lengths: Tensor | None = None  # (B,), T if None
    resets: Tensor | None = None  # (T, B) bool
    reset_state: Tensor | None = None  # (B or 1, H), zeros if None

    def valid(self, rows: Tensor) -> Tensor:
        """(T, B, 1), for rows (T, B, ...)."""
        (T, B), device = rows.shape[:2], rows.device
        lengths = torch.full((B,), T, device=device) if self.lengths is None else self.lengths
        return (torch.arange(T, device=device)[:, None] < lengths)[..., None]

    def fresh(self, rows: Tensor, reverse: bool) -> Tensor:
        """(T, B, 1): whether the state before a step, in the direction of the pass, is the ``reset_state``."""
        valid = self.valid(rows)
        cut = torch.zeros_like(valid) if self.resets is None else self.resets[..., None] & valid
        return torch.cat((cut[1:], torch.zeros_like(cut[:1]))) if reverse else cut

    def state(self, like: Tensor) -> Tensor:
        return like.new_zeros(1, like.shape[-1]) if self.reset_state is None else self.reset_state


WHOLE = Ragged()


def forward(
    x: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    reverse: bool = False,
    ragged: Ragged = WHOLE,
) -> tuple[Tensor, Tensor, Gates]:
    """``(y, hn, gates)``. A reverse pass starts at the last step, and its y stays in the order of x."""
    return forward_loop(_linear(x, w_ih, b_ih), h0, w_hh, b_hh, reverse, ragged)


def forward_loop(
    gx: Tensor,
    h0: Tensor,
    w_hh: Tensor,
    b_hh: Tensor | None = None,
    reverse: bool = False,
    ragged: Ragged = WHOLE,
) -> tuple[Tensor, Tensor, Gates]:
    """The sequential part of ``forward``, from the input projections ``gx = x W_ih^T + b_ih``, ``(T, B, 3H)``."""
    h = h0
    steps: list[tuple[Tensor, ...]] = []
    valid, fresh = ragged.valid(gx), ragged.fresh(gx, reverse)
    order = range(gx.shape[0])
    for t in reversed(order) if reverse else order:
        h = torch.where(fresh[t], ragged.state(h), h)
        gx_r, gx_z, gx_n = gx[t].chunk(3, dim=-1)
        gh_r, gh_z, a = _linear(h, w_hh, b_hh).chunk(3, dim=-1)
        r = torch.sigmoid(gx_r + gh_r)
        z = torch.sigmoid(gx_z + gh_z)
        n = torch.tanh(gx_n + r * a)
        new = n + z * (h - n)
        h = torch.where(valid[t], new, h)
        steps.append((torch.where(valid[t], new, 0.0), r, z, n, a))
    y, *gates = (torch.stack(values[::-1] if reverse else values) for values in zip(*steps, strict=True))
    return y, h, Gates(*gates)


def backward(
    dy: Tensor,
    dhn: Tensor,
    x: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    y: Tensor,
    gates: Gates,
    reverse: bool = False,
    ragged: Ragged = WHOLE,
) -> Gradients:
    """Gradients of ``sum(y dy) + sum(hn dhn)``.

    From ``h' = n + z (h - n)`` with dh arriving at h'::

        dn = dh (1 - z) (1 - n^2)      dz = dh (h - n) z (1 - z)
        da = dn r                      dr = dn a r (1 - r)

    so dgx = (dr, dz, dn), dgh = (dr, dz, da), and dh z + dgh W_hh arrives at h. Everything else is a product or a
    sum over all steps. What arrives at a state after a cut belongs to the reset state.
    """
    h_prev = _states_before(h0, y, reverse, ragged)
    dgx, dgh, dh0, d_reset = backward_loop(dy, dhn, h0, w_hh, y, gates, reverse, ragged)
    rows_x, rows_h = dgx.flatten(0, 1), dgh.flatten(0, 1)
    x = torch.where(ragged.valid(x), x, 0.0)  # 0 times a NaN in the padding would be a NaN
    return Gradients(
        x=dgx @ w_ih,
        h0=dh0,
        w_ih=rows_x.t() @ x.flatten(0, 1),
        w_hh=rows_h.t() @ h_prev.flatten(0, 1),
        b_ih=rows_x.sum(0),
        b_hh=rows_h.sum(0),
        reset_state=None if ragged.reset_state is None else d_reset.sum_to_size(ragged.reset_state.shape),
    )


def backward_loop(
    dy: Tensor,
    dhn: Tensor,
    h0: Tensor,
    w_hh: Tensor,
    y: Tensor,
    gates: Gates,
    reverse: bool = False,
    ragged: Ragged = WHOLE,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sequential part of ``backward``: dgx and dgh, both ``(T, B, 3H)``, dh0, and the gradient of the reset state,
    ``(B, H)``."""
    T, B, H = y.shape
    h_prev = _states_before(h0, y, reverse, ragged)
    valid, fresh = ragged.valid(y), ragged.fresh(y, reverse)
    dgx, dgh = y.new_empty(T, B, 3 * H), y.new_empty(T, B, 3 * H)
    dh, d_reset = dhn, torch.zeros_like(dhn)
    order = range(T)
    for t in order if reverse else reversed(order):
        r, z, n, a = (gate[t] for gate in gates)
        arriving = dh + dy[t]
        dn = arriving * (1 - z) * (1 - n * n)
        dz = arriving * (h_prev[t] - n) * z * (1 - z)
        dr = dn * a * r * (1 - r)
        dgx[t] = torch.where(valid[t], torch.cat((dr, dz, dn), dim=-1), 0.0)
        dgh[t] = torch.where(valid[t], torch.cat((dr, dz, dn * r), dim=-1), 0.0)
        dh = torch.where(valid[t], arriving * z + dgh[t] @ w_hh, dh)
        d_reset = d_reset + torch.where(fresh[t], dh, 0.0)
        dh = torch.where(fresh[t], 0.0, dh)
    return dgx, dgh, dh, d_reset


class ReferenceGRU(torch.autograd.Function):
    """``forward`` with ``backward`` as its derivative: ``apply(x, h0, w_ih, w_hh, b_ih, b_hh, reverse)``, optionally
    followed by ``lengths, resets, reset_state``."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        h0: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor,
        b_hh: Tensor,
        reverse: bool,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        reset_state: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        y, hn, gates = forward(x, h0, w_ih, w_hh, b_ih, b_hh, reverse, Ragged(lengths, resets, reset_state))
        ctx.save_for_backward(x, h0, w_ih, w_hh, lengths, resets, reset_state, y, *gates)
        ctx.reverse = reverse
        return y, hn

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dhn: Tensor) -> tuple[Tensor | None, ...]:
        x, h0, w_ih, w_hh, lengths, resets, reset_state, y, *gates = ctx.saved_tensors
        ragged = Ragged(lengths, resets, reset_state)
        *found, d_reset = backward(dy, dhn, x, h0, w_ih, w_hh, y, Gates(*gates), ctx.reverse, ragged)
        return *found, None, None, None, d_reset


def _states_before(h0: Tensor, y: Tensor, reverse: bool, ragged: Ragged) -> Tensor:
    """The state before each step, in the direction of the pass."""
    valid = ragged.valid(y)
    began = torch.zeros_like(valid[:1])
    states = torch.cat((y[1:], h0[None])) if reverse else torch.cat((h0[None], y[:-1]))
    goes_on = torch.cat((valid[1:], began)) if reverse else torch.cat((began, valid[:-1]))
    return torch.where(ragged.fresh(y, reverse), ragged.state(h0), torch.where(goes_on, states, h0))


def _linear(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(x, w, b)

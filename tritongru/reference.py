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


def forward(
    x: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Gates]:
    """``(y, hn, gates)``. A reverse pass starts at the last step, and its y stays in the order of x."""
    return forward_loop(_linear(x, w_ih, b_ih), h0, w_hh, b_hh, reverse)


def forward_loop(
    gx: Tensor, h0: Tensor, w_hh: Tensor, b_hh: Tensor | None = None, reverse: bool = False
) -> tuple[Tensor, Tensor, Gates]:
    """The sequential part of ``forward``, from the input projections ``gx = x W_ih^T + b_ih``, ``(T, B, 3H)``."""
    h = h0
    steps: list[tuple[Tensor, ...]] = []
    order = range(gx.shape[0])
    for t in reversed(order) if reverse else order:
        gx_r, gx_z, gx_n = gx[t].chunk(3, dim=-1)
        gh_r, gh_z, a = _linear(h, w_hh, b_hh).chunk(3, dim=-1)
        r = torch.sigmoid(gx_r + gh_r)
        z = torch.sigmoid(gx_z + gh_z)
        n = torch.tanh(gx_n + r * a)
        h = n + z * (h - n)
        steps.append((h, r, z, n, a))
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
) -> Gradients:
    """Gradients of ``sum(y dy) + sum(hn dhn)``.

    From ``h' = n + z (h - n)`` with dh arriving at h'::

        dn = dh (1 - z) (1 - n^2)      dz = dh (h - n) z (1 - z)
        da = dn r                      dr = dn a r (1 - r)

    so dgx = (dr, dz, dn), dgh = (dr, dz, da), and dh z + dgh W_hh arrives at h. Everything else is a product or a
    sum over all steps.
    """
    h_prev = _states_before(h0, y, reverse)
    dgx, dgh, dh0 = backward_loop(dy, dhn, h0, w_hh, y, gates, reverse)
    rows_x, rows_h = dgx.flatten(0, 1), dgh.flatten(0, 1)
    return Gradients(
        x=dgx @ w_ih,
        h0=dh0,
        w_ih=rows_x.t() @ x.flatten(0, 1),
        w_hh=rows_h.t() @ h_prev.flatten(0, 1),
        b_ih=rows_x.sum(0),
        b_hh=rows_h.sum(0),
    )


def backward_loop(
    dy: Tensor, dhn: Tensor, h0: Tensor, w_hh: Tensor, y: Tensor, gates: Gates, reverse: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """The sequential part of ``backward``: dgx and dgh, both ``(T, B, 3H)``, and dh0."""
    T, B, H = y.shape
    h_prev = _states_before(h0, y, reverse)
    dgx, dgh = y.new_empty(T, B, 3 * H), y.new_empty(T, B, 3 * H)
    dh = dhn
    order = range(T)
    for t in order if reverse else reversed(order):
        r, z, n, a = (gate[t] for gate in gates)
        dh = dh + dy[t]
        dn = dh * (1 - z) * (1 - n * n)
        dz = dh * (h_prev[t] - n) * z * (1 - z)
        dr = dn * a * r * (1 - r)
        dgx[t] = torch.cat((dr, dz, dn), dim=-1)
        dgh[t] = torch.cat((dr, dz, dn * r), dim=-1)
        dh = dh * z + dgh[t] @ w_hh
    return dgx, dgh, dh


class ReferenceGRU(torch.autograd.Function):
    """``forward`` with ``backward`` as its derivative: ``apply(x, h0, w_ih, w_hh, b_ih, b_hh, reverse)``."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, h0: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor, reverse: bool
    ) -> tuple[Tensor, Tensor]:
        y, hn, gates = forward(x, h0, w_ih, w_hh, b_ih, b_hh, reverse)
        ctx.save_for_backward(x, h0, w_ih, w_hh, y, *gates)
        ctx.reverse = reverse
        return y, hn

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dhn: Tensor) -> tuple[Tensor | None, ...]:
        x, h0, w_ih, w_hh, y, *gates = ctx.saved_tensors
        return *backward(dy, dhn, x, h0, w_ih, w_hh, y, Gates(*gates), ctx.reverse), None


def _states_before(h0: Tensor, y: Tensor, reverse: bool) -> Tensor:
    return torch.cat((y[1:], h0[None])) if reverse else torch.cat((h0[None], y[:-1]))


def _linear(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(x, w, b)

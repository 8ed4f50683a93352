"""One layer run by torch's own GRU inside an operator, where autograd does not look.

What a backward needs of the forward is the reserve of cuDNN where cuDNN runs; elsewhere the backward runs the forward
again. Shapes are those of :mod:`tritongru.layer`. Dropout between layers lies outside, so no mask is drawn twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

GRU_MODE = 3  # cuDNN's CUDNN_GRU, as torch's operators count


def forward(
    x: Tensor,  # (N, I)
    w_ih: Tensor,  # (D 3H, I)
    w_hh: Tensor,  # (D, 3H, H)
    b_ih: Tensor | None,  # (D 3H,)
    b_hh: Tensor | None,  # (D, 3H)
    h0: Tensor | None,  # (D, B, H)
    batch: int,  # B
    learns: bool,
    autocast: torch.dtype | None,  # what CPU autocast asks for
) -> tuple[Tensor, Tensor, Tensor]:  # y (N, D, H), hn (D, B, H), cuDNN's reserve or (0,)
    D, _, H = w_hh.shape
    if learns and runs_cudnn(x):
        own = _per_direction(w_ih, w_hh, b_ih, b_hh)
        found = torch.ops.aten._cudnn_rnn.default(
            _steps(x, batch), own, len(own) // D, _flat(own, x, w_hh), _first(x, w_hh, h0, batch), None, *_sizes(w_hh)
        )
        return found[0].reshape(-1, D, H), found[1], found[3]
    output, hn = _run(x, w_ih, w_hh, b_ih, b_hh, h0, batch, autocast, train=False)
    return output.reshape(-1, D, H), hn, x.new_empty((0,), dtype=torch.uint8)


def backward(
    dy: Tensor | None,  # (N, D, H)
    dhn: Tensor | None,  # (D, B, H)
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    h0: Tensor | None,
    y: Tensor,
    reserve: Tensor,
    batch: int,
    needs: Sequence[bool],  # of x, w_ih, w_hh, b_ih, b_hh, h0
    autocast: torch.dtype | None,
) -> list[Tensor | None]:
    """The gradients that are needed. A reserve is used up: cuDNN writes into it, so it gets a copy."""
    if reserve.numel() > 0:
        return _cudnn_backward(dy, dhn, x, w_ih, w_hh, b_ih, b_hh, h0, y, reserve.clone(), batch, needs)
    given = (x, w_ih, w_hh, b_ih, b_hh, h0)
    leaves: list[Any] = [
        None if t is None else t.detach().requires_grad_(need) for t, need in zip(given, needs, strict=True)
    ]
    wanted = [leaf for leaf, need in zip(leaves, needs, strict=True) if need]
    with torch.enable_grad(), _autograd_looks():
        output, hn = _run(*leaves, batch, autocast, train=True)  # type: ignore[call-arg, misc]
        sides = [(output.reshape(y.shape), dy), (hn, dhn)]
        results, grads = zip(*((result, grad) for result, grad in sides if grad is not None), strict=True)
        found = iter(torch.autograd.grad(results, wanted, grads))
    return [next(found) if need else None for need in needs]


def _autograd_looks() -> AbstractContextManager[Any]:
    """Undoes what torch does around an operator that has a derivative of its own, so that a graph is built again."""
    guard: Any = torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False)
    return guard  # type: ignore[no-any-return]


def runs_cudnn(x: Tensor) -> bool:
    return x.is_cuda and torch.version.hip is None and torch.cudnn_is_acceptable(x)


def _run(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    h0: Tensor | None,
    batch: int,
    autocast: torch.dtype | None,
    train: bool,  # what cuDNN wants to be told before it differentiates
) -> tuple[Tensor, Tensor]:
    rest = (b_ih is not None, 1, 0.0, train, w_hh.shape[0] == 2, False)
    weights = _per_direction(w_ih, w_hh, b_ih, b_hh)
    with torch.autocast(x.device.type, dtype=autocast, enabled=autocast is not None):
        return torch.gru(_steps(x, batch), _first(x, w_hh, h0, batch), weights, *rest)


def _per_direction(w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None) -> list[Tensor]:
    """In torch's order: of each direction w_ih, w_hh, b_ih, b_hh."""
    D = w_hh.shape[0]
    kinds = [w_ih.chunk(D), w_hh.unbind()]
    if b_ih is not None and b_hh is not None:
        kinds += [b_ih.chunk(D), b_hh.unbind()]
    return [weight for own in zip(*kinds, strict=True) for weight in own]


def _steps(x: Tensor, batch: int) -> Tensor:
    return x.contiguous().view(-1, batch, x.shape[1])


def _first(x: Tensor, w_hh: Tensor, h0: Tensor | None, batch: int) -> Tensor:
    if h0 is None:
        return x.new_zeros((w_hh.shape[0], batch, w_hh.shape[2]))
    return h0.contiguous()


def _sizes(w_hh: Tensor) -> tuple[object, ...]:
    """cuDNN's arguments from the mode to the state of its dropout: one layer, time-major, in training."""
    D, _, H = w_hh.shape
    return GRU_MODE, H, 0, 1, False, 0.0, True, D == 2, (), None


def _flat(own: Sequence[Tensor], x: Tensor, w_hh: Tensor) -> Tensor:
    """The weights in cuDNN's order in one buffer, as ``flatten_parameters`` makes it; of copies, whose place in memory
    it changes."""
    D, _, H = w_hh.shape
    copies = [weight.clone() for weight in own]
    found: Tensor = torch.ops.aten._cudnn_rnn_flatten_weight.default(
        copies, len(own) // D, x.shape[1], GRU_MODE, H, 0, 1, False, D == 2
    )
    return found


def _cudnn_backward(
    dy: Tensor | None,
    dhn: Tensor | None,
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    h0: Tensor | None,
    y: Tensor,
    reserve: Tensor,
    batch: int,
    needs: Sequence[bool],
) -> list[Tensor | None]:
    D, _, H = w_hh.shape
    own = _per_direction(w_ih, w_hh, b_ih, b_hh)
    each = len(own) // D
    T = y.shape[0] // batch
    dx, dh0, _, dws = torch.ops.aten._cudnn_rnn_backward.default(
        *(_steps(x, batch), own, each, _flat(own, x, w_hh), _first(x, w_hh, h0, batch), None),
        *(y.reshape(T, batch, D * H), None if dy is None else dy.reshape(T, batch, D * H), dhn, None),
        *_sizes(w_hh),
        reserve,
        (needs[0], needs[5], False, any(needs[1:5])),
    )
    found: list[Tensor | None] = [None if dx is None else dx.reshape(x.shape), None, None, None, None, dh0]
    if any(needs[1:5]):
        joined = (torch.cat, torch.stack, torch.cat, torch.stack)  # of w_ih, w_hh, b_ih, b_hh
        found[1 : 1 + each] = [join([*dws[k::each]]) for k, join in enumerate(joined[:each])]
    return [grad if need else None for grad, need in zip(found, needs, strict=True)]

"""One layer run by torch's own GRU inside an operator, hidden from autograd.

With cuDNN, the backward pass uses the reserve of the forward pass; otherwise, and for ragged rows, it runs the forward
pass again. No packed rows. Dropout between layers is applied outside, so no mask is drawn twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from tritongru.arguments.records import LayerCall, OutputGradients, Weights
from tritongru.interop.ragged_torch import run_layer

GRU_MODE = 3  # CUDNN_GRU, as torch's operators number cuDNN's modes


def forward(
    call: LayerCall,
    learns: bool,
    autocast: torch.dtype | None,  # CPU autocast's dtype
) -> tuple[Tensor, Tensor, Tensor]:  # y (N, D, H), hn (D, B, H), cuDNN's reserve or (0,)
    x, (_, D, _, H) = call.x, call.sizes
    if learns and runs_cudnn(x) and not call.rows.ragged:
        own = _per_direction(call.weights)
        found = torch.ops.aten._cudnn_rnn.default(
            _steps(call), own, len(own) // D, _flat(own, call), _first(call), None, *_sizes(call)
        )
        return found[0].reshape(-1, D, H), found[1], found[3]
    output, hn = _run(call, autocast, train=False)
    return output.reshape(-1, D, H), hn, x.new_empty((0,), dtype=torch.uint8)


def backward(
    grads: OutputGradients,
    call: LayerCall,
    y: Tensor,  # (N, D, H)
    reserve: Tensor,
    needs: Sequence[bool],  # of the call's leaves
    autocast: torch.dtype | None,
) -> list[Tensor | None]:
    """The gradients that are needed. cuDNN writes into the reserve, so it gets a copy."""
    if reserve.numel() > 0:
        return _cudnn_backward(grads, call, y, reserve.clone(), needs)
    own, wanted = _detached(call, needs)
    with torch.enable_grad(), _autograd_looks():
        output, hn = _run(own, autocast, train=True)
        sides = [(output.reshape(y.shape), grads.dy), (hn, grads.dhn)]
        results, known = zip(*((result, grad) for result, grad in sides if grad is not None), strict=True)
        found = iter(torch.autograd.grad(results, wanted, known))
    return [next(found) if need else None for need in needs]


def gradients(grads: OutputGradients, call: LayerCall, needs: Sequence[bool], again: bool) -> tuple[Tensor | None, ...]:
    """As ``backward``, but also for packed rows, and with its own graph if it is differentiated ``again``."""
    if grads.dy is None and grads.dhn is None:
        return tuple(torch.zeros_like(t) if need else None for t, need in zip(call.leaves, needs, strict=True))  # type: ignore[arg-type]
    leaves: list[Any] = [t for t, need in zip(call.leaves, needs, strict=True) if need]
    with torch.enable_grad():
        if not again:
            call, leaves = _detached(call, needs)
        output, hn = _run_rows(call)
        N, D, _, H = call.sizes
        sides = [(output.reshape(N, D, H), grads.dy), (hn, grads.dhn)]
        results, known = zip(*((result, grad) for result, grad in sides if grad is not None), strict=True)
        found = iter(torch.autograd.grad(results, leaves, known, create_graph=again))
    return tuple(next(found) if need else None for need in needs)


def _detached(call: LayerCall, needs: Sequence[bool]) -> tuple[LayerCall, list[Any]]:
    own: list[Any] = [
        None if t is None else t.detach().requires_grad_(need) for t, need in zip(call.leaves, needs, strict=True)
    ]
    x, *weights, h0, reset_state = own
    return LayerCall(x, Weights(*weights), h0, call.rows, reset_state), [
        t for t, need in zip(own, needs, strict=True) if need
    ]


def _run_rows(call: LayerCall) -> tuple[Tensor, Tensor]:
    offsets = call.rows.offsets
    if offsets is None:
        return _run(call, None, train=True)
    weights = call.weights
    rest = (weights.b_ih is not None, 1, 0.0, True, weights.w_hh.shape[0] == 2)
    return torch.gru(call.x, offsets.diff(), _first(call), _per_direction(weights), *rest)


def _autograd_looks() -> AbstractContextManager[Any]:
    """Undoes what torch does around an operator with its own derivative, so that a graph is built again."""
    guard: Any = torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False)
    return guard  # type: ignore[no-any-return]


def runs_cudnn(x: Tensor) -> bool:
    return x.is_cuda and torch.version.hip is None and torch.cudnn_is_acceptable(x)


def _run(
    call: LayerCall,
    autocast: torch.dtype | None,
    train: bool,  # cuDNN needs it to compute gradients
) -> tuple[Tensor, Tensor]:
    x, weights = call.x, call.weights
    rest = (weights.b_ih is not None, 1, 0.0, train, weights.w_hh.shape[0] == 2, False)
    with torch.autocast(x.device.type, dtype=autocast, enabled=autocast is not None):
        if call.rows.ragged:
            return run_layer(_steps(call), _first(call), _per_direction(weights), call.rows, call.reset_state, train)
        return torch.gru(_steps(call), _first(call), _per_direction(weights), *rest)


def _per_direction(weights: Weights) -> list[Tensor]:
    """In torch's order: w_ih, w_hh, b_ih, b_hh of each direction."""
    w_ih, w_hh, b_ih, b_hh = weights
    D = w_hh.shape[0]
    kinds = [w_ih.chunk(D), w_hh.unbind()]
    if b_ih is not None and b_hh is not None:
        kinds += [b_ih.chunk(D), b_hh.unbind()]
    return [weight for own in zip(*kinds, strict=True) for weight in own]


def _steps(call: LayerCall) -> Tensor:
    return call.x.contiguous().view(-1, call.rows.batch, call.x.shape[1])


def _first(call: LayerCall) -> Tensor:
    _, D, B, H = call.sizes
    return call.x.new_zeros((D, B, H)) if call.h0 is None else call.h0.contiguous()


def _sizes(call: LayerCall) -> tuple[object, ...]:
    """cuDNN's arguments from the mode to the state of its dropout: one layer, time-major, in training."""
    _, D, _, H = call.sizes
    return GRU_MODE, H, 0, 1, False, 0.0, True, D == 2, (), None


def _flat(own: Sequence[Tensor], call: LayerCall) -> Tensor:
    """The weights in cuDNN's order in one buffer, as ``flatten_parameters`` makes it; from copies, because it moves
    them."""
    _, D, _, H = call.sizes
    copies = [weight.clone() for weight in own]
    found: Tensor = torch.ops.aten._cudnn_rnn_flatten_weight.default(
        copies, len(own) // D, call.x.shape[1], GRU_MODE, H, 0, 1, False, D == 2
    )
    return found


def _cudnn_backward(
    grads: OutputGradients, call: LayerCall, y: Tensor, reserve: Tensor, needs: Sequence[bool]
) -> list[Tensor | None]:
    N, D, B, H = call.sizes
    own = _per_direction(call.weights)
    each, T = len(own) // D, N // B
    dx, dh0, _, dws = torch.ops.aten._cudnn_rnn_backward.default(
        *(_steps(call), own, each, _flat(own, call), _first(call), None),
        *(y.reshape(T, B, D * H), None if grads.dy is None else grads.dy.reshape(T, B, D * H), grads.dhn, None),
        *_sizes(call),
        reserve,
        (needs[0], needs[5], False, any(needs[1:5])),
    )
    found: list[Tensor | None] = [None if dx is None else dx.reshape(call.x.shape), None, None, None, None, dh0, None]
    if any(needs[1:5]):
        joined = (torch.cat, torch.stack, torch.cat, torch.stack)  # of w_ih, w_hh, b_ih, b_hh
        found[1 : 1 + each] = [join([*dws[k::each]]) for k, join in enumerate(joined[:each])]
    return [grad if need else None for grad, need in zip(found, needs, strict=True)]

"""torch's own GRU for a call, with autocast and dropout as in the kernels' path."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tritongru.arguments.options import Options, autocast_dtype, batch_of
from tritongru.arguments.ragged import WHOLE, Ragged
from tritongru.interop.ragged_torch import run_layer


def run_torch(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    options: Options,
    ragged: Ragged = WHOLE,
) -> tuple[Tensor, Tensor]:
    """torch's own GRU. Dropout between layers is drawn here whenever ``torch.gru`` would not draw it from torch's
    generator: cuDNN has its own generator, and the decomposition that compilers use omits dropout."""
    layers, directions = options.num_layers, options.directions
    if hx is None:
        batch, hidden = batch_of(input, batch_sizes, options), weights[1].shape[-1]
        hx = torch.zeros(layers * directions, batch, hidden, dtype=input.dtype, device=input.device)
    if input.is_cuda:
        dtype = autocast_dtype(input)
        if dtype is not None and dtype != torch.float16:  # under autocast torch.gru always computes in float16
            with torch.autocast("cuda", enabled=False):
                weights = [w.to(dtype) for w in weights]
                return run_torch(input.to(dtype), hx.to(dtype), weights, batch_sizes, options, ragged.to(dtype))
        hx = hx.contiguous()  # cuDNN takes no other
    if not ragged and not draws_dropout(input, options.dropout, layers):
        return _torch_gru(input, hx, weights, batch_sizes, options)
    if ragged and options.batch_first:
        input = input.transpose(0, 1)
    single = options._replace(num_layers=1, dropout=0.0)
    each = directions * options.tensors
    states = []
    for layer in range(layers):
        if layer > 0:
            input = torch.dropout(input, options.dropout, options.training)
        state = hx[layer * directions : (layer + 1) * directions]
        own = weights[layer * each : (layer + 1) * each]
        if ragged:
            train = options.training or _learns_on_gpu(input, state, own)
            rows, reset_state = ragged.rows(input.shape[1]), ragged.of_layer(layer, directions)
            input, state = run_layer(input, state, own, rows, reset_state, train)
        else:
            input, state = _torch_gru(input, state, own, batch_sizes, single)
        states.append(state)
    if ragged and options.batch_first:
        input = input.transpose(0, 1)
    return input, torch.cat(states)


def draws_dropout(like: Tensor, dropout: float, num_layers: int) -> bool:
    """Whether the torch path runs layer by layer and draws the dropout between layers itself."""
    return dropout > 0 and num_layers > 1 and (like.is_cuda or torch.compiler.is_compiling())


def _torch_gru(
    input: Tensor, hx: Tensor, weights: Sequence[Tensor], batch_sizes: Tensor | None, options: Options
) -> tuple[Tensor, Tensor]:
    train = options.training or _learns_on_gpu(input, hx, weights)
    rest = (options.bias, options.num_layers, options.dropout, train, options.bidirectional)
    if batch_sizes is None:
        return torch.gru(input, hx, weights, *rest, options.batch_first)  # type: ignore[no-any-return, call-overload]
    return torch.gru(input, batch_sizes, hx, weights, *rest)  # type: ignore[no-any-return, call-overload]


def _learns_on_gpu(input: Tensor, hx: Tensor, weights: Sequence[Tensor]) -> bool:
    """Whether cuDNN has to know that gradients follow, in eval mode too. No dropout is left to ``torch.gru`` then."""
    return input.is_cuda and torch.is_grad_enabled() and any(t.requires_grad for t in (input, hx, *weights))

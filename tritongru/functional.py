"""``gru``: the GRU as a function of its weights; checks, autocast, layers, directions and dropout."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tritongru import ops
from tritongru.memory import MEMORIES, gate_bytes, saves
from tritongru.options import IMPLS, Options, autocast_dtype, batch_of, steps_of
from tritongru.route import asks_for_kernels, taken
from tritongru.torch_path import run_torch


def gru(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    num_layers: int = 1,
    bias: bool = True,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_sizes: Tensor | None = None,
    impl: str = "auto",
    memory: str = "auto",
) -> tuple[Tensor, Tensor]:
    """A multi-layer GRU with the equations of :class:`torch.nn.GRU` (reset gate after the product)::

        r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)    z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
        n = tanh(W_in x + b_in + r (W_hn h + b_hn))   h' = n + z (h - n)

    Args:
        input: ``(T, B, I)``; ``(B, T, I)`` with ``batch_first``; or the data ``(N, I)`` of a packed sequence.
        hx: initial states ``(L * D, B, H)``, or None for zeros. D is 2 if bidirectional, else 1.
        weights: for each layer and direction ``w_ih (3H, I or D * H)``, ``w_hh (3H, H)`` and, with ``bias``,
            ``b_ih (3H,)``, ``b_hh (3H,)``; gates in the order r, z, n.
        dropout: probability with which an output of each layer but the last is zeroed, if ``training``.
        batch_sizes: ``(T,)`` int64 on the CPU: rows of each step of a packed sequence.
        impl: ``"auto"``, ``"triton"`` (never falls back: raises with the plan's reason) or ``"torch"``.
        memory: what Triton's forward keeps for the backward: ``"save"`` the gates, ``"recompute"`` them in the backward
            from the states, or ``"auto"``: save them where those of all layers take at most an eighth of the device's
            memory.

    Returns:
        ``(output, h_n)``: output ``(T, B, D * H)`` in the layout of the input, h_n ``(L * D, B, H)``; both in the
        input's dtype (float32, float16, bfloat16; on torch's path any that ``torch.gru`` takes), or in the one that
        CUDA autocast asks for.

    Raises:
        ValueError, RuntimeError: with torch's text where torch has one.
    """
    check_choice("impl", impl, IMPLS)
    check_choice("memory", memory, MEMORIES)
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout should be a number in range [0, 1], got {dropout}")
    options = Options(num_layers, bias, batch_first, float(dropout), training, bidirectional, impl, memory)
    _check_shapes(input, hx, weights, batch_sizes, options)
    return run(input, hx, weights, batch_sizes, options)


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} should be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_dtype(input: Tensor, weight: Tensor) -> None:
    if input.dtype != weight.dtype and not torch._C._is_any_autocast_enabled():
        raise ValueError(
            f"RNN input dtype ({input.dtype}) does not match weight dtype ({weight.dtype}). Convert input: "
            f"input.to({weight.dtype}), or convert model: model.to({input.dtype})"
        )


def check_features(input: Tensor, batch_sizes: Tensor | None, features: int) -> None:
    rank = 3 if batch_sizes is None else 2
    if input.dim() != rank:
        raise RuntimeError(f"input must have {rank} dimensions, got {input.dim()}")
    if input.size(-1) != features:
        raise RuntimeError(f"input.size(-1) must be equal to input_size. Expected {features}, got {input.size(-1)}")


def _check_shapes(
    input: Tensor, hx: Tensor | None, weights: Sequence[Tensor], batch_sizes: Tensor | None, options: Options
) -> None:
    expected = options.num_layers * options.directions * options.tensors
    if len(weights) != expected or expected <= 0:
        raise ValueError(
            f"weights should hold {expected} tensors ({options.tensors} for each of {options.num_layers} layers and "
            f"{options.directions} directions, one layer at least), got {len(weights)}"
        )
    hidden, features = weights[1].shape[-1], weights[0].shape[-1]
    check_dtype(input, weights[0])
    check_features(input, batch_sizes, features)
    if hx is not None:
        states = (options.num_layers * options.directions, batch_of(input, batch_sizes, options), hidden)
        if hx.shape != states:
            raise RuntimeError(f"Expected hidden size {states}, got {list(hx.shape)}")


def run(
    input: Tensor, hx: Tensor | None, weights: Sequence[Tensor], batch_sizes: Tensor | None, options: Options
) -> tuple[Tensor, Tensor]:
    """``gru`` behind its checks: asks the plan and takes one of the two paths."""
    if options.impl != "torch":
        check_choice("impl", options.impl, IMPLS)
        check_choice("memory", options.memory, MEMORIES)
    if not asks_for_kernels(options.impl, input.device):
        return run_torch(input, hx, weights, batch_sizes, options)
    _check_tensors(input, hx, weights, batch_sizes, options)
    learns = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (input, hx, *weights))
    cast = autocast_dtype(input)
    dtype = cast or input.dtype
    batch, T = batch_of(input, batch_sizes, options), steps_of(input, batch_sizes, options)
    hidden, directions = weights[1].shape[-1], options.directions
    route = taken(options.impl, hidden, dtype, input.device, directions, learns, batch, T)
    if route is None:
        return run_torch(input, hx, weights, batch_sizes, options)
    rows = input.shape[0] if batch_sizes is not None else input.shape[0] * input.shape[1]
    size = gate_bytes(rows, hidden, directions, options.num_layers, dtype.itemsize)
    save_gates = saves(options.memory, size, route.device_bytes)
    if cast is not None:
        input, weights = input.to(cast), [w.to(cast) for w in weights]
        hx = None if hx is None else hx.to(cast)
    if batch_sizes is not None:
        x, offsets = _packed_rows(input, batch_sizes)
        return _run_triton(x, hx, weights, offsets, batch, options, save_gates)
    x = (input.transpose(0, 1) if options.batch_first else input).reshape(T * batch, input.shape[-1])
    y, h_n = _run_triton(x, hx, weights, None, batch, options, save_gates)
    output = y.view(T, batch, y.shape[1])
    return output.transpose(0, 1) if options.batch_first else output, h_n


def _run_triton(
    x: Tensor,  # (N, I)
    hx: Tensor | None,  # (L * D, B, H)
    weights: Sequence[Tensor],
    offsets: Tensor | None,  # (T + 1,)
    batch: int,
    options: Options,
    save_gates: bool,
) -> tuple[Tensor, Tensor]:  # y (N, D * H), h_n (L * D, B, H)
    layers, directions, each = options.num_layers, options.directions, options.tensors
    states = []
    for layer in range(layers):
        if layer > 0 and options.training and options.dropout > 0:
            x = torch.dropout(x, options.dropout, True)
        own = weights[layer * directions * each : (layer + 1) * directions * each]
        h0 = hx if hx is None or layers == 1 else hx[layer * directions : (layer + 1) * directions]
        y, hn = ops.gru_layer(x, *layer_weights(own, each), h0, offsets, batch, save_gates)
        x = y.view(-1, directions * y.shape[2])
        states.append(hn)
    return x, states[0] if layers == 1 else torch.cat(states)


def layer_weights(own: Sequence[Tensor], each: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """A layer's weights with both directions in one tensor, so that one product and one launch serve them."""
    if len(own) == each:
        w_ih, w_hh, *biases = own
        return (w_ih, w_hh.unsqueeze(0), *((biases[0], biases[1].unsqueeze(0)) if biases else (None, None)))
    w_ih, w_hh = torch.cat((own[0], own[each])), torch.stack((own[1], own[each + 1]))
    if each == 2:
        return w_ih, w_hh, None, None
    return w_ih, w_hh, torch.cat((own[2], own[each + 2])), torch.stack((own[3], own[each + 3]))


def _check_tensors(
    input: Tensor, hx: Tensor | None, weights: Sequence[Tensor], batch_sizes: Tensor | None, options: Options
) -> None:
    """What a kernel would not notice: it reads memory by the shapes and types that it is told."""
    device, dtype, casts = input.device, input.dtype, autocast_dtype(input) is not None
    if hx is not None and hx.device != device:
        raise _elsewhere(input, "hidden", hx)
    for weight in weights:
        if weight.device != device:
            raise _elsewhere(input, "parameter", weight)
    if batch_sizes is None and steps_of(input, None, options) == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    if hx is not None and hx.dtype != dtype and not casts:
        raise RuntimeError(
            "Input and hidden tensors are not the same dtype, found input tensor with "
            f"{_scalar_type(input)} and hidden tensor with {_scalar_type(hx)}"
        )
    hidden, directions, each = weights[1].shape[-1], options.directions, options.tensors
    shapes = ((3 * hidden, input.shape[-1]), (3 * hidden, hidden), (3 * hidden,), (3 * hidden,))
    for k, weight in enumerate(weights):
        shape = shapes[k % each] if k % each or k < directions * each else (3 * hidden, directions * hidden)
        if weight.shape != shape:
            raise RuntimeError(f"weight {k} of the GRU should have the shape {shape}, got {tuple(weight.shape)}")
        if weight.dtype != dtype and not casts:
            raise RuntimeError(f"weight {k} of the GRU should have the dtype {dtype}, got {weight.dtype}")


def _elsewhere(input: Tensor, kind: str, tensor: Tensor) -> RuntimeError:
    return RuntimeError(
        f"Input and {kind} tensors are not at the same device, found input tensor at {input.device} and {kind} tensor "
        f"at {tensor.device}"
    )


def _scalar_type(tensor: Tensor) -> str:
    """The dtype as torch's C++ messages spell it: Float, Double, BFloat16."""
    return tensor.type().rpartition(".")[2].removesuffix("Tensor")


def _packed_rows(data: Tensor, batch_sizes: Tensor) -> tuple[Tensor, Tensor]:
    """The rows that batch_sizes counts, and the first row of each step, on the data's device without waiting for it."""
    if batch_sizes.dtype != torch.int64:
        raise RuntimeError(f"expected scalar type Long but found {_scalar_type(batch_sizes)}")
    if (batch_sizes[1:] > batch_sizes[:-1]).any():
        raise RuntimeError(f"batch_sizes should never grow from step to step, got {batch_sizes.tolist()}")
    offsets = torch.nn.functional.pad(batch_sizes.cumsum(0), (1, 0))
    rows = int(offsets[-1])
    if data.shape[0] < rows:
        first = int(offsets[torch.searchsorted(offsets, data.shape[0], right=True) - 1])
        raise RuntimeError(
            f"start ({first}) + length ({int(batch_sizes[(offsets[:-1] == first).nonzero()[0, 0]])}) exceeds "
            f"dimension size ({data.shape[0]})."
        )
    if data.is_cuda:
        offsets = offsets.pin_memory().to(data.device, non_blocking=True)
    return data[:rows], offsets

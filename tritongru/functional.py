"""``gru``: the GRU as a function of its weights; checks, autocast, layers, directions and dropout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from tritongru import ops
from tritongru.arguments.checks import (
    check_batch_sizes,
    check_choice,
    check_dropout,
    check_dtype,
    check_features,
    check_flags,
    check_for_kernels,
    check_for_torch,
    check_layers,
    check_not_captured,
    check_rows,
    check_tensors,
    check_weights,
)
from tritongru.arguments.options import IMPLS, Options, autocast_dtype, batch_of, is_traced, steps_of
from tritongru.arguments.ragged import WHOLE, Ragged, checked
from tritongru.arguments.records import LayerCall, Rows, Weights
from tritongru.interop import compiler_ops
from tritongru.interop.exporters import exports_to_onnx, onnx_gru, refuse_resets
from tritongru.interop.torch_path import run_torch
from tritongru.planning.cpu_plan import kept_bytes
from tritongru.planning.memory import MEMORIES, saves
from tritongru.route import asks_for_kernels, log_no_resets, log_once, route_of, takes


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
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reset_state: Tensor | None = None,
    impl: str = "auto",
    memory: str = "auto",
) -> tuple[Tensor, Tensor]:
    """A multi-layer GRU with the equations of `torch.nn.GRU` (the reset gate is applied after the product):

        r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)    z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
        n = tanh(W_in x + b_in + r (W_hn h + b_hn))   h' = n + z (h - n)

    Args:
        input: ``(T, B, I)``; ``(B, T, I)`` with ``batch_first``; or the data ``(N, I)`` of a packed sequence.
        hx: initial states ``(L * D, B, H)``, or None for zeros. D is 2 if bidirectional, else 1.
        weights: for each layer and direction ``w_ih (3H, I or D * H)``, ``w_hh (3H, H)`` and, with ``bias``,
            ``b_ih (3H,)``, ``b_hh (3H,)``; gates in the order r, z, n.
        num_layers: stacked layers L.
        bias: whether ``weights`` contains biases.
        batch_first: whether input and output are ``(B, T, features)``.
        dropout: probability of zeroing each output of every layer but the last, if ``training``.
        training: whether dropout is applied.
        bidirectional: D = 2 directions instead of 1.
        batch_sizes: ``(T,)`` int64 on the CPU: the number of sequences at each step of a packed sequence.
        lengths: as in `GRU`, ``(B,)``.
        resets: as in `GRU`, in the layout of the input.
        reset_state: as in `GRU`, ``(L * D, B, H)`` or ``(L * D, 1, H)``.
        impl: ``"auto"``, ``"triton"``, ``"llvm"`` or ``"torch"``, as in `GRU`.
        memory: ``"auto"``, ``"save"`` or ``"recompute"``, as in `GRU`.

    Returns:
        ``(output, h_n)``: output ``(T, B, D * H)`` in the layout of the input, h_n ``(L * D, B, H)``; both in the
        input's dtype (float32, float16, bfloat16, on CPUs also float64; with torch's GRU any that ``torch.gru``
        takes), or in the dtype that CUDA autocast requests.

    Raises:
        TypeError, ValueError, RuntimeError: for bad arguments, with torch's text where torch has one; RuntimeError
            also if ``impl="triton"`` or ``impl="llvm"`` cannot run the layer.
    """
    check_choice("impl", impl, IMPLS)
    check_choice("memory", memory, MEMORIES)
    check_dropout(dropout)
    check_layers(num_layers)
    check_flags(bias=bias, batch_first=batch_first, training=training, bidirectional=bidirectional)
    check_tensors(input=input, **({} if hx is None else {"hx": hx}))
    if batch_sizes is not None:
        batch_sizes = check_batch_sizes(batch_sizes)
    options = Options(num_layers, bias, batch_first, float(dropout), training, bidirectional, impl, memory)
    _check_shapes(input, hx, weights, batch_sizes, options)
    return run(input, hx, weights, batch_sizes, options, Ragged(lengths, resets, reset_state))


def _check_shapes(
    input: Tensor, hx: Tensor | None, weights: Sequence[Tensor], batch_sizes: Tensor | None, options: Options
) -> None:
    check_weights(weights, options)
    hidden, features = weights[1].shape[-1], weights[0].shape[-1]
    check_dtype(input, weights[0])
    check_features(input, batch_sizes, features)
    if hx is not None:
        states = (options.num_layers * options.directions, batch_of(input, batch_sizes, options), hidden)
        if hx.shape != states:
            raise RuntimeError(f"Expected hidden size {states}, got {list(hx.shape)}")


def run(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    options: Options,
    ragged: Ragged = WHOLE,
) -> tuple[Tensor, Tensor]:
    """``gru`` after its checks: consults the plan and chooses a path."""
    if options.impl != "torch":
        check_choice("impl", options.impl, IMPLS)
        check_choice("memory", options.memory, MEMORIES)
    if batch_sizes is not None:
        batch_sizes = check_batch_sizes(batch_sizes)
    ragged = checked(ragged, input, hx, batch_sizes, options, weights[1].shape[-1])
    if is_traced():
        if options.impl != "torch":
            log_once("torch.jit.trace, and the ONNX exporter based on it, record torch's own operator")
        if exports_to_onnx():
            refuse_resets(ragged)
        return run_torch(input, hx, weights, batch_sizes, options, ragged)
    if torch.compiler.is_compiling() and batch_sizes is None:
        return _run_compiled(input, hx, weights, options, ragged)
    cast = autocast_dtype(input)
    given = (input, hx, weights, batch_sizes, options)
    if not asks_for_kernels(options.impl, input.device):
        return _run_torch(*given, ragged)
    if options.impl == "auto" and input.device.type == "cpu":
        if _only_torch(cast) or _is_refused(*given):
            return _run_torch(*given, ragged)
    else:
        _check_derivatives(options.impl, input, hx, ragged.reset_state, *weights)
        check_for_kernels(*given)
    dtype = cast or input.dtype
    batch, T = batch_of(input, batch_sizes, options), steps_of(input, batch_sizes, options)
    hidden, directions = weights[1].shape[-1], options.directions
    learns = _learns(input, hx, weights, ragged)
    route = route_of(options.impl, hidden, dtype, input.device, directions, learns, bool(ragged))
    if route is None or not (ragged.resets is not None or takes(route, options.impl, batch, T)):
        return _run_torch(*given, ragged)
    count = input.shape[0] if batch_sizes is not None else input.shape[0] * input.shape[1]
    size = kept_bytes(route.family, count, hidden, directions, options.num_layers, dtype)
    rest = saves(options.memory, size, route.device_bytes), route.family
    if cast is not None:
        input, hx, weights, ragged = _cast(input, hx, weights, ragged, cast)
    if batch_sizes is None:
        rows = ragged.rows(batch)
        y, h_n = _run_layers(_rows(input, options), hx, weights, rows, ragged, options, ops.gru_layer, *rest)
        return _as_input(y, T, batch, options), h_n
    check_not_captured(input)
    x, offsets = _packed_rows(input, batch_sizes)
    return _run_layers(x, hx, weights, Rows(batch, offsets), WHOLE, options, ops.gru_layer, *rest)


def _run_compiled(
    input: Tensor, hx: Tensor | None, weights: Sequence[Tensor], options: Options, ragged: Ragged
) -> tuple[Tensor, Tensor]:
    """For a compiler's or an exporter's graph, in which sizes may be symbolic: what depends on them is decided inside
    the operator, so that no decision becomes a condition of the graph."""
    check_for_kernels(input, hx, weights, None, options)
    device, cast = input.device, autocast_dtype(input)
    if exports_to_onnx():
        if cast is not None:
            input, hx, weights, ragged = _cast(input, hx, weights, ragged, cast)
        return onnx_gru(input, hx, weights, options, ragged)
    batch, T = batch_of(input, None, options), steps_of(input, None, options)
    impl, learns = "torch", _learns(input, hx, weights, ragged) and not torch.compiler.is_exporting()
    portable = options.impl == "auto" and device.type == "cpu" and (cast is not None or torch.compiler.is_exporting())
    if not portable and asks_for_kernels(options.impl, device):
        hidden, dtype = weights[1].shape[-1], cast or input.dtype
        if route_of(options.impl, hidden, dtype, device, options.directions, learns, bool(ragged)) is not None:
            impl = options.impl
    if impl == "torch" and torch.compiler.is_exporting():  # a program that needs only torch
        return run_torch(input, hx, weights, None, options, ragged)
    if cast is not None and (impl != "torch" or input.is_cuda):
        input, hx, weights, ragged = _cast(input, hx, weights, ragged, cast)
        cast = None
    memory = options.memory if learns else "none"
    rest = (impl, memory, options.num_layers, cast)
    own, rows = _rows(input, options), ragged.rows(batch)
    y, h_n = _run_layers(own, hx, weights, rows, ragged, options, compiler_ops.gru_layer, *rest)
    return _as_input(y, T, batch, options), h_n


def _run_torch(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    options: Options,
    ragged: Ragged,
) -> tuple[Tensor, Tensor]:
    check_for_torch(input, hx, weights, batch_sizes, options)
    if ragged.resets is not None:
        log_no_resets()
    return run_torch(input, hx, weights, batch_sizes, options, ragged)


def _is_refused(
    input: Tensor, hx: Tensor | None, weights: Sequence[Tensor], batch_sizes: Tensor | None, options: Options
) -> bool:
    """Whether the kernels cannot take the tensors as they are. On a CPU torch's GRU then raises its own error, or
    accepts them."""
    try:
        check_for_kernels(input, hx, weights, batch_sizes, options)
        odd = batch_sizes is not None and _is_odd(input, hx, batch_sizes)
    except (RuntimeError, TypeError, ValueError):
        odd = True
    if odd:
        log_once("the kernels do not accept tensors of these shapes or dtypes")
    return odd


def _is_odd(data: Tensor, hx: Tensor | None, batch_sizes: Tensor) -> bool:
    """Whether a packed sequence has rows or states that batch_sizes does not count."""
    rows = check_rows(data, batch_sizes)
    return rows != data.shape[0] or (hx is not None and hx.shape[1] != int(batch_sizes[0]))


def _only_torch(cast: torch.dtype | None) -> bool:
    """Whether a call on a CPU needs what only torch's own GRU supports there: mixed dtypes under autocast, forward-mode
    derivatives, or a torch.func transform."""
    if cast is not None:
        log_once("CPU autocast keeps parts of the layer in the wider dtype, which only torch's GRU supports")
    elif forward_ad._current_level >= 0:
        log_once("a forward-mode derivative was requested")
    elif torch._C._functorch.peek_interpreter_stack() is not None:
        log_once("a torch.func transform is active")
    else:
        return False
    return True


def _check_derivatives(impl: str, *tensors: Tensor | None) -> None:
    """The kernels support gradients only; any other derivative would silently be zero."""
    at_work, kinds = torch._C._functorch.peek_interpreter_stack(), torch._C._functorch.TransformType
    kind = None if at_work is None else at_work.key()
    dual = forward_ad._current_level >= 0 and any(t is not None and _is_dual(t) for t in tensors)
    if kind == kinds.Jvp or (kind is None and dual):
        what = "the kernels have no forward-mode derivative"
    elif kind is not None and (impl == "llvm" or kind != kinds.Grad):
        what = "a torch.func transform is active, and the kernels have no rule for it"
    else:
        return
    raise RuntimeError(f"impl={impl!r} cannot run this call: {what}; build the layer with impl='torch'")


def _is_dual(tensor: Tensor) -> bool:
    return forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


def _learns(input: Tensor, hx: Tensor | None, weights: Sequence[Tensor], ragged: Ragged) -> bool:
    tensors = (input, hx, ragged.reset_state, *weights)
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _cast(
    input: Tensor, hx: Tensor | None, weights: Sequence[Tensor], ragged: Ragged, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None, Sequence[Tensor], Ragged]:
    """Converted to autocast's dtype."""
    weights = [w.to(dtype) for w in weights]
    return input.to(dtype), None if hx is None else hx.to(dtype), weights, ragged.to(dtype)


def _rows(input: Tensor, options: Options) -> Tensor:
    """(T * B, I), time-major."""
    return (input.transpose(0, 1) if options.batch_first else input).reshape(-1, input.shape[-1])


def _as_input(y: Tensor, T: int, batch: int, options: Options) -> Tensor:
    """The last layer's rows in the layout of the input."""
    output = y.view(T, batch, y.shape[1])
    return output.transpose(0, 1) if options.batch_first else output


def _run_layers(
    x: Tensor,  # (N, I)
    hx: Tensor | None,  # (L * D, B, H)
    weights: Sequence[Tensor],
    rows: Rows,
    ragged: Ragged,
    options: Options,
    run_layer: Callable[..., tuple[Tensor, Tensor]],  # of a LayerCall
    *rest: Any,  # of its arguments
) -> tuple[Tensor, Tensor]:  # y (N, D * H), h_n (L * D, B, H)
    layers, directions, each = options.num_layers, options.directions, options.tensors
    states = []
    for layer in range(layers):
        if layer > 0 and options.training and options.dropout > 0:
            x = torch.dropout(x, options.dropout, True)
        own = weights[layer * directions * each : (layer + 1) * directions * each]
        h0 = hx if hx is None or layers == 1 else hx[layer * directions : (layer + 1) * directions]
        reset_state = ragged.of_layer(layer, directions)
        y, hn = run_layer(LayerCall(x, layer_weights(own, each), h0, rows, reset_state), *rest)
        x = y.view(-1, directions * y.shape[2])
        states.append(hn)
    return x, states[0] if layers == 1 else torch.cat(states)


def layer_weights(own: Sequence[Tensor], each: int) -> Weights:
    """A layer's weights with both directions in one tensor, so that one product and one launch do both."""
    if len(own) == each:
        w_ih, w_hh, *biases = own
        return Weights(w_ih, w_hh.unsqueeze(0), *((biases[0], biases[1].unsqueeze(0)) if biases else (None, None)))
    w_ih, w_hh = torch.cat((own[0], own[each])), torch.stack((own[1], own[each + 1]))
    if each == 2:
        return Weights(w_ih, w_hh, None, None)
    return Weights(w_ih, w_hh, torch.cat((own[2], own[each + 2])), torch.stack((own[3], own[each + 3])))


def _packed_rows(data: Tensor, batch_sizes: Tensor) -> tuple[Tensor, Tensor]:
    """The rows that batch_sizes counts, and the first row of each step, on the data's device and without a wait."""
    rows = check_rows(data, batch_sizes)
    offsets = torch.nn.functional.pad(batch_sizes.cumsum(0), (1, 0))
    if data.is_cuda:
        offsets = offsets.pin_memory().to(data.device, non_blocking=True)
    return data[:rows], offsets

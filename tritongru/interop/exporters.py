"""What tracers and exporters get instead of a call: a standard node, or a clear error."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tritongru.arguments.options import Options, batch_of, steps_of
from tritongru.arguments.ragged import Ragged


def exports_to_onnx() -> bool:
    """Whether ``torch.onnx.export`` is running, without importing it."""
    onnx = sys.modules.get("torch.onnx")
    return onnx is not None and bool(onnx.is_in_onnx_export())


exports_to_onnx._dynamo_marked_constant = True  # type: ignore[attr-defined]  # as in `route`


def onnx_gru(
    input: Tensor, hx: Tensor | None, weights: Sequence[Tensor], options: Options, ragged: Ragged
) -> tuple[Tensor, Tensor]:
    """One ONNX GRU node per layer, whose batch and time may stay symbolic; arguments as for ``functional.run``.

    ONNX orders the gates z, r, h; ``linear_before_reset`` is torch's formula, and ``sequence_lens`` are the lengths
    (https://onnx.ai/onnx/operators/onnx__GRU.html).

    Raises:
        RuntimeError: for resets, which ONNX does not have.
    """
    refuse_resets(ragged)
    lengths = None if ragged.lengths is None else ragged.lengths.to(torch.int32)
    T, B = steps_of(input, None, options), batch_of(input, None, options)
    D, H, each = options.directions, weights[1].shape[-1], options.tensors
    x = input.transpose(0, 1) if options.batch_first else input
    attributes: dict[str, Any] = {
        "hidden_size": H,
        "direction": "bidirectional" if options.bidirectional else "forward",
        "linear_before_reset": 1,
    }
    states = []
    for layer in range(options.num_layers):
        if layer > 0 and options.training and options.dropout > 0:
            x = torch.dropout(x, options.dropout, True)
        own = [_gates_of_onnx(w) for w in weights[layer * D * each : (layer + 1) * D * each]]
        w, r, *biases = (torch.stack(own[k::each]) for k in range(each))
        b = torch.cat(biases, dim=1) if biases else None
        h0 = None if hx is None else hx[layer * D : (layer + 1) * D]
        y, hn = torch.onnx.ops.symbolic_multi_out(
            "GRU",
            (x, w, r, b, lengths, h0),
            attributes,
            dtypes=(x.dtype, x.dtype),
            shapes=((T, D, B, H), (D, B, H)),
        )
        x = y.transpose(1, 2).reshape(T, B, D * H)
        states.append(hn)
    return x.transpose(0, 1) if options.batch_first else x, torch.cat(states)


def refuse_resets(ragged: Ragged) -> None:
    """For both ONNX exporters."""
    if ragged.resets is not None:
        raise RuntimeError("ONNX's GRU has no resets; export the model without them, and cut the sequences before")


def _gates_of_onnx(weight: Tensor) -> Tensor:
    r, z, n = weight.chunk(3)
    return torch.cat((z, r, n))


def refuse_program() -> None:
    """For the fake operators: ONNX has no node for them.

    Raises:
        RuntimeError: while ``torch.onnx.export`` converts a program that ``torch.export`` made.
    """
    if exports_to_onnx():
        raise RuntimeError(
            "a program from torch.export that contains tritongru's kernels cannot be converted to ONNX; pass the "
            "module itself to torch.onnx.export, or export it with impl='torch'"
        )


def fx_leaf(gru: nn.Module, input: Any, hx: Any, **others: Any) -> Any:
    """What ``torch.fx`` records for a call: one node, as for torch's own layers. ``input`` or ``hx`` is a Proxy.

    Raises:
        TraceError: if the layer itself is traced, or by FX quantization, which supports only torch.nn.GRU.
    """
    tracer = _tracer(gru, input if isinstance(input, torch.fx.Proxy) else hx)
    return tracer.create_proxy("call_module", tracer.path_of_module(gru), (input, hx), others)


def fx_step(gru: nn.Module, x_t: Any, state: Any, **others: Any) -> tuple[Tensor, Tensor]:
    """Likewise for ``GRU.step``, as a method of the layer."""
    given = (x_t, state, *others.values())
    tracer = _tracer(gru, next(value for value in given if isinstance(value, torch.fx.Proxy)))
    layer = tracer.create_proxy("get_attr", tracer.path_of_module(gru), (), {})
    found: tuple[Tensor, Tensor] = tracer.create_proxy("call_method", "step", (layer, x_t, state), others)
    return found


def _tracer(gru: nn.Module, proxy: torch.fx.Proxy) -> Any:
    tracer: Any = proxy.tracer
    if type(tracer).__name__ == "QuantizationTracer":
        raise torch.fx.proxy.TraceError(
            "FX quantization recognizes only torch.nn.GRU; replace each tritongru.GRU by its to_torch()"
        )
    if gru is getattr(tracer, "root", None):
        raise torch.fx.proxy.TraceError(
            "torch.fx records a tritongru.GRU as one node of the model around it; to trace the layer alone, put it "
            "into torch.nn.Sequential"
        )
    return tracer

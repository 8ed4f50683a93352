"""The operators ``tritongru::gru_forward`` and ``tritongru::gru_backward`` (one layer, one or two directions) and the
autograd Function over them. This module imports only torch; the kernels are loaded at the first launch.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any, NoReturn

import torch
from torch import Tensor

from tritongru import layer
from tritongru.arguments.checks import (
    Others,
    check_choice,
    check_devices,
    check_layer,
    check_needs,
    check_ranks,
    check_tensor,
    check_tensors,
)
from tritongru.arguments.options import FAMILIES
from tritongru.arguments.records import LayerCall, OutputGradients, Saved
from tritongru.interop import torch_layer
from tritongru.interop.exporters import refuse_program
from tritongru.planning.cpu_plan import KEPT, exact_dtype, refusal_on_cpu
from tritongru.planning.instruction_sets import host_sets
from tritongru.planning.launches import AnyLaunch, VectorLaunch
from tritongru.planning.plan import plan_on, precision_of

# ``family`` names the kernels to run, so that several families can serve one device in one process.
torch.library.define(
    "tritongru::gru_forward",
    "(Tensor x, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? h0, Tensor? reset_state, "
    "Tensor? offsets, Tensor? lengths, Tensor? resets, SymInt batch, bool save_gates, str family) "
    "-> (Tensor y, Tensor hn, Tensor gates)",
)
torch.library.define(
    "tritongru::gru_backward",
    "(Tensor? dy, Tensor? dhn, Tensor x, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? h0, "
    "Tensor? reset_state, Tensor? offsets, Tensor? lengths, Tensor? resets, SymInt batch, Tensor y, Tensor gates, "
    "bool[] needs, str family) -> (Tensor dx, Tensor dw_ih, Tensor dw_hh, Tensor db_ih, Tensor db_hh, Tensor dh0, "
    "Tensor d_reset_state)",
)
CALL = 11  # flat arguments that make up a `LayerCall`


def gru_forward(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    """One layer: y (N, D, H), hn (D, B, H), gates (N, D, H, 4) or (0,).

    Args:
        given: the arguments of ``LayerCall.of``, ``save_gates``, and ``family``, one of ``FAMILIES``.
    """
    call, (save_gates, family) = LayerCall.of(*given[:CALL]), given[CALL:]
    check_choice("family", family, FAMILIES)
    check_layer(call)
    if call.rows.batch == 0:
        return _fake_forward(*given)
    return tuple(layer.forward(call, save_gates, launch_of(call, family, backward=False)))  # type: ignore[return-value]


def gru_backward(dy: Tensor | None, dhn: Tensor | None, *given: Any) -> tuple[Tensor, ...]:
    """The gradients of x, w_ih, w_hh, b_ih, b_hh, h0 and reset_state; one that is not needed is an empty tensor.

    Args:
        dy: (N, D, H).
        dhn: (D, B, H).
        given: the arguments of ``LayerCall.of``, ``y`` and ``gates`` of the forward pass, seven ``needs``, ``family``.
    """
    call, (y, gates, needs, family) = LayerCall.of(*given[:CALL]), given[CALL:]
    grads, saved = OutputGradients(dy, dhn), Saved(y, gates)
    check_choice("family", family, FAMILIES)
    _check_backward(grads, call, saved, needs, family)
    if call.rows.batch == 0:
        return tuple(grad.zero_() for grad in _fake_backward(dy, dhn, *given))
    return layer.backward(grads, call, saved, needs, launch_of(call, family, backward=True))


def _check_backward(grads: OutputGradients, call: LayerCall, saved: Saved, needs: list[bool], family: str) -> None:
    (x, (_, w_hh, *_), *_), (y, gates) = call, saved
    check_tensors(x=x, w_hh=w_hh, y=y, gates=gates)
    check_ranks(x, w_hh)
    check_needs(needs)
    N, D, B, H = call.sizes
    others: Others = {"dy": (grads.dy, (N, D, H)), "dhn": (grads.dhn, (D, B, H))}
    if family == "triton" or gates.dim() == 1:
        others["y"] = (y, (N, D, H))
    check_layer(call, others)
    shape = (0,) if gates.dim() == 1 else shape_of_kept(N, D, H, family)
    check_tensor("gates", gates, shape, dtype_of_kept(x.dtype, family), x.device)


def shape_of_kept(N: int, D: int, H: int, family: str) -> tuple[int, ...]:
    """Of what a forward pass keeps for the backward pass of the same family."""
    return (N, D, H, 4) if family == "triton" else (N, D, KEPT, H)


def dtype_of_kept(dtype: torch.dtype, family: str) -> torch.dtype:
    """Triton's kernels round what they keep to the storage dtype; the loop on a CPU keeps the exact values."""
    return dtype if family == "triton" else exact_dtype(dtype)


def launch_of(call: LayerCall, family: str, backward: bool) -> AnyLaunch | VectorLaunch:
    """The plan's configuration of a kernel, even where torch's GRU would be faster."""
    x, (_, D, B, H) = call.x, call.sizes
    if family == "llvm":
        refusal = refusal_on_cpu(x.device, x.dtype)
        if refusal:
            raise RuntimeError(f"the compiled loop cannot run this layer: {refusal}")
        return _loop_of(host_sets()[0])
    return _launch_of(x.device, H, x.dtype, B, D, backward, call.rows.ragged, precision_of(x.dtype))


_loop_of = functools.cache(VectorLaunch)


@functools.lru_cache(maxsize=4096)
def _launch_of(
    device: torch.device,
    hidden: int,
    dtype: torch.dtype,
    batch: int,
    directions: int,
    backward: bool,
    ragged: bool,
    precision: str,  # as `precision_of` reads it
) -> AnyLaunch:
    """With ``impl="triton"``: whether torch would be faster was decided before an operator is called."""
    answer = plan_on(
        device, hidden, dtype, batch=batch, directions=directions, training=backward, impl="triton", lengths=ragged
    )
    found = answer.backward if backward else answer.forward
    if found is None:
        raise RuntimeError(f"no Triton kernel can run this layer: {answer.reason}")
    return found.launch


def _fake_forward(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    refuse_program()
    call, (save_gates, family) = LayerCall.of(*given[:CALL]), given[CALL:]
    check_devices(**_named(call))
    x, (N, D, B, H) = call.x, call.sizes
    kept = shape_of_kept(N, D, H, family) if save_gates else (0,)
    return x.new_empty((N, D, H)), x.new_empty((D, B, H)), x.new_empty(kept, dtype=dtype_of_kept(x.dtype, family))


def _fake_backward(dy: Tensor | None, dhn: Tensor | None, *given: Any) -> tuple[Tensor, ...]:
    call, (y, gates, needs, _) = LayerCall.of(*given[:CALL]), given[CALL:]
    check_devices(**_named(call), y=y, gates=gates, dy=dy, dhn=dhn)
    x, w, (_, D, B, H) = call.x, call.weights, call.sizes
    reset_state = (0,) if call.reset_state is None else call.reset_state.shape
    shapes = (x.shape, w.w_ih.shape, w.w_hh.shape, (D * 3 * H,), (D, 3 * H), (D, B, H), reset_state)
    return tuple(x.new_empty(shape if need else (0,)) for shape, need in zip(shapes, needs, strict=True))


def _named(call: LayerCall) -> dict[str, Tensor | None]:
    return {"x": call.x, **call.weights._asdict(), "h0": call.h0, "reset_state": call.reset_state} | {
        name: getattr(call.rows, name) for name in ("offsets", "lengths", "resets")
    }


for _name, _implementation, _fake in (
    ("tritongru::gru_forward", gru_forward, _fake_forward),
    ("tritongru::gru_backward", gru_backward, _fake_backward),
):
    torch.library.impl(_name, ("CPU", "CUDA"), _implementation)
    torch.library.register_fake(_name, _fake)


class GRULayer(torch.autograd.Function):
    """``gru_forward`` with ``gru_backward`` as its derivative. Saves the gates or, for ``save_gates=False``, only the
    states, and rebuilds the gates in the backward pass. On a CPU it is as general as torch's GRU: outputs may be
    changed in place before the backward pass, and torch's own GRU computes differentiated or batched derivatives."""

    @staticmethod
    def forward(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
        result: tuple[Tensor, Tensor, Tensor] = torch.ops.tritongru.gru_forward.default(*given)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        *tensors, batch, _, family = inputs
        y, _, gates = output
        ctx.mark_non_differentiable(gates)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, y if family == "triton" else _own_states(y, gates), gates)
        ctx.batch, ctx.family = batch, family

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dhn: Tensor | None, dgates: None) -> tuple[Tensor | None, ...]:
        needs = list(ctx.needs_input_grad[:7])
        *own, y, gates = ctx.saved_tensors
        twice = torch.is_grad_enabled() and not torch.compiler.is_compiling()  # create_graph=True
        none = (None,) * 6
        if ctx.family == "llvm" and (twice or _is_batched(dy) or _is_batched(dhn)):
            flat = (*own, ctx.batch)
            return *torch_layer.gradients(OutputGradients(dy, dhn), LayerCall.of(*flat), needs, twice), *none
        run: Any = GRULayerBackward.apply if twice else torch.ops.tritongru.gru_backward.default
        grads = run(dy, dhn, *own, ctx.batch, y, gates, needs, ctx.family)
        return *(g if need else None for g, need in zip(grads, needs, strict=True)), *none


def _own_states(y: Tensor, gates: Tensor) -> Tensor:
    """What the backward pass reads of the states: saved gates include them."""
    return gates if gates.numel() else y.clone()


def _is_batched(grad: Tensor | None) -> bool:
    return grad is not None and torch._C._functorch.is_batchedtensor(grad)


# torch reads the signature at every call; without this, that would take longer than the call.
GRULayer.forward.__signature__ = inspect.signature(GRULayer.forward)  # type: ignore[attr-defined]


def refuse_second_derivative(*_: Any) -> NoReturn:
    raise RuntimeError(
        "the derivative for 'tritongru::gru_backward' is not implemented; to run double backwards, build the layer "
        "with impl='torch'"
    )


class GRULayerBackward(torch.autograd.Function):
    """``gru_backward`` in a graph that may be differentiated again, which then raises: without it the second derivative
    would silently be zero."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        grads: tuple[Tensor, ...] = torch.ops.tritongru.gru_backward.default(*inputs)
        return grads

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Saves nothing: there is no second derivative."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        refuse_second_derivative()


def gru_layer(call: LayerCall, save_gates: bool, family: str = FAMILIES[0]) -> tuple[Tensor, Tensor]:
    """One layer, (y, hn), with a derivative if one is needed."""
    tensors, (batch, *rows) = call.leaves, call.rows
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        y, hn, _ = GRULayer.apply(*tensors, *rows, batch, save_gates, family)  # type: ignore[no-untyped-call]
    else:
        y, hn, _ = torch.ops.tritongru.gru_forward.default(*tensors, *rows, batch, False, family)
    return y, hn

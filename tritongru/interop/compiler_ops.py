"""The operators in a compiler's graph, ``tritongru::gru_routed_forward`` and ``gru_routed_backward``: one layer, by a
kernel or by torch's own GRU. Which of them runs, and whether the gates are saved, is decided inside, where sizes are
numbers; so one graph serves every batch size and number of steps.

The size of what the backward pass needs depends on that decision. ``kept`` is a tensor without elements whose storage
holds it (the gates as a kernel saves them, or cuDNN's reserve) and is marked with what it holds. A copy of ``kept`` has
no elements to copy, so its storage has no mark (as when saved tensors are offloaded to the CPU): then the backward pass
computes again what it needs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tritongru import layer
from tritongru.arguments.checks import check_choice, check_devices, check_layer, check_needs, check_ranks, check_tensors
from tritongru.arguments.options import IMPLS
from tritongru.arguments.records import LayerCall, OutputGradients, Saved
from tritongru.interop import torch_layer
from tritongru.interop.exporters import refuse_program
from tritongru.ops import dtype_of_kept, launch_of, refuse_second_derivative, shape_of_kept
from tritongru.planning.cpu_plan import kept_bytes
from tritongru.planning.memory import MEMORIES, saves
from tritongru.route import Route, log_no_resets, route_of, takes

GATES, RESERVE = "gates", "reserve"

torch.library.define(
    "tritongru::gru_routed_forward",
    "(Tensor x, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? h0, Tensor? reset_state, "
    "Tensor? lengths, Tensor? resets, SymInt batch, str impl, str memory, int layers, ScalarType? autocast) "
    "-> (Tensor y, Tensor hn, Tensor kept)",
)
torch.library.define(
    "tritongru::gru_routed_backward",
    "(Tensor? dy, Tensor? dhn, Tensor x, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? h0, "
    "Tensor? reset_state, Tensor? lengths, Tensor? resets, SymInt batch, str impl, ScalarType? autocast, Tensor y, "
    "Tensor kept, bool[] needs) -> (Tensor dx, Tensor dw_ih, Tensor dw_hh, Tensor db_ih, Tensor db_hh, Tensor dh0, "
    "Tensor d_reset_state)",
)


CALL = 10  # flat arguments of a call: those of `LayerCall.of` without offsets


def gru_routed_forward(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    """One layer without packed rows: y (N, D, H), hn (D, B, H), kept (0,) bytes.

    Args:
        given: the arguments of ``LayerCall.of`` without ``offsets``; ``impl``; ``memory``, "none" without a backward
            pass; ``layers`` of the module, which share the memory; ``autocast``, CPU autocast's dtype (only for torch's
            GRU, whose parts it casts).
    """
    call, (impl, memory, layers, autocast) = _call(given), given[CALL:]
    check_choice("impl", impl, IMPLS)
    check_choice("memory", memory, (*MEMORIES, "none"))
    check_layer(call, casts=autocast is not None)
    if call.rows.batch == 0:
        return _fake_forward(*given)
    x, (N, D, _, H), learns = call.x, call.sizes, memory != "none"
    route = _route(call, impl, learns)
    if route is None:
        if call.rows.resets is not None:
            log_no_resets()
        y, hn, reserve = torch_layer.forward(call, learns, autocast)
        return y, hn, _window(reserve, (RESERVE, *y.shape))
    size = kept_bytes(route.family, N, H, D, layers, x.dtype)
    keeps = learns and saves(memory, size, route.device_bytes)
    y, hn, gates = layer.forward(call, keeps, launch_of(call, route.family, backward=False))
    return y, hn, _window(gates, (GATES, *y.shape, route.family))


def gru_routed_backward(dy: Tensor | None, dhn: Tensor | None, *given: Any) -> tuple[Tensor, ...]:
    """The gradients of x, w_ih, w_hh, b_ih, b_hh, h0 and reset_state; one that is not needed is an empty tensor.

    Args:
        dy: (N, D, H).
        dhn: (D, B, H).
        given: the arguments of ``LayerCall.of`` without ``offsets``; ``impl``; ``autocast``; ``y`` and ``kept`` of the
            forward pass; seven ``needs``.
    """
    call, (impl, autocast, y, kept, needs) = _call(given), given[CALL:]
    _check_kept(call, y, kept, impl, needs)
    N, D, B, H = call.sizes
    shape = (N, D, H)
    check_layer(call, {"dy": (dy, shape), "y": (y, shape), "dhn": (dhn, (D, B, H))}, casts=autocast is not None)
    needs = [need and tensor is not None for need, tensor in zip(needs, call.leaves, strict=True)]
    if B == 0 or (dy is None and dhn is None):
        grads = _fake_backward(dy, dhn, *given[:-1], needs)
        return tuple(grad.zero_() for grad in grads)
    x, of_outputs = call.x, OutputGradients(dy, dhn)
    route = _route(call, impl, True)
    family = _family_of(kept) or ("triton" if route is None else route.family)
    gates = _held(kept, (GATES, *shape, family), dtype_of_kept(x.dtype, family))
    reserve = _held(kept, (RESERVE, *shape), torch.uint8)
    if gates.numel() == 0 and (reserve.numel() > 0 or route is None):
        found = torch_layer.backward(of_outputs, call, y, reserve, needs, autocast)
        return tuple(x.new_empty(0) if g is None else g.contiguous() for g in found)
    gates = gates.view(shape_of_kept(N, D, H, family)) if gates.numel() else gates
    return layer.backward(of_outputs, call, Saved(y, gates), needs, launch_of(call, family, backward=True))


def _call(given: tuple[Any, ...]) -> LayerCall:
    x, w_ih, w_hh, b_ih, b_hh, h0, reset_state, lengths, resets, batch = given[:CALL]
    return LayerCall.of(x, w_ih, w_hh, b_ih, b_hh, h0, reset_state, None, lengths, resets, batch)


def _check_kept(call: LayerCall, y: Tensor, kept: Tensor, impl: str, needs: list[bool]) -> None:
    x, w_hh = call.x, call.weights.w_hh
    check_tensors(x=x, w_hh=w_hh, y=y, kept=kept)
    check_ranks(x, w_hh)
    check_choice("impl", impl, IMPLS)
    check_needs(needs)
    if kept.dtype != torch.uint8 or kept.layout is not torch.strided or kept.shape != (0,):
        raise RuntimeError(
            "kept should be what gru_routed_forward returned, a dense uint8 tensor of shape (0,), got a "
            f"{kept.dtype} one of shape {tuple(kept.shape)}"
        )
    check_devices(x=x, kept=kept)


def _window(held: Tensor, what: tuple[Any, ...]) -> Tensor:
    """A tensor without elements on the storage of ``held``."""
    if held.numel() == 0:
        return held.new_empty((0,), dtype=torch.uint8)
    window = held.view(-1).view(torch.uint8)[:0]
    window.untyped_storage().tritongru_holds = what  # type: ignore[attr-defined]
    return window


def _held(window: Tensor, what: tuple[Any, ...], dtype: torch.dtype) -> Tensor:
    """The tensor that `_window` was made from, flattened, or an empty tensor."""
    storage = window.untyped_storage()
    holds = getattr(storage, "tritongru_holds", None) == what
    return window.as_strided((storage.nbytes() if holds else 0,), (1,), 0).view(dtype)


def _family_of(window: Tensor) -> str | None:
    """The family whose gates were kept: by now the route may differ, for example with another number of threads."""
    what = getattr(window.untyped_storage(), "tritongru_holds", None)
    return str(what[-1]) if what and what[0] == GATES else None


def _route(call: LayerCall, impl: str, learns: bool) -> Route | None:
    """The route to our kernels, or None if torch's GRU runs."""
    if impl == "torch":
        return None
    x, (N, D, B, H) = call.x, call.sizes
    route = route_of(impl, H, x.dtype, x.device, D, learns, call.rows.ragged)
    return route if route is not None and (call.rows.resets is not None or takes(route, impl, B, N // B)) else None


def _fake_forward(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    refuse_program()
    call, autocast = _call(given), given[-1]
    check_devices(**_named(call))
    x, (N, D, B, H) = call.x, call.sizes
    dtype = x.dtype if call.h0 is None else call.h0.dtype
    if autocast is not None:  # the parts are in autocast's dtype, the state in the wider one
        dtype = torch.promote_types(dtype, autocast)
    y, hn = x.new_empty((N, D, H), dtype=dtype), x.new_empty((D, B, H), dtype=dtype)
    return y, hn, x.new_empty((0,), dtype=torch.uint8)


def _fake_backward(dy: Tensor | None, dhn: Tensor | None, *given: Any) -> tuple[Tensor, ...]:
    call, (_, _, y, kept, needs) = _call(given), given[CALL:]
    check_devices(**_named(call), y=y, kept=kept, dy=dy, dhn=dhn)
    tensors = zip(call.leaves, needs, strict=True)
    return tuple(t.new_empty(t.shape) if need and t is not None else call.x.new_empty((0,)) for t, need in tensors)


def _named(call: LayerCall) -> dict[str, Tensor | None]:
    states = {"h0": call.h0, "reset_state": call.reset_state}
    rows = {"lengths": call.rows.lengths, "resets": call.rows.resets}
    return {"x": call.x, **call.weights._asdict(), **states, **rows}


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, batch, impl, _, _, autocast = inputs
    y, _, kept = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, y, kept)
    ctx.rest = batch, impl, autocast


def _backward(ctx: Any, dy: Tensor | None, dhn: Tensor | None, *others: None) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[:7])
    *tensors, y, kept = ctx.saved_tensors
    grads = torch.ops.tritongru.gru_routed_backward.default(dy, dhn, *tensors, *ctx.rest, y, kept, needs)
    return *(g if need else None for g, need in zip(grads, needs, strict=True)), *(None,) * 7


for _name, _implementation, _fake in (
    ("tritongru::gru_routed_forward", gru_routed_forward, _fake_forward),
    ("tritongru::gru_routed_backward", gru_routed_backward, _fake_backward),
):
    torch.library.impl(_name, ("CPU", "CUDA"), _implementation)
    torch.library.register_fake(_name, _fake)
torch.library.register_autograd("tritongru::gru_routed_forward", _backward, setup_context=_setup)
torch.library.register_autograd("tritongru::gru_routed_backward", refuse_second_derivative)


def gru_layer(
    call: LayerCall, impl: str, memory: str, layers: int, autocast: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    """One layer, (y, hn); arguments as of ``gru_routed_forward``."""
    rest = (call.rows.lengths, call.rows.resets, call.rows.batch, impl, memory, layers, autocast)
    y, hn, _ = torch.ops.tritongru.gru_routed_forward.default(*call.leaves, *rest)
    return y, hn

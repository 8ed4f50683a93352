"""The operators that a compiler's graph holds, ``tritongru::gru_routed_forward`` and ``gru_routed_backward``: one
layer, by a kernel or by torch's own GRU. Which of them runs, and whether the gates are saved, is decided inside, where
sizes are numbers; so a graph is good for every batch and every number of steps.

What the backward needs has a size that only the decision tells. ``kept`` is a tensor without elements whose storage
holds it, the gates as a kernel saves them or cuDNN's reserve, and is marked with what it holds. A storage without the
mark is that of a copy, which has no elements to copy (as somebody makes who keeps tensors on the CPU meanwhile): then
the backward computes again what it needs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tritongru import layer
from tritongru.arguments.checks import Others, check_choice, check_devices, check_layer, check_ranks, check_tensors
from tritongru.arguments.options import IMPLS
from tritongru.interop import torch_layer
from tritongru.interop.exporters import refuse_program
from tritongru.ops import launch_of, refuse_second_derivative
from tritongru.planning.devices import device_facts
from tritongru.planning.memory import MEMORIES, gate_bytes, saves
from tritongru.route import route_of, takes

GATES, RESERVE = "gates", "reserve"

torch.library.define(
    "tritongru::gru_routed_forward",
    "(Tensor x, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? h0, SymInt batch, str impl, str memory, "
    "int layers, ScalarType? autocast) -> (Tensor y, Tensor hn, Tensor kept)",
)
torch.library.define(
    "tritongru::gru_routed_backward",
    "(Tensor? dy, Tensor? dhn, Tensor x, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? h0, Tensor y, "
    "Tensor kept, SymInt batch, str impl, ScalarType? autocast, bool[] needs) "
    "-> (Tensor dx, Tensor dw_ih, Tensor dw_hh, Tensor db_ih, Tensor db_hh, Tensor dh0)",
)


def gru_routed_forward(
    x: Tensor,  # (N, I), no packed rows
    w_ih: Tensor,  # (D 3H, I)
    w_hh: Tensor,  # (D, 3H, H)
    b_ih: Tensor | None,  # (D 3H,)
    b_hh: Tensor | None,  # (D, 3H)
    h0: Tensor | None,  # (D, B, H)
    batch: int,  # B
    impl: str,
    memory: str,  # "none" where no backward will come
    layers: int,  # of the module, which share the memory
    autocast: torch.dtype | None,  # what CPU autocast asks for: torch's GRU alone, whose parts it casts
) -> tuple[Tensor, Tensor, Tensor]:  # y (N, D, H), hn (D, B, H), kept (0,) bytes
    check_choice("impl", impl, IMPLS)
    check_choice("memory", memory, (*MEMORIES, "none"))
    check_layer(x, w_ih, w_hh, b_ih, b_hh, h0, None, batch, casts=autocast is not None)
    if batch == 0:
        return _fake_forward(x, w_ih, w_hh, b_ih, b_hh, h0, batch, impl, memory, layers, autocast)
    learns = memory != "none"
    if not _takes(x, w_hh, batch, impl, learns):
        y, hn, reserve = torch_layer.forward(x, w_ih, w_hh, b_ih, b_hh, h0, batch, learns, autocast)
        return y, hn, _window(reserve, (RESERVE, *y.shape))
    D, _, H = w_hh.shape
    size = gate_bytes(x.shape[0], H, D, layers, x.itemsize)
    keeps = learns and saves(memory, size, device_facts(x.device).memory_bytes)
    launch = launch_of(x, w_hh, batch, backward=False)
    y, hn, gates = layer.forward(x, w_ih, w_hh, b_ih, b_hh, h0, None, batch, keeps, launch)
    return y, hn, _window(gates, (GATES, *y.shape))


def gru_routed_backward(
    dy: Tensor | None,  # (N, D, H)
    dhn: Tensor | None,  # (D, B, H)
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    h0: Tensor | None,
    y: Tensor,
    kept: Tensor,
    batch: int,
    impl: str,
    autocast: torch.dtype | None,
    needs: list[bool],  # of x, w_ih, w_hh, b_ih, b_hh, h0; a gradient that nobody needs is an empty tensor
) -> tuple[Tensor, ...]:
    _check_kept(x, w_hh, y, kept, impl, needs)
    D, _, H = w_hh.shape
    shape = (x.shape[0], D, H)
    others: Others = {"dy": (dy, shape), "y": (y, shape), "dhn": (dhn, (D, batch, H))}
    check_layer(x, w_ih, w_hh, b_ih, b_hh, h0, None, batch, others, casts=autocast is not None)
    tensors = (x, w_ih, w_hh, b_ih, b_hh, h0)
    needs = [need and tensor is not None for need, tensor in zip(needs, tensors, strict=True)]
    if batch == 0 or (dy is None and dhn is None):
        grads = _fake_backward(dy, dhn, *tensors, y, kept, batch, impl, autocast, needs)
        return tuple(grad.zero_() for grad in grads)
    gates, reserve = _held(kept, (GATES, *shape), x.dtype), _held(kept, (RESERVE, *shape), torch.uint8)
    if gates.numel() == 0 and (reserve.numel() > 0 or not _takes(x, w_hh, batch, impl, True)):
        found = torch_layer.backward(dy, dhn, *tensors, y, reserve, batch, needs, autocast)
        return tuple(x.new_empty(0) if g is None else g.contiguous() for g in found)
    launch = launch_of(x, w_hh, batch, backward=True)
    gates = gates.view((*shape, 4)) if gates.numel() else gates
    return layer.backward(dy, dhn, *tensors, None, y, gates, batch, needs, launch)


def _check_kept(x: Tensor, w_hh: Tensor, y: Tensor, kept: Tensor, impl: str, needs: list[bool]) -> None:
    check_tensors(x=x, w_hh=w_hh, y=y, kept=kept)
    check_ranks(x, w_hh)
    check_choice("impl", impl, IMPLS)
    if len(needs) != 6:
        raise RuntimeError(f"needs should hold 6 values, got {len(needs)}")
    if kept.dtype != torch.uint8 or kept.layout is not torch.strided or kept.shape != (0,):
        raise RuntimeError(
            "kept should be what gru_routed_forward returned, a dense uint8 tensor of the shape (0,), got a "
            f"{kept.dtype} one of the shape {tuple(kept.shape)}"
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
    """What `_window` was made of, in one dimension, or an empty tensor."""
    storage = window.untyped_storage()
    holds = getattr(storage, "tritongru_holds", None) == what
    return window.as_strided((storage.nbytes() if holds else 0,), (1,), 0).view(dtype)


def _takes(x: Tensor, w_hh: Tensor, batch: int, impl: str, learns: bool) -> bool:
    if impl == "torch":
        return False
    route = route_of(impl, w_hh.shape[2], x.dtype, x.device, w_hh.shape[0], learns)
    return route is not None and takes(route, impl, batch, x.shape[0] // batch)


def _fake_forward(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    h0: Tensor | None,
    batch: int,
    impl: str,
    memory: str,
    layers: int,
    autocast: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    refuse_program()
    check_devices(x=x, w_ih=w_ih, w_hh=w_hh, b_ih=b_ih, b_hh=b_hh, h0=h0)
    D, H = w_hh.shape[0], w_hh.shape[2]
    dtype = x.dtype if h0 is None else h0.dtype
    if autocast is not None:  # the parts are in autocast's dtype, the state in the wider one
        dtype = torch.promote_types(dtype, autocast)
    y, hn = x.new_empty((x.shape[0], D, H), dtype=dtype), x.new_empty((D, batch, H), dtype=dtype)
    return y, hn, x.new_empty((0,), dtype=torch.uint8)


def _fake_backward(
    dy: Tensor | None,
    dhn: Tensor | None,
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    h0: Tensor | None,
    y: Tensor,
    kept: Tensor,
    batch: int,
    impl: str,
    autocast: torch.dtype | None,
    needs: list[bool],
) -> tuple[Tensor, ...]:
    others = {"b_ih": b_ih, "b_hh": b_hh, "h0": h0, "y": y, "kept": kept, "dy": dy, "dhn": dhn}
    check_devices(x=x, w_ih=w_ih, w_hh=w_hh, **others)
    tensors = zip((x, w_ih, w_hh, b_ih, b_hh, h0), needs, strict=True)
    return tuple(t.new_empty(t.shape) if need and t is not None else x.new_empty((0,)) for t, need in tensors)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, batch, impl, _, _, autocast = inputs
    y, _, kept = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, y, kept)
    ctx.rest = batch, impl, autocast


def _backward(ctx: Any, dy: Tensor | None, dhn: Tensor | None, *others: None) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[:6])
    grads = torch.ops.tritongru.gru_routed_backward.default(dy, dhn, *ctx.saved_tensors, *ctx.rest, needs)
    return *(g if need else None for g, need in zip(grads, needs, strict=True)), *(None,) * 5


for _name, _implementation, _fake in (
    ("tritongru::gru_routed_forward", gru_routed_forward, _fake_forward),
    ("tritongru::gru_routed_backward", gru_routed_backward, _fake_backward),
):
    torch.library.impl(_name, ("CPU", "CUDA"), _implementation)
    torch.library.register_fake(_name, _fake)
torch.library.register_autograd("tritongru::gru_routed_forward", _backward, setup_context=_setup)
torch.library.register_autograd("tritongru::gru_routed_backward", refuse_second_derivative)


def gru_layer(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    h0: Tensor | None,
    batch: int,
    impl: str,
    memory: str,
    layers: int,
    autocast: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """One layer, (y, hn); arguments as of ``gru_routed_forward``."""
    tensors = (x, w_ih, w_hh, b_ih, b_hh, h0)
    y, hn, _ = torch.ops.tritongru.gru_routed_forward.default(*tensors, batch, impl, memory, layers, autocast)
    return y, hn

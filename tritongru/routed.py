"""The operators that a compiler's graph holds, ``tritongru::gru_routed_forward`` and ``gru_routed_backward``: one
layer, by a kernel or by torch's own GRU. Which of them runs, and whether the gates are saved, is decided inside, where
sizes are numbers; so a graph is good for every batch and every number of steps.

What the backward needs has a size that only the decision tells. It is handed over as tensors without elements, whose
storage holds it: ``gates`` as a kernel saves them, or ``reserve`` as cuDNN does. Where the storage did not come along
(whoever keeps tensors elsewhere, on the CPU say, keeps their elements), the backward computes it again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tritongru import layer, torch_layer
from tritongru.checks import Others, check_layer
from tritongru.devices import device_facts
from tritongru.exporters import refuse_program
from tritongru.memory import gate_bytes, saves
from tritongru.ops import launch_of, refuse_second_derivative
from tritongru.route import route_of, takes

torch.library.define(
    "tritongru::gru_routed_forward",
    "(Tensor x, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? h0, SymInt batch, str impl, str memory, "
    "int layers, ScalarType? autocast) -> (Tensor y, Tensor hn, Tensor gates, Tensor reserve)",
)
torch.library.define(
    "tritongru::gru_routed_backward",
    "(Tensor? dy, Tensor? dhn, Tensor x, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? h0, Tensor y, "
    "Tensor gates, Tensor reserve, SymInt batch, str impl, ScalarType? autocast, bool[] needs) "
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # y (N, D, H), hn (D, B, H), gates and reserve (0,) bytes
    check_layer(x, w_ih, w_hh, b_ih, b_hh, h0, None, batch, casts=autocast is not None)
    if batch == 0:
        return _fake_forward(x, w_ih, w_hh, b_ih, b_hh, h0, batch, impl, memory, layers, autocast)
    learns = memory != "none"
    if not _takes(x, w_hh, batch, impl, learns):
        y, hn, reserve = torch_layer.forward(x, w_ih, w_hh, b_ih, b_hh, h0, batch, learns, autocast)
        return y, hn, reserve.new_empty((0,)), reserve[:0]
    D, _, H = w_hh.shape
    size = gate_bytes(x.shape[0], H, D, layers, x.itemsize)
    keeps = learns and saves(memory, size, device_facts(x.device).memory_bytes)
    launch = launch_of(x, w_hh, batch, backward=False)
    y, hn, gates = layer.forward(x, w_ih, w_hh, b_ih, b_hh, h0, None, batch, keeps, launch)
    return y, hn, gates.view(-1).view(torch.uint8)[:0], x.new_empty((0,), dtype=torch.uint8)


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
    gates: Tensor,
    reserve: Tensor,
    batch: int,
    impl: str,
    autocast: torch.dtype | None,
    needs: list[bool],  # of x, w_ih, w_hh, b_ih, b_hh, h0; a gradient that nobody needs is an empty tensor
) -> tuple[Tensor, ...]:
    D, _, H = w_hh.shape
    shape = (x.shape[0], D, H)
    others: Others = {"dy": (dy, shape), "y": (y, shape), "dhn": (dhn, (D, batch, H))}
    check_layer(x, w_ih, w_hh, b_ih, b_hh, h0, None, batch, others, casts=autocast is not None)
    tensors = (x, w_ih, w_hh, b_ih, b_hh, h0)
    needs = [need and tensor is not None for need, tensor in zip(needs, tensors, strict=True)]
    if batch == 0 or (dy is None and dhn is None):
        grads = _fake_backward(dy, dhn, *tensors, y, gates, reserve, batch, impl, autocast, needs)
        return tuple(grad.zero_() for grad in grads)
    kept = _bytes_of(reserve)
    count = x.shape[0] * D * H * 4
    saved = _bytes_of(gates) if gates.untyped_storage().nbytes() == count * x.itemsize else gates
    if saved.numel() == 0 and (kept.numel() > 0 or not _takes(x, w_hh, batch, impl, True)):
        found = torch_layer.backward(dy, dhn, *tensors, y, kept, batch, needs, autocast)
        return tuple(x.new_empty(0) if g is None else g.contiguous() for g in found)
    launch = launch_of(x, w_hh, batch, backward=True)
    four = saved.view(x.dtype).view((*shape, 4)) if saved.numel() else x.new_empty(0)
    return layer.backward(dy, dhn, *tensors, None, y, four, batch, needs, launch)


def _bytes_of(window: Tensor) -> Tensor:
    """All of a tensor's storage, of which it shows nothing."""
    size = window.untyped_storage().nbytes()
    return window.as_strided((size,), (1,), 0)


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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    refuse_program()
    D, H = w_hh.shape[0], w_hh.shape[2]
    dtype = x.dtype if h0 is None else h0.dtype
    if autocast is not None:  # the parts are in autocast's dtype, the state in the wider one
        dtype = torch.promote_types(dtype, autocast)
    y, hn = x.new_empty((x.shape[0], D, H), dtype=dtype), x.new_empty((D, batch, H), dtype=dtype)
    return y, hn, x.new_empty((0,), dtype=torch.uint8), x.new_empty((0,), dtype=torch.uint8)


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
    gates: Tensor,
    reserve: Tensor,
    batch: int,
    impl: str,
    autocast: torch.dtype | None,
    needs: list[bool],
) -> tuple[Tensor, ...]:
    tensors = zip((x, w_ih, w_hh, b_ih, b_hh, h0), needs, strict=True)
    return tuple(t.new_empty(t.shape) if need and t is not None else x.new_empty((0,)) for t, need in tensors)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, batch, impl, _, _, autocast = inputs
    y, _, gates, reserve = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, y, gates, reserve)
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
    y, hn, _, _ = torch.ops.tritongru.gru_routed_forward.default(*tensors, batch, impl, memory, layers, autocast)
    return y, hn

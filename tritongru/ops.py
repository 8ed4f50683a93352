"""The operators ``tritongru::gru_forward`` and ``tritongru::gru_backward`` (one layer, one or two directions) and the
autograd Function over them. This room imports torch alone; the kernels are loaded at the first launch.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any, NoReturn

import torch
from torch import Tensor

from tritongru import layer
from tritongru.arguments.checks import Others, check_devices, check_layer, check_ranks, check_tensors
from tritongru.interop.exporters import refuse_program
from tritongru.planning.launches import AnyLaunch
from tritongru.planning.plan import plan_on, precision_of

torch.library.define(
    "tritongru::gru_forward",
    "(Tensor x, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? h0, Tensor? offsets, SymInt batch, "
    "bool save_gates) -> (Tensor y, Tensor hn, Tensor gates)",
)
torch.library.define(
    "tritongru::gru_backward",
    "(Tensor? dy, Tensor? dhn, Tensor x, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? h0, "
    "Tensor? offsets, Tensor y, Tensor gates, SymInt batch, bool[] needs) "
    "-> (Tensor dx, Tensor dw_ih, Tensor dw_hh, Tensor db_ih, Tensor db_hh, Tensor dh0)",
)


def gru_forward(
    x: Tensor,  # (N, I)
    w_ih: Tensor,  # (D 3H, I)
    w_hh: Tensor,  # (D, 3H, H)
    b_ih: Tensor | None,  # (D 3H,)
    b_hh: Tensor | None,  # (D, 3H)
    h0: Tensor | None,  # (D, B, H), zeros if None
    offsets: Tensor | None,  # (T + 1,) int64 on x's device: first row of each step, for packed rows
    batch: int,  # B
    save_gates: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # y (N, D, H), hn (D, B, H), gates (N, D, H, 4) or (0,)
    check_layer(x, w_ih, w_hh, b_ih, b_hh, h0, offsets, batch)
    if batch == 0:
        return _fake_forward(x, w_ih, w_hh, b_ih, b_hh, h0, offsets, batch, save_gates)
    launch = launch_of(x, w_hh, batch, backward=False)
    return layer.forward(x, w_ih, w_hh, b_ih, b_hh, h0, offsets, batch, save_gates, launch)


def gru_backward(
    dy: Tensor | None,  # (N, D, H)
    dhn: Tensor | None,  # (D, B, H)
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    h0: Tensor | None,
    offsets: Tensor | None,
    y: Tensor,
    gates: Tensor,
    batch: int,
    needs: list[bool],  # of x, w_ih, w_hh, b_ih, b_hh, h0; a gradient that nobody needs is an empty tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    _check_backward(dy, dhn, x, w_ih, w_hh, b_ih, b_hh, h0, offsets, y, gates, batch, needs)
    if batch == 0:
        grads = _fake_backward(dy, dhn, x, w_ih, w_hh, b_ih, b_hh, h0, offsets, y, gates, batch, needs)
        return tuple(g.zero_() for g in grads)  # type: ignore[return-value]
    launch = launch_of(x, w_hh, batch, backward=True)
    return layer.backward(dy, dhn, x, w_ih, w_hh, b_ih, b_hh, h0, offsets, y, gates, batch, needs, launch)


def _check_backward(
    dy: Tensor | None,
    dhn: Tensor | None,
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    h0: Tensor | None,
    offsets: Tensor | None,
    y: Tensor,
    gates: Tensor,
    batch: int,
    needs: list[bool],
) -> None:
    check_tensors(x=x, w_hh=w_hh, y=y, gates=gates)
    check_ranks(x, w_hh)
    if len(needs) != 6:
        raise RuntimeError(f"needs should hold 6 values, got {len(needs)}")
    D, H = w_hh.shape[0], w_hh.shape[2]
    shape = (x.shape[0], D, H)
    others: Others = {"dy": (dy, shape), "dhn": (dhn, (D, batch, H)), "y": (y, shape)}
    others["gates"] = (gates, (0,) if gates.dim() == 1 else (*shape, 4))
    check_layer(x, w_ih, w_hh, b_ih, b_hh, h0, offsets, batch, others)


def launch_of(x: Tensor, w_hh: Tensor, batch: int, backward: bool) -> AnyLaunch:
    """The plan's configuration of a kernel, whatever torch's GRU would take."""
    return _launch_of(x.device, w_hh.shape[2], x.dtype, batch, w_hh.shape[0], backward, precision_of(x.dtype))


@functools.lru_cache(maxsize=4096)
def _launch_of(
    device: torch.device,
    hidden: int,
    dtype: torch.dtype,
    batch: int,
    directions: int,
    backward: bool,
    precision: str,  # as `precision_of` reads it
) -> AnyLaunch:
    """Whether torch would be faster was asked before: who calls an operator wants the kernel."""
    answer = plan_on(device, hidden, dtype, batch=batch, directions=directions, training=backward, impl="triton")
    found = answer.backward if backward else answer.forward
    if found is None:
        raise RuntimeError(f"no Triton kernel can run this layer: {answer.reason}")
    return found.launch


def _fake_forward(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    h0: Tensor | None,
    offsets: Tensor | None,
    batch: int,
    save_gates: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    refuse_program()
    check_devices(x=x, w_ih=w_ih, w_hh=w_hh, b_ih=b_ih, b_hh=b_hh, h0=h0, offsets=offsets)
    D, H = w_hh.shape[0], w_hh.shape[2]
    gates = x.new_empty((x.shape[0], D, H, 4) if save_gates else (0,))
    return x.new_empty((x.shape[0], D, H)), x.new_empty((D, batch, H)), gates


def _fake_backward(
    dy: Tensor | None,
    dhn: Tensor | None,
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    h0: Tensor | None,
    offsets: Tensor | None,
    y: Tensor,
    gates: Tensor,
    batch: int,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    others = {"b_ih": b_ih, "b_hh": b_hh, "h0": h0, "offsets": offsets, "y": y, "gates": gates, "dy": dy, "dhn": dhn}
    check_devices(x=x, w_ih=w_ih, w_hh=w_hh, **others)
    D, H = w_hh.shape[0], w_hh.shape[2]
    shapes = (x.shape, w_ih.shape, w_hh.shape, (D * 3 * H,), (D, 3 * H), (D, batch, H))
    grads = [x.new_empty(shape if need else (0,)) for shape, need in zip(shapes, needs, strict=True)]
    return grads[0], grads[1], grads[2], grads[3], grads[4], grads[5]


for _name, _implementation, _fake in (
    ("tritongru::gru_forward", gru_forward, _fake_forward),
    ("tritongru::gru_backward", gru_backward, _fake_backward),
):
    torch.library.impl(_name, ("CPU", "CUDA"), _implementation)
    torch.library.register_fake(_name, _fake)


class GRULayer(torch.autograd.Function):
    """``gru_forward`` with ``gru_backward`` as its derivative. Saves the gates or, for ``save_gates=False``, nothing
    but the states, and rebuilds them in the backward."""

    @staticmethod
    def forward(
        x: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None,
        b_hh: Tensor | None,
        h0: Tensor | None,
        offsets: Tensor | None,
        batch: int,
        save_gates: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        result: tuple[Tensor, Tensor, Tensor] = torch.ops.tritongru.gru_forward.default(
            x, w_ih, w_hh, b_ih, b_hh, h0, offsets, batch, save_gates
        )
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        x, w_ih, w_hh, b_ih, b_hh, h0, offsets, batch, _ = inputs
        y, _, gates = output
        ctx.mark_non_differentiable(gates)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, w_ih, w_hh, b_ih, b_hh, h0, offsets, y, gates)
        ctx.batch = batch

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dhn: Tensor | None, dgates: None) -> tuple[Tensor | None, ...]:
        needs = list(ctx.needs_input_grad[:6])
        twice = torch.is_grad_enabled() and not torch.compiler.is_compiling()  # create_graph=True
        run: Any = GRULayerBackward.apply if twice else torch.ops.tritongru.gru_backward.default
        grads = run(dy, dhn, *ctx.saved_tensors, ctx.batch, needs)
        return *(g if need else None for g, need in zip(grads, needs, strict=True)), None, None, None


# torch reads the signature at every call; asking Python for it would take longer than the call.
GRULayer.forward.__signature__ = inspect.signature(GRULayer.forward)  # type: ignore[attr-defined]


def refuse_second_derivative(*_: Any) -> NoReturn:
    raise RuntimeError(
        "the derivative for 'tritongru::gru_backward' is not implemented; to run double backwards, build the layer "
        "with impl='torch'"
    )


class GRULayerBackward(torch.autograd.Function):
    """``gru_backward`` as a step of a graph that may be differentiated again, which then says that it cannot be:
    without it the second derivative would silently be taken as zero."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        grads: tuple[Tensor, ...] = torch.ops.tritongru.gru_backward.default(*inputs)
        return grads

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Nothing is kept: there is no second derivative."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        refuse_second_derivative()


def gru_layer(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    h0: Tensor | None,
    offsets: Tensor | None,
    batch: int,
    save_gates: bool,
) -> tuple[Tensor, Tensor]:
    """One layer, (y, hn), with a derivative where one is asked for; arguments as of ``gru_forward``."""
    tensors = (x, w_ih, w_hh, b_ih, b_hh, h0)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        y, hn, _ = GRULayer.apply(*tensors, offsets, batch, save_gates)  # type: ignore[no-untyped-call]
    else:
        y, hn, _ = torch.ops.tritongru.gru_forward.default(*tensors, offsets, batch, False)
    return y, hn

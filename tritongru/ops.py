"""The operators ``tritongru::gru_forward`` and ``tritongru::gru_backward`` (one layer, one or two directions) and the
autograd Function over them. This room imports torch alone; the kernels are loaded at the first launch.

Rows are time-major and without padding: row ``t * B + b``, or, for packed input, ``offsets[t] + b``. ``N`` rows, ``D``
directions (1 or 2). What is sequential runs in one kernel; the rest are matrix products over all rows at once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tritongru.launches import PersistentLaunch
from tritongru.plan import Plan, plan_on

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

# Rows whose gates are rebuilt at once by memory="recompute": bounds the temporaries to about 64 MiB at H=128 in fp32.
RECOMPUTE_ROWS = 1 << 15


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
    D, H = w_hh.shape[0], w_hh.shape[2]
    y = x.new_empty((x.shape[0], D, H))
    hn = x.new_empty((D, batch, H))
    gates = x.new_empty((x.shape[0], D, H, 4) if save_gates else (0,))
    if batch > 0:
        from tritongru.kernels import persistent, resident

        launch = _plan(x, w_hh, batch, backward=False).forward
        family: Any = persistent if isinstance(launch, PersistentLaunch) else resident
        gx = _project(x, w_ih, b_ih)
        family.forward(gx, w_hh.contiguous(), _dense(b_hh), _dense(h0), y, hn, gates, offsets, launch)
    return y, hn, gates


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
    N, D, H = y.shape
    need_x, need_w_ih, need_w_hh, need_b_ih, need_b_hh, need_h0 = needs
    if batch == 0:
        grads = _fake_backward(dy, dhn, x, w_ih, w_hh, b_ih, b_hh, h0, offsets, y, gates, batch, needs)
        return tuple(g.zero_() for g in grads)  # type: ignore[return-value]
    from tritongru.kernels import resident

    h_prev = None
    if gates.numel() == 0:
        h_prev = _previous_states(y, h0, offsets, batch)
        gates = _rebuild_gates(x, w_ih, w_hh, b_ih, b_hh, h_prev)
    dgx = y.new_empty((N, D, 3 * H))
    da = y.new_empty((N, D, H))
    dh0 = y.new_empty((D, batch, H))
    launch = _plan(x, w_hh, batch, backward=True).backward
    assert launch is not None
    resident.backward(_dense(dy), _dense(dhn), w_hh.contiguous(), _dense(h0), y, gates, dgx, da, dh0, offsets, launch)

    dx, dw_ih, dw_hh, db_ih, db_hh = (y.new_empty(0) for _ in range(5))
    if need_x:
        dx = dgx.view(N, D * 3 * H) @ w_ih
    if need_w_ih:
        dw_ih = dgx.view(N, D * 3 * H).t() @ x
    if need_w_hh:
        dw_hh = torch.empty_like(w_hh, memory_format=torch.contiguous_format)
        if h_prev is None:
            h_prev = _previous_states(y, h0, offsets, batch)
        for d in range(D):
            torch.mm(dgx[:, d, : 2 * H].t(), h_prev[:, d], out=dw_hh[d, : 2 * H])
            torch.mm(da[:, d].t(), h_prev[:, d], out=dw_hh[d, 2 * H :])
    if need_b_ih or need_b_hh:
        sums = dgx.sum(0, dtype=dgx.dtype)  # (D, 3H)
        if need_b_hh:
            db_hh = torch.cat((sums[:, : 2 * H], da.sum(0, dtype=da.dtype)), dim=1)
        if need_b_ih:
            db_ih = sums.view(-1)
    return dx, dw_ih, dw_hh, db_ih, db_hh, dh0 if need_h0 else y.new_empty(0)


def _plan(x: Tensor, w_hh: Tensor, batch: int, backward: bool) -> Plan:
    """Whether torch would be faster was asked before: who calls an operator wants the kernel."""
    D, H = w_hh.shape[0], w_hh.shape[2]
    answer = plan_on(x.device, H, x.dtype, batch=batch, directions=D, training=backward, impl="triton")
    if answer.forward is None:
        raise RuntimeError(f"no Triton kernel can run this layer: {answer.reason}")
    return answer


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _project(x: Tensor, w_ih: Tensor, b_ih: Tensor | None) -> Tensor:
    return x @ w_ih.t() if b_ih is None else torch.addmm(b_ih, x, w_ih.t())


def _previous_states(y: Tensor, h0: Tensor | None, offsets: Tensor | None, batch: int) -> Tensor:
    """h[t-1] of every row, (N, D, H): the step before it in direction 0, after it in direction 1, h0 at the ends."""
    N, D, H = y.shape
    first = y.new_zeros((D, batch, H)) if h0 is None else h0
    if offsets is None:
        ahead = torch.cat((first[0], y[: N - batch, 0]))
        if D == 1:
            return ahead.view(N, 1, H)
        return torch.stack((ahead, torch.cat((y[batch:, 1], first[1]))), dim=1)
    row = torch.arange(N, device=y.device)
    t = torch.bucketize(row, offsets, right=True) - 1
    b = row - offsets[t]
    end = torch.nn.functional.pad(offsets, (0, 1), value=N)  # a step after the last one has no rows
    indices = [torch.where(t > 0, offsets[(t - 1).clamp(min=0)] + b, N + b)]
    if D == 2:
        indices.append(torch.where(b < end[t + 2] - end[t + 1], end[t + 1] + b, N + b))
    states = [torch.cat((y[:, d], first[d])).index_select(0, index) for d, index in enumerate(indices)]
    return torch.stack(states, dim=1)


def _rebuild_gates(
    x: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None, h_prev: Tensor
) -> Tensor:
    """The gates that the forward kernel would have saved, from the states: every h[t-1] is known by now, so no second
    pass over time is needed, only products over all rows."""
    N, D, H = h_prev.shape
    gates = h_prev.new_empty((N, D, H, 4))
    for lo in range(0, N, RECOMPUTE_ROWS):
        rows = slice(lo, min(lo + RECOMPUTE_ROWS, N))
        gx = _project(x[rows], w_ih, b_ih).view(-1, D, 3, H).float()
        for d in range(D):
            gh = _project(h_prev[rows, d], w_hh[d], None if b_hh is None else b_hh[d]).view(-1, 3, H).float()
            rz = torch.sigmoid(gx[:, d, :2] + gh[:, :2])
            n = torch.tanh(gx[:, d, 2] + rz[:, 0] * gh[:, 2])
            gates[rows, d] = torch.stack((rz[:, 0], rz[:, 1], n, gh[:, 2]), dim=-1).to(gates.dtype)
    return gates


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
        result: tuple[Tensor, Tensor, Tensor] = torch.ops.tritongru.gru_forward(
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
        run: Any = GRULayerBackward.apply if twice else torch.ops.tritongru.gru_backward
        grads = run(dy, dhn, *ctx.saved_tensors, ctx.batch, needs)
        return *(g if need else None for g, need in zip(grads, needs, strict=True)), None, None, None


class GRULayerBackward(torch.autograd.Function):
    """``gru_backward`` as a step of a graph that may be differentiated again, which then says that it cannot be:
    without it the second derivative would silently be taken as zero."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        grads: tuple[Tensor, ...] = torch.ops.tritongru.gru_backward(*inputs)
        return grads

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Nothing is kept: there is no second derivative."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError(
            "the derivative for 'tritongru::gru_backward' is not implemented; to run double backwards, build the "
            "layer with impl='torch'"
        )


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
        y, hn, _ = torch.ops.tritongru.gru_forward(*tensors, offsets, batch, False)
    return y, hn

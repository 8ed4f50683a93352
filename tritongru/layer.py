"""One layer around its time loop: the sequential part runs in the kernels of one family, the rest in matrix products
over many rows at once.

Shapes are those of the records in ``tritongru/arguments/records.py``.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from tritongru.arguments.records import (
    GateGradients,
    LayerCall,
    OutputGradients,
    Outputs,
    Part,
    Recurrence,
    Rows,
    Saved,
    Weights,
)
from tritongru.planning.launches import AnyLaunch, Launch, PersistentLaunch, StepwiseLaunch, VectorLaunch
from tritongru.planning.memory import part_steps

GROUP_ROWS = 64  # rows of a group that is summed first
MANY_VALUES = 1 << 17  # values from which on groups are summed first: a buffer of 1 MiB


def forward(call: LayerCall, save_gates: bool, launch: AnyLaunch | VectorLaunch) -> Outputs:
    if isinstance(launch, VectorLaunch):
        return _compiled_loop().forward(call, save_gates, launch)  # type: ignore[no-any-return]
    x, weights = call.x, call.weights
    N, D, B, H = call.sizes
    gx = project(x, weights.w_ih, weights.b_ih)
    y = x.new_zeros((N, D, H)) if call.rows.ragged else x.new_empty((N, D, H))  # of padding nothing is stored
    outputs = Outputs(y, x.new_empty((D, B, H)), x.new_empty((N, D, H, 4) if save_gates else (0,)))
    recurrence = _recurrence(call, weights.b_hh)
    _families()[type(launch)].forward(gx, recurrence, outputs, launch)
    return outputs


def backward(
    grads: OutputGradients,
    call: LayerCall,
    saved: Saved,
    needs: list[bool],  # of the call's leaves; a gradient that is not needed is an empty tensor
    launch: AnyLaunch | VectorLaunch,
) -> tuple[Tensor, ...]:
    """Processes the steps in parts: first the loop over the part's steps, then the products over its rows."""
    if isinstance(launch, VectorLaunch):
        return _compiled_loop().backward(grads, call, saved, needs, launch)  # type: ignore[no-any-return]
    x, weights, _, rows, reset_state = call
    N, D, B, H = call.sizes
    dy, dhn = _dense(grads.dy), grads.dhn
    y, gates = saved.y.contiguous(), saved.gates.contiguous()
    recurrence = _recurrence(call, None)
    has_gates = gates.numel() > 0
    T = rows.steps(N)
    each = T if rows.offsets is not None else part_steps(T, B, H, D, y.itemsize, has_gates)
    if dhn is None:
        dh = torch.zeros((D, B, H), dtype=torch.float32, device=y.device)
    else:
        dh = dhn.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    d_reset = torch.zeros((D, B, H), dtype=torch.float32, device=y.device) if rows.ragged else None
    found = _Gradients(x, weights, rows, needs, several=each < T)
    for start in range(0, T, each):
        part = Part(start, min(each, T - start))
        own = [slice(0, N)] * D if part.length == T else _rows_of_part(T, part, D, B)
        before = None if has_gates else _all_before(y, recurrence, own)
        if before is None:
            some = gates if part.length == T else _rows_of(gates, own)
        else:
            some = _rebuilt_gates(x, weights, before, own, launch.dot_precision)
        empty = y.new_zeros if rows.ragged else y.new_empty  # of padding nothing is stored
        of_gates = GateGradients(empty((some.shape[0], D, 3 * H)), empty((some.shape[0], D, H)), d_reset)
        _families()[type(launch)].backward(dy, dh, recurrence, Saved(y, some), of_gates, launch, part)
        del some
        if before is None and needs[2]:  # after the launch, so as not to delay it
            before = _all_before(y, recurrence, own)
        found.add(of_gates, before, own)
    dx, dw_ih, dw_hh, db_ih, db_hh = found.of_inputs_and_weights()
    dh0 = dh.to(y.dtype) if needs[5] else y.new_empty(0)
    if reset_state is None or not needs[6]:
        d_reset_state = y.new_empty(0)
    elif d_reset is None:  # there are no resets
        d_reset_state = y.new_zeros(reset_state.shape)
    else:
        d_reset_state = d_reset.sum_to_size(reset_state.shape).to(y.dtype)
    return dx, dw_ih, dw_hh, db_ih, db_hh, dh0, d_reset_state


class _Gradients:
    """Gradients of the input and the weights. With one part they are the products themselves, with several the products
    are summed in fp32. Each part's rows are contiguous, and the same for both directions only if there is one part."""

    def __init__(self, x: Tensor, weights: Weights, time: Rows, needs: list[bool], several: bool) -> None:
        self.x, self.w_ih, self.time, self.several = x, weights.w_ih, time, several
        self.need_x, self.need_w_ih, self.need_w_hh, self.need_b_ih, self.need_b_hh = needs[:5]
        self.directions, _, self.hidden = weights.w_hh.shape
        self.apart = several and self.directions == 2
        self.dx: Tensor | None = None
        if self.need_x:
            self.dx = x.new_zeros(x.shape) if self.apart else x.new_empty(x.shape)  # contiguous, as the fake's
        self.dw_ih: Tensor | None = None
        self.dw_hh: Tensor | None = None
        self.db: Tensor | None = None
        self.db_a: Tensor | None = None

    def add(self, found: GateGradients, before: list[Tensor] | None, rows: list[slice]) -> None:
        (dgx, da, _), D, H = found, self.directions, self.hidden
        sides = self._sides(dgx, rows)
        for dg, w_ih, _, dx in sides:
            if dx is not None and self.apart:
                dx.addmm_(dg, w_ih)
            elif dx is not None:
                torch.mm(dg, w_ih, out=dx)
        if self.need_w_ih:
            dw_ih = [dg.t() @ x for dg, _, x, _ in sides]
            self.dw_ih = self._sum(self.dw_ih, dw_ih[0] if len(dw_ih) == 1 else torch.cat(dw_ih))
        if self.need_w_hh:
            assert before is not None
            dw_hh = dgx.new_empty((D, 3 * H, H))
            for d in range(D):
                torch.mm(dgx[:, d, : 2 * H].t(), before[d], out=dw_hh[d, : 2 * H])
                torch.mm(da[:, d].t(), before[d], out=dw_hh[d, 2 * H :])
            self.dw_hh = self._sum(self.dw_hh, dw_hh)
        dtype = torch.float32 if self.several else dgx.dtype
        if self.need_b_ih or self.need_b_hh:
            self.db = self._sum(self.db, sum_of_rows(dgx, dtype))
        if self.need_b_hh:
            self.db_a = self._sum(self.db_a, sum_of_rows(da, dtype))

    def _sides(self, dgx: Tensor, rows: list[slice]) -> list[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
        """The operands (dgx, w_ih, x, dx): of each direction if their rows differ, else of both at once."""
        if not self.several:
            return [(dgx.view(dgx.shape[0], -1), self.w_ih, self._inputs(rows[0]), self.dx)]
        dgs, w_ihs = [dgx.view(dgx.shape[0], -1)], [self.w_ih]
        if self.apart:
            dgs, w_ihs = list(dgx.unbind(1)), list(self.w_ih.chunk(self.directions))
        return [
            (dg, w_ih, self._inputs(some), None if self.dx is None else self.dx[some])
            for dg, w_ih, some in zip(dgs, w_ihs, rows, strict=True)
        ]

    def _inputs(self, rows: slice) -> Tensor:
        """x of these rows. Its padding becomes 0, because 0 times a NaN in it would be a NaN in ``dw_ih``."""
        x = self.x[rows] if self.several else self.x
        if self.time.lengths is None or not self.need_w_ih:
            return x
        return torch.where(_goes_to(self.time, rows).view(-1, 1), x, 0.0)

    def _sum(self, total: Tensor | None, part: Tensor) -> Tensor:
        if total is not None:
            return total.add_(part)
        return part.float() if self.several else part

    def of_inputs_and_weights(self) -> tuple[Tensor, ...]:
        db_ih = db_hh = None
        if self.db is not None and self.db_a is not None:
            db_hh = torch.cat((self.db[:, : 2 * self.hidden], self.db_a), dim=1)
        if self.db is not None and self.need_b_ih:
            db_ih = self.db.view(-1)
        found = (self.dx, self.dw_ih, self.dw_hh, db_ih, db_hh)
        # Converted only where the type differs: each call of a tensor's method takes a microsecond.
        return tuple(self.x.new_empty(0) if g is None else g.to(self.x.dtype) if self.several else g for g in found)


def sum_of_rows(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Over the first axis. On a GPU torch's sum of many rows allocates 8 bytes for each value, up to 132 MiB on an H100
    (``ReduceConfig::global_memory_size`` in ATen/native/cuda/Reduce.cuh), so groups of rows are summed first."""
    group = math.gcd(values.shape[0], GROUP_ROWS) if values.numel() >= MANY_VALUES else 1
    if group > 1:
        exact = torch.promote_types(values.dtype, torch.float32)
        values = values.view(-1, group, *values.shape[1:]).sum(1, dtype=exact)
    return values.sum(0, dtype=dtype)


def project(x: Tensor, w_ih: Tensor, b_ih: Tensor | None) -> Tensor:
    return x @ w_ih.t() if b_ih is None else torch.addmm(b_ih, x, w_ih.t())


@functools.cache
def _families() -> dict[type, Any]:
    from tritongru.kernels.persistent import launch as persistent
    from tritongru.kernels.resident import launch as resident
    from tritongru.kernels.stepwise import launch as stepwise

    return {Launch: resident, PersistentLaunch: persistent, StepwiseLaunch: stepwise}


def _compiled_loop() -> Any:
    from tritongru.llvm import launch

    return launch


def _recurrence(call: LayerCall, b_hh: Tensor | None) -> Recurrence:
    """What the kernels read; of ragged rows they always get all three tensors, so that there is one variant of each."""
    rows, reset_state = call.rows, call.reset_state
    w_hh, b_hh, h0 = call.weights.w_hh.contiguous(), _dense(b_hh), _dense(call.h0)
    if not rows.ragged:
        return Recurrence(w_hh, b_hh, h0, rows._replace(offsets=_dense(rows.offsets)))
    (N, D, B, H), device = call.sizes, call.x.device
    lengths, resets, T = rows.lengths, rows.resets, rows.steps(N)
    full = torch.full((B,), T, dtype=torch.int64, device=device) if lengths is None else lengths.to(torch.int64)
    if resets is None:
        resets = torch.zeros((T, B), dtype=torch.bool, device=device)
    if reset_state is None:
        reset_state = w_hh.new_zeros((D, 1, H))
    time = Rows(B, None, _aligned(full), _aligned(resets))
    return Recurrence(w_hh, b_hh, h0, time, _aligned(reset_state))


def _aligned(tensor: Tensor) -> Tensor:
    """Contiguous, and where Triton need not compile a kernel for an odd address: a later layer's slice may begin at
    one."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % 16 else tensor


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _rows_of_part(T: int, part: Part, D: int, batch: int) -> list[slice]:
    """For each direction, the rows of the steps that this part covers."""
    count = part.steps(T)
    firsts = (T - part.start - count, part.start)[:D]
    return [slice(first * batch, (first + count) * batch) for first in firsts]


def _rows_of(gates: Tensor, rows: list[slice]) -> Tensor:
    if len(rows) == 1:
        return gates[rows[0]]
    return torch.stack([gates[some, d] for d, some in enumerate(rows)], dim=1)


def _goes_to(time: Rows, rows: slice, ahead: int = 0) -> Tensor:
    """Whether a sequence goes on to the step that lies ``ahead`` of each of these rows' steps, (steps, B)."""
    assert time.lengths is not None
    first, last = rows.start // time.batch, rows.stop // time.batch
    return torch.arange(first + ahead, last + ahead, device=time.lengths.device)[:, None] < time.lengths


def _cut_before(time: Rows, rows: slice, d: int) -> Tensor:
    """Whether the state before the step of each of these rows is the reset state, (steps, B)."""
    assert time.resets is not None
    first, last = rows.start // time.batch, rows.stop // time.batch
    cut = time.resets[first + d : last + d]
    if cut.shape[0] < last - first:  # behind the last step there is no reset
        cut = torch.cat((cut, torch.zeros_like(time.resets[:1])))
    return cut & _goes_to(time, rows, d)


def _all_before(y: Tensor, recurrence: Recurrence, rows: list[slice]) -> list[Tensor]:
    before = _ragged_before if recurrence.rows.ragged else _states_before
    return [before(y, recurrence, d, some) for d, some in enumerate(rows)]


def _ragged_before(y: Tensor, recurrence: Recurrence, d: int, rows: slice) -> Tensor:
    """`_states_before` of ragged rows: a row that begins at its own last step begins with h0, a cut one with the reset
    state, and where there is no step there are zeros, whatever y, h0 and the reset state hold."""
    time, reset_state = recurrence.rows, recurrence.reset_state
    assert reset_state is not None
    states = _states_before(y, recurrence, d, rows).view(-1, time.batch, y.shape[2])
    if d == 1:
        first = 0.0 if recurrence.h0 is None else recurrence.h0[d]
        states = torch.where(_goes_to(time, rows, 1)[..., None], states, first)
    states = torch.where(_cut_before(time, rows, d)[..., None], reset_state[d], states)
    return torch.where(_goes_to(time, rows)[..., None], states, 0.0).flatten(0, 1)


def _states_before(y: Tensor, recurrence: Recurrence, d: int, rows: slice) -> Tensor:
    """The previous states of these rows, (n, H): of step t - 1 in direction 0, t + 1 in direction 1, h0 at the ends."""
    h0, (batch, offsets, *_) = recurrence.h0, recurrence.rows
    N, H = y.shape[0], y.shape[2]
    if offsets is not None:
        first = y.new_zeros((batch, H)) if h0 is None else h0[d]
        return torch.cat((y[:, d], first)).index_select(0, _rows_before(N, offsets, batch, d))
    if d == 0 and rows.start > 0:
        return y[rows.start - batch : rows.stop - batch, d]
    if d == 1 and rows.stop < N:
        return y[rows.start + batch : rows.stop + batch, d]
    first = y.new_zeros((batch, H)) if h0 is None else h0[d]
    if d == 0:
        return torch.cat((first, y[: rows.stop - batch, d]))
    return torch.cat((y[rows.start + batch :, d], first))


def _rows_before(N: int, offsets: Tensor, batch: int, d: int) -> Tensor:
    """For each packed row, the row of the same sequence one step before, or ``N`` plus its place in the batch if there
    is none. The result lies in [0, N + batch) whatever the offsets are: on a GPU they have not been checked."""
    row = torch.arange(N, device=offsets.device)
    t = torch.bucketize(row, offsets[1:-1], right=True)  # of the first rows of steps 1, 2, ..: in [0, T)
    b = row - offsets[t]
    if d == 0:
        before = torch.where(t > 0, offsets[(t - 1).clamp(min=0)] + b, N + b)
    else:
        end = torch.nn.functional.pad(offsets, (0, 1), value=N)  # a step after the last one has no rows
        before = torch.where(b < end[t + 2] - end[t + 1], end[t + 1] + b, N + b)
    return before.clamp_(0, N + batch - 1)


def _rebuilt_gates(x: Tensor, weights: Weights, before: list[Tensor], rows: list[slice], precision: str) -> Tensor:
    """The gates that the forward kernel would have saved. All previous states are known by now, so products over many
    rows are enough, without a second pass over time."""
    from tritongru.kernels.rebuild import rebuild

    w_ih, w_hh, b_ih, b_hh = weights
    D, gates, H = w_hh.shape
    found = x.new_empty((before[0].shape[0], D, H, 4))
    for d in range(D):
        own = slice(d * gates, (d + 1) * gates)
        gx = project(x[rows[d]], w_ih[own], None if b_ih is None else b_ih[own])
        gh = project(before[d], w_hh[d], None if b_hh is None else b_hh[d])
        rebuild(gx, gh, found, d, precision)
    return found

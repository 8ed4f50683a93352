"""torch's own GRU for sequences that end early or begin anew, which it does not know: padding is masked, a reverse
pass runs over each sequence turned round, and between resets it runs one step at a time. Plain operators, so
everything has a derivative, and nothing waits for a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tritongru.arguments.options import is_traced
from tritongru.arguments.ragged import is_plain
from tritongru.arguments.records import Rows


def run_layer(
    x: Tensor,  # (T, B, I)
    h0: Tensor,  # (D, B, H)
    weights: Sequence[Tensor],  # of one layer, in torch's order
    rows: Rows,
    reset_state: Tensor | None,  # (D, B or 1, H)
    train: bool,  # cuDNN needs it to compute gradients
) -> tuple[Tensor, Tensor]:  # y (T, B, D * H), hn (D, B, H)
    T, directions = x.shape[0], h0.shape[0]
    each = len(weights) // directions
    longest = _longest(rows.lengths, T)
    valid = _valid(x, rows.lengths, longest)
    if valid is not None:
        x = torch.where(valid, x[:longest], 0.0)
    ys, hns = [], []
    for d in range(directions):
        own = weights[d * each : (d + 1) * each]
        if rows.resets is None:
            assert valid is not None
            y, hn = _masked(x, h0[d], own, rows.lengths, valid, d, train)
        else:
            state = h0.new_zeros(1, h0.shape[2]) if reset_state is None else reset_state[d]
            y, hn = _step_by_step(x, h0[d], own, rows.resets[:longest], valid, state, d, train)
        ys.append(y)
        hns.append(hn)
    y = torch.cat(ys, dim=2)
    if longest < T:
        y = torch.cat((y, y.new_zeros(T - longest, *y.shape[1:])))
    return y, torch.stack(hns)


def _longest(lengths: Tensor | None, T: int) -> int:
    """Steps after which no sequence goes on, as far as the host can see; one is run in any case."""
    if lengths is None or torch.compiler.is_compiling() or is_traced() or not lengths.is_cpu or not is_plain(lengths):
        return T
    return max(1, min(T, int(lengths.max()))) if lengths.numel() else T


def _valid(x: Tensor, lengths: Tensor | None, longest: int) -> Tensor | None:
    """(longest, B, 1)"""
    if lengths is None:
        return None
    return (torch.arange(longest, device=x.device)[:, None] < lengths)[..., None]


def _masked(
    x: Tensor, h0: Tensor, weights: Sequence[Tensor], lengths: Tensor | None, valid: Tensor, d: int, train: bool
) -> tuple[Tensor, Tensor]:
    """One direction of sequences without resets."""
    assert lengths is not None
    ends = lengths.long().clamp(0, x.shape[0])
    t = torch.arange(x.shape[0], device=x.device)[:, None]
    order = torch.where(valid[..., 0], ends - 1 - t, t)[..., None] if d == 1 else None  # its own inverse
    first = torch.where(ends[:, None] > 0, h0, 0.0)  # a state that no step sees may be NaN, and 0 * NaN is NaN
    y = _gru(x if order is None else _in_order(x, order), first, weights, train)
    states = torch.cat((h0[None], y))
    hn = states.gather(0, ends[None, :, None].expand(1, *h0.shape))[0]
    y = y if order is None else _in_order(y, order)
    return torch.where(valid, y, 0.0), hn


def _in_order(rows: Tensor, order: Tensor) -> Tensor:
    return rows.gather(0, order.expand(rows.shape))


def _step_by_step(
    x: Tensor,
    h: Tensor,  # (B, H)
    weights: Sequence[Tensor],
    resets: Tensor,
    valid: Tensor | None,
    state: Tensor,  # (B or 1, H), after a reset
    d: int,
    train: bool,
) -> tuple[Tensor, Tensor]:
    """One direction of sequences with resets."""
    T, ys = int(x.shape[0]), []
    if T == 0:
        _gru(x, h, weights, train)  # raises torch's error
    if is_traced():  # by an operation that fails for another number of steps
        x = x.view(T, x.shape[1], x.shape[2])
    cuts = resets[..., None] if valid is None else resets[..., None] & valid
    for t in reversed(range(T)) if d == 1 else range(T):
        if t + d < T:  # a pass comes to step t over the cut before step t + d
            h = torch.where(cuts[t + d], state, h)
        before = h if valid is None else torch.where(valid[t], h, 0.0)  # as in `_masked`
        y = _gru(x[t : t + 1], before, weights, train)[0]
        h = y if valid is None else torch.where(valid[t], y, h)
        ys.append(y if valid is None else torch.where(valid[t], y, 0.0))
    return torch.stack(ys[::-1] if d == 1 else ys), h


def _gru(x: Tensor, h0: Tensor, weights: Sequence[Tensor], train: bool) -> Tensor:
    """y (T, B, H) of one direction."""
    y, _ = torch.gru(x, h0[None].contiguous(), weights, len(weights) == 4, 1, 0.0, train, False, False)  # type: ignore[call-overload]
    return y  # type: ignore[no-any-return]

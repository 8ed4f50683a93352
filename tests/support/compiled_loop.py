"""One layer by the loop that is compiled for CPUs, by torch, and by torch in float64; and what could be wrong about it.

A check returns what is wrong as text, empty if nothing is: the tests assert that it is empty, and those that plant a
fault that it is not.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple
from unittest import mock

import torch
from fences import Fences, forget
from tolerance import assert_close_to_float64
from torch import Tensor

from tritongru import reference
from tritongru.arguments.records import LayerCall, OutputGradients, Rows, Saved, Weights
from tritongru.llvm import launch
from tritongru.planning import cpu_plan
from tritongru.planning.launches import VectorLaunch

ALL = [True] * 7
GRADIENTS = ("dx", "dw_ih", "dw_hh", "db_ih", "db_hh", "dh0", "d_reset")
FP64 = 1e-12  # of the largest value: how far fp64 may be from torch's


@dataclass(frozen=True)
class Layer:
    """``lengths``: of the rows of packed input, the longest first; then T and B follow from them. ``ends``: of the
    sequences of padded input, any integers; then B follows from them. ``resets``: at which part of the steps a sequence
    begins anew; ``states``: whether what it begins with is zeros (0), one state for all (1), or one for each (B)."""

    T: int = 5
    B: int = 3
    I: int = 4
    H: int = 5
    D: int = 1
    bias: bool = True
    h0: bool = True
    lengths: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    resets: float = 0.0
    states: int = 0
    index: torch.dtype = torch.int64
    dtype: torch.dtype = torch.float32
    scale: float = 1.0

    @property
    def offsets(self) -> Tensor | None:
        if not self.lengths:
            return None
        steps = [sum(length > t for length in self.lengths) for t in range(max(self.lengths))]
        return torch.tensor([0, *steps]).cumsum(0)


class Given(NamedTuple):
    call: LayerCall
    grads: OutputGradients


def given(layer: Layer) -> Given:
    """Operands of one layer and what arrives at its outputs, exact in its dtype."""
    torch.manual_seed(0)
    offsets = layer.offsets
    B = len(layer.lengths or layer.ends) or layer.B
    N = layer.T * B if offsets is None else int(offsets[-1])
    D, I, H = layer.D, layer.I, layer.H

    def some(*shape: int, largest: float | None = None) -> Tensor:
        values = torch.randn(shape) if largest is None else torch.empty(shape).uniform_(-largest, largest)
        return values.to(layer.dtype)

    w = H**-0.5
    weights = Weights(
        some(D * 3 * H, I, largest=w),
        some(D, 3 * H, H, largest=w),
        some(D * 3 * H, largest=w) if layer.bias else None,
        some(D, 3 * H, largest=w) if layer.bias else None,
    )
    x = some(N, I) * layer.scale
    call = LayerCall(x, weights, some(D, B, H) if layer.h0 else None, Rows(B, offsets))
    grads = OutputGradients(some(N, D, H), some(D, B, H))
    return ragged(layer, Given(call, grads)) if layer.ends or layer.resets else Given(call, grads)


def ragged(layer: Layer, whole: Given) -> Given:
    """Of the same operands, with lengths and resets. In the padding lie NaN and infinities."""
    (x, weights, h0, (B, _, _, _), _), (dy, dhn) = whole
    T, D, H = layer.T, layer.D, layer.H
    lengths = torch.tensor(layer.ends, dtype=layer.index) if layer.ends else None
    resets = resets_of(layer, B) if layer.resets else None
    state = torch.randn(D, layer.states, H).to(layer.dtype) if layer.states else None
    if lengths is not None:
        padding = (torch.arange(T)[:, None] >= lengths).flatten()
        x, dy = x.clone(), dy.clone()
        x[padding], dy[padding] = float("nan"), float("inf")
    return Given(LayerCall(x, weights, h0, Rows(B, None, lengths, resets), state), OutputGradients(dy, dhn))


def resets_of(layer: Layer, B: int) -> Tensor:
    """The first sequence begins anew at its first and its last step and behind it, the second at every step, the third
    at none; at so many of their steps the others."""
    resets = torch.rand(layer.T, B) < layer.resets
    ends = torch.tensor(layer.ends or (layer.T,) * B).clamp(1, layer.T)
    resets[0, 0] = resets[ends[0] - 1, 0] = resets[ends[0] :, 0] = True
    resets[:, 1:2], resets[:, 2:3] = True, False
    return resets


def ours(given: Given, isa: str, keeps: bool = True, needs: list[bool] = ALL) -> dict[str, Tensor]:
    """Outputs and gradients, those that were not asked for left out."""
    call, grads = given
    y, hn, kept = launch.forward(call, keeps, VectorLaunch(isa))
    found = launch.backward(grads, call, Saved(y, kept), needs, VectorLaunch(isa))
    results = {"y": y, "hn": hn}
    for name, grad, need, leaf in zip(GRADIENTS, found, needs, call.leaves, strict=True):
        if leaf is not None or name == "dh0":
            assert bool(grad.numel()) == need, f"{name} is asked for: {need}"
            results |= {name: grad} if need else {}
    return results


def torchs(given: Given, dtype: torch.dtype) -> dict[str, Tensor]:
    call, grads = given
    leaves = [None if t is None else t.detach().to(dtype).requires_grad_() for t in call.leaves]
    if call.rows.ragged:
        return oracles(given, dtype)
    x, w_ih, w_hh, b_ih, b_hh, h0, _ = leaves
    D, (B, offsets, *_), H = w_hh.shape[0], call.rows, w_hh.shape[2]
    kinds = [w_ih.chunk(D), w_hh.unbind()] + ([] if b_ih is None else [b_ih.chunk(D), b_hh.unbind()])
    weights = [w for own in zip(*kinds, strict=True) for w in own]
    first = x.new_zeros((D, B, H)).requires_grad_() if h0 is None else h0
    rest = (weights, b_ih is not None, 1, 0.0, True, D == 2)
    if offsets is None:
        y, hn = torch.gru(x.view(-1, B, x.shape[1]), first, *rest, False)
    else:
        y, hn = torch.gru(x, offsets.diff(), first, *rest)
    y = y.reshape(-1, D, H)
    sides = [(v, g.to(dtype)) for v, g in zip((y, hn), grads, strict=True) if g is not None]
    wanted = {name: leaf for name, leaf in zip(GRADIENTS, (*leaves[:5], first), strict=False) if leaf is not None}
    found = torch.autograd.grad([v for v, _ in sides], list(wanted.values()), [g for _, g in sides])
    return {"y": y.detach(), "hn": hn.detach()} | dict(zip(wanted, found, strict=True))


def oracles(given: Given, dtype: torch.dtype) -> dict[str, Tensor]:
    """Of ragged rows, which torch's GRU does not know."""
    (x, weights, h0, (B, _, lengths, resets), state), (dy, dhn) = given
    D, _, H = weights.w_hh.shape
    found: list[dict[str, Tensor | None]] = []

    def of(value: Tensor | None, d: int, *shape: int) -> Tensor | None:
        return None if value is None else value.to(dtype).view(D, *shape)[d]

    for d in range(D):
        w_ih, w_hh = of(weights.w_ih, d, 3 * H, -1), of(weights.w_hh, d, 3 * H, H)
        biases = [of(bias, d, 3 * H) for bias in (weights.b_ih, weights.b_hh)]
        rows = x.to(dtype).view(-1, B, x.shape[1])
        first = rows.new_zeros(B, H) if h0 is None else of(h0, d, B, H)
        own = reference.Ragged(lengths, resets, of(state, d, -1, H))
        y, hn, gates = reference.forward(rows, first, w_ih, w_hh, *biases, d == 1, own)
        arriving = y.new_zeros(y.shape) if dy is None else dy[:, d].to(dtype).view(y.shape)
        last = torch.zeros_like(hn) if dhn is None else dhn[d].to(dtype)
        grads = reference.backward(arriving, last, rows, first, w_ih, w_hh, y, gates, d == 1, own)
        bias = (None, None) if biases[0] is None else (grads.b_ih, grads.b_hh)
        values = (grads.x.flatten(0, 1), grads.w_ih, grads.w_hh, *bias, grads.h0, grads.reset_state)
        found.append({"y": y.flatten(0, 1), "hn": hn} | dict(zip(GRADIENTS, values, strict=True)))
    joined = {"y": lambda v: torch.stack(v, 1), "dx": sum, "dw_ih": torch.cat, "db_ih": torch.cat}
    return {
        name: joined.get(name, torch.stack)([one[name] for one in found])
        for name, value in found[0].items()
        if value is not None
    }


def steps_of(given: Given, steps: slice) -> Given:
    """Some steps alone; their h_n gets no gradient."""
    (x, weights, h0, rows, _), (dy, _) = given
    own = [v.view(-1, rows.batch, *v.shape[1:])[steps].flatten(0, 1) for v in (x, dy)]
    return Given(LayerCall(own[0], weights, h0, rows), OutputGradients(own[1], None))


def rows_of(given: Given, rows: slice) -> Given:
    """Some rows of a batch alone."""
    (x, weights, h0, (B, _, lengths, resets), state), (dy, dhn) = given
    own = [v.view(-1, B, *v.shape[1:])[:, rows].flatten(0, 1) for v in (x, dy)]
    count = len(range(*rows.indices(B)))
    h0 = None if h0 is None else h0[:, rows].contiguous()
    lengths = None if lengths is None else lengths[rows].contiguous()
    resets = None if resets is None else resets[:, rows].contiguous()
    state = state[:, rows].contiguous() if state is not None and state.shape[1] == B else state
    call = LayerCall(own[0], weights, h0, Rows(count, None, lengths, resets), state)
    return Given(call, OutputGradients(own[1], dhn[:, rows].contiguous()))


@contextlib.contextmanager
def chunks_of(steps: int) -> Iterator[None]:
    """Time is cut into chunks of so many steps, forward and backward."""
    with mock.patch.object(launch, "chunk_of", lambda T, *rest: max(1, min(T, steps))):
        forget()
        yield
    forget()


@contextlib.contextmanager
def threads_of(count: int) -> Iterator[None]:
    """Torch's threads, of which also small calls take all."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with mock.patch.object(cpu_plan, "LEAST_WORK", 1):
            forget()
            yield
    finally:
        torch.set_num_threads(before)
        forget()


def parity(layer: Layer, isa: str, keeps: bool = True) -> str:
    """The tolerance rule, and fp64 within rounding of torch's."""
    data = given(layer)
    with Fences() as fences:
        found = ours(data, isa, keeps)
    same, exact = torchs(data, layer.dtype), torchs(data, torch.float64)
    if found.keys() != exact.keys():
        return f"results are {sorted(found)}, those of torch {sorted(exact)}"
    wrong = [*fences.broken]
    for name, value in found.items():
        if layer.dtype == torch.float64:
            error, most = (value - exact[name]).abs().max().item(), FP64 * max(1, exact[name].abs().max().item())
            wrong += [] if error <= most else [f"{name}: {error:.3e} from torch's"]
            continue
        try:
            assert_close_to_float64(value, exact[name], same[name], name)
        except AssertionError as error:
            wrong.append(str(error))
    return f"{layer} {isa}: {'; '.join(wrong)}" if wrong else ""


def same_bits(found: dict[str, Tensor], expected: dict[str, Tensor], *names: str) -> str:
    """Of the results that are named, or of all."""
    names = names or tuple(expected)
    return "; ".join(f"{name} has other bits" for name in names if not same(found[name], expected[name]))


def same(found: Tensor, expected: Tensor) -> bool:
    """Bit for bit, NaN too."""
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[found.itemsize]
    found, expected = found.contiguous(), expected.contiguous()
    return found.dtype == expected.dtype and torch.equal(found.view(kind), expected.view(kind))


def rows_alone(layer: Layer, isa: str, counts: range) -> str:
    """What belongs to a row of a batch has the bits that it has in a smaller batch, and alone."""
    data, T = given(layer), layer.T
    B, whole, wrong = data.call.rows.batch, together(data, isa), []
    parts = [slice(0, count) for count in counts] + [slice(b, b + 1) for b in range(B)]
    for part in parts:
        alone = together(rows_of(data, part), isa)
        for name in ("y", "dx"):
            whole_rows = whole[name].view(T, B, *whole[name].shape[1:])[:, part].flatten(0, 1)
            wrong += [] if same(alone[name], whole_rows) else [f"{name} of the rows {part}"]
        for name in ("hn", "dh0"):
            wrong += [] if same(alone[name], whole[name][:, part]) else [f"{name} of the rows {part}"]
    return "; ".join(wrong)


def together(data: Given, isa: str) -> dict[str, Tensor]:
    """Between fences, whose breaking shows in the results."""
    with Fences() as fences:
        found = ours(data, isa)
    return {name: value * float("nan") if fences.broken else value for name, value in found.items()}


def threads_apart(layer: Layer, isa: str, counts: tuple[int, ...], keeps: bool = True) -> str:
    """Results with several threads have the bits that one thread gives."""
    data, wrong = given(layer), []
    with threads_of(1), Fences():
        expected = ours(data, isa, keeps)
    for count in counts:
        with threads_of(count), Fences() as fences:
            difference = same_bits(ours(data, isa, keeps), expected)
        assert fences.threads == count, f"a call took {fences.threads} of {count} threads"
        wrong += [f"{count} threads: {difference}"] if difference else []
    return "; ".join(wrong)


def precision(layer: Layer, isa: str, most: float) -> str:
    """Errors against float64, as roots of mean squares, are at most so many times torch's own."""
    data = given(layer)
    found, theirs, exact = ours(data, isa), torchs(data, layer.dtype), torchs(data, torch.float64)
    ratios = {name: root(found[name] - exact[name]) / root(theirs[name] - exact[name]) for name in exact}
    return "; ".join(f"{name}: {ratio:.2f} times torch's error" for name, ratio in ratios.items() if ratio > most)


def root(error: Tensor) -> float:
    return error.double().square().mean().sqrt().item()


def stale(isa: str) -> str:
    """Weights that change between two calls, in place, count at once."""
    layer = Layer(T=3, B=2, I=6, H=11, D=2)
    data = given(layer)
    ours(data, isa)
    for weight in data.call.weights:
        weight.neg_()
    found, exact = ours(data, isa), torchs(data, torch.float64)
    wrong = [name for name, value in exact.items() if (found[name] - value).abs().max() > 1e-5 * value.abs().max()]
    return f"{', '.join(wrong)} of weights from before" if wrong else ""

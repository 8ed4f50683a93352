"""Runs the compiled passes of a layer: the counterpart of the Triton launchers.

16-bit numbers are converted to fp32 here and back at the end; each call packs the weights again. Every tensor whose
address is passed is kept alive here until the pass has ended.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tritongru.arguments.records import LayerCall, OutputGradients, Outputs, Saved, Weights
from tritongru.llvm import threads
from tritongru.llvm.compiling import function_of
from tritongru.llvm.filling import clear, copy_of, select
from tritongru.llvm.pages import in_large_pages
from tritongru.llvm.passes.call import CALL, COUNTS, TENSORS
from tritongru.llvm.segments import Segments, roomy, segments_of
from tritongru.llvm.working_memory import working_memory
from tritongru.planning.cpu_plan import KEPT, chunk_of, exact_dtype, groups_of, parts, threads_of
from tritongru.planning.launches import VectorLaunch

SCALARS = {torch.float32: "float", torch.float64: "double"}
FEW = 2  # rows of a single step up to which the weights are not packed
UNEVEN = 4  # groups of ragged rows for each thread
OF_STEP = TENSORS.index("hn") + 1  # tensors that a step has
_ADDRESSES = struct.Struct(f"{len(TENSORS) + len(COUNTS)}q")  # with the counts
_FEW_ADDRESSES = struct.Struct(f"{OF_STEP}q")


def scalar_of(dtype: torch.dtype) -> str:
    """LLVM's name of the type in which tensors of that dtype are computed."""
    return SCALARS[exact_dtype(dtype)]


class _Pass(NamedTuple):
    """A compiled pass for calls of one size. ``numbers``: the rest of its record after the tensors and counts, packed;
    ``scratch``: bytes that it needs; ``zeros``: the initial state of a row if there is no h0; ``tail``: what follows
    the first ``OF_STEP`` tensors in the record of a pass that needs neither others nor scratch memory."""

    run: Callable[[bytes], None]
    numbers: bytes
    scratch: int
    zeros: Tensor
    tail: bytes


def forward(call: LayerCall, keeps: bool, launch: VectorLaunch) -> Outputs:
    """As ``layer.forward``; what is kept is (N, D, KEPT, H), in fp32 for 16-bit tensors."""
    dtype = call.x.dtype
    if dtype not in SCALARS:
        wide = forward(_widened(call), keeps, launch)
        return Outputs(wide.y.to(dtype), wide.hn.to(dtype), wide.gates)
    x, weights, h0, (B, offsets, lengths, resets), reset_state = _dense(call)
    N, I = x.shape
    D, _, H = weights.w_hh.shape
    y, hn = in_large_pages(x.new_empty((N, D, H))), x.new_empty((D, B, H))
    if call.rows.ragged:
        if lengths is not None:
            clear(y)
        kept = in_large_pages(x.new_empty((N, D, KEPT, H))) if keeps else None
        segments = segments_of(lengths, resets, N // B, B, launch.isa)
        own = (x, *weights, h0, segments.offsets, y, hn, kept, *(None,) * 7)
        _run_ragged("forward", launch, segments, call, *own, *_addresses(segments), _for_all(reset_state, B))
        return Outputs(y, hn, x.new_empty(0) if kept is None else kept)
    if offsets is not None:  # a row that occurs in no step keeps its initial state
        hn = clear(x.new_empty((D, B, H))) if h0 is None else copy_of(h0)
    kept = in_large_pages(x.new_empty((N, D, KEPT, H))) if keeps else None
    T = N // B if offsets is None else offsets.shape[0] - 1
    kernel = _kernel_of(T, B) if D == 1 and not keeps and offsets is None else "forward"
    found = _pass(kernel, launch.isa, dtype, T, D, B, H, I, threads.count(), False)
    _run(found, T, x, *weights, h0, offsets, y, hn, kept)
    return Outputs(y, hn, x.new_empty(0) if kept is None else kept)


def infer(
    x: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    each: int,
    isa: str,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reset_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """All layers of one direction without gradients, each tensor contiguous: y (T, B, H) and h_n (L, B, H) of x
    (T, B, I). The tensors' dimensions may differ from those in ``forward``: only their memory matters.

    Raises:
        RuntimeError: if a length is outside of [0, T].
    """
    T, B, I = x.shape
    H, dtype = weights[1].shape[1], x.dtype
    layers = len(weights) // each
    hn = x.new_empty((layers, B, H))
    number_of_threads = threads.count()
    steps, segments, ragged = T, 0, lengths is not None or resets is not None
    kernel, sizes, offsets, addresses = _kernel_of(T, B), (T, 1, B, H), 0, (0, 0, 0)
    if ragged:
        own = segments_of(lengths, resets, T, B, isa)
        if own.clamped:
            raise RuntimeError("a length is below 0 or above the number of steps")
        steps, segments, offsets, addresses = own.steps, own.number, own.offsets, _addresses(own)
        kernel, sizes = "forward", (T, 1, roomy(own.number), H)
    for layer in range(layers):
        y = in_large_pages(x.new_empty((T, B, H)))
        if lengths is not None:
            clear(y)
        found = _pass(kernel, isa, dtype, *sizes, I, number_of_threads, False, ragged)
        w_ih, w_hh, *biases = weights[layer * each : (layer + 1) * each]
        b_ih, b_hh = biases or (None, None)
        states = hx, hn
        if layers > 1:
            states = None if hx is None else hx[layer], hn[layer]
        tensors = (x, w_ih, w_hh, b_ih, b_hh, states[0], offsets, y, states[1])
        if ragged:
            fresh = None if reset_state is None else _for_all(reset_state[layer : layer + 1], B)
            _run(found, steps, *tensors, *(None,) * 8, *addresses, fresh, segments=segments)
        else:
            _run(found, steps, *tensors)
        x, I = y, H
    return x, hn


def infer_step(x: Tensor, hx: Tensor | None, weights: Sequence[Tensor | None], isa: str) -> Tensor:
    """The state (B, H) after one step, without gradients, each tensor contiguous: of x (B, I) and hx (B, H)."""
    (B, I), dtype = x.shape, x.dtype
    H: int = weights[1].shape[1]  # type: ignore[union-attr]
    y = x.new_empty((B, H))
    found = _pass(_kernel_of(1, B), isa, dtype, 1, 1, B, H, I, threads.count(), False)
    _run(found, 1, x, *weights, hx, None, y)
    return y


def infer_steps(
    x: Tensor,
    hx: Tensor | None,
    reset: Tensor | None,
    weights: Sequence[Tensor],
    y: Tensor,
    hn: Tensor,
    isa: str,
) -> None:
    """One step of all layers without gradients, each tensor contiguous: x (B, I), hx and hn (L, B, H), y (B, H).
    ``reset`` (B,): states that count as zero."""
    (B, I), layers, H = x.shape, hn.shape[0], hn.shape[2]
    if hx is not None and reset is not None:
        hx = _without(reset, hx)
    at = [0 if t is None else t.data_ptr() for t in (x, hx, *weights, y, hn)]
    run_steps(isa, x.dtype, B, I, H, layers, at)


def run_steps(isa: str, dtype: torch.dtype, B: int, I: int, H: int, layers: int, at: list[int]) -> None:
    """``at``: the addresses of x, hx (or 0), all weights, y and hn of ``infer_steps``."""
    at_x, at_hx, *weights, at_y, at_hn = at
    each, kernel, number_of_threads = len(weights) // layers, _kernel_of(1, B), threads.count()
    for layer in range(layers):
        found = _pass(kernel, isa, dtype, 1, 1, B, H, I, number_of_threads, False)
        own = weights[layer * each : (layer + 1) * each] if layers > 1 else weights
        if each == 2:
            own += (0, 0)
        targets = (at_y, at_hn) if layer == layers - 1 else (at_hn, 0)
        if found.scratch == 0:
            found.run(_FEW_ADDRESSES.pack(at_x, *own, at_hx, 0, *targets) + found.tail)
        else:
            _run(found, 1, at_x, *own, at_hx, 0, *targets)
        size = B * H * dtype.itemsize  # of a layer's states
        at_x, I, at_hn, at_hx = at_hn, H, at_hn + size, at_hx and at_hx + size


def _without(reset: Tensor, hx: Tensor) -> Tensor:
    """The states of the rows that do not begin anew, and zeros."""
    states = working_memory("states", hx.numel(), hx.dtype)[: hx.numel()].view(hx.shape)
    return select(reset, _zeros(hx.dtype, 1), hx, states)


def backward(
    grads: OutputGradients, call: LayerCall, saved: Saved, needs: list[bool], launch: VectorLaunch
) -> tuple[Tensor, ...]:
    """As ``layer.backward``; ``saved``: what the forward pass kept, or its outputs."""
    dtype = call.x.dtype
    if dtype not in SCALARS:
        exact = exact_dtype(dtype)
        wide = OutputGradients(*(None if g is None else g.to(exact) for g in grads))
        narrow = backward(wide, _widened(call), Saved(*(s.to(exact) for s in saved)), needs, launch)
        return tuple(g.to(dtype) for g in narrow)
    x, weights, h0, (B, offsets, lengths, resets), reset_state = _dense(call)
    N, I = x.shape
    D, _, H = weights.w_hh.shape
    kept = saved.gates.contiguous() if saved.gates.numel() else None
    y = saved.y.contiguous() if kept is None else None
    dy = None if grads.dy is None else grads.dy.contiguous()
    dhn = grads.dhn  # its copy receives the gradient of h0
    dh = clear(x.new_empty((D, B, H))) if dhn is None else copy_of(dhn)
    dx = None
    if needs[0]:
        dx = in_large_pages(torch.empty_like(x))
        if D == 2 or lengths is not None:  # two directions add to it, and padding has no gradient
            clear(dx)
    shapes = (weights.w_ih.shape, weights.w_hh.shape, (D * 3 * H,), (D, 3 * H))
    dws = [clear(x.new_empty(shape)) if need else None for shape, need in zip(shapes, needs[1:5], strict=True)]
    d_reset = clear(x.new_empty((D, B, H))) if needs[6] and reset_state is not None else None
    if call.rows.ragged:
        segments = segments_of(lengths, resets, N // B, B, launch.isa)
        own = (x, *weights, h0, segments.offsets, y, None, kept, dy, dh, dx, *dws)
        states = _for_all(reset_state, B), d_reset
        _run_ragged("backward", launch, segments, call, *own, *_addresses(segments), *states)
        if d_reset is not None and reset_state is not None and reset_state.shape[1] < B:
            d_reset = d_reset.sum(1, keepdim=True)
    else:
        T = N // B if offsets is None else offsets.shape[0] - 1
        found = _pass("backward", launch.isa, dtype, T, D, B, H, I, threads.count(), kept is None)
        _run(found, T, x, *weights, h0, offsets, y, None, kept, dy, dh, dx, *dws)
    return tuple(x.new_empty(0) if g is None else g for g in (dx, *dws, dh if needs[5] else None, d_reset))


def _kernel_of(T: int, B: int) -> str:
    """For one direction with neither packed rows nor values to keep."""
    return "step" if T == 1 and B <= FEW else "forward"


def _addresses(segments: Segments) -> tuple[int, int, int]:
    return segments.places, segments.source, segments.target


def _for_all(reset_state: Tensor | None, B: int) -> Tensor | None:
    """One for each sequence."""
    return None if reset_state is None else reset_state.expand(-1, B, -1).contiguous()


def _run_ragged(
    kernel: str, launch: VectorLaunch, segments: Segments, call: LayerCall, *tensors: Tensor | int | None
) -> None:
    """Runs a pass over the segments as the rows of a batch."""
    N, D, B, H = call.sizes
    sizes = N // B, D, roomy(segments.number), H, call.x.shape[1]
    rebuilds = kernel == "backward" and tensors[TENSORS.index("kept")] is None
    found = _pass(kernel, launch.isa, call.x.dtype, *sizes, threads.count(), rebuilds, True)
    _run(found, segments.steps, *tensors, segments=segments.number)


def _run(found: _Pass, T: int, *tensors: Tensor | int | None, segments: int = 0) -> None:
    """``tensors``: the first of ``TENSORS``, or addresses; the rest are null, except the last two: ``zeros`` (H, in
    place of h0) and the scratch memory."""
    scratch = working_memory("scratch", found.scratch, torch.uint8) if found.scratch else None
    at_scratch = 0 if scratch is None else scratch.data_ptr()
    addresses = [0 if t is None else t if type(t) is int else t.data_ptr() for t in tensors]  # type: ignore[union-attr]
    addresses += (0,) * (len(TENSORS) - len(addresses) - 2)
    found.run(_ADDRESSES.pack(*addresses, found.zeros.data_ptr(), at_scratch, T, segments) + found.numbers)


@functools.lru_cache(maxsize=1024)
def _pass(
    kernel: str,
    isa: str,
    dtype: torch.dtype,
    T: int,
    D: int,
    B: int,
    H: int,
    I: int,
    number_of_threads: int,
    rebuilds: bool,
    ragged: bool = False,
) -> _Pass:
    itemsize, backward = dtype.itemsize, kernel == "backward"
    number_of_threads = threads_of(T, B, I, H, number_of_threads)
    chunk = chunk_of(T, B, H, itemsize, number_of_threads, backward)
    sizes = {"I": I, "H": H, "B": B, "rows": chunk * B, "itemsize": itemsize}
    share, at = parts(isa, **sizes, backward=backward, rebuilds=rebuilds, ragged=ragged)
    # Of ragged rows the first are the longest: smaller groups, taken one by one, leave no thread without work.
    groups = groups_of(isa, B, number_of_threads * (UNEVEN if ragged and number_of_threads > 1 else 1))
    numbers = (D, B, I, H, chunk, groups, number_of_threads, share, *at.values(), threads.parallel())
    packed = CALL.packed(*(0,) * (len(TENSORS) + len(COUNTS)), *numbers)[_ADDRESSES.size :]
    scratch, zeros = 0 if kernel == "step" else D * share * itemsize, _zeros(dtype, H)
    rest = _ADDRESSES.pack(*(0,) * (len(TENSORS) - 2), zeros.data_ptr(), 0, T, 0)[_FEW_ADDRESSES.size :]
    return _Pass(function_of(isa, SCALARS[dtype], kernel), packed, scratch, zeros, rest + packed)


@functools.lru_cache(maxsize=64)
def _zeros(dtype: torch.dtype, H: int) -> Tensor:
    return torch.zeros(H, dtype=dtype, device="cpu")


def _dense(call: LayerCall) -> LayerCall:
    x, weights, h0, rows, reset_state = call
    if all(t is None or t.is_contiguous() for t in (x, *weights, h0, rows.offsets)):
        return call
    own = Weights(*(None if w is None else w.contiguous() for w in weights))  # type: ignore[arg-type]
    offsets = None if rows.offsets is None else rows.offsets.contiguous()
    h0 = None if h0 is None else h0.contiguous()
    return LayerCall(x.contiguous(), own, h0, rows._replace(offsets=offsets), reset_state)


def _widened(call: LayerCall) -> LayerCall:
    """The call, converted to the dtype that is computed in."""
    x, weights, h0, rows, reset_state = call
    dtype = exact_dtype(x.dtype)
    own = Weights(*(None if w is None else w.to(dtype) for w in weights))  # type: ignore[arg-type]
    states = (None if state is None else state.to(dtype) for state in (h0, reset_state))
    h0, reset_state = states
    return LayerCall(x.to(dtype), own, h0, rows, reset_state)

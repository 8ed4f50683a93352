"""Operators for one time step of all layers without gradients, for streaming and rollouts: ``tritongru::gru_step``, and
``tritongru::gru_step_out``, which writes into given tensors and allocates nothing. On a CPU they run the compiled loop,
on a GPU one Triton kernel for each layer.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tritongru.arguments.checks import check_devices
from tritongru.interop.inference_ops import DTYPES, check_call, check_dense, compiled_loop
from tritongru.interop.shortcuts import goes_straight, is_watched
from tritongru.planning.instruction_sets import host_sets, refusal

torch.library.define(
    "tritongru::gru_step",
    "(Tensor x, Tensor? hx, Tensor? reset, Tensor[] weights, int num_layers) -> (Tensor y, Tensor hn)",
)
torch.library.define(
    "tritongru::gru_step_out",
    "(Tensor x, Tensor? hx, Tensor? reset, Tensor[] weights, int num_layers, Tensor(a!) y, Tensor(b!) hn) -> ()",
)


def gru_step(
    x: Tensor, hx: Tensor | None, reset: Tensor | None, weights: Sequence[Tensor], num_layers: int
) -> tuple[Tensor, Tensor]:
    """y (B, H) and hn (L, B, H) of x (B, I), hx (L, B, H), and for each layer two weights or, with biases, four; all
    contiguous and of one dtype. ``reset`` (B,) bool: states that count as zero."""
    B, H = _check(x, hx, reset, weights, num_layers)
    y = x.new_empty((B, H))
    hn = x.new_empty((num_layers, B, H)) if hx is None else torch.empty_like(hx)  # which takes less time
    _run(x, hx, reset, weights, y, hn)
    return y, hn


def gru_step_out(
    x: Tensor,
    hx: Tensor | None,
    reset: Tensor | None,
    weights: Sequence[Tensor],
    num_layers: int,
    y: Tensor,
    hn: Tensor,
) -> None:
    """``gru_step`` into y and hn, which must not share memory with what is read."""
    B, H = _check(x, hx, reset, weights, num_layers)
    check_devices(x=x, y=y, hn=hn)
    check_dense("y", y, x.dtype, (B, H))
    check_dense("hn", hn, x.dtype, (num_layers, B, H))
    check_writable(y, hn)
    for which, written, others in (("y", y, (x, hx, hn)), ("hn", hn, (x, hx))):
        first = written.data_ptr()
        last = first + written.nbytes
        for name, read in zip(("x", "hx", "hn"), others, strict=False):
            if read is not None and read.data_ptr() < last and first < read.data_ptr() + read.nbytes:
                raise ValueError(f"{which} should not share memory with {name}; give another tensor and swap the two")
    _run(x, hx, reset, weights, y, hn)
    _count_as_changed(y, hn)


def check_writable(*tensors: Tensor) -> None:
    """torch refuses it for its own operators, too."""
    if not torch.is_inference_mode_enabled() and any(tensor.is_inference() for tensor in tensors):
        raise RuntimeError(
            "Inplace update to inference tensor outside InferenceMode is not allowed; give tensors of out that were "
            "made outside of it"
        )


def _count_as_changed(*tensors: Tensor) -> None:
    """For autograd: a backward pass that needs what they held is refused."""
    for tensor in tensors:
        if not tensor.is_inference():  # autograd keeps none of those
            torch.autograd.graph.increment_version(tensor)


def _check(
    x: Tensor, hx: Tensor | None, reset: Tensor | None, weights: Sequence[Tensor], num_layers: int
) -> tuple[int, int]:
    """B and H."""
    each = len(weights) // num_layers if num_layers > 0 else 0
    if any(weight is None for weight in weights):
        raise TypeError("a weight should be a Tensor, got None")
    if x.dim() != 2 or each not in (2, 4) or len(weights) != num_layers * each or weights[1].dim() != 2:
        raise RuntimeError(
            "x and w_hh should have 2 dimensions, and each layer 2 or 4 weights, got "
            f"{x.dim()} dimensions and {len(weights)} weights for {num_layers} layers"
        )
    (B, I), H, dtype, on_cpu = x.shape, weights[1].shape[1], x.dtype, x.is_cpu
    if not on_cpu:  # all at once; which GPU a tensor is on is not looked at below
        check_devices(x=x, hx=hx, reset=reset, **{f"weight {k}": weight for k, weight in enumerate(weights)})
    elif dtype not in DTYPES or refusal():
        check_call(x, B * I * H)
    shapes = _shapes(B, I, H, num_layers, each, dtype.itemsize)
    for (name, shape, size), tensor in zip(shapes, (x, hx, *weights), strict=True):
        if tensor is None or (
            tensor.shape == shape
            and tensor.dtype is dtype
            and tensor.is_cpu is on_cpu
            and tensor.is_contiguous()
            and tensor.untyped_storage().nbytes() >= size + tensor.storage_offset() * dtype.itemsize
        ):
            continue  # valid, and faster to find out than with the checks below
        if name != "x":
            check_devices(x=x, **{str(name): tensor})
        check_dense(name, tensor, dtype, shape)
    if reset is not None:
        check_dense("reset", reset, torch.bool, (B,))
    return B, H


@functools.lru_cache(maxsize=256)
def _shapes(
    B: int, I: int, H: int, num_layers: int, each: int, itemsize: int
) -> list[tuple[str | int, tuple[int, ...], int]]:
    """Names, shapes and bytes of x, hx and all weights."""
    if B * I * H == 0:
        raise RuntimeError(f"no size should be 0, got x {(B, I)}")
    own: list[tuple[int, ...]] = [(3 * H, H), (3 * H,), (3 * H,)][: each - 1]
    weights = [shape for layer in range(num_layers) for shape in ((3 * H, H if layer else I), *own)]
    named: list[tuple[str | int, tuple[int, ...]]] = [("x", (B, I)), ("hx", (num_layers, B, H)), *enumerate(weights)]
    return [(name, shape, math.prod(shape) * itemsize) for name, shape in named]


def _run(x: Tensor, hx: Tensor | None, reset: Tensor | None, weights: Sequence[Tensor], y: Tensor, hn: Tensor) -> None:
    if x.is_cpu:
        compiled_loop().infer_steps(x, hx, reset, weights, y, hn, host_sets()[0])
        return
    layers = hn.shape[0]
    each = len(weights) // layers
    run = _kernel()
    for layer in range(layers):
        w_ih, w_hh, *biases = weights[layer * each : (layer + 1) * each]
        b_ih, b_hh = biases or (None, None)
        h = None if hx is None else hx[layer]
        run(x, h, reset, w_ih, w_hh, b_ih, b_hh, y if layer == layers - 1 else None, hn[layer])
        x = hn[layer]


@functools.cache
def _kernel() -> Any:
    from tritongru.kernels.single_step.launch import step

    return step


def _fake_step(
    x: Tensor, hx: Tensor | None, reset: Tensor | None, weights: Sequence[Tensor], num_layers: int
) -> tuple[Tensor, Tensor]:
    check_devices(x=x, hx=hx, reset=reset, **{f"weight {k}": weight for k, weight in enumerate(weights)})
    B, H = x.shape[0], weights[1].shape[1]
    return x.new_empty((B, H)), x.new_empty((num_layers, B, H))


def _fake_step_out(x: Tensor, hx: Tensor | None, reset: Tensor | None, weights: Sequence[Tensor], *_: Any) -> None:
    check_devices(x=x, hx=hx, reset=reset, **{f"weight {k}": weight for k, weight in enumerate(weights)})


for _name, _implementation, _fake in (
    ("tritongru::gru_step", gru_step, _fake_step),
    ("tritongru::gru_step_out", gru_step_out, _fake_step_out),
):
    torch.library.impl(_name, ("CPU", "CUDA"), _implementation)
    torch.library.register_fake(_name, _fake)


_step, _step_out = torch.ops.tritongru.gru_step.default, torch.ops.tritongru.gru_step_out.default


def run_step(*given: Any) -> tuple[Tensor, Tensor]:
    """``gru_step`` as an operator if something looks at operators, else without that detour, which takes longer than a
    small step."""
    return gru_step(*given) if goes_straight(_tensors(given)) else _step(*given)


def run_step_out(*given: Any) -> None:
    """Likewise."""
    if goes_straight(_tensors(given)):
        gru_step_out(*given)
    else:
        _step_out(*given)


def _tensors(given: Sequence[Any]) -> Sequence[Tensor | None]:
    x, hx, reset, weights, _, *out = given
    return x, hx, reset, *weights, *out


# A step like one before


class _Known(NamedTuple):
    """What has been found out about a step, and how to see that another one is like it: ``guards``, torch's check of
    the dtypes, sizes, strides and devices of many tensors at once, and the bytes of each; ``y``, an output."""

    guards: Any
    sizes: list[int]
    y: Tensor


_known: dict[tuple[int, int, str, bool], _Known] = {}
MOST_KNOWN = 256


def step_again(
    x: Tensor, hx: Tensor, weights: Sequence[Tensor], num_layers: int, impl: str, out: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor] | None:
    """A step on a CPU like one that was remembered, or None. To check each of ten tensors in Python takes longer than
    the step of a small layer; torch's compiler has a function for it."""
    known = _known.get((id(weights[0]), num_layers, impl, out is None))
    if known is None or (out is not None and any(tensor.is_nested for tensor in out)):
        return None  # the guards take strides, and a nested tensor has none
    given = out
    tensors = (x, hx, *weights) if out is None else (x, hx, *weights, *out)
    if not known.guards.check(*tensors) or is_watched():
        return None
    at, dtype = [], x.dtype
    for tensor, size in zip(tensors, known.sizes, strict=True):
        if tensor.untyped_storage().nbytes() - tensor.storage_offset() * dtype.itemsize < size:
            return None
        at.append(tensor.data_ptr())
    if out is None:
        out = torch.empty_like(known.y), torch.empty_like(hx)
        at += out[0].data_ptr(), out[1].data_ptr()
    elif _overlap(at, known.sizes):
        return None
    (B, I), H = x.shape, known.y.shape[1]
    compiled_loop().run_steps(host_sets()[0], dtype, B, I, H, num_layers, at)
    if given is not None:
        _count_as_changed(*given)
    return out


def _overlap(at: list[int], sizes: list[int]) -> bool:
    """Whether y or hn shares memory with x, hx or each other."""
    (x, hx, *_, y, hn), (of_x, of_hx, *_, of_y, of_hn) = at, sizes
    return (
        (y < x + of_x and x < y + of_y)
        or (y < hx + of_hx and hx < y + of_y)
        or (y < hn + of_hn and hn < y + of_y)
        or (hn < x + of_x and x < hn + of_hn)
        or (hn < hx + of_hx and hx < hn + of_hn)
    )


def remember(
    x: Tensor, hx: Tensor, weights: Sequence[Tensor], num_layers: int, impl: str, out: tuple[Tensor, Tensor] | None
) -> None:
    """To be called after an operator took these tensors, and ``impl`` chose it."""
    tensors = (x, hx, *weights) if out is None else (x, hx, *weights, *out)
    if not goes_straight(tensors):
        return
    guards = _guards_of(tensors)
    if guards is None:
        return
    if len(_known) >= MOST_KNOWN:
        _known.clear()
    key = id(weights[0]), num_layers, impl, out is None  # of another tensor with that id the guards know
    _known[key] = _Known(guards, [t.nbytes for t in tensors], x.new_empty((x.shape[0], hx.shape[2])))


def _guards_of(tensors: Sequence[Tensor]) -> Any:
    """None if this torch has no such function."""
    sizes: Any = [[*t.shape] for t in tensors]
    strides: Any = [[*t.stride()] for t in tensors]
    try:
        return torch._C._dynamo.guards.TensorGuards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides)
    except (AttributeError, TypeError, RuntimeError):
        return None

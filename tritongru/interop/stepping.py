"""``GRU.step``: one time step of all layers. Without gradients it is one operator, by the shortest way there is; with
gradients a call of the layer with T = 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tritongru.arguments.checks import check_kind, check_memory
from tritongru.arguments.ragged import WHOLE, is_plain
from tritongru.interop.exporters import fx_step
from tritongru.interop.inference_ops import takes, wants_results_alone
from tritongru.interop.step_ops import check_writable, remember, run_step, run_step_out, step_again
from tritongru.route import route_of

if TYPE_CHECKING:
    from tritongru.module import GRU

Out = tuple[Tensor, Tensor]
KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def step(gru: GRU, x_t: Tensor, state: Tensor | None, reset: Tensor | None, out: Out | None) -> tuple[Tensor, Tensor]:
    """As ``GRU.step``."""
    if x_t.__class__ is Tensor and x_t.is_cpu and not gru.bidirectional and not _drops(gru):
        found = _on_cpu(gru, x_t, state, reset, out)
        if found is not None:
            return found
    if any(isinstance(value, torch.fx.Proxy) for value in (x_t, state, reset)):
        named = {"reset": reset, "out": out}
        return fx_step(gru, x_t, state, **{name: value for name, value in named.items() if value is not None})
    if gru.bidirectional:
        raise RuntimeError(
            "step needs a GRU of one direction, got bidirectional=True, whose other direction begins at the last time "
            "step; call the layer with whole sequences"
        )
    for name, value in (("x_t", x_t), ("state", state), ("reset", reset)):
        if not isinstance(value, Tensor) and (value is not None or name == "x_t"):
            raise TypeError(f"{name} should be a Tensor, got {type(value).__name__}")
    if x_t.dim() == 2:
        return _batched(gru, x_t, state, reset, out)
    if x_t.dim() != 1:
        raise ValueError(f"x_t should have 1 or 2 dimensions, one step without a time axis, got {x_t.dim()}")
    if state is not None and state.dim() != 2:
        raise RuntimeError(f"For an unbatched step state should be 2-D but got {state.dim()}-D tensor")
    if out is not None:
        _check_out(gru, x_t, out, ())
        wide = out[0].unsqueeze(0), out[1].unsqueeze(1)
    one = None if reset is None or reset.dim() != 0 else reset.unsqueeze(0)
    rest = None if state is None else state.unsqueeze(1), reset if one is None else one
    y, new = _batched(gru, x_t.unsqueeze(0), *rest, None if out is None else wide)
    return (y.squeeze(0), new.squeeze(1)) if out is None else out


def _drops(gru: GRU) -> bool:
    """Whether there is dropout between layers."""
    return gru.training and gru.dropout > 0 and gru.num_layers > 1


def _on_cpu(
    gru: GRU, x_t: Tensor, state: Tensor | None, reset: Tensor | None, out: Out | None
) -> tuple[Tensor, Tensor] | None:
    """By the shortest path, before anything else is looked at: the checks of the operator are enough for it. None if
    something is special or wrong."""
    impl, layers, own = gru.impl, gru.num_layers, gru._parameters
    if not wants_results_alone(x_t, state, impl) or x_t.dim() != 2 or not (out is None or type(out) is tuple):
        return None
    try:
        weights: list[Tensor] = [own[name] for name in gru._flat_weights_names]  # type: ignore[misc]
        again = reset is None and state is not None and step_again(x_t, state, weights, layers, impl, out)
        if again:
            return again
        if not takes(impl, weights[1], x_t.dtype, 1, x_t.shape[0]):
            return None
        if out is None:
            found = run_step(x_t, state, reset, weights, layers)
        else:
            run_step_out(x_t, state, reset, weights, layers, *out)
            found = out
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError):  # KeyError: of a computed weight
        return None
    if reset is None and state is not None:
        remember(x_t, state, weights, layers, impl, out)
    return found


def _batched(
    gru: GRU, x_t: Tensor, state: Tensor | None, reset: Tensor | None, out: Out | None
) -> tuple[Tensor, Tensor]:
    if reset is not None:
        _check_reset(x_t, reset)
    if out is not None:
        _check_out(gru, x_t, out, (x_t.shape[0],))
    weights = gru._weights()
    if not _drops(gru) and takes_kernel(gru.impl, gru.hidden_size, x_t, state, weights):
        given = x_t, state, reset, weights, gru.num_layers
        try:
            if out is None:
                return run_step(*given)
            run_step_out(*given, *out)
            return out
        except (RuntimeError, ValueError):
            pass  # there is an error for it below, or the layer lays the tensors out
    if out is not None:
        _check_apart(x_t, state, out)
    if out is not None and torch.is_grad_enabled() and _learns(x_t, state, (*weights, *out)):
        raise RuntimeError(
            "step(): functions with out=... arguments don't support automatic differentiation, but one of the "
            "arguments requires grad."
        )
    if state is not None and state.dim() != 3:
        raise RuntimeError(f"For a batched step state should be 3-D but got {state.dim()}-D tensor")
    if reset is not None and state is not None:
        state = torch.where(reset[:, None], 0.0, state)
    time = 1 if gru.batch_first else 0
    output, new = gru._run(x_t.unsqueeze(time), state, None, WHOLE)
    y = output.squeeze(time)
    if out is None:
        return y, new
    out[0].copy_(y)
    out[1].copy_(new)
    return out


def takes_kernel(impl: str, hidden: int, x_t: Tensor, state: Tensor | None, weights: Sequence[Tensor | None]) -> bool:
    """Whether the Triton kernel runs a step on a GPU, also of a cell."""
    return (
        x_t.is_cuda
        and impl in ("auto", "triton")
        and x_t.dtype in KERNEL_DTYPES
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cuda")
        and not (torch.is_grad_enabled() and _learns(x_t, state, weights))
        and torch._C._functorch.peek_interpreter_stack() is None
        and route_of(impl, hidden, x_t.dtype, x_t.device, 1, False) is not None
    )


def _learns(x_t: Tensor, state: Tensor | None, weights: Sequence[Tensor | None]) -> bool:
    return any(t is not None and t.requires_grad for t in (x_t, state, *weights))


def _check_reset(x_t: Tensor, reset: Tensor) -> None:
    check_kind("reset", reset, torch.bool)
    if reset.shape != (x_t.shape[0],):
        raise RuntimeError(
            f"reset should have the shape ({x_t.shape[0]},), one value for each sequence, got {tuple(reset.shape)}"
        )
    if reset.device != x_t.device:
        raise RuntimeError(f"reset should be on the device of x_t, {x_t.device}, got {reset.device}")


def _check_out(gru: GRU, x_t: Tensor, out: Out, batch: tuple[int, ...]) -> None:
    if not isinstance(out, tuple) or len(out) != 2 or not all(isinstance(t, Tensor) for t in out):
        kinds = ", ".join(type(t).__name__ for t in out) if isinstance(out, tuple) else type(out).__name__
        raise TypeError(f"out should be a tuple of two tensors, (y_t, state), got {kinds}")
    shapes = (*batch, gru.hidden_size), (gru.num_layers, *batch, gru.hidden_size)
    for name, tensor, shape in zip(("y_t", "state"), out, shapes, strict=True):
        if tensor.shape != shape:
            raise RuntimeError(f"{name} in out should have the shape {shape}, got {tuple(tensor.shape)}")
        if tensor.dtype != x_t.dtype or tensor.device != x_t.device:
            raise RuntimeError(
                f"{name} in out should be {x_t.dtype} on {x_t.device}, like x_t, got {tensor.dtype} on {tensor.device}"
            )
        if torch.compiler.is_compiling() or not torch._C._has_storage(tensor):
            continue
        check_memory(name, tensor)
        if torch._debug_has_internal_overlap(tensor) == 1:
            raise RuntimeError(f"{name} in out has elements that share memory; give a tensor that is not expanded")
    if not torch.compiler.is_compiling():
        check_writable(*out)


def _check_apart(x_t: Tensor, state: Tensor | None, out: Out) -> None:
    """What is written may be read until the step has ended. Strided tensors are written after it, so these may lie
    between each other."""
    y_t, new = out
    if _share_memory(y_t, new):
        raise ValueError("y_t and state in out should not share memory; give two tensors")
    for written, tensor in (("y_t", y_t), ("state", new)):
        if _share_memory(tensor, x_t, dense=True):
            raise ValueError(f"{written} in out should not share memory with x_t; give another tensor")
        if state is not None and _share_memory(tensor, state, dense=True):
            raise ValueError(
                f"{written} in out should not share memory with state; give another tensor, and swap the two states "
                "after each step"
            )


def _share_memory(a: Tensor, b: Tensor, dense: bool = False) -> bool:
    """Whether the ranges of two tensors, with what lies between their elements, meet; only if both are ``dense``."""
    if torch.compiler.is_compiling() or not (is_plain(a) and is_plain(b)):
        return False
    if dense and not (a.is_contiguous() and b.is_contiguous()):
        return False
    ranges = []
    for t in (a, b):
        last = sum((size - 1) * step for size, step in zip(t.shape, t.stride(), strict=True)) if t.numel() else -1
        ranges.append((t.data_ptr(), t.data_ptr() + (last + 1) * t.itemsize))
    (first, end), (other, other_end) = ranges
    return first < other_end and other < end

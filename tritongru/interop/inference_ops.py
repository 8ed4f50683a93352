"""Operators for inference on a CPU: ``tritongru::gru_infer``, all layers of one direction, and
``tritongru::gru_cell_infer``, one time step. For a step of a small layer the overhead of an operator matters, so these
have few arguments, no derivative and no options.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from tritongru.arguments.checks import check_devices, check_memory
from tritongru.interop.shortcuts import goes_straight
from tritongru.planning.cpu_plan import is_slower, least_rows, least_steps, refusal_on_cpu, takes_cell
from tritongru.planning.instruction_sets import host_sets, refusal

DTYPES = (torch.float32, torch.float64)

torch.library.define(
    "tritongru::gru_infer",
    "(Tensor x, Tensor? hx, Tensor[] weights, int num_layers, Tensor? lengths=None, Tensor? resets=None, "
    "Tensor? reset_state=None) -> (Tensor y, Tensor hn)",
)
torch.library.define(
    "tritongru::gru_cell_infer",
    "(Tensor x, Tensor? hx, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh) -> Tensor",
)


def gru_infer(
    x: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    num_layers: int,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reset_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """y (T, B, H) and hn (L, B, H) of x (T, B, I), hx (L, B, H), and for each layer two weights or, with biases, four;
    all contiguous and of one dtype, float32 or float64. Optional: lengths (B,), int32 or int64 from 0 to T, resets
    (T, B), bool, and with these reset_state (L, B or 1, H)."""
    each = len(weights) // num_layers if num_layers > 0 else 0
    if x.dim() != 3 or each not in (2, 4) or len(weights) != num_layers * each or weights[1].dim() != 2:
        raise RuntimeError(
            "x should have 3 dimensions, w_hh 2, and each layer 2 or 4 weights, got "
            f"{x.dim()} dimensions and {len(weights)} weights for {num_layers} layers"
        )
    (T, B, I), H, dtype = x.shape, weights[1].shape[1], x.dtype
    check_call(x, T * B * I * H)
    check_dense("x", x, dtype, (T, B, I))
    if hx is not None:
        check_dense("hx", hx, dtype, (num_layers, B, H))
    shapes = ((3 * H, I), (3 * H, H), (3 * H,), (3 * H,))
    for k, weight in enumerate(weights):
        check_dense(k, weight, dtype, shapes[k % each] if k % each or k < each else (3 * H, H))
    if lengths is None and resets is None and reset_state is None:
        return compiled_loop().infer(x, hx, weights, each, host_sets()[0])  # type: ignore[no-any-return]
    if lengths is not None:
        check_dense("lengths", lengths, torch.int32 if lengths.dtype is torch.int32 else torch.int64, (B,))
    if resets is not None:
        check_dense("resets", resets, torch.bool, (T, B))
    if reset_state is not None:
        if resets is None:
            raise RuntimeError("reset_state needs resets, which say where it is used")
        states = reset_state.shape[1] if reset_state.dim() == 3 and reset_state.shape[1] == 1 else B
        check_dense("reset_state", reset_state, dtype, (num_layers, states, H))
    return compiled_loop().infer(x, hx, weights, each, host_sets()[0], lengths, resets, reset_state)  # type: ignore[no-any-return]


def gru_cell_infer(
    x: Tensor, hx: Tensor | None, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None
) -> Tensor:
    """The state (B, H) after one step, of x (B, I) and hx (B, H); tensors as of ``gru_infer``."""
    if x.dim() != 2 or w_hh.dim() != 2 or (b_ih is None) != (b_hh is None):
        raise RuntimeError(
            f"x and w_hh should have 2 dimensions, and both biases or none, got {x.dim()} and {w_hh.dim()} dimensions"
        )
    (B, I), H, dtype = x.shape, w_hh.shape[1], x.dtype
    check_call(x, B * I * H)
    check_dense("x", x, dtype, (B, I))
    check_dense("w_ih", w_ih, dtype, (3 * H, I))
    check_dense("w_hh", w_hh, dtype, (3 * H, H))
    if b_ih is not None and b_hh is not None:
        check_dense("b_ih", b_ih, dtype, (3 * H,))
        check_dense("b_hh", b_hh, dtype, (3 * H,))
    if hx is not None:
        check_dense("hx", hx, dtype, (B, H))
    return compiled_loop().infer_step(x, hx, (w_ih, w_hh, b_ih, b_hh), host_sets()[0])  # type: ignore[no-any-return]


def check_call(x: Tensor, product: int) -> None:
    if x.dtype not in DTYPES or refusal():
        why = refusal_on_cpu(x.device, x.dtype) or f"this operator does not support {x.dtype}"
        raise RuntimeError(f"the compiled loop cannot run this call: {why}")
    if product == 0:
        raise RuntimeError(f"no size should be 0, got x {tuple(x.shape)}")


def check_dense(name: str | int, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """The dispatcher has already made sure that all tensors are dense and on the CPU."""
    if tensor.shape != shape or tensor.dtype is not dtype or not tensor.is_contiguous():
        raise RuntimeError(
            f"{name if isinstance(name, str) else f'weight {name}'} should be contiguous, of shape {shape} and "
            f"{dtype}, got {tuple(tensor.shape)} and {tensor.dtype}"
        )
    if tensor.untyped_storage().nbytes() < tensor.nbytes or tensor.storage_offset():
        check_memory(name, tensor)


def _fake_infer(
    x: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    num_layers: int,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reset_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    ragged = {"lengths": lengths, "resets": resets, "reset_state": reset_state}
    check_devices(x=x, hx=hx, **ragged, **{f"weight {k}": weight for k, weight in enumerate(weights)})
    (T, B, _), H = x.shape, weights[1].shape[1]
    return x.new_empty((T, B, H)), x.new_empty((num_layers, B, H))


def _fake_cell_infer(x: Tensor, hx: Tensor | None, w_ih: Tensor, w_hh: Tensor, *biases: Tensor | None) -> Tensor:
    others = {f"bias {k}": bias for k, bias in enumerate(biases)}
    check_devices(x=x, hx=hx, w_ih=w_ih, w_hh=w_hh, **others)
    return x.new_empty((x.shape[0], w_hh.shape[1]))


@functools.cache
def compiled_loop() -> Any:
    from tritongru.llvm import launch

    return launch


for _name, _implementation, _fake in (
    ("tritongru::gru_infer", gru_infer, _fake_infer),
    ("tritongru::gru_cell_infer", gru_cell_infer, _fake_cell_infer),
):
    torch.library.impl(_name, "CPU", _implementation)
    torch.library.register_fake(_name, _fake)


_run_layers, _run_step = torch.ops.tritongru.gru_infer.default, torch.ops.tritongru.gru_cell_infer.default


def wants_results_alone(input: Tensor, hx: Tensor | None, impl: str) -> bool:
    """Whether a call on a CPU is plain inference, in a dtype that the loop supports directly."""
    return (
        not torch.compiler.is_compiling()
        and not torch.is_grad_enabled()
        and type(input) is Tensor
        and (hx is None or (type(hx) is Tensor and not hx.is_nested))
        and not input.is_nested
        and (impl == "auto" or impl == "llvm")
        and input.is_cpu
        and input.dtype in DTYPES
        and torch._C._get_tracing_state() is None
        and not torch.is_autocast_enabled("cpu")
        and forward_ad._current_level < 0
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def infer(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    num_layers: int,
    batch_first: bool,
    impl: str,
    ragged: Sequence[Tensor | None] = (),
) -> tuple[Tensor, Tensor] | None:
    """(output, h_n) of one direction by the shortest path, if ``wants_results_alone``; None if another path is faster
    or something is wrong, which ``functional.run`` then reports. ``ragged``: lengths, resets and reset_state."""
    if input.dim() != 3:
        return None
    x = input.transpose(0, 1) if batch_first else input
    if not takes(impl, weights[1], x.dtype, x.shape[0], x.shape[1]):
        return None
    try:
        if ragged and batch_first and isinstance(ragged[1], Tensor):
            lengths, resets, reset_state = ragged
            ragged = lengths, resets.t().contiguous(), reset_state  # type: ignore[union-attr]
        run = gru_infer if _goes_straight((x, hx, *weights, *ragged)) else _run_layers
        y, h_n = run(x, hx, weights, num_layers, *ragged)
    except (RuntimeError, TypeError):
        return None
    return (y.transpose(0, 1) if batch_first else y), h_n


def infer_step(input: Tensor, hx: Tensor | None, weights: Sequence[Tensor | None], impl: str) -> Tensor | None:
    """Likewise the state after one step of a cell: input (B, I), hx (B, H)."""
    w_hh = weights[1]
    if w_hh is None or w_hh.dim() != 2 or _least(w_hh.shape[1], input.dtype) is None:
        return None
    if impl == "auto" and not takes_cell(host_sets()[0], w_hh.shape[1], input.shape[0]):
        return None
    run = gru_cell_infer if _goes_straight((input, hx, *weights)) else _run_step
    try:
        return run(input, hx, *weights)  # type: ignore[arg-type]
    except (RuntimeError, TypeError, AttributeError):  # of a weight that is None
        return None


def _goes_straight(tensors: Sequence[Tensor | None]) -> bool:
    return goes_straight(tensors) and all(t is None or t.is_cpu for t in tensors)


def takes(impl: str, w_hh: Tensor, dtype: torch.dtype, T: int, B: int) -> bool:
    shape = w_hh.shape
    least = _least(shape[-1], dtype) if len(shape) == 2 else None
    if least is None or impl == "llvm":
        return least is not None
    rows, steps = least
    if rows > T * B or (B > 1 and steps > T):
        return False
    return T == 1 or not is_slower(host_sets()[0], shape[-1], False, B, torch.get_num_threads())


@functools.lru_cache(maxsize=256)
def _least(hidden: int, dtype: torch.dtype) -> tuple[int, int] | None:
    """Rows T * B, and steps of several rows, from which on ``impl="auto"`` runs the loop; or None if it cannot run,
    which ``functional.run`` then reports."""
    if refusal_on_cpu(torch.device("cpu"), dtype):
        return None
    isa = host_sets()[0]
    return least_rows(isa, hidden, False), least_steps(isa, hidden, False)

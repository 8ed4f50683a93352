"""Operators for one time step of all layers without gradients, for streaming and rollouts: ``tritongru::gru_step``, and
``tritongru::gru_step_out``, which writes into given tensors and allocates nothing. On a CPU they run the compiled loop,
on a GPU one Triton kernel for each layer.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tritongru.arguments.checks import check_devices
from tritongru.interop.inference_ops import check_call, check_dense
from tritongru.planning.instruction_sets import host_sets

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
    y, hn = x.new_empty((B, H)), x.new_empty((num_layers, B, H))
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
    check_dense("y", y, x.dtype, (B, H))
    check_dense("hn", hn, x.dtype, (num_layers, B, H))
    check_devices(x=x, y=y, hn=hn)
    ranges = [_range(t) for t in (y, hn)]
    for name, tensor in (("x", x), ("hx", hx), ("hn", hn)):
        if tensor is None:
            continue
        start, end = _range(tensor)
        for which, (first, last) in zip(("y", "hn")[: 1 if name == "hn" else 2], ranges, strict=False):
            if start < last and first < end:
                raise ValueError(f"{which} should not share memory with {name}; give another tensor and swap the two")
    _run(x, hx, reset, weights, y, hn)


def _range(tensor: Tensor) -> tuple[int, int]:
    start = tensor.data_ptr()
    return start, start + tensor.nbytes


def _check(
    x: Tensor, hx: Tensor | None, reset: Tensor | None, weights: Sequence[Tensor], num_layers: int
) -> tuple[int, int]:
    """B and H."""
    each = len(weights) // num_layers if num_layers > 0 else 0
    if x.dim() != 2 or each not in (2, 4) or len(weights) != num_layers * each or weights[1].dim() != 2:
        raise RuntimeError(
            "x and w_hh should have 2 dimensions, and each layer 2 or 4 weights, got "
            f"{x.dim()} dimensions and {len(weights)} weights for {num_layers} layers"
        )
    (B, I), H, dtype = x.shape, weights[1].shape[1], x.dtype
    if x.is_cpu:
        check_call(x, B * I * H)
    elif B * I * H == 0:
        raise RuntimeError(f"no size should be 0, got x {tuple(x.shape)}")
    check_dense("x", x, dtype, (B, I))
    if hx is not None:
        check_dense("hx", hx, dtype, (num_layers, B, H))
    if reset is not None:
        check_dense("reset", reset, torch.bool, (B,))
    shapes = ((3 * H, I), (3 * H, H), (3 * H,), (3 * H,))
    for k, weight in enumerate(weights):
        check_dense(k, weight, dtype, shapes[k % each] if k % each or k < each else (3 * H, H))
    if not x.is_cpu:
        check_devices(x=x, hx=hx, reset=reset, **{f"weight {k}": weight for k, weight in enumerate(weights)})
    return B, H


def _run(x: Tensor, hx: Tensor | None, reset: Tensor | None, weights: Sequence[Tensor], y: Tensor, hn: Tensor) -> None:
    if x.is_cpu:
        _loop().infer_steps(x, hx, reset, weights, y, hn, host_sets()[0])
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
def _loop() -> Any:
    from tritongru.llvm import launch

    return launch


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


run_step, run_step_out = torch.ops.tritongru.gru_step.default, torch.ops.tritongru.gru_step_out.default

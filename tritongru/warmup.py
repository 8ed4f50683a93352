"""Compiles all kernels that calls of a module with a given batch size need, in parallel and before the first call.

Kernels are compiled for a hidden size, a dtype, the number of directions and a few flags, never for a number of time
steps or rows, so each runs once, on zeros, for one time step; the layers of a module share them.
"""

from __future__ import annotations

import os
import time as clock
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tritongru import layer
from tritongru.arguments.options import autocast_dtype
from tritongru.arguments.records import LayerCall, OutputGradients, Rows, Saved, Weights
from tritongru.planning.devices import device_facts
from tritongru.planning.instruction_sets import host_sets
from tritongru.planning.memory import gate_bytes, saves
from tritongru.planning.plan import Pass, plan_on
from tritongru.route import asks_for_kernels, route_of, takes


@dataclass(frozen=True)
class Compiled:
    """One kernel.

    Attributes:
        family: "resident", "persistent", "stepwise", "rebuild" or "llvm".
        kernel: "forward" or "backward".
        flags: what it was compiled for, out of "packed", "ragged" (lengths or resets), "hx", "gates" (saved), "dy" (the
            output has a gradient, not only h_n) and "unaligned" (a weight or state does not begin at a multiple of 16
            bytes).
        seconds: its own time, while others were compiled in parallel.
    """

    family: str
    kernel: str
    flags: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Warmup:
    """What `GRU.warmup` compiled, or loaded from a cache on disk.

    Attributes:
        seconds: time of the whole warm-up.
        kernels: the kernels.
    """

    seconds: float
    kernels: tuple[Compiled, ...]


class _Work(NamedTuple):
    family: str
    kernel: str
    flags: tuple[str, ...]
    run: Callable[[], Any]


class _State(NamedTuple):
    """The tensors of a layer whose presence and alignment a kernel is compiled for."""

    w_hh: Tensor  # (D, 3H, H)
    b_hh: Tensor | None  # (D, 3H)
    h0: Tensor | None  # (D, B, H)


class _Form(NamedTuple):
    """Which rows calls pass."""

    packed: bool
    ragged: bool

    def rows(self, x: Tensor) -> Rows:
        """Of one time step."""
        batch, device = x.shape[0], x.device
        if self.packed:
            return Rows(batch, torch.tensor([0, batch], device=device))
        if self.ragged:
            return Rows(batch, lengths=torch.ones(batch, dtype=torch.int64, device=device))
        return Rows(batch)


def warm(
    gru: nn.RNNBase, batch: int, time: int, packed: bool, lengths: bool, resets: bool, impl: str, memory: str
) -> Warmup:
    """As ``GRU.warmup``."""
    start = clock.perf_counter()
    weight = next(gru.parameters())
    device, dtype = weight.device, autocast_dtype(weight) or weight.dtype
    learns = gru.training and any(p.requires_grad for p in gru.parameters())
    D, H = 2 if gru.bidirectional else 1, gru.hidden_size
    ragged, passes = lengths or resets, []
    if asks_for_kernels(impl, device):
        of_call = [False, True] if learns else [False]
        routes = {training: route_of(impl, H, dtype, device, D, training, ragged) for training in of_call}
        found = [(training, route) for training, route in routes.items() if route is not None]
        passes = [training for training, route in found if resets or takes(route, impl, batch, time)]
    if not passes:
        return Warmup(clock.perf_counter() - start, ())
    if device.type == "cpu" and impl != "triton":
        loops = tuple(_loops(dtype, True in passes, ragged))
        return Warmup(clock.perf_counter() - start, loops)
    size = gate_bytes(time * batch, H, D, gru.num_layers, dtype.itemsize)
    saved = saves(memory, size, device_facts(device).memory_bytes)
    answer = plan_on(
        *(device, H, dtype),
        batch=batch,
        directions=D,
        training=True in passes,
        impl="triton",
        lengths=lengths,
        resets=resets,
    )
    form = _Form(packed, ragged)
    with torch.no_grad():
        works = [*_forwards(gru, answer.forward, dtype, batch, form, {training and saved for training in passes})]
        if True in passes:
            works += _backwards(gru, answer.backward, dtype, batch, form, rebuilds=not saved)
        seconds = _run(works, device)
    kernels = tuple(Compiled(*work[:3], taken) for work, taken in zip(works, seconds, strict=True))
    return Warmup(clock.perf_counter() - start, kernels)


def _loops(dtype: torch.dtype, learns: bool, ragged: bool) -> Iterator[Compiled]:
    """The loops for CPUs, which serve all sizes: compiled, or read from the cache on disk."""
    from tritongru.llvm.compiling import function_of
    from tritongru.llvm.launch import scalar_of

    kernels = ("forward", *(("backward",) if learns else ()), *(("segments",) if ragged else ()))
    for kernel in kernels:
        start = clock.perf_counter()
        function_of(host_sets()[0], "float" if kernel == "segments" else scalar_of(dtype), kernel)
        yield Compiled("llvm", kernel, (), clock.perf_counter() - start)


def _states(gru: nn.RNNBase, dtype: torch.dtype, batch: int) -> Iterator[_State]:
    """For each layer, without and with hx, what the kernels will receive. Computed and cast weights are new tensors."""
    D, H, device = 2 if gru.bidirectional else 1, gru.hidden_size, next(gru.parameters()).device
    hx = torch.zeros(gru.num_layers * D, batch, H, dtype=dtype, device=device)
    shapes = {"weight_hh": (3 * H, H)} | ({"bias_hh": (3 * H,)} if gru.bias else {})
    new = {name: torch.zeros((D, *shape), dtype=dtype, device=device) for name, shape in shapes.items()}
    for index in range(gru.num_layers):
        found = dict(new)
        for name, shape in shapes.items():
            own = gru._parameters.get(f"{name}_l{index}")
            if D == 1 and own is not None and own.dtype == dtype and own.shape == shape:
                found[name] = own.detach().unsqueeze(0).contiguous()
        for h0 in (None, hx[index * D : (index + 1) * D]):
            yield _State(found["weight_hh"], found.get("bias_hh"), h0)


def _aligned(tensor: Tensor | None) -> bool | None:
    """What Triton specializes a kernel on: None without a tensor, else whether it begins at a multiple of 16 bytes."""
    return None if tensor is None else tensor.data_ptr() % 16 == 0


def _flags(state: _State, form: _Form, **others: bool) -> tuple[str, ...]:
    named = {**form._asdict(), "hx": state.h0 is not None, **others, "unaligned": False in map(_aligned, state)}
    return tuple(name for name, holds in named.items() if holds)


def _forwards(
    gru: nn.RNNBase, found: Pass | None, dtype: torch.dtype, batch: int, form: _Form, save_gates: set[bool]
) -> Iterator[_Work]:
    assert found is not None
    states = {tuple(map(_aligned, state)): state for state in _states(gru, dtype, batch)}
    for state in states.values():
        D, H = state.w_hh.shape[0], state.w_hh.shape[2]
        x, w_ih = state.w_hh.new_empty(batch, 0), state.w_hh.new_empty(D * 3 * H, 0)  # no features, so no product
        for save in sorted(save_gates):
            call = LayerCall(x, Weights(w_ih, state.w_hh, None, state.b_hh), state.h0, form.rows(x))
            flags = _flags(state, form, gates=save)
            yield _Work(found.family, "forward", flags, _call(layer.forward, call, save, found.launch))


def _backwards(
    gru: nn.RNNBase, found: Pass | None, dtype: torch.dtype, batch: int, form: _Form, rebuilds: bool
) -> Iterator[_Work]:
    assert found is not None
    states = [state._replace(b_hh=None) for state in _states(gru, dtype, batch)]  # a backward reads no bias
    for state in {tuple(map(_aligned, state)): state for state in states}.values():
        D, H = state.w_hh.shape[0], state.w_hh.shape[2]
        x, w_ih = state.w_hh.new_empty(batch, 0), state.w_hh.new_empty(D * 3 * H, 0)
        y, gates = x.new_zeros(batch, D, H), x.new_zeros(batch, D, H, 4)
        for dy in (None, y):
            call = LayerCall(x, Weights(w_ih, state.w_hh, None, None), state.h0, form.rows(x))
            arguments = (OutputGradients(dy, None), call, Saved(y, gates), [False] * 7)
            flags = _flags(state, form, dy=dy is not None)
            yield _Work(found.family, "backward", flags, _call(layer.backward, *arguments, found.launch))
    if rebuilds:
        from tritongru.kernels.rebuild import rebuild

        rows = gates.new_zeros(batch, 3 * H)
        yield _Work("rebuild", "backward", (), _call(rebuild, rows, rows, gates, 0, found.launch.dot_precision))


def _call(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    return lambda: function(*arguments)


def _run(works: list[_Work], device: torch.device) -> list[float]:
    """Seconds of each. On a GPU in threads, like Triton's own AsyncCompileMode (3.6 to 3.9): each kernel has its own
    MLIR context, and MLIR's passes, LLVM's code generation and ptxas run without Python's lock."""
    if device.type != "cuda":  # the interpreter patches the language for one launch at a time
        return [_seconds(work) for work in works]
    # All launch into the caller's stream, so one after the other: a kernel whose programs wait for each other never
    # shares the chip with another such kernel, and all memory is returned to the stream it came from.
    stream = torch.cuda.current_stream(device)

    def in_thread(work: _Work) -> float:
        with torch.no_grad(), torch.cuda.device(device), torch.cuda.stream(stream):
            return _seconds(work)

    with torch.cuda.device(device):
        _prepare(works, device)
        with ThreadPoolExecutor(max(1, min(len(works), os.cpu_count() or 1))) as pool:
            seconds = list(pool.map(in_thread, works))
    stream.synchronize()
    return seconds


def _prepare(works: list[_Work], device: torch.device) -> None:
    """Creates what threads must not create concurrently: a kernel's table of compiled forms (of two tables one would be
    lost, with what is in it), and the word in which kernels report."""
    from tritongru.kernels import rebuild
    from tritongru.kernels.persistent import launch as persistent
    from tritongru.kernels.persistent.watchdog import report_of
    from tritongru.kernels.resident import launch as resident
    from tritongru.kernels.stepwise import launch as stepwise

    report_of(device)
    modules = {"persistent": persistent, "resident": resident, "stepwise": stepwise}
    for family, kernel in {(work.family, work.kernel) for work in works}:
        name = f"{family}_{kernel}_kernel"
        function: Any = getattr(modules[family], name) if family in modules else rebuild.rebuild_kernel
        function.device_caches[device.index]


def _seconds(work: _Work) -> float:
    start = clock.perf_counter()
    work.run()
    return clock.perf_counter() - start

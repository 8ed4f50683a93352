"""Which kernel family runs a GRU layer, with which tiles, and what a time step should cost.

``plan`` is a pure function of (shape, dtype, precision, device facts), so every decision can be asked for without the
device. The launches themselves are data: ``kernels/resident.json`` and ``kernels/persistent.json`` list, for each
kernel, kind of arithmetic and padded hidden size, the configurations that compile without spilling, and
``kernels/measured.json`` the shapes for which rows in bench/results say otherwise than the model does.
"""

from __future__ import annotations

import functools
import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from tritongru import candidates, model
from tritongru.candidates import kind_of
from tritongru.devices import AMD_CHIPS, KB, Device, device_facts, is_served
from tritongru.launches import BLOCK_B, Launch, PersistentLaunch, launches, measured, padded, persistent_launches

PRECISIONS = ("tf32", "ieee")
DTYPES = ("float32", "float16", "bfloat16")
MARGIN = 0.05  # by which a kernel must be expected to be faster than torch
LARGEST_BATCH = 1 << 16  # up to which `limits` looks for a batch size that torch should run


@dataclass(frozen=True)
class Plan:
    """The decision for one layer. ``cost`` and ``cost_backward`` are the model's prediction of a step of the time loop,
    not measurements, as is ``torch_us_per_step``; input and weight products outside the loop are not in them."""

    family: str
    reason: str
    device: str
    dtype: str
    precision: str | None = None
    time: int | None = None
    programs: int | None = None
    block_b: int | None = None
    block_h: int | None = None
    num_warps: int | None = None
    shared_bytes: int | None = None
    exchange: str | None = None
    turns: int | None = None
    us_per_step: float | None = None
    us_per_step_backward: float | None = None
    torch_us_per_step: float | None = None
    cost: model.Cost | None = None
    cost_backward: model.Cost | None = None
    forward: Launch | PersistentLaunch | None = None
    backward: Launch | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.family}: {self.reason}"]
        if self.forward is not None:
            lines.append(
                f"  programs {self.programs} of {self.block_b} rows x {self.block_h} hidden units, "
                f"{self.num_warps} warps, {self.shared_bytes} bytes of shared memory each; {self.dtype}"
                + (f", products in {self.precision}" if self.precision else "")
            )
        if self.exchange is not None:
            served = f"{self.turns} batch tile{'s' if self.turns != 1 else ''}"
            lines.append(f"  exchange of the state by {self.exchange}; each program serves {served}")
        for name, cost in (("forward", self.cost), ("backward", self.cost_backward)):
            if cost is not None:
                whole = "" if self.time is None else f", {cost.us * self.time / 1000:.3f} ms for {self.time} steps"
                lines.append(f"  predicted {name} loop: {cost.us:.2f} us a step{whole} (a model, not a measurement)")
                lines.append(f"    {_parts(cost)}")
        if self.torch_us_per_step is not None:
            lines.append(f"  predicted for torch: {self.torch_us_per_step:.2f} us a step (a model, not a measurement)")
        return "\n".join(lines)


def _parts(cost: model.Cost) -> str:
    names = ("exchange", "l2", "tensor", "shared", "issue", "barriers")
    shown = [f"{name} {getattr(cost, name):.2f}" for name in names if getattr(cost, name) > 0]
    return ", ".join(shown) + " (us; tensor, shared and issue overlap)" if cost.exchange else ", ".join(shown)


@functools.lru_cache(maxsize=4096)
def plan(
    hidden: int,
    dtype: str,
    device: Device,
    *,
    batch: int = 1,
    time: int | None = None,
    directions: int = 1,
    precision: str = "tf32",
    training: bool = True,
    impl: str = "auto",
) -> Plan:
    """The plan of one layer.

    Args:
        hidden: hidden size H.
        dtype: ``"float32"``, ``"float16"``, ``"bfloat16"`` or any other torch dtype's name (which no kernel serves).
        device: facts of the device, e.g. ``GPUS["h200"]``.
        batch: batch size B.
        time: time steps T, if known.
        directions: 1, or 2 for a bidirectional layer.
        precision: ``"tf32"`` or ``"ieee"``: how fp32 products are made; 16-bit types ignore it.
        training: whether a backward pass must be possible as well.
        impl: ``"auto"`` gives torch what torch is expected to do faster; ``"triton"`` takes a kernel wherever there is
            one.
    """
    answer = Plan("torch", "", device.name, dtype, precision if dtype == "float32" else None, time)
    if device.backend == "cpu":
        return replace(answer, reason=f"the tensors are on {device.name}, where torch's own GRU runs")
    if not is_served(device):
        served = f"NVIDIA chips from sm_80 on and AMD's {' and '.join(AMD_CHIPS)}"
        return replace(answer, reason=f"the kernels are made for {served}, and {device.name} is {device.arch}")
    if dtype not in DTYPES:
        return replace(answer, reason=f"no kernel computes in {dtype}; convert to one of {', '.join(DTYPES)}")
    kind = kind_of(dtype, precision)
    backward = candidates.smallest(device, "backward", kind, padded(hidden)) if training else None
    options = [
        option
        for option in (
            candidates.resident(device, kind, hidden, batch, directions),
            candidates.persistent(device, kind, hidden, batch, directions),
        )
        if option is not None
    ]
    if not options or (training and backward is None):
        return replace(answer, reason=_too_large("backward" if options else "forward", kind, hidden, dtype, device))
    cost, launch = min(options, key=lambda option: math.inf if option[0] is None else option[0].us)
    bits = 32 if dtype == "float32" else 16
    theirs = model.torch_us(device, hidden, bits, batch, directions)
    answer = replace(answer, torch_us_per_step=theirs)
    refusal = None if impl == "triton" else _slower(device, kind, hidden, batch, time, directions, cost, theirs)
    if refusal is not None and isinstance(launch, PersistentLaunch):
        return replace(answer, reason=refusal, cost=cost)
    kb = 3 * hidden * hidden * bits // 8 / KB
    tiles = math.ceil(batch / launch.block_b)
    answer = replace(
        answer,
        block_b=launch.block_b,
        num_warps=launch.num_warps,
        shared_bytes=launch.shared_bytes,
        cost=cost,
        us_per_step=cost.us if cost else None,
        forward=launch,
        backward=backward,
    )
    if backward is not None:
        cost_backward = candidates.resident_cost(device, backward, batch, directions)
        us = cost_backward.us if cost_backward else None
        answer = replace(answer, cost_backward=cost_backward, us_per_step_backward=us)
    if isinstance(launch, PersistentLaunch):
        return replace(
            answer,
            family="persistent",
            reason=f"W_hh ({kb:.0f} KB) stays on chip, spread over {launch.programs(hidden)} programs for each batch "
            "tile, so one launch runs the whole time loop",
            programs=launch.programs(hidden) * launch.groups * directions,
            block_h=launch.block_h,
            exchange=launch.exchange,
            turns=math.ceil(tiles / launch.groups),
        )
    return replace(
        answer,
        family="resident",
        reason=f"W_hh ({kb:.0f} KB) fits one multiprocessor, so one launch runs the whole time loop",
        programs=tiles * directions,
        block_h=sum(launch.chunks),
    )


def _slower(
    device: Device,
    kind: str,
    hidden: int,
    batch: int,
    time: int | None,
    directions: int,
    cost: model.Cost | None,
    theirs: float | None,
) -> str | None:
    """Why torch is expected to win, if it is."""
    found = measured().get((device.family, kind, hidden, math.ceil(batch / BLOCK_B), directions))
    if found is not None:
        if found.us <= found.torch_us:
            return None
        return f"torch's GRU was measured at {found.torch_us:.2f} us a step on {device.name}, ours at {found.us:.2f}"
    if cost is None or theirs is None:
        return None
    if cost.us > (1 - MARGIN) * theirs:
        return (
            f"no gain is expected with hidden size {hidden} and batch {batch} on {device.name}: torch's GRU should "
            f"take {theirs:.2f} us a step, ours {cost.us:.2f}; impl='triton' runs ours regardless"
        )
    if time is not None and time < shortest(cost.us, theirs):
        return (
            f"with {time} step{'s' if time != 1 else ''} the launches around the time loop cost more than the loop "
            "saves; impl='triton' runs ours regardless"
        )
    return None


def shortest(ours: float, theirs: float) -> int:
    """Steps from which the time saved pays for one more launch (of what clears the exchange)."""
    return 1 if ours >= theirs else math.ceil(model.LAUNCH_US / (theirs - ours))


def _too_large(kernel: str, kind: str, hidden: int, dtype: str, device: Device) -> str:
    resident = max(
        (
            size
            for (backend, name, other, size), rows in launches().items()
            if (backend, name, other) == (device.backend, kernel, kind)
            and any(candidates.fits(row, device) for row in rows)
        ),
        default=0,
    )
    arithmetic = f"{dtype} ({kind})" if dtype == "float32" else dtype
    if kernel == "backward":
        return (
            f"hidden size {hidden} in {arithmetic} has no backward kernel on {device.name}, which goes up to "
            f"{resident}; without gradients (torch.no_grad, eval) the forward kernels run it"
        )
    sizes = {key[2] for key in persistent_launches() if key[:2] == (device.backend, kind)}
    largest = max((size for size in sizes if candidates.persistent_options(device, kind, size, 1, 1)), default=resident)
    return f"hidden size {hidden} in {arithmetic} is too large: the kernels go up to {largest} on {device.name}"


@dataclass(frozen=True)
class Limits:
    """Where ``impl="auto"`` takes a kernel: from ``shortest`` time steps and up to ``largest`` rows of a batch;
    ``reason`` says why torch runs everything else, or, if ``largest`` is 0, everything."""

    reason: str
    shortest: int
    largest: int


@functools.lru_cache(maxsize=1024)
def limits(
    hidden: int, dtype: str, device: Device, *, directions: int = 1, precision: str = "tf32", training: bool = True
) -> Limits:
    """The plan's answers for all batch sizes and lengths at once, so that a compiler may keep both symbolic."""

    def at(batch: int) -> Plan:
        return plan(hidden, dtype, device, batch=batch, directions=directions, precision=precision, training=training)

    steps, largest, tile = 1, 0, 1
    while tile * BLOCK_B <= LARGEST_BATCH:
        answer = at((tile - 1) * BLOCK_B + 1)  # of the batches with so many tiles, the one with the least to gain
        if answer.family == "torch":
            return Limits(answer.reason, steps, largest)
        if answer.family == "persistent" and answer.torch_us_per_step and answer.us_per_step:
            steps = max(steps, shortest(answer.us_per_step, answer.torch_us_per_step))
        largest = tile * BLOCK_B
        tile += 1 if tile < 64 else tile // 8
    return Limits("", steps, 1 << 62)


def plan_on(
    device: torch.device | Device,
    hidden: int,
    dtype: torch.dtype,
    *,
    batch: int = 1,
    time: int | None = None,
    directions: int = 1,
    training: bool = True,
    impl: str = "auto",
) -> Plan:
    """``plan`` for a torch device (or for the facts of one) under torch's present precision switch."""
    return plan(
        hidden,
        str(dtype).removeprefix("torch."),
        device if isinstance(device, Device) else device_facts(device),
        batch=batch,
        time=time,
        directions=directions,
        precision=fp32_precision(),
        training=training,
        impl=impl,
    )


def limits_on(
    device: torch.device | Device, hidden: int, dtype: torch.dtype, *, directions: int = 1, training: bool = True
) -> Limits:
    """``limits`` for a torch device under torch's present precision switch."""
    return limits(
        hidden,
        str(dtype).removeprefix("torch."),
        device if isinstance(device, Device) else device_facts(device),
        directions=directions,
        precision=fp32_precision(),
        training=training,
    )


def fp32_precision() -> str:
    """``"tf32"`` or ``"ieee"``: torch's switch for recurrent layers, ``torch.backends.cudnn.rnn.fp32_precision``."""
    return "tf32" if torch.backends.cudnn.rnn.fp32_precision == "tf32" else "ieee"  # type: ignore[attr-defined]

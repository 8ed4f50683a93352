"""Which kernel family runs a GRU layer, with which tiles, and what a time step should cost.

``plan`` is a pure function of (shape, dtype, precision, device facts), so every decision can be asked for without the
device. The launches themselves are data: ``kernels/launches.json`` lists, for each kernel, kind of arithmetic and
padded hidden size, the launch configurations that compile without spilling, the cheapest first.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import math
import os
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

PRECISIONS = ("tf32", "ieee")
DTYPES = ("float32", "float16", "bfloat16")
BLOCK_B = 16  # rows of a tensor-core tile; a batch tile is one such row block
BARRIER_CYCLES = 30  # assumed cost of one block-wide barrier, not yet measured
SCHEDULERS = 4  # instruction schedulers of a multiprocessor, one instruction a cycle each


@dataclass(frozen=True)
class Device:
    """What the plan needs to know of a device. ``shared_bytes``: most shared memory one program may use (bytes).
    ``clock_mhz``: boost clock, from the vendor's data sheet."""

    name: str
    backend: str  # "cuda", "hip" or "cpu"
    arch: str  # "sm_90", "gfx942", ...
    multiprocessors: int
    shared_bytes: int
    clock_mhz: int


KB = 1024
GPUS = {
    "a100": Device("A100", "cuda", "sm_80", 108, 163 * KB, 1410),
    "rtx3090": Device("RTX 3090", "cuda", "sm_86", 82, 99 * KB, 1695),
    "rtx4090": Device("RTX 4090", "cuda", "sm_89", 128, 99 * KB, 2520),
    "h100": Device("H100", "cuda", "sm_90", 132, 227 * KB, 1980),
    "h200": Device("H200", "cuda", "sm_90", 132, 227 * KB, 1980),
    "b200": Device("B200", "cuda", "sm_100", 148, 227 * KB, 1965),
    "rtx5090": Device("RTX 5090", "cuda", "sm_120", 170, 99 * KB, 2407),
    "mi300x": Device("MI300X", "hip", "gfx942", 304, 64 * KB, 2100),
    "mi355x": Device("MI355X", "hip", "gfx950", 256, 160 * KB, 2400),
}
AMD_CHIPS = ("gfx942", "gfx950")
CPU = Device("the CPU", "cpu", "", 0, 0, 0)


@dataclass(frozen=True)
class Launch:
    """One compiled form of a kernel. ``chunks``: widths into which the hidden units are cut; ``stages``: steps that
    loads run ahead; ``instructions``, ``barriers``: of one time step and warp, read from the machine code for sm_90
    (None where there is no such reading); ``spills_on``: chips on which registers would go to memory."""

    chunks: tuple[int, ...]
    block_b: int
    num_warps: int
    stages: int
    shared_bytes: int
    dot_precision: str
    instructions: int | None = None
    barriers: int | None = None
    spills_on: tuple[str, ...] = ()

    def us_per_step(self, clock_mhz: int) -> float | None:
        """Issue slots of a step at one instruction a cycle and scheduler, plus the assumed cost of its barriers."""
        if self.instructions is None or self.barriers is None or clock_mhz <= 0:
            return None
        cycles = self.instructions * max(1.0, self.num_warps / SCHEDULERS) + BARRIER_CYCLES * self.barriers
        return cycles / clock_mhz


@dataclass(frozen=True)
class Plan:
    """The decision for one layer. ``us_per_step`` and ``us_per_step_backward`` are the model's prediction of the time
    loop, not measurements; input and weight products outside the loop are not in them."""

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
    us_per_step: float | None = None
    us_per_step_backward: float | None = None
    forward: Launch | None = None
    backward: Launch | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        if self.forward is None:
            return f"{self.family}: {self.reason}"
        lines = [
            f"{self.family}: {self.reason}",
            f"  programs {self.programs} of {self.block_b} rows x {self.block_h} hidden units, {self.num_warps} warps, "
            f"{self.shared_bytes} bytes of shared memory each; {self.dtype}"
            + (f", products in {self.precision}" if self.precision else ""),
        ]
        for name, us in (("forward", self.us_per_step), ("backward", self.us_per_step_backward)):
            if us is not None:
                whole = "" if self.time is None else f", {us * self.time / 1000:.3f} ms for {self.time} steps"
                lines.append(f"  predicted {name} loop: {us:.2f} us a step{whole} (a model, not a measurement)")
        return "\n".join(lines)


@functools.cache
def launches() -> dict[tuple[str, str, str, int], tuple[Launch, ...]]:
    """(backend, kernel, kind, padded hidden size) -> configurations, the cheapest first."""
    table: dict[tuple[str, str, str, int], list[Launch]] = {}
    for row in json.loads(importlib.resources.files("tritongru.kernels").joinpath("launches.json").read_text()):
        key = (row["backend"], row["kernel"], row["kind"], row["hidden"])
        table.setdefault(key, []).append(
            Launch(
                tuple(row["chunks"]),
                BLOCK_B,
                row["num_warps"],
                row["stages"],
                row["shared_bytes"],
                dot_precision(row["backend"], row["kind"]),
                row["instructions"],
                row["barriers"],
                tuple(row["spills_on"]),
            )
        )
    return {key: tuple(rows) for key, rows in table.items()}


def kind_of(dtype: str, precision: str) -> str:
    """Kernels differ by element size and by how fp32 products are made, not by which 16-bit type it is."""
    return precision if dtype == "float32" else "16-bit"


def dot_precision(backend: str, kind: str) -> str:
    """The ``input_precision`` of the kernel's products. IEEE is reached on NVIDIA's tensor cores by three TF32
    products (error near 2^-22); AMD's matrix cores take fp32 as it is."""
    if backend == "hip":
        return "ieee"
    return "tf32x3" if kind == "ieee" else "tf32"


def padded(hidden: int) -> int:
    """Hidden units that a kernel works on: a multiple of 16, and 32 at least."""
    return max(32, math.ceil(hidden / 16) * 16)


def chunks_of(hidden: int) -> tuple[int, ...]:
    """A padded hidden size as a sum of powers of two, the widest first."""
    return tuple(width for width in (256, 128, 64, 32, 16) if hidden & width)


@functools.lru_cache(maxsize=1024)
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
) -> Plan:
    """The plan of one layer.

    Args:
        hidden: hidden size H.
        dtype: ``"float32"``, ``"float16"``, ``"bfloat16"`` or any other torch dtype's name (which no kernel serves).
        device: facts of the device, e.g. ``GPUS["h200"]``.
        batch: batch size B.
        time: time steps T, if known; it plays no part in the decision.
        directions: 1, or 2 for a bidirectional layer.
        precision: ``"tf32"`` or ``"ieee"``: how fp32 products are made; 16-bit types ignore it.
        training: whether a backward pass must be possible as well.
    """
    answer = Plan("torch", "", device.name, dtype, precision if dtype == "float32" else None, time)
    if device.backend == "cpu":
        return replace(answer, reason=f"the tensors are on {device.name}, where torch's own GRU runs")
    if not _is_served(device):
        served = f"NVIDIA chips from sm_80 on and AMD's {' and '.join(AMD_CHIPS)}"
        return replace(answer, reason=f"the kernels are made for {served}, and {device.name} is {device.arch}")
    if dtype not in DTYPES:
        return replace(answer, reason=f"no kernel computes in {dtype}; convert to one of {', '.join(DTYPES)}")
    kind = kind_of(dtype, precision)
    found: list[Launch | None] = []
    for kernel in ("forward", "backward") if training else ("forward",):
        found.append(_smallest(device, kernel, kind, padded(hidden)))
        if found[-1] is None:
            return replace(answer, reason=_too_large(kernel, kind, hidden, dtype, device))
    forward, backward = found[0], found[1] if training else None
    assert forward is not None
    tiles = math.ceil(batch / forward.block_b) * directions
    waves = max(1, math.ceil(tiles / device.multiprocessors))
    kb = 3 * hidden * hidden * (4 if dtype == "float32" else 2) / KB
    us = forward.us_per_step(device.clock_mhz)
    us_backward = backward.us_per_step(device.clock_mhz) if backward else None
    return replace(
        answer,
        family="resident",
        reason=f"W_hh ({kb:.0f} KB) fits one multiprocessor, so one launch runs the whole time loop",
        programs=tiles,
        block_b=forward.block_b,
        block_h=sum(forward.chunks),
        num_warps=forward.num_warps,
        shared_bytes=forward.shared_bytes,
        us_per_step=None if us is None else us * waves,
        us_per_step_backward=None if us_backward is None else us_backward * waves,
        forward=forward,
        backward=backward,
    )


def _is_served(device: Device) -> bool:
    """Whether the compile matrix covers the chip: older tensor cores know neither bfloat16 nor asynchronous copies."""
    if device.backend == "hip":
        return device.arch in AMD_CHIPS
    return int(device.arch.removeprefix("sm_")) >= 80


def _smallest(device: Device, kernel: str, kind: str, size: int) -> Launch | None:
    """The configuration of the smallest size, from ``size`` on, that fits the device: a few sizes have none of their
    own, because every form of theirs spills registers."""
    sizes = sorted(key[3] for key in launches() if key[:3] == (device.backend, kernel, kind) and key[3] >= size)
    rows = (row for size in sizes for row in launches()[device.backend, kernel, kind, size])
    return next((row for row in rows if _fits(row, device)), None)


def _fits(launch: Launch, device: Device) -> bool:
    return launch.shared_bytes <= device.shared_bytes and device.arch not in launch.spills_on


def _too_large(kernel: str, kind: str, hidden: int, dtype: str, device: Device) -> str:
    limit = max(
        (
            size
            for (backend, name, other, size), rows in launches().items()
            if (backend, name, other) == (device.backend, kernel, kind) and any(_fits(row, device) for row in rows)
        ),
        default=0,
    )
    arithmetic = f"{dtype} ({kind})" if dtype == "float32" else dtype
    return (
        f"hidden size {hidden} in {arithmetic} does not fit one multiprocessor: "
        f"the {kernel} kernel goes up to {limit} on {device.name}"
    )


def plan_on(
    device: torch.device | Device,
    hidden: int,
    dtype: torch.dtype,
    *,
    batch: int = 1,
    time: int | None = None,
    directions: int = 1,
    training: bool = True,
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
    )


def fp32_precision() -> str:
    """``"tf32"`` or ``"ieee"``: torch's switch for recurrent layers, ``torch.backends.cudnn.rnn.fp32_precision``."""
    return "tf32" if torch.backends.cudnn.rnn.fp32_precision == "tf32" else "ieee"  # type: ignore[attr-defined]


def device_facts(device: torch.device) -> Device:
    """Facts of a torch device; with TRITON_INTERPRET=1 the CPU stands in for an H200, whose kernels it then runs."""
    if device.type == "cuda":
        return _cuda_facts(torch.cuda.current_device() if device.index is None else device.index)
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return replace(GPUS["h200"], name="Triton's interpreter (as an H200)")
    return CPU if device.type == "cpu" else replace(CPU, name=device.type)


@functools.cache
def _cuda_facts(index: int) -> Device:
    found = torch.cuda.get_device_properties(index)
    hip = torch.version.hip is not None
    arch = found.gcnArchName.split(":")[0] if hip else f"sm_{found.major}{found.minor}"
    listed = next((gpu for gpu in GPUS.values() if gpu.arch == arch), None)
    return Device(
        found.name,
        "hip" if hip else "cuda",
        arch,
        found.multi_processor_count,
        found.shared_memory_per_block if hip else found.shared_memory_per_block_optin,  # type: ignore[attr-defined]
        listed.clock_mhz if listed else 0,
    )

"""Which kernel family runs a GRU layer, with which tiles, and what a time step should cost.

``plan`` is a pure function of (shape, dtype, precision, device facts), so it needs no device. The launches themselves
are data: ``tables/resident.json``, ``persistent.json`` and ``stepwise.json`` list, for each kernel, kind of arithmetic
and padded hidden size, the configurations that compile without spilling, and ``tables/measured.json`` the shapes for
which measurements in bench/results disagree with the model.
"""

from __future__ import annotations

import functools
import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from tritongru.planning import candidates, cost_model, cpu_plan
from tritongru.planning.candidates import kind_of
from tritongru.planning.devices import AMD_CHIPS, CPU, KB, RUN_ON, Device, device_facts, is_served
from tritongru.planning.launches import (
    BLOCK_B,
    AnyLaunch,
    Launch,
    PersistentLaunch,
    Shape,
    launches,
    measured,
    shape_of,
)
from tritongru.planning.memory import Memory, memory_of
from tritongru.planning.plan_text import MODEL, NEVER_RUN, RUN, words

PRECISIONS = ("tf32", "ieee")
DTYPES = ("float32", "float16", "bfloat16")
MARGIN = 0.05  # by which a kernel must be expected to be faster than torch
STEP_BY_STEP = "with resets torch's GRU runs one time step at a time, and the cost model has no figures for that"
STEPWISE_MARGIN = 0.5  # the same for one launch per step, where most of the model's constants are assumed
LARGEST_BATCH = 1 << 16  # up to here `limits` looks for a batch size that torch should run


@dataclass(frozen=True)
class Pass:
    """How the time loop of one pass, forward or backward, runs.

    Attributes:
        family: "resident", "persistent" or "stepwise".
        launch: the configuration of the kernel.
        programs: programs of a launch.
        turns: batch tiles that each program serves one after the other.
        cost: the model's prediction for a step, without the products outside the loop; not a measurement.
    """

    family: str
    launch: AnyLaunch
    programs: int
    turns: int
    cost: cost_model.Cost | None

    @property
    def us_per_step(self) -> float | None:
        """Predicted microseconds per step."""
        return None if self.cost is None else self.cost.us


@dataclass(frozen=True)
class Plan:
    """The decision for one layer. ``str(plan)`` shows it in words.

    Attributes:
        family: "resident", "persistent", "stepwise", "llvm" (the compiled loop for CPUs) or "torch".
        reason: the reason in words.
        device: name of the device.
        dtype: name of the dtype.
        precision: "tf32" or "ieee" for fp32 products on a GPU, else None.
        time: time steps T, if known.
        forward: forward pass, or None if torch or a CPU runs it.
        backward: backward pass, likewise.
        considered: the passes that were considered if torch runs the layer.
        torch_us_per_step: predicted microseconds per step of torch's forward pass; backward is taken as the same.
        torch_unknown: why ``torch_us_per_step`` is None, if the model has no figures.
        memory: memory of the layers, if the sizes are known.
        loop: the compiled loop on a CPU.
        kernels: "run" if compiled GPU kernels for this chip have ever been executed, else "compiled, never run"; None
            if no GPU kernel runs the layer.
        lengths: whether the plan is for calls with lengths.
        resets: likewise with resets.
        batches: the smallest and the largest batch, around the one asked about and up to 4096, that run the same
            compiled GPU kernels, if ``explain`` was asked; given the products of the input, a sequence has the same
            bits in all of them.
    """

    family: str
    reason: str
    device: str
    dtype: str
    precision: str | None = None
    time: int | None = None
    forward: Pass | None = None
    backward: Pass | None = None
    considered: tuple[Pass, ...] = ()
    torch_us_per_step: float | None = None
    torch_unknown: str = ""
    memory: Memory | None = None
    loop: cpu_plan.Loop | None = None
    kernels: str | None = None
    lengths: bool = False
    resets: bool = False
    batches: tuple[int, int] | None = None

    def as_dict(self) -> dict[str, Any]:
        """The plan as a dictionary that JSON can represent."""
        return asdict(self) | {
            "us_per_step": self.us_per_step,
            "expected_ratio_forward": self.expected_ratio_forward,
            "expected_ratio": self.expected_ratio,
            "note": f"us_per_step, torch_us_per_step and the expected ratios are {MODEL}",
        }

    @property
    def passes(self) -> tuple[Pass, ...]:
        """The passes that run or, if torch runs, would have run: forward first."""
        return tuple(found for found in (self.forward, self.backward) if found) or self.considered

    @property
    def us_per_step(self) -> float | None:
        """Predicted microseconds per step of all passes together."""
        return _us(tuple(found for found in (self.forward, self.backward) if found))

    @property
    def expected_ratio(self) -> float | None:
        """Torch's time over this kernel's for all ``passes``, time loops only: a model, not a measurement. None if the
        model has no figures for one of the two."""
        return self._ratio(self.passes)

    @property
    def expected_ratio_forward(self) -> float | None:
        """The same for the forward pass."""
        return self._ratio(self.passes[:1])

    def _ratio(self, passes: tuple[Pass, ...]) -> float | None:
        ours, theirs = _us(passes), self.torch_us_per_step
        return None if ours is None or theirs is None else len(passes) * theirs / ours

    def __str__(self) -> str:
        return words(self)


def _us(passes: tuple[Pass, ...]) -> float | None:
    times = [found.us_per_step for found in passes]
    return None if not times or None in times else sum(us for us in times if us is not None)


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
    inputs: int | None = None,
    layers: int = 1,
    memory: str = "auto",
    lengths: bool = False,
    resets: bool = False,
) -> Plan:
    """The plan of one layer or, with ``inputs``, of a stack of layers including its memory.

    Args:
        hidden: hidden size H.
        dtype: name of a torch dtype; kernels support ``"float32"``, ``"float16"`` and ``"bfloat16"``, and on CPUs
            ``"float64"``.
        device: facts about the device, e.g. ``GPUS["h200"]``.
        batch: batch size B.
        time: time steps T, if known.
        directions: 1, or 2 for a bidirectional layer.
        precision: ``"tf32"`` or ``"ieee"``: precision of fp32 products; 16-bit types ignore it.
        training: whether a backward pass is needed as well.
        impl: ``"auto"`` uses torch where it is expected to be faster; ``"triton"`` uses a kernel wherever there is one.
        inputs: input features I of the first layer; only memory depends on it.
        layers: stacked layers L, likewise.
        memory: ``"auto"``, ``"save"`` or ``"recompute"``, as in `tritongru.gru`.
        lengths: whether calls have lengths, for which a kernel has a form of its own.
        resets: whether calls have resets, for which it is the same form; torch's GRU has none, so ``"auto"`` uses it
            only where nothing else runs.

    Returns:
        The plan.
    """
    precise = precision if dtype == "float32" else None
    answer = Plan("torch", "", device.name, dtype, precise, time, lengths=lengths, resets=resets)
    if device.backend == "cpu":
        sizes = {"T": time or 1, "B": batch, "I": inputs or hidden, "H": hidden}
        several = {"layers": layers, "directions": directions}
        return _on_cpu(answer, device, sizes, several, training, impl, memory if inputs is not None else None)
    if not is_served(device):
        served = f"NVIDIA chips from sm_80 on and AMD's {' and '.join(AMD_CHIPS)}"
        return replace(answer, reason=f"the kernels support {served}, but {device.name} is {device.arch}")
    if dtype not in DTYPES:
        return replace(answer, reason=f"the kernels do not support {dtype}; convert to one of {', '.join(DTYPES)}")
    kind = kind_of(dtype, precision)
    ragged = lengths or resets
    forward = _pass(device, "forward", kind, hidden, batch, directions, ragged)
    backward = _pass(device, "backward", kind, hidden, batch, directions, ragged) if training else None
    if forward is None or (training and backward is None):
        kernel = "backward" if forward else "forward"
        return replace(answer, reason=_too_large(kernel, kind, hidden, dtype, device, ragged))
    bits = 32 if dtype == "float32" else 16
    theirs, unknown = None, STEP_BY_STEP
    if not resets:
        theirs = cost_model.torch_us(device, hidden, bits, batch, directions, tensor_cores=kind != "ieee")
        unknown = cost_model.torch_unknown(device, hidden)
    passes = (forward,) if backward is None else (forward, backward)
    answer = replace(answer, torch_us_per_step=theirs, torch_unknown=unknown)
    if impl == "auto" and not resets and any(found.family != "resident" for found in passes):
        refusal = _slower(device, kind, hidden, batch, time, directions, passes, theirs)
        if refusal is not None:
            return replace(answer, reason=refusal, considered=passes)
    kb = 3 * hidden * hidden * bits // 8 / KB
    weights = f"the recurrent weights W_hh ({kb:.0f} KB)"
    reason = {
        "resident": f"{weights} fit on one multiprocessor, so one launch runs the whole time loop",
        "persistent": f"{weights} stay on chip, spread over several programs for each batch tile, so one launch runs "
        "the whole time loop",
        "stepwise": f"{weights} do not fit on the chip with batch {batch}, so each time step is one launch that reads "
        "them again",
    }
    if inputs is not None and time is not None:
        sizes = {"layers": layers, "directions": directions, "itemsize": bits // 8}
        needed = memory_of(
            time, batch, inputs, hidden, **sizes, memory=memory, device_bytes=device.memory_bytes, learns=training
        )
        answer = replace(answer, memory=needed)
    return replace(
        answer,
        family=forward.family,
        reason=reason[forward.family],
        forward=forward,
        backward=backward,
        kernels=RUN if device.family in RUN_ON else NEVER_RUN,
    )


def _on_cpu(
    answer: Plan,
    device: Device,
    sizes: dict[str, int],  # T, B, I and H
    several: dict[str, int],  # layers and directions
    training: bool,
    impl: str,
    memory: str | None,  # None: not requested
) -> Plan:
    if impl == "triton":
        return replace(answer, reason=f"the tensors are on {device.name}, but the Triton kernels need a GPU")
    if not device.arch and device.name != CPU.name:
        return replace(answer, reason=f"the tensors are on {device.name}, where torch's own GRU runs")
    refusal = cpu_plan.refusal_of(device.arch, answer.dtype)
    if refusal:
        return replace(answer, reason=refusal)
    if impl == "auto" and answer.time is not None and not answer.resets:
        shape = sizes["H"], training, sizes["T"], sizes["B"]
        refusal = cpu_plan.refusal_by_size(device.arch, *shape, device.multiprocessors)
        if refusal:
            return replace(answer, reason=f"{refusal}; impl='llvm' runs the compiled loop anyway")
    threads, itemsize = device.multiprocessors, 8 if answer.dtype == "float64" else 4
    loop = cpu_plan.loop_of(device.arch, **sizes, threads=threads, itemsize=itemsize, training=training, **several)
    if memory is not None:
        of_stack = {"itemsize": itemsize, "threads": threads, "device_bytes": device.memory_bytes, **several}
        needed = cpu_plan.memory_on_cpu(device.arch, **sizes, **of_stack, memory=memory, learns=training)
        answer = replace(answer, memory=needed)
    reason = "one compiled function runs the whole time loop, its products and gates"
    return replace(answer, family="llvm", reason=reason, precision=None, loop=loop)


def _pass(
    device: Device, kernel: str, kind: str, hidden: int, batch: int, directions: int, ragged: bool
) -> Pass | None:
    """The cheapest configuration by the model, or the measured best."""
    found = measured().get(
        ("forward" if kernel == "forward" else "train", _shape(device, kind, hidden, batch, directions))
    )
    asked = None if found is None else found.launch
    option = candidates.cheapest(device, kernel, kind, hidden, batch, directions, asked, ragged)
    if option is None:
        return None
    cost, launch = option
    tiles = math.ceil(batch / launch.block_b)
    if isinstance(launch, PersistentLaunch):
        programs = launch.programs(hidden) * launch.groups * directions
        return Pass("persistent", launch, programs, math.ceil(tiles / launch.groups), cost)
    if isinstance(launch, Launch):
        return Pass("resident", launch, tiles * directions, 1, cost)
    return Pass("stepwise", launch, tiles * math.ceil(hidden / launch.block_h) * directions, 1, cost)


def _shape(device: Device, kind: str, hidden: int, batch: int, directions: int) -> Shape:
    return shape_of(device.family, kind, hidden, batch, directions)


def _slower(
    device: Device,
    kind: str,
    hidden: int,
    batch: int,
    time: int | None,
    directions: int,
    passes: tuple[Pass, ...],
    theirs: float | None,
) -> str | None:
    """Why torch is expected to win, if it is."""
    step = "per step" if len(passes) == 1 else "per step of forward and backward"
    found = measured().get(
        ("forward" if len(passes) == 1 else "train", _shape(device, kind, hidden, batch, directions))
    )
    if found is not None:
        if found.us <= found.torch_us:
            return None
        measured_us = f"{found.torch_us:.2f} us {step} on {device.name}, the kernel at {found.us:.2f} us"
        return f"torch's GRU was measured at {measured_us}"
    ours = _us(passes)
    if ours is None or theirs is None:
        return None
    theirs *= len(passes)
    if any(found.family == "stepwise" for found in passes) and (1 - STEPWISE_MARGIN) * theirs < ours < theirs:
        return (
            f"hidden size {hidden} with batch {batch} needs one launch per step on {device.name}, and the predicted "
            f"gain ({ours:.2f} us {step}, torch's GRU {theirs:.2f} us) is too uncertain; impl='triton' runs the kernel "
            "anyway"
        )
    if ours > (1 - MARGIN) * theirs:
        return (
            f"no gain is expected with hidden size {hidden} and batch {batch} on {device.name}: torch's GRU should "
            f"take {theirs:.2f} us {step}, the kernel {ours:.2f} us; impl='triton' runs the kernel anyway"
        )
    if time is not None and time < shortest(ours, theirs, len(passes)):
        return (
            f"with {time} time step{'s' if time != 1 else ''}, launches around the loop cost more than the loop saves; "
            "impl='triton' runs the kernel anyway"
        )
    return None


def shortest(ours: float, theirs: float, passes: int = 1) -> int:
    """Steps from which on the time saved pays for one more launch per pass (which clears the exchange)."""
    return 1 if ours >= theirs else math.ceil(passes * cost_model.LAUNCH_US / (theirs - ours))


def _too_large(kernel: str, kind: str, hidden: int, dtype: str, device: Device, ragged: bool) -> str:
    sizes = (
        size
        for (backend, name, other, size), rows in (launches(ragged=True) if ragged else launches()).items()
        if (backend, name, other) == (device.backend, kernel, kind)
        and any(candidates.fits(row, device) for row in rows)
    )
    arithmetic = f"{dtype} ({kind})" if dtype == "float32" else dtype
    hint = "" if kernel == "forward" else "; without gradients (torch.no_grad, eval) the forward kernels run it"
    what = f"{kernel} kernel for lengths and resets" if ragged else f"{kernel} kernel"
    return (
        f"hidden size {hidden} in {arithmetic} has no {what} on {device.name}, where the largest is "
        f"{max(sizes, default=0)}{hint}"
    )


@dataclass(frozen=True)
class Limits:
    """Where ``impl="auto"`` uses a kernel: from ``shortest`` time steps on and up to batch size ``largest``.
    ``reason``: why torch runs the rest or, if ``largest`` is 0, everything."""

    reason: str
    shortest: int
    largest: int


@functools.lru_cache(maxsize=1024)
def limits(
    hidden: int, dtype: str, device: Device, *, directions: int = 1, precision: str = "tf32", training: bool = True
) -> Limits:
    """The plan's decisions for all batch sizes and lengths at once, so that a compiler may keep both symbolic."""

    def at(batch: int) -> Plan:
        return plan(hidden, dtype, device, batch=batch, directions=directions, precision=precision, training=training)

    steps, largest, tile = 1, 0, 1
    while tile * BLOCK_B <= LARGEST_BATCH:
        answer = at((tile - 1) * BLOCK_B + 1)  # of the batches with so many tiles, the one with the least to gain
        if answer.family == "torch":
            return Limits(answer.reason, steps, largest)
        passes = 1 + training
        if answer.family != "resident" and answer.torch_us_per_step and answer.us_per_step:
            steps = max(steps, shortest(answer.us_per_step, passes * answer.torch_us_per_step, passes))
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
    inputs: int | None = None,
    layers: int = 1,
    memory: str = "auto",
    lengths: bool = False,
    resets: bool = False,
) -> Plan:
    """``plan`` for a torch device (or for facts about one) under torch's current precision setting."""
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
        inputs=inputs,
        layers=layers,
        memory=memory,
        lengths=lengths,
        resets=resets,
    )


def limits_on(
    device: torch.device | Device, hidden: int, dtype: torch.dtype, *, directions: int = 1, training: bool = True
) -> Limits:
    """``limits`` for a torch device under torch's current precision setting."""
    return limits(
        hidden,
        str(dtype).removeprefix("torch."),
        device if isinstance(device, Device) else device_facts(device),
        directions=directions,
        precision=fp32_precision(),
        training=training,
    )


def precision_of(dtype: torch.dtype) -> str:
    """What a cached plan depends on besides its arguments: the precision setting, which matters for fp32 only."""
    return fp32_precision() if dtype == torch.float32 else ""


def fp32_precision() -> str:
    """``"tf32"`` or ``"ieee"``: torch's setting for recurrent layers, ``torch.backends.cudnn.rnn.fp32_precision``."""
    return "tf32" if torch.backends.cudnn.rnn.fp32_precision == "tf32" else "ieee"  # type: ignore[attr-defined]

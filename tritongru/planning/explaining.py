"""``explain``: the plan of a module's layers, without a call, and which batch sizes run the same compiled kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from tritongru.planning.devices import GPUS, Device, check_flag, check_sizes, cpu_facts, find_gpu
from tritongru.planning.launches import BLOCK_B, PersistentLaunch
from tritongru.planning.plan import Pass, Plan, plan_on

MOST = 4096  # sequences up to which every batch is looked at


def explain(
    gru: nn.RNNBase,
    *,
    batch: int = 1,
    time: int = 1,
    device: torch.device | str | Device | None = None,
    lengths: bool = False,
    resets: bool = False,
) -> Plan:
    """Explain how a module would run: kernel family and tiles of each pass, predicted time per step, comparison with
    torch's own GRU, and memory. The times come from a model, not from measurements.

    Args:
        gru: a `tritongru.GRU`. Its dtype and training mode matter.
        batch: batch size B.
        time: time steps T; ``python -m tritongru explain`` takes 512 unless told otherwise.
        device: the name of a GPU in ``tritongru.plan.GPUS``, e.g. ``"h200"`` (case is ignored), a torch device, or a
            ``Device``. None is the module's own device.
        lengths: whether calls pass ``lengths``.
        resets: whether calls pass ``resets``.

    Returns:
        The plan; ``print(plan)`` shows it in words.

    Raises:
        TypeError: if the module is not a GRU, batch or time is not a whole number, or lengths or resets is not a bool.
        ValueError: if batch or time is below 1 or more than a GPU could hold, or if the device does not exist.

    Examples:
        >>> import torch, tritongru
        >>> gru = tritongru.GRU(64, 128, dtype=torch.float16)
        >>> tritongru.explain(gru, batch=64, time=512, device="h200").family
        'resident'
    """
    if getattr(gru, "mode", None) != "GRU":  # a plan for an LSTM's or a cell's sizes would be wrong
        raise TypeError(
            f"gru should be a tritongru.GRU or a torch.nn.GRU, got {type(gru).__name__}; the command inspect explains "
            "every layer of a model"
        )
    directions = 2 if gru.bidirectional else 1
    sizes = check_sizes(
        directions, hidden=gru.hidden_size, inputs=gru.input_size, batch=batch, time=time, layers=gru.num_layers
    )
    weight = next(gru.parameters())
    where = _place(weight.device if device is None else device)
    impl = getattr(gru, "impl", "auto")
    lengths, resets = check_flag("lengths", lengths), check_flag("resets", resets)
    if impl == "torch":
        name = where.name if isinstance(where, Device) else str(where)
        dtype = str(weight.dtype).removeprefix("torch.")
        return Plan("torch", "impl='torch' was requested", name, dtype, lengths=lengths, resets=resets)
    if impl != "triton" and isinstance(where, torch.device) and where.type == "cpu":
        where = cpu_facts()  # the interpreter serves impl="triton" alone
    batch = sizes.pop("batch")

    def at(batch: int) -> Plan:
        return plan_on(
            where,
            dtype=weight.dtype,
            directions=directions,
            training=gru.training,
            impl=impl,
            memory=getattr(gru, "memory", "auto"),
            batch=batch,
            lengths=lengths,
            resets=resets,
            **sizes,
        )

    return with_batches(at, batch)


def _place(device: torch.device | str | Device) -> torch.device | Device:
    if isinstance(device, Device):
        return device
    known = f"the known GPUs are {', '.join(GPUS)}"
    if isinstance(device, str) and (gpu := find_gpu(device)):
        return gpu
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError, ValueError):
        raise ValueError(f"device {device!r} is neither a known GPU nor a torch device; {known}") from None
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if place.type == "cuda" and (place.index or 0) >= count:
        here = f"only {count} GPU{'s' if count != 1 else ''}" if count else "no GPU"
        raise ValueError(f"torch sees {here} here, got device {str(place)!r}; for another machine, {known}")
    return place


def with_batches(at: Callable[[int], Plan], batch: int) -> Plan:
    """The plan for a batch, and the batches around it, of at most ``MOST`` sequences, for which the plan has the same
    kernels."""
    answer = at(batch)
    if answer.forward is None or batch > MOST:
        return answer
    own, tile = _forms(answer), -(-batch // BLOCK_B)
    low = high = tile
    while low > 1 and _forms(at((low - 1) * BLOCK_B)) == own:
        low -= 1
    while high * BLOCK_B < MOST and _forms(at((high + 1) * BLOCK_B)) == own:
        high += 1
    return replace(answer, batches=((low - 1) * BLOCK_B + 1, high * BLOCK_B))


def _forms(plan: Plan) -> tuple[Any, ...]:
    return tuple(_form(found) for found in (plan.forward, plan.backward))


def _form(found: Pass | None) -> Any:
    launch = None if found is None else found.launch
    return replace(launch, groups=1) if isinstance(launch, PersistentLaunch) else launch

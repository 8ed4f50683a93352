"""``explain``: the plan of a module's layers, for whoever asks before a call."""

from __future__ import annotations

import torch
from torch import nn

from tritongru.planning.devices import GPUS, Device, check_sizes, cpu_facts, find_gpu
from tritongru.planning.plan import Plan, plan_on


def explain(
    gru: nn.RNNBase, *, batch: int = 1, time: int = 1, device: torch.device | str | Device | None = None
) -> Plan:
    """The plan of a module's layers: which kernel family runs each pass, with which tiles, what a step should cost, how
    that compares with torch's own GRU, and the memory that it needs. Its times are a model's, not measured.

    Args:
        gru: a :class:`GRU`. Its dtype, and whether it is in training mode, count.
        batch: batch size B.
        time: time steps T.
        device: the name of a GPU in ``tritongru.plan.GPUS``, e.g. ``"h200"``, in whatever case; else a torch device
            or the facts of one. None is the module's own.

    Raises:
        TypeError: if the module is no GRU, or if batch or time is not a whole number.
        ValueError: if batch or time is below 1 or beyond what a GPU could hold, or if there is no such device.
    """
    if getattr(gru, "mode", None) != "GRU":  # a plan of an LSTM's or a cell's sizes would be about something else
        raise TypeError(f"gru should be a tritongru.GRU, got {type(gru).__name__}; give such a layer")
    directions = 2 if gru.bidirectional else 1
    sizes = check_sizes(
        directions, hidden=gru.hidden_size, inputs=gru.input_size, batch=batch, time=time, layers=gru.num_layers
    )
    weight = next(gru.parameters())
    where = _place(weight.device if device is None else device)
    impl = getattr(gru, "impl", "auto")
    if impl == "torch":
        name = where.name if isinstance(where, Device) else str(where)
        return Plan("torch", "impl='torch' was asked for", name, str(weight.dtype).removeprefix("torch."))
    if impl != "triton" and isinstance(where, torch.device) and where.type == "cpu":
        where = cpu_facts()  # the interpreter serves impl="triton" alone
    return plan_on(
        where,
        dtype=weight.dtype,
        directions=directions,
        training=gru.training,
        impl=impl,
        memory=getattr(gru, "memory", "auto"),
        **sizes,
    )


def _place(device: torch.device | str | Device) -> torch.device | Device:
    if isinstance(device, Device):
        return device
    known = f"the known GPUs are {', '.join(GPUS)}"
    if isinstance(device, str) and (gpu := find_gpu(device)):
        return gpu
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError, ValueError):
        raise ValueError(f"device {device!r} is neither a known GPU nor a device of torch; {known}") from None
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if place.type == "cuda" and (place.index or 0) >= count:
        here = f"only {count} GPU{'s' if count != 1 else ''}" if count else "no GPU"
        raise ValueError(f"torch sees {here} here, got device {str(place)!r}; to ask about another machine, {known}")
    return place

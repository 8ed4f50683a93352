"""``explain``: the plan of a module's layers, for whoever asks before a call."""

from __future__ import annotations

import torch
from torch import nn

from tritongru.devices import CPU, Device
from tritongru.plan import Plan, plan_on


def explain(
    gru: nn.RNNBase, *, batch: int = 1, time: int = 1, device: torch.device | str | Device | None = None
) -> Plan:
    """The plan of a module's layers: which kernel family runs each pass, with which tiles, what a step should cost, and
    the memory that it needs.

    Args:
        gru: a :class:`GRU`. Its dtype, and whether it is in training mode, count.
        batch: batch size B.
        time: time steps T.
        device: a torch device or the facts of one, e.g. ``tritongru.plan.GPUS["h200"]``; None is the module's own.

    Raises:
        ValueError: if batch or time is below 1.
    """
    for name, value in (("batch", batch), ("time", time)):
        if value < 1:
            raise ValueError(f"{name} should be at least 1, got {value}")
    weight = next(gru.parameters())
    where = weight.device if device is None else torch.device(device) if isinstance(device, str) else device
    impl = getattr(gru, "impl", "auto")
    if impl == "torch":
        return Plan("torch", "impl='torch' was asked for", str(where), str(weight.dtype).removeprefix("torch."))
    if impl == "auto" and isinstance(where, torch.device) and where.type == "cpu":
        where = CPU  # the interpreter serves impl="triton" alone
    return plan_on(
        where,
        gru.hidden_size,
        weight.dtype,
        batch=batch,
        time=time,
        directions=2 if gru.bidirectional else 1,
        training=gru.training,
        impl=impl,
        inputs=gru.input_size,
        layers=gru.num_layers,
        memory=getattr(gru, "memory", "auto"),
    )

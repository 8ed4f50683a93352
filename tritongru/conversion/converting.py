"""``convert``: torch's GRUs of a model become ours, or ours torch's, in place.

A converted layer stays the same object and changes its class, which both sides allow because they keep the same
parameters under the same names. So whatever holds the layer, one of its parameters or a hook goes on working: parents,
optimizers, DDP and FSDP, compiled models, aliases.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from tritongru.arguments.checks import check_flags
from tritongru.conversion.finding import TORCHS, decide
from tritongru.conversion.report import Report

OPTIONS = ("impl", "memory")  # of ours, which torch's classes do not have


def convert(
    model: nn.Module, *, names: Iterable[str] | None = None, as_torch_type: bool = False, back: bool = False
) -> Report:
    """Convert every `torch.nn.GRU` and `torch.nn.GRUCell` of a model to ours in place, or back.

    The layers remain the same objects and keep everything they have: parameters, buffers, hooks, dtype, device and
    training mode. Optimizers and wrappers (DDP, FSDP, torch.compile) may have been made before. Only layers whose class
    is exactly torch's are converted; others are listed with the reason. torch.nn itself does not change. No call of the
    model may be running while it is converted back.

    Args:
        model: any module; it may itself be a GRU.
        names: names in ``model.named_modules()`` of the layers to convert ("" is the model itself); None for all.
        as_torch_type: whether to convert to `TorchTypeGRU`, for which ``isinstance(m, torch.nn.GRU)`` is True, and
            which ``torch.compile`` therefore rejects. Cells are instances of torch's class anyway.
        back: whether to convert our layers to torch's instead; ``impl`` and ``memory`` are forgotten.

    Returns:
        What was converted, and what was left and why; ``report.model`` is ``model``.

    Raises:
        TypeError: if ``model`` is not a module, ``names`` not a list of names, or a flag not a bool.
        ValueError: if the model has no GRU of one of the names, or both flags are set. Nothing has been changed then.

    Examples:
        >>> import torch, tritongru
        >>> model = torch.nn.ModuleDict({"rnn": torch.nn.GRU(8, 16), "head": torch.nn.Linear(16, 2)})
        >>> print(tritongru.convert(model))
        converted  was                  is now
        ---------  -------------------  ------
        rnn        torch.nn.GRU(8, 16)  tritongru.GRU
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model should be a torch.nn.Module, got {type(model).__name__}")
    check_flags(as_torch_type=as_torch_type, back=back)
    if as_torch_type and back:
        raise ValueError("as_torch_type=True is for converting to ours; leave it out with back=True")
    found = decide(model, _checked(names), as_torch_type, back)
    for module, target, _ in found.changes:
        change(module, target)
    return Report(model, [swap for _, _, swap in found.changes], found.left, found.notes)


def change(module: nn.Module, target: type) -> None:
    module.__class__ = target
    if target in TORCHS:
        for name in OPTIONS:
            module.__dict__.pop(name, None)


def _checked(names: Iterable[str] | None) -> frozenset[str] | None:
    if names is None:
        return None
    given = [names] if isinstance(names, str) or not isinstance(names, Iterable) else [*names]
    if not all(isinstance(name, str) for name in given):
        raise TypeError(f"names should be None or a list of names of modules, got {names!r}")
    return frozenset(given)

"""Finds the GRUs of a model, and decides which of them may change their class."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import islice

import torch
from torch import nn

from tritongru.cell import GRUCell
from tritongru.conversion.asking import asking
from tritongru.conversion.report import Left, Swap, shown
from tritongru.conversion.tree import Found, modules_of, names_of, outside
from tritongru.interop.adoption import TORCH_CELL, TORCH_GRU, class_name
from tritongru.module import GRU, TorchTypeGRU

TORCHS, OURS = (TORCH_GRU, TORCH_CELL), (GRU, TorchTypeGRU, GRUCell)
OTHERS = (nn.LSTM, nn.RNN, nn.LSTMCell, nn.RNNCell)
MOST_NAMES = 8  # that are listed of a layer; one that is reached by many shared parents has countless ones
# What our classes keep on the object or define, beyond torch's: a layer's own attribute of that name would hide it.
TAKEN = {
    TORCH_GRU: {name for name in vars(GRU) if not hasattr(TORCH_GRU, name)},
    TORCH_CELL: {name for name in vars(GRUCell) if not hasattr(TORCH_CELL, name)},
}


@dataclass(frozen=True)
class Decision:
    """``changes``: what is to be converted; ``left``: what is not; ``notes``: what else to know."""

    changes: list[tuple[nn.Module, type, Swap]]
    left: list[Left]
    notes: list[str]


def decide(model: nn.Module, wanted: frozenset[str] | None, as_torch_type: bool, back: bool) -> Decision:
    """Changes nothing. ``wanted``: names, or None for all.

    Raises:
        ValueError: if a wanted name is not that of a GRU.
    """
    modules = modules_of(model)
    gru_like = [found for found in modules if (_is_ours if back else _is_gru)(found.module)]
    chosen = _chosen(model, gru_like, wanted)
    changes, changed, left = [], [], []
    for found in gru_like:
        if chosen is not None and id(found.module) not in chosen:
            continue
        _, *others = islice(names_of(found), MOST_NAMES + 1)
        also = tuple(others) if len(others) < MOST_NAMES else (*others[:-1], "...")
        target = _target(found.module, as_torch_type, back)
        reason = _why_not(found.module, target, back)
        if target is None or reason:
            left.append(Left(found.name, class_name(type(found.module)), reason, also))
        else:
            swap = Swap(found.name, description(found.module), class_name(target), also)
            changes.append((found.module, target, swap))
            changed.append(found)
    if wanted is None:
        left += [_hidden(name, held) for name, held in outside(modules) if _would_change(held, back)]
    notes = []
    if wanted == frozenset():
        notes = ["names is empty, nothing was converted"]
    elif not changes and not left:
        notes = [_no_gru(modules, back)]
    if not back and not as_torch_type:
        notes += asking(modules, changed)
    return Decision(changes, left, notes)


def _chosen(model: nn.Module, gru_like: list[Found], wanted: frozenset[str] | None) -> set[int] | None:
    if wanted is None:
        return None
    known, chosen, missing = {id(found.module) for found in gru_like}, set(), []
    for name in sorted(wanted):
        module: nn.Module | None = model
        for key in name.split(".") if name else ():
            module = None if module is None else module._modules.get(key)
        if id(module) in known:
            chosen.add(id(module))
        else:
            missing.append(repr(name))
    if missing:
        names = ", ".join(sorted(shown(found.name) for found in gru_like)) or "it has none"
        raise ValueError(f"the model has no GRU named {', '.join(missing)}; the names of its GRUs: {names}")
    return chosen


def _is_gru(module: nn.Module) -> bool:
    """A GRU or a cell: torch's, ours, one of a subclass, or compiled or quantized from one."""
    if isinstance(module, (*TORCHS, GRU)):
        return True
    return _is_scripted(module) or _is_quantized(module)


def _is_ours(module: nn.Module) -> bool:
    return isinstance(module, (GRU, GRUCell))


def _is_scripted(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule) and getattr(module, "original_name", "") in ("GRU", "GRUCell")


def _is_quantized(module: nn.Module) -> bool:
    kind = type(module)
    return kind.__module__.startswith("torch.ao.nn.") and kind.__name__ in ("GRU", "GRUCell")


def _target(module: nn.Module, as_torch_type: bool, back: bool) -> type | None:
    """The class that the module should have, or None if it has it, or has none of those that are converted."""
    kind = type(module)
    if back:
        return {GRU: TORCH_GRU, TorchTypeGRU: TORCH_GRU, GRUCell: TORCH_CELL}.get(kind)
    if kind is TORCH_CELL:
        return GRUCell
    if kind is TORCH_GRU or (kind is GRU and as_torch_type):
        return TorchTypeGRU if as_torch_type else GRU
    return None


def _why_not(module: nn.Module, target: type | None, back: bool) -> str:
    kind = type(module)
    if _is_scripted(module):
        return "compiled by torch.jit; convert the model before scripting or tracing it"
    if _is_quantized(module):
        return "quantized; convert the model before quantizing it"
    if nn.utils.parametrize.is_parametrized(module):
        return "its weights are computed by a parametrization; remove that, convert, and apply it again"
    if target is None:
        return why_no_target(kind, back)
    if "forward" in module.__dict__:
        return (
            "a forward was set on the object (accelerate's hooks do that) and would go on calling the old class's; "
            "remove it first"
        )
    if kind in TAKEN:
        own = {*module.__dict__, *module._parameters, *module._buffers, *module._modules}
        if hides := sorted(own & TAKEN[kind]):
            return (
                f"it has an attribute {hides[0]!r} of its own, a name that {class_name(target)} uses; rename it first"
            )
    return ""


def why_no_target(kind: type, back: bool = False) -> str:
    if kind is TorchTypeGRU:
        return f"is a {class_name(kind)} already; for a tritongru.GRU, convert it back first"
    if kind in OURS:
        return f"is a {class_name(kind)} already"
    if kind.__name__.startswith("FSDP"):
        return "fully_shard was applied to it; convert the model before"
    base = next(base for base in (*OURS, *TORCHS) if issubclass(kind, base))
    if base in OURS and not back:
        return f"is a subclass of {class_name(base)} already"
    others: dict[type, type] = {TORCH_GRU: GRU, TORCH_CELL: GRUCell, GRUCell: TORCH_CELL}
    other = class_name(others.get(base, TORCH_GRU))
    lost = f"a subclass of {class_name(base)}, whose own methods would be lost"
    return f"{lost}; derive it from {other} and load its state_dict"


def _would_change(module: nn.Module, back: bool) -> bool:
    return _is_ours(module) if back else isinstance(module, TORCHS) and not _is_ours(module)


def _hidden(name: str, held: nn.Module) -> Left:
    reason = "held by a plain attribute or container, not as a submodule; convert it by itself"
    return Left(name, class_name(type(held)), reason)


def _no_gru(modules: list[Found], back: bool) -> str:
    if back:
        return "the model has no GRU of tritongru"
    others = Counter(class_name(type(found.module)) for found in modules if _is_another(found.module))
    listed = ", ".join(f"{count} {name}" for name, count in sorted(others.items()))
    return "the model has no torch.nn.GRU" + (f"; tritongru does not replace what it has: {listed}" if listed else "")


def _is_another(module: nn.Module) -> bool:
    return isinstance(module, OTHERS) or type(module).__name__ in ("GRU", "GRUCell")


def description(module: nn.Module) -> str:
    """Class and sizes, as in the module's own text."""
    return f"{class_name(type(module))}({module.extra_repr()})"

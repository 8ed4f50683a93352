"""Finds the GRUs of a model, and decides which of them may change their class."""

from __future__ import annotations

import types
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from tritongru.cell import GRUCell
from tritongru.conversion.report import Left, Swap, shown
from tritongru.module import GRU, TorchTypeGRU

TORCHS, OURS = (nn.GRU, nn.GRUCell), (GRU, TorchTypeGRU, GRUCell)
OTHERS = (nn.LSTM, nn.RNN, nn.LSTMCell, nn.RNNCell)
# What our classes keep on the object or define, beyond torch's: a layer's own attribute of that name would hide it.
TAKEN = {
    nn.GRU: {name for name in vars(GRU) if not hasattr(nn.GRU, name)},
    nn.GRUCell: {name for name in vars(GRUCell) if not hasattr(nn.GRUCell, name)},
}
OF_EVERY_MODULE = nn.Module().__dict__.keys()


@dataclass(frozen=True)
class Found:
    """A module that is a GRU of some kind, with all its names."""

    names: tuple[str, ...]
    module: nn.Module

    @property
    def name(self) -> str:
        return self.names[0]


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
    modules = _modules_of(model)
    gru_like = [found for found in modules if is_gru(found.module)]
    known = {name for found in gru_like for name in found.names}
    if wanted is not None and wanted - known:
        names = ", ".join(sorted(map(shown, known))) or "it has none"
        missing = ", ".join(map(repr, sorted(wanted - known)))
        raise ValueError(f"the model has no GRU named {missing}; the names of its GRUs: {names}")
    changes, left = [], []
    for found in gru_like:
        if wanted is not None and not wanted & {*found.names}:
            continue
        target = _target(found.module, as_torch_type, back)
        reason = _why_not(found.module, target, back)
        if target is None or reason:
            left.append(Left(found.name, class_name(type(found.module)), reason))
        else:
            swap = Swap(found.name, description(found.module), class_name(target), found.names[1:])
            changes.append((found.module, target, swap))
    if wanted is None:
        left += _outside(modules)
    notes = [] if changes or left else [_no_gru(modules)]
    if not back and not as_torch_type:
        notes += _asking(modules, {id(module) for module, _, _ in changes})
    return Decision(changes, left, notes)


def is_gru(module: nn.Module) -> bool:
    """A GRU or a cell: torch's, ours, one of a subclass, or compiled or quantized from one."""
    if isinstance(module, (*TORCHS, GRU)):
        return True
    return _is_scripted(module) or _is_quantized(module)


def _is_scripted(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule) and getattr(module, "original_name", "") in ("GRU", "GRUCell")


def _is_quantized(module: nn.Module) -> bool:
    kind = type(module)
    return kind.__module__.startswith("torch.ao.nn.") and kind.__name__ in ("GRU", "GRUCell")


def _modules_of(model: nn.Module) -> list[Found]:
    """Every module below the model once, with all its names, in the order of ``named_modules``."""
    names: dict[int, list[str]] = {}
    modules: dict[int, nn.Module] = {}

    def visit(name: str, module: nn.Module, above: frozenset[int]) -> None:
        modules[id(module)] = module
        names.setdefault(id(module), []).append(name)
        for key, child in module._modules.items():
            if child is not None and id(child) not in above:
                visit(f"{name}.{key}" if name else key, child, above | {id(child)})

    visit("", model, frozenset({id(model)}))
    return [Found(tuple(names[key]), module) for key, module in modules.items()]


def _target(module: nn.Module, as_torch_type: bool, back: bool) -> type | None:
    """The class that the module should have, or None if it has it, or has none of those that are converted."""
    kind = type(module)
    if back:
        return {GRU: nn.GRU, TorchTypeGRU: nn.GRU, GRUCell: nn.GRUCell}.get(kind)
    if kind is nn.GRUCell:
        return GRUCell
    if kind is nn.GRU or (kind is GRU and as_torch_type):
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
        return _why_no_target(kind, back)
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


def _why_no_target(kind: type, back: bool) -> str:
    if kind in (TORCHS if back else OURS):
        return f"is a {class_name(kind)} already"
    if kind.__name__.startswith("FSDP"):
        return "fully_shard was applied to it; convert the model before"
    base = next(base for base in (*OURS, *TORCHS) if issubclass(kind, base))
    return f"a subclass of {class_name(base)}, whose own methods would be lost; give its parameters to a plain one"


def _outside(modules: list[Found]) -> Iterator[Left]:
    """GRUs that a module holds in a plain attribute or container, which no optimizer, device or checkpoint reaches."""
    inside = {id(found.module) for found in modules}
    for found in modules:
        for attribute, value in found.module.__dict__.items():
            if attribute in OF_EVERY_MODULE:
                continue
            for held in _held(value):
                if isinstance(held, (*TORCHS, GRU)) and id(held) not in inside:
                    inside.add(id(held))
                    name = f"{found.name}.{attribute}" if found.name else attribute
                    reason = "held by a plain attribute or container, not as a submodule; convert it by itself"
                    yield Left(name, class_name(type(held)), reason)


def _held(value: object) -> Iterator[object]:
    """The value itself, or what a container of it holds."""
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list | tuple | set):
        yield from value
    else:
        yield value


def _no_gru(modules: list[Found]) -> str:
    counts = Counter(class_name(type(found.module)) for found in modules if isinstance(found.module, OTHERS))
    others = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    return "the model has no GRU" + (f"; tritongru does not replace what it has: {others}" if others else "")


def _asking(modules: list[Found], changed: set[int]) -> Iterator[str]:
    """Modules with code of their own that asks for torch's class, as torchrl's GRUModule does."""
    told = set()
    for found in modules:
        kind = type(found.module)
        children = {id(child) for child in found.module._modules.values()}
        if children & changed and kind not in told and (method := _asks(kind)):
            told.add(kind)
            yield (
                f"{kind.__qualname__}.{method} may ask isinstance(..., nn.GRU), which is False now; "
                "as_torch_type=True makes it True"
            )


def _asks(kind: type) -> str:
    """A method in which the names isinstance and GRU occur, or an empty string."""
    for base in kind.__mro__:
        if base.__module__.startswith("torch.nn."):
            continue
        for name, value in vars(base).items():
            function = getattr(value, "__wrapped__", value)
            if isinstance(function, types.FunctionType) and name != "__init__":
                used = function.__code__.co_names
                if "isinstance" in used and "GRU" in used:
                    return name
    return ""


def class_name(kind: type) -> str:
    """As users write it: ``torch.nn.GRU``, ``tritongru.GRU``."""
    module = kind.__module__
    for ours, theirs in (("tritongru.", "tritongru"), ("torch.nn.modules.", "torch.nn")):
        module = theirs if module.startswith(ours) else module
    return f"{module}.{kind.__qualname__}"


def description(module: nn.Module) -> str:
    """Class and sizes, as in the module's own text."""
    return f"{class_name(type(module))}({module.extra_repr()})"

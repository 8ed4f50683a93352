"""Converts between torch's modules and ours: parameters, hooks, attributes and training mode."""

from __future__ import annotations

import contextvars
import copy as copying
from typing import Any, TypeVar

from torch import nn
from torch.nn.modules.module import _WrappedHook

TORCH_GRU, TORCH_CELL = nn.GRU, nn.GRUCell  # torch's own, even if someone puts other classes under these names later
# Names of a cell's weights; and what a new module does not take over, because it makes or chooses its own.
CELL_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
OWN = {"_flat_weights", "_flat_weights_names", "_flat_weight_refs", "_all_weights", "impl", "memory"}


Module = TypeVar("Module", bound=nn.Module)


def torchs_own(kind: type[Module], *arguments: Any, **named: Any) -> Module:
    """A new object of torch's class, also within `tritongru.patch`, whose block is unknown in an empty context."""
    return contextvars.Context().run(kind, *arguments, **named)


def arguments_of(gru: nn.RNNBase) -> tuple[Any, ...]:
    sizes = (gru.input_size, gru.hidden_size, gru.num_layers)
    return *sizes, gru.bias, gru.batch_first, gru.dropout, gru.bidirectional


def adopt(new: nn.Module, source: nn.Module, copy: bool) -> None:
    """Gives ``new``, of the same sizes, everything that ``source`` has except its class: parameters (shared or copied),
    buffers, hooks, other attributes and training mode.

    Raises:
        ValueError: if something is bound to ``source`` and cannot be taken over.
    """
    for name, value in source.__dict__.items():
        if name not in OWN:
            _refuse_bound(name, value, source)
            new.__dict__[name] = _own(value, new)
    if copy:
        parameters = ((name, p) for name, p in source._parameters.items() if p is not None)
        new._parameters.update({n: nn.Parameter(p.detach().clone(), p.requires_grad) for n, p in parameters})
        new._buffers.update({n: None if b is None else b.detach().clone() for n, b in source._buffers.items()})
        new._modules.update({n: copying.deepcopy(m) for n, m in source._modules.items()})
    if isinstance(new, nn.RNNBase):
        new._init_flat_weights()


def check_parameters(gru: nn.RNNBase | nn.RNNCellBase) -> None:
    names = gru._flat_weights_names if isinstance(gru, nn.RNNBase) else CELL_WEIGHTS[: 4 if gru.bias else 2]
    for name in names:
        if gru._parameters.get(name) is None:
            raise ValueError(
                f"{name} is computed, not a parameter of the module; remove the parametrization or hook first"
            )


def check_class(gru: nn.Module, *classes: type) -> None:
    """A subclass, or a forward set on the object, may compute something else, which would silently be lost."""
    found, expected = type(gru), class_name(classes[0])
    if found not in classes:
        raise TypeError(
            f"expected a {expected} itself, got its subclass {class_name(found)}, whose own methods would be lost; "
            f"move its attributes and parameters to a {expected} first"
        )
    if "forward" in gru.__dict__:
        raise ValueError(f"this {found.__name__} has a forward of its own, which would be lost; delete it first")


def class_name(kind: type) -> str:
    """As users write it: ``torch.nn.GRU``, ``tritongru.GRU``."""
    module = kind.__module__
    for start, public in (("tritongru.", "tritongru"), ("torch.nn.modules.", "torch.nn")):
        module = public if module.startswith(start) else module
    return f"{module}.{kind.__qualname__}"


def _refuse_bound(name: str, value: Any, source: nn.Module) -> None:
    values = list(value.values()) if isinstance(value, dict) else [value]
    for one in values:
        if name == "_compiled_call_impl" or getattr(getattr(one, "hook", one), "__self__", None) is source:
            what = "compile() was called on it" if name == "_compiled_call_impl" else f"{name} holds one of its methods"
            raise ValueError(f"the {type(source).__name__} cannot be converted: {what}; do that on the new module")


def _own(value: Any, new: nn.Module) -> Any:
    """A container of hooks, parameters or names is copied for the new module; its contents stay the same."""
    if isinstance(value, dict):
        kept = {
            key: _WrappedHook(one.hook, new) if isinstance(one, _WrappedHook) and one.with_module else one
            for key, one in value.items()
        }
        return type(value)(kept)
    return set(value) if type(value) is set else value

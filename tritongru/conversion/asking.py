"""Modules around a converted layer whose own code asks for torch's class, as torchrl's GRUModule does."""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence

from tritongru.conversion.tree import Found

ISINSTANCE, TYPE = "isinstance", "type"


def asking(modules: Sequence[Found], changed: Sequence[Found]) -> Iterator[str]:
    """A sentence for each class."""
    around = _around(changed)
    told = set()
    for found in modules:
        kind = type(found.module)
        if found not in around or kind in told:
            continue
        for method, function in _functions(kind):
            how = _asks(function.__code__)
            if how:
                told.add(kind)
                yield _note(f"{kind.__qualname__}.{method}", how)
                break


def _around(found: Sequence[Found]) -> set[Found]:
    """The modules from which one of these is reached."""
    around: set[Found] = set()
    open_ = [*found]
    while open_:
        above = {parent for parent, _ in open_.pop().parents} - around
        around |= above
        open_ += above
    return around


def _functions(kind: type) -> Iterator[tuple[str, types.FunctionType]]:
    """The methods of a class and its bases but torch's, without what wraps them."""
    for base in kind.__mro__:
        if base.__module__.startswith("torch."):
            continue
        for name, value in vars(base).items():
            function = value.__func__ if type(value) in (staticmethod, classmethod) else value
            while type(function) is types.FunctionType and "__wrapped__" in vars(function):
                function = vars(function)["__wrapped__"]
            if type(function) is types.FunctionType and name != "__init__":
                yield name, function


def _asks(code: types.CodeType) -> str:
    """ISINSTANCE or TYPE if that name and GRU occur in the code, or an empty string."""
    if "GRU" in code.co_names:
        for name in (ISINSTANCE, TYPE):
            if name in code.co_names:
                return name
    inner = (_asks(constant) for constant in code.co_consts if isinstance(constant, types.CodeType))
    return next(filter(None, inner), "")


def _note(where: str, how: str) -> str:
    if how == ISINSTANCE:
        return f"{where} may ask isinstance(..., nn.GRU), which is False now; as_torch_type=True makes it True"
    return f"{where} may ask type(...) is nn.GRU, which is False now; if so, convert this layer back"

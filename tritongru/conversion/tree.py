"""The modules of a model: each once, with the names by which it is reached, and those that it hides."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import nn

OF_EVERY_MODULE = nn.Module().__dict__.keys()
CONTAINERS: dict[type, Callable[[Any], Iterable[object]]] = {
    dict: dict.values,
    list: list.__iter__,
    tuple: tuple.__iter__,
    set: set.__iter__,
}
DEPTH, MOST = 3, 10_000  # how deep, and how far, containers in plain attributes are looked through


@dataclass(frozen=True, eq=False)
class Found:
    """A module and its first name in ``named_modules()``. ``parents``: the modules around it, with its keys there."""

    name: str
    module: nn.Module
    parents: list[tuple[Found, str]]


def modules_of(model: nn.Module) -> list[Found]:
    """Every module below the model once, in the order of ``named_modules``."""
    top = Found("", model, [])
    found = {id(model): top}

    def visit(above: Found) -> None:
        for key, child in _children(above.module):
            is_new = id(child) not in found
            one = found.setdefault(id(child), Found(f"{above.name}.{key}" if above.name else key, child, []))
            one.parents.append((above, key))
            if is_new:
                visit(one)

    visit(top)
    return list(found.values())


def _children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    children = getattr(module, "_modules", None)  # None before nn.Module.__init__
    for key, child in [] if children is None else children.items():
        if child is not None:
            yield key, child


def names_of(found: Found) -> Iterator[str]:
    """All names by which the module is reached, its first one first."""

    def paths(one: Found, below: frozenset[Found]) -> Iterator[str]:
        if not one.name:  # the model itself
            yield ""
        for parent, key in one.parents:
            if parent not in below:
                for path in paths(parent, below | {parent}):
                    yield f"{path}.{key}" if path else key

    yield found.name
    yield from (name for name in paths(found, frozenset({found})) if name != found.name)


def outside(modules: list[Found]) -> Iterator[tuple[str, nn.Module]]:
    """Modules, at any depth, that a module of the model holds in a plain attribute or container, which no optimizer,
    device or checkpoint reaches; each with the name of the attribute, and once."""
    known = {id(found.module) for found in modules}
    for found in modules:
        for attribute, value in vars(found.module).items():
            if attribute in OF_EVERY_MODULE:
                continue
            for held in _held(value, DEPTH):
                for below in modules_of(held) if id(held) not in known else ():
                    if id(below.module) not in known:
                        known.add(id(below.module))
                        yield ".".join(part for part in (found.name, attribute, below.name) if part), below.module


def _held(value: object, depth: int) -> Iterator[nn.Module]:
    """The value itself, or what a container of it holds; by the types that objects have, not those they claim."""
    kind = type(value)
    if issubclass(kind, nn.Module):
        yield value  # type: ignore[misc]
    for container, contents in CONTAINERS.items():
        if depth and issubclass(kind, container):
            for one in islice(contents(value), MOST):
                yield from _held(one, depth - 1)

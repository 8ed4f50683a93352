"""``patch``: torch's GRUs that are built within a block become ours, for libraries that build them inside."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from tritongru.arguments.checks import check_flags
from tritongru.cell import GRUCell
from tritongru.conversion.converting import change
from tritongru.conversion.finding import OURS, TORCHS, description, why_no_target
from tritongru.conversion.report import Left, Report, Swap
from tritongru.interop.adoption import TORCH_CELL, class_name
from tritongru.module import GRU, TorchTypeGRU


@dataclass
class Block:
    """A block of one thread. ``outer``: the one around it; ``built``: its GRUs, which have torch's type until it ends,
    so that code of the library that looks for them, such as an initializer, finds them."""

    target: type
    outer: Block | None
    report: Report = field(default_factory=Report)
    built: list[weakref.ref[nn.Module]] = field(default_factory=list)
    thread: int = field(default_factory=threading.get_ident)  # some Pythons hand the context on to new threads
    is_open: bool = True


_innermost: contextvars.ContextVar[Block | None] = contextvars.ContextVar("tritongru_patch", default=None)
_lock = threading.Lock()
_blocks = 0  # open in all threads
_constructors: dict[
    type, tuple[Callable[..., None], Callable[..., None]]
] = {}  # torch's own and ours, while one is open


@contextlib.contextmanager
def patch(*, as_torch_type: bool = False) -> Iterator[Report]:
    """Within the block, every `torch.nn.GRU` and `torch.nn.GRUCell` that this thread builds becomes ours.

    For libraries that build their layers inside a function; a model that exists already is converted by
    `tritongru.convert`. Until the block ends a GRU is a `TorchTypeGRU`, because libraries often initialize what they
    find by ``isinstance(m, torch.nn.GRU)``. Subclasses of torch's classes stay what they are. While a block is open in
    any thread, ``torch.nn.GRU.__init__`` and ``torch.nn.GRUCell.__init__`` are wrapped; the last block to end puts
    torch's own back, also after an error. Other threads, even those started within the block, build torch's layers as
    always. Layers that are unpickled or copied are not built and stay what they were.

    Args:
        as_torch_type: as in `convert`: whether GRUs stay `TorchTypeGRU` after the block.

    Yields:
        A report, whose ``swapped``, and ``left`` of subclasses, grow as layers are built; their names are "#1", "#2"
        and so on.

    Raises:
        TypeError: if ``as_torch_type`` is not a bool.

    Examples:
        >>> import torch, tritongru
        >>> with tritongru.patch() as report:
        ...     model = torch.nn.Sequential(torch.nn.GRU(8, 16))  # in practice: library.build_model()
        >>> type(model[0]) is tritongru.GRU, len(report.swapped)
        (True, 1)
    """
    check_flags(as_torch_type=as_torch_type)
    block = Block(TorchTypeGRU if as_torch_type else GRU, _innermost.get())
    _open()
    _innermost.set(block)
    try:
        yield block.report
    finally:
        block.is_open = False
        _innermost.set(_block_here())  # not by a token: a generator may end out of turn, or in another context
        _close()
        for ref in block.built:
            layer = ref()
            if type(layer) is TorchTypeGRU:  # else it was converted meanwhile
                change(layer, block.target)


def _open() -> None:
    global _blocks
    with _lock:
        if _blocks == 0:
            for kind in TORCHS:
                own = kind.__init__
                _constructors[kind] = own, _changing(kind, own)
                kind.__init__ = _constructors[kind][1]  # type: ignore[method-assign]
        _blocks += 1


def _close() -> None:
    global _blocks
    with _lock:
        _blocks -= 1
        if _blocks == 0:
            for kind, (own, ours) in _constructors.items():
                if kind.__init__ is ours:  # type: ignore[misc]  # else someone wrapped it, and ours does nothing more
                    kind.__init__ = own  # type: ignore[misc]
            _constructors.clear()


def _block_here() -> Block | None:
    """The innermost open block of this thread or task."""
    block = _innermost.get()
    while block is not None and not (block.is_open and block.thread == threading.get_ident()):
        block = block.outer
    return block


def _changing(kind: type, own: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(own)
    def init(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        own(self, *args, **kwargs)
        block = _block_here()
        if block is None or isinstance(self, OURS):
            return
        report = block.report
        name = f"#{len(report.swapped) + len(report.left) + 1}"
        if type(self) is not kind:
            report.left.append(Left(name, class_name(type(self)), why_no_target(type(self))))
        elif kind is TORCH_CELL:
            report.swapped.append(Swap(name, description(self), class_name(GRUCell)))
            change(self, GRUCell)
        else:
            report.swapped.append(Swap(name, description(self), class_name(block.target)))
            block.built.append(weakref.ref(self))
            change(self, TorchTypeGRU)

    return init

"""``patch``: torch's GRUs that are built within a block become ours, for libraries that build them inside."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from tritongru.cell import GRUCell
from tritongru.conversion.converting import change
from tritongru.conversion.finding import class_name, description
from tritongru.conversion.report import Report, Swap
from tritongru.module import GRU, TorchTypeGRU
from tritongru.planning.devices import check_flag

# The innermost block of this thread or task: its report, the class that a GRU gets, and the thread (some Pythons hand
# the context on to new threads).
_block: contextvars.ContextVar[tuple[Report, type, int] | None] = contextvars.ContextVar(
    "tritongru_patch", default=None
)
_lock = threading.Lock()
_blocks = 0  # open in all threads
_constructors: dict[
    type, tuple[Callable[..., None], Callable[..., None]]
] = {}  # torch's own and ours, while one is open


@contextlib.contextmanager
def patch(*, as_torch_type: bool = False) -> Iterator[Report]:
    """Within the block, every `torch.nn.GRU` and `torch.nn.GRUCell` that this thread builds becomes ours.

    For libraries that build their layers inside a function; a model that exists already is converted by
    `tritongru.convert`. Subclasses of torch's classes stay what they are. While a block is open in any thread,
    ``torch.nn.GRU.__init__`` and ``torch.nn.GRUCell.__init__`` are wrapped; the last block to end puts torch's own
    back, also after an error. Other threads, even those started within the block, build torch's layers as always.
    Layers that are unpickled or copied are not built and stay what they were.

    Args:
        as_torch_type: as in `convert`.

    Yields:
        A report, whose ``swapped`` grows as layers are built; their names are "#1", "#2" and so on.

    Raises:
        TypeError: if ``as_torch_type`` is not a bool.

    Examples:
        >>> import torch, tritongru
        >>> with tritongru.patch() as report:
        ...     model = torch.nn.Sequential(torch.nn.GRU(8, 16))  # in practice: library.build_model()
        >>> type(model[0]) is tritongru.GRU, len(report.swapped)
        (True, 1)
    """
    report = Report()
    target = TorchTypeGRU if check_flag("as_torch_type", as_torch_type) else GRU
    _open()
    token = _block.set((report, target, threading.get_ident()))
    try:
        yield report
    finally:
        _block.reset(token)
        _close()


def _open() -> None:
    global _blocks
    with _lock:
        if _blocks == 0:
            for kind in (nn.GRU, nn.GRUCell):
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


def _changing(kind: type, own: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(own)
    def init(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        own(self, *args, **kwargs)
        block = _block.get()
        if block is None or self.__class__ is not kind or block[2] != threading.get_ident():
            return
        report, target, _ = block
        target = GRUCell if kind is nn.GRUCell else target
        report.swapped.append(Swap(f"#{len(report.swapped) + 1}", description(self), class_name(target)))
        change(self, target)

    return init

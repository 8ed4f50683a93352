"""When a call may go straight to an operator's implementation: the way through torch's dispatcher takes longer than a
small layer's time step. Nothing may tell the difference, so it is for plain tensors that nothing watches.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

PLAIN = (Tensor, torch.nn.Parameter)


def is_watched() -> bool:
    """By a mode that sees every operator, such as FakeTensorMode, or every function, such as torch.set_default_device,
    or by the profiler."""
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._autograd._profiler_enabled()
    )


def goes_straight(tensors: Iterable[Tensor | None]) -> bool:
    """Whether a call with these tensors may go past the dispatcher."""
    return not is_watched() and all(t is None or _is_its_memory(t) for t in tensors)


def _is_its_memory(t: Tensor) -> bool:
    """And nothing more or less: not negated when read, zeros without memory, sparse, or of a class of its own."""
    return type(t) in PLAIN and t.layout is torch.strided and not t.is_neg() and not t._is_zerotensor()

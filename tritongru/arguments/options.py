"""The options of a call besides its tensors, and the sizes that follow from both."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

IMPLS = ("auto", "triton", "llvm", "torch")
FAMILIES = ("triton", "llvm")  # of kernels behind one operator


class Options(NamedTuple):
    """The options of a call, named as in ``gru``."""

    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    training: bool
    bidirectional: bool
    impl: str
    memory: str

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def tensors(self) -> int:
        """Weight tensors of one layer and direction."""
        return 4 if self.bias else 2


def batch_of(input: Tensor, batch_sizes: Tensor | None, options: Options) -> int:
    if batch_sizes is not None:
        first = batch_sizes[0]
        return first if is_traced() else int(first)  # type: ignore[return-value]  # a tensor stays symbolic
    return input.shape[0 if options.batch_first else 1]


def steps_of(input: Tensor, batch_sizes: Tensor | None, options: Options) -> int:
    if batch_sizes is not None:
        return batch_sizes.shape[0]
    return input.shape[1 if options.batch_first else 0]


def is_traced() -> bool:
    """Whether ``torch.jit.trace`` is recording the call."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def autocast_dtype(input: Tensor) -> torch.dtype | None:
    """The dtype that autocast requests; like torch's own rules, it leaves float64 alone."""
    device = input.device.type
    if input.dtype == torch.float64 or device == "meta" or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)

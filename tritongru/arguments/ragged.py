"""What a call says about its sequences besides the tensors themselves: where they end and where they begin anew."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tritongru.arguments.checks import INTEGERS, check_kind, check_memory
from tritongru.arguments.options import Options, batch_of, is_traced, steps_of
from tritongru.arguments.records import Rows

FEW = 64  # lengths that Python looks at faster than an operator
PACKED = "a PackedSequence; pad it with torch.nn.utils.rnn.pad_packed_sequence"


class Ragged(NamedTuple):
    """``lengths``, ``resets`` and ``reset_state`` as in ``gru``; once checked, the first two on the device of the input
    and ``resets`` time-major."""

    lengths: Tensor | None = None  # (B,) int32 or int64
    resets: Tensor | None = None  # (T, B) bool
    reset_state: Tensor | None = None  # (L * D, B or 1, H)

    def __bool__(self) -> bool:
        return self.lengths is not None or self.resets is not None or self.reset_state is not None

    def rows(self, batch: int) -> Rows:
        return Rows(batch, None, self.lengths, self.resets)

    def to(self, dtype: torch.dtype) -> Ragged:
        return self if self.reset_state is None else self._replace(reset_state=self.reset_state.to(dtype))

    def of_one(self, batch_dim: int, T: int, states: int, hidden: int) -> Ragged:
        """From the arguments of an unbatched call: lengths () or (1,), resets (T,), reset_state (L * D, H).

        Raises:
            RuntimeError: if one of them has another shape, as it was given; all else is checked later.
        """
        wanted = [((), (1,)), ((T,), (T, 1) if batch_dim else (1, T)), ((states, hidden), (states, 1, hidden))]
        found = self
        for name, (shape, batched), dim in zip(self._fields, wanted, (0, batch_dim, 1), strict=True):
            value = getattr(self, name)
            if not isinstance(value, Tensor):
                continue
            if value.shape not in (shape, batched):
                raise RuntimeError(
                    f"{name} should have the shape {shape} for an unbatched input, got {tuple(value.shape)}"
                )
            if value.dim() == len(shape):
                found = found._replace(**{name: value.unsqueeze(dim)})
        return found

    def of_layer(self, layer: int, directions: int) -> Tensor | None:
        """The layer's reset states, (D, B or 1, H)."""
        own = self.reset_state
        return None if own is None else own[layer * directions : (layer + 1) * directions]


WHOLE = Ragged()


def checked(
    ragged: Ragged, input: Tensor, hx: Tensor | None, batch_sizes: Tensor | None, options: Options, hidden: int
) -> Ragged:
    """What a caller passed, checked and in the form that the paths expect. Lengths on a GPU are never read here.

    Raises:
        TypeError, ValueError, RuntimeError: one sentence about what is wrong.
    """
    if not ragged:
        return WHOLE
    lengths, resets, reset_state = ragged
    for name, value in ragged._asdict().items():
        if value is not None and not isinstance(value, Tensor):
            raise TypeError(f"{name} should be a Tensor, got {type(value).__name__}; torch.tensor makes one of it")
        if value is not None and batch_sizes is not None:
            raise ValueError(f"{name} cannot be given together with {PACKED}")
    T, batch = steps_of(input, None, options), batch_of(input, None, options)
    if lengths is not None:
        lengths = _lengths(lengths, input, T, batch)
    if resets is not None:
        resets = _resets(resets, input, T, batch, options)
    if reset_state is not None:
        if resets is None:
            raise ValueError("reset_state needs resets, which say where it is used")
        _check_reset_state(reset_state, input, hx, batch, options, hidden)
    return Ragged(_for_autograd(lengths), _for_autograd(resets), reset_state)


def _for_autograd(tensor: Tensor | None) -> Tensor | None:
    """One that a backward pass may keep."""
    if tensor is None or torch.compiler.is_compiling() or not tensor.is_inference():
        return tensor
    return tensor if torch.is_inference_mode_enabled() else tensor.clone()


def _lengths(lengths: Tensor, input: Tensor, T: int, batch: int) -> Tensor:
    check_kind("lengths", lengths, *INTEGERS)
    _check_layout("lengths", lengths)
    if lengths.shape != (batch,):
        raise RuntimeError(
            f"lengths should have the shape ({batch},), one length for each sequence, got {tuple(lengths.shape)}"
        )
    if lengths.device == input.device:
        if lengths.is_cpu:
            check_lengths(lengths, T)
        return lengths
    if not lengths.is_cpu:
        raise RuntimeError(
            f"lengths should be on the CPU or on the device of the input, {input.device}, got {lengths.device}"
        )
    check_lengths(lengths, T)
    if input.is_cuda and not torch.compiler.is_compiling():
        return lengths.pin_memory().to(input.device, non_blocking=True)
    return lengths.to(input.device)


def _check_layout(name: str, tensor: Tensor) -> None:
    if tensor.layout is not torch.strided:
        raise RuntimeError(f"{name} should be dense, got {tensor.layout}; convert it with .to_dense()")


def check_lengths(lengths: Tensor, T: int) -> None:
    """The values, where they can be seen: not in a compiler's graph, nor on a GPU, where the kernels clamp them."""
    if torch.compiler.is_compiling() or is_traced() or lengths.numel() == 0 or not is_plain(lengths):
        return
    check_memory("lengths", lengths)
    if lengths.numel() <= FEW:
        values = lengths.tolist()
        low, high = min(values), max(values)
    else:
        low, high = (int(value) for value in lengths.aminmax())
    if low < 0 or high > T:
        odd = int(((lengths < 0) | (lengths > T)).nonzero()[0])
        raise ValueError(
            f"lengths should be between 0 and the {T} time steps of the input, got {int(lengths[odd])} for sequence "
            f"{odd}"
        )


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor has values that can be read: not a fake one, nor one of a transform."""
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and torch._C._has_storage(tensor)
        and not tensor.is_meta
        and not torch._is_functional_tensor(tensor)
    )


def _resets(resets: Tensor, input: Tensor, T: int, batch: int, options: Options) -> Tensor:
    check_kind("resets", resets, torch.bool)
    shape = (batch, T) if options.batch_first else (T, batch)
    _check_layout("resets", resets)
    if resets.shape != shape:
        raise RuntimeError(
            f"resets should have the shape {shape}, one value for each step of the input, got {tuple(resets.shape)}"
        )
    if resets.device != input.device:
        raise RuntimeError(f"resets should be on the device of the input, {input.device}, got {resets.device}")
    return resets.t() if options.batch_first else resets


def _check_reset_state(
    state: Tensor, input: Tensor, hx: Tensor | None, batch: int, options: Options, hidden: int
) -> None:
    states = options.num_layers * options.directions
    _check_layout("reset_state", state)
    if state.shape not in ((states, batch, hidden), (states, 1, hidden)):
        raise RuntimeError(
            f"reset_state should have the shape ({states}, {batch}, {hidden}) or ({states}, 1, {hidden}), got "
            f"{tuple(state.shape)}"
        )
    if state.device != input.device:
        raise RuntimeError(f"reset_state should be on the device of the input, {input.device}, got {state.device}")
    dtype = input.dtype if hx is None else hx.dtype
    if state.dtype != dtype and not torch._C._is_any_autocast_enabled():
        raise RuntimeError(f"reset_state should have the dtype {dtype} of the states, got {state.dtype}")

"""One direction of a layer in torch's layout, from and to which every format is converted, and checks of arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tritongru.arguments.checks import check_flags, check_memory

NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
RESET_LAST = "which multiplies the state by its weights before the reset gate acts"  # torch's GRU


class Direction(NamedTuple):
    """Weights with the gates in torch's order r z n."""

    w_ih: Tensor  # (3H, I)
    w_hh: Tensor  # (3H, H)
    b_ih: Tensor | None  # (3H,)
    b_hh: Tensor | None  # (3H,)


def direction_of(gru: nn.Module, layer: int, reverse: bool) -> Direction:
    """What a GRU or a cell, of tritongru or torch, holds for a layer and direction; a cell ignores ``layer``."""
    check_flags(reverse=reverse)
    if isinstance(gru, nn.GRUCell):
        if reverse:
            raise ValueError("reverse should be False for a cell, which has one direction, got True")
        suffix = ""
    elif isinstance(gru, nn.RNNBase) and gru.mode == "GRU":
        check_number(layer)
        if layer >= gru.num_layers:
            count = "1 layer" if gru.num_layers == 1 else f"{gru.num_layers} layers"
            raise ValueError(f"layer should be below {gru.num_layers}, the GRU has {count}, got {layer}")
        if reverse and not gru.bidirectional:
            raise ValueError("reverse should be False for a GRU of one direction, got True; build it bidirectional")
        suffix = suffix_of(layer, reverse)
    else:
        raise TypeError(f"gru should be a GRU or GRUCell of tritongru or torch.nn, got {type(gru).__name__}")
    names = [f"{name}{suffix}" for name in NAMES[: 4 if gru.bias else 2]]
    for name in names:  # a parametrization computes them when they are read, a hook in every forward pass
        is_own = name in gru._parameters or nn.utils.parametrize.is_parametrized(gru, name)
        if not is_own and gru._forward_pre_hooks:
            raise ValueError(
                f"{name} is computed by a hook and may be out of date; remove it first, as with "
                "torch.nn.utils.prune.remove or torch.nn.utils.remove_weight_norm"
            )
    own = {name: getattr(gru, name) for name in names}
    found = [tensor_of(name, value) for name, value in own.items()]
    H = gru.hidden_size
    sizes: list[tuple[int | None, ...]] = [(3 * H, None), (3 * H, H), (3 * H,), (3 * H,)]
    for name, tensor, size in zip(own, found, sizes, strict=False):
        check_shape(name, tensor, size, f"of a GRU with hidden size {H}", "restore its parameters")
    check_alike(dict(zip(own, found, strict=True)))
    b_ih, b_hh = found[2:] if gru.bias else (None, None)
    return Direction(found[0], found[1], b_ih, b_hh)


def entries_of(direction: Direction, layer: int | None, reverse: bool) -> dict[str, Tensor]:
    """Copies of the weights under torch's names."""
    suffix = suffix_of(layer, reverse)
    return {f"{name}{suffix}": copied(w) for name, w in zip(NAMES, direction, strict=True) if w is not None}


def suffix_of(layer: int | None, reverse: bool) -> str:
    """What torch appends to the names of a layer's weights; None stands for a cell, which has one direction."""
    check_flags(reverse=reverse)
    if layer is None:
        if reverse:
            raise ValueError("reverse should be False for layer=None, a cell's names, got True; pass the layer's index")
        return ""
    check_number(layer)
    return f"_l{layer}_reverse" if reverse else f"_l{layer}"


def check_number(layer: object) -> None:
    if not isinstance(layer, int) or isinstance(layer, bool):
        raise TypeError(f"layer should be of type int, got: {type(layer).__name__}")
    if layer < 0:
        raise ValueError(f"layer should be at least 0, the first layer, got {layer}")


def swapped(w: Tensor) -> Tensor:
    """Gates in the order r z n from the order z r h, or the other way around."""
    first, second, last = w.chunk(3)
    return torch.cat((second, first, last))


def copied(w: Tensor) -> Tensor:
    return w.clone(memory_format=torch.contiguous_format)


def tensor_of(name: str, value: Any) -> Tensor:
    """A tensor, without its graph, or the array of another library as one."""
    if not isinstance(value, Tensor):
        try:
            value = _read(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"{name} should be a tensor or an array that torch can read, got {type(value).__name__}; convert it to "
                "a NumPy array of float32 or float64"
            ) from error
    found: Tensor = value.detach()
    if not found.is_floating_point():
        raise ValueError(
            f"{name} should hold floating-point numbers, got {found.dtype}; quantized weights have to be dequantized, "
            "integers converted"
        )
    if torch._C._has_storage(found) or found.layout is not torch.strided:
        check_memory(name, found)
    return found


def _read(value: Any) -> Tensor:
    """A copy on the CPU: an array may be read-only, reversed, or of another byte order, which torch does not take."""
    if not hasattr(value, "__array__"):
        return torch.as_tensor(value, device="cpu")
    array = value.__array__()
    if array.dtype.name == "bfloat16":  # JAX's, of the package ml_dtypes, which torch does not know
        return torch.as_tensor(array.view("int16").copy(), device="cpu").view(torch.bfloat16)
    return torch.as_tensor(array.astype(array.dtype.newbyteorder("="), order="C"), device="cpu")


def check_shape(name: str, tensor: Tensor, shape: tuple[int | None, ...], spelled: str, remedy: str) -> None:
    """None in ``shape`` is for any size."""
    fits = len(shape) == tensor.dim() and all(
        size in (None, own) for size, own in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        sizes = f"({sizes},)" if len(shape) == 1 else f"({sizes})"
        raise ValueError(f"{name} should have the shape {sizes}, {spelled}, got {tuple(tensor.shape)}; {remedy}")


def check_alike(tensors: dict[str, Tensor]) -> None:
    """All of one dtype, on one device."""
    (first, one), *others = tensors.items()
    for name, tensor in others:
        if tensor.dtype != one.dtype:
            raise ValueError(
                f"{name} should have the dtype of {first}, {one.dtype}, got {tensor.dtype}; convert one of them"
            )
        if tensor.device != one.device:
            raise ValueError(
                f"{name} should be on the device of {first}, {one.device}, got {tensor.device}; move one of them"
            )


def check_names(what: str, given: object, names: tuple[str, ...], remedy: str) -> None:
    """A mapping with these names and no others."""
    if not isinstance(given, Mapping):
        raise TypeError(f"{what} should be a mapping, got {type(given).__name__}; {remedy}")
    own = sorted(map(str, given))
    if own != sorted(names):
        raise ValueError(f"{what} should hold {', '.join(names)}, got {', '.join(own) or 'nothing'}; {remedy}")


def check_activation(name: str, value: Any, only: str) -> None:
    """A function or its name, which is the only one that torch's GRU has."""
    given = getattr(value, "__name__", value)
    if given != only:
        raise ValueError(
            f"{name} should be {only!r}, which torch's GRU computes, got {given!r}; train the layer with {only!r}"
        )

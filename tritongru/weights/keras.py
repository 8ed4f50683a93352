"""Keras."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tritongru.arguments.checks import check_flags
from tritongru.weights.columns import read_columns
from tritongru.weights.direction import (
    RESET_LAST,
    Direction,
    check_activation,
    check_shape,
    copied,
    direction_of,
    entries_of,
    swapped,
    tensor_of,
)

REMEDY = "pass the arrays of one GRU as its get_weights() returns them"


def from_keras(
    weights: Sequence[Any],
    *,
    reset_after: bool = True,
    activation: Any = "tanh",
    recurrent_activation: Any = "sigmoid",
    layer: int | None = 0,
    reverse: bool = False,
) -> dict[str, Tensor]:
    """Entries for ``load_state_dict`` from a Keras GRU or GRUCell.

    Keras computes the same equations if ``reset_after=True``, its default, with z for torch's z; it keeps the gates in
    the order z r h, in matrices that are multiplied from the right:
    <https://keras.io/api/layers/recurrent_layers/gru/>. The arrays do not show how a layer computes, so pass on what
    differs from Keras's defaults: ``reset_after=layer.reset_after`` and so on. A ``Bidirectional`` layer holds two
    GRUs, ``forward_layer`` and ``backward_layer``: convert each, the second with ``reverse=True``.

    Args:
        weights: ``layer.get_weights()``: kernel ``(I, 3H)``, recurrent kernel ``(H, 3H)`` and, unless
            ``use_bias=False``, biases ``(2, 3H)``.
        reset_after: the Keras layer's. False has no equivalent: the reset gate then acts before the product.
        activation: the Keras layer's, or its name; only tanh has an equivalent.
        recurrent_activation: the Keras layer's, or its name; only sigmoid has one.
        layer: index of the layer in the GRU for which the entries are; None for a GRUCell.
        reverse: whether they are for the reverse direction of a bidirectional GRU.

    Returns:
        ``weight_ih_l0`` and so on, on the CPU unless tensors were given.

    Raises:
        TypeError: if something is no array, or ``layer`` or ``reverse`` has another type.
        ValueError: if the layer has no equivalent in torch, or a number, shape, dtype or device is wrong.

    Examples:
        >>> import torch, tritongru
        >>> arrays = [torch.randn(8, 48), torch.randn(16, 48), torch.zeros(2, 48)]  # keras_layer.get_weights()
        >>> gru = tritongru.GRU(8, 16)
        >>> gru.load_state_dict(tritongru.weights.from_keras(arrays))
        <All keys matched successfully>
    """
    check_flags(reset_after=reset_after)
    if not reset_after:
        raise ValueError(
            f"reset_after=False has no equivalent in torch's GRU, {RESET_LAST}; train the Keras layer with "
            "reset_after=True"
        )
    check_activation("activation", activation, "tanh")
    check_activation("recurrent_activation", recurrent_activation, "sigmoid")
    if isinstance(weights, str) or not isinstance(weights, Sequence):
        raise TypeError(f"weights should be a list or tuple of arrays, got {type(weights).__name__}; {REMEDY}")
    if len(weights) not in (2, 3):
        raise ValueError(
            f"weights should hold 2 arrays, or 3 with biases, got {len(weights)}; {REMEDY}, and of a Bidirectional "
            "those of its forward_layer and its backward_layer, one after the other"
        )
    named: dict[str, Any] = dict(zip(("kernel", "recurrent_kernel"), weights, strict=False))
    if len(weights) == 3:
        if weights[2] is None:
            raise TypeError("bias should be an array, got None; leave it out for a layer without biases")
        bias = tensor_of("bias", weights[2])
        if bias.dim() == 1 and len(bias) % 3 == 0 and bias.shape == tensor_of("kernel", weights[0]).shape[-1:]:
            raise ValueError(
                f"bias should have the shape (2, 3 * H), got {tuple(bias.shape)}, that of a Keras layer with "
                f"reset_after=False, which has no equivalent in torch's GRU, {RESET_LAST}; train the Keras layer with "
                "reset_after=True"
            )
        check_shape("bias", bias, (2, None), "a row for the input and one for the state", REMEDY)
        named |= {"bias[0]": bias[0], "bias[1]": bias[1]}
    w_ih, w_hh, *biases = map(swapped, read_columns(named, REMEDY))
    return entries_of(Direction(w_ih, w_hh, *(biases or (None, None))), layer, reverse)


def to_keras(gru: nn.Module, *, layer: int = 0, reverse: bool = False) -> list[Tensor]:
    """The weights of one layer and direction for ``set_weights`` of a Keras GRU or GRUCell with its default
    ``reset_after=True``.

    Args:
        gru: a GRU or GRUCell of tritongru or torch.
        layer: index of the layer; a cell ignores it.
        reverse: whether to return the weights of the reverse direction.

    Returns:
        Kernel ``(I, 3H)``, recurrent kernel ``(H, 3H)`` and, unless ``bias=False``, biases ``(2, 3H)``, on the GRU's
        device. ``[w.cpu().numpy() for w in ...]`` makes them arrays.

    Raises:
        TypeError: if ``gru`` is neither.
        ValueError: if there is no such layer or direction, or a weight has another shape than its GRU says.
    """
    w_ih, w_hh, b_ih, b_hh = direction_of(gru, layer, reverse)
    found = [copied(swapped(w).t()) for w in (w_ih, w_hh)]
    if b_ih is not None and b_hh is not None:
        found.append(torch.stack((swapped(b_ih), swapped(b_hh))))
    return found

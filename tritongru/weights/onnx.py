"""ONNX's operator GRU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tritongru.weights.direction import (
    RESET_LAST,
    Direction,
    check_alike,
    check_shape,
    direction_of,
    entries_of,
    swapped,
    tensor_of,
)

DIRECTIONS = {"forward": 1, "bidirectional": 2}
ACTIVATIONS = ["sigmoid", "tanh"]  # of the gates, and of the candidate
REMEDY = "pass W, R and B of one GRU node as they are"


def from_onnx(
    W: Any,
    R: Any,
    B: Any = None,
    *,
    linear_before_reset: int = 0,
    direction: str | bytes = "forward",
    layer: int | None = 0,
    **attributes: Any,
) -> dict[str, Tensor]:
    """Entries for ``load_state_dict`` from the inputs W, R and B of an ONNX GRU node, both directions at once.

    ONNX computes the same equations if ``linear_before_reset`` is not 0, with z for torch's z; it keeps the gates in
    the order z r h: <https://onnx.ai/onnx/operators/onnx__GRU.html>. Pass the node's attributes, because their defaults
    are ONNX's, and that of ``linear_before_reset`` has no equivalent:

        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}

    Args:
        W: input weights ``(D, 3H, I)``, D directions, as ``onnx.numpy_helper.to_array`` returns them.
        R: recurrent weights ``(D, 3H, H)``.
        B: biases ``(D, 6H)``, of the input and then of the state; None for a node without.
        linear_before_reset: the node's. 0 has no equivalent: the reset gate then acts before the product.
        direction: the node's, "forward" or "bidirectional". "reverse" has no equivalent by weights alone.
        layer: index of the layer in the GRU for which the entries are; None for a GRUCell.
        attributes: the node's others. ``hidden_size`` is compared with R. ``layout`` changes no weights: 1 is for a GRU
            with ``batch_first=True``, but torch's h_n stays ``(D, B, H)``. ``activations`` have to be Sigmoid and Tanh;
            ``clip``, ``activation_alpha`` and ``activation_beta`` have no equivalent.

    Returns:
        ``weight_ih_l0`` and so on, for a bidirectional node also ``weight_ih_l0_reverse`` and so on, on the CPU unless
        tensors were given.

    Raises:
        TypeError: if something is no array, or ``layer`` has another type.
        ValueError: if the node has no equivalent in torch, an attribute is unknown, or a shape, dtype or device is
            wrong.
    """
    if not isinstance(linear_before_reset, int):
        raise TypeError(f"linear_before_reset should be 0 or 1, got {type(linear_before_reset).__name__}")
    if not linear_before_reset:
        raise ValueError(
            f"linear_before_reset={linear_before_reset!r}, ONNX's default, has no equivalent in torch's GRU, "
            f"{RESET_LAST}; pass the node's attributes, or train the layer with the reset gate after the product and "
            "export it again"
        )
    D = _directions(_text(direction))
    found = {name: tensor_of(name, value) for name, value in (("W", W), ("R", R), ("B", B)) if value is not None}
    for name in ("W", "R"):
        if name not in found:
            raise TypeError(f"{name} should be a tensor or an array, got None; {REMEDY}")
    H = max(1, found["R"].shape[-1] if found["R"].dim() else 1)
    spelled = f"(D, 3 * H, H) with D = {D} for direction={_text(direction)!r}"
    check_shape("R", found["R"], (D, 3 * H, H), spelled, REMEDY)
    check_shape("W", found["W"], (D, 3 * H, None), f"(D, 3 * H, I) with H = {H} as R has it", REMEDY)
    if B is not None:
        check_shape("B", found["B"], (D, 6 * H), f"(D, 6 * H) with H = {H} as R has it", REMEDY)
    check_alike(found)
    _check_attributes(attributes, D, H)
    if layer is None and D == 2:
        raise ValueError("layer=None is for a cell, which has one direction, got direction='bidirectional'")
    entries: dict[str, Tensor] = {}
    for d in range(D):
        biases = (None, None) if B is None else map(swapped, found["B"][d].chunk(2))
        entries |= entries_of(Direction(swapped(found["W"][d]), swapped(found["R"][d]), *biases), layer, d == 1)
    return entries


def to_onnx(gru: nn.Module, *, layer: int = 0) -> tuple[Tensor, Tensor, Tensor | None]:
    """The inputs W, R and B of an ONNX GRU node for one layer, both directions in one.

    The node has to have ``hidden_size``, ``linear_before_reset=1`` and, for a bidirectional GRU,
    ``direction="bidirectional"``. ``torch.onnx.export`` makes whole models.

    Args:
        gru: a GRU or GRUCell of tritongru or torch.
        layer: index of the layer; a cell ignores it.

    Returns:
        W ``(D, 3H, I)``, R ``(D, 3H, H)`` and B ``(D, 6H)``, or None for a GRU without biases, on the GRU's device.

    Raises:
        TypeError: if ``gru`` is neither.
        ValueError: if there is no such layer, or a weight has another shape than its GRU says.
    """
    sides = [direction_of(gru, layer, False)]
    if isinstance(gru, nn.RNNBase) and gru.bidirectional:
        sides.append(direction_of(gru, layer, True))
    W, R = (torch.stack([swapped(w) for w in ws]) for ws in ([s.w_ih for s in sides], [s.w_hh for s in sides]))
    biases = [torch.cat((swapped(s.b_ih), swapped(s.b_hh))) for s in sides if s.b_ih is not None and s.b_hh is not None]
    return W, R, torch.stack(biases) if biases else None


def _text(value: Any) -> str:
    """ONNX stores text as bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)


def _directions(direction: str) -> int:
    if direction == "reverse":
        raise ValueError(
            "direction='reverse' has no equivalent in torch's GRU, whose reverse direction comes with a forward one; "
            "load the weights with direction='forward' and call the GRU as gru(x.flip(0))[0].flip(0)"
        )
    if direction not in DIRECTIONS:
        raise ValueError(f"direction should be 'forward' or 'bidirectional', got {direction!r}; pass the node's own")
    return DIRECTIONS[direction]


def _check_attributes(attributes: dict[str, Any], D: int, H: int) -> None:
    for name, value in attributes.items():
        if value is None:  # not set
            continue
        if name == "hidden_size":
            if value != H:
                raise ValueError(f"hidden_size should be {H}, as R has it, got {value!r}; {REMEDY}")
        elif name == "layout":
            if value not in (0, 1):
                raise ValueError(f"layout should be 0 or 1, as in ONNX, got {value!r}; pass the node's own")
        elif name == "activations":
            _check_activations(value, D)
        elif name in ("activation_alpha", "activation_beta"):
            if len(value):
                raise ValueError(
                    f"{name}={list(value)} has no equivalent in torch's GRU, whose activations have no parameters; "
                    "train the layer with Sigmoid and Tanh"
                )
        elif name == "clip":
            raise ValueError(
                f"clip={value!r} has no equivalent in torch's GRU, which clips nothing; train or export the layer "
                "without clip"
            )
        else:
            raise ValueError(f"an ONNX GRU node has no attribute {name} from opset 7 on, got {value!r}; leave it out")


def _check_activations(value: Sequence[Any], D: int) -> None:
    names = [_text(name) for name in value]
    if [name.lower() for name in names] != ACTIVATIONS * D:
        raise ValueError(
            f"activations should be {['Sigmoid', 'Tanh'] * D}, which torch's GRU computes, got {names}; train the "
            "layer with these"
        )

"""Flax, both of its interfaces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tritongru.weights.columns import read_columns
from tritongru.weights.direction import (
    Direction,
    check_activation,
    check_alike,
    check_names,
    check_shape,
    copied,
    direction_of,
    entries_of,
    tensor_of,
)

# What each part of a cell holds, in torch's order of the gates.
LINEN = {
    "ir": ("kernel", "bias"),
    "iz": ("kernel", "bias"),
    "in": ("kernel", "bias"),
    "hr": ("kernel",),
    "hz": ("kernel",),
    "hn": ("kernel", "bias"),
}
NNX = {"dense_i": ("kernel", "bias"), "dense_h": ("kernel",)}
REMEDY = "pass the tree of a GRUCell alone, such as variables['params'] of flax.linen or nnx.state(cell) of flax.nnx"


def from_flax(
    params: Mapping[str, Any],
    *,
    gate_fn: Any = "sigmoid",
    activation_fn: Any = "tanh",
    layer: int | None = 0,
    reverse: bool = False,
) -> dict[str, Tensor]:
    """Entries for ``load_state_dict`` from a GRUCell of ``flax.linen`` or ``flax.nnx``.

    Both compute the same equations, with z for torch's z, and have one bias for each gate; ``flax.linen`` has a second
    for the candidate, inside the product with r:
    <https://flax.readthedocs.io/en/latest/api_reference/flax.linen/layers.html#flax.linen.GRUCell>. The candidate of
    ``flax.nnx`` has none there, whatever its documentation says (flax 0.12.8):
    <https://flax.readthedocs.io/en/latest/api_reference/flax.nnx/nn/recurrent.html>. Biases that Flax does not have are
    zeros. The tree does not show how a cell computes, so pass on what differs from Flax's defaults.

    Args:
        params: parameters of the cell alone. ``flax.linen``: ``ir``, ``iz``, ``in``, ``hr``, ``hz`` and ``hn``, each
            with a ``kernel`` ``(I, H)`` or ``(H, H)``, and all but ``hr`` and ``hz`` with a ``bias`` ``(H,)``.
            ``flax.nnx``: ``dense_i`` with ``kernel`` ``(I, 3H)`` and ``bias`` ``(3H,)``, and ``dense_h`` with
            ``kernel`` ``(H, 3H)``.
        gate_fn: the cell's, or its name; only sigmoid has an equivalent.
        activation_fn: the cell's, or its name; only tanh has one.
        layer: index of the layer in the GRU for which the entries are; None for a GRUCell.
        reverse: whether they are for the reverse direction of a bidirectional GRU.

    Returns:
        ``weight_ih_l0`` and so on, biases included, on the CPU unless tensors were given.

    Raises:
        TypeError: if something is no array, or ``layer`` or ``reverse`` has another type.
        ValueError: if a function has no equivalent in torch, or a name, shape, dtype or device is wrong.
    """
    check_activation("gate_fn", gate_fn, "sigmoid")
    check_activation("activation_fn", activation_fn, "tanh")
    is_nnx = isinstance(params, Mapping) and not set(params).isdisjoint(NNX)
    direction = _read_nnx(_flat(params, NNX)) if is_nnx else _read_linen(_flat(params, LINEN))
    return entries_of(direction, layer, reverse)


def to_flax(
    gru: nn.Module, *, nnx: bool = False, layer: int = 0, reverse: bool = False
) -> dict[str, dict[str, Tensor]]:
    """The parameters of a GRUCell of Flax for one layer and direction.

    Flax has one bias for each of r and z, the sum of torch's two, so the way back through `from_flax` gives the sum and
    zeros: the same function to rounding, not the same tensors. Biases of a GRU without are zeros.

    Args:
        gru: a GRU or GRUCell of tritongru or torch.
        nnx: whether the cell is of ``flax.nnx``, whose candidate has no bias for the state; False for ``flax.linen``.
        layer: index of the layer; a cell ignores it.
        reverse: whether to return the weights of the reverse direction.

    Returns:
        The tree that `from_flax` takes, on the GRU's device. ``jax.tree.map(lambda w: w.cpu().numpy(), ...)`` makes it
        one of arrays.

    Raises:
        TypeError: if ``gru`` is neither.
        ValueError: if there is no such layer or direction, a weight has another shape than its GRU says, or ``nnx`` and
            the candidate's recurrent bias is not zero.
    """
    w_ih, w_hh, b_ih, b_hh = direction_of(gru, layer, reverse)
    H = w_hh.shape[1]
    b_ih, b_hh = (w_hh.new_zeros(3 * H) if b is None else b for b in (b_ih, b_hh))
    bias = torch.cat((b_ih[: 2 * H] + b_hh[: 2 * H], b_ih[2 * H :]))
    if nnx:
        if b_hh[2 * H :].any():
            raise ValueError(
                "flax.nnx's GRUCell has no recurrent bias in its candidate, but this layer's has values of size up to "
                f"{float(b_hh[2 * H :].abs().max()):.3g}; use the cell of flax.linen, or train without biases"
            )
        return {"dense_i": {"kernel": copied(w_ih.t()), "bias": bias}, "dense_h": {"kernel": copied(w_hh.t())}}
    kernels = [copied(w.t()) for w in (*w_ih.chunk(3), *w_hh.chunk(3))]
    found = {name: {"kernel": kernel} for name, kernel in zip(LINEN, kernels, strict=True)}
    biases = [copied(b) for b in (*bias.chunk(3), b_hh[2 * H :])]
    holders = [name for name, held in LINEN.items() if "bias" in held]
    for name, b in zip(holders, biases, strict=True):
        found[name]["bias"] = b
    return found


def _flat(params: Mapping[str, Any], expected: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    """By names such as ir.kernel, in the order of ``expected``."""
    check_names("params", params, tuple(expected), REMEDY)
    for part, names in expected.items():
        check_names(f"params[{part!r}]", params[part], names, REMEDY)
    return {f"{part}.{name}": params[part][name] for part, names in expected.items() for name in names}


def _read_nnx(flat: dict[str, Any]) -> Direction:
    order = ("dense_i.kernel", "dense_h.kernel", "dense_i.bias")
    w_ih, w_hh, b_ih = read_columns({name: flat[name] for name in order}, REMEDY)
    return Direction(w_ih, w_hh, b_ih, torch.zeros_like(b_ih))


def _read_linen(flat: dict[str, Any]) -> Direction:
    found = {name: tensor_of(name, value) for name, value in flat.items()}
    H = max(1, found["hn.bias"].numel())
    I = found["ir.kernel"].shape[0] if found["ir.kernel"].dim() else None
    for name, tensor in found.items():
        if name.endswith(".bias"):
            check_shape(name, tensor, (H,), f"(H,) with H = {H} as hn.bias has it", REMEDY)
        elif name.startswith("i"):
            check_shape(name, tensor, (I, H), f"(I, H) with H = {H} as hn.bias has it", REMEDY)
        else:
            check_shape(name, tensor, (H, H), f"(H, H) with H = {H} as hn.bias has it", REMEDY)
    check_alike(found)
    w_ih = torch.cat([found[f"{name}.kernel"].t() for name in ("ir", "iz", "in")])
    w_hh = torch.cat([found[f"{name}.kernel"].t() for name in ("hr", "hz", "hn")])
    b_ih = torch.cat([found[f"{name}.bias"] for name in ("ir", "iz", "in")])
    b_hn = found["hn.bias"]
    return Direction(w_ih, w_hh, b_ih, torch.cat((b_hn.new_zeros(2 * H), b_hn)))

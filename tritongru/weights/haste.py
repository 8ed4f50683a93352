"""haste."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from tritongru.weights.columns import read_columns
from tritongru.weights.direction import Direction, check_names, copied, direction_of, entries_of, swapped

NAMES = ("kernel", "recurrent_kernel", "bias", "recurrent_bias")
REMEDY = "pass the state_dict of one haste_pytorch.GRU"


def from_haste(
    state: Mapping[str, Any], *, zoneout: float = 0.0, layer: int | None = 0, reverse: bool = False
) -> dict[str, Tensor]:
    """Entries for ``load_state_dict`` from a ``haste_pytorch.GRU``.

    haste computes the same equations, with z for torch's z; it keeps the gates in the order z r h, in matrices that are
    multiplied from the right: <https://github.com/lmnt-com/haste/blob/master/docs/pytorch/haste_pytorch/GRU.md>. Its
    ``dropout`` acts in training only; its ``zoneout`` acts in inference, too, and has no equivalent.

    Args:
        state: its ``state_dict()``: ``kernel`` ``(I, 3H)``, ``recurrent_kernel`` ``(H, 3H)``, ``bias`` and
            ``recurrent_bias`` ``(3H,)``.
        zoneout: the haste layer's, which has to be 0.
        layer: index of the layer in the GRU for which the entries are; None for a GRUCell.
        reverse: whether they are for the reverse direction of a bidirectional GRU.

    Returns:
        ``weight_ih_l0`` and so on.

    Raises:
        TypeError: if something is no array, or ``layer`` or ``reverse`` has another type.
        ValueError: if ``zoneout`` is not 0, or a name, shape, dtype or device is wrong.
    """
    if zoneout != 0:
        raise ValueError(
            f"zoneout={zoneout!r} has no equivalent in torch's GRU, since it mixes states in inference, too; train the "
            "haste layer with zoneout=0"
        )
    check_names("state", state, NAMES, REMEDY)
    w_ih, w_hh, b_ih, b_hh = map(swapped, read_columns({name: state[name] for name in NAMES}, REMEDY))
    return entries_of(Direction(w_ih, w_hh, b_ih, b_hh), layer, reverse)


def to_haste(gru: nn.Module, *, layer: int = 0, reverse: bool = False) -> dict[str, Tensor]:
    """The weights of one layer and direction for ``load_state_dict`` of a ``haste_pytorch.GRU``, which always has
    biases: those of a GRU without are zeros.

    Args:
        gru: a GRU or GRUCell of tritongru or torch.
        layer: index of the layer; a cell ignores it.
        reverse: whether to return the weights of the reverse direction.

    Returns:
        The names and shapes that `from_haste` takes, on the GRU's device.

    Raises:
        TypeError: if ``gru`` is neither.
        ValueError: if there is no such layer or direction, or a weight has another shape than its GRU says.
    """
    w_ih, w_hh, *biases = direction_of(gru, layer, reverse)
    vectors = (w_hh.new_zeros(w_hh.shape[0]) if b is None else swapped(b) for b in biases)
    return dict(zip(NAMES, (copied(swapped(w_ih).t()), copied(swapped(w_hh).t()), *vectors), strict=True))

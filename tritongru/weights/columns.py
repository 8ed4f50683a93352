"""What Keras, haste and flax.nnx have in common: matrices that are multiplied from the right, all gates in one."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tritongru.weights.direction import check_alike, check_shape, tensor_of


def read_columns(arrays: dict[str, Any], remedy: str) -> list[Tensor]:
    """Two matrices by their names, the input's (I, 3H) and the state's (H, 3H), and vectors (3H,) if there are any; as
    tensors, transposed to torch's (3H, I) and (3H, H), with the order of the gates as it is."""
    found = {name: tensor_of(name, value) for name, value in arrays.items()}
    kernel, recurrent, *vectors = found
    H = max(1, min(found[recurrent].shape, default=1))
    check_shape(recurrent, found[recurrent], (H, 3 * H), "(H, 3 * H) for three gates", remedy)
    check_shape(kernel, found[kernel], (None, 3 * H), f"(I, 3 * H) with H = {H} as {recurrent} has it", remedy)
    for name in vectors:
        check_shape(name, found[name], (3 * H,), f"(3 * H,) with H = {H} as {recurrent} has it", remedy)
    check_alike(found)
    return [found[kernel].t(), found[recurrent].t(), *(found[name] for name in vectors)]

"""Weights of the GRUs of other frameworks, each way: Keras, Flax, ONNX and haste.

``from_...`` takes the arrays of one layer and returns entries for ``load_state_dict``; ``to_...`` takes a GRU or a cell
and returns the tensors of one layer in the other layout. Only torch is needed, since an array is read by what it offers
itself (``__array__``). Values and dtypes do not change, and what is returned is a copy, without a graph and contiguous.
"""

from tritongru.weights.flax import from_flax, to_flax
from tritongru.weights.haste import from_haste, to_haste
from tritongru.weights.keras import from_keras, to_keras
from tritongru.weights.onnx import from_onnx, to_onnx

__all__ = ["from_flax", "from_haste", "from_keras", "from_onnx", "to_flax", "to_haste", "to_keras", "to_onnx"]

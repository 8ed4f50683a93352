"""Registers layers and operators with torch's flop counter and its dynamic quantization."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

COUNTER = "torch.utils.flop_counter"
MAPPINGS = "torch.ao.quantization.quantization_mappings"


def forward_flops(x: Tensor, w_ih: Tensor, w_hh: Tensor) -> int:
    """As torch counts nn.GRU: two per multiply-add of its products, none for the gates."""
    rows, inputs = x.shape
    directions, gates, hidden = w_hh.shape
    return 2 * rows * directions * gates * (inputs + hidden)


def backward_flops(x: Tensor, w_hh: Tensor, batch: int, offsets: Tensor | None, needs: Sequence[bool]) -> int:
    """Those of nn.GRU's backward pass: a product over all rows for each gradient that is needed, and one for the
    previous states over the rows whose previous state is not h0, or over all rows if h0 needs a gradient."""
    need_x, need_w_ih, need_w_hh, _, _, need_h0, _ = needs
    rows, inputs = x.shape
    directions, gates, hidden = w_hh.shape
    products = rows * directions * (inputs * (need_x + need_w_ih) + hidden * need_w_hh)
    states = rows * directions
    if not need_h0:
        states -= batch + (directions - 1) * _last_rows(batch, offsets)
    return 2 * gates * (products + hidden * states)


def _last_rows(batch: int, offsets: Tensor | None) -> int:
    """Rows of the last step, where the reverse direction starts; on a GPU they are not read, to avoid a wait."""
    if offsets is None or type(offsets) is not Tensor or offsets.device.type != "cpu":
        return batch
    return int(offsets[-1] - offsets[-2])


def _count_forward(x: Tensor, w_ih: Tensor, w_hh: Tensor, *_: Any, **__: Any) -> int:
    return forward_flops(x, w_ih, w_hh)


def _count_infer(x: Tensor, hx: Tensor | None, weights: Sequence[Tensor], num_layers: int, **_: Any) -> int:
    each, rows = len(weights) // num_layers, x.shape[0] * x.shape[1]
    products = (sum(w.shape[0] * w.shape[1] for w in weights[k : k + 2]) for k in range(0, len(weights), each))
    return 2 * rows * sum(products)


def _count_step(
    x: Tensor, hx: Tensor | None, reset: Tensor | None, weights: Sequence[Tensor], num_layers: int, *_: Any, **__: Any
) -> int:
    return _count_infer(x[None], hx, weights, num_layers)


def _count_cell_infer(x: Tensor, hx: Tensor | None, w_ih: Tensor, w_hh: Tensor, *_: Any, **__: Any) -> int:
    return 2 * x.shape[0] * (w_ih.shape[0] * w_ih.shape[1] + w_hh.shape[0] * w_hh.shape[1])


def _count_backward(*args: Any, **_: Any) -> int:
    x, w_hh, offsets, batch, needs = args[2], args[4], args[9], args[12], args[15]
    return backward_flops(x, w_hh, batch, offsets, needs)


def _count_routed_backward(*args: Any, **_: Any) -> int:
    x, w_hh, batch, needs = args[2], args[4], args[11], args[16]
    return backward_flops(x, w_hh, batch, None, needs)


def _add_formulas(counter: Any) -> None:
    for name, formula in (
        ("gru_forward", _count_forward),
        ("gru_backward", _count_backward),
        ("gru_routed_forward", _count_forward),
        ("gru_routed_backward", _count_routed_backward),
        ("gru_infer", _count_infer),
        ("gru_cell_infer", _count_cell_infer),
        ("gru_step", _count_step),
        ("gru_step_out", _count_step),
    ):
        counter.register_flop_formula(getattr(torch.ops.tritongru, name), get_raw=True)(formula)


class _WhenImported:
    """Adds the formulas once the flop counter is imported: importing it here would take longer than tritongru."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        loader: Any = spec and spec.loader
        if loader is not None:
            load = loader.exec_module

            def load_and_add(module: Any) -> None:
                load(module)
                _add_formulas(module)

            loader.exec_module = load_and_add
        return spec


class _DynamicallyQuantized:
    """Lets ``torch.ao.quantization.quantize_dynamic`` quantize our layers as it does torch's."""

    @staticmethod
    def from_float(ours: Any, use_precomputed_fake_quant: bool = False) -> nn.Module:
        torchs = ours.to_torch()
        maker: Any = getattr(torch.ao.nn.quantized.dynamic, type(torchs).__name__)
        return maker.from_float(torchs)  # type: ignore[no-any-return]


def register(*classes: type) -> None:
    """Makes our layers and operators known to torch's tools, without importing them."""
    if COUNTER in sys.modules:
        _add_formulas(sys.modules[COUNTER])
    else:
        sys.meta_path.insert(0, _WhenImported())
    mappings = getattr(sys.modules.get(MAPPINGS), "DEFAULT_DYNAMIC_QUANT_MODULE_MAPPINGS", None)
    if mappings is not None:
        mappings.update(dict.fromkeys(classes, _DynamicallyQuantized))

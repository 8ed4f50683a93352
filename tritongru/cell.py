"""``GRUCell``: torch's cell, with the loop's step where that is faster."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tritongru.arguments.checks import check_choice
from tritongru.interop.adoption import CELL_WEIGHTS, adopt, check_class, check_parameters
from tritongru.interop.exporters import fx_leaf
from tritongru.interop.inference_ops import DTYPES, infer_step, wants_results_alone
from tritongru.planning.cpu_plan import refusal_on_cpu

IMPLS = ("auto", "llvm", "torch")


class GRUCell(nn.GRUCell):
    """One time step of a GRU, a drop-in for :class:`torch.nn.GRUCell`: same arguments, parameters, state_dict, results,
    errors. On a CPU a call without gradients runs the step of the compiled loop; whatever else is asked for, torch's.

    Args:
        input_size: features I of the input.
        hidden_size: hidden units H.
        bias: whether there are ``b_ih`` and ``b_hh``.
        device, dtype: of the parameters.
        impl: ``"auto"``; ``"llvm"``, which raises with the reason where a call without gradients cannot run the loop;
            or ``"torch"``.

    ``forward(input, hx=None)`` takes ``(B, I)`` or ``(I,)`` and hx ``(B, H)`` or ``(H,)``, and returns the new state in
    the shape of hx. Equations and their source: :func:`tritongru.gru`.
    """

    impl: str = "auto"  # also of a cell that __init__ has not made: an old pickle, a changed class

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        impl: str = "auto",
    ) -> None:
        check_choice("impl", impl, IMPLS)
        super().__init__(input_size, hidden_size, bias, device, dtype)
        self.impl = impl

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        if isinstance(input, torch.fx.Proxy) or isinstance(hx, torch.fx.Proxy):
            return fx_leaf(self, input, hx)
        if self.impl == "llvm" and not torch.is_grad_enabled() and isinstance(input, Tensor):
            self._check_loop(input)
        if wants_results_alone(input, hx, self.impl):
            own = self._parameters
            weights = [own[name] if name in own else getattr(self, name) for name in CELL_WEIGHTS]
            if input.dim() == 2:
                found = infer_step(input, hx, weights, self.impl)
            else:
                states = None if hx is None else hx.unsqueeze(0)
                found = infer_step(input.unsqueeze(0), states, weights, self.impl)
                found = None if found is None else found.squeeze(0)
            if found is not None:
                return found
        return super().forward(input, hx)

    def _check_loop(self, input: Tensor) -> None:
        refusal = refusal_on_cpu(input.device, input.dtype)
        if not refusal and input.dtype not in DTYPES:
            refusal = f"its step does not compute in {str(input.dtype).removeprefix('torch.')}"
        if refusal:
            raise RuntimeError(f"impl='llvm' cannot run this cell: {refusal} (impl='auto' runs torch's own there)")

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.impl == "auto" else f"{text}, impl={self.impl!r}"

    @classmethod
    def from_torch(cls, cell: nn.GRUCell, *, impl: str = "auto", copy: bool = False) -> GRUCell:
        """A cell with all that ``cell`` has: its parameters (the same objects, or copies of them), its hooks, further
        attributes, and whether it trains.

        Raises:
            TypeError: if ``cell`` is no torch.nn.GRUCell, or of a subclass, whose own methods would be lost.
            ValueError: if a weight is computed, or the object has a forward of its own.
        """
        if not isinstance(cell, nn.GRUCell):
            raise TypeError(f"expected a torch.nn.GRUCell, got {type(cell).__name__}")
        check_parameters(cell)
        check_class(cell, nn.GRUCell)
        new = cls(cell.input_size, cell.hidden_size, cell.bias, "meta", impl=impl)
        adopt(new, cell, copy)
        return new

    def to_torch(self, *, copy: bool = False) -> nn.GRUCell:
        """A :class:`torch.nn.GRUCell` with all that this cell has, as by :meth:`from_torch`."""
        check_parameters(self)
        check_class(self, GRUCell)
        new = nn.GRUCell(self.input_size, self.hidden_size, self.bias, "meta")
        adopt(new, self, copy)
        return new

    def __prepare_scriptable__(self) -> nn.GRUCell:
        """What ``torch.jit.script`` compiles in the place of this cell."""
        return self.to_torch()

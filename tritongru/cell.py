"""``GRUCell``: torch's cell, using a compiled step where that is faster."""

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
    """One time step of a GRU, a drop-in replacement for `torch.nn.GRUCell`: same arguments, parameters and results.

    ``forward(input, hx=None)`` takes input ``(B, I)`` or ``(I,)`` and hx ``(B, H)`` or ``(H,)``, and returns the new
    state in the shape of hx. On a CPU, calls without gradients run a compiled step where it is faster;
    all other calls run torch's cell. B batch size, I input size, H hidden size.
    For the equations and their source, see `tritongru.gru`.

    Args:
        input_size: input features I.
        hidden_size: hidden units H.
        bias: whether there are ``b_ih`` and ``b_hh``.
        device: device of the parameters.
        dtype: dtype of the parameters.
        impl: ``"auto"`` uses the compiled step where it is faster; ``"llvm"`` raises with the reason if a call without
            gradients cannot use it; ``"torch"`` is torch's own cell.

    Raises:
        ValueError: if ``impl`` is none of these.
    """

    impl: str = "auto"  # also for cells not made by __init__: an old pickle, a changed class

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
            refusal = f"the compiled step does not support {str(input.dtype).removeprefix('torch.')}"
        if refusal:
            raise RuntimeError(f"impl='llvm' cannot run this cell: {refusal} (impl='auto' runs torch.nn.GRUCell here)")

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.impl == "auto" else f"{text}, impl={self.impl!r}"

    @classmethod
    def from_torch(cls, cell: nn.GRUCell, *, impl: str = "auto", copy: bool = False) -> GRUCell:
        """Convert a `torch.nn.GRUCell`: the new cell takes over its parameters (shared or copied), hooks, other
        attributes and training mode.

        Args:
            cell: a module whose class is exactly `torch.nn.GRUCell`.
            impl: as in `GRUCell`.
            copy: whether to copy parameters and buffers instead of sharing them.

        Returns:
            The converted cell.

        Raises:
            TypeError: if ``cell`` is not a `torch.nn.GRUCell`, or is a subclass, whose own methods would be lost.
            ValueError: if a weight is computed, or the object has its own forward.
        """
        if not isinstance(cell, nn.GRUCell):
            raise TypeError(f"expected a torch.nn.GRUCell, got {type(cell).__name__}")
        check_parameters(cell)
        check_class(cell, nn.GRUCell)
        new = cls(cell.input_size, cell.hidden_size, cell.bias, "meta", impl=impl)
        adopt(new, cell, copy)
        return new

    def to_torch(self, *, copy: bool = False) -> nn.GRUCell:
        """Convert back to a `torch.nn.GRUCell`, taking over everything that `from_torch` does.

        Args:
            copy: whether to copy parameters and buffers instead of sharing them.

        Returns:
            The converted cell.

        Raises:
            TypeError, ValueError: as for `from_torch`.
        """
        check_parameters(self)
        check_class(self, GRUCell)
        new = nn.GRUCell(self.input_size, self.hidden_size, self.bias, "meta")
        adopt(new, self, copy)
        return new

    def __prepare_scriptable__(self) -> nn.GRUCell:
        """What ``torch.jit.script`` compiles in place of this cell."""
        return self.to_torch()

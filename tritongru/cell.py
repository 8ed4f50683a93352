"""``GRUCell``: torch's cell, using a compiled step where that is faster."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tritongru.arguments.checks import check_choice
from tritongru.arguments.options import IMPLS
from tritongru.interop.adoption import CELL_WEIGHTS, TORCH_CELL, adopt, check_class, check_parameters, torchs_own
from tritongru.interop.exporters import fx_leaf
from tritongru.interop.inference_ops import DTYPES, infer_step, wants_results_alone
from tritongru.interop.step_ops import run_step
from tritongru.interop.stepping import takes_kernel
from tritongru.planning.cpu_plan import CELL_ROWS, refusal_on_cpu


class GRUCell(nn.GRUCell):
    """One time step of a GRU, a drop-in replacement for `torch.nn.GRUCell`: same arguments, parameters and results.

    ``forward(input, hx=None)`` takes input ``(B, I)`` or ``(I,)`` and hx ``(B, H)`` or ``(H,)``, and returns the new
    state in the shape of hx. Calls without gradients run a compiled step where it is faster on a CPU, and on a GPU one
    Triton kernel; all other calls run torch's cell. B batch size, I input size, H hidden size.
    For the equations and their source, see `tritongru.gru`.

    Args:
        input_size: input features I.
        hidden_size: hidden units H.
        bias: whether there are ``b_ih`` and ``b_hh``.
        device: device of the parameters.
        dtype: dtype of the parameters.
        impl: ``"auto"`` uses the compiled step where it is faster, or the kernel; ``"llvm"`` and ``"triton"`` raise
            with the reason if a call without gradients cannot use it; ``"torch"`` is torch's own cell.

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
        several = isinstance(input, Tensor) and input.is_cpu and input.dim() == 2 and len(input) != CELL_ROWS
        if several and self.impl == "auto":  # `takes_cell` refuses these, too, but to ask it takes microseconds
            return super().forward(input, hx)
        if self.impl in ("llvm", "triton") and not torch.is_grad_enabled() and isinstance(input, Tensor):
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
        if isinstance(input, Tensor) and input.is_cuda:
            found = self._on_gpu(input, hx)
            if found is not None:
                return found
        return super().forward(input, hx)

    def _on_gpu(self, input: Tensor, hx: Tensor | None) -> Tensor | None:
        """The new state by the kernel, or None if torch's cell runs, or reports what is wrong."""
        weights = [w for name in CELL_WEIGHTS if (w := getattr(self, name)) is not None]
        if not takes_kernel(self.impl, self.hidden_size, input, hx, weights):
            return None
        wide = input.dim() == 2
        x, state = (input, hx) if wide else (input.unsqueeze(0), None if hx is None else hx.unsqueeze(0))
        try:
            y, _ = run_step(x, None if state is None else state.unsqueeze(0), None, weights, 1)
        except RuntimeError:
            return None
        return y if wide else y.squeeze(0)

    def _check_loop(self, input: Tensor) -> None:
        if self.impl == "triton":
            if not input.is_cuda:
                raise RuntimeError(
                    f"impl='triton' cannot run this cell: the tensors are on {input.device}, but the kernel needs a "
                    "GPU (impl='auto' runs torch.nn.GRUCell here)"
                )
            return
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
        if not isinstance(cell, TORCH_CELL):
            raise TypeError(f"expected a torch.nn.GRUCell, got {type(cell).__name__}")
        check_parameters(cell)
        check_class(cell, TORCH_CELL)
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
        new = torchs_own(TORCH_CELL, self.input_size, self.hidden_size, self.bias, "meta")
        adopt(new, self, copy)
        return new

    def __prepare_scriptable__(self) -> nn.GRUCell:
        """What ``torch.jit.script`` compiles in place of this cell."""
        return self.to_torch()

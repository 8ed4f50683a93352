"""``GRU``: torch's module with the layer's forward replaced."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from tritongru.arguments.checks import check_choice, check_dtype, check_features, check_order
from tritongru.arguments.options import IMPLS, Options
from tritongru.functional import run
from tritongru.interop.adoption import adopt, arguments_of, check_class, check_parameters
from tritongru.interop.exporters import fx_leaf
from tritongru.interop.inference_ops import infer, wants_results_alone
from tritongru.interop.torch_path import draws_dropout
from tritongru.planning.devices import check_size
from tritongru.planning.memory import MEMORIES
from tritongru.warmup import Warmup, warm

__all__ = ["GRU", "TorchTypeGRU"]


def _arguments_of_gru(
    input_size: int,
    hidden_size: int,
    num_layers: int = 1,
    bias: bool = True,
    batch_first: bool = False,
    dropout: float = 0.0,
    bidirectional: bool = False,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    impl: str = "auto",
    memory: str = "auto",
) -> None:
    """What help() and torch.nn.utils.skip_init see of ``GRU``; its __init__ takes positions as torch.nn.GRU does."""


class GRU(nn.RNNBase):
    """A multi-layer GRU, a drop-in for :class:`torch.nn.GRU`: same arguments, parameters, state_dict, results, errors.

    Args:
        input_size: features I of the input.
        hidden_size: hidden units H.
        num_layers: stacked layers L.
        bias: whether there are ``b_ih`` and ``b_hh``.
        batch_first: input and output as ``(B, T, features)``; never h_n.
        dropout: probability of zeroing an output of each layer but the last, in training; drawn from torch's own
            generator on every device.
        bidirectional: D = 2 directions instead of 1.
        device, dtype: of the parameters.
        impl: ``"auto"`` takes the Triton kernels where the plan has one (``explain`` says why or why not),
            ``"triton"`` never falls back but raises with the plan's reason, ``"torch"`` is torch's own GRU.
        memory: what Triton's forward keeps for the backward: ``"save"`` the four gate values of each output,
            ``"recompute"`` them in the backward from the states, or ``"auto"``: save them where those of all layers
            take at most an eighth of the device's memory.

    ``forward(input, hx=None)`` takes ``(T, B, I)``, ``(B, T, I)`` if ``batch_first``, ``(T, I)`` or a PackedSequence,
    and hx ``(L * D, B, H)`` or ``(L * D, H)``; it returns ``(output, h_n)`` like torch.nn.GRU. Equations and their
    source: :func:`tritongru.gru`.

    What differs: ``isinstance(m, torch.nn.GRU)`` is False, because ``torch.compile`` refuses whatever it is true of
    (:class:`TorchTypeGRU` is both); CUDA autocast answers the dtype that was asked for. ``torch.jit.trace`` and
    ``torch.jit.script`` of a model record torch's GRU in the layer's place.
    """

    __signature__ = inspect.signature(_arguments_of_gru)

    impl: str = "auto"  # also of a module that __init__ has not made: an old pickle, a changed class
    memory: str = "auto"

    def __init__(self, *args: Any, impl: str = "auto", memory: str = "auto", **kwargs: Any) -> None:
        if "proj_size" in kwargs or (len(args) > 7 and isinstance(args[7], int) and args[7] != 0):
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        check_choice("impl", impl, IMPLS)
        check_choice("memory", memory, MEMORIES)
        nn.RNNBase.__init__(self, "GRU", *args, **kwargs)  # super() may be torch.nn.GRU, which takes no mode
        self.impl = impl
        self.memory = memory

    def __setattr__(self, name: str, value: Any) -> None:
        try:
            super().__setattr__(name, value)
        except TypeError:  # by now RNNBase has listed the refused value among its weights
            self._flat_weights = [self._parameters[n] for n in self._flat_weights_names]
            raise

    def forward(
        self, input: Tensor | PackedSequence, hx: Tensor | None = None
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        if (
            not self.bidirectional
            and (self.dropout == 0 or (self.dropout <= 1 and not self.training))
            and wants_results_alone(input, hx, self.impl)  # type: ignore[arg-type]  # of a PackedSequence it is not true
        ):
            found = infer(input, hx, self._weights(), self.num_layers, self.batch_first, self.impl)  # type: ignore[arg-type]
            if found is not None:
                return found
        if isinstance(input, torch.fx.Proxy) or isinstance(hx, torch.fx.Proxy):
            return fx_leaf(self, input, hx)
        if isinstance(input, PackedSequence):
            data, batch_sizes, sorted_indices, unsorted_indices = input
            check_order(data, hx, sorted_indices, unsorted_indices)
            if hx is not None:
                hx = self.permute_hidden(hx, sorted_indices)
            output, h_n = self._run(data, hx, batch_sizes)
            packed = PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)
            return packed, self.permute_hidden(h_n, unsorted_indices)
        if input.dim() not in (2, 3):
            raise ValueError(f"GRU: Expected input to be 2D or 3D, got {input.dim()}D instead")
        if input.dim() == 3:
            if hx is not None and hx.dim() != 3:
                raise RuntimeError(f"For batched 3-D input, hx should also be 3-D but got {hx.dim()}-D tensor")
            return self._run(input, hx, None)
        if hx is not None:
            if hx.dim() != 2:
                raise RuntimeError(f"For unbatched 2-D input, hx should also be 2-D but got {hx.dim()}-D tensor")
            hx = hx.unsqueeze(1)
        batch_dim = 0 if self.batch_first else 1
        output, h_n = self._run(input.unsqueeze(batch_dim), hx, None)
        return output.squeeze(batch_dim), h_n.squeeze(1)

    def _run(self, input: Tensor, hx: Tensor | None, batch_sizes: Tensor | None) -> tuple[Tensor, Tensor]:
        if hx is None:
            self.check_input(input, batch_sizes)
        else:
            self.check_forward_args(input, hx, batch_sizes)
        options = Options(
            self.num_layers,
            self.bias,
            self.batch_first,
            self.dropout,
            self.training,
            self.bidirectional,
            self.impl,
            self.memory,
        )
        return run(input, hx, self._weights(), batch_sizes, options)

    def _weights(self) -> list[Tensor]:
        """The weights as they are now: parameters, or what a parametrization or functional_call put in their place."""
        own, names = self._parameters, self._flat_weights_names
        # getattr would take a microsecond to come to the parameters.
        weights: list[Any] = [own[name] if name in own else getattr(self, name) for name in names]
        for name, weight in zip(names, weights, strict=True):
            if weight is None:
                raise TypeError(f"{name} is None; assign a torch.nn.Parameter to it")
        if self.impl != "triton" and weights[0].is_cuda and not torch.compiler.is_compiling():
            self._flatten_again(weights)
        return weights

    def _flatten_again(self, weights: list[Tensor]) -> None:
        """What nn.GRU does when a parameter was replaced, so that cuDNN finds one buffer again. Computed weights stay
        out of it: they change with every call, and a module that holds them cannot be copied."""
        kept = zip(self._flat_weight_refs, weights, strict=False)
        replaced = any(ref is None or ref() is not w for ref, w in kept)
        if replaced and all(isinstance(w, nn.Parameter) for w in weights):
            self._init_flat_weights()

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        check_dtype(input, getattr(self, self._flat_weights_names[0]))
        check_features(input, batch_sizes, self.input_size)

    def flatten_parameters(self) -> None:
        """Bring the weights into the buffer that makes torch's path fast on CUDA; the Triton path needs none.

        With dropout between layers that path runs layer by layer, so then each layer gets a buffer of its own."""
        weights = self._flat_weights
        first = weights[0] if weights else None
        if not isinstance(first, Tensor) or not draws_dropout(first, self.dropout, self.num_layers):
            super().flatten_parameters()
            return
        each = len(weights) // self.num_layers
        for layer in range(self.num_layers):
            view = _LayerView(self, weights[layer * each : (layer + 1) * each])
            nn.RNNBase.flatten_parameters(view)  # type: ignore[arg-type]

    def warmup(self, batch: int, time: int, *, packed: bool = False) -> Warmup:
        """Compile, side by side, every kernel that calls with such a batch will need, so that no call waits for one.

        They are those of a forward without gradients and, if the module is in training mode and a parameter requires
        gradients, of a training step, with and without hx, in the module's dtype (within autocast: in autocast's) and
        under torch's present precision switch. Other numbers of time steps need no other kernels; a batch may, where
        the plan takes another configuration for it. Each kernel runs once, on zeros, and the call waits for the GPU;
        parameters, gradients and random numbers stay as they are. Where torch's GRU runs, nothing is compiled.

        Args:
            batch: batch size B.
            time: time steps T, on which the plan and ``memory="auto"`` may depend.
            packed: for a PackedSequence instead of a tensor.

        Returns:
            the kernels, and the seconds that each took and all together.

        Raises:
            TypeError, ValueError: if batch or time is no whole number of at least 1, or absurdly large.
            RuntimeError: as a call does where ``impl="triton"`` has no kernel.
        """
        batch, time = check_size("batch", batch), check_size("time", time)
        return warm(self, batch, time, packed, self.impl, self.memory)

    def extra_repr(self) -> str:
        text = super().extra_repr()
        if self.impl != "auto":
            text += f", impl={self.impl!r}"
        if self.memory != "auto":
            text += f", memory={self.memory!r}"
        return text

    @classmethod
    def from_torch(
        cls,
        gru: nn.GRU,
        *,
        impl: str = "auto",
        memory: str = "auto",
        copy: bool = False,
        as_torch_type: bool = False,
    ) -> GRU:
        """A GRU with all that ``gru`` has: its parameters (the same objects, or copies of them), its hooks, further
        attributes, and whether it trains. A handle of one of its hooks removes the hook from ``gru`` alone.

        Args:
            gru: a module of exactly the class torch.nn.GRU.
            impl, memory: as of :class:`GRU`.
            copy: whether to copy parameters and buffers.
            as_torch_type: return a :class:`TorchTypeGRU`, of which ``isinstance(m, torch.nn.GRU)`` is True.

        Raises:
            TypeError: if ``gru`` is no torch.nn.GRU, or of a subclass, whose own methods would be lost.
            ValueError: if a weight is computed, or the object has a forward of its own.
        """
        if not isinstance(gru, nn.GRU):
            raise TypeError(f"expected a torch.nn.GRU, got {type(gru).__name__}")
        check_parameters(gru)
        check_class(gru, nn.GRU)
        new = (TorchTypeGRU if as_torch_type else cls)(*arguments_of(gru), impl=impl, memory=memory, device="meta")
        adopt(new, gru, copy)
        return new

    def to_torch(self, *, copy: bool = False) -> nn.GRU:
        """A :class:`torch.nn.GRU` with all that this module has, as by :meth:`from_torch`."""
        check_parameters(self)
        check_class(self, GRU, TorchTypeGRU)
        new = nn.GRU(*arguments_of(self), device="meta")
        adopt(new, self, copy)
        return new

    def __prepare_scriptable__(self) -> nn.GRU:
        """What ``torch.jit.script`` compiles, and leaves in the place of this layer in the model that it was given."""
        if sys._getframe(1).f_locals.get("memo") == {}:  # torch has prepared no module around this one
            raise RuntimeError(
                "torch.jit.script compiles a tritongru.GRU only as a part of a model, as it does torch.nn.GRU; put it "
                "into a module whose forward calls it"
            )
        return self.to_torch()


class TorchTypeGRU(GRU, nn.GRU):  # type: ignore[misc]  # torch's forward is declared as overloads
    """A :class:`GRU` that is a :class:`torch.nn.GRU` too, for code that asks ``isinstance(m, torch.nn.GRU)``.

    Nothing else changes, and code that asks ``type(m) is torch.nn.GRU`` wants :meth:`GRU.to_torch`. ``torch.compile``
    refuses every torch.nn.GRU unless ``torch._dynamo.config.allow_rnn = True``; then this one compiles as others do.
    """


class _LayerView:
    """One layer's weights under the names that ``RNNBase.flatten_parameters`` reads."""

    proj_size = 0
    mode = "GRU"
    num_layers = 1

    def __init__(self, gru: GRU, weights: list[Any]) -> None:
        self._flat_weights = weights
        self._flat_weights_names = weights
        self.input_size = weights[0].shape[1]
        self.hidden_size = gru.hidden_size
        self.bias = gru.bias
        self.batch_first = gru.batch_first
        self.bidirectional = gru.bidirectional

"""``GRU`` and ``GRUCell``: torch's modules with the layer's forward replaced."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from tritongru.functional import check_choice, check_dtype, check_features, run
from tritongru.memory import MEMORIES
from tritongru.options import IMPLS, Options
from tritongru.torch_path import draws_dropout
from tritongru.warmup import Warmup, warm


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

    What differs: ``isinstance(m, torch.nn.GRU)`` is False, because ``torch.compile`` refuses whatever it is true of;
    TorchScript is not promised; CUDA autocast answers the dtype that was asked for.
    """

    __signature__ = inspect.signature(_arguments_of_gru)

    impl: str
    memory: str

    def __init__(self, *args: Any, impl: str = "auto", memory: str = "auto", **kwargs: Any) -> None:
        if "proj_size" in kwargs or (len(args) > 7 and isinstance(args[7], int) and args[7] != 0):
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        check_choice("impl", impl, IMPLS)
        check_choice("memory", memory, MEMORIES)
        super().__init__("GRU", *args, **kwargs)
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
        if isinstance(input, PackedSequence):
            data, batch_sizes, sorted_indices, unsorted_indices = input
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
            ValueError: if batch or time is below 1.
            RuntimeError: as a call does where ``impl="triton"`` has no kernel.
        """
        _check_sizes(batch=batch, time=time)
        return warm(self, batch, time, packed, self.impl, self.memory)

    def extra_repr(self) -> str:
        text = super().extra_repr()
        if self.impl != "auto":
            text += f", impl={self.impl!r}"
        if self.memory != "auto":
            text += f", memory={self.memory!r}"
        return text

    @classmethod
    def from_torch(cls, gru: nn.GRU, *, impl: str = "auto", memory: str = "auto", copy: bool = False) -> GRU:
        """A GRU with the parameters of ``gru``: the same Parameter objects, or copies of them."""
        if not isinstance(gru, nn.GRU):
            raise TypeError(f"expected a torch.nn.GRU, got {type(gru).__name__}")
        new = cls(*_arguments(gru), impl=impl, memory=memory, device="meta")
        _adopt(new, gru, copy)
        return new

    def to_torch(self, *, copy: bool = False) -> nn.GRU:
        """A :class:`torch.nn.GRU` with this module's parameters: the same Parameter objects, or copies of them."""
        new = nn.GRU(*_arguments(self), device="meta")
        _adopt(new, self, copy)
        return new


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} should be at least 1, got {value}")


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


def _arguments(gru: nn.RNNBase) -> tuple[Any, ...]:
    sizes = (gru.input_size, gru.hidden_size, gru.num_layers)
    return *sizes, gru.bias, gru.batch_first, gru.dropout, gru.bidirectional


def _adopt(new: nn.RNNBase, source: nn.RNNBase, copy: bool) -> None:
    for name in new._flat_weights_names:
        weight = source._parameters.get(name)
        if weight is None:
            raise ValueError(
                f"{name} is not a parameter of the module but computed; remove the parametrization or hook first"
            )
        new._parameters[name] = nn.Parameter(weight.detach().clone(), weight.requires_grad) if copy else weight
    new.train(source.training)
    new._init_flat_weights()


class GRUCell(nn.GRUCell):
    """One step of a GRU: torch's own cell, which has no time loop to put into a kernel. It is here so that a model's
    imports need one package; its parameters are those of a one-layer, one-direction :class:`GRU`."""

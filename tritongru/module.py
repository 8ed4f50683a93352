"""``GRU``: torch's module with its forward pass replaced."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from tritongru.arguments.checks import check_choice, check_dtype, check_features, check_order
from tritongru.arguments.options import IMPLS, Options, is_traced
from tritongru.arguments.ragged import WHOLE, Ragged
from tritongru.functional import run
from tritongru.interop.adoption import TORCH_GRU, adopt, arguments_of, check_class, check_parameters, torchs_own
from tritongru.interop.exporters import fx_leaf
from tritongru.interop.inference_ops import infer, wants_results_alone
from tritongru.interop.stepping import step
from tritongru.interop.torch_path import draws_dropout
from tritongru.planning.devices import check_flag, check_size
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
    """The signature that help() and torch.nn.utils.skip_init see; __init__ takes *args, as torch.nn.GRU's does."""


class GRU(nn.RNNBase):
    """A multi-layer GRU, a drop-in replacement for `torch.nn.GRU`: same arguments, parameters, state_dict and results.

    T time steps, B batch size, I input size, H hidden size, L layers, D directions (2 if bidirectional, else 1).

    ``forward(input, hx=None)`` takes input of shape ``(T, B, I)``, ``(B, T, I)`` if ``batch_first``, ``(T, I)``, or a
    PackedSequence, and hx ``(L * D, B, H)`` or ``(L * D, H)``. It returns ``(output, h_n)`` like `torch.nn.GRU`. For
    the equations and their source, see `tritongru.gru`.

    Three keywords, none of which waits for a GPU, describe sequences of a padded batch; padding may hold anything:

    ``lengths`` ``(B,)``, int32 or int64, on the CPU or the input's device: the time steps of each sequence. The result
    is that of a PackedSequence: outputs past the end are zero, h_n is the state after the last own step (hx for length
    0), the reverse direction begins there, and the gradient of padding is zero. Lengths on a GPU are not read by the
    host: those below 0 or above T count as 0 or T.

    ``resets``, bool, of the input's first two axes: True at step t cuts the sequence before step t, in both directions,
    so that each segment is a sequence of its own: it begins with zeros or with ``reset_state``, and no gradient
    crosses the cut. At step 0 it replaces hx.

    ``reset_state`` ``(L * D, B, H)`` or ``(L * D, 1, H)``: what a segment begins with after a cut, with its gradient.

    Args:
        input_size: input features I.
        hidden_size: hidden units H.
        num_layers: stacked layers L.
        bias: whether the layers have the biases ``b_ih`` and ``b_hh``.
        batch_first: whether input and output are ``(B, T, features)``; h_n is not affected.
        dropout: probability of zeroing each output of every layer but the last in training; always drawn from torch's
            generator, on GPUs too.
        bidirectional: D = 2 directions instead of 1.
        device: device of the parameters.
        dtype: dtype of the parameters.
        impl: ``"auto"`` uses a kernel where one is expected to be faster, else torch's GRU (`tritongru.explain` tells
            which, and why); ``"triton"`` and, on CPUs, ``"llvm"`` raise with the reason instead of falling back;
            ``"torch"`` is torch's own GRU.
        memory: what the forward pass keeps for the backward pass. ``"save"``: the gate values of each output;
            ``"recompute"``: only the states, from which the gates are recomputed; ``"auto"``: save the gates if those
            of all layers take at most an eighth of the device's memory.

    Raises:
        TypeError, ValueError: for a bad argument, with torch's text where torch has one.

    Note:
        ``isinstance(m, torch.nn.GRU)`` is False, because ``torch.compile`` rejects such modules (`TorchTypeGRU` is
        both). CUDA autocast returns the requested dtype. ``torch.jit.trace`` and ``torch.jit.script`` of a model record
        torch's GRU in place of the layer.

    Examples:
        >>> import torch, tritongru
        >>> gru = tritongru.GRU(input_size=8, hidden_size=16, batch_first=True)
        >>> output, h_n = gru(torch.randn(4, 100, 8))
        >>> output.shape, h_n.shape
        (torch.Size([4, 100, 16]), torch.Size([1, 4, 16]))
    """

    __signature__ = inspect.signature(_arguments_of_gru)

    impl: str = "auto"  # also for modules not made by __init__: an old pickle, a changed class
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
        except TypeError:  # by now RNNBase has listed the rejected value among its weights
            self._flat_weights = [self._parameters[n] for n in self._flat_weights_names]
            raise

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *nothing: None,  # torch.onnx.export(dynamo=False) passes the defaults of keywords by position
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        reset_state: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        if isinstance(input, torch.fx.Proxy) or isinstance(hx, torch.fx.Proxy):
            named = {"lengths": lengths, "resets": resets, "reset_state": reset_state}
            return fx_leaf(self, input, hx, **{name: value for name, value in named.items() if value is not None})
        if nothing and not is_traced():
            count = 3 + len(nothing)
            raise TypeError(f"GRU.forward() takes from 2 to 3 positional arguments but {count} were given")
        ragged = WHOLE
        if lengths is not None or resets is not None or reset_state is not None:
            ragged = Ragged(lengths, resets, reset_state)
        if (
            not self.bidirectional
            and (self.dropout == 0 or (self.dropout <= 1 and not self.training))
            and wants_results_alone(input, hx, self.impl)  # type: ignore[arg-type]  # of a PackedSequence it is not true
        ):
            own = self._weights(), self.num_layers, self.batch_first, self.impl
            found = infer(input, hx, *own, ragged if ragged else ())  # type: ignore[arg-type]
            if found is not None:
                return found
        if isinstance(input, PackedSequence):
            data, batch_sizes, sorted_indices, unsorted_indices = input
            check_order(data, hx, sorted_indices, unsorted_indices)
            if hx is not None:
                hx = self.permute_hidden(hx, sorted_indices)
            output, h_n = self._run(data, hx, batch_sizes, ragged)
            packed = PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)
            return packed, self.permute_hidden(h_n, unsorted_indices)
        if input.dim() not in (2, 3):
            raise ValueError(f"GRU: Expected input to be 2D or 3D, got {input.dim()}D instead")
        if input.dim() == 3:
            if hx is not None and hx.dim() != 3:
                raise RuntimeError(f"For batched 3-D input, hx should also be 3-D but got {hx.dim()}-D tensor")
            return self._run(input, hx, None, ragged)
        if hx is not None:
            if hx.dim() != 2:
                raise RuntimeError(f"For unbatched 2-D input, hx should also be 2-D but got {hx.dim()}-D tensor")
            hx = hx.unsqueeze(1)
        batch_dim = 0 if self.batch_first else 1
        if ragged:
            states = self.num_layers * (2 if self.bidirectional else 1)
            ragged = ragged.of_one(batch_dim, input.shape[0], states, self.hidden_size)
        output, h_n = self._run(input.unsqueeze(batch_dim), hx, None, ragged)
        return output.squeeze(batch_dim), h_n.squeeze(1)

    def step(
        self,
        x_t: Tensor,
        state: Tensor | None = None,
        *,
        reset: Tensor | None = None,
        out: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run one time step of all layers, for streaming and rollouts: the same as a call with T = 1.

        With ``out`` and without gradients a step allocates nothing, and a CUDA graph may capture it; dropout between
        layers and strides other than contiguous ones take the slower way of a call.

        Args:
            x_t: the input of the step, ``(B, I)`` or ``(I,)``.
            state: the state before the step, ``(L, B, H)`` or ``(L, H)``; None for zeros.
            reset: ``(B,)`` bool, or ``()`` for ``(I,)``: sequences that begin anew at this step, with zeros as state.
            out: tensors for y_t and the new state, which are then returned; they must share no memory with ``x_t``,
                ``state`` or each other, so a loop takes two states in turn.

        Returns:
            ``(y_t, state)``: the last layer's output, ``(B, H)`` or ``(H,)``, and the state after the step.

        Raises:
            RuntimeError: if the GRU is bidirectional, a tensor has another shape, dtype or device, or ``out`` is given
                and a gradient is needed.
            TypeError, ValueError: for other bad arguments.

        Examples:
            >>> import torch, tritongru
            >>> gru = tritongru.GRU(8, 16)
            >>> with torch.no_grad():
            ...     y_t, state = gru.step(torch.randn(4, 8))
            ...     y_t, state = gru.step(torch.randn(4, 8), state, reset=torch.tensor([True, False, False, False]))
            >>> y_t.shape, state.shape
            (torch.Size([4, 16]), torch.Size([1, 4, 16]))
        """
        return step(self, x_t, state, reset, out)

    def _run(
        self, input: Tensor, hx: Tensor | None, batch_sizes: Tensor | None, ragged: Ragged
    ) -> tuple[Tensor, Tensor]:
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
        return run(input, hx, self._weights(), batch_sizes, options, ragged)

    def _weights(self) -> list[Tensor]:
        """The weights as they are now: parameters, or what a parametrization or functional_call put in their place."""
        own, names = self._parameters, self._flat_weights_names
        # getattr would take a microsecond to reach the parameters.
        weights: list[Any] = [own[name] if name in own else getattr(self, name) for name in names]
        for name, weight in zip(names, weights, strict=True):
            if weight is None:
                raise TypeError(f"{name} is None; assign a torch.nn.Parameter to it")
        if self.impl != "triton" and weights[0].is_cuda and not torch.compiler.is_compiling():
            self._flatten_again(weights)
        return weights

    def _flatten_again(self, weights: list[Tensor]) -> None:
        """As nn.GRU does when a parameter was replaced, so that cuDNN finds one buffer again. Computed weights are left
        out: they change with every call, and a module that holds them cannot be copied."""
        kept = zip(self._flat_weight_refs, weights, strict=False)
        replaced = any(ref is None or ref() is not w for ref, w in kept)
        if replaced and all(isinstance(w, nn.Parameter) for w in weights):
            self._init_flat_weights()

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        check_dtype(input, getattr(self, self._flat_weights_names[0]))
        check_features(input, batch_sizes, self.input_size)

    def flatten_parameters(self) -> None:
        """Move the weights into the single buffer that makes torch's GRU fast on CUDA; the kernels need none.

        With dropout between layers torch's GRU runs layer by layer, so each layer gets its own buffer."""
        weights = self._flat_weights
        first = weights[0] if weights else None
        if not isinstance(first, Tensor) or not draws_dropout(first, self.dropout, self.num_layers):
            super().flatten_parameters()
            return
        each = len(weights) // self.num_layers
        for layer in range(self.num_layers):
            view = _LayerView(self, weights[layer * each : (layer + 1) * each])
            nn.RNNBase.flatten_parameters(view)  # type: ignore[arg-type]

    def warmup(
        self, batch: int, time: int, *, packed: bool = False, lengths: bool = False, resets: bool = False
    ) -> Warmup:
        """Compile in parallel all kernels that calls with this batch size need, so that no call waits for one.

        These are the kernels of inference and, if the module is in training mode and a parameter requires gradients,
        of a training step, with and without hx, in the module's dtype (within autocast: autocast's) and under torch's
        current precision setting. Other numbers of time steps need no other kernels; another batch size may. Each
        kernel runs once, on zeros, and the call waits for the GPU; parameters, gradients and random numbers do not
        change. If torch's GRU runs, nothing is compiled.

        Args:
            batch: batch size B.
            time: time steps T, on which the plan and ``memory="auto"`` may depend.
            packed: whether calls pass a PackedSequence instead of a tensor.
            lengths: whether calls pass ``lengths``.
            resets: whether calls pass ``resets``; both need the same kernels.

        Returns:
            The kernels with the seconds that each took, and the total in seconds.

        Raises:
            TypeError, ValueError: if batch or time is not a whole number of at least 1, or is absurdly large, if
                packed, lengths or resets is not a bool, or if packed is combined with one of the others.
            RuntimeError: if ``impl="triton"`` or ``impl="llvm"`` has no kernel for the layer.
        """
        batch, time = check_size("batch", batch), check_size("time", time)
        packed, lengths, resets = (
            check_flag(name, value) for name, value in (("packed", packed), ("lengths", lengths), ("resets", resets))
        )
        if packed and (lengths or resets):
            raise ValueError(
                "a PackedSequence has neither lengths nor resets; warm up for each kind of call on its own"
            )
        return warm(self, batch, time, packed, lengths, resets, self.impl, self.memory)

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
        """Convert a `torch.nn.GRU`: the new module takes over its parameters (shared or copied), hooks, other
        attributes and training mode. Hook handles obtained earlier remove hooks from ``gru`` only.

        Args:
            gru: a module whose class is exactly `torch.nn.GRU`.
            impl: as in `GRU`.
            memory: as in `GRU`.
            copy: whether to copy parameters and buffers instead of sharing them.
            as_torch_type: whether to return a `TorchTypeGRU`, for which ``isinstance(m, torch.nn.GRU)`` is True.

        Returns:
            The converted module.

        Raises:
            TypeError: if ``gru`` is not a `torch.nn.GRU`, or is a subclass, whose own methods would be lost.
            ValueError: if a weight is computed, or the object has its own forward.
        """
        if not isinstance(gru, TORCH_GRU):
            ours = "; it is ours already" if isinstance(gru, GRU) else ""
            raise TypeError(f"expected a torch.nn.GRU, got {type(gru).__name__}{ours}")
        check_parameters(gru)
        check_class(gru, TORCH_GRU)
        new = (TorchTypeGRU if as_torch_type else cls)(*arguments_of(gru), impl=impl, memory=memory, device="meta")
        adopt(new, gru, copy)
        return new

    def to_torch(self, *, copy: bool = False) -> nn.GRU:
        """Convert back to a `torch.nn.GRU`, taking over everything that `from_torch` does.

        Args:
            copy: whether to copy parameters and buffers instead of sharing them.

        Returns:
            The converted module.

        Raises:
            TypeError, ValueError: as for `from_torch`.
        """
        check_parameters(self)
        check_class(self, GRU, TorchTypeGRU)
        new = torchs_own(TORCH_GRU, *arguments_of(self), device="meta")
        adopt(new, self, copy)
        return new

    def __prepare_scriptable__(self) -> nn.GRU:
        """What ``torch.jit.script`` compiles and puts in the place of this layer."""
        if sys._getframe(1).f_locals.get("memo") == {}:  # no outer module is being scripted
            raise RuntimeError(
                "torch.jit.script compiles a tritongru.GRU only as part of a model, like torch.nn.GRU; put it into a "
                "module whose forward calls it"
            )
        return self.to_torch()


class TorchTypeGRU(GRU, nn.GRU):  # type: ignore[misc]  # torch's forward is declared as overloads
    """A `GRU` that is also a `torch.nn.GRU`, for code that checks ``isinstance(m, torch.nn.GRU)``.

    Nothing else changes; for code that checks ``type(m) is torch.nn.GRU``, use `GRU.to_torch`. ``torch.compile``
    rejects every `torch.nn.GRU`, this one included, unless ``torch._dynamo.config.allow_rnn = True``.
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

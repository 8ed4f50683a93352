"""``gru``: the GRU as a function of its weights; checks, autocast, layers, directions and dropout."""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import os
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tritongru import ops
from tritongru.devices import device_facts
from tritongru.memory import MEMORIES, gate_bytes, saves
from tritongru.plan import fp32_precision, limits_on, plan_on

logger = logging.getLogger("tritongru")

IMPLS = ("auto", "triton", "torch")


class Options(NamedTuple):
    """What a call does besides its tensors; the names are those of ``gru``."""

    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    training: bool
    bidirectional: bool
    impl: str
    memory: str

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def tensors(self) -> int:
        """Weight tensors of one layer and direction."""
        return 4 if self.bias else 2


def gru(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    num_layers: int = 1,
    bias: bool = True,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_sizes: Tensor | None = None,
    impl: str = "auto",
    memory: str = "auto",
) -> tuple[Tensor, Tensor]:
    """A multi-layer GRU with the equations of :class:`torch.nn.GRU` (reset gate after the product)::

        r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)    z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
        n = tanh(W_in x + b_in + r (W_hn h + b_hn))   h' = n + z (h - n)

    Args:
        input: ``(T, B, I)``; ``(B, T, I)`` with ``batch_first``; or the data ``(N, I)`` of a packed sequence.
        hx: initial states ``(L * D, B, H)``, or None for zeros. D is 2 if bidirectional, else 1.
        weights: for each layer and direction ``w_ih (3H, I or D * H)``, ``w_hh (3H, H)`` and, with ``bias``,
            ``b_ih (3H,)``, ``b_hh (3H,)``; gates in the order r, z, n.
        dropout: probability with which an output of each layer but the last is zeroed, if ``training``.
        batch_sizes: ``(T,)`` int64 on the CPU: rows of each step of a packed sequence.
        impl: ``"auto"``, ``"triton"`` (never falls back: raises with the plan's reason) or ``"torch"``.
        memory: what Triton's forward keeps for the backward: ``"save"`` the gates, ``"recompute"`` them in the backward
            from the states, or ``"auto"``: save them where those of all layers take at most an eighth of the device's
            memory.

    Returns:
        ``(output, h_n)``: output ``(T, B, D * H)`` in the layout of the input, h_n ``(L * D, B, H)``; both in the
        input's dtype (float32, float16, bfloat16; on torch's path any that ``torch.gru`` takes), or in the one that
        CUDA autocast asks for.

    Raises:
        ValueError, RuntimeError: with torch's text where torch has one.
    """
    check_choice("impl", impl, IMPLS)
    check_choice("memory", memory, MEMORIES)
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout should be a number in range [0, 1], got {dropout}")
    options = Options(num_layers, bias, batch_first, float(dropout), training, bidirectional, impl, memory)
    _check_shapes(input, hx, weights, batch_sizes, options)
    return run(input, hx, weights, batch_sizes, options)


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} should be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_dtype(input: Tensor, weight: Tensor) -> None:
    if input.dtype != weight.dtype and not torch._C._is_any_autocast_enabled():
        raise ValueError(
            f"RNN input dtype ({input.dtype}) does not match weight dtype ({weight.dtype}). Convert input: "
            f"input.to({weight.dtype}), or convert model: model.to({input.dtype})"
        )


def check_features(input: Tensor, batch_sizes: Tensor | None, features: int) -> None:
    rank = 3 if batch_sizes is None else 2
    if input.dim() != rank:
        raise RuntimeError(f"input must have {rank} dimensions, got {input.dim()}")
    if input.size(-1) != features:
        raise RuntimeError(f"input.size(-1) must be equal to input_size. Expected {features}, got {input.size(-1)}")


def _check_shapes(
    input: Tensor, hx: Tensor | None, weights: Sequence[Tensor], batch_sizes: Tensor | None, options: Options
) -> None:
    expected = options.num_layers * options.directions * options.tensors
    if len(weights) != expected or expected <= 0:
        raise ValueError(
            f"weights should hold {expected} tensors ({options.tensors} for each of {options.num_layers} layers and "
            f"{options.directions} directions, one layer at least), got {len(weights)}"
        )
    hidden, features = weights[1].shape[-1], weights[0].shape[-1]
    check_dtype(input, weights[0])
    check_features(input, batch_sizes, features)
    if hx is not None:
        states = (options.num_layers * options.directions, _batch(input, batch_sizes, options), hidden)
        if hx.shape != states:
            raise RuntimeError(f"Expected hidden size {states}, got {list(hx.shape)}")


def _batch(input: Tensor, batch_sizes: Tensor | None, options: Options) -> int:
    if batch_sizes is not None:
        return int(batch_sizes[0])
    return input.shape[0 if options.batch_first else 1]


def _steps(input: Tensor, batch_sizes: Tensor | None, options: Options) -> int:
    if batch_sizes is not None:
        return batch_sizes.shape[0]
    return input.shape[1 if options.batch_first else 0]


def run(
    input: Tensor, hx: Tensor | None, weights: Sequence[Tensor], batch_sizes: Tensor | None, options: Options
) -> tuple[Tensor, Tensor]:
    """``gru`` behind its checks: asks the plan and takes one of the two paths."""
    if options.impl == "torch" or (options.impl == "auto" and not input.is_cuda):
        return _run_torch(input, hx, weights, batch_sizes, options)
    check_choice("impl", options.impl, IMPLS)
    check_choice("memory", options.memory, MEMORIES)
    _check_tensors(input, hx, weights, batch_sizes, options)
    learns = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (input, hx, *weights))
    dtype = _autocast_dtype(input) or input.dtype
    route = _route(weights[1].shape[-1], dtype, input.device, options.directions, learns)
    if route.refusal:
        if options.impl == "triton":
            raise RuntimeError(
                f"impl='triton' cannot run this layer: {route.refusal} (impl='auto' runs torch's GRU here)"
            )
        return _run_torch(input, hx, weights, batch_sizes, options)
    if options.impl == "auto":
        batch, steps = _batch(input, batch_sizes, options), _steps(input, batch_sizes, options)
        if batch > route.largest and not torch.compiler.is_compiling():
            _log_once(f"from a batch of {route.largest + 1} on: {route.beyond}")
        if batch > route.largest or steps < route.shortest:
            return _run_torch(input, hx, weights, batch_sizes, options)
    rows = input.shape[0] if batch_sizes is not None else input.shape[0] * input.shape[1]
    size = gate_bytes(rows, weights[1].shape[-1], options.directions, options.num_layers, dtype.itemsize)
    return _run_triton(input, hx, weights, batch_sizes, options, saves(options.memory, size, route.device_bytes))


def _autocast_dtype(input: Tensor) -> torch.dtype | None:
    """The dtype that autocast asks for; like torch's own rules it leaves float64 alone."""
    device = input.device.type
    if input.dtype == torch.float64 or device == "meta" or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


class Route(NamedTuple):
    """Whether and where Triton runs a layer. ``refusal``: why it cannot, or an empty string; ``largest``, ``shortest``:
    up to which batch and from which length on ``impl="auto"`` takes it, and why no larger batch; ``device_bytes``:
    memory of the device."""

    refusal: str
    beyond: str = ""
    largest: int = 0
    shortest: int = 0
    device_bytes: int = 0


def _route(hidden: int, dtype: torch.dtype, device: torch.device, directions: int, training: bool) -> Route:
    """Each reason for torch is logged once."""
    interpreted = device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    return _route_under(hidden, dtype, device, directions, training, fp32_precision(), interpreted)


# What torch.compiler.assume_constant_result sets; the decorator itself would import the compiler, which takes seconds.
_route._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.lru_cache(maxsize=1024)
def _route_under(
    hidden: int,
    dtype: torch.dtype,
    device: torch.device,
    directions: int,
    training: bool,
    precision: str,  # as `plan_on` reads it
    interpreted: bool,
) -> Route:
    if device.type == "cpu" and not interpreted:
        return Route(
            "the tensors are on the CPU; move module and input to a GPU, or set TRITON_INTERPRET=1 before the first "
            "call to run the kernels in Triton's interpreter"
        )
    if device.type not in ("cpu", "cuda"):
        return Route(f"the tensors are on the device {device}, and the kernels run on CUDA and ROCm devices")
    if not _installed("triton"):
        return Route("the package triton is not installed; install it with: pip install triton")
    numpy = _installed("numpy")
    if device.type == "cpu" and _installed("triton") < (3, 7) and numpy >= (2, 4):
        found = ".".join(map(str, numpy))
        return Route(f"the interpreter of Triton 3.6 needs NumPy below 2.4, got {found}; run: pip install 'numpy<2.4'")
    facts = device_facts(device)
    answer = plan_on(facts, hidden, dtype, directions=directions, training=training, impl="triton")
    if answer.family == "torch":
        _log_once(answer.reason)
        return Route(answer.reason)
    limits = limits_on(facts, hidden, dtype, directions=directions, training=training)
    return Route("", limits.reason, limits.largest, limits.shortest, facts.memory_bytes)


@functools.cache
def _installed(package: str) -> tuple[int, ...]:
    """Major and minor version of a package, or nothing where it is not installed."""
    try:
        return tuple(int(number) for number in importlib.metadata.version(package).split(".")[:2])
    except importlib.metadata.PackageNotFoundError:
        return ()


@functools.cache
def _log_once(reason: str) -> None:
    logger.info("torch's own GRU runs: %s", reason)


def _run_torch(
    input: Tensor, hx: Tensor | None, weights: Sequence[Tensor], batch_sizes: Tensor | None, options: Options
) -> tuple[Tensor, Tensor]:
    """torch's own GRU. Dropout between layers is drawn here wherever ``torch.gru`` would not take it from torch's
    generator: cuDNN has a generator of its own, and the decomposition that compilers use forgets the dropout."""
    layers, directions = options.num_layers, options.directions
    if hx is None:
        batch, hidden = _batch(input, batch_sizes, options), weights[1].shape[-1]
        hx = torch.zeros(layers * directions, batch, hidden, dtype=input.dtype, device=input.device)
    if input.is_cuda:
        dtype = _autocast_dtype(input)
        if dtype is not None and dtype != torch.float16:  # under autocast torch.gru computes in float16 regardless
            with torch.autocast("cuda", enabled=False):
                weights = [w.to(dtype) for w in weights]
                return _run_torch(input.to(dtype), hx.to(dtype), weights, batch_sizes, options)
    if not draws_dropout(input, options.dropout, layers):
        return _torch_gru(input, hx, weights, batch_sizes, options)
    single = options._replace(num_layers=1, dropout=0.0)
    each = directions * options.tensors
    states = []
    for layer in range(layers):
        if layer > 0:
            input = torch.dropout(input, options.dropout, options.training)
        state = hx[layer * directions : (layer + 1) * directions]
        input, state = _torch_gru(input, state, weights[layer * each : (layer + 1) * each], batch_sizes, single)
        states.append(state)
    return input, torch.cat(states)


def draws_dropout(like: Tensor, dropout: float, num_layers: int) -> bool:
    """Whether the torch path runs layer by layer and draws the dropout between layers itself."""
    return dropout > 0 and num_layers > 1 and (like.is_cuda or torch.compiler.is_compiling())


def _torch_gru(
    input: Tensor, hx: Tensor, weights: Sequence[Tensor], batch_sizes: Tensor | None, options: Options
) -> tuple[Tensor, Tensor]:
    rest = (options.bias, options.num_layers, options.dropout, options.training, options.bidirectional)
    if batch_sizes is None:
        return torch.gru(input, hx, weights, *rest, options.batch_first)  # type: ignore[no-any-return, call-overload]
    return torch.gru(input, batch_sizes, hx, weights, *rest)  # type: ignore[no-any-return, call-overload]


def _run_triton(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    options: Options,
    save_gates: bool,
) -> tuple[Tensor, Tensor]:
    dtype = _autocast_dtype(input)
    if dtype is not None:
        input, weights = input.to(dtype), [w.to(dtype) for w in weights]
        hx = None if hx is None else hx.to(dtype)
    batch = _batch(input, batch_sizes, options)
    offsets = None
    if batch_sizes is None:
        steps = _steps(input, None, options)
        x = (input.transpose(0, 1) if options.batch_first else input).reshape(steps * batch, input.shape[-1])
    else:
        x, offsets = _packed_rows(input, batch_sizes)
    each, directions = options.tensors, options.directions
    states = []
    for layer in range(options.num_layers):
        if layer > 0 and options.training and options.dropout > 0:
            x = torch.dropout(x, options.dropout, True)
        w_ih, w_hh, b_ih, b_hh = _layer_weights(
            weights[layer * directions * each : (layer + 1) * directions * each], each
        )
        h0 = None if hx is None else hx[layer * directions : (layer + 1) * directions]
        y, hn = ops.gru_layer(x, w_ih, w_hh, b_ih, b_hh, h0, offsets, batch, save_gates)
        x = y.view(-1, directions * y.shape[2])
        states.append(hn)
    h_n = states[0] if len(states) == 1 else torch.cat(states)
    if batch_sizes is not None:
        return x, h_n
    output = x.view(steps, batch, x.shape[1])
    return output.transpose(0, 1) if options.batch_first else output, h_n


def _layer_weights(own: Sequence[Tensor], each: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """A layer's weights with both directions in one tensor, so that one product and one launch serve them."""
    if len(own) == each:
        w_ih, w_hh, *biases = own
        return (w_ih, w_hh.unsqueeze(0), *((biases[0], biases[1].unsqueeze(0)) if biases else (None, None)))
    w_ih, w_hh = torch.cat((own[0], own[each])), torch.stack((own[1], own[each + 1]))
    if each == 2:
        return w_ih, w_hh, None, None
    return w_ih, w_hh, torch.cat((own[2], own[each + 2])), torch.stack((own[3], own[each + 3]))


def _check_tensors(
    input: Tensor, hx: Tensor | None, weights: Sequence[Tensor], batch_sizes: Tensor | None, options: Options
) -> None:
    """What a kernel would not notice: it reads memory by the shapes and types that it is told."""
    for kind, tensor in (("hidden", hx), *(("parameter", w) for w in weights)):
        if tensor is not None and tensor.device != input.device:
            raise RuntimeError(
                f"Input and {kind} tensors are not at the same device, found input tensor at {input.device} and "
                f"{kind} tensor at {tensor.device}"
            )
    if batch_sizes is None and _steps(input, None, options) == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    casts = _autocast_dtype(input) is not None
    if hx is not None and hx.dtype != input.dtype and not casts:
        raise RuntimeError(
            "Input and hidden tensors are not the same dtype, found input tensor with "
            f"{_scalar_type(input)} and hidden tensor with {_scalar_type(hx)}"
        )
    hidden = weights[1].shape[-1]
    for k, weight in enumerate(weights):
        inputs = input.shape[-1] if k < options.directions * options.tensors else options.directions * hidden
        shape = ((3 * hidden, inputs), (3 * hidden, hidden), (3 * hidden,), (3 * hidden,))[k % options.tensors]
        if weight.shape != shape:
            raise RuntimeError(f"weight {k} of the GRU should have the shape {shape}, got {tuple(weight.shape)}")
        if weight.dtype != input.dtype and not casts:
            raise RuntimeError(f"weight {k} of the GRU should have the dtype {input.dtype}, got {weight.dtype}")


def _scalar_type(tensor: Tensor) -> str:
    """The dtype as torch's C++ messages spell it: Float, Double, BFloat16."""
    return tensor.type().rpartition(".")[2].removesuffix("Tensor")


def _packed_rows(data: Tensor, batch_sizes: Tensor) -> tuple[Tensor, Tensor]:
    """The rows that batch_sizes counts, and the first row of each step, on the data's device without waiting for it."""
    if batch_sizes.dtype != torch.int64:
        raise RuntimeError(f"expected scalar type Long but found {_scalar_type(batch_sizes)}")
    if (batch_sizes[1:] > batch_sizes[:-1]).any():
        raise RuntimeError(f"batch_sizes should never grow from step to step, got {batch_sizes.tolist()}")
    offsets = torch.nn.functional.pad(batch_sizes.cumsum(0), (1, 0))
    rows = int(offsets[-1])
    if data.shape[0] < rows:
        first = int(offsets[torch.searchsorted(offsets, data.shape[0], right=True) - 1])
        raise RuntimeError(
            f"start ({first}) + length ({int(batch_sizes[(offsets[:-1] == first).nonzero()[0, 0]])}) exceeds "
            f"dimension size ({data.shape[0]})."
        )
    if data.is_cuda:
        offsets = offsets.pin_memory().to(data.device, non_blocking=True)
    return data[:rows], offsets

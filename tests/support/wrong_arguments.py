"""Calls with wrong arguments, made by a process that may die of them: reads descriptions, a JSON line each, and answers
each with what was wrong about the call's end, or nothing. ``python tests/support/wrong_arguments.py JSON`` makes one.

A description holds a valid call and a list of changes ``[argument, kind, *parameters]``. Every dense tensor of it, and
every one that ``Tensor.new_empty`` makes meanwhile, lies against a page that may not be touched, so that one
element too far ends the process, and the rest of its own page is looked at afterwards.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import math
import mmap
import os
import re
import resource
import sys
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import tritongru
from tritongru import reference
from tritongru.arguments.options import FAMILIES, IMPLS
from tritongru.ops import shape_of_kept
from tritongru.planning.memory import MEMORIES

T, B, I, H = 2, 2, 3, 4
ROWS = [2, 1]  # of each step of a packed sequence
LENGTHS, RESETS = [1, 2], [[True, False], [False, True]]  # of a padded one
MEMORY_BYTES = 8 * 2**30  # of addresses, of which torch and Triton take some themselves
PATTERN = b"\xa5"
NEW_EMPTY = Tensor.new_empty

# What a call may raise: Python's and torch's words for a wrong value (ValueError, RuntimeError), a wrong type
# (TypeError; AttributeError is torch.nn.GRU's for what is no tensor), an index (IndexError: empty batch_sizes, as in
# torch), what torch has no code for (NotImplementedError: quantised tensors, say), and no memory.
REFUSALS = (ValueError, TypeError, RuntimeError, AttributeError, IndexError, NotImplementedError, MemoryError)
# What Python says where code tripped over a value that nobody had checked.
TRIPPED = re.compile(
    r"values to unpack|zip\(\) argument|(list|tuple) index out of range|division|not subscriptable|not iterable|"
    r"must be real number|NoneType|unsupported operand|INTERNAL ASSERT"
)


class Fence:
    """Memory that ends, or with ``front`` begins, at a page that may not be touched."""

    def __init__(self, front: bool):
        self.front = front
        self.edges: list[tuple[mmap.mmap, int, int]] = []

    def flat(self, count: int, dtype: torch.dtype) -> Tensor:
        size = count * dtype.itemsize
        used = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        memory = mmap.mmap(-1, used + mmap.PAGESIZE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        closed = address if self.front else address + used
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(closed), mmap.PAGESIZE, 0) == 0
        start = mmap.PAGESIZE if self.front else used - size
        edge = (start + size, used + mmap.PAGESIZE) if self.front else (0, start)
        memory[slice(*edge)] = PATTERN * (edge[1] - edge[0])
        self.edges.append((memory, *edge))
        return torch.frombuffer(memory, dtype=dtype, count=count, offset=start)

    def lay(self, value: Any) -> Any:
        """The same tensor in such memory; what has no plain memory of its own stays where it is."""
        if not plain(value) or value.numel() == 0 or short(value):
            return value
        if value.is_neg():
            return torch._neg_view(self.lay(torch._neg_view(value.detach())))
        count = value.storage_offset() + extent(value)
        if count * value.itemsize > 2**26:
            return value
        flat = self.flat(count, value.dtype)
        flat.copy_(torch.as_strided(value.detach(), (count,), (1,), 0))
        laid = flat.as_strided(value.shape, value.stride(), value.storage_offset())
        if isinstance(value, nn.Parameter):
            return nn.Parameter(laid, value.requires_grad)
        if value.requires_grad:
            laid.requires_grad_()
            return laid.view_as(laid) if value.grad_fn is not None else laid
        return laid

    def new_empty(self, like: Tensor, *size: Any, **options: Any) -> Tensor:
        found = NEW_EMPTY(like, *size, **options)
        if not plain(found) or not 0 < found.numel() * found.itemsize <= 2**26:
            return found
        flat = self.flat(found.numel(), found.dtype)
        return (flat.fill_(math.nan) if found.dtype.is_floating_point else flat).view(found.shape)

    def touched(self) -> bool:
        return any(memory[a:b] != PATTERN * (b - a) for memory, a, b in self.edges)


def plain(value: Any) -> bool:
    """Whether it is a dense tensor on the CPU."""
    if type(value) not in (Tensor, nn.Parameter) or value.layout is not torch.strided or value.device.type != "cpu":
        return False
    return not value.is_quantized and not value.is_nested and not value.is_conj()


def extent(value: Tensor) -> int:
    if value.numel() == 0:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(value.shape, value.stride(), strict=True))


def short(value: Any) -> bool:
    """Whether its storage holds less than it shows."""
    if not plain(value) or value.numel() == 0:
        return False
    return value.untyped_storage().nbytes() < (value.storage_offset() + extent(value)) * value.itemsize


OPERANDS = ("x", "w_ih", "w_hh", "b_ih", "b_hh", "h0", "reset_state")  # of an operator
RAGGED = ("lengths", "resets", "reset_state")

# Changes


def change(value: Any, kind: str, *rest: Any) -> Any:
    """What a change makes of an argument; one that does not apply leaves it as it is."""
    if kind == "value":
        return rest[0]
    if kind in ("int64", "int32"):
        return torch.tensor(rest[0], dtype=getattr(torch, kind))
    if kind == "count" and isinstance(value, list):
        return value[: rest[0]] if rest[0] <= 0 else value + value[:1] * rest[0]
    if kind == "holder" and isinstance(value, list):
        return {"tuple": tuple, "set": set, "iterator": iter, "first": lambda v: v[0]}[rest[0]](value)
    if not isinstance(value, Tensor) or short(value):
        return value
    with torch.no_grad():
        changed = CHANGES[kind](value, *rest)
    return changed.detach().requires_grad_() if kind == "grad" and changed.is_floating_point() else changed


def _size(value: Tensor, dim: int, size: int) -> Tensor:
    if value.dim() == 0:
        return value
    dim %= value.dim()
    shape = (*value.shape[:dim], size, *value.shape[dim + 1 :])
    if size > 9:  # one value for all
        return value.new_ones(()).expand(shape)
    return torch.ones(shape, dtype=value.dtype, device=value.device)


def _resize(value: Tensor, by: int, bytes_: int) -> Tensor:
    own = value.detach().clone(memory_format=torch.contiguous_format)
    if own.device.type == "cpu" and own.layout is torch.strided and own.numel():
        own.untyped_storage().resize_(0 if by == 0 else max(0, own.untyped_storage().nbytes() - bytes_))
    return own


def _strides(value: Tensor, how: str) -> Tensor:
    if value.dim() == 0 or value.layout is not torch.strided:
        return value
    if how == "transposed":
        turned = value.permute(*range(value.dim())[::-1]).contiguous()
        return turned.permute(*range(value.dim())[::-1])
    if how == "step":
        return torch.stack((value, value + 1), dim=-1)[..., 0]
    if how == "offset":
        return torch.cat((value.reshape(-1)[:1], value.reshape(-1)))[1:].view(value.shape) if value.numel() else value
    if how == "swapped":
        return value.transpose(0, -1)
    if how == "negated":
        return torch._neg_view(-value) if value.is_floating_point() else value
    dim = int(how) % value.dim()
    return value.narrow(dim, 0, min(1, value.shape[dim])).expand(value.shape) if value.shape[dim] else value


def _rank(value: Tensor, how: str) -> Tensor:
    return {
        "more": lambda: value.unsqueeze(0),
        "last": lambda: value.unsqueeze(-1),
        "less": lambda: value[0] if value.dim() and value.shape[0] else value.reshape(-1),
        "flat": lambda: value.reshape(-1),
        "none": lambda: value.reshape(-1)[:1].sum().to(value.dtype),
        "five": lambda: value[None, None, None],
    }[how]()


def _layout(value: Tensor, how: str) -> Tensor:
    return {
        "sparse": lambda: value.to_sparse(),
        "csr": lambda: value.to_sparse_csr(),
        "mkldnn": lambda: value.to_mkldnn(),
        "quantized": lambda: torch.quantize_per_tensor(value.float(), 0.1, 0, torch.qint8),
        "nested": lambda: torch.nested.nested_tensor(list(value.unbind())),
        "jagged": lambda: torch.nested.nested_tensor(list(value.unbind()), layout=torch.jagged),
    }[how]()


CHANGES: dict[str, Callable[..., Tensor]] = {
    "size": _size,
    "rank": _rank,
    "dtype": lambda value, name: value.to(getattr(torch, name)),
    "meta": lambda value: value.to("meta"),
    "freed": lambda value: _resize(value, 0, 0),
    "cut": lambda value: _resize(value, 1, value.itemsize),
    "strides": _strides,
    "layout": _layout,
    "grad": lambda value: value[..., :],
}
KEEPS_VALUES = [["strides", how] for how in ("transposed", "step", "offset", "negated")] + [["grad"]]


class Arguments(dict):
    """Arguments by name; ``weights.1`` is the second of the list ``weights``."""

    def change(self, name: str, kind: str, *rest: Any) -> None:
        outer, _, inner = name.partition(".")
        if not inner:
            self[outer] = change(self[outer], kind, *rest)
        elif isinstance(self[outer], list) and int(inner) < len(self[outer]):
            self[outer][int(inner)] = change(self[outer][int(inner)], kind, *rest)

    def lay(self, fence: Fence) -> None:
        for name, value in self.items():
            self[name] = [fence.lay(v) for v in value] if type(value) is list else fence.lay(value)

    def tensors(self, unread: Collection[str] = ()) -> Iterator[Tensor]:
        for value in (value for name, value in self.items() if name not in unread):
            yield from (v for v in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(v, Tensor))


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(shape) / 2).to(dtype)


def ragged_of(call: dict[str, Any], turned: bool, dtype: torch.dtype) -> dict[str, Tensor | None]:
    """Where the sequences of a padded call end and begin anew; ``turned``: in the layout of batch_first."""
    if call["packed"] or not call["ragged"]:
        return dict.fromkeys(RAGGED)
    resets = torch.tensor(RESETS)
    states = random(call["layers"] * call["directions"], B, H, dtype=dtype)
    own = resets.t().contiguous() if turned else resets
    return {"lengths": torch.tensor(LENGTHS), "resets": own, "reset_state": states}


# What is called: each has its arguments, the call, and what torch makes of the same arguments


class Function:
    """``tritongru.gru``."""

    def __init__(self, call: dict[str, Any]):
        layers, D, packed = call["layers"], call["directions"], call["packed"]
        dtype, grad = getattr(torch, call["dtype"]), call["grad"]
        self.grad = grad
        shapes = []
        for layer in range(layers):
            shapes += (
                D * [(3 * H, I if layer == 0 else D * H), (3 * H, H), (3 * H,), (3 * H,)][: 4 if call["bias"] else 2]
            )
        first = (B, T) if call["batch_first"] else (T, B)
        self.arguments = Arguments(
            input=random(*((sum(ROWS),) if packed else first), I, dtype=dtype),
            hx=random(layers * D, B, H, dtype=dtype) if call["hx"] else None,
            weights=[random(*shape, dtype=dtype).requires_grad_(grad) for shape in shapes],
            num_layers=layers,
            bias=call["bias"],
            batch_first=call["batch_first"] and not packed,
            dropout=call["dropout"],
            training=True,
            bidirectional=D == 2,
            batch_sizes=torch.tensor(ROWS) if packed else None,
            **ragged_of(call, call["batch_first"], dtype),
            impl=call["impl"],
            memory=call["memory"],
        )
        for one in call["changes"]:
            self.arguments.change(*one)

    def run(self) -> tuple[Any, ...]:
        return tritongru.gru(**self.arguments)

    def expected(self) -> tuple[Any, ...]:
        a = {name: value for name, value in self.arguments.items() if name not in ("impl", "memory")}
        ragged = [a.pop(name) for name in RAGGED]
        if all(value is None for value in ragged):
            return torch_gru(**a)
        if a.pop("batch_sizes") is not None:
            raise ValueError("packed rows have no padding")
        return oracle_gru(**a, ragged=ragged)

    def shapes(self) -> list[tuple[int, ...]]:
        a = self.arguments
        return shapes_of_gru(
            a["input"], a["batch_sizes"], a["weights"][1], a["num_layers"], a["bidirectional"], a["batch_first"]
        )


def torch_gru(
    input: Tensor,
    hx: Tensor | None,
    weights: list[Tensor],
    num_layers: int,
    bias: bool,
    batch_first: bool,
    dropout: float,
    training: bool,
    bidirectional: bool,
    batch_sizes: Tensor | None,
) -> tuple[Tensor, Tensor]:
    rest = (bias, num_layers, float(dropout), training, bidirectional)
    if hx is None:
        batch = input.shape[0 if batch_first else 1] if batch_sizes is None else int(batch_sizes[0])
        hx = torch.zeros(
            num_layers * (1 + bidirectional), batch, weights[1].shape[-1], dtype=input.dtype, device=input.device
        )
    if batch_sizes is None:
        return torch.gru(input, hx, weights, *rest, batch_first)
    return torch.gru(input, batch_sizes.contiguous(), hx, weights, *rest)


def oracle_gru(
    input: Tensor,
    hx: Tensor | None,
    weights: list[Tensor],
    num_layers: int,
    bias: bool,
    batch_first: bool,
    dropout: float,
    training: bool,
    bidirectional: bool,
    ragged: list[Any],
) -> tuple[Tensor, Tensor]:
    """By ``tritongru.reference``, with dropout from torch's generator; refuses what means nothing."""
    lengths, resets, state = ragged
    x = input.transpose(0, 1) if batch_first else input
    (time, batch), D, hidden = x.shape[:2], 1 + bidirectional, weights[1].shape[-1]
    refuse_ragged(lengths, resets, state, time, batch, num_layers * D, hidden, batch_first)
    if lengths is not None and lengths.numel() and not 0 <= lengths.min() <= lengths.max() <= time:
        raise ValueError("a length is not between 0 and the number of steps")
    resets = resets.t() if resets is not None and batch_first else resets
    first = x.new_zeros(num_layers * D, batch, hidden) if hx is None else hx
    if state is not None and state.dtype != first.dtype:
        raise ValueError("a reset state of another dtype than the first one")
    if torch.gru(x[:1], first, weights, bias, num_layers, 0.0, False, bidirectional, False)[0].dim() != 3:
        raise ValueError("torch refuses the rest")
    each, states = 4 if bias else 2, []
    for layer in range(num_layers):
        if layer > 0:
            x = torch.dropout(x, float(dropout), training)
        sides = []
        for at in range(layer * D, layer * D + D):
            own = reference.Ragged(lengths, resets, None if state is None else state[at])
            y, hn, _ = reference.forward(
                x, first[at], *weights[at * each : (at + 1) * each], reverse=at % D == 1, ragged=own
            )
            sides.append(y)
            states.append(hn)
        x = torch.cat(sides, dim=2)
    return x.transpose(0, 1) if batch_first else x, torch.stack(states)


def refuse_ragged(
    lengths: Any, resets: Any, state: Any, time: int, batch: int, states: int, hidden: int, turned: bool
) -> None:
    """Whether types, shapes and layouts are those that mean something."""
    of_state = ((states, batch, hidden), (states, 1, hidden))
    if lengths is not None and (lengths.dtype not in (torch.int32, torch.int64) or lengths.shape != (batch,)):
        raise ValueError("no lengths")
    shape = (batch, time) if turned else (time, batch)
    if resets is not None and (resets.dtype is not torch.bool or resets.shape != shape):
        raise ValueError("no resets")
    if state is not None and (resets is None or state.shape not in of_state):
        raise ValueError("no reset state")
    if any(value is not None and value.layout is not torch.strided for value in (lengths, resets, state)):
        raise ValueError("not dense")


def shapes_of_gru(
    input: Tensor, batch_sizes: Tensor | None, w_hh: Tensor, layers: int, bidirectional: bool, batch_first: bool
) -> list[tuple[int, ...]]:
    D, hidden = 1 + bidirectional, w_hh.shape[-1]
    if batch_sizes is not None:
        rows, batch = (int(batch_sizes.sum()),), int(batch_sizes[0])
    else:
        rows, batch = tuple(input.shape[:-1]), input.shape[0 if batch_first else 1]
    return [(*rows, D * hidden), (layers * D, batch, hidden)]


class Module:
    """``tritongru.GRU``: its arguments, its attributes afterwards, and its call."""

    kind: Any = tritongru.GRU

    def __init__(self, call: dict[str, Any]):
        self.packed, self.grad = call["packed"], call["grad"]
        self.dtype = getattr(torch, call["dtype"])
        self.changes = [one for one in call["changes"] if one[0].startswith(("init.", "self."))]
        self.arguments = Arguments(self.call_arguments(call))
        self.options = dict(self.init_options(call))
        for one in call["changes"]:
            if one not in self.changes:
                self.arguments.change(*one)
        for name, *rest in self.changes:
            if name.startswith("init."):
                self.options[name[5:]] = change(self.options.get(name[5:]), *rest)
        self.module: Any = None

    def init_options(self, call: dict[str, Any]) -> dict[str, Any]:
        return {
            "input_size": I,
            "hidden_size": H,
            "num_layers": call["layers"],
            "bias": call["bias"],
            "batch_first": call["batch_first"],
            "dropout": call["dropout"],
            "bidirectional": call["directions"] == 2,
            "dtype": self.dtype,
            "impl": call["impl"],
            "memory": call["memory"],
        }

    def call_arguments(self, call: dict[str, Any]) -> dict[str, Any]:
        layers, D = call["layers"], call["directions"]
        first = (sum(ROWS),) if self.packed else (B, T) if call["batch_first"] else (T, B)
        found = {
            "input": random(*first, I, dtype=self.dtype),
            "hx": random(layers * D, B, H, dtype=self.dtype) if call["hx"] else None,
        }
        if self.packed:
            order = torch.tensor([1, 0])
            found |= {"batch_sizes": torch.tensor(ROWS), "sorted_indices": order, "unsorted_indices": order.clone()}
        return found | ragged_of(call, call["batch_first"], self.dtype)

    def build(self, fence: Fence) -> None:
        """May refuse what it is given."""
        self.module = self.kind(**self.options)
        for name, kind, *rest in self.changes:
            if not name.startswith("self."):
                continue
            name = name[5:]
            if name not in self.module._parameters:
                setattr(self.module, name, change(getattr(self.module, name), kind, *rest))
                continue
            new = change(self.module._parameters[name].detach(), kind, *rest)
            if isinstance(new, Tensor) and new.is_leaf and type(new) is Tensor and new.layout is torch.strided:
                setattr(self.module, name, nn.Parameter(new, requires_grad=new.is_floating_point()))
            elif new is None:
                setattr(self.module, name, None)
            else:  # as a parametrization or functional_call leaves it
                delattr(self.module, name)
                setattr(self.module, name, new)
        for name, value in list(self.module._parameters.items()):
            if value is not None:
                setattr(self.module, name, fence.lay(value))

    def run(self) -> tuple[Any, ...]:
        a = self.arguments
        ragged = {name: a[name] for name in RAGGED if a[name] is not None}
        if not self.packed:
            return self.module(a["input"], a["hx"], **ragged)
        names = ("input", "batch_sizes", "sorted_indices", "unsorted_indices")
        output, h_n = self.module(PackedSequence._make(a[name] for name in names), a["hx"], **ragged)
        return output.data, h_n

    def weights(self) -> list[Any]:
        return [getattr(self.module, name) for name in self.module._flat_weights_names]

    def expected(self) -> tuple[Any, ...]:
        a, m = self.arguments, self.module
        theirs = nn.GRU.__new__(nn.GRU)
        theirs.__dict__.update(m.__dict__)
        theirs._flat_weights = self.weights()
        theirs._flat_weight_refs = [None] * len(theirs._flat_weights)
        theirs.hidden_size = m.weight_hh_l0.shape[1]  # ours reads it off the weights,
        for flag in ("bias", "batch_first", "bidirectional"):
            setattr(theirs, flag, bool(getattr(m, flag)))  # asks whether these are true,
        theirs.dropout = 0.0 if m.num_layers == 1 else m.dropout  # and does not look at what it does not use
        ragged = [a[name] for name in RAGGED]
        if any(value is not None for value in ragged):
            return self.by_oracle(theirs, ragged)
        if not self.packed:
            return theirs(a["input"], a["hx"])
        sizes = a["batch_sizes"].contiguous()
        output, h_n = theirs(
            PackedSequence._make((a["input"], sizes, a["sorted_indices"], a["unsorted_indices"])), a["hx"]
        )
        return output.data, h_n

    def by_oracle(self, theirs: nn.GRU, ragged: list[Any]) -> tuple[Any, ...]:
        a = self.arguments
        if self.packed:
            raise ValueError("packed rows have no padding")
        with torch.random.fork_rng(devices=()):
            theirs(a["input"], a["hx"])  # refuses what torch refuses
        input, hx, dim = a["input"], a["hx"], 0 if theirs.batch_first else 1
        single = input.dim() == 2
        if single:
            lengths, resets, state = ragged
            input, hx = input.unsqueeze(dim), None if hx is None else hx.unsqueeze(1)
            lengths = lengths.reshape(1) if lengths is not None and lengths.dim() == 0 else lengths
            resets = resets.unsqueeze(dim) if resets is not None and resets.dim() == 1 else resets
            state = state.unsqueeze(1) if state is not None and state.dim() == 2 else state
            ragged = [lengths, resets, state]
        rest = (theirs.num_layers, theirs.bias, theirs.batch_first, theirs.dropout, theirs.training)
        y, hn = oracle_gru(input, hx, self.weights(), *rest, theirs.bidirectional, ragged)
        return (y.squeeze(dim), hn.squeeze(1)) if single else (y, hn)

    def shapes(self) -> list[tuple[int, ...]]:
        a, m = self.arguments, self.module
        input, sizes = a["input"], a.get("batch_sizes")
        single = input.dim() == 2 and sizes is None
        if single:
            input = input.unsqueeze(0 if m.batch_first else 1)
        found = shapes_of_gru(input, sizes, m.weight_hh_l0, m.num_layers, bool(m.bidirectional), m.batch_first)
        if sizes is not None and a["unsorted_indices"] is not None:
            found[1] = (found[1][0], a["unsorted_indices"].numel(), found[1][2])
        return (
            [(input.shape[0 if not m.batch_first else 1], found[0][2]), (found[1][0], found[1][2])] if single else found
        )


class Cell(Module):
    """``tritongru.GRUCell``."""

    kind = tritongru.GRUCell

    def init_options(self, call: dict[str, Any]) -> dict[str, Any]:
        return {"input_size": I, "hidden_size": H, "bias": call["bias"], "dtype": self.dtype}

    def call_arguments(self, call: dict[str, Any]) -> dict[str, Any]:
        self.packed = False
        return {"input": random(B, I, dtype=self.dtype), "hx": random(B, H, dtype=self.dtype) if call["hx"] else None}

    def run(self) -> tuple[Any, ...]:
        return (self.module(self.arguments["input"], self.arguments["hx"]),)

    def weights(self) -> list[Any]:
        return [getattr(self.module, name) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]

    def expected(self) -> tuple[Any, ...]:
        input, hx = self.arguments["input"], self.arguments["hx"]
        w_ih, w_hh, b_ih, b_hh = self.weights()
        if hx is None:
            hx = input.new_zeros((*input.shape[:-1], w_hh.shape[1]))
        gi, gh = nn.functional.linear(input, w_ih, b_ih), nn.functional.linear(hx, w_hh, b_hh)
        (ir, iz, inn), (hr, hz, hn) = gi.chunk(3, -1), gh.chunk(3, -1)
        r, z = torch.sigmoid(ir + hr), torch.sigmoid(iz + hz)
        n = torch.tanh(inn + r * hn)
        return (n + z * (hx - n),)

    def shapes(self) -> list[tuple[int, ...]]:
        return [(*self.arguments["input"].shape[:-1], self.module.weight_hh.shape[1])]


class Warmup(Module):
    """``GRU.warmup``."""

    def call_arguments(self, call: dict[str, Any]) -> dict[str, Any]:
        return {"batch": B, "time": T, "packed": call["packed"]}

    def run(self) -> tuple[Any, ...]:
        a = self.arguments
        found = self.module.warmup(a["batch"], a["time"], packed=a["packed"])
        assert isinstance(found.kernels, tuple)
        return ()

    def expected(self) -> tuple[Any, ...]:
        return ()

    def shapes(self) -> list[tuple[int, ...]]:
        return []


class Operator:
    """``torch.ops.tritongru.*``, with the names of its schema."""

    def __init__(self, call: dict[str, Any]):
        self.name = call["target"]
        self.operator = getattr(torch.ops.tritongru, self.name).default
        self.grad = False
        D, packed, bias = call["directions"], call["packed"] and "routed" not in self.name, call["bias"]
        dtype = getattr(torch, call["dtype"])
        rows = sum(ROWS) if packed else T * B
        found: dict[str, Any] = {
            "x": random(rows, I, dtype=dtype),
            "w_ih": random(D * 3 * H, I, dtype=dtype),
            "w_hh": random(D, 3 * H, H, dtype=dtype),
            "b_ih": random(D * 3 * H, dtype=dtype) if bias else None,
            "b_hh": random(D, 3 * H, dtype=dtype) if bias else None,
            "h0": random(D, B, H, dtype=dtype) if call["hx"] else None,
            **ragged_of(call | {"packed": packed}, False, dtype),
            "offsets": torch.tensor(ROWS).cumsum(0) if packed else None,
            "batch": B,
            "save_gates": call["memory"] == "save",
            "impl": call["impl"],
            "memory": call["memory"],
            "layers": 1,
            "autocast": None,
            "needs": [True] * 7,
            "family": "llvm" if call["impl"] == "llvm" else "triton",
        }
        if packed:
            found["offsets"] = nn.functional.pad(found["offsets"], (1, 0))
        if "backward" in self.name:
            found |= saved(self, found, (self.name, D, packed, bias, call["hx"], dtype, call["impl"], call["ragged"]))
        self.arguments = Arguments({a.name: found[a.name] for a in self.operator._schema.arguments})
        self.changes = call["changes"]
        for one in call["changes"]:
            self.arguments.change(*one)

    def run(self) -> tuple[Any, ...]:
        return self.operator(*self.arguments.values())

    def expected(self) -> tuple[Any, ...]:
        a = self.arguments
        memories, family = (*MEMORIES, "none"), a.get("family", "triton")
        if a.get("impl", "auto") not in IMPLS or a.get("memory", "auto") not in memories or family not in FAMILIES:
            raise ValueError("no such choice")
        given = [a[name] for name in OPERANDS]
        rows = (a.get("offsets"), a["lengths"], a["resets"], a["batch"])
        if "backward" not in self.name:
            return torch_layer(*given, *rows)
        tensors = [None if t is None else t.detach().clone().requires_grad_() for t in given]
        y, hn = torch_layer(*tensors, *rows)
        changed = [name for name, *how in self.changes if how not in KEEPS_VALUES]
        sides = [(v, g) for v, g in ((y, a["dy"]), (hn, a["dhn"])) if g is not None]
        if not sides or {*changed} - {"dy", "dhn", "needs", "impl", "autocast"}:
            return ()  # y and gates belong to other values, so any gradients may come
        arriving = [g.to(v.dtype) for v, g in sides]
        leaves = [t for t in tensors if t is not None]
        grads = iter(torch.autograd.grad([v for v, _ in sides], leaves, arriving, allow_unused=True))
        every = [None if t is None else next(grads) for t in tensors]
        return tuple(g if need else None for g, need in zip(every, a["needs"], strict=True))

    def shapes(self) -> list[tuple[int, ...]]:
        a = self.arguments
        (N, features), (D, _, hidden), batch = a["x"].shape, a["w_hh"].shape, a["batch"]
        if "backward" in self.name:
            every = [
                (N, features),
                (D * 3 * hidden, features),
                (D, 3 * hidden, hidden),
                (D * 3 * hidden,),
                (D, 3 * hidden),
                (D, batch, hidden),
                (0,) if a["reset_state"] is None else tuple(a["reset_state"].shape),
            ]
            given = [True] * 7 if "routed" not in self.name else [a[name] is not None for name in OPERANDS]
            return [shape if need and g else (0,) for shape, need, g in zip(every, a["needs"], given, strict=True)]
        found = [(N, D, hidden), (D, batch, hidden)]
        if "routed" in self.name:
            return [*found, (0,)]
        return [*found, shape_of_kept(N, D, hidden, a["family"]) if a["save_gates"] else (0,)]

    @property
    def unread(self) -> set[str]:
        """Where the loop has kept what it needs, it does not look at the outputs."""
        kept = self.arguments.get("gates")
        rank = kept.dim() if isinstance(kept, Tensor) else 1
        return {"y"} if self.arguments.get("family") == "llvm" and rank != 1 else set()


def saved(operator: Operator, found: dict[str, Any], key: tuple[Any, ...]) -> dict[str, Tensor]:
    """What a backward takes besides the layer's operands, kept by key: kernels take a tenth of a second."""
    if key in SAVED:
        return SAVED[key]
    if found["impl"] == "torch":
        y, hn = torch_layer(*(found[name] for name in (*OPERANDS, "offsets", "lengths", "resets", "batch")))
        kept = y.new_empty(0, dtype=torch.uint8 if "routed" in operator.name else y.dtype)
    else:
        forward = getattr(torch.ops.tritongru, operator.name.replace("backward", "forward")).default
        found = found | {"save_gates": True, "memory": "save"}
        y, hn, kept = forward(*(found[argument.name] for argument in forward._schema.arguments))
    SAVED[key] = {"dy": torch.ones_like(y), "dhn": torch.ones_like(hn), "y": y, "gates": kept, "kept": kept}
    return SAVED[key]


SAVED: dict[tuple[Any, ...], dict[str, Tensor]] = {}


def torch_layer(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    h0: Tensor | None,
    reset_state: Tensor | None,
    offsets: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    batch: int,
) -> tuple[Tensor, Tensor]:
    """One layer by torch's GRU, of ragged rows by the oracle; a batch that is larger than the first step keeps the rest
    of h0, as the kernels do."""
    D, _, hidden = w_hh.shape
    ragged = [lengths, resets, reset_state]
    if any(value is not None for value in ragged) and offsets is not None:
        raise ValueError("packed rows have no padding")
    kinds = [w_ih.chunk(D), w_hh.unbind()]
    if b_ih is not None or b_hh is not None:
        kinds += [b_ih.chunk(D), b_hh.unbind()]
    weights = [w for own in zip(*kinds, strict=True) for w in own]
    if h0 is None:
        h0 = x.new_zeros((D, batch, hidden))
    rest = (b_ih is not None, 1, 0.0, False, D == 2)
    if any(value is not None for value in ragged):
        steps = x.reshape(-1, batch, x.shape[1])
        refuse_ragged(*ragged, steps.shape[0], batch, D, hidden, False)
        if lengths is not None:  # any are clamped
            ragged[0] = lengths.clamp(0, steps.shape[0])
        y, hn = oracle_gru(steps, h0, weights, 1, b_ih is not None, False, 0.0, False, D == 2, ragged)
    elif offsets is None:
        y, hn = torch.gru(x.reshape(-1, batch, x.shape[1]), h0, weights, *rest, False)
    else:
        sizes = offsets.diff()
        first = int(sizes[0])
        y, hn = torch.gru(x, sizes, h0[:, :first], weights, *rest)
        hn = torch.cat((hn, h0[:, first:]), dim=1)
    return y.reshape(-1, D, hidden), hn


TARGETS: dict[str, Any] = {"gru": Function, "GRU": Module, "GRUCell": Cell, "warmup": Warmup}
TARGETS |= {f"gru_{kind}": Operator for kind in ("forward", "backward", "routed_forward", "routed_backward")}


# The verdict


def storages(tensors: list[Tensor]) -> list[Tensor | None]:
    """What the memory of tensors holds, also where a view does not show it."""
    found = []
    for tensor in tensors:
        if plain(tensor) and tensor.untyped_storage().nbytes():
            found.append(torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).clone())
        else:
            found.append(None)
    return found


def verdict(call: dict[str, Any]) -> tuple[str, str]:
    """How a call ended, and what was wrong about that, if anything."""
    torch.manual_seed(0)
    fence = Fence(call["front"])
    try:
        subject = TARGETS[call["target"]](call)
    except Exception as error:  # torch makes no such tensor
        return f"no such argument: {type(error).__name__}: {error}", ""
    subject.arguments.lay(fence)
    try:
        if isinstance(subject, Module):
            subject.build(fence)
    except Exception as error:
        return ended(error), wrong_refusal(error, call)
    tensors, own = list(subject.arguments.tensors()), []
    if isinstance(subject, Module):
        own += [p for p in subject.module.__dict__.values() if isinstance(p, Tensor)]
        own += [p for p in subject.module._parameters.values() if p is not None]
    tensors += own
    lacking = any(map(short, subject.arguments.tensors(getattr(subject, "unread", ())))) or any(map(short, own))
    before, random_before = storages(tensors), torch.get_rng_state()
    Tensor.new_empty = lambda *arguments, **options: fence.new_empty(*arguments, **options)  # type: ignore
    try:
        results = subject.run()
        error = None
    except Exception as raised:
        results, error = (), raised
    finally:
        Tensor.new_empty = NEW_EMPTY
    how = "returned" if error is None else ended(error)
    same = all(a is b is None or torch.equal(a, b) for a, b in zip(before, storages(tensors), strict=True))
    if fence.touched():
        return how, "wrote outside a tensor"
    if not same:
        return how, "changed an argument"
    drawn = not torch.equal(random_before, torch.get_rng_state())
    if error is not None:
        wrong = wrong_refusal(error, call)
        return how, wrong or (drawn and call["dropout"] == 0 and "used random numbers and refused") or ""
    # A warm-up reads no more than it needs, and GRUCell is torch.nn's own, which reads whatever it is given.
    if isinstance(subject, Cell) and len({tensor.device for tensor in tensors}) > 1:
        return how, ""
    if lacking and not isinstance(subject, (Cell, Warmup)):
        return how, "took a tensor whose storage is too short"
    return how, wrong_results(subject, results, random_before)


def ended(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:300]}"


def wrong_refusal(error: Exception, call: dict[str, Any]) -> str:
    if not isinstance(error, REFUSALS):
        return "no refusal"
    if not str(error).strip() and not isinstance(error, MemoryError):
        return "without a message"
    frames = traceback.extract_tb(error.__traceback__)
    rooms = ("/triton/", "/tritongru/kernels/", "/tritongru/llvm/")
    late = any(room in frame.filename for frame in frames for room in rooms)
    if late and "allocate memory" not in str(error):
        return "refused by a kernel, too late"
    own = "/tritongru/" in frames[-1].filename and not (frames[-1].line or "").startswith("raise")
    broken = any(name.startswith("self.") for name, *_ in call["changes"])  # a module, after it was built
    broken = broken or (call["target"] == "GRU" and isinstance(error, AttributeError))  # torch.nn.GRU's word too
    if own and TRIPPED.search(str(error)) and not broken and not str(error).startswith("gru() received"):
        return "not checked: " + "".join(traceback.format_tb(error.__traceback__)[-2:])
    return ""


def wrong_results(subject: Any, results: tuple[Any, ...], random_before: Tensor) -> str:
    shapes, found = [tuple(shape) for shape in subject.shapes()], [tuple(v.shape) for v in results]
    if found != shapes:
        return f"returned the shapes {found}, expected {shapes}"
    random_after = torch.get_rng_state()
    torch.set_rng_state(random_before)
    try:
        expected = subject.expected()
    except Exception as error:
        return "" if "allocate memory" in str(error) else f"accepted what torch refuses: {ended(error)}"
    if not torch.equal(random_after, torch.get_rng_state()):
        return "used other random numbers than torch"
    for k, (ours, theirs) in enumerate(zip(results, expected, strict=False)):
        if theirs is None:
            continue
        if ours.dtype != theirs.dtype or ours.device != theirs.device:
            return f"result {k}: {ours.dtype} on {ours.device}, torch has {theirs.dtype} on {theirs.device}"
        if wrong := differs(ours, theirs):
            return f"result {k}: {wrong}"
    if subject.grad and isinstance(subject, Function):
        return wrong_gradients(subject, results, expected)
    return ""


def wrong_gradients(subject: Any, results: tuple[Any, ...], expected: tuple[Any, ...]) -> str:
    leaves = [t for t in subject.arguments.tensors() if t.requires_grad and t.is_leaf]
    if not leaves or any(v.is_meta for v in (*results, *leaves)):
        return ""
    both = []
    for found in (results, expected):
        both.append(torch.autograd.grad(sum(v.sum() for v in found), leaves, allow_unused=True))
    for k, (ours, theirs) in enumerate(zip(*both, strict=True)):
        if ours is not None and theirs is not None and (wrong := differs(ours, theirs)):
            return f"gradient {k}: {wrong}"
    return ""


def differs(ours: Tensor, theirs: Tensor) -> str:
    if ours.device.type == "meta":
        return ""
    tolerance = {torch.float16: 1e-2, torch.bfloat16: 5e-2}.get(ours.dtype, 1e-4)
    same = torch.complex128 if ours.is_complex() else torch.float64
    try:
        torch.testing.assert_close(ours.detach().to(same), theirs.detach().to(same), rtol=tolerance, atol=tolerance)
    except AssertionError as error:
        return str(error)
    return ""


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.enable()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        print(*verdict(json.loads(sys.argv[1])), sep="\n")
        return
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what anybody prints is no answer
    for line in sys.stdin:
        print(json.dumps(verdict(json.loads(line))), file=answers)


if __name__ == "__main__":
    main()

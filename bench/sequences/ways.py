"""The ways to run sequences of unequal lengths, sequences with resets, and single steps: ours and others'."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import tritongru
from bench.rivals.onnx_gru import OnnxGRU
from bench.rivals.rival import Unavailable, installed

Results = tuple[Tensor, Tensor]
Way = Callable[[Tensor, Tensor], Results]  # (x, h0) -> output (T, B, H) or (B, H), and h_n


@dataclass(frozen=True)
class Given:
    """The layers of a cell, with equal weights, and what its sequences are like."""

    ours: tritongru.GRU
    theirs: nn.GRU
    lengths: Tensor  # (B,) int64, on the host
    resets: Tensor  # (T, B) bool
    threads: int

    @property
    def own_lengths(self) -> Tensor:
        """On the device, where a user who computes them has them."""
        return self.lengths.to(self.resets.device)


# Sequences of unequal lengths


def with_lengths(given: Given) -> Way:
    lengths = given.own_lengths
    return lambda x, h0: given.ours(x, h0, lengths=lengths)


def padded(gru: nn.Module) -> Callable[[Given], Way]:
    """All steps of all sequences, padding included."""
    return lambda given: lambda x, h0: gru(x, h0)


def packed(gru: nn.Module, given: Given) -> Way:
    """As torch's documentation shows it; the lengths are on the host, where packing needs them."""
    T = given.resets.shape[0]

    def run(x: Tensor, h0: Tensor) -> Results:
        output, hn = gru(pack_padded_sequence(x, given.lengths, enforce_sorted=False), h0)
        return pad_packed_sequence(output, total_length=T)[0], hn

    return run


# Sequences with resets


def with_resets(given: Given) -> Way:
    return lambda x, h0: given.ours(x, h0, resets=given.resets)


def split_and_packed(gru: nn.Module, given: Given) -> Way:
    """What users of cuDNN do: cut the sequences at their resets, pad and pack the segments as a batch of their own, and
    put the outputs together again."""
    resets = given.resets

    def run(x: Tensor, h0: Tensor) -> Results:
        T, B = resets.shape
        cuts = resets.t().clone()
        goes_on = ~cuts[:, 0]  # h0 is used
        cuts[:, 0] = True
        starts = cuts.flatten().nonzero()[:, 0]  # sequence by sequence
        ends = torch.cat((starts[1:], starts.new_tensor([T * B])))
        lengths = ends - starts
        longest = int(lengths.max())
        steps = torch.arange(longest, device=x.device)
        rows = (starts[:, None] + steps).clamp(max=T * B - 1)  # (segments, longest)
        segments = x.transpose(0, 1).flatten(0, 1)[rows]
        first = starts % T == 0
        state = torch.where((first & goes_on[starts // T])[None, :, None], h0[:, starts // T], 0.0)
        some = pack_padded_sequence(segments, lengths.cpu(), batch_first=True, enforce_sorted=False)
        output, last = gru(some, state)
        output, _ = pad_packed_sequence(output, batch_first=True)
        y = output[steps[None, :] < lengths[:, None]]  # the rows of all sequences, one after the other
        return y.view(B, T, -1).transpose(0, 1), last[:, (ends % T == 0).nonzero()[:, 0]]

    return run


def torchrl_way(backend: str, given: Given) -> Way:
    """TorchRL's GRU of trajectories with ``is_init``, which takes a trajectory's first state from its first step."""
    if installed("torchrl") is None:
        raise Unavailable("torchrl is not installed; pip install torchrl")
    modules: Any = importlib.import_module("torchrl.modules")
    data: Any = importlib.import_module("tensordict")
    gru = given.theirs
    module = modules.GRUModule(
        gru=gru_of_torchrl(gru), in_keys=["x", "h", "is_init"], out_keys=["y", ("next", "h")], recurrent_backend=backend
    )
    resets = given.resets.t()[..., None].contiguous()
    T, B = given.resets.shape

    def run(x: Tensor, h0: Tensor) -> Results:
        first = torch.where(given.resets[0, :, None, None], 0.0, h0.transpose(0, 1))
        states = torch.cat((first[:, None], first.new_zeros(B, T - 1, *first.shape[1:])), dim=1)
        step = data.TensorDict(
            {"x": x.transpose(0, 1), "h": states, "is_init": resets}, batch_size=[B, T], device=x.device
        )
        with modules.set_recurrent_mode(True):
            found = module(step)
        return found["y"].transpose(0, 1), found["next", "h"][:, -1].transpose(0, 1)

    return run


def gru_of_torchrl(gru: nn.GRU) -> nn.Module:
    """The same parameters with batch_first, which TorchRL's module demands."""
    own = nn.GRU(gru.input_size, gru.hidden_size, gru.num_layers, batch_first=True, device="meta")
    for name, weight in gru.named_parameters():
        setattr(own, name, weight)
    return own


# Single steps: x is (B, I)


def step(given: Given) -> Way:
    return lambda x, h0: given.ours.step(x, h0)


def step_out(given: Given) -> Way:
    """Into memory of the caller's; states in turn."""
    gru, (B, like) = given.ours, (given.resets.shape[1], next(given.ours.parameters()))
    y = like.new_empty((B, gru.hidden_size))
    out = y, like.new_empty((gru.num_layers, B, gru.hidden_size))
    return lambda x, h0: gru.step(x, h0, out=out)


def as_sequence(gru: nn.Module) -> Way:
    """A call with T = 1."""

    def run(x: Tensor, h0: Tensor) -> Results:
        y, hn = gru(x[None], h0)
        return y[0], hn

    return run


def cells_of(given: Given) -> Way:
    """nn.GRUCell, one for each layer."""
    gru, cells = given.theirs, []
    for layer in range(gru.num_layers):
        cell = nn.GRUCell(gru.input_size if layer == 0 else gru.hidden_size, gru.hidden_size, device="meta")
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            setattr(cell, name, getattr(gru, f"{name}_l{layer}"))
        cells.append(cell)

    def run(x: Tensor, h0: Tensor) -> Results:
        states = []
        for layer, cell in enumerate(cells):
            x = cell(x, h0[layer])
            states.append(x)
        return x, states[0][None] if len(states) == 1 else torch.stack(states)

    return run


def onnx(given: Given) -> Way:
    return as_sequence(OnnxGRU(given.theirs, given.threads))


def captured(way: Way, x: Tensor, h0: Tensor) -> Way:
    """The way as a CUDA graph that is replayed on these tensors."""
    stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            way(x, h0)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = way(x, h0)

    def run(_: Tensor, __: Tensor) -> Results:
        graph.replay()
        return results

    return run

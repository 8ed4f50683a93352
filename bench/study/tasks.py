"""The three tasks of the study: what is learned, from which data, and how errors are measured.

Each holds out a part of its data entirely, and chooses learning rates on a part of the training data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bench.study.characters import HELD_OUT, read_text, segments
from tritongru.commands import forecast
from tritongru.commands.forecast import Layer, mape, rmse


@dataclass(frozen=True)
class Setup:
    """What all models of a task share."""

    hidden: int  # of GRU, LSTM and RNN
    batch: int
    time: int
    steps: int  # of the optimizer
    seeds: int
    rates: tuple[float, ...]  # peak rates of the schedule to choose from, for each model
    choices: int = 1  # trainings for each rate; their mean error decides


# By the names of rules and models without a network, the errors that a model is compared with.
Baselines = Mapping[str, Mapping[str, float]]


class Task(Protocol):
    """A task on one device."""

    name: str
    setup: Setup
    epoch: int  # optimizer steps in one pass over the training data, or a nominal number
    baselines: Baselines

    def model(self, layer: Layer, hidden: int) -> nn.Module: ...

    def losses(self, model: nn.Module, seed: int, choosing: bool) -> Iterator[Tensor]:
        """The losses of endless batches, each computed on request. ``choosing``: on the training data without its
        validation part."""
        ...

    def errors(self, model: nn.Module, choosing: bool) -> dict[str, float]:
        """On the held-out part, or on the validation part if ``choosing``. The first error decides."""
        ...


class Electricity:
    """The demo's task: the half-hourly demand of England and Wales, forecast a day ahead."""

    name = "electricity"
    setup = Setup(
        hidden=64,
        batch=forecast.BATCH,
        time=forecast.WINDOW,
        steps=552,
        seeds=10,
        rates=(1.25e-3, 2.5e-3, 5e-3, 1e-2, 2e-2),
        choices=3,  # validation errors of one rate differ by a tenth from seed to seed
    )

    def __init__(self, setup: Setup, device: torch.device) -> None:
        self.setup = setup
        series = forecast.read_series()
        # To choose a rate, the series ends where the held-out weeks begin; the weeks before stand in for them.
        self.whole, self.seen = (
            forecast.make_task(series, device),
            forecast.make_task(series[: -forecast.HELD_OUT], device),
        )
        self.epoch = forecast.batches(self.whole.training)
        self.baselines: Baselines = {
            name: _misses(self.whole.truth, found) for name, found in forecast.baselines(self.whole).items()
        }

    def model(self, layer: Layer, hidden: int) -> nn.Module:
        return forecast.Forecaster(layer, hidden)

    def losses(self, model: nn.Module, seed: int, choosing: bool) -> Iterator[Tensor]:
        return forecast.losses(model, (self.seen if choosing else self.whole).training, seed)

    def errors(self, model: nn.Module, choosing: bool) -> dict[str, float]:
        task = self.seen if choosing else self.whole
        return _misses(task.truth, task.megawatts(model(task.held_out)))


def _misses(truth: Tensor, found: Tensor) -> dict[str, float]:
    return {"rmse": rmse(truth, found), "mape": mape(truth, found)}


class Adding:
    """The adding problem (Hochreiter and Schmidhuber, "Long short-term memory", 1997), in the form of later work: a
    sequence of random numbers in [0, 1], one of them marked in each half; the target is the sum of the two."""

    name = "adding"
    setup = Setup(hidden=64, batch=64, time=50, steps=2000, seeds=5, rates=(5e-3, 1e-2, 2e-2, 4e-2, 8e-2))
    unseen = 2000  # held-out sequences, and as many for validation
    epoch = 100  # nominal: no sequence comes twice
    # No training run has so large a seed, so none of these sequences occurs in training. torch's generator keeps 32
    # bits of a seed: 2**40 would be 0.
    held_out_seed, validation_seed = 2**31, 2**31 + 1

    def __init__(self, setup: Setup, device: torch.device) -> None:
        self.setup, self.device = setup, device
        self.held_out, self.validation = (
            additions(torch.Generator().manual_seed(seed), setup.time, self.unseen)
            for seed in (self.held_out_seed, self.validation_seed)
        )
        # Always answering 1, the mean of a sum of two such numbers, has about the sum's variance as its error, 1/6.
        self.baselines: Baselines = {"always 1": {"mse": (self.held_out[1] - 1).square().mean().item()}}

    def model(self, layer: Layer, hidden: int) -> nn.Module:
        return Sum(layer, hidden)

    def losses(self, model: nn.Module, seed: int, choosing: bool) -> Iterator[Tensor]:
        draws = torch.Generator().manual_seed(seed)
        while True:
            x, target = additions(draws, self.setup.time, self.setup.batch)
            yield nn.functional.mse_loss(model(x.to(self.device)), target.to(self.device))

    def errors(self, model: nn.Module, choosing: bool) -> dict[str, float]:
        x, target = self.validation if choosing else self.held_out
        return {"mse": nn.functional.mse_loss(model(x.to(self.device)), target.to(self.device)).item()}


def additions(draws: torch.Generator, time: int, batch: int) -> tuple[Tensor, Tensor]:
    """Sequences (T, B, 2) of numbers and marks, and the sums (B,) of the marked numbers."""
    numbers = torch.rand(time, batch, generator=draws)
    half = time // 2
    first = torch.randint(half, (batch,), generator=draws)
    second = torch.randint(half, time, (batch,), generator=draws)
    marks = torch.zeros(time, batch)
    for place in (first, second):
        marks[place, torch.arange(batch)] = 1
    return torch.stack((numbers, marks), dim=-1), (numbers * marks).sum(0)


class Sum(nn.Module):
    """A recurrent layer over sequences (T, B, 2), and a linear head on its last state, (B,)."""

    def __init__(self, layer: Layer, hidden: int) -> None:
        super().__init__()
        self.rnn = layer(2, hidden)
        self.head = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rnn(x)
        found: Tensor = self.head(states[-1]).squeeze(-1)
        return found


class Characters:
    """The next character of the language reference shown by Python's help() (bench/study/characters.py)."""

    name = "characters"
    setup = Setup(hidden=128, batch=32, time=50, steps=800, seeds=5, rates=(2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2))

    def __init__(self, setup: Setup, device: torch.device) -> None:
        self.setup = setup
        self.text = read_text()
        kept = round((1 - HELD_OUT) * len(self.text.training))
        self.training, self.held_out = self.text.training.to(device), self.text.held_out.to(device)
        self.seen, self.validation = self.training[:kept], self.training[kept:]
        self.baselines: Baselines = {"frequencies": {"nats": self.text.entropy()}}
        self.epoch = sum(1 for _ in segments(self.training, setup.batch, setup.time))

    def model(self, layer: Layer, hidden: int) -> nn.Module:
        return Reader(layer, len(self.text.characters), hidden)

    def losses(self, model: nn.Module, seed: int, choosing: bool) -> Iterator[Tensor]:
        """The text from its start: only the initial weights depend on the seed, batches do not."""
        while True:
            state = None
            for ids, next_ids in segments(self.seen if choosing else self.training, self.setup.batch, self.setup.time):
                loss, state = _nats(model, ids, next_ids, state)
                yield loss

    def errors(self, model: nn.Module, choosing: bool) -> dict[str, float]:
        found, state = [], None
        for ids, next_ids in segments(
            self.validation if choosing else self.held_out, self.setup.batch, self.setup.time
        ):
            loss, state = _nats(model, ids, next_ids, state)
            found.append(loss.item())
        return {"nats": math.fsum(found) / len(found)}


def _nats(model: nn.Module, ids: Tensor, next_ids: Tensor, state: Any) -> tuple[Tensor, Any]:
    logits, state = model(ids, state)
    carried = tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()
    return nn.functional.cross_entropy(logits.flatten(0, 1), next_ids.flatten()), carried


class Reader(nn.Module):
    """From characters (T, B) and a state to logits of the next characters (T, B, C) and the next state."""

    width = 64  # of the embedding, the same for every model

    def __init__(self, layer: Layer, characters: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, self.width)
        self.rnn = layer(self.width, hidden)
        self.head = nn.Linear(hidden, characters)

    def forward(self, ids: Tensor, state: Any) -> tuple[Tensor, Any]:
        states, last = self.rnn(self.embedding(ids), state)
        return self.head(states), last


TASKS: dict[str, type[Electricity] | type[Adding] | type[Characters]] = {
    task.name: task for task in (Electricity, Adding, Characters)
}

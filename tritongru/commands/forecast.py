"""The demo's task: the electricity demand of England and Wales, half-hourly, forecast a day ahead.

The series is the demand in MW from Monday 5 June to Sunday 27 August 2000 (Taylor, "Short-term electricity demand
forecasting using double seasonal exponential smoothing", 2003), which pmdarima ships. From the demand of two days and
its difference from the week before, the next 48 half hours are forecast, at every half hour. The last two weeks are
held out; a forecast uses only values from before it was made.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

HELD_OUT_FROM = datetime.date(2000, 8, 14)  # a Monday
DAY = 48  # half hours
WEEK = 7 * DAY
HELD_OUT = 2 * WEEK
WINDOW = 2 * DAY
BATCH = 64
EPOCHS = 12
LAST_WEEK, SHIFTED, LINEAR = "last week", "shifted week", "least squares"
# Forecasts without a network: two rules that learn nothing, and a linear model.
BASELINES = {
    LAST_WEEK: "the demand of the same half hours a week earlier",
    SHIFTED: "last week's demand plus the current difference from it",
    LINEAR: "last week's demand plus a linear function of the differences over two days, fitted to the training weeks",
}
Layer = Callable[[int, int], nn.RNNBase]


def read_series() -> Tensor:
    """The demand in MW, (4032,) float64 on the CPU."""
    from pmdarima.datasets import load_taylor

    return torch.tensor(load_taylor(), dtype=torch.float64)


@dataclass(frozen=True)
class Origins:
    """N moments at which a forecast is made, in time order, with its inputs and targets, normalized."""

    window: Tensor  # (WINDOW, N, 2): the demand, and its difference from the week before
    last_week: Tensor  # (N, DAY): the demand a week before each half hour that is forecast
    target: Tensor  # (N, DAY)

    def __len__(self) -> int:
        return len(self.target)

    def at(self, rows: Tensor) -> Origins:
        return Origins(self.window[:, rows], self.last_week[rows], self.target[rows])


@dataclass(frozen=True)
class Task:
    """``first``: the index in the series of the first half hour that ``held_out`` forecasts."""

    training: Origins
    held_out: Origins
    first: int
    mean: float  # MW
    deviation: float  # MW

    def megawatts(self, normal: Tensor) -> Tensor:
        """In float64 on the CPU."""
        return normal.double().cpu() * self.deviation + self.mean

    @property
    def truth(self) -> Tensor:
        """The actual demand in MW, (N, DAY)."""
        return self.megawatts(self.held_out.target)


def make_task(series: Tensor, device: torch.device) -> Task:
    """Normalize ``series`` (L,) by the mean and the deviation of its training part alone, and cut it into origins:
    those whose forecast ends before the last ``HELD_OUT`` half hours, and those whose forecast lies in them."""
    first = len(series) - HELD_OUT
    mean, deviation = series[:first].mean().item(), series[:first].std().item()
    normal = ((series - mean) / deviation).to(device, torch.float32)
    return Task(_origins(normal, WEEK + WINDOW, first), _origins(normal, first, len(series)), first, mean, deviation)


def _origins(series: Tensor, first: int, end: int) -> Origins:
    """Of the forecasts that begin at ``first`` or later and end before ``end``."""

    def cut(values: Tensor, offset: int, length: int) -> Tensor:
        return values[first + offset : end - DAY + offset + length].unfold(0, length, 1)

    change = torch.cat((series.new_zeros(WEEK), series[WEEK:] - series[:-WEEK]))
    window = torch.stack((cut(series, -WINDOW, WINDOW), cut(change, -WINDOW, WINDOW)), dim=-1)
    return Origins(window.transpose(0, 1).contiguous(), cut(series, -WEEK, DAY), cut(series, 0, DAY))


class Forecaster(nn.Module):
    """A recurrent layer over windows (WINDOW, N, 2), and a linear head from the last state to the change since the same
    day of the week before, (N, DAY). The head starts at zero: untrained, a model forecasts last week."""

    def __init__(self, layer: Layer, hidden: int) -> None:
        super().__init__()
        self.rnn = layer(2, hidden)
        self.head = nn.Linear(hidden, DAY)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def forward(self, origins: Origins) -> Tensor:
        states, _ = self.rnn(origins.window)
        change: Tensor = self.head(states[-1])
        return origins.last_week + change


def losses(model: nn.Module, origins: Origins, seed: int) -> Iterator[Tensor]:
    """An endless iterator over the losses of the batches, each computed on demand; ``seed`` shuffles them."""
    shuffle = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(origins), generator=shuffle).to(origins.target.device)
        for rows in torch.split(order, BATCH):
            batch = origins.at(rows)
            yield nn.functional.mse_loss(model(batch), batch.target)


def batches(origins: Origins) -> int:
    """Number of batches in an epoch."""
    return -(-len(origins) // BATCH)


def baselines(task: Task) -> dict[str, Tensor]:
    """The forecasts of ``BASELINES`` for the held-out origins, in MW, (N, DAY) each."""
    held_out = task.held_out
    present = held_out.window[-1, :, 1:]
    fitted = _fitted(task.training)(held_out)
    normal = {LAST_WEEK: held_out.last_week, SHIFTED: held_out.last_week + present, LINEAR: fitted}
    return {name: task.megawatts(forecast) for name, forecast in normal.items()}


def _fitted(origins: Origins) -> Callable[[Origins], Tensor]:
    """The change from last week as a linear function of the differences in the window, by least squares in float64."""

    def inputs(of: Origins) -> Tensor:
        change = of.window[..., 1].T.double().cpu()
        return torch.cat((change, change.new_ones(len(of), 1)), dim=-1)

    weights = torch.linalg.lstsq(inputs(origins), (origins.target - origins.last_week).double().cpu()).solution
    return lambda of: of.last_week.double().cpu() + inputs(of) @ weights


def rmse(truth: Tensor, forecast: Tensor) -> float:
    """Root mean squared error, in the unit of the data."""
    return (truth - forecast).square().mean().sqrt().item()


def mape(truth: Tensor, forecast: Tensor) -> float:
    """Mean absolute percentage error, in percent of the truth."""
    return 100 * ((truth - forecast).abs() / truth.abs()).mean().item()

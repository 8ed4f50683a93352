"""A model that needs no package: a GRU with dropout behind it, a cell, a ReLU and batch norm."""

import torch
from torch import nn

from bench.models.model import Model


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(4, 8, batch_first=True)
        self.cell = nn.GRUCell(8, 8)
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(8, 6), nn.Tanh(), nn.BatchNorm1d(6), nn.Linear(6, 2))

    def forward(self, x):
        y, state = self.rnn(x)
        return self.head(self.cell(y[:, -1], state[0]))


TOY = Model(
    *("toy", "torch", "torch", "tests", "`Toy`", "a choice"),
    Toy,
    lambda: torch.randn(5, 7, 4),
    lambda module, x: {"y": module(x)},
    ("rnn", "cell"),
)

"""Training steps, the same for every model, for the demo and for the study in ``bench``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

CLIP = 1.0  # norm of all gradients: the plain RNN's can explode


class Steps:
    """Each call uses the next loss for one of ``total`` optimizer steps; ``rate`` is the highest learning rate."""

    def __init__(self, model: nn.Module, losses: Iterator[Tensor], rate: float, total: int) -> None:
        self.model, self.losses = model, losses
        self.optimizer = torch.optim.Adam(model.parameters(), lr=rate)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, rate, total_steps=total)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        torch.autograd.backward(next(self.losses))
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.schedule.step()


@contextmanager
def one_thread() -> Iterator[None]:
    """On a busy machine, layers this small wait for a second thread: an epoch of the GRU took 1.2 s on one thread and
    13.8 s on two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

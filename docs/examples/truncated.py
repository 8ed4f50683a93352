"""Truncated backpropagation through time: a stream is cut into segments, and the state is carried over without its
gradient. Where a record of the stream ends and the next begins, `resets` forgets the state.

The task is to predict the next value of noisy waves, several records one after the other. Run:
python docs/examples/truncated.py
"""

import argparse

import torch
from torch import nn

import tritongru


def records(steps: int, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A stream (steps + 1, batch, 1) of waves, each of 50 to 150 steps, and where they begin (steps + 1, batch)."""
    begins = torch.zeros(steps + 1, batch, dtype=torch.bool)
    begins[0] = True
    waves = torch.zeros(steps + 1, batch)
    for b in range(batch):
        t = 0
        while t <= steps:
            length = int(torch.randint(50, 151, ()))
            end = min(t + length, steps + 1)
            frequency, phase = 0.05 + 0.2 * torch.rand(()), 6.3 * torch.rand(())
            waves[t:end, b] = torch.sin(frequency * torch.arange(end - t) + phase)
            begins[t, b] = True
            t = end
    return (waves + 0.05 * torch.randn_like(waves))[..., None], begins


def train(steps: int, batch: int, segment: int, hidden: int) -> list[float]:
    """The mean squared error of each segment, as it was when the segment arrived."""
    gru, head = tritongru.GRU(1, hidden), nn.Linear(hidden, 1)
    optimizer = torch.optim.Adam([*gru.parameters(), *head.parameters()], lr=1e-2)
    stream, begins = records(steps, batch)
    state = None
    losses = []
    for x, target, resets in zip(
        stream[:-1].split(segment), stream[1:].split(segment), begins[:-1].split(segment), strict=True
    ):
        output, state = gru(x, state, resets=resets)
        loss = nn.functional.mse_loss(head(output), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        state = state.detach()  # later losses do not reach this segment
        losses.append(loss.item())
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--segment", type=int, default=50, help="steps through which gradients flow")
    parser.add_argument("--hidden", type=int, default=32)
    given = parser.parse_args()
    torch.manual_seed(0)
    losses = train(given.steps, given.batch, given.segment, given.hidden)
    some = max(1, len(losses) // 10)
    print(f"mean squared error: {sum(losses[:some]) / some:.4f} at first, {sum(losses[-some:]) / some:.4f} at last")


if __name__ == "__main__":
    main()

"""A classifier of sequences of different lengths, padded to one batch: no packing, and padding may hold anything.

Each sequence is a noisy wave, of 10 to 60 steps and one of four frequencies; the label is the frequency. Run:
python docs/examples/classifier.py
"""

import argparse

import torch
from torch import nn

import tritongru

SHORTEST, LONGEST, CLASSES = 10, 60, 4


def some_waves(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Padded sequences (count, LONGEST, 1), their lengths and labels. The padding is NaN: nobody reads it."""
    lengths = torch.randint(SHORTEST, LONGEST + 1, (count,))
    labels = torch.randint(0, CLASSES, (count,))
    t = torch.arange(LONGEST)
    phase = 2 * torch.pi * torch.rand(count, 1)
    waves = torch.sin(0.25 * (1 + labels[:, None]) * t + phase) + 0.3 * torch.randn(count, LONGEST)
    return waves.masked_fill(t >= lengths[:, None], float("nan"))[..., None], lengths, labels


class Classifier(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.gru = tritongru.GRU(1, hidden, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * hidden, CLASSES)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        # h_n is the state after each sequence's own last step, in the reverse direction after its first one.
        _, h_n = self.gru(x, lengths=lengths)
        return self.head(torch.cat((h_n[0], h_n[1]), dim=1))


def train(steps: int, batch: int, hidden: int) -> tuple[Classifier, float]:
    """The model, and its accuracy on sequences that it has not seen."""
    model = Classifier(hidden)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(steps):
        x, lengths, labels = some_waves(batch)
        loss = nn.functional.cross_entropy(model(x, lengths), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        x, lengths, labels = some_waves(512)
        return model, (model(x, lengths).argmax(1) == labels).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=32)
    given = parser.parse_args()
    torch.manual_seed(0)
    _, accuracy = train(given.steps, given.batch, given.hidden)
    print(f"accuracy on new sequences: {100 * accuracy:.1f} % (guessing: {100 / CLASSES:.0f} %)")


if __name__ == "__main__":
    main()

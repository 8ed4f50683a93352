"""Moves a recommender of another package over: GRU4Rec of Torch-RecHub, before and after, and back.

pip install torch-rechub; python moving.py
"""

import argparse
import copy
import time

import torch
from torch import Tensor, nn
from torch_rechub.basic.features import SequenceFeature, SparseFeature
from torch_rechub.models.matching import GRU4Rec

import tritongru

ITEMS, WIDTH, NEGATIVES = 1000, 64, 3


def recommender() -> nn.Module:
    """The package's own model: sessions of items in, how well each candidate fits out."""
    user, item = (SparseFeature(name, vocab_size=ITEMS, embed_dim=WIDTH) for name in ("user", "item"))
    history, negatives = (
        SequenceFeature(name, vocab_size=ITEMS, embed_dim=WIDTH, pooling="concat", shared_with="item")
        for name in ("history", "negatives")
    )
    return GRU4Rec([user], [history], [item], [negatives], {"dims": [2 * WIDTH, WIDTH]})


def sessions(batch: int, steps: int) -> dict[str, Tensor]:
    shapes = {"user": (batch,), "item": (batch,), "history": (batch, steps), "negatives": (batch, NEGATIVES)}
    return {name: torch.randint(0, ITEMS, shape) for name, shape in shapes.items()}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: dict[str, Tensor]) -> float:
    """A training step: the first candidate is the one that was clicked."""
    scores = model(x)
    loss = nn.functional.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def timed(model: nn.Module, optimizer: torch.optim.Optimizer, x: dict[str, Tensor], steps: int) -> tuple[float, float]:
    """The last loss, and the milliseconds of the fastest step."""
    taken = []
    for _ in range(steps):
        begin = time.perf_counter()
        loss = step(model, optimizer, x)
        taken.append(1e3 * (time.perf_counter() - begin))
    return loss, min(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("batch", 256), ("length", 100), ("steps", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, x = recommender(), sessions(args.batch, args.length)
    optimizer = torch.optim.Adam(model.parameters())
    twin = copy.deepcopy(model)
    before, ms = timed(twin, torch.optim.Adam(twin.parameters()), x, args.steps)
    print(f"torch.nn.GRU:  loss {before:.4f}, {ms:.1f} ms for a training step")
    print(tritongru.convert(model))  # the optimizer stays as it is
    after, ms = timed(model, optimizer, x, args.steps)
    print(f"tritongru.GRU: loss {after:.4f}, {ms:.1f} ms for a training step")
    tritongru.convert(model, back=True)


if __name__ == "__main__":
    main()

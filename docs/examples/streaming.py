"""A stream, processed as it arrives: one time step of two layers at a time, without allocating memory.

The outputs equal those of one call with the whole sequence. Run: python docs/examples/streaming.py
"""

import argparse

import torch

import tritongru


def stream(gru: tritongru.GRU, sequence: torch.Tensor) -> torch.Tensor:
    """The outputs (T, B, H) for a sequence (T, B, I), computed step by step."""
    T, B, _ = sequence.shape
    like = {"dtype": sequence.dtype, "device": sequence.device}
    outputs = torch.empty(T, B, gru.hidden_size, **like)
    # A step must not write to the state that it reads, so two states take turns.
    state, spare = torch.zeros(2, gru.num_layers, B, gru.hidden_size, **like)
    with torch.no_grad():
        for t in range(T):
            gru.step(sequence[t], state, out=(outputs[t], spare))
            state, spare = spare, state
    return outputs


def difference(steps: int, batch: int, hidden: int) -> float:
    """The largest difference between the stream and one call."""
    gru = tritongru.GRU(16, hidden, num_layers=2)
    sequence = torch.randn(steps, batch, 16)
    with torch.no_grad():
        whole, _ = gru(sequence)
    return (stream(gru, sequence) - whole).abs().max().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=1, help="streams at once")
    parser.add_argument("--hidden", type=int, default=64)
    given = parser.parse_args()
    torch.manual_seed(0)
    found = difference(given.steps, given.batch, given.hidden)
    print(f"{given.steps} steps one by one; largest difference from one call: {found:.1e}")


if __name__ == "__main__":
    main()

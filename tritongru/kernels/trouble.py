"""What becomes of a wait that does not end: the program gives up, goes on with NaN, and leaves word for the host.

A wait that never ends would mean that a program is missing, which a cooperative launch rules out, or a fault in a
kernel. Either way a GPU that hangs is worse than an error.
"""

import ctypes
import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# Looks at a counter or a tile before a program gives up. A look takes the better part of a microsecond, so this is
# about two seconds; looks are counted, not time, so that a kernel that is paused (debugger, time slices) is not hurt.
LIMIT = 3_000_000


@triton.jit
def report(s, i_b, i_h, i_d):
    """Step, batch tile, program and direction in one word, which is never zero; `raise_trouble` takes it apart."""
    word = (tl.full((), 65536, tl.int64) * s + i_b % 65536) * 32768 + i_h
    return word * 2 + i_d + 1


@triton.jit
def patience(trouble, limit, ok, s, i_b, i_h, i_d):
    """The limit for the next wait: none, and a word for the host, once a wait was in vain."""
    if limit > 0:
        if not ok:
            tl.store(trouble, report(s, i_b, i_h, i_d))
            limit = 0
    return limit


class Trouble(NamedTuple):
    """A word in host memory that kernels on the device write, and the host's own view of it."""

    tensor: Tensor
    word: ctypes.c_int64


@functools.cache
def trouble_of(device: torch.device) -> Trouble:
    with torch.inference_mode(False):  # the first launch may be under inference mode, the next change outside
        tensor = torch.zeros(1, dtype=torch.int64, pin_memory=device.type == "cuda")
    return Trouble(tensor, ctypes.c_int64.from_address(tensor.data_ptr()))


def raise_trouble(trouble: Trouble) -> None:
    """Raises what kernels have written so far, without waiting for them."""
    word = trouble.word.value - 1
    if word < 0:
        return
    trouble.word.value = 0
    word, direction = divmod(word, 2)
    word, program = divmod(word, 1 << 15)
    step, tile = divmod(word, 1 << 16)
    raise RuntimeError(
        f"a persistent GRU kernel gave up at its time step {step}: program {program} of batch tile {tile}, direction "
        f"{direction}, waited about two seconds for the others, and its results from there on are NaN; the call that "
        "launched it has to be repeated (impl='torch' does not depend on programs that wait for each other)"
    )

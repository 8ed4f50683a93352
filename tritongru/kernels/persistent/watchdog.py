"""What happens if a wait does not end: the program gives up, continues with NaN, and reports to the host, which raises
at the next launch or in `tritongru.synchronize`.

A wait that never ends would mean that a program is missing, which a cooperative launch rules out, or a bug in a kernel.
Either way an error is better than a GPU that hangs.
"""

import ctypes
import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tritongru.kernels.persistent.exchange import IN_VAIN, give_up

# Looks that a program makes in one step, at a counter and at all chunks of words together, before it gives up. A look
# is a trip to L2 and back, for a chunk one for all of its words: at least 0.65 us (published, H100), so the limit is
# about two seconds, and more on a busy chip. Looks are counted, not time, so that pausing a kernel (by a debugger, by
# time slices) does no harm.
LIMIT = 3_000_000


@triton.jit
def encode_place(s, i_b, i_h, i_d):
    """Step, batch tile, program and direction in one word, which is never zero; `raise_report` decodes it."""
    word = (tl.full((), 65536, tl.int64) * s + i_b % 65536) * 32768 + i_h
    return word * 2 + i_d + 1


@triton.jit
def spin_budget(report, counter, limit, left, s, start, i_b, i_h, i_d):
    """The limit for the next wait, at step s of the launch. Once a wait has failed, no further wait is made: the host
    gets a word with the step, counted from the ``start`` of the sequence, and the program gives up at each tile."""
    if left == IN_VAIN:
        if limit != IN_VAIN:
            tl.store(report, encode_place(start + s, i_b, i_h, i_d))
        give_up(counter, s, tl.num_programs(0))
        limit = IN_VAIN
    return limit


class Report(NamedTuple):
    """A word in host memory that kernels on the device write, and the host's own view of it."""

    tensor: Tensor
    word: ctypes.c_int64


reports: dict[torch.device, Report] = {}  # for the devices that kernels ran on


@functools.cache
def report_of(device: torch.device) -> Report:
    with torch.inference_mode(False):  # the first launch may be under inference mode, later changes outside
        tensor = torch.zeros(1, dtype=torch.int64, device="cpu", pin_memory=device.type == "cuda")
    reports[device] = Report(tensor, ctypes.c_int64.from_address(tensor.data_ptr()))
    return reports[device]


def raise_report(report: Report) -> None:
    """Raises what kernels have reported so far, without waiting for them."""
    word = report.word.value - 1
    if word < 0:
        return
    report.word.value = 0
    word, direction = divmod(word, 2)
    word, program = divmod(word, 1 << 15)
    step, tile = divmod(word, 1 << 16)
    raise RuntimeError(
        f"a persistent GRU kernel gave up at its time step {step}: program {program} of batch tile {tile}, direction "
        f"{direction}, waited too long for the others, and results from there on are NaN; repeat the call that "
        "launched it, or use impl='torch', which does not depend on programs that wait for each other"
    )

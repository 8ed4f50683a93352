"""The loop on a CPU: how a call is cut into chunks, how much memory it needs, and where torch's own GRU is faster."""

from __future__ import annotations

import functools
import importlib.resources
import json
import math
from dataclasses import dataclass
from typing import Any

import torch

from tritongru.planning.instruction_sets import SETS, host_sets, refusal
from tritongru.planning.memory import Memory, gate_bytes, saves

KEPT = 5  # values that a forward pass keeps for each output: r, z, n, a = W_hn h + b_hn, and the state before the step
GRADIENTS = 4  # of n, r, z and a, of each output
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LINE = 64  # bytes of a cache line
FORWARD_BYTES = 1 << 20  # of the input products of a chunk, for each thread: they stay in the L2 cache
BACKWARD_BYTES = 1 << 21  # of the gradients of a chunk; independent of threads, because its rows are summed together
LEAST_WORK = 1 << 18  # multiply-adds that make a thread worthwhile: about ten microseconds
LEAST_ROWS = 256  # of a backward chunk, which make its products worthwhile

# Parts of a direction's share of scratch, after W_hh.
PARTS = (
    *("w_ih", "bias", "bias_a", "gx", "w_hh_back", "w_ih_back", "rebuilt", "rebuilt_y", "dg"),
    *("h0", "states", "dh", "x", "dx"),  # of ragged rows
)


@dataclass(frozen=True)
class Loop:
    """How the compiled loop runs on a CPU.

    Attributes:
        isa: instruction set.
        rows: sequences in a register tile, by three gates and ``lanes`` hidden units.
        lanes: hidden units in a register tile.
        threads: threads of a call.
        groups: groups into which the batch is split, each processed by one thread.
        chunk_forward: steps of a chunk in the forward pass.
        chunk_backward: steps of a chunk in the backward pass, if there is one.
        weight_bytes: size of the weights that each call packs.
        scratch_bytes: scratch memory of a call, for the larger of its passes.
    """

    isa: str
    rows: int
    lanes: int
    threads: int
    groups: int
    chunk_forward: int
    chunk_backward: int | None
    weight_bytes: int
    scratch_bytes: int


def exact_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which the loop computes."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def refusal_on_cpu(device: torch.device, dtype: torch.dtype) -> str:
    """Why no loop can be compiled for tensors there, or an empty string."""
    if device.type != "cpu":
        return f"the tensors are on {device}, but the compiled loop needs a CPU; move the module and the input there"
    found = refusal()
    return found if found or dtype in DTYPES else refusal_of(host_sets()[0], str(dtype).removeprefix("torch."))


def refusal_of(isa: str, dtype: str) -> str:
    """The same for an instruction set; without one, why this machine has none."""
    if not isa:
        return refusal()
    names = [str(known).removeprefix("torch.") for known in DTYPES]
    return "" if dtype in names else f"the compiled loop does not support {dtype}; convert to one of {', '.join(names)}"


def strip_length(K: int, lanes: int, itemsize: int) -> int:
    """Elements from one strip of packed weights to the next: one cache line more than its length, or many strips would
    share one cache set."""
    return K * lanes + LINE // itemsize


def row_of_gradients(H: int, itemsize: int) -> int:
    """Elements from one row of a chunk's gradients to the next, likewise."""
    return GRADIENTS * H + LINE // itemsize


def chunk_of(T: int, B: int, H: int, itemsize: int, threads: int, backward: bool) -> int:
    """Steps of a chunk."""
    if backward:
        rows = max(LEAST_ROWS, BACKWARD_BYTES // (GRADIENTS * H * itemsize))
    else:
        rows = FORWARD_BYTES * threads // (3 * H * itemsize)
    return max(1, min(T, rows // B))


def threads_of(T: int, B: int, I: int, H: int, threads: int) -> int:
    """How many threads a call uses: fewer than available if they would have too little to do."""
    return max(1, min(threads, T * B * 3 * H * (I + H) // LEAST_WORK))


def groups_of(isa: str, B: int, threads: int) -> int:
    """Into how many groups the rows of a batch are split, each processed by one thread."""
    return max(1, min(threads, math.ceil(B / SETS[isa].rows)))


def parts(
    isa: str,
    *,
    I: int,
    H: int,
    B: int,
    rows: int,
    itemsize: int,
    backward: bool,
    rebuilds: bool,
    ragged: bool = False,
) -> tuple[int, dict[str, int]]:
    """A direction's share of scratch (elements) for a chunk of ``rows`` rows, and where its ``PARTS`` begin."""
    lanes = SETS[isa].bytes // itemsize
    units, inputs = math.ceil(H / lanes), math.ceil(I / lanes)
    of_h, of_i, of_gates = (strip_length(K, lanes, itemsize) for K in (H, I, 3 * H))
    forward = not backward or rebuilds
    sizes = {
        "w_hh": 3 * units * of_h * forward,
        "w_ih": 3 * units * of_i * forward,
        "bias": 3 * units * lanes * forward,
        "bias_a": units * lanes * forward,
        "gx": rows * 3 * units * lanes * forward,
        "w_hh_back": units * of_gates * backward,
        "w_ih_back": inputs * of_gates * backward,
        "rebuilt": rows * KEPT * H * rebuilds,
        "rebuilt_y": B * H * rebuilds,
        "dg": rows * row_of_gradients(H, itemsize) * backward,
        "h0": B * H * ragged * forward,
        "states": 2 * B * H * ragged * forward,
        "dh": B * H * ragged * backward,
        "x": rows * I * ragged,
        "dx": rows * I * ragged * backward,
    }
    begin, at = 0, {}
    for part, size in sizes.items():
        at[part] = begin
        begin += math.ceil(size / LINE) * LINE
    return begin, {part: at[part] for part in PARTS}


def loop_of(
    isa: str,
    *,
    T: int,
    B: int,
    I: int,
    H: int,
    layers: int,
    directions: int,
    threads: int,
    itemsize: int,
    training: bool,
) -> Loop:
    """For the layer with the widest input among ``layers``."""
    own, widest = SETS[isa], max(I, directions * H) if layers > 1 else I
    packed = (
        directions
        * itemsize
        * parts(isa, I=widest, H=H, B=B, rows=0, itemsize=itemsize, backward=False, rebuilds=False)[0]
    )
    scratch = scratch_bytes(isa, T, B, widest, H, directions, itemsize, threads, training, False)
    return Loop(
        *(isa, own.rows, own.bytes // itemsize, threads, groups_of(isa, B, threads)),
        chunk_of(T, B, H, itemsize, threads, False),
        chunk_of(T, B, H, itemsize, threads, True) if training else None,
        *(packed, max(scratch, scratch_bytes(isa, T, B, widest, H, directions, itemsize, threads, False, False))),
    )


def scratch_bytes(
    isa: str,
    T: int,
    B: int,
    I: int,
    H: int,
    directions: int,
    itemsize: int,
    threads: int,
    backward: bool,
    rebuilds: bool,
) -> int:
    """Scratch memory of a call of one layer."""
    rows = chunk_of(T, B, H, itemsize, threads, backward) * B
    of_direction, _ = parts(isa, I=I, H=H, B=B, rows=rows, itemsize=itemsize, backward=backward, rebuilds=rebuilds)
    return directions * itemsize * of_direction


def memory_on_cpu(
    isa: str,
    T: int,
    B: int,
    I: int,
    H: int,
    *,
    layers: int,
    directions: int,
    itemsize: int,
    threads: int,
    device_bytes: int,
    memory: str,
    learns: bool,
) -> Memory:
    """As ``memory.memory_of``; ``itemsize``: of the dtype computed in, 4 for 16-bit tensors."""
    output = T * B * directions * H * itemsize
    kept = KEPT * output
    widest = max(I, directions * H) if layers > 1 else I

    def scratch(backward: bool, rebuilds: bool) -> int:
        return scratch_bytes(isa, T, B, widest, H, directions, itemsize, threads, backward, rebuilds)

    if not learns:
        return Memory("none", output, (2 if layers > 1 else 1) * output + scratch(False, False), 0, 0)
    saved = saves(memory, layers * kept, device_bytes)
    held = layers * (output + (kept if saved else output))  # a layer's outputs may be changed, so the states are copied
    gradients = output + T * B * widest * itemsize
    chunks = math.ceil(T / chunk_of(T, B, H, itemsize, threads, True))
    mode = "save" if saved else "recompute"
    return Memory(mode, held, held + scratch(False, False), held + gradients + scratch(True, not saved), chunks)


def kept_bytes(family: str, rows: int, hidden: int, directions: int, layers: int, dtype: torch.dtype) -> int:
    """Size of what all layers keep for the backward pass."""
    if family == "triton":
        return gate_bytes(rows, hidden, directions, layers, dtype.itemsize)
    return KEPT * rows * hidden * directions * layers * exact_dtype(dtype).itemsize


def least_rows(isa: str, hidden: int, training: bool) -> int:
    """T * B from which on the loop is faster than torch's GRU, by measurements in bench/results. Between two measured
    sizes the larger counts; for an instruction set that was not measured, all others count."""
    return _least("least_rows", isa, hidden, training)


def least_steps(isa: str, hidden: int, training: bool) -> int:
    """Likewise the time steps T of several sequences: in a single step torch's GRU is nothing but products."""
    return _least("least_steps", isa, hidden, training)


CELL_ROWS = 1  # the steps of cells that were measured are of one sequence


@functools.lru_cache(maxsize=256)
def takes_cell(isa: str, hidden: int, rows: int) -> bool:
    """Whether a step of ``rows`` sequences is faster with the loop than with torch's cell, by the same measurements,
    all of one sequence."""
    return rows == CELL_ROWS and _of("least_rows", isa, hidden, "cell") == 1


def _least(what: str, isa: str, hidden: int, training: bool) -> int:
    return _of(what, isa, hidden, "train" if training else "forward")


@functools.lru_cache(maxsize=1024)  # called in every call
def _of(what: str, isa: str, hidden: int, kind: str) -> int:
    found = [row for row in _table() if row["pass"] == kind and what in row]
    own = [row for row in found if row["isa"] == isa] or found
    sizes = sorted({int(row["hidden"]) for row in own})
    nearest = next((size for size in sizes if size >= hidden), sizes[-1] if sizes else 0)
    return max((int(row[what]) for row in own if row["hidden"] == nearest), default=1)


def refusal_by_size(isa: str, hidden: int, training: bool, T: int, B: int, threads: int) -> str:
    """Why ``impl="auto"`` runs torch's GRU for a call of that size, or an empty string."""
    what = f"torch's GRU was measured to be faster for {'a training step' if training else 'a call'}"
    rows, steps = least_rows(isa, hidden, training), least_steps(isa, hidden, training)
    if rows > T * B:
        return f"{what} with T * B < {rows} (time steps times sequences)"
    if B > 1 and steps > T:
        return f"{what} with fewer than {steps} time steps and several sequences"
    if T > 1 and is_slower(isa, hidden, training, B, threads):
        near = nearest(isa, hidden, training, B, threads)
        count = threads_text(near["threads"])
        size = f"H = {near['hidden']}, B = {near['batch']} and {count} ({SETS[near['isa']].title})"
        return f"{what} with {size}, the nearest measured size"
    return ""


def threads_text(count: int) -> str:
    return f"{count} thread{'s' if count != 1 else ''}"


def is_slower(isa: str, hidden: int, training: bool, B: int, threads: int) -> bool:
    """Whether the nearest measured call was slower than torch's GRU in nine rounds of ten."""
    found = nearest(isa, hidden, training, B, threads)
    return bool(found) and found["high"] < 1


@functools.lru_cache(maxsize=1024)
def nearest(isa: str, hidden: int, training: bool, B: int, threads: int) -> dict[str, Any]:
    """The nearest of all measured calls with many steps, or empty. The distance is the number of factors of two in H, B
    and threads together; another instruction set counts as one. Among equally near calls, the own instruction set's
    counts, then the slowest."""
    kind = "train" if training else "forward"
    found = [row for row in _table("cells") if row["pass"] == kind]

    def rank(row: dict[str, Any]) -> tuple[float, bool, float]:
        sizes = ((row["hidden"], hidden), (row["batch"], B), (row["threads"], threads))
        factors = math.fsum(abs(math.log2(own / max(asked, 1))) for own, asked in sizes)
        other = row["isa"] != isa
        return round(factors + other, 6), other, row["over"]

    return min(found, key=rank, default={})


@functools.cache
def _table(part: str = "rows") -> list[dict[str, Any]]:
    """Measurements: ``rows``, from how many on the loop is faster, and ``cells``, nn.GRU's time over ours."""
    text = importlib.resources.files("tritongru.planning").joinpath("tables/cpu.json").read_text()
    return json.loads(text)[part]  # type: ignore[no-any-return]

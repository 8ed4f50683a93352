"""A model of the time of a step, in microseconds, used wherever there are no measurements.

Each constant has its unit and its source. *published*: taken from public figures, not measured here; *assumed*: a guess
to be replaced by the first measurements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tritongru.planning.devices import Device

SCHEDULERS = 4  # instruction schedulers of a multiprocessor, one warp's instruction a clock each (published)
BARRIER_CLOCKS = 30  # a block-wide barrier (assumed)
WAVEFRONT_CLOCKS = 1  # of a multiprocessor's shared memory, for one wavefront: a pass over its 32 banks (published)
SHARED_BYTES_PER_CLOCK = 128  # of shared memory, a multiprocessor (published): what one wavefront moves at most
L2_BYTES_PER_CLOCK = 24  # that L2 delivers for each multiprocessor of the chip: about 5.5 TB/s on an H100 (published)
L2_BYTES_PER_CLOCK_ALONE = 64  # that one multiprocessor can receive (published)
L2_LATENCY_US = 0.2  # from a load to its value in L2 (published: 0.13 to 0.2 on an H100)
HOP_US = 0.65  # from a store with release until another multiprocessor sees it (published, H100)
BARRIER_US = 0.98  # a barrier of all multiprocessors without its arrivals (published: 1.07 to 1.09 with 132 of them)
ARRIVAL_US = 0.00074  # one more atomic on the same address (published, H100)
READINGS = 2.0  # how often a tile is read until it is complete, if the data is its own flag (assumed)
LAUNCH_US = 3.0  # one more kernel launch that nothing hides (assumed)
STEP_LAUNCH_US = 15.0  # one Triton launch from Python; the stepwise family needs one per step (assumed)
STEP_SHARE = 0.7  # share of the memory's and the tensor cores' rate that such a launch reaches (assumed)
TORCH_STEP_US = 7.0  # cuDNN's standard algorithm, two launches a step (published: 7 to 12 at small batch)
TORCH_SMALL_H = 192  # up to here cuDNN uses a different algorithm, for which there are no figures
TORCH_POINTWISE_US = 4.0  # the part of a step that is not the product (assumed)
TORCH_MMA_SHARE = 0.5  # share of the warp-level tensor-core rate that a step's product reaches (assumed)
FP32_LANES = 128  # fp32 multiply-adds per clock of a multiprocessor without tensor cores (published); half on sm_80
TORCH_FP32_SHARE = 0.7  # share of that rate that cuDNN's product in IEEE fp32 reaches (assumed)
TERMS = ("exchange", "l2", "tensor", "shared", "issue", "barriers")  # of a step, in order


@dataclass(frozen=True)
class Cost:
    """Microseconds of one time step. ``exchange``: until the arrival of all programs is seen. ``l2``: reading the tile
    from L2. ``tensor``, ``shared``, ``issue``: tensor cores, shared memory and instruction issue, which overlap;
    ``barriers``: inside a program. ``turns``: batch tiles that a program serves one after the other; each term is of
    one of them. ``us``: total, of all turns."""

    us: float
    exchange: float
    l2: float
    tensor: float
    shared: float
    issue: float
    barriers: float
    turns: int = 1

    @property
    def math(self) -> float:
        return max(self.tensor, self.shared, self.issue) + self.barriers

    @property
    def terms(self) -> dict[str, float]:
        """Microseconds of each of ``TERMS``, in their order."""
        return {name: getattr(self, name) for name in TERMS}


def resident(
    device: Device, instructions: int, barriers: int, num_warps: int, waves: int, wavefronts: int | None = None
) -> Cost:
    """One program by itself: instruction issue or shared memory, whichever takes longer, and barriers. The instructions
    include the tensor cores' work. Shared memory counts only where its ``wavefronts`` are known."""
    issue = instructions * max(1.0, num_warps / SCHEDULERS) / device.clock_mhz
    shared = (wavefronts or 0) * WAVEFRONT_CLOCKS / device.clock_mhz
    waiting = BARRIER_CLOCKS * barriers / device.clock_mhz
    return Cost(waves * (max(issue, shared) + waiting), 0.0, 0.0, 0.0, shared, issue, waiting, waves)


def persistent(
    device: Device,
    *,
    programs: int,
    neighbours: int,
    turns: int,
    tile_bytes: int,
    weight_bytes: int,
    part_bytes: int,
    multiply_adds: int,
    bits: int,
    instructions: int,
    barriers: int,
    num_warps: int,
    per_multiprocessor: int,
    data: bool,
    wavefronts: int | None = None,
) -> Cost:
    """A step of ``programs`` programs, of which ``neighbours`` share a tile, each serving ``turns`` tiles.

    ``tile_bytes``: state that a program collects for a tile. ``weight_bytes``: its slice of W_hh, read from shared
    memory for each tile. ``part_bytes``: products that its warps write to shared memory and add up there.
    ``multiply_adds``: of a tile, on numbers of ``bits`` bits. ``per_multiprocessor``: programs that share one.
    ``wavefronts``: of shared memory, for a tile; where they were not counted, those bytes stand in for them, as if no
    two lanes ever met in a bank. While one tile's state is in transit, a program with several tiles works on another:
    then the exchange costs nothing, and the time is that of L2 or of the programs' own work, whichever is longer."""
    busy = min(per_multiprocessor, math.ceil(programs / device.multiprocessors))  # programs on the fullest one
    clocks = 1.0 / device.clock_mhz
    alone = busy * tile_bytes / L2_BYTES_PER_CLOCK_ALONE * clocks
    together = max(alone, programs * tile_bytes / (device.multiprocessors * L2_BYTES_PER_CLOCK) * clocks)
    if data:
        exchange, together, alone = HOP_US, READINGS * together, READINGS * alone
    else:
        exchange = BARRIER_US + ARRIVAL_US * neighbours
    tensor = busy * multiply_adds / (device.mma * 16 / bits) * clocks
    if wavefronts is None:
        shared = busy * (weight_bytes + 2 * part_bytes) / SHARED_BYTES_PER_CLOCK * clocks
    else:
        shared = busy * wavefronts * WAVEFRONT_CLOCKS * clocks
    issue = instructions * max(1.0, busy * num_warps / SCHEDULERS) * clocks
    waiting = BARRIER_CLOCKS * barriers * clocks
    work = max(tensor, shared, issue) + waiting
    us = max(
        exchange + L2_LATENCY_US + together + work,
        turns * (L2_LATENCY_US + alone + work),
        turns * together,
    )
    return Cost(us, exchange, together, tensor, shared, issue, waiting, turns)


def stepwise(device: Device, weight_bytes: int, tiles: int, multiply_adds: int, bits: int) -> Cost:
    """A launch for each step, which reads W_hh again: from L2 if it fits, else from memory; each batch tile then reads
    it from L2."""
    tensor = multiply_adds / (STEP_SHARE * device.mma * 16 / bits) / device.multiprocessors / device.clock_mhz
    reading = max(_reading_us(device, weight_bytes), _l2_us(device, tiles * weight_bytes)) / STEP_SHARE
    return Cost(max(STEP_LAUNCH_US, reading, tensor), 0.0, reading, tensor, 0.0, 0.0, 0.0)


def _reading_us(device: Device, size: int) -> float:
    if size > device.l2_bytes and device.memory_gbs:
        return size / device.memory_gbs / 1000
    return _l2_us(device, size)


def _l2_us(device: Device, size: int) -> float:
    return size / (device.multiprocessors * L2_BYTES_PER_CLOCK) / device.clock_mhz


def torch_us(
    device: Device, hidden: int, bits: int, batch: int, directions: int, tensor_cores: bool = True
) -> float | None:
    """A forward step of torch's own GRU, and the same for a backward step; None if nothing is known. Two directions are
    assumed to overlap except for their work. ``tensor_cores``: whether its products may use them, which IEEE fp32
    forbids."""
    if torch_unknown(device, hidden):
        return None
    rate = TORCH_MMA_SHARE * device.mma * 16 / bits
    if not tensor_cores:
        rate = TORCH_FP32_SHARE * FP32_LANES / (2 if device.family == "sm_80" else 1)
    weights = 3 * directions * hidden * hidden
    work = weights * batch / (rate * device.multiprocessors * device.clock_mhz)
    if weights * bits // 8 > device.l2_bytes:
        work = max(work, _reading_us(device, weights * bits // 8))
    return max(TORCH_STEP_US, TORCH_POINTWISE_US + work)


def torch_unknown(device: Device, hidden: int) -> str:
    """Why the model has no figures for torch's own GRU there; empty if it has."""
    if device.backend != "cuda":
        return f"the cost model has no figures for torch's GRU on {device.name}"
    if not device.mma or not device.clock_mhz:
        return f"the clock and the tensor-core rate of {device.name} are not known"
    if hidden <= TORCH_SMALL_H:
        return f"up to hidden size {TORCH_SMALL_H} cuDNN has another algorithm, for which the cost model has no figures"
    return ""

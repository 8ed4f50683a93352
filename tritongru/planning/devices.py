"""Facts about the devices that the plan knows, so that it can decide without the device."""

from __future__ import annotations

import functools
import operator
import os
import reprlib
from dataclasses import dataclass, replace
from typing import Any

import torch

from tritongru.planning.instruction_sets import SETS, host_sets

KB, MB, GB = 1024, 1024**2, 10**9  # memory is sold by powers of ten


@dataclass(frozen=True)
class Device:
    """What the plan needs to know about a device, from the vendors' data sheets.

    Attributes:
        name: the device's name.
        backend: "cuda", "hip" or "cpu".
        arch: "sm_90", "gfx942", ...; for a CPU the instruction set of the loop, or empty if there is none.
        multiprocessors: number of multiprocessors; for a CPU, of threads.
        shared_bytes: most shared memory that one program may use (a multiprocessor has about 1 KB more).
        clock_mhz: boost clock.
        l2_bytes: size of the last cache that all multiprocessors share.
        mma: 16-bit multiply-adds with fp32 sums per clock of a multiprocessor's tensor cores, through warp-level
            instructions.
        memory_bytes: size of the device's memory.
        memory_gbs: bandwidth of the device's memory in 10^9 bytes per second.
    """

    name: str
    backend: str
    arch: str
    multiprocessors: int
    shared_bytes: int
    clock_mhz: int
    l2_bytes: int = 0
    mma: int = 0
    memory_bytes: int = 0
    memory_gbs: int = 0

    @property
    def family(self) -> str:
        """The chip of the compile matrix that stands for this one: sm_86 for an RTX 4090 (sm_89)."""
        if self.backend != "cuda" or self.arch == "sm_80":
            return self.arch
        return {"8": "sm_86", "9": "sm_90", "10": "sm_100", "12": "sm_120"}.get(self.arch[3:-1], self.arch)


# mma: the data sheets' dense rate over clock and multiprocessors; on sm_90 and sm_100 warp-level instructions reach
# only part of it: 62 % on an H100 (arXiv:2402.13499), assumed for the B200 as well.
GPUS = {
    "a100": Device("A100", "cuda", "sm_80", 108, 163 * KB, 1410, 40 * MB, 1024, 80 * GB, 2039),
    "rtx3090": Device("RTX 3090", "cuda", "sm_86", 82, 99 * KB, 1695, 6 * MB, 256, 24 * GB, 936),
    "rtx4090": Device("RTX 4090", "cuda", "sm_89", 128, 99 * KB, 2520, 72 * MB, 256, 24 * GB, 1008),
    "h100": Device("H100", "cuda", "sm_90", 132, 227 * KB, 1980, 50 * MB, 1270, 80 * GB, 3350),
    "h200": Device("H200", "cuda", "sm_90", 132, 227 * KB, 1980, 50 * MB, 1270, 141 * GB, 4800),
    "b200": Device("B200", "cuda", "sm_100", 148, 227 * KB, 1965, 126 * MB, 2540, 180 * GB, 8000),
    "rtx5090": Device("RTX 5090", "cuda", "sm_120", 170, 99 * KB, 2407, 96 * MB, 256, 32 * GB, 1792),
    "mi300x": Device("MI300X", "hip", "gfx942", 304, 64 * KB, 2100, 256 * MB, 1024, 192 * GB, 5300),
    "mi355x": Device("MI355X", "hip", "gfx950", 256, 160 * KB, 2400, 256 * MB, 2048, 288 * GB, 8000),
}
AMD_CHIPS = ("gfx942", "gfx950")
# The chips whose compiled kernels have been executed, by a GPU or the PTX machine (tests/ptx). For the others they are
# compiled and their machine code is read, but nothing has run it.
RUN_ON = ("sm_80", "sm_90")
CPU = Device("the CPU", "cpu", "", 0, 0, 0)

# The largest sizes that `explain` accepts. A plan is for one GPU, and the largest above has 288 GB: a larger size is a
# typo, for which the model's figures would mean nothing.
MOST = {
    "hidden": 100_000,  # W_hh then takes 60 GB in 16 bit
    "inputs": 10_000_000,  # more than the words of any vocabulary
    "batch": 10_000_000,  # more than two thousand programs of 16 rows for each multiprocessor
    "time": 1_000_000_000,  # almost six hours of sound at 48 kHz
    "layers": 1_000,
}
ASSUMED_BYTES = 8 * GB  # of memory on Windows, where the operating system is not queried
MOST_VALUES = 10**12  # weights, and the outputs of a layer, together: 2 TB in 16 bit, seven times the largest memory


def find_gpu(name: str) -> Device | None:
    """The known GPU of that name, ignoring case."""
    return GPUS.get(name.lower())


def check_sizes(directions: int, **sizes: Any) -> dict[str, int]:
    """The sizes, named as in ``MOST``, as ints.

    Raises:
        TypeError: if one is not a whole number.
        ValueError: if one is below 1 or above ``MOST``, or if all of them together fit no GPU.
    """
    found = {name: check_size(name, value) for name, value in sizes.items()}
    H, L = found["hidden"], found["layers"]
    first = 3 * H * (found["inputs"] + H)
    later = 3 * H * (directions * H + H)
    values = directions * (first + (L - 1) * later + found["time"] * found["batch"] * H)
    if values > MOST_VALUES:
        shown = ", ".join(f"{name} {value}" for name, value in found.items())
        raise ValueError(
            f"the weights and one layer's output of these sizes ({shown}) have {values:.1e} values, but no GPU holds "
            f"more than {MOST_VALUES:.0e}; give smaller sizes"
        )
    return found


def check_size(name: str, value: Any) -> int:
    """One of the sizes of ``MOST``, as an int; errors as in ``check_sizes``."""
    try:
        if isinstance(value, bool):  # an int to Python, and a mistake here
            raise TypeError
        number = operator.index(value)
    except TypeError:
        kind = type(value).__name__
        raise TypeError(f"{name} should be a whole number, got {reprlib.repr(value)} of type {kind}") from None
    # Python refuses to print very long numbers
    shown = str(number) if number.bit_length() < 1000 else f"a number of {number.bit_length()} bits"
    if number < 1:
        raise ValueError(f"{name} should be at least 1, got {shown}")
    if number > MOST[name]:
        raise ValueError(f"{name} should be at most {MOST[name]}, got {shown}")
    return number


def check_flag(name: str, value: Any) -> bool:
    """Of what a plan is for: easily mistaken for the tensor of that name, which a call takes."""
    if type(value).__name__ not in ("bool", "bool_"):  # Python's and NumPy's
        raise TypeError(f"{name} should be True or False, whether calls pass {name}, got {type(value).__name__}")
    return bool(value)


def is_served(device: Device) -> bool:
    """Whether the compile matrix covers the chip: older tensor cores have neither bfloat16 nor asynchronous copies."""
    if device.backend == "hip":
        return device.arch in AMD_CHIPS
    return int(device.arch.removeprefix("sm_")) >= 80


def device_facts(device: torch.device) -> Device:
    """Facts about a torch device; with TRITON_INTERPRET=1 the CPU stands in for an H200 and runs its kernels."""
    if device.type == "cuda":
        return _cuda_facts(torch.cuda.current_device() if device.index is None else device.index)
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return replace(GPUS["h200"], name="Triton's interpreter (as an H200)")
    return cpu_facts() if device.type == "cpu" else replace(CPU, name=device.type)


def cpu_facts(isa: str | None = None) -> Device:
    """This machine's CPU, with torch's current number of threads as multiprocessors; or one with another instruction
    set and otherwise the same."""
    here = _cpu_facts()
    if isa is not None:
        here = replace(here, name=f"a CPU with {SETS[isa].title}", arch=isa)
    return replace(here, multiprocessors=torch.get_num_threads())


@functools.cache
def _cpu_facts() -> Device:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else ASSUMED_BYTES
    isa = next(iter(host_sets()), "")
    name = f"this machine's CPU, {SETS[isa].title}" if isa else CPU.name
    return replace(CPU, name=name, arch=isa, memory_bytes=memory)


@functools.cache
def _cuda_facts(index: int) -> Device:
    found = torch.cuda.get_device_properties(index)
    hip = torch.version.hip is not None
    arch = found.gcnArchName.split(":")[0] if hip else f"sm_{found.major}{found.minor}"
    listed = next((gpu for gpu in GPUS.values() if gpu.arch == arch), None)
    return Device(
        found.name,
        "hip" if hip else "cuda",
        arch,
        found.multi_processor_count,
        found.shared_memory_per_block if hip else found.shared_memory_per_block_optin,  # type: ignore[attr-defined]
        listed.clock_mhz if listed else 0,
        int(getattr(found, "L2_cache_size", 0)) or (listed.l2_bytes if listed else 0),
        listed.mma if listed else 0,
        found.total_memory,
        listed.memory_gbs if listed else 0,
    )

"""The instruction sets that the loop on a CPU is compiled for, their register tiles, and which of them this machine
has."""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import importlib.util
import mmap
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class InstructionSet:
    """``title``: as its vendor writes it. ``bytes``: of a vector. ``tiles``: for each number of rows, the numbers of
    vectors that a register tile may have side by side, widest first; the widest fill the registers with sums of
    products. ``gate_tiles``: likewise if three vectors are the gates of the same units. ``fuses``: whether there is a
    fused multiply-add. ``features``: LLVM's names of the features that the CPU must have. ``cpu``: the oldest CPU that
    has them, for which code is generated."""

    name: str
    title: str
    architecture: str
    bytes: int
    tiles: dict[int, tuple[int, ...]]
    gate_tiles: dict[int, tuple[int, ...]]
    fuses: bool
    features: tuple[str, ...]
    cpu: str

    @property
    def rows(self) -> int:
        """Rows of the largest tile."""
        return max(self.tiles)


# A tile of R rows and V vectors keeps R V sums in registers, beside V vectors of weights and one value of the state:
# 24 sums where there are 32 registers, 12 where there are 16. Eight hide the latency of a multiply-add, so fewer rows
# take more vectors.
WIDE = {8: (3, 2, 1), 4: (6, 4, 2, 1), 2: (12, 8, 4, 2, 1), 1: (12, 8, 4, 2, 1)}
WIDE_GATES = {8: (3,), 4: (6, 3), 2: (12, 6, 3), 1: (12, 6, 3)}
NARROW = {4: (3, 2, 1), 2: (6, 4, 2, 1), 1: (12, 8, 4, 2, 1)}
NARROW_GATES = {4: (3,), 2: (6, 3), 1: (12, 6, 3)}
# Without a fused multiply-add each product needs its own register.
UNFUSED = {4: (2, 1), 2: (4, 2, 1), 1: (8, 4, 2, 1)}
UNFUSED_GATES = {3: (3,), 2: (3,), 1: (9, 6, 3)}
SETS = {
    "avx512": InstructionSet(
        "avx512",
        "AVX-512",
        "x86_64",
        64,
        WIDE,
        WIDE_GATES,
        True,
        ("avx512f", "avx512vl", "avx512dq", "avx512bw", "fma"),
        "x86-64-v4",
    ),
    "avx2": InstructionSet("avx2", "AVX2", "x86_64", 32, NARROW, NARROW_GATES, True, ("avx2", "fma"), "x86-64-v3"),
    "sse2": InstructionSet("sse2", "SSE2", "x86_64", 16, UNFUSED, UNFUSED_GATES, False, ("sse2",), "x86-64"),
    "neon": InstructionSet("neon", "NEON", "aarch64", 16, WIDE, WIDE_GATES, True, ("neon",), "generic"),
}
LLVMLITE = (0, 45)  # the oldest that accepts the loop's LLVM IR, which has opaque pointers
INSTALL = "pip install 'tritongru[cpu]'"


@functools.cache
def host_sets() -> tuple[str, ...]:
    """The instruction sets that this CPU and its operating system support, the best first; empty on an unknown
    architecture, or without llvmlite, which detects them."""
    if _llvmlite() < LLVMLITE:
        return ()
    import llvmlite.binding as llvm

    found = llvm.get_host_cpu_features()
    architecture = llvm.get_process_triple().split("-")[0].lower()
    architecture = {"arm64": "aarch64", "amd64": "x86_64"}.get(architecture, architecture)
    return tuple(
        name
        for name, isa in SETS.items()
        if isa.architecture == architecture and all(found.get(feature, False) for feature in isa.features)
    )


@functools.cache
def refusal() -> str:
    """Why no loop can be compiled for this machine's CPU, or an empty string."""
    version = _llvmlite()
    if not version:
        return f"the package llvmlite is not installed; install it with: {INSTALL}"
    if version < LLVMLITE:
        found, least = (".".join(map(str, numbers)) for numbers in (version, LLVMLITE))
        return f"llvmlite {found} is older than {least}; install a newer one with: {INSTALL}"
    if not host_sets():
        return f"this CPU's instruction set is not supported; supported are {', '.join(SETS)}"
    if not _may_execute():
        return "this process is not allowed to make memory executable, which compiled code needs"
    return ""


def _llvmlite() -> tuple[int, ...]:
    """Major and minor version, or empty if it is not installed."""
    if importlib.util.find_spec("llvmlite") is None:
        return ()
    try:
        numbers = importlib.metadata.version("llvmlite").split(".")[:2]
        return tuple(int(number) for number in numbers)
    except (importlib.metadata.PackageNotFoundError, ValueError):  # a custom build
        return LLVMLITE


def _may_execute() -> bool:
    """Whether written memory may become executable: LLVM needs that, and ends the process if it fails."""
    if sys.platform == "win32" or sys.platform == "darwin":
        return True
    with mmap.mmap(-1, mmap.PAGESIZE) as page:
        place = ctypes.addressof(held := ctypes.c_char.from_buffer(page))
        protect = ctypes.CDLL(None).mprotect
        protect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        granted = protect(place, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC) == 0
        protect(place, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE)
        del held
    return bool(granted)

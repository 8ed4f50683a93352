"""The tables of launch configurations, read from the JSON files in ``tables``.

A row is a configuration with compiler readings from several versions of Triton (``bench/compile/readings.py``). The
launches are those of this process's Triton.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import math
from dataclasses import dataclass
from typing import Any

from tritongru.planning import triton_versions

BLOCK_B = 16  # rows of a tensor-core tile, the smallest batch tile


@dataclass(frozen=True)
class Launch:
    """One compiled form of a resident kernel. ``chunks``: widths into which the hidden units are cut; ``stages``: steps
    by which loads run ahead; ``instructions``, ``barriers``: of one time step and warp, read from the machine code for
    sm_90 (None without such a reading); ``wavefronts``: shared-memory wavefronts of one program in one time step,
    counted by running the PTX for sm_90 (None if they were not counted); ``spills_on``: chips on which registers would
    spill to memory; ``faults``: faults of that machine code (``bench/compile/hazards.py``)."""

    chunks: tuple[int, ...]
    block_b: int
    num_warps: int
    stages: int
    shared_bytes: int
    dot_precision: str
    instructions: int | None = None
    barriers: int | None = None
    wavefronts: int | None = None
    spills_on: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class PersistentLaunch:
    """One compiled form of a persistent kernel, ``kernel``: "forward" or "backward". A program owns ``block_h`` hidden
    units of tiles of ``block_b`` rows. ``k_split``: parts of the contraction that groups of warps multiply side by
    side; ``chunks``: widths into which each part is cut; ``pad``: whether r, z and n are padded to four gates for one
    product instead of two (forward only); ``exchange``: "counter" or "data"; ``slots``: steps that the exchange holds;
    ``span``: units of a row that lie side by side in the program's own blocks (8, as in a tensor-core result, meet the
    fewest bank conflicts; 16 may need fewer registers); ``groups``: batch tiles worked on at a time, set by the plan.
    The counts are of one batch tile's step and warp, for sm_90; ``wavefronts``, of shared memory, are those of all the
    program's warps, None if they were not counted."""

    kernel: str
    bits: int
    units: int
    chunks: tuple[int, ...]
    block_b: int
    block_h: int
    num_warps: int
    k_split: int
    pad: bool
    exchange: str
    slots: int
    shared_bytes: int
    dot_precision: str
    span: int = 8
    registers: int = 255
    instructions: int = 0
    barriers: int = 0
    tensor_core: int = 0
    wavefronts: int | None = None
    spills_on: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    groups: int = 1

    @property
    def name(self) -> str:
        form = "-two" if self.kernel == "forward" and not self.pad else ""  # products per chunk
        wide = f"-span{self.span}" if self.span > 8 else ""
        return f"{self.block_b}x{self.block_h}-{self.num_warps}w-{self.exchange}{form}{wide}"

    @property
    def gates(self) -> int:
        return 4 if self.pad else 3

    @property
    def products(self) -> int:
        """Tensor-core products per product: IEEE fp32 takes three."""
        return 3 if self.dot_precision == "tf32x3" else 1

    @functools.cached_property
    def constants(self) -> dict[str, Any]:
        """What the kernel is compiled for, besides the layer's own constants."""
        own = {"PAD": self.pad} if self.kernel == "forward" else {}
        return own | {
            "PRECISION": self.dot_precision,
            "CHUNKS": self.chunks,
            "BB": self.block_b,
            "BH": self.block_h,
            "SPAN": self.span,
            "KS": self.k_split,
            "SLOTS": self.slots,
            "DATA": self.exchange == "data",
            "THREADS": 32 * self.num_warps,
        }

    @functools.cached_property
    def tile_bytes(self) -> int:
        """What a program collects for a tile: the states of all units, or the gradients of their three gates."""
        return self.block_b * self.k_split * sum(self.chunks) * self.bits // 8

    def programs(self, hidden: int) -> int:
        """Programs that share a batch tile."""
        return math.ceil(hidden / self.block_h)


@dataclass(frozen=True)
class StepwiseLaunch:
    """One compiled form of a stepwise kernel. At one step a program owns ``block_h`` hidden units of ``block_b`` rows;
    it reads W_hh in blocks of ``block_k``, ``stages`` of them in flight at a time. The counts are of one such
    block and warp, for sm_90."""

    block_b: int
    block_h: int
    block_k: int
    num_warps: int
    stages: int
    shared_bytes: int
    dot_precision: str
    instructions: int = 0
    barriers: int = 0
    spills_on: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.block_b}x{self.block_h}x{self.block_k}-{self.num_warps}w-{self.stages}s-stepwise"


@dataclass(frozen=True)
class VectorLaunch:
    """The compiled loop of a CPU: ``isa``, of ``instruction_sets.SETS``."""

    isa: str


AnyLaunch = Launch | PersistentLaunch | StepwiseLaunch


def launch_name(launch: AnyLaunch) -> str | None:
    """The name in result rows; None for a resident launch, because the plan has only one for each size."""
    return None if isinstance(launch, Launch) else launch.name


@dataclass(frozen=True)
class Measured:
    """Measurements of a shape from bench/results: microseconds per step, and the configuration measured. For training,
    ``us`` and ``torch_us`` are forward and backward together, and ``launch`` is the backward's."""

    us: float
    torch_us: float
    launch: str | None


Row = dict[str, Any]
SPARED = 16  # bytes of stack that a ragged form may need: four registers cost less than the next best configuration
FAMILIES: dict[str, type[Any]] = {"resident": Launch, "persistent": PersistentLaunch, "stepwise": StepwiseLaunch}


def rows_of(table: str) -> list[Row]:
    """The rows of a family's table, or of "measured"."""
    path = importlib.resources.files("tritongru.planning") / "tables" / f"{table}.json"
    rows: list[Row] = json.loads(path.read_text())
    return rows


@functools.cache
def tritons_read() -> tuple[str, ...]:
    """The versions of Triton for which every NVIDIA row has readings."""
    return tuple(rows_of("resident")[0]["readings"])


@functools.cache
def read_with() -> str:
    """The version whose readings this process uses."""
    return triton_versions.read_with(tritons_read())


def launch_of(family: str, row: Row, triton: str | None = None, ragged: bool = False) -> Any:
    """A row as a launch, with the readings of ``triton``, if given; those of the ``ragged`` form differ in registers,
    shared memory and stack. What this version's readings lack (the row, a chip, the wavefronts, the ragged form) is
    taken from another version's."""
    found = {"shared_bytes": 0, "dot_precision": dot_precision(row["backend"], row["kind"])} | row
    if family != "stepwise":
        found["chunks"] = tuple(row["chunks"])
    if family == "resident":
        found["block_b"] = BLOCK_B
    if family == "persistent":
        found["bits"] = bits_of(row["kind"])
    if triton is not None:
        own = row["readings"][triton_versions.nearest(triton, tuple(row["readings"]))]
        readings = [*row["readings"].values(), own]
        stacks = {chip: stack for reading in readings for chip, stack in reading["stack"].items()}
        if ragged:
            stacks |= {
                chip: stack if stack > SPARED else 0
                for reading in readings
                for chip, stack in reading.get("ragged", {"stack": {}})["stack"].items()
            }
            own = own | _ragged_reading(row, triton)
        found |= own
        counted = [version for version, reading in row["readings"].items() if "wavefronts" in reading]
        if counted:
            found["wavefronts"] = row["readings"][triton_versions.nearest(triton, counted)]["wavefronts"]
        found["spills_on"] = tuple(sorted(chip for chip, stack in stacks.items() if stack))
        found["faults"] = tuple(own["faults"])
    return FAMILIES[family](**{name: found[name] for name in FAMILIES[family].__dataclass_fields__ if name in found})


def _ragged_reading(row: Row, triton: str) -> Row:
    """Of the form for ragged rows, or empty if no Triton has read it."""
    found = {version: reading["ragged"] for version, reading in row["readings"].items() if "ragged" in reading}
    return found[triton_versions.nearest(triton, tuple(found))] if found else {}


def _table(family: str, triton: str | None, ragged: bool, *names: str) -> dict[Any, tuple[Any, ...]]:
    """Launches by the values that the rows have for ``names``, in their order."""
    table: dict[Any, tuple[Any, ...]] = {}
    for row in rows_of(family):
        key = tuple(row[name] for name in names)
        table[key] = (*table.get(key, ()), launch_of(family, row, triton or read_with(), ragged))
    return table


@functools.cache
def launches(triton: str | None = None, ragged: bool = False) -> dict[tuple[str, str, str, int], tuple[Launch, ...]]:
    """(backend, kernel, kind, padded hidden size) -> configurations, the cheapest first; for this process's Triton, or
    for the given version; of the form for padded and packed rows, or for ``ragged`` ones."""
    return _table("resident", triton, ragged, "backend", "kernel", "kind", "hidden")


@functools.cache
def persistent_launches(
    triton: str | None = None, ragged: bool = False
) -> dict[tuple[str, str, str, int], tuple[PersistentLaunch, ...]]:
    """(backend, kernel, kind, padded hidden size) -> configurations."""
    return _table("persistent", triton, ragged, "backend", "kernel", "kind", "units")


@functools.cache
def stepwise_launches(
    triton: str | None = None, ragged: bool = False
) -> dict[tuple[str, str, str], tuple[StepwiseLaunch, ...]]:
    """(backend, kernel, kind) -> configurations."""
    return _table("stepwise", triton, ragged, "backend", "kernel", "kind")


Shape = tuple[str, str, int, int, int]  # chip, kind, hidden size, batch tiles of 16 rows, directions


@functools.cache
def measured() -> dict[tuple[str, Shape], Measured]:
    """("forward" or "train", shape) -> its measurement."""
    return {
        (row["mode"], (row["arch"], row["kind"], row["hidden"], row["tiles"], row["directions"])): Measured(
            row["us"], row["torch_us"], row["launch"]
        )
        for row in rows_of("measured")
    }


def shape_of(arch: str, kind: str, hidden: int, batch: int, directions: int) -> Shape:
    return arch, kind, hidden, math.ceil(batch / BLOCK_B), directions


def bits_of(kind: str) -> int:
    return 16 if kind == "16-bit" else 32


def dot_precision(backend: str, kind: str) -> str:
    """The ``input_precision`` of the kernel's products. On NVIDIA's tensor cores IEEE precision takes three TF32
    products (error near 2^-22); AMD's matrix cores support fp32 directly."""
    if backend == "hip":
        return "ieee"
    return "tf32x3" if kind == "ieee" else "tf32"


def padded(hidden: int) -> int:
    """Hidden units that a resident kernel works on: a multiple of 16, at least 32."""
    return max(32, math.ceil(hidden / 16) * 16)


def chunks_of(hidden: int, widest: int = 256) -> tuple[int, ...]:
    """A padded size as a sum of powers of two, the widest first, none wider than ``widest``."""
    whole, rest = divmod(hidden, widest)
    narrow = tuple(1 << bit for bit in reversed(range(rest.bit_length())) if rest >> bit & 1)
    return (widest,) * whole + narrow

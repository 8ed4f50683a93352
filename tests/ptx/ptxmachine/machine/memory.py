"""Global memory: the tensors of a launch, and the kernel's parameters that point at them."""

import bisect
import ctypes
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch

from ptxmachine.code.program import Program
from ptxmachine.code.words import Array, i32, u8, u16, u32, u64

UINT: dict[int, Any] = {1: u8, 2: u16, 4: u32, 8: u64}
EMPTY = u32(0xFFFFFFFF)
POISON: dict[int, Any] = {1: u8(0xA5), 2: u16(0x7FA5), 4: u32(0x7FA5A5A5), 8: u64(0x7FF5A5A5A5A5A5A5)}


class Shadow:
    """Who accessed the granules of a tensor last."""

    def __init__(self, allocation: "Allocation", ctas: int) -> None:
        granules = -(-allocation.nbytes // allocation.granule)
        self.writer = np.full(granules, -1, i32)  # agent, or -1
        self.write_clock = np.zeros(granules, i32)
        self.writer_lane = np.zeros(granules, u8)
        self.reader: Array | None = None  # of each CTA the warp that read last; made with the first read
        self.read_clock: Array | None = None
        self._ctas = ctas

    def readers(self) -> tuple[Array, Array]:
        if self.reader is None or self.read_clock is None:
            self.reader = np.zeros((len(self.writer), self._ctas), u8)
            self.read_clock = np.zeros((len(self.writer), self._ctas), i32)
        return self.reader, self.read_clock


class Allocation:
    """The bytes of one tensor."""

    def __init__(self, name: str, base: int, nbytes: int, tensor: torch.Tensor) -> None:
        self.name, self.base, self.nbytes = name, base, nbytes
        self.tensor = tensor  # keeps the memory alive
        self.granule = min(4, tensor.itemsize)  # bytes that the checks tell apart
        self.shift = self.granule.bit_length() - 1
        self.version = 0  # grows with each store that has become visible
        self.output = False  # the kernel may write to it
        self.exchange = False  # CTAs exchange through it words that are their own flags: EMPTY until they are there
        self.buffered = False  # stores go through the store buffer
        self.shadow: Shadow | None = None  # of outputs whose races are looked for
        self.bytes = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(base))
        self.views = {n: self.bytes[: nbytes // n * n].view(ty) for n, ty in UINT.items()}

    def granules(self, offsets: Array, nbytes: int) -> Array:
        """(accesses, granules of each) of accesses at byte offsets."""
        first: Array = (offsets >> self.shift)[:, None]
        return first if nbytes <= self.granule else first + np.arange(nbytes // self.granule)


class Memory:
    """All allocations of a launch, by address."""

    def __init__(self, arguments: Mapping[str, object], outputs: Collection[str], exchanges: Collection[str]) -> None:
        self.allocations = []
        for base, nbytes, name, tensor in _apart(_extents(arguments)):
            allocation = Allocation(name, base, nbytes, tensor)
            allocation.output, allocation.exchange = name in outputs, name in exchanges
            self.allocations.append(allocation)
        self._bases = [a.base for a in self.allocations]
        self._base_words = np.array(self._bases, dtype=u64)

    def around(self, addresses: Array, nbytes: int) -> Allocation | None:
        """The allocation that holds all of the accesses, if the first one's does."""
        i = bisect.bisect_right(self._bases, int(addresses.min())) - 1
        if i >= 0 and int(addresses.max()) + nbytes <= self.allocations[i].base + self.allocations[i].nbytes:
            return self.allocations[i]
        return None

    def nearest(self, addresses: Array) -> Array:
        """For each address the number of the last allocation that begins before it, or -1."""
        return np.searchsorted(self._base_words, addresses, "right") - 1


def _extents(arguments: Mapping[str, object]) -> list[tuple[int, int, str, torch.Tensor]]:
    found = []
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor) and value.numel():
            steps = zip(value.shape, value.stride(), strict=True)
            span = sum((size - 1) * stride for size, stride in steps) + 1
            found.append((value.data_ptr(), span * value.itemsize, name, value))
    return sorted(found, key=lambda extent: (extent[0], -extent[1]))


def _apart(extents: list[tuple[int, int, str, torch.Tensor]]) -> list[tuple[int, int, str, torch.Tensor]]:
    """The same with each byte in one extent only: a later one cuts the one before off."""
    found = []
    for i, (base, nbytes, name, value) in enumerate(extents):
        if i + 1 < len(extents) and extents[i + 1][0] < base + nbytes:
            if extents[i + 1][:2] == (base, nbytes):
                continue  # the same tensor twice
            nbytes = extents[i + 1][0] - base
        found.append((base, nbytes, name, value))
    return found


def parameters(program: Program, arguments: Mapping[str, object]) -> dict[int, Any]:
    """The kernel's parameters by index: the tensors and integers in order, then Triton's scratch pointers, all zero."""
    bits = dict(program.params.values())
    found: dict[int, Any] = {}
    values = [value for value in arguments.values() if isinstance(value, (torch.Tensor, int))]
    for index, value in enumerate(values):
        if isinstance(value, torch.Tensor):
            if value.device.type != "cpu":
                raise ValueError(f"tensors must be on the CPU, got one on {value.device}")
            found[index] = u64(value.data_ptr())
        else:
            found[index] = u32(value & 0xFFFFFFFF)
    if len(found) > len(bits):
        raise ValueError(f"{len(found)} arguments for {len(bits)} parameters: leave out what is constexpr")
    for index, value in found.items():
        if index in bits and value.nbytes * 8 != bits[index]:
            raise ValueError(f"parameter {index} has {bits[index]} bits, got {value!r}")
    return {index: u64(0) if n == 64 else u32(0) for index, n in bits.items()} | found

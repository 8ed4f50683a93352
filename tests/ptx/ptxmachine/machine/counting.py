"""Counts of memory accesses: sectors of global memory, wavefronts of shared memory."""

from collections import Counter, defaultdict

import numpy as np

from ptxmachine.code.program import Instruction
from ptxmachine.code.words import Array, i64, u64

BANKS, SECTOR, LINE = 32, 32, 128  # banks of four bytes; bytes


class Accesses:
    """The accesses of one CTA, warp by warp."""

    def __init__(self) -> None:
        self.sampled: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)  # by access and tensor
        self.by_instruction: dict[int, list[int]] = {}  # of shared memory: requests, wavefronts, least wavefronts
        self._known_sectors: dict[tuple[int, bytes], int] = {}
        self._known_wavefronts: dict[tuple[int, bytes, bytes], int] = {}

    def count_global(self, tensor: str, what: str, addresses: Array, warps: Array, nbytes: int) -> None:
        """Accesses of so many bytes, each with its lane's warp."""
        count = self.sampled[what, tensor]
        for warp in np.unique(warps):
            own = addresses[warps == warp]
            count["requests"] += 1
            count["sectors"] += self._sectors(own, nbytes)
            count["bytes"] += nbytes * len(own)

    def count_shared(self, at: Instruction, what: str, offsets: Array, warps: Array, lanes: Array, nbytes: int) -> None:
        count = self.sampled[what, "shared"]
        of_instruction = self.by_instruction.setdefault(at.n, [0, 0, 0])
        for warp in np.unique(warps):
            own = warps == warp
            total = nbytes * int(own.sum())
            found = 1, self._wavefronts(offsets[own], lanes[own], nbytes), max(1, -(-total // LINE))
            for i, (name, n) in enumerate(zip(("requests", "wavefronts", "least"), found, strict=True)):
                count[name] += n
                of_instruction[i] += n
            count["bytes"] += total

    def _sectors(self, addresses: Array, nbytes: int) -> int:
        base = int(addresses.min()) // LINE * LINE
        key = nbytes, (addresses - u64(base)).tobytes()
        if key not in self._known_sectors:
            ends = addresses // u64(SECTOR), (addresses + u64(nbytes - 1)) // u64(SECTOR)
            self._known_sectors[key] = len(np.unique(np.concatenate(ends)))
        return self._known_sectors[key]

    def _wavefronts(self, offsets: Array, lanes: Array, nbytes: int) -> int:
        key = nbytes, offsets.tobytes(), lanes.tobytes()
        if key not in self._known_wavefronts:
            self._known_wavefronts[key] = wavefronts(offsets.astype(i64), lanes, nbytes)
        return self._known_wavefronts[key]


def wavefronts(offsets: Array, lanes: Array, nbytes: int) -> int:
    """How often shared memory works for one access of a warp: the most words of a bank, of the lanes served at once."""
    together = max(1, min(32, LINE // max(nbytes, 4)))
    n = 0
    for first in range(0, 32, together):
        own = (lanes >= first) & (lanes < first + together)
        if own.any():
            words = np.unique((offsets[own] >> 2)[:, None] + np.arange(max(1, nbytes // 4)))
            n += int(np.bincount(words % BANKS).max())
    return n

"""The shared memory of one CTA, with who wrote and read what when."""

import numpy as np

from ptxmachine.code.program import Instruction
from ptxmachine.code.words import Array, i8, i32, i64, u8, u64
from ptxmachine.machine.launch import Launch
from ptxmachine.machine.memory import UINT

ALL_ONES = 0x0101010101010101  # eight bytes that are all initialised
ANY_LANE = 255  # accesses of a warp as a whole


class SharedMemory:
    def __init__(self, launch: Launch, cta: int) -> None:
        options = launch.options
        self._report, self._cta = launch.report, cta
        self.stats, self.intra = launch.stats, launch.intra
        self.size = launch.program.shared_bytes
        self.granule = launch.shared_granule
        every = max(1, -(-launch.ctas // options.checked))
        self.checked = cta % every == 0 or cta in (launch.ctas - 1, options.sample)
        self.races = options.shared_races and self.checked
        self._uninitialised = options.uninitialised and self.checked

        padded = -(-max(self.size, 16) // 16) * 16
        self.bytes = np.full(padded, 0xA5, u8)
        self.views = {n: self.bytes.view(ty) for n, ty in UINT.items()}
        self.initialised = np.zeros(padded, u8)
        self.initialised_views = {n: self.initialised.view(ty) for n, ty in UINT.items()}
        self.copies_on_the_way = 0  # asynchronous copies that nobody has waited for

        granules = padded // self.granule
        own = slice(cta * launch.num_warps, (cta + 1) * launch.num_warps)
        self.clocks = launch.clocks.ordered[own, own]  # of the CTA's warps, among themselves
        if self.races:
            self.writer = np.full(granules, -1, i8)  # warp, or -1
            self.write_clock = np.zeros(granules, i32)
            self.writer_lane = np.zeros(granules, u8)
            self.read_clock = np.zeros((granules, launch.num_warps), i32)
            self.unfenced = np.zeros(granules, bool)  # written, and not yet fenced for the asynchronous proxy
            self.on_the_way = np.zeros(granules, bool)

    def granules(self, offsets: Array, nbytes: int) -> Array:
        """(accesses, granules of each)"""
        first: Array = (offsets // self.granule)[:, None]
        return first if nbytes <= self.granule else first + np.arange(nbytes // self.granule)

    def inside(self, offsets: Array, nbytes: int, at: Instruction, what: str) -> Array:
        """Byte offsets as int64; those out of bounds are reported and become 0."""
        bad = offsets.astype(i64) + nbytes > self.size
        if bad.any():
            text = f"{what} of {nbytes} bytes at {int(offsets[bad][0])} of {self.size}"
            self._report.add("shared out of bounds", at, text)
            offsets = np.where(bad, offsets.dtype.type(0), offsets)
        odd = offsets & offsets.dtype.type(nbytes - 1)
        if odd.any():
            text = f"{what} of {nbytes} bytes at {int(offsets[odd != 0][0])}"
            self._report.add("misaligned shared", at, text)
        return offsets.astype(i64)

    # Checks: `warps` and `lanes` are of each access

    def read(self, offsets: Array, nbytes: int, warps: Array, lanes: Array | int, at: Instruction) -> None:
        if self._uninitialised:
            self._check_initialised(offsets, nbytes, at)
        if not self.races:
            return
        granules = self.granules(offsets, nbytes)
        self._check_on_the_way(offsets, granules, at, "read of")
        reader = warps[:, None]
        writer, written = self.writer[granules].astype(i64), self.write_clock[granules]
        now = self.clocks[reader, reader]
        bad = self._unordered(reader, writer, written)
        if bad.any():
            i, j = np.argwhere(bad)[0]
            self._report.add(
                "shared race: read",
                at,
                f"byte {int(offsets[i])}: warp {int(reader[i, 0])} reads what warp {int(writer[i, j])} wrote, "
                f"no barrier between (cta {self._cta})",
            )
        lane = lanes if isinstance(lanes, int) else lanes[:, None]
        if ((writer == reader) & (written == now) & (self.writer_lane[granules] != lane)).any():
            self.stats["shared: lanes of a warp exchange without a barrier"] += 1
            self.intra[at.line] += 1
        self.read_clock[granules, reader] = now

    def write(
        self,
        offsets: Array,
        nbytes: int,
        warps: Array,
        lanes: Array | int,
        at: Instruction,
        values: Array | None = None,
    ) -> None:
        """`values` are (accesses, n); None for an asynchronous copy, whose bytes are not there yet."""
        if not self.checked:
            return
        if values is not None:
            self._set_initialised(offsets, nbytes)
        if not self.races:
            return
        granules = self.granules(offsets, nbytes)
        self._check_on_the_way(offsets, granules, at, "write over")
        writer = warps[:, None]
        before, written = self.writer[granules].astype(i64), self.write_clock[granules]
        bad = self._unordered(writer, before, written)
        if bad.any() and values is not None:
            bad = self._without_redundant(bad, offsets, nbytes, values)
        if bad.any():
            i, j = np.argwhere(bad)[0]
            self._report.add(
                "shared race: write after write",
                at,
                f"byte {int(offsets[i])}: warp {int(writer[i, 0])} over warp {int(before[i, j])} (cta {self._cta})",
            )
        late = self.read_clock[granules] > self.clocks[writer]
        if late.any():
            i, _, reader = np.argwhere(late)[0]
            self._report.add(
                "shared race: write after read",
                at,
                f"byte {int(offsets[i])}: warp {int(writer[i, 0])} overwrites what warp {int(reader)} reads, "
                f"no barrier between (cta {self._cta})",
            )
        self.wrote(granules, writer, lanes if isinstance(lanes, int) else lanes[:, None])
        self.unfenced[granules] = True

    def wrote(self, granules: Array, warps: Array, lanes: Array | int) -> None:
        self.writer[granules] = warps
        self.write_clock[granules] = self.clocks[warps, warps]
        self.writer_lane[granules] = lanes

    def read_by_tensor_core(self, offsets: Array, nbytes: int, warps: list[int], at: Instruction) -> None:
        """An operand of an asynchronous product, an offset a value."""
        if self._uninitialised and not (self.initialised_views[nbytes][offsets // nbytes] != 0).all():
            self._report.add("shared memory never written", at, "wgmma operand")
        if not self.races:
            return
        granules = offsets // self.granule
        unfenced = self.unfenced[granules]
        if unfenced.any():
            text = f"{int(unfenced.sum())} of {len(granules)} values"
            self._report.add("wgmma reads what no fence.proxy.async made visible", at, text)
        writer, written = self.writer[granules].astype(i64), self.write_clock[granules]
        for warp in warps:
            bad = self._unordered(warp, writer, written)
            if bad.any():
                text = f"wgmma of warp {warp} reads what warp {int(writer[bad][0])} wrote"
                self._report.add("shared race: read", at, text)
            self.read_clock[granules, warp] = self.clocks[warp, warp]

    def fence(self, warps: list[int]) -> None:
        """What these warps wrote is visible to the asynchronous proxy from here on."""
        if self.races:
            self.unfenced[np.isin(self.writer, warps)] = False

    def _unordered(self, warps: Array | int, writers: Array, written: Array) -> Array:
        """Where what a writer (or -1) wrote is not ordered before what a warp does now."""
        bad: Array = (writers >= 0) & (self.clocks[warps, np.where(writers < 0, 0, writers)] < written)
        return bad

    def _without_redundant(self, bad: Array, offsets: Array, nbytes: int, values: Array) -> Array:
        """Less what is there already: several warps hold the same values of a replicated layout."""
        new = np.ascontiguousarray(values).view(u8).reshape(len(offsets), nbytes)
        same = (new == self.bytes[offsets[:, None] + np.arange(nbytes)]).all(axis=1)
        self.stats["redundant shared stores of several warps"] += int((bad.any(axis=1) & same).sum())
        left: Array = bad & ~same[:, None]
        return left

    def _check_initialised(self, offsets: Array, nbytes: int, at: Instruction) -> None:
        n = min(nbytes, 8)
        good = self.initialised_views[n][offsets // n] == UINT[n](ALL_ONES & ((1 << 8 * n) - 1))
        if nbytes == 16:
            good &= self.initialised_views[8][offsets // 8 + 1] == u64(ALL_ONES)
        if not good.all():
            text = f"read of {nbytes} bytes at {int(offsets[~good][0])}, {int((~good).sum())} lanes, cta {self._cta}"
            self._report.add("shared memory never written", at, text)

    def _set_initialised(self, offsets: Array, nbytes: int) -> None:
        n = min(nbytes, 8)
        self.initialised_views[n][offsets // n] = UINT[n](ALL_ONES & ((1 << 8 * n) - 1))
        if nbytes == 16:
            self.initialised_views[8][offsets // 8 + 1] = u64(ALL_ONES)

    def _check_on_the_way(self, offsets: Array, granules: Array, at: Instruction, what: str) -> None:
        if self.copies_on_the_way and self.on_the_way[granules].any():
            i = np.argwhere(self.on_the_way[granules])[0, 0]
            self._report.add(f"{what} a cp.async that nobody waited for", at, f"byte {int(offsets[i])}")

    # Asynchronous copies

    def begin_copy(self, offsets: Array, nbytes: int, warps: Array, lanes: Array, at: Instruction) -> None:
        if self.races:
            self.write(offsets, nbytes, warps, lanes, at)
            self.on_the_way[self.granules(offsets, nbytes)] = True
            self.copies_on_the_way += 1

    def end_copy(self, offsets: Array, values: Array, warps: Array, lanes: Array) -> None:
        """The bytes of a copy, (accesses, bytes of each), have arrived."""
        nbytes = values.shape[1]
        where = offsets[:, None] + np.arange(nbytes)
        self.bytes[where] = values
        self.initialised[where] = 1
        if self.races:
            granules = self.granules(offsets, nbytes)
            self.on_the_way[granules] = False
            self.copies_on_the_way -= 1
            self.wrote(granules, warps[:, None], lanes[:, None])

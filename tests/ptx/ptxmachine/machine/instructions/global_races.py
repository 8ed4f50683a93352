"""Accesses of global memory that no barrier, release or flag orders."""

from dataclasses import dataclass

import numpy as np

from ptxmachine.code.program import Instruction
from ptxmachine.code.words import Array, i64
from ptxmachine.machine.instructions.lanes import Lanes
from ptxmachine.machine.memory import Allocation, Shadow


@dataclass
class Access:
    """What one instruction does with one tensor."""

    allocation: Allocation
    addresses: Array  # one a lane
    nbytes: int  # of each lane
    who: Array  # the lanes
    at: Instruction

    def __post_init__(self) -> None:
        self.offsets = (self.addresses - np.uint64(self.allocation.base)).astype(i64)


class GlobalRaces(Lanes):
    def check_read(self, access: Access, how: str, seen: Array | None = None) -> None:
        """`seen` are the granules that count, (lanes, granules of each)."""
        shadow = access.allocation.shadow
        if shadow is None:
            return
        granules = access.allocation.granules(access.offsets, access.nbytes)
        me = self.agent_of[access.who][:, None]
        writer, written = shadow.writer[granules], shadow.write_clock[granules]
        if seen is not None:
            writer = np.where(seen, writer, -1)
        if (writer >= 0).any():
            if how == "volatile":
                if access.allocation.exchange:
                    self.launch.clocks.take_over(me, writer, written)
            else:
                self._check_order_of_read(access, how, writer, written)
                if self._other_lane(access, shadow, granules, writer, written).any():
                    self.launch.report.add(
                        "global race within a warp",
                        access.at,
                        f"{access.allocation.name}: a lane reads what another lane of the same warp wrote since the "
                        "last barrier",
                    )
        self._note_read(access, shadow, granules, seen)

    def _check_order_of_read(self, access: Access, how: str, writer: Array, written: Array) -> None:
        unordered, unflagged = self._unordered(self.agent_of[access.who][:, None], writer, written)
        if not unordered.any():
            return
        if how in ("acquire", "relaxed"):
            self.launch.stats["ordered load of another's plain write"] += 1
        elif not unflagged.any():
            self.launch.stats["read ordered by data flags only"] += 1
        else:
            i, j = np.argwhere(unflagged)[0]
            cta, warp = divmod(int(writer[i, j]), self.launch.num_warps)
            self.launch.report.add(
                "global race: read",
                access.at,
                f"{access.allocation.name} byte {int(access.offsets[i])}: warp {int(self.warp_of[access.who[i]])} of "
                f"cta {self.cta.index} reads what warp {warp} of cta {cta} wrote, with no order between",
            )

    def _note_read(self, access: Access, shadow: Shadow, granules: Array, seen: Array | None) -> None:
        readers, read_clocks = shadow.readers()
        me = self.agent_of[access.who][:, None]
        clock: Array = self.launch.clocks.ordered[me, me]
        warp: Array = self.warp_of[access.who][:, None]
        if seen is not None:
            clock, warp = (np.broadcast_to(value, granules.shape)[seen] for value in (clock, warp))
            granules = granules[seen]
        read_clocks[granules, self.cta.index] = clock
        readers[granules, self.cta.index] = warp

    def check_write(self, access: Access) -> None:
        shadow = access.allocation.shadow
        if shadow is None:
            return
        granules = access.allocation.granules(access.offsets, access.nbytes)
        me = self.agent_of[access.who][:, None]
        self._check_write_after_write(access, shadow, granules)
        if shadow.read_clock is not None:
            self._check_write_after_read(access, shadow, granules)
        shadow.writer[granules] = me
        shadow.write_clock[granules] = self.launch.clocks.ordered[me, me]
        shadow.writer_lane[granules] = self.lane_of[access.who][:, None]
        if access.allocation.exchange:
            self.launch.clocks.remember(me)

    def _check_write_after_write(self, access: Access, shadow: Shadow, granules: Array) -> None:
        writer, written = shadow.writer[granules], shadow.write_clock[granules]
        if not (writer >= 0).any():
            return
        name = access.allocation.name
        unordered, unflagged = self._unordered(self.agent_of[access.who][:, None], writer, written)
        if unflagged.any():
            i, j = np.argwhere(unflagged)[0]
            self.launch.report.add(
                "global race: write after write",
                access.at,
                f"{name} byte {int(access.offsets[i])}: cta {self.cta.index} over cta "
                f"{int(writer[i, j]) // self.launch.num_warps}",
            )
        elif unordered.any():
            self.launch.stats["write ordered by data flags only"] += 1
        if self._other_lane(access, shadow, granules, writer, written).any():
            self.launch.report.add(
                "global race within a warp",
                access.at,
                f"{name}: two lanes of a warp write the same place since the last barrier",
            )

    def _check_write_after_read(self, access: Access, shadow: Shadow, granules: Array) -> None:
        readers, read_clocks = (values[granules] for values in shadow.readers())  # (lanes, granules of each, CTAs)
        if not read_clocks.any():
            return
        clocks = self.launch.clocks
        me = self.agent_of[access.who][:, None, None]
        agents = readers.astype(i64) + np.arange(self.launch.ctas) * self.launch.num_warps
        late = read_clocks > clocks.ordered[me, agents]
        if not late.any():
            return
        late &= read_clocks > clocks.flagged[me, agents]
        if late.any():
            i, _, reader = np.argwhere(late)[0]
            self.launch.report.add(
                "global race: write after read",
                access.at,
                f"{access.allocation.name} byte {int(access.offsets[i])}: cta {self.cta.index} overwrites what cta "
                f"{int(reader)} may still read",
            )
        else:
            self.launch.stats["overwrite ordered by data flags only"] += 1

    def _unordered(self, me: Array, writer: Array, written: Array) -> tuple[Array, Array]:
        """Where nothing but flags orders what a writer (or -1) wrote before what an agent does now; where nothing."""
        clocks, other = self.launch.clocks, np.where(writer < 0, 0, writer)
        unordered = (writer >= 0) & (clocks.ordered[me, other] < written)
        if not unordered.any():
            return unordered, unordered
        return unordered, unordered & (clocks.flagged[me, other] < written)

    def _other_lane(self, access: Access, shadow: Shadow, granules: Array, writer: Array, written: Array) -> Array:
        """Where another lane of the same warp wrote since its last barrier."""
        me = self.agent_of[access.who][:, None]
        now = self.launch.clocks.ordered[me, me]
        lane = self.lane_of[access.who][:, None]
        found: Array = (writer == me) & (shadow.writer_lane[granules] != lane) & (written == now)
        return found

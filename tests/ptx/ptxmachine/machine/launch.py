"""What the CTAs of a launch share."""

import random
from collections import Counter
from collections.abc import Collection, Mapping

import numpy as np

from ptxmachine.code.program import Instruction, Program
from ptxmachine.machine.clocks import Clocks
from ptxmachine.machine.counting import Accesses
from ptxmachine.machine.memory import Memory, Shadow, parameters
from ptxmachine.machine.options import Options
from ptxmachine.machine.report import Report
from ptxmachine.machine.store_buffer import StoreBuffer


class Launch:
    """`arguments` are the tensors and integers that the kernel gets, without what is constexpr.

    Of the `outputs` alone the kernel may write. CTAs exchange words that are their own flags in what is `buffered`:
    stores to it go through the store buffer.
    """

    def __init__(
        self,
        program: Program,
        grid: tuple[int, int, int],
        arguments: Mapping[str, object],
        options: Options,
        num_warps: int,
        outputs: Collection[str] = (),
        buffered: Collection[str] = ("slots",),
    ) -> None:
        self.program, self.options, self.grid, self.num_warps = program, options, grid, num_warps
        self.ctas = grid[0] * grid[1] * grid[2]
        self.random = random.Random(options.seed)
        self.report = Report(options.most_reports)
        self.clocks = Clocks(self.ctas * num_warps)
        self.parameters = parameters(program, arguments)
        self.memory = Memory(arguments, outputs, buffered)
        for allocation in self.memory.allocations:
            allocation.buffered = allocation.exchange and options.store_buffer
            if allocation.output and options.global_races:
                allocation.shadow = Shadow(allocation, self.ctas)
        self.store_buffer = StoreBuffer(self.random, np.random.default_rng(options.seed))
        self.instructions = {item.n: item for item in program.items if isinstance(item, Instruction)}
        self.segment_of = {item.n: segment.n for segment in program.segments for item in segment.body}
        self.shared_granule = shared_granule(program)

        self.stats: Counter[str] = Counter()
        self.intra: Counter[int] = (
            Counter()
        )  # PTX line -> reads of what another lane of the warp wrote, no barrier between
        self.segment_counts: Counter[int] = Counter()  # segment -> how many warps ran it
        self.sample_counts: Counter[int] = Counter()  # of the sample CTA, as are the accesses
        self.accesses = Accesses()
        self.sampled, self.by_instruction = self.accesses.sampled, self.accesses.by_instruction

    def totals(self, counts: Mapping[int, int] | None = None) -> Counter[str]:
        """Instructions by category, over all warps or of other counts of segments."""
        found: Counter[str] = Counter()
        for segment, times in (self.segment_counts if counts is None else counts).items():
            for name, each in self.program.segments[segment].counts.items():
                found[name] += times * each
        return found


def shared_granule(program: Program) -> int:
    """The bytes that loads and stores of shared memory tell apart."""
    operations = [item.op for item in program.items if isinstance(item, Instruction)]
    operations = [op for op in operations if ".shared" in op and op.startswith(("ld", "st"))]
    if any(op.endswith("8") for op in operations):
        return 1
    return 2 if any(op.endswith("16") and "matrix" not in op for op in operations) else 4

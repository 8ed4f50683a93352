"""What a run checks, and how it schedules."""

from dataclasses import dataclass


@dataclass
class Options:
    lockstep: bool = True  # the warps of a CTA step by step together; else each on its own, in random order
    seed: int = 0
    shared_races: bool = True
    global_races: bool = True
    uninitialised: bool = True
    store_buffer: bool = True  # stores to the exchange become visible late and out of order, unless released
    noise: bool = True  # errors of the size that the hardware's approximations may have
    truncate: bool = True  # tensor cores cut sums off instead of rounding them
    last: int | None = None  # this CTA runs only when no other can: what it waits for is there
    sample: int | None = 0  # CTA whose memory accesses are counted
    most_reports: int = 30
    absent: tuple[int, ...] = ()  # CTAs that never run, to see what the others do
    checked: int = 8  # about how many CTAs' shared memory is checked, spread over the grid and with the last
    turns: int = 50_000_000


class Deadlock(Exception):
    """The run cannot go on."""

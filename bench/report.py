"""The end of a gate run: a short table, geometric means, and the verdict."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.cases import Case
from bench.pair import OURS, THEIRS, Times
from bench.timing import geomean

REASONS = 10  # red cases that are explained once more at the end
DISPATCH = 0.02  # what the way to torch's own GRU may cost where ours chooses it


@dataclass
class Result:
    """All that the run found out about one case. What is None was not reached."""

    case: Case
    parity: float | None = None
    their_parity: float | None = None
    green: bool = False
    family: str | None = None
    times: Times = field(default_factory=dict)  # "tritongru" and "nn.GRU" -> ms and more
    failure: str | None = None  # why there is no answer, or in what parity is red
    left_out: str | None = None  # "parity" or "speed": what there was no time for
    repeatable: bool = True

    @property
    def ratio(self) -> float | None:
        """How many times faster ours is."""
        ours, theirs = self.ms(OURS), self.ms(THEIRS)
        return theirs / ours if ours and theirs else None

    def ms(self, impl: str) -> float | None:
        return self.times.get(impl, {}).get("ms")

    @property
    def slower(self) -> bool:
        least = 1.0 - DISPATCH if self.family == "torch" else 1.0
        return self.ratio is not None and self.ratio < least


def cell(value: float | None, form: str, width: int) -> str:
    return ("-" if value is None else format(value, form)).rjust(width)


def table(results: Sequence[Result]) -> list[str]:
    lines = [f"{'case':<30} {'ours':>8} {'nn.GRU':>8} {'ratio':>6} {'parity':>7}  family (times in us per time step)"]
    for result in results:
        ours, theirs = (None if ms is None else 1000 * ms / result.case.time for ms in map(result.ms, (OURS, THEIRS)))
        numbers = (cell(ours, ".3f", 8), cell(theirs, ".3f", 8), cell(result.ratio, ".2f", 6))
        note = result.family or "-"
        if not result.green:
            note += "  not checked" if result.left_out else "  RED"
        elif result.left_out:
            note += "  not timed"
        lines.append(f"{result.case.name:<30} {' '.join(numbers)} {cell(result.parity, '.3f', 7)}  {note}")
    return lines


def means(results: Sequence[Result]) -> list[str]:
    """Geometric means of the ratio, per mode and dtype and over all."""
    timed = [(result.case, result.ratio) for result in results if result.ratio is not None]
    groups: dict[str, list[float]] = {}
    for case, ratio in timed:
        for name in (f"{case.dtype} {case.mode}", "all"):
            groups.setdefault(name, []).append(ratio)
    if not timed:
        return []
    groups["all"] = groups.pop("all")
    return ["Geometric means of nn.GRU's time over ours:"] + [
        f"  {name:<12} {geomean(ratios):.2f}x ({len(ratios)} cases, {min(ratios):.2f}x to {max(ratios):.2f}x)"
        for name, ratios in groups.items()
    ]


def verdict(results: Sequence[Result], impl: str) -> tuple[bool, list[str]]:
    """Passed or not, and the sentences that say so. Forced (`impl="triton"`) it may be slower: auto avoids that."""
    red = [r for r in results if not r.green and not r.left_out]
    left = [r for r in results if r.left_out]
    slower = [r for r in results if r.slower]
    lines = [f"Red: {r.case.name}: {r.failure}"[:240] for r in red[:REASONS]]
    for sentence, names in (
        ("Red as well, reasons above", [r.case.name for r in red[REASONS:]]),
        ("Slower than nn.GRU", [f"{r.case.name} {r.ratio:.3f}x" for r in slower]),
        ("Two runs on one input differ", [r.case.name for r in results if not r.repeatable]),
        ("No time for the parity of", [r.case.name for r in left if r.left_out == "parity"]),
        ("No time for the speed of", [r.case.name for r in left if r.left_out == "speed"]),
    ):
        if names:
            lines.append(f"{sentence}: {', '.join(names)}")
    passed = not red and not left and not (slower and impl == "auto")
    counts = f"{len(results) - len(red) - len(left)} of {len(results)} cases green and timed, {len(red)} red"
    word = "passed" if passed else "NOT passed"
    lines.append(f"Verdict: {word}; {counts}, {len(slower)} slower, {len(left)} left out.")
    return passed, lines

"""What the gate prints: a line for each finished case, then grids, means and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.analysis.ratios import ratio_text
from bench.measure.cases import BATCHES, HIDDEN, Case
from bench.measure.pair import OURS, RECOMPUTED, THEIRS, Timed, Times
from bench.measure.rows import Row
from bench.measure.timing import geomean
from bench.rivals import CUDNN_LSTM, FLOOR, FORCED, OURS_GRAPH
from tritongru.planning.cost_model import TERMS, Cost
from tritongru.planning.launches import launch_name
from tritongru.planning.plan import Plan

REASONS = 8  # red cases explained again at the end
NAMES = 25  # most cases that a line of the verdict names
PLACE = 19  # width of a cell in a grid
ASIDE = (FLOOR, CUDNN_LSTM, OURS_GRAPH, FORCED)  # not rivals: bounds, and other ways to run ours
DISPATCH = 0.02  # allowed overhead where ours runs torch's own GRU


def over_text(theirs: Mapping[str, Any] | None, ours: Mapping[str, Any] | None) -> str:
    """The first median `ms` over the second, or `-` if one is missing. `spread` is the distance from the first to the
    last decile, so a median may be off by half of it and a ratio by both halves: within a factor of
    1 + (spread + spread) / 2 of 1 it does not tell which is faster."""
    if theirs is None or ours is None or not theirs.get("ms") or not ours.get("ms"):
        return "-"
    ratio = theirs["ms"] / ours["ms"]
    off = 1.0 + ((theirs.get("spread") or 0.0) + (ours.get("spread") or 0.0)) / 2
    return ratio_text(ratio, ratio / off, ratio * off)


@dataclass
class Result:
    """All that the run learned about one case. None: not reached."""

    case: Case
    plan: Plan | None = None
    parity: float | None = None
    their_parity: float | None = None
    green: bool = False
    timed: Timed = field(default_factory=lambda: Timed({}))
    failure: str | None = None  # why there is no answer, or which quantity is red
    left_out: str | None = None  # "parity" or "speed": what the budget was too short for
    cut: str | None = None  # "parity" or "speed": what took longer than its limit, which is not our fault
    repeatable: bool = True
    earlier: Row | None = None  # our row from an earlier command; it then replaces the plan

    @property
    def red(self) -> bool:
        return not (self.green or self.left_out or self.cut)

    @property
    def family(self) -> str | None:
        if self.earlier:
            return str(self.earlier["family"])
        return self.plan.family if self.plan else None

    @property
    def expected_us(self) -> float | None:
        """Per time step, by the model."""
        if self.earlier:
            return self.earlier["predicted_us"]  # type: ignore[no-any-return]
        return self.plan.us_per_step if self.plan else None

    @property
    def expected_terms(self) -> Mapping[str, float] | None:
        """What that consists of: microseconds of each term of the model, of both loops together, for one batch tile."""
        if self.earlier:
            return self.earlier["predicted_terms"]  # type: ignore[no-any-return]
        return {name: sum(cost.terms[name] for cost in self._costs) for name in TERMS} if self._costs else None

    @property
    def _costs(self) -> list[Cost]:
        """Of both loops by the plan; empty if one is unknown."""
        costs = [found.cost for found in (self.plan.forward, self.plan.backward) if found] if self.plan else []
        known = [cost for cost in costs if cost is not None]
        return known if len(known) == len(costs) else []

    @property
    def expected_text(self) -> str:
        """The model's expectation in words; empty without one."""
        if not self.expected_us:
            return ""
        shown = ", ".join(f"{name} {us:.2f}" for name, us in (self.expected_terms or {}).items() if us > 0)
        turns = dict.fromkeys(str(cost.turns) for cost in self._costs if cost.turns > 1)
        more = f"; {' and '.join(turns)} tiles in turn" if turns else ""
        return f"expected {self.expected_us:.2f}{f': {shown}{more}' if shown else ''}"

    @property
    def memory(self) -> str | None:
        """Whether the plan saves the gates or recomputes them."""
        if self.earlier:
            return self.earlier["memory"]  # type: ignore[no-any-return]
        return self.plan.memory.mode if self.plan and self.plan.memory else None

    @property
    def note(self) -> str:
        """Why there is no time, in a word or two; empty if there is one."""
        if self.cut:
            return "cut off"
        if self.red:
            return "RED"
        return {None: "", "parity": "not checked", "speed": "not timed"}[self.left_out]

    @property
    def launch(self) -> str | None:
        """The name of the launch that ran, in training the backward one; None for a family without names."""
        found = None
        if self.earlier:
            return self.earlier["plan"]  # type: ignore[no-any-return]
        if self.plan:
            found = self.plan.backward if self.case.mode == "train" else self.plan.forward
        return launch_name(found.launch) if found else None

    @property
    def times(self) -> Times:
        return self.timed.times

    @property
    def rivals(self) -> list[str]:
        """All that were timed, except ours and nn.GRU."""
        return [name for name, own in self.times.items() if name not in (OURS, THEIRS) and "ms" in own]

    @property
    def ratio(self) -> float | None:
        return self.over(THEIRS)

    def over(self, impl: str) -> float | None:
        """Another implementation's time over ours: how many times faster ours is."""
        ours, theirs = (self.times.get(name, {}).get("ms") for name in (OURS, impl))
        return theirs / ours if ours and theirs else None

    def over_text(self, impl: str) -> str:
        return over_text(self.times.get(impl), self.times.get(OURS))

    def us(self, impl: str) -> float | None:
        """Microseconds per time step."""
        ms = self.times.get(impl, {}).get("ms")
        return None if ms is None else 1000 * ms / self.case.time

    def peak(self, impl: str) -> float | None:
        """The memory of a call over nn.GRU's."""
        own, theirs = (self.times.get(name, {}).get("peak_mib") for name in (impl, THEIRS))
        return own / theirs if own is not None and theirs else None

    @property
    def slower(self) -> bool:
        least = 1.0 - DISPATCH if self.family == "torch" else 1.0
        return self.ratio is not None and self.ratio < least


def line(result: Result) -> str:
    """One case with all its results."""
    text = f"  {result.case.name}: "
    if result.cut or result.red:
        return text + f"{result.note}, {result.failure}"
    text += f"parity {result.parity:.3f}, {result.launch or result.family}"
    us = result.us(OURS)
    if us is None:
        return text + ", not timed"
    text += f", {us:.3f} us per step"
    if result.expected_text:
        text += f" ({result.expected_text})"
    for name in (THEIRS, *result.rivals):
        if result.over(name) is not None:
            text += f", {name} {result.over_text(name)}"
    peak = result.peak(OURS)
    if result.case.mode == "train" and peak is not None:
        again = result.peak(RECOMPUTED)
        text += f", memory {peak:.2f}x nn.GRU's" + (f" ({again:.2f}x recomputing)" if again is not None else "")
    return text + (f"; no time for {', '.join(result.timed.missing)}" if result.timed.missing else "")


def reasons(results: Sequence[Result]) -> list[str]:
    """Why rivals were not timed, each reason once."""
    found: dict[str, int] = {}
    for result in results:
        for name, why in result.timed.missing.items():
            text = f"No time for {name}: {why}"[:200]
            found[text] = found.get(text, 0) + 1
    return [f"{text} ({number} case{'s' if number > 1 else ''})" for text, number in found.items()]


def cell(value: float | None, form: str, width: int) -> str:
    return ("-" if value is None else format(value, form)).rjust(width)


def table(results: Sequence[Result]) -> list[str]:
    """The cases outside the grids."""
    lines = [f"{'case':<30} {'ours':>8} {'nn.GRU':>8} {'ratio':>7} {'parity':>7}  family (times in us per time step)"]
    for result in results:
        times = (cell(result.us(OURS), ".3f", 8), cell(result.us(THEIRS), ".3f", 8))
        numbers = (*times, result.over_text(THEIRS).rjust(7))
        note = "  ".join(part for part in (result.family or "-", result.note) if part)
        lines.append(f"{result.case.name:<30} {' '.join(numbers)} {cell(result.parity, '.3f', 7)}  {note}")
    return lines if len(lines) > 1 else []


def workload_table(results: Sequence[Result]) -> list[str]:
    """Named workloads: times of a call, and the fastest rival that computes the same."""
    lines = [f"{'workload':<34} {'ours':>10} {'nn.GRU':>10} {'ratio':>7}  next rival (times in ms)"]
    for result in results:
        if not result.case.label:
            continue
        ours, theirs = (result.times.get(name, {}).get("ms") for name in (OURS, THEIRS))
        ahead = {name: result.over(name) for name in result.rivals if name not in ASIDE}
        known = {name: ratio for name, ratio in ahead.items() if ratio is not None}
        best = min(known, key=lambda name: known[name], default=None)
        note = "-" if best is None else f"{best} {result.over_text(best)}"
        note = result.note or note
        numbers = f"{cell(ours, '.3f', 10)} {cell(theirs, '.3f', 10)} {result.over_text(THEIRS):>7}"
        lines.append(f"{result.case.name:<34} {numbers}  {note}")
    return lines if len(lines) > 1 else []


def grids(results: Sequence[Result]) -> list[str]:
    """For wide layers, a grid for each mode, dtype and length."""
    lines = []
    for key in sorted({(r.case.mode, r.case.dtype, r.case.time) for r in results}):
        mode, dtype, time = key
        some = [r for r in results if (r.case.mode, r.case.dtype, r.case.time) == key]
        found = {(r.case.hidden, r.case.batch): r for r in some}
        batches = [batch for batch in sorted(BATCHES) if any(at[1] == batch for at in found)]
        lines.append(f"{dtype} {mode}, T={time}: us per step, x nn.GRU, / floor")
        lines.append("        " + "".join(f"B={batch}".rjust(PLACE) for batch in batches))
        for hidden in sorted(HIDDEN):
            row = [found.get((hidden, batch)) for batch in batches]
            if any(row):
                lines.append(f"H={hidden:<6}" + "".join(_in_grid(result).rjust(PLACE) for result in row))
    return lines


def _in_grid(result: Result | None) -> str:
    if result is None:
        return ""
    us, floor = result.us(OURS), result.over(FLOOR)
    if us is None or result.ratio is None:
        return result.note if result.cut or result.red else "-"
    return f"{us:.2f} {result.over_text(THEIRS)} {f'/{1 / floor:.1f}' if floor else ''}"


def means(results: Sequence[Result]) -> list[str]:
    """Geometric means of the others' times over ours, per mode and dtype; workloads and wide cells separately."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        if result.ratio is not None:
            kind = "named " if result.case.label else "wide " if result.case.wide else ""
            groups.setdefault(f"{kind}{result.case.dtype} {result.case.mode}", []).append(result)
    if not groups:
        return []
    groups["all"] = [result for result in results if result.ratio is not None]
    lines = ["Geometric means of the others' times over ours:"]
    for name, members in groups.items():
        parts = []
        for impl in dict.fromkeys((THEIRS, *(name for result in members for name in result.rivals))):
            ratios = [ratio for ratio in (result.over(impl) for result in members) if ratio is not None]
            if ratios and (impl == THEIRS or name != "all"):
                parts.append(f"{impl} {geomean(ratios):.2f}x" + (f" ({len(ratios)})" if impl != THEIRS else ""))
            if ratios and impl == THEIRS:
                parts[-1] += f" ({len(ratios)} cases, {min(ratios):.2f}x to {max(ratios):.2f}x)"
        lines.append(f"  {name:<17} {', '.join(parts)}")
    return lines


def verdict(
    results: Sequence[Result],
    impl: str,
    targets: Sequence[tuple[bool | None, str]],
    missing: Sequence[str] = (),
    earlier: int = 0,
) -> tuple[bool, list[str]]:
    """Whether the gate passed, and lines that say so. Forced (`impl="triton"`), ours may be slower: auto avoids that.
    ``missing``: missing rows about calls; ``earlier``: the number of those from an earlier command."""
    red = [r for r in results if r.red]
    left = [r for r in results if r.left_out]
    cut = [r for r in results if r.cut]
    slower = [r for r in results if r.slower]
    missed = [sentence for reached, sentence in targets if reached is False]
    lines = [f"Red: {r.case.name}: {r.failure}"[:200] for r in red[:REASONS]]
    for sentence, names in (
        ("Also red, see above", [r.case.name for r in red[REASONS:]]),
        ("Slower than nn.GRU", [f"{r.case.name} {r.ratio:.3f}x" for r in slower]),
        ("Two runs on the same input differ", [r.case.name for r in results if not r.repeatable]),
        ("No time to check", [r.case.name for r in left if r.left_out == "parity"]),
        ("No time to measure the speed of", [r.case.name for r in left if r.left_out == "speed"]),
        ("Cut off by their time limit, no verdict on the kernels", [f"{r.case.name} ({r.cut})" for r in cut]),
        ("No answer in time for", missing),
    ):
        if names:
            more = f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
            lines.append(f"{sentence}: {', '.join(names[:NAMES])}{more}")
    passed = not (red or left or cut or missing or missed) and not (slower and impl == "auto")
    counts = f"{len(results) - len(red) - len(left) - len(cut)} of {len(results)} green and timed"
    earlier += sum(r.earlier is not None for r in results)
    more = (f", {len(cut)} cut off" if cut else "") + (f", {len(missing)} rows about calls missing" if missing else "")
    word = "passed" if passed else "NOT passed"
    lines.append(
        f"Verdict: {word}; {counts}, {len(red)} red, {len(slower)} slower, {len(left)} left out{more}, "
        f"{len(missed)} of {len(targets)} targets missed; {earlier} from earlier rows."
    )
    return passed, lines


def ending(
    results: Sequence[Result],
    impl: str,
    targets: Sequence[tuple[bool | None, str]],
    missing: Sequence[str] = (),
    earlier: int = 0,
) -> tuple[bool, list[str]]:
    """The last page of a run; short, for readers who see only the end of the output."""
    named = [result for result in results if result.case.label]
    everything, results = results, [result for result in results if not result.case.label]
    wide = [result for result in results if result.case.wide]
    passed, sentences = verdict(everything, impl, targets, missing, earlier)
    shown = [f"  {sentence}" for _, sentence in targets] if wide or named else []
    page = [
        *workload_table(named),
        *table([result for result in results if not result.case.wide]),
        *grids(wide),
        *means(everything),
    ]
    return passed, [*page, *(["Targets:", *shown] if shown else []), *sentences]

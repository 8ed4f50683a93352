"""What a run of the CPU loop prints: a line for each finished call, then grids, means and verdicts."""

from __future__ import annotations

from collections.abc import Sequence

from bench.analysis.cpu.known import ALL, CLASSES, Known, is_green, mean
from bench.analysis.ratios import ratio_text
from bench.analysis.targets import Judged
from bench.measure.cases import MODES
from bench.measure.cpu.cells import BATCHES, GRID, HIDDEN, WORKLOAD, Cell, cells, counted, grid, workloads
from bench.measure.pair import THEIRS
from bench.measure.rows import Row
from bench.rivals import CUDNN_LSTM
from bench.rivals.on_cpu import REGISTRY

NAMES = 12  # most cells that a line names
BESIDE = (THEIRS, CUDNN_LSTM, *REGISTRY)  # columns of the table of workloads


def line(rows: Sequence[Row]) -> str:
    """One call with one number of threads."""
    parts = []
    for row in rows:
        if row["isa"] is None:
            continue
        if row["least_ms"] is None:
            parts.append(f"{row['isa']} {'no time' if is_green(row) else 'RED'}: {row['reason']}"[:160])
            continue
        ratios = row["over"].items()
        over = ", ".join(f"{name} {interval_text(found)}" for name, found in ratios)
        peak = "" if row["of_peak"] is None else f", {100 * row['of_peak']:.0f} % of the peak"
        parts.append(f"{row['isa']} {1000 * row['least_ms']:.1f} us, {over}, {row['gflops']:.1f} GFLOP/s{peak}")
    return f"  {rows[0]['case']}: {'; '.join(parts)}"


def rivals_line(rows: Sequence[Row]) -> str:
    """A workload's rivals with one number of threads, and ours beside them."""
    without = [f"{row['impl']} no time: {row['reason']}"[:160] for row in rows if row["isa"] is None and row["reason"]]
    timed = [row["impl"] for row in rows if row["isa"] is None and not row["reason"]]
    parts = []
    for row in rows:
        if row["isa"] is not None:
            over = ", ".join(f"{name} {interval_text(row['over'][name])}" for name in timed)
            parts.append(f"{row['isa']} {over}")
    return f"  {rows[0]['case']}, rivals: {'; '.join([*parts, *without])}"


def interval_text(over: Sequence[float]) -> str:
    """A ratio and its interval."""
    return f"{ratio_text(*over)} ({over[1]:.2f}-{over[2]:.2f})"


def cell_of(known: Known, cell: Cell, isa: str, threads: int) -> str:
    theirs, lstm = (known.over(cell, isa, threads, name) for name in (THEIRS, CUDNN_LSTM))
    if theirs is None:
        row = known.row(cell, isa, threads)
        return "-" if row is None or is_green(row) else "RED"
    return f"{theirs:.2f}" + (f" ({lstm:.2f})" if lstm is not None else "")


def tables(known: Known, sets: Sequence[str], threads: Sequence[int]) -> list[str]:
    """What was not measured at all is left out."""
    lines = []
    for isa in sets:
        for number in threads:
            for mode in MODES:
                lines += grid_table(known, isa, number, mode)
            lines += others(known, isa, number)
    for isa in sets:
        for number in threads:
            lines += workload_table(known, isa, number)
    return lines


def workload_table(known: Known, isa: str, threads: int) -> list[str]:
    """Real workloads, a line each: our time, and the others' times over it."""
    lines = []
    for cell in workloads():
        row = known.row(cell, isa, threads)
        if row is None:
            continue
        own = f"{row['least_ms']:.3g}" if row["least_ms"] is not None else "-" if is_green(row) else "RED"
        over = row["over"] or {}
        others = [interval_text(over[name]) if name in over else "-" for name in BESIDE]
        lines.append([cell.case.label, cell.case.mode, own, *others])
    if not lines:
        return []
    head = ["workload", "mode", "ms", *BESIDE]
    widths = [max(len(line[k]) for line in (head, *lines)) for k in range(len(head))]
    title = f"{isa}, {counted(threads)}, workloads: ours in ms, and the others' times over it (first to last decile)"
    return [title, *("  " + "  ".join(map(str.ljust, line, widths)).rstrip() for line in (head, *lines))]


def grid_table(known: Known, isa: str, threads: int, mode: str) -> list[str]:
    found = {(c.case.hidden, c.case.batch): cell_of(known, c, isa, threads) for c in grid() if c.case.mode == mode}
    if all(text == "-" for text in found.values()):
        return []
    head = f"{isa}, {counted(threads)}, {mode}: times nn.GRU's speed (nn.LSTM's)"
    lines = [head, " " * 8 + "".join(f"B={batch}".rjust(16) for batch in BATCHES)]
    for hidden in HIDDEN:
        lines.append(f"H={hidden:<6}" + "".join(found[hidden, batch].rjust(16) for batch in BATCHES))
    return [*lines, *means(known, isa, threads, mode)]


def means(known: Known, isa: str, threads: int, mode: str) -> list[str]:
    """Geometric means of the classes, and the lowest of all cells."""
    lines = []
    for group in CLASSES:
        own = group.cells(mode)
        ratios = known.ratios(own, isa, threads)
        found = mean(ratios)
        if found is not None:
            lines.append(f"  {group.title:<20} {found:6.2f}x geometric mean of {len(ratios)} of {len(own)}")
    for name in (THEIRS, CUDNN_LSTM):
        ratios = known.ratios(ALL.cells(mode), isa, threads, name)
        if ratios:
            worst = min(ratios, key=lambda cell: ratios[cell])
            lines.append(f"  lowest against {name}: {ratios[worst]:.2f}x ({worst})")
    return lines


def others(known: Known, isa: str, threads: int) -> list[str]:
    """The parts outside the grid, a line each."""
    parts: dict[str, list[str]] = {}
    for cell in cells():
        text = cell_of(known, cell, isa, threads)
        if cell.part not in (GRID, WORKLOAD) and text != "-":
            case = cell.case
            size = f"H{case.hidden} B{case.batch} T{case.time}{'' if case.mode == 'forward' else ' train'}"
            parts.setdefault(cell.part, []).append(f"{size} {text}")
    return [f"{isa}, {counted(threads)}, {part}: {', '.join(p)}" for part, p in parts.items()]


def verdict(judged: Sequence[Judged], red: Sequence[str], left: Sequence[str]) -> tuple[bool, list[str]]:
    """Whether it passed, and the lines that say so."""
    missed = [text for reached, text in judged if reached is False]
    unknown = [text for reached, text in judged if reached is None]
    lines = ["Targets:", *(f"  {text}" for _, text in judged)]
    for what, names in (("Red or unanswered", red), ("No time for", left)):
        if names:
            more = f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
            lines.append(f"{what}: {', '.join(names[:NAMES])}{more}")
    passed = not (missed or red or left)
    lines.append(
        f"Verdict: {'passed' if passed else 'NOT passed'}; {len(missed)} of {len(judged)} targets missed, "
        f"{len(unknown)} not measured; {len(red)} red, {len(left)} left out."
    )
    return passed, lines

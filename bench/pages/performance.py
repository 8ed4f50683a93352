"""The parts of ``docs/performance.md``, which is a summary."""

from __future__ import annotations

from collections.abc import Sequence

from bench.analysis.cpu.known import is_of_loop
from bench.analysis.ratios import ratio_text
from bench.measure.cases import MODES as ORDER
from bench.measure.cases import Case
from bench.measure.cpu.cells import Cell, counted, grid
from bench.measure.cpu.cells import workloads as workload_cells
from bench.measure.pair import OURS
from bench.measure.rows import Row
from bench.measure.workloads import TITLES, workload_cases
from bench.pages.cpu import page as loop
from bench.pages.cpu.hosts import View, chosen, default, views
from bench.pages.evidence import MODES, Machine, listed, machines, spread, times, title_of
from bench.pages.marks import Part, table
from bench.rivals import FORCED
from bench.suites import SUITES
from tritongru.planning.cpu_plan import refusal_by_size
from tritongru.planning.instruction_sets import SETS

FIGURES = "figures"  # beside the page
HEADLINE, ROOFLINE, SCALING = (f"performance-{name}.svg" for name in ("workloads", "roofline", "scaling"))
ABOUT = ratio_text(1.0, 1.0, 1.0)  # what stands for a ratio within the noise
NO_CPU, NO_GPU = "No CPU measurements yet.", "No GPU measurements yet."
ASKED = {
    "workloads": "calls of real workloads, each in its own precision, with every rival",
    "scaling": "calls that show how the time grows with T, B, H and layers",
    "precisions": "calls of the workloads in other precisions",
    "grids": "calls of the grids over H and B",
}


def unknown(rows: Sequence[Row]) -> list[str]:
    """What is not measured on a GPU: of each suite how many cases, and what else only a GPU can tell."""
    gpus = machines(rows, gpu=True)
    lines = []
    for suite, jobs in SUITES.items():
        cases = [case for case, _ in jobs()]
        most = max((len(machine.timed(cases)) for machine in gpus), default=0)
        if most < len(cases):
            lines.append(f"on a GPU: {len(cases) - most} of {len(cases)} {ASKED[suite]} (suite `{suite}`)")
    names = {row["case"] for machine in gpus for row in machine.rows}
    for prefix, what in (
        ("ceiling-", "the rates of a copy and of products on a GPU, and with them every bound"),
        ("host-", "the host's time of a call on a machine with a GPU"),
        ("first-", "the first call on a GPU, compilation included"),
    ):
        if not any(name.startswith(prefix) for name in names):
            lines.append(what)
    return lines


# On a CPU


def on_cpu(rows: Sequence[Row]) -> str:
    """A line for each CPU, instruction set and number of threads, and the figure that the README shows, too."""
    found = [view for view in cpu_views(rows) if view.timed(grid())]
    first = chosen(found, grid())
    if first is None:
        return NO_CPU
    lines = [
        (view.name, *(spread(view.mean(sizes(mode)), texts(view, mode)) for mode in ORDER), _counts(view))
        for view in loop.ordered(found)
    ]
    head = ("CPU", *(f"{MODES[mode]}: mean (lowest to highest)" for mode in ORDER), "sizes")
    return f"{table(head, lines, right=True)}\n\n{loop.picture(first, FIGURES)}"


def cpu_views(rows: Sequence[Row]) -> list[View]:
    return views([row for row in rows if is_of_loop(row)])


def sizes(mode: str) -> list[Cell]:
    return [cell for cell in grid() if cell.case.mode == mode]


def texts(view: View, mode: str) -> list[str]:
    """The ratios of all sizes, the lowest first."""
    return [view.text(cell) for cell in sorted(view.timed(sizes(mode)), key=lambda cell: view.over(cell) or 0.0)]


def _counts(view: View) -> str:
    counts = [(len(view.timed(sizes(mode))), len(sizes(mode))) for mode in ORDER]
    return ", ".join(dict.fromkeys(f"{timed} of {every}" for timed, every in counts))


# On a GPU


def on_gpu(rows: Sequence[Row]) -> str:
    """A line for each GPU: training steps of real workloads."""
    found = [(machine, cases) for machine in machines(rows, gpu=True) if (cases := _training(machine))]
    if not found:
        return NO_GPU
    lines = []
    for machine, cases in found:
        ends = [end(cases, key=lambda case: machine.over(case.name) or 0.0) for end in (min, max)]
        placed = (_placed(machine, end) for end in ends)
        lines.append((machine.name, str(len(cases)), times(machine.mean(cases)), *placed))
    head = ("GPU", "workloads", "geometric mean", "lowest", "highest")
    captions = "\n\n".join(f"{machine.caption(cases)}." for machine, cases in found)
    figure = f"![Training steps of real workloads, as a multiple of nn.GRU's speed]({FIGURES}/{HEADLINE})"
    return f"{table(head, lines, right=True)}\n\n{captions}\n\n{figure}"


def _training(machine: Machine) -> list[Case]:
    return [case for case in machine.timed(workload_cases()) if case.mode == "train"]


def _placed(machine: Machine, case: Case) -> str:
    return f"{machine.over_text(case.name)} ({TITLES[case.label]})"


# Where it is slower


def slower(rows: Sequence[Row]) -> str:
    """Every call of many in which our kernels took longer than torch's GRU, and what ``auto`` does there."""
    cpus = [_slower_on_cpu(view) for view in default(cpu_views(rows)) if view.timed([*grid(), *workload_cells()])]
    gpus = [_slower_on_gpu(machine) for machine in machines(rows, gpu=True)]
    return "\n\n".join([*(cpus or [NO_CPU]), *(gpus or [NO_GPU])])


def _slower_on_cpu(view: View) -> str:
    every = view.timed([*grid(), *workload_cells()])
    below = sorted((cell for cell in every if (view.over(cell) or 1.0) < 1.0), key=lambda cell: view.over(cell) or 1.0)
    lines = []
    for cell in below:
        case = cell.case
        shape = case.hidden, case.mode == "train", case.time, case.batch
        does = "torch's GRU" if refusal_by_size(view.isa, *shape, view.threads) else "tritongru's loop"
        lines.append((loop.title_of(cell), view.text(cell), does))
    return _slower_table(view.name, len(every), lines)


def _slower_on_gpu(machine: Machine) -> str:
    lines = []
    kernels = [FORCED, f"{OURS}[triton]"]
    cases = list(dict.fromkeys(case for (case, _), row in machine.found.items() if row["hidden"] is not None))
    for case in cases:
        auto = machine.row(case)
        asked = [*kernels, OURS] if auto and auto["family"] not in (None, "torch") else kernels
        ratios = {impl: machine.over(case, ours=impl) for impl in asked}
        below = {impl: ratio for impl, ratio in ratios.items() if ratio is not None and ratio < 1.0}
        if below:
            worst = min(below, key=lambda impl: below[impl])
            row = machine.row(case, worst) or {}
            lines.append((below[worst], title_of(case, row), machine.over_text(case, ours=worst), _runs(auto)))
    return _slower_table(machine.name, len(cases), [line[1:] for line in sorted(lines)])


def _runs(auto: Row | None) -> str:
    if auto is None:
        return "not measured"
    return "torch's GRU" if auto["family"] == "torch" else f"tritongru's {auto['family']} kernels"


def _slower_table(name: str, every: int, lines: Sequence[tuple[str, str, str]]) -> str:
    """Those within the noise are counted alone."""
    sure = [line for line in lines if line[1] != ABOUT]
    unsure = len(lines) - len(sure)
    more = f', and {unsure} more within the noise ("{ABOUT}")' if unsure else ""
    text = f"**{name}**: {len(sure) or 'none'} of {every} calls{more}."
    return f"{text}\n\n{table(('call', 'speedup over nn.GRU', '`auto` runs'), sure)}" if sure else text


# Not measured yet


def missing(rows: Sequence[Row]) -> str:
    lines = []
    found = cpu_views(rows)
    for cpu in dict.fromkeys(view.cpu for view in found):
        groups: dict[str, list[View]] = {}
        for view in found:
            if view.cpu == cpu and (lacks := _lacks(view)):
                groups.setdefault(lacks, []).append(view)
        for lacks, own in groups.items():
            sets = " and ".join(dict.fromkeys(SETS[view.isa].title for view in own))
            *fewer, most = sorted({view.threads for view in own})
            threads = " and ".join([*map(str, fewer), counted(most)])
            lines.append(f"{cpu}, {sets}, {threads}: {lacks}")
    absent = [SETS[isa].title for isa in SETS if isa not in {view.isa for view in found}]
    lines += [f"CPUs with {' or '.join(absent)}"] if absent else []
    gpus = machines(rows, gpu=True)
    others = f"GPUs other than {listed(machine.name for machine in gpus)}" if gpus else "any GPU"
    return "\n".join(f"- {line[0].upper()}{line[1:]}." for line in [*lines, others, *unknown(rows)])


def _lacks(view: View) -> str:
    parts = []
    for what, cells in (("calls of the grid", grid()), ("calls of real workloads", workload_cells())):
        lacking = len(cells) - len(view.rows(cells))
        if lacking:
            parts.append(f"{lacking} of {len(cells)} {what}")
    return " and ".join(parts)


def five(rows: Sequence[Row]) -> str:
    return loop.five_table([row for row in rows if is_of_loop(row)])


PARTS: dict[str, Part] = {part.__name__: part for part in (on_cpu, five, on_gpu, slower, missing)}

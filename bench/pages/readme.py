"""The generated parts of README.md: the figure of one CPU, and what was measured where."""

from __future__ import annotations

from collections.abc import Sequence

from bench.measure.cases import MODES as ORDER
from bench.measure.cpu.cells import FEW_STEPS, LARGE, STEPS, counted, grid
from bench.measure.rows import Row
from bench.measure.workloads import workload_cases
from bench.pages.cpu.hosts import View, chosen, default
from bench.pages.cpu.page import figure_of
from bench.pages.evidence import MODES, Machine, machines, spread, times
from bench.pages.marks import Part, table
from bench.pages.performance import cpu_views, sizes, texts
from tritongru.planning.instruction_sets import SETS

FIGURES = "docs/figures"
NVIDIA = "NVIDIA GPU"
ELSEWHERE = "AMD GPU"  # kernels are compiled for it


# The figure


def headline(rows: Sequence[Row]) -> str:
    """The heat map of one CPU. No ratio decides which CPU it is."""
    view = chosen(cpu_views(rows), grid())
    if view is None:
        return "No measurements yet."
    means = ", ".join(f"{MODES[mode]} {times(view.mean(sizes(mode)))}" for mode in ORDER)
    return (
        f"![How many times as fast as nn.GRU, by hidden size and batch size]({FIGURES}/{figure_of(view)})\n\n"
        f"Speedup over `nn.GRU` (its time divided by ours), geometric mean: {means}. One fp32 layer with as many "
        f"inputs as hidden units, {STEPS} time steps ({FEW_STEPS} where hidden size times batch size is above "
        f"{LARGE:,}); {view.made_with(grid())}."
    )


# What was measured where


def measured(rows: Sequence[Row]) -> str:
    """A line for each CPU and GPU with measurements, then what was compiled only, then everything else."""
    cpus = [view for view in default(cpu_views(rows)) if view.timed(grid())]
    gpus = [machine for machine in machines(rows, gpu=True) if machine.timed(workload_cases())]
    lines = [*map(_of_cpu, cpus), *map(_of_gpu, gpus)]
    known = {view.isa for view in cpus}
    unknown = [_with(isa) for isa in SETS if isa not in known] + [NVIDIA] * (not gpus) + [ELSEWHERE]
    lines.append((", ".join(unknown), "the same kernels", "not measured yet", "", ""))
    lines.append(("anything else", "`torch.nn.GRU` itself", "", "", ""))
    modes = [MODES[mode] for mode in ORDER]
    return (
        f"{table(('you run on', 'what runs', 'measured on', *modes), lines)}\n\n"
        'Speedup over `nn.GRU`: the geometric mean and, in brackets, the range. On CPUs it is that of `impl="llvm"`; '
        '`impl="auto"`, the default, avoids most of the sizes that are slower.'
    )


def _with(isa: str) -> str:
    """A CPU, as a reader knows it."""
    found = SETS[isa]
    return f"{'Arm' if found.architecture != 'x86_64' else 'x86-64'} CPU with {found.title}"


def _of_cpu(view: View) -> tuple[str, ...]:
    found = {mode: texts(view, mode) for mode in ORDER}
    cells = (spread(view.mean(sizes(mode)), own, _of(own, "size")) for mode, own in found.items())
    return _with(view.isa), "the loop, compiled by LLVM", f"{view.cpu}, {counted(view.threads)}", *cells


def _of_gpu(machine: Machine) -> tuple[str, ...]:
    cells = []
    for mode in ORDER:
        found = [case for case in machine.timed(workload_cases()) if case.mode == mode]
        found.sort(key=lambda case: machine.over(case.name) or 0.0)
        own = [machine.over_text(case.name) for case in found]
        cells.append(spread(machine.mean(found), own, _of(own, "workload")))
    return NVIDIA, "one Triton kernel", machine.name, *cells


def _of(found: Sequence[str], noun: str) -> str:
    return f", {len(found)} {noun}{'s' * (len(found) > 1)}"


PARTS: dict[str, Part] = {part.__name__: part for part in (headline, measured)}

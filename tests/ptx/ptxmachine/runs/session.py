"""What the launches of one run leave behind: reports of the machine, and counts of the sampled CTA."""

from __future__ import annotations

import hashlib
import re
import time
from collections import Counter, defaultdict
from typing import Any

from ptxmachine.code.program import Instruction, Program
from ptxmachine.machine.machine import Machine
from ptxmachine.machine.options import Deadlock, Options
from ptxmachine.runs.driver import Grid

OUTPUTS = {
    "resident_forward_kernel": ("y", "hn", "gates"),
    "resident_backward_kernel": ("dh", "dgx", "da", "d_reset"),
    "persistent_forward_kernel": ("y", "hn", "gates", "slots", "state", "counters", "report"),
    "persistent_backward_kernel": ("dh", "dgx", "da", "d_reset", "slots", "counters", "report"),
    "stepwise_forward_kernel": ("y", "gates", "state"),
    "stepwise_backward_kernel": ("dgx", "da", "dh", "d_reset"),
    "single_step_kernel": ("y", "hn"),
    "rebuild_kernel": ("gates",),
}
MOST_PROGRAMS = 4  # kept for the next launch; a stepwise run alternates between no more

programs: dict[str, Program] = {}  # by the hash that Triton gives a compiled kernel


def program_of(compiled: Any) -> Program:
    if compiled.hash not in programs:
        while len(programs) >= MOST_PROGRAMS:
            programs.pop(next(iter(programs)))
        programs[compiled.hash] = Program(compiled.asm["ptx"], compiled.metadata.shared)
    return programs[compiled.hash]


class Session:
    """Runs the launches of one case in the machine."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.reports: Counter[str] = Counter()
        self.lines: list[str] = []
        self.seconds = 0.0
        self.num_warps = 0
        # Of the sampled CTA: instructions by category over all warps; (what, tensor or "shared") -> requests, bytes and
        # sectors or wavefronts; shared accesses by instruction -> [requests, wavefronts, least].
        self.instructions: Counter[str] = Counter()
        self.memory: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        self.accesses: dict[tuple[str, int], list[int]] = {}
        self.places: dict[tuple[str, int], Instruction] = {}

    def launch(self, compiled: Any, grid: Grid, args: dict[str, Any]) -> None:
        program, warps = program_of(compiled), compiled.metadata.num_warps
        started = time.perf_counter()
        machine = Machine(program, grid, args, self.options, warps, OUTPUTS[compiled.name])
        try:
            machine.run()
        except Deadlock as error:
            self.reports["stopped"] += 1
            self.lines.append(f"stopped: {error}")
        self.seconds += time.perf_counter() - started
        self.num_warps = warps
        self.reports.update(machine.report.kinds())
        self.lines += machine.report.lines()
        self.count(machine)

    def count(self, machine: Machine) -> None:
        self.instructions.update(machine.totals(machine.sample_counts))
        for key, found in machine.sampled.items():
            self.memory[key].update(found)
        for n, values in machine.by_instruction.items():
            place = machine.program.name, n
            self.places[place] = machine.instructions[n]
            before = self.accesses.get(place, [0, 0, 0])
            self.accesses[place] = [old + new for old, new in zip(before, values, strict=True)]

    def counts(self) -> dict[str, Any]:
        """In the form of the table: of one CTA, instructions summed over its warps."""
        return {
            "instructions": dict(sorted(self.instructions.items())),
            "barriers": self.barriers,
            "wavefronts": self.total("wavefronts"),
            "least": self.total("least"),
            "sectors": self.total("sectors"),
        }

    @property
    def barriers(self) -> int:
        return self.instructions["bar"] // max(1, self.num_warps)

    def total(self, what: str) -> int:
        return sum(found[what] for found in self.memory.values())


class Recording:
    """Keeps the code of the launches of one case and runs nothing."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def launch(self, compiled: Any, grid: Grid, args: dict[str, Any]) -> None:
        if compiled.hash not in self.texts:
            self.texts[compiled.hash] = compiled.asm["ptx"]

    def digest(self) -> str:
        """Of all code that was launched, whatever the order."""
        codes = sorted({code_of(text) for text in self.texts.values()})
        return hashlib.sha256("\0".join(codes).encode()).hexdigest()[:16]


def code_of(text: str) -> str:
    """PTX without what depends on the places of source lines: ``.loc``, ``.file``, the labels and sections of debug
    information, which come last, and comments."""
    text = re.split(r"^\s*\.section\s+\.debug", text, maxsplit=1, flags=re.MULTILINE)[0]
    lines = (line.partition("//")[0].strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not re.match(r"\.(loc|file)\b|\$L__(tmp|func_)\w*:", line))

"""Runs lists of cases in the PTX machine and keeps what it finds in a table.

    python tests/ptx/sweep.py --list resident
    python tests/ptx/sweep.py --count < forms.jsonl

Prints a line for each case that is run: ok or BAD, the largest error as a part of what is allowed, reports, seconds,
and the case. A case whose row is clean and of the same code is not run again. The exit code is 1 if a case is bad.

With --count: reads JSON lines {"family", "kernel", "kind", "size", "launch": {fields of a launch}} and prints for each
the shared-memory wavefronts of one CTA in one time step, the fewest possible, and the barriers of a warp.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)  # before the lists load Triton
sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the matrices are small; before NumPy is loaded

from ptxmachine.runs.case_lists import LISTS, offered
from ptxmachine.runs.cases import Case, Result
from ptxmachine.runs.results import FILES, FOLDER, Setting, Table, is_clean, row_of

from tritongru.planning import launches
from tritongru.planning.devices import GPUS, Device

DEVICES = {"sm_90": GPUS["h100"], "sm_80": GPUS["a100"]}


class Runner(Protocol):
    """What runs cases; tests have another one."""

    triton: str

    def digest(self, case: Case) -> str: ...

    def run(self, case: Case, setting: Setting) -> Result: ...


class MachineRunner:
    """Compiles with the installed Triton and runs in the machine."""

    def __init__(self, device: Device) -> None:
        os.environ.pop("TRITON_INTERPRET", None)  # before Triton is loaded
        import torch
        import triton
        from ptxmachine.runs import driver

        torch.set_num_threads(1)
        self.triton = str(triton.__version__)
        self.host = driver.install(device)

    def digest(self, case: Case) -> str:
        from ptxmachine.runs import running

        return running.digest(case, self.host)

    def run(self, case: Case, setting: Setting) -> Result:
        from ptxmachine.machine.options import Options
        from ptxmachine.runs import running

        return running.run(case, self.host, Options(lockstep=not setting.warps, seed=setting.seed))


def main(argv: list[str] | None = None, runner_of: Callable[[Device], Runner] = MachineRunner) -> int:
    options = parsed(argv)
    device = DEVICES[options.arch]
    if options.count:
        return count(sys.stdin, device)
    cases = chosen(options, device)
    if options.list and not cases:
        print("no case of the lists is chosen", file=sys.stderr)
        return 2
    runner = runner_of(device)
    setting = Setting(runner.triton, options.arch, options.seed, options.warps)
    table = None if options.no_table else Table(options.results)
    if table and options.prune:
        for family in FILES:
            dropped = table.keep(family, (case for cases_of in LISTS.values() for case in cases_of()))
            print(f"{family}: {dropped} rows dropped whose cases are in no list")
    return sweep(cases, runner, setting, table, options.budget)


def sweep(cases: Iterable[Case], runner: Runner, setting: Setting, table: Table | None, budget: float) -> int:
    """Runs what has no row yet. Returns the exit code."""
    started, numbers = time.monotonic(), {"ok": 0, "BAD": 0, "had": 0, "left": 0}
    for case in cases:
        if time.monotonic() - started > budget:
            numbers["left"] += 1
            continue
        ptx, result = one(case, runner, setting, table)
        if result is None:
            numbers["had"] += 1
            continue
        if table is not None:
            table.put(row_of(case, setting, ptx, result))
        verdict = "ok" if result.clean else "BAD"
        numbers[verdict] += 1
        show(verdict, case, result)
    left = f", {numbers['left']} left when the time was up" if numbers["left"] else ""
    print(f"{numbers['ok']} ok, {numbers['BAD']} bad, {numbers['had']} clean before with the same code{left}")
    return int(numbers["BAD"] > 0)


def one(case: Case, runner: Runner, setting: Setting, table: Table | None) -> tuple[str, Result | None]:
    """The hash of the case's code, and what its run found; None if the table has a clean row of that code."""
    ptx = ""
    try:
        ptx = runner.digest(case) if table is not None else ""
        row = None if table is None else table.find(case, setting)
        if row is not None and row["ptx"] == ptx and is_clean(row):
            return ptx, None
        return ptx, runner.run(case, setting)
    except Exception as error:  # of the compiler or the machine; the other cases still run
        return ptx, Result(error=f"{type(error).__name__}: {error}")


def show(verdict: str, case: Case, result: Result) -> None:
    what = f"error: {result.error}" if result.error else f"{result.worst:.2f} {result.reports} {result.seconds:.1f}s"
    print(f"{verdict:3s} {what} {json.dumps(case.to_json())}", flush=True)
    for line in result.lines:
        print(f"      {line}", flush=True)


def chosen(options: argparse.Namespace, device: Device) -> list[Case]:
    """The cases asked for whose forms the plan may give to the device with this Triton."""
    i, n = options.part
    asked = dict.fromkeys(case for name in options.list for case in offered(name, device))
    cases = [case for case in asked if options.largest >= case.H and options.only in json.dumps(case.to_json())]
    return cases[i::n]


def count(lines: Iterable[str], device: Device) -> int:
    """Answers each line. Returns 1 if one has no answer."""
    runner, bad = MachineRunner(device), False
    for line in filter(str.strip, lines):
        try:
            found = counted(json.loads(line), runner)
        except Exception as error:  # of a form that does not compile, say
            found, bad = {"error": f"{type(error).__name__}: {error}"}, True
        print(json.dumps(found), flush=True)
    return int(bad)


def counted(asked: dict[str, Any], runner: MachineRunner) -> dict[str, Any]:
    from ptxmachine.runs import counts

    family, kernel, kind, size = (asked[name] for name in ("family", "kernel", "kind", "size"))
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in asked["launch"].items()}
    row = {"backend": "cuda", "kernel": kernel, "kind": kind, "units": size, **given}
    launch = launches.launch_of(family, row)
    dtype = "bf16" if kind == "16-bit" else "fp32"
    case = Case(family, kernel, kind, size, "", dtype, H=size, T=0, B=launch.block_b)
    step = counts.step(case, runner.host, launch)
    return {
        "wavefronts": step.total("wavefronts"),
        "least": step.total("least"),
        "barriers": step.instructions.get("bar", 0.0),
    }


def parsed(argv: list[str] | None) -> argparse.Namespace:
    title, _, text = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=title + "\n" + text, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--list", action="append", choices=LISTS, default=[], help="cases to run; may be repeated")
    add("--arch", choices=DEVICES, default="sm_90", help="chip to compile for (default: sm_90)")
    add("--part", type=part, default=(0, 1), metavar="I/N", help="every N-th case, beginning with the I-th, from 0")
    add("--largest", type=natural, default=10**9, metavar="H", help="largest hidden size")
    add("--only", default="", metavar="TEXT", help="cases whose JSON contains TEXT")
    add("--budget", type=float, default=float("inf"), metavar="SECONDS", help="begin no case after so many seconds")
    add("--warps", action="store_true", help="each warp on its own, in random order")
    add("--seed", type=natural, default=0, metavar="N", help="of the order in which programs and warps run")
    add("--results", type=Path, default=FOLDER, metavar="DIR", help="folder of the table")
    add("--no-table", action="store_true", help="run every case and write nothing")
    add("--prune", action="store_true", help="drop rows of the table whose cases are in no list")
    add("--count", action="store_true", help="count the forms of the standard input instead")
    options = parser.parse_args(argv)
    if not options.list and not options.count and not options.prune:
        parser.error("give a --list, or --count")
    if not next(place for place in (options.results, *options.results.absolute().parents) if place.exists()).is_dir():
        parser.error(f"--results: {options.results} is not a folder and cannot become one")
    for family in FILES:
        try:
            Table(options.results).rows(family)
        except (OSError, ValueError) as error:
            parser.error(f"--results: {error}")
    return options


def natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"should be a whole number from 0 on, got {text!r}")
    return int(text)


def part(text: str) -> tuple[int, int]:
    i, slash, n = text.partition("/")
    if not slash or not i.isdecimal() or not n.isdecimal() or int(i) >= int(n):
        raise argparse.ArgumentTypeError(f"should be I/N with I from 0 to N - 1, got {text!r}")
    return int(i), int(n)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)

"""Compile kernels without a GPU and read the resulting machine code.

``readings`` compiles every row of the launch tables with the installed Triton and writes registers, stack, shared
memory and instruction counts into the tables, beside the readings of other Triton versions. After a change of a kernel,
run it with each of them. ``wavefronts`` then counts the shared-memory wavefronts of the resident and persistent rows,
by running their PTX on a CPU, and adds them to the readings. ``check sm_90 forward`` compiles a part of the rows of a
kernel (``forward`` and ``backward`` are the resident ones) for that chip and prints the results as JSON lines.
``times`` measures compile times.

``table`` rebuilds the rows of a table, then reads them and counts their wavefronts. ``table resident``: for each
kernel, kind of arithmetic and padded hidden size, the launch configurations without stack use, cheapest first by the
plan's cost model; a more expensive one is kept only if it needs less shared memory, for chips that have less. ``table
persistent``: the configurations that the plan picks for some shape on some chip. ``table stepwise``: for each batch
tile size, the first that does not spill. TRITON_INTERPRET must not be set.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from bench.arguments import count
from bench.compile import compile_seconds, persistent, readings, resident, stepwise, wavefronts
from bench.compile.machine_code import TARGETS

FAMILIES: dict[str, Any] = {"resident": resident, "persistent": persistent, "stepwise": stepwise}
ALL = "all"
KERNELS = ("forward", "backward", *(f"{f}-{k}" for f in ("persistent", "stepwise") for k in ("forward", "backward")))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.compile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("table", help="rebuild the rows of a table")
    command.add_argument("family", choices=FAMILIES)
    command = commands.add_parser("check", help="compile a part of the rows and print the results")
    command.add_argument("arch", choices=TARGETS)
    command.add_argument("kernel", choices=KERNELS)
    command.add_argument("--all", action="store_true", help="every row in every form")
    command = commands.add_parser("readings", help="compile all rows with the installed Triton and record the results")
    command.add_argument(
        "chips", nargs="*", choices=(*TARGETS, ALL), default=ALL, help="only these chips (default all)"
    )
    command.add_argument("--family", action="append", choices=FAMILIES, help="only this family; may be repeated")
    command.add_argument(
        "--jobs",
        type=count(1, 256),
        default=os.cpu_count(),
        metavar="N",
        help="parallel compilations (default: all cores)",
    )
    command.add_argument("--ragged", action="store_true", help="only the forms for ragged rows")
    command = commands.add_parser("wavefronts", help="count the shared-memory wavefronts of rows and record them")
    command.add_argument(
        "--family", action="append", choices=wavefronts.SIZES, help="only this family; may be repeated"
    )
    command.add_argument("--jobs", type=count(1, 256), default=2, metavar="N", help="processes (default 2)")
    command.add_argument("--again", action="store_true", help="also rows that have been counted with this Triton")
    commands.add_parser("times", help="measure how long compilation takes")
    args = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("TRITON_INTERPRET=1 is set, so nothing would be compiled; unset it")
    if args.command == "times":
        compile_seconds.measure()
        return 0
    if args.command == "readings":
        chips = list(TARGETS) if ALL in args.chips else args.chips
        readings.record(chips, args.family or list(FAMILIES), args.jobs, args.ragged)
        return 0
    if args.command == "wavefronts":
        wavefronts.record(args.family or list(wavefronts.SIZES), args.jobs, args.again)
        return 0
    if args.command == "check":
        readings.check(args.arch, args.kernel, args.all)
        return 0
    FAMILIES[args.family].make()
    readings.record(list(TARGETS), [args.family], os.cpu_count() or 1)
    if args.family in wavefronts.SIZES:
        wavefronts.record([args.family], os.cpu_count() or 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())

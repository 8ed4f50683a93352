"""Compile kernels without a GPU and read what the compiler made.

``python -m bench.compile table resident`` makes ``tritongru/kernels/resident.json`` anew: for each kernel, kind of
arithmetic and padded hidden size, the launch configurations that use no stack, the cheapest first by the plan's cost
model; a dearer one stays only where it needs less shared memory, for chips that have less. ``table persistent`` makes
``persistent.json``: the configurations that the plan picks for some shape on some chip. ``table stepwise`` makes
``stepwise.json``: for each size of a batch tile the first that does not spill. ``check sm_90 forward`` compiles the
rows of a kernel (``forward``, ``backward``: the resident ones) for that chip and prints what came out as JSON lines.
``times`` measures how long compilation takes. TRITON_INTERPRET must not be set.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from bench.compile import persistent, resident, stepwise, times
from bench.compile.machine_code import TARGETS

FAMILIES: dict[str, Any] = {"resident": resident, "persistent": persistent, "stepwise": stepwise}
KERNELS = ("forward", "backward", *(f"{f}-{k}" for f in ("persistent", "stepwise") for k in ("forward", "backward")))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.compile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("table")
    command.add_argument("family", choices=FAMILIES)
    command = commands.add_parser("check")
    command.add_argument("arch", choices=TARGETS)
    command.add_argument("kernel", choices=KERNELS)
    command.add_argument("--all", action="store_true", help="of persistent: every row both ways, not a part of them")
    commands.add_parser("times")
    args = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("TRITON_INTERPRET=1 is set, so nothing would be compiled; unset it")
    if args.command == "times":
        times.measure()
        return 0
    if args.command == "check":
        check(args.arch, args.kernel, args.all)
        return 0
    FAMILIES[args.family].make()
    return 0


def check(arch: str, kernel: str, everything: bool) -> None:
    family, _, name = kernel.rpartition("-")
    if family == "persistent":
        persistent.check(arch, name, everything)
    elif family == "stepwise":
        stepwise.check(arch, name)
    else:
        resident.check(arch, name)


if __name__ == "__main__":
    sys.exit(main())

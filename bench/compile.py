"""Compile kernels without a GPU and read what the compiler made.

``python -m bench.compile table resident`` makes ``tritongru/kernels/resident.json`` anew: for each kernel, kind of
arithmetic and padded hidden size, the launch configurations that use no stack, the cheapest first by the plan's cost
model; a dearer one stays only where it needs less shared memory, for chips that have less. ``table persistent`` makes
``persistent.json``: the configurations that the plan picks for some shape on some chip. ``table stepwise`` makes
``stepwise.json``: for each size of a batch tile the first that does not spill. ``check sm_90 forward`` compiles the
rows of a kernel (``forward``, ``backward``: the resident ones) for that chip and prints what came out as JSON lines.
``markdown`` prints the tables of docs/kernels.md. TRITON_INTERPRET must not be set.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from bench import compile_times, persistent_table, resident_table, stepwise_table
from bench.machine_code import TARGETS

COUNTS = ("shared_bytes", "registers", "instructions", "barriers", "tensor_core")
COLUMNS = {
    resident_table.LAUNCHES: ("backend", "kernel", "kind", "hidden", "chunks", "num_warps", "stages", *COUNTS),
    persistent_table.LAUNCHES: (
        *("kernel", "kind", "units", "block_b", "block_h", "num_warps", "k_split", "chunks", "pad", "exchange"),
        *COUNTS,
    ),
    stepwise_table.LAUNCHES: (
        *("kernel", "kind", "block_b", "block_h", "block_k", "num_warps", "stages"),
        *("shared_bytes", "instructions", "barriers"),
    ),
}
FAMILIES: dict[str, Any] = {"resident": resident_table, "persistent": persistent_table, "stepwise": stepwise_table}
KERNELS = ("forward", "backward", *(f"{f}-{k}" for f in ("persistent", "stepwise") for k in ("forward", "backward")))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.compile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("table")
    command.add_argument("family", choices=FAMILIES)
    command = commands.add_parser("markdown")
    command.add_argument("family", choices=FAMILIES)
    command = commands.add_parser("check")
    command.add_argument("arch", choices=TARGETS)
    command.add_argument("kernel", choices=KERNELS)
    command.add_argument("--all", action="store_true", help="of persistent: every row both ways, not a part of them")
    command = commands.add_parser("times")
    command.add_argument("--markdown", action="store_true", help="measure nothing, print the table of committed rows")
    args = parser.parse_args()
    if args.command != "markdown" and os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("TRITON_INTERPRET=1 is set, so nothing would be compiled; unset it")
    if args.command == "times":
        if not args.markdown:
            compile_times.measure()
        print(compile_times.markdown(compile_times.read()))
        return 0
    if args.command == "check":
        check(args.arch, args.kernel, args.all)
        return 0
    table = FAMILIES[args.family]
    if args.command == "markdown":
        print(markdown(table.LAUNCHES))
    else:
        table.make()
    return 0


def check(arch: str, kernel: str, everything: bool) -> None:
    family, _, name = kernel.rpartition("-")
    if family == "persistent":
        persistent_table.check(arch, name, everything)
    elif family == "stepwise":
        stepwise_table.check(arch, name)
    else:
        resident_table.check(arch, name)


def markdown(launches: Path) -> str:
    columns = COLUMNS[launches]
    lines = ["| " + " | ".join(columns).replace("_", " ") + " |", "|" + " --- |" * len(columns)]
    for row in json.loads(launches.read_text()):
        cells = {name: "-" if row[name] is None else str(row[name]) for name in columns}
        if "chunks" in cells:
            cells["chunks"] = " + ".join(map(str, row["chunks"]))
        lines.append("| " + " | ".join(cells[name] for name in columns) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

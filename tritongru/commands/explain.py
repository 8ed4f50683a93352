"""The command ``explain``: which kernel would run a layer, and why."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial

import torch

from tritongru.commands.demo import count
from tritongru.planning.devices import GPUS, MOST, Device, check_sizes, cpu_facts, device_facts, find_gpu
from tritongru.planning.explaining import with_batches
from tritongru.planning.instruction_sets import SETS
from tritongru.planning.memory import MEMORIES
from tritongru.planning.plan import DTYPES, PRECISIONS, Plan, fp32_precision, plan


def gpu(text: str) -> Device:
    found = find_gpu(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a known GPU; choose from {', '.join(sorted(GPUS))}")
    return found


def add_arguments(command: argparse.ArgumentParser) -> None:
    for option, name, default, about in (
        ("--hidden", "hidden", None, "hidden size H"),
        ("--batch", "batch", 1, "batch size B (default 1)"),
        ("--input", "inputs", None, "input size I (default: H)"),
        ("--layers", "layers", 1, "stacked layers L (default 1)"),
        ("--time", "time", 512, "time steps T (default 512)"),
    ):
        command.add_argument(
            option, type=count(MOST[name]), default=default, required=name == "hidden", metavar="N", help=about
        )
    command.add_argument(
        "--dtype", choices=(*DTYPES, "float64"), default="float32", help="dtype of the layer (default float32)"
    )
    command.add_argument(
        "--gpu", type=gpu, metavar="GPU", help=f"{', '.join(sorted(GPUS))} (default: this machine's GPU or CPU)"
    )
    command.add_argument(
        "--cpu",
        nargs="?",
        const="native",
        choices=("native", *SETS),
        help="this machine's CPU (native, or no value), or one with another instruction set",
    )
    command.add_argument(
        "--precision", choices=PRECISIONS, help="precision of fp32 products (default: torch's setting)"
    )
    command.add_argument(
        "--bidirectional", action="store_true", help="a bidirectional layer, both directions in one launch"
    )
    command.add_argument(
        "--memory", choices=MEMORIES, default="auto", help="what is kept for the backward pass (default auto)"
    )
    command.add_argument("--lengths", action="store_true", help="calls with lengths of the sequences")
    command.add_argument("--resets", action="store_true", help="calls with resets inside sequences")
    command.add_argument("--inference", action="store_true", help="plan without a backward pass")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=partial(run, command))


def _cpu(name: str | None) -> Device | None:
    if name is None:
        return None
    return cpu_facts(None if name == "native" else name)


def run(command: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    directions = 2 if args.bidirectional else 1
    sizes = {name: getattr(args, name) for name in ("hidden", "batch", "time", "layers")}
    try:
        sizes = check_sizes(directions, inputs=args.input or args.hidden, **sizes)
    except ValueError as error:
        command.error(str(error))
    here = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.gpu and args.cpu:
        command.error("give either --gpu or --cpu, not both")
    batch = sizes.pop("batch")

    def at(batch: int) -> Plan:
        return plan(
            dtype=args.dtype,
            device=args.gpu or _cpu(args.cpu) or (cpu_facts() if here.type == "cpu" else device_facts(here)),
            directions=directions,
            precision=args.precision or fp32_precision(),
            training=not args.inference,
            memory=args.memory,
            lengths=args.lengths,
            resets=args.resets,
            batch=batch,
            **sizes,
        )

    answer = with_batches(at, batch)
    print(json.dumps(answer.as_dict(), indent=2) if args.json else answer)
    if here.type == "cpu" and args.gpu is None and args.cpu is None:
        others = ", ".join(name for name in sorted(GPUS) if name != "h200")
        hint = f"no GPU here: add --gpu h200 (or {others}) to ask about another machine"
        print(hint, file=sys.stderr if args.json else sys.stdout)
    return 0

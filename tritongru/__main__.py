"""The command line: ``python -m tritongru demo | explain | env``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

import torch

from tritongru import demo, env
from tritongru.devices import GPUS, device_facts
from tritongru.memory import MEMORIES
from tritongru.plan import DTYPES, PRECISIONS, fp32_precision, plan


def positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1; give one such as 128")
    return value


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m tritongru", description="The GRU in one Triton kernel.")
    commands = top.add_subparsers(dest="command", required=True, metavar="{demo,explain,env}")

    command = commands.add_parser("demo", help="train GRU, LSTM and plain RNN on real electricity demand")
    demo.add_arguments(command)
    command.set_defaults(run=demo.run)

    command = commands.add_parser("explain", help="which kernel would run a layer, and why")
    command.add_argument("--hidden", type=positive, required=True, help="hidden size H")
    command.add_argument("--batch", type=positive, default=1, help="batch size B (default 1)")
    command.add_argument("--input", type=positive, help="input size I (default: H)")
    command.add_argument("--layers", type=positive, default=1, help="stacked layers L (default 1)")
    command.add_argument("--time", type=positive, default=512, help="time steps T (default 512)")
    command.add_argument("--dtype", choices=(*DTYPES, "float64"), default="float32", help="default float32")
    command.add_argument("--gpu", choices=sorted(GPUS), help="a known GPU; default: this machine's device")
    command.add_argument("--precision", choices=PRECISIONS, help="of fp32 products; default: torch's switch")
    command.add_argument("--bidirectional", action="store_true", help="both directions in one launch")
    command.add_argument("--memory", choices=MEMORIES, default="auto", help="what is kept for the backward")
    command.add_argument("--inference", action="store_true", help="plan without a backward pass")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=run_explain)

    command = commands.add_parser("env", help="versions, GPU and precision switches")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=run_env)
    return top


def run_explain(args: argparse.Namespace) -> int:
    here = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    answer = plan(
        args.hidden,
        args.dtype,
        GPUS[args.gpu] if args.gpu else device_facts(here),
        batch=args.batch,
        time=args.time,
        directions=2 if args.bidirectional else 1,
        precision=args.precision or fp32_precision(),
        training=not args.inference,
        inputs=args.input or args.hidden,
        layers=args.layers,
        memory=args.memory,
    )
    print(json.dumps(answer.as_dict(), indent=2) if args.json else answer)
    return 0


def run_env(args: argparse.Namespace) -> int:
    found = env.report()
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        for name, value in found.items():
            print(f"{name}: {value}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        return int(args.run(args))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has closed it, as `| head` does
        sys.stderr.close()
        return 141


if __name__ == "__main__":
    sys.exit(main())

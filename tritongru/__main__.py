"""The command line: ``python -m tritongru demo | explain | inspect | env``."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence

from tritongru import __version__
from tritongru.commands import demo, env, explain, inspect


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m tritongru",
        description="A drop-in replacement for torch.nn.GRU with the whole time loop in one kernel, on GPUs and CPUs.",
    )
    top.add_argument("--version", action="version", version=f"tritongru {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="{demo,explain,inspect,env}")

    command = commands.add_parser(
        "demo",
        help="train GRU, LSTM and plain RNN on real electricity demand",
        description="Train tritongru.GRU, torch.nn.GRU, an LSTM and a plain RNN to forecast electricity demand a day "
        "ahead, next to simple rules and a linear model; print a table and write a picture.",
    )
    demo.add_arguments(command)
    command.set_defaults(run=demo.run)

    command = commands.add_parser(
        "explain",
        help="show which path would run a layer, and why",
        description="Show which path (Triton kernel, compiled loop or torch.nn.GRU) would run a layer of these sizes, "
        "and why. The device need not be present.",
    )
    explain.add_arguments(command)

    command = commands.add_parser(
        "inspect",
        help="show what tritongru.convert would change in a model",
        description="Show which layers of a model tritongru.convert would change and which not, on which path each "
        "would run, and what gain the measurements or the cost model expect. Nothing is converted.",
    )
    inspect.add_arguments(command)

    command = commands.add_parser(
        "env",
        help="show versions, GPU and precision settings",
        description="Show what a bug report needs: versions, GPU, instruction sets and precision settings.",
    )
    env.add_arguments(command)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        code = int(args.run(args))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader closed our output, as `| head` does
        sys.stderr.close()
        return 141
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"the output was not written ({error.strerror}); make room, or write it elsewhere", file=sys.stderr)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # what is left in the buffer would fail again at exit
        return 1


if __name__ == "__main__":
    sys.exit(main())

"""The command ``inspect``: what `tritongru.convert` would change in a model, on which path each layer would run, and
what gain the measurements or the cost model expect. Nothing is converted."""

from __future__ import annotations

import argparse
import difflib
import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from tritongru.commands.demo import count
from tritongru.commands.explain import gpu
from tritongru.conversion.finding import Decision, decide, description
from tritongru.conversion.report import Report, shown
from tritongru.interop.inference_ops import DTYPES
from tritongru.interop.stepping import KERNEL_DTYPES
from tritongru.planning import cpu_plan
from tritongru.planning.devices import GPUS, MOST, Device, cpu_facts
from tritongru.planning.explaining import explain
from tritongru.planning.instruction_sets import SETS
from tritongru.planning.plan import Plan


class Refused(Exception):
    """There is no model to inspect; the text says why."""


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "model",
        metavar="MODULE:FACTORY",
        help="a function without arguments that returns a torch.nn.Module, or a module",
    )
    for name, default, about in (("batch", 1, "batch size B (default 1)"), ("time", 512, "time steps T (default 512)")):
        command.add_argument(f"--{name}", type=count(MOST[name]), default=default, metavar="N", help=about)
    command.add_argument(
        "--gpu", type=gpu, metavar="GPU", help=f"{', '.join(sorted(GPUS))} (default: this machine's GPU or CPU)"
    )
    command.add_argument("--inference", action="store_true", help="plan without a backward pass")
    command.add_argument(
        "--as-torch-type", action="store_true", help="what convert(model, as_torch_type=True) would change"
    )
    command.set_defaults(run=partial(run, command))


def run(command: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    try:
        model = model_of(args.model)
    except Refused as refused:
        command.error(str(refused))
    found = decide(model, None, args.as_torch_type, back=False)
    for module, _, _ in found.changes:
        module.training = not args.inference  # not by model.train(), which some models refuse
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of layers may be in any script
    where = args.gpu or ("cuda" if torch.cuda.is_available() else "cpu")
    print("\n".join(lines(model, found, args.batch, args.time, where)))
    return 0


def model_of(text: str) -> nn.Module:
    """What the factory returns, as Python would find it in the current folder.

    Raises:
        Refused: if there is no such module or factory, or it fails or returns something else.
    """
    module_name, _, path = text.partition(":")
    if not module_name or not path:
        raise Refused(f"expected MODULE:FACTORY, such as my_package.models:build, got {text!r}")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    if "/" in module_name or module_name.endswith(".py"):
        dotted = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise Refused(f"{module_name} is a file; name the module as Python imports it: {dotted}:{path}")
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise Refused(f"{module_name} cannot be imported: {_said(error)}{_remedy(error, module_name)}") from None
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            near = difflib.get_close_matches(name, [own for own in dir(found) if not own.startswith("_")])
            remedy = f"did you mean {near[0]}?" if near else "check the name"
            raise Refused(f"{module_name} has no {path}; {remedy}") from None
        except Exception as error:  # of a package that imports its parts when they are asked for
            raise Refused(f"{path} of {module_name} is not available: {_said(error)}") from None
    if not isinstance(found, nn.Module):
        if not callable(found):
            raise Refused(f"{text} should be a function or a torch.nn.Module, got {type(found).__name__}")
        try:
            found = found()
        except (Exception, SystemExit) as error:
            remedy = "; give a function that needs no arguments" if isinstance(error, TypeError) else ""
            raise Refused(f"{path}() failed: {_said(error)}{_place(error)}{remedy}") from None
    if not isinstance(found, nn.Module):
        raise Refused(f"{path}() should return a torch.nn.Module, got {type(found).__name__}")
    return found


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _place(error: BaseException) -> str:
    """Where it was raised, unless at the call itself."""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    return f" ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})" if frames else ""


def _remedy(error: BaseException, module_name: str) -> str:
    missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
    if missing is not None and f"{module_name}.".startswith(f"{missing}."):
        return "; run this in the folder that holds it, or set PYTHONPATH"
    return ""


def lines(model: nn.Module, found: Decision, batch: int, time: int, where: Device | str) -> Sequence[str]:
    report = Report(model, left=found.left, notes=found.notes)
    texts = [f"calls with B = {batch} and T = {time} (--batch, --time)"] if found.changes else []
    for module, _, swap in found.changes:
        names = ", ".join(shown(name) for name in (swap.name, *swap.also))
        texts += [f"{names}: {description(module)} would become {swap.after}"]
        texts += [f"  {text}" for text in expected(module, batch, time, where)]
    if found.left or found.notes:
        texts.append(str(report))
    texts.append(f"{len(found.changes)} to convert, {len(found.left)} left; nothing was changed")
    return texts


def expected(module: nn.Module, batch: int, time: int, where: Device | str) -> list[str]:
    """On which path the layer would run, and what it would gain."""
    if isinstance(module, nn.GRUCell):
        return [_of_cell(module, batch, where)]
    assert isinstance(module, nn.RNNBase)
    try:
        plan = explain(module, batch=batch, time=time, device=where)
    except ValueError as error:  # beyond what a device holds
        return [f"no plan: {error}"]
    return [f"{plan.device}, {plan.dtype}: {plan.family}, {plan.reason}", _gain(plan, module, batch)]


def _of_cell(cell: nn.GRUCell, batch: int, where: Device | str) -> str:
    dtype = cell.weight_hh.dtype
    about = f"{str(dtype).removeprefix('torch.')}, one time step"
    if where != "cpu":
        if dtype not in KERNEL_DTYPES:
            return f"{about}: torch's cell runs, the kernel has no such dtype"
        return f"{about}: calls without gradients run one Triton kernel; with gradients torch's cell"
    if dtype not in DTYPES:
        return f"{about}: torch's cell runs, the compiled step has no such dtype"
    if not cpu_plan.takes_cell(cpu_facts().arch, cell.hidden_size, batch):
        return f"{about}: torch's cell runs, no gain was measured for B = {batch} and H = {cell.hidden_size}"
    return f"{about}: calls without gradients run a compiled step; with gradients torch's cell"


def _gain(plan: Plan, module: nn.RNNBase, batch: int) -> str:
    if plan.family == "torch":
        return "no gain is expected"
    kind = "training step" if module.training else "forward pass"
    if plan.family == "llvm":
        isa, threads = cpu_facts().arch, torch.get_num_threads()
        near = cpu_plan.nearest(isa, module.hidden_size, module.training, batch, threads)
        if not near:
            return "the gain was not measured"
        size = f"H = {near['hidden']}, B = {near['batch']}, float32, {cpu_plan.threads_text(near['threads'])}"
        here = f" (this process has {threads})" if threads != near["threads"] else ""
        return (
            f"torch.nn.GRU's {kind} takes {near['over']:.1f} times as long as ours at the nearest measured size: {size}"
            f"{here}, {SETS[near['isa']].title}"
        )
    ratio = plan.expected_ratio
    if ratio is None:
        return f"the gain is unknown: {plan.torch_unknown or 'the cost model has no figures for this kernel'}"
    return (
        f"torch.nn.GRU's {kind} is expected to take {ratio:.1f} times as long as ours (a model of the time loop, not "
        "measured)"
    )

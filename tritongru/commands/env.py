"""The command ``env``: what a bug report needs (versions, the GPU, torch's precision settings)."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
from typing import Any

import torch

from tritongru.planning import triton_versions
from tritongru.planning.devices import device_facts
from tritongru.planning.instruction_sets import SETS, host_sets, refusal
from tritongru.planning.launches import read_with
from tritongru.planning.plan import fp32_precision


def report() -> dict[str, Any]:
    cudnn = torch.backends.cudnn
    gpu: dict[str, Any] | None = None
    if torch.cuda.is_available():
        facts = device_facts(torch.device("cuda"))
        gpu = {
            "name": facts.name,
            "arch": facts.arch,
            "multiprocessors": facts.multiprocessors,
            "shared_bytes": facts.shared_bytes,
        }
    return {
        "tritongru": _version("tritongru"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "triton": triton_versions.installed(),
        "launches as compiled by Triton": read_with(),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "cudnn": cudnn.version() if cudnn.is_available() else None,  # type: ignore[no-untyped-call]
        "gpu": gpu,
        "llvmlite": _version("llvmlite"),
        "cpu": refusal() or ", ".join(SETS[name].title for name in host_sets()),
        "precision of fp32 recurrence": fp32_precision(),
        "precision of fp32 products": "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee",
        "TRITON_INTERPRET": os.environ.get("TRITON_INTERPRET"),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    found = report()
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        for name, value in found.items():
            print(f"{name}: {value}")
    return 0

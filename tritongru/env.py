"""What a bug report needs: versions, the GPU and torch's precision switches."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import torch

from tritongru import tritons
from tritongru.devices import device_facts
from tritongru.launches import read_with
from tritongru.plan import fp32_precision


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
        "triton": tritons.installed(),
        "launches as compiled by Triton": read_with(),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "cudnn": cudnn.version() if cudnn.is_available() else None,  # type: ignore[no-untyped-call]
        "gpu": gpu,
        "precision of fp32 recurrence": fp32_precision(),
        "precision of fp32 products": "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee",
        "TRITON_INTERPRET": os.environ.get("TRITON_INTERPRET"),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None

"""Kernels are compiled by many processes at once before anything is timed; Triton's disk cache carries them over."""

import os
from collections.abc import Sequence

import torch

from bench.cases import Case
from bench.children import run_all, sentence
from bench.pair import build, random
from bench.parity import quantities, tf32


def compile_cases(cases: Sequence[Case]) -> None:
    """One call of each case with its real sizes, so that whatever a plan derives from them is what gets compiled."""
    device = torch.device("cuda")
    for case in cases:
        try:
            with tf32(case.tf32):
                quantities(build(case, "triton", device).ours, case.mode, random(case, device))
                torch.cuda.synchronize(device)
        except Exception as error:
            raise SystemExit(f"  compiling {case.name}: {sentence(error)}") from None


def warm(cases: Sequence[Case], limit_s: float) -> dict[str, str]:
    """Compile for all cases, one process per (hidden, dtype, mode); returns what failed, and why."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(f"h{case.hidden}-{case.dtype}-{case.mode}", []).append(case)
    jobs = [(name, (group,)) for name, group in groups.items()]
    return run_all(compile_cases, jobs, workers=os.cpu_count() or 1, limit_s=limit_s)

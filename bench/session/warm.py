"""Compile kernels in many processes at once before anything is timed; Triton's disk cache keeps them."""

import os
from collections.abc import Sequence

import torch

from bench.measure.cases import Case
from bench.measure.children import run_all, sentence
from bench.measure.pair import Build, build, random, recomputing
from bench.measure.parity import quantities, tf32
from bench.rivals import exchanges, floor_of
from tritongru import GRU

Job = tuple[Case, Build]


def compile_cases(jobs: Sequence[Job], impl: str) -> None:
    """One call of each case with its real sizes, so that what a plan derives from them is compiled."""
    device = torch.device("cuda")
    failures = []
    for case, make in jobs:
        try:
            with tf32(case.tf32):
                pair, data = make(case, impl, device), random(case, device)
                quantities(pair.ours, case.mode, data)
                if isinstance(pair.ours, GRU) and pair.plan.backward is not None:
                    with recomputing(pair.ours):
                        quantities(pair.ours, case.mode, data)
                if make is build and case.wide and exchanges(pair.plan):
                    floor_of(case, pair, data.h0)()
                torch.cuda.synchronize(device)
        except Exception as error:
            failures.append(f"  compiling {case.name}: {sentence(error)}")
    if failures:
        raise SystemExit("\n".join(failures))


def warm(jobs: Sequence[Job], impl: str, limit_s: float) -> dict[str, str]:
    """Compile for all cases, one process per (hidden, dtype, mode); returns failures, name -> reason."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        case = job[0]
        groups.setdefault(f"h{case.hidden}-{case.dtype}-{case.mode}", []).append(job)
    arguments = [(name, (group, impl)) for name, group in groups.items()]
    return run_all(compile_cases, arguments, workers=os.cpu_count() or 1, limit_s=limit_s)

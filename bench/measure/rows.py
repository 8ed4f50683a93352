"""Rows: one JSON object per case and implementation, on disk before the next case starts."""

import importlib.metadata
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.measure.cases import Case

SHAPE_KEYS = ("hidden", "inputs", "batch", "time", "layers", "directions", "dtype", "tf32", "mode")
CPU_KEYS = ("isa", "threads", "clock", "load", "least_ms", "gflops", "of_peak", "over")  # of the CPU loop alone
MACHINE_KEYS = ("gpu", "arch", "driver", "cpu", "python", "torch", "triton", "cudnn", "llvmlite")
WHERE_KEYS = (*MACHINE_KEYS, "commit", "date", "command", "seed")
KEYS = (
    *("case", *SHAPE_KEYS),
    *("impl", "how", "family", "plan", "ms", "us_per_step", "predicted_us", "predicted_terms", "spread", "rounds"),
    *("peak_mib", "memory", "parity", "repeatable", "rate", "floor_ms", "bound", "reason"),
    *CPU_KEYS,
    *WHERE_KEYS,
)
Row = dict[str, Any]


class NotRows(ValueError):
    """A row file has a line that is not a row."""


def output_of(*command: str) -> str | None:
    """First line of a command's output, or None if the program is missing or failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=Path(__file__).parent)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.split("\n")
    return lines[0].strip() or None if done.returncode == 0 else None


def commit_here() -> str | None:
    """The commit of this code; None outside git, or if git tracks only another project around this one."""
    tracked = output_of("git", "ls-files", "--error-unmatch", Path(__file__).name)
    return tracked and output_of("git", "describe", "--always", "--dirty", "--exclude", "*")


def cpu_name() -> str:
    """Linux's name for the processor; on other systems, what Python knows of it."""
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def version_of(package: str) -> str | None:
    """None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def facts(gpu: str | None, commit: str | None = None, arch: str | None = None, seed: int | None = None) -> Row:
    """The machine and the versions that the rows of this run come from."""
    import torch

    try:
        import triton
    except ImportError:  # a CPU build of torch brings none
        triton = None
    cudnn: Any = torch.backends.cudnn
    driver = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if gpu else None
    return {
        "gpu": gpu,
        "arch": arch,
        "driver": driver,
        "cpu": cpu_name(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton and triton.__version__,
        "cudnn": cudnn.version(),
        "llvmlite": version_of("llvmlite"),
        "commit": commit or commit_here() or "unknown",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "command": shlex.join(["python3", "-m", Path(sys.argv[0]).parent.name, *sys.argv[1:]]),
        "seed": seed,
    }


def number(value: float | None) -> float | None:
    """JSON has no NaN and no infinity: a number that is not finite becomes null."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def row(
    case: Case,
    impl: str,
    where: Row,
    *,
    family: str | None,
    parity: float | None,
    repeatable: bool | None = None,
    memory: str | None = None,
    plan: str | None = None,
    ms: float | None = None,
    predicted_us: float | None = None,
    predicted_terms: Mapping[str, float] | None = None,
    spread: float | None = None,
    rounds: int | None = None,
    peak_mib: float | None = None,
    how: str | None = None,
    floor_ms: float | None = None,
    bound: str | None = None,
    reason: str | None = None,
) -> Row:
    shape = {key: getattr(case, key) for key in SHAPE_KEYS} | {"inputs": case.width}
    result = {
        "how": how,
        "family": family,
        "plan": plan,
        "ms": number(ms),
        "us_per_step": number(None if ms is None else 1000 * ms / case.time),
        "predicted_us": number(predicted_us),
        "predicted_terms": None if predicted_terms is None else {k: number(us) for k, us in predicted_terms.items()},
        "spread": number(spread),
        "rounds": rounds,
        "peak_mib": number(peak_mib),
        "memory": memory,
        "parity": number(parity),
        "repeatable": repeatable,
        "rate": None,
        "floor_ms": number(floor_ms),
        "bound": bound,
        "reason": reason,
        **dict.fromkeys(CPU_KEYS),
    }
    return {"case": case.name, **shape, "impl": impl, **result, **where}


def shapeless(name: str, impl: str, where: Row, *, family: str | None = None, **found: Any) -> Row:
    """A row without a shape: the keys of the shape are null."""
    about = row(Case(1, 1, 1, "fp32", "forward"), impl, where, family=family, parity=None, **found)
    return about | dict.fromkeys(SHAPE_KEYS) | {"case": name, "us_per_step": None}


def file_name(kind: str, gpu: str | None, date: str) -> str:
    device = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") if gpu else ""
    return "-".join(part for part in (kind, device, date) if part) + ".jsonl"


def append(path: Path, row: Row) -> None:
    """Any JSON object, on disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write((json.dumps(row, allow_nan=False) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())


class RowFile:
    """Appends rows; each is complete and on disk when `append` returns, so a stop at any moment loses nothing. The
    folder is created with the first row."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: Row) -> None:
        if tuple(row) != KEYS:
            raise ValueError(f"a row has exactly the keys {', '.join(KEYS)}; got {', '.join(row)}")
        append(self.path, row)


def read(path: Path) -> list[Row]:
    """The rows of a file; keys that did not exist when it was written are null."""
    return [dict.fromkeys(KEYS) | written for written in lines_of(path)]


def read_all(folder: Path) -> list[Row]:
    """The rows of a folder's files, in the order of their names."""
    return [row for path in sorted(folder.glob("*.jsonl")) for row in read(path)]


def lines_of(path: Path) -> list[Row]:
    """Each line of a file, as it was written.

    Raises:
        NotRows: if a line is not a row.
    """
    found = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
        try:
            found.append({**json.loads(line)})
        except (ValueError, TypeError):
            raise NotRows(f"line {number} of {str(path)!r} is not a JSON row; fix or remove it") from None
    return found

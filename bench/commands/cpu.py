"""The gate without a GPU: the overhead of a call through tritongru over nn.GRU on torch's own path, the host's part of
a call, the cost of the import, and the verdict on the CPU loop."""

import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.calls import host
from bench.commands.loop import chosen_cells, judged
from bench.measure import pair
from bench.measure.cases import Case
from bench.measure.rows import Row, RowFile, file_name, row, shapeless
from bench.measure.timing import CpuTimer, interleaved, spread
from bench.session.examine import Budget, introduced
from bench.session.known import known_in
from bench.suites import CPU_CASES

TORCH = f"{pair.OURS}[torch]"  # impl="torch": what runs where no loop can be compiled
ALLOWED = 0.02  # overhead as a part of nn.GRU's time, for the realistic call
IMPORT_REPEATS = 5
IMPORT_CODE = "import time, torch; t = time.perf_counter(); import tritongru; print(time.perf_counter() - t)"


def overhead(case: Case, limit_s: float) -> tuple[dict[str, list[float]], float]:
    """Samples of both, and our relative overhead: the median over neighbouring pairs of samples."""
    device = torch.device("cpu")
    both = pair.build(case, "torch", device)
    samples = interleaved(CpuTimer(), pair.steps_of(both, case, device), rounds=400, limit_s=limit_s)
    pairs = zip(samples[pair.OURS], samples[pair.THEIRS], strict=True)
    return samples, statistics.median(ours / theirs for ours, theirs in pairs) - 1


def import_ms(left: Callable[[], float]) -> list[float]:
    """Milliseconds of `import tritongru` after `import torch`, in fresh processes."""
    taken: list[float] = []
    while len(taken) < IMPORT_REPEATS and (not taken or left() > 0):
        done = subprocess.run([sys.executable, "-c", IMPORT_CODE], capture_output=True, text=True, check=True)
        taken.append(1000 * float(done.stdout))
    return taken


def import_row(taken: list[float], where: Row) -> Row:
    width = spread(taken) if len(taken) > 1 else None
    return shapeless("import", pair.OURS, where, ms=statistics.median(taken), spread=width, rounds=len(taken))


def calls(cases: Sequence[Case], file: RowFile, where: Row, left: Callable[[], float]) -> None:
    for case in cases:
        parity, plan = pair.check(case, "torch", torch.device("cpu"))
        samples, more = overhead(case, min(15.0, left() / 4))
        own = {pair.OURS: (TORCH, plan.family, parity.ours), pair.THEIRS: (pair.THEIRS, "torch", parity.theirs)}
        for name, taken in samples.items():
            times: dict[str, Any] = {"ms": statistics.median(taken), "spread": spread(taken), "rounds": len(taken)}
            impl, family, found = own[name]
            file.append(row(case, impl, where, family=family, parity=found, **times))
        ours, theirs = (1000 * statistics.median(samples[name]) for name in (pair.OURS, pair.THEIRS))
        size = f"T={case.time}, B={case.batch}, H={case.hidden}"
        print(f"Call of {size}: ours {ours:.1f} us, nn.GRU {theirs:.1f} us, overhead {100 * more:+.2f} %", end="")
        if case is CPU_CASES[0]:
            print(f" ({'within' if more <= ALLOWED else 'OVER'} the limit of {100 * ALLOWED:.0f} %).", flush=True)
        else:
            print(f" or {more * theirs:+.2f} us.", flush=True)


def hosts(file: RowFile, where: Row) -> None:
    for family, hidden in host.HIDDEN.items():
        for name, us in host.measured(hidden).items():
            file.append(host.row_of(family, name, us, where))
            direction, _, whole = name.partition("-")
            median, limit = statistics.median(us), host.LIMITS_US[direction]
            print(f"Host, {family} {direction}: {median:.1f} us until ", end="")
            if whole:
                print("the call returns.", flush=True)
            else:
                verdict = "within" if median <= limit else "OVER"
                print(f"the kernel starts ({verdict} the limit of {limit:.0f} us).", flush=True)


def imports(file: RowFile, where: Row, left: Callable[[], float]) -> None:
    taken = import_ms(left)
    file.append(import_row(taken, where))
    print(f"import tritongru adds {statistics.median(taken):.1f} ms to import torch (median of {len(taken)}).")


def without_gpu(only: str, budget: Budget, out: Path, commit: str | None) -> int:
    """The gate. Costs of a call that have rows are not measured again, and with ``only`` they are left out."""
    if chosen_cells(only) is None:
        return 2
    where, _ = introduced(commit)
    file = RowFile(out / file_name("gate-cpu", where["cpu"], where["date"]))
    if not only and not any(row["case"] == "import" for row in known_in(out, where)):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # several threads make more noise than the overhead to be measured
        calls(CPU_CASES, file, where, lambda: budget.left() / 2)
        torch.set_num_threads(threads)
        hosts(file, where)
        imports(file, where, budget.left)
    return judged(only, out, where, budget)

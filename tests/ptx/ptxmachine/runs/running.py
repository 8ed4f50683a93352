"""The run of a case: its operands, the oracle's results, and the kernels' results from the machine."""

from __future__ import annotations

from typing import Any

import loops as untyped_loops
import torch
from tolerance import rounding
from torch import Tensor

from ptxmachine.machine.options import Options
from ptxmachine.runs import single_step
from ptxmachine.runs.cases import SINGLE, Case, Result
from ptxmachine.runs.driver import Host
from ptxmachine.runs.parity import parity
from ptxmachine.runs.session import Recording, Session
from tritongru.kernels.persistent import launch as persistent
from tritongru.kernels.resident import launch as resident
from tritongru.kernels.stepwise import launch as stepwise
from tritongru.planning.launches import AnyLaunch

loops: Any = untyped_loops  # shared with tests that have no types
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FAMILIES: dict[str, Any] = {"resident": resident, "persistent": persistent, "stepwise": stepwise}


def tensors_of(case: Case, blank: bool = False) -> dict[str, Tensor | None]:
    """The operands; ``blank``, for a run of which only the code is looked at: without values."""
    dtype, rows = DTYPES[case.dtype], sum(row_counts(case))
    sizes = case.T, case.B, case.H, case.D, dtype, case.bias, case.h0, case.dy
    if blank:
        with torch.device("meta"):
            shapes = loops.layer_tensors(*sizes, rows=rows)
        found = {name: None if v is None else torch.zeros(v.shape, dtype=dtype) for name, v in shapes.items()}
    else:
        found = loops.layer_tensors(*sizes, rows=rows)
    return found | {name: shifted(found[name]) for name in case.unaligned}


def blank_saved(case: Case) -> tuple[Tensor, Tensor]:
    """In place of the y and the gates that a backward pass begins with."""
    shape, dtype = (sum(row_counts(case)), case.D, case.H), DTYPES[case.dtype]
    return torch.zeros(shape, dtype=dtype), torch.zeros(*shape, 4, dtype=dtype)


def shifted(tensor: Tensor | None) -> Tensor | None:
    if tensor is None:
        return None
    return torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:].view_as(tensor).copy_(tensor)


def lengths_of(case: Case) -> list[int]:
    """Rows' steps in memory, the longest first; of a packed case from T down to 1."""
    if not case.packed:
        return [case.T] * case.B
    return sorted((case.T - b * (case.T - 1) // max(1, case.B - 1) for b in range(case.B)), reverse=True)


def row_counts(case: Case) -> list[int]:
    """Rows of each step."""
    lengths = lengths_of(case)
    return [sum(length > t for length in lengths) for t in range(case.T)]


def offsets_of(case: Case) -> Tensor | None:
    return torch.tensor([0, *torch.tensor(row_counts(case)).cumsum(0)]) if case.packed else None


def ragged_of(case: Case) -> Any:
    """Sequences of every kind: one that ends with the last step, empty ones, lengths out of range, resets at the first
    step, the last one, everywhere, and behind a sequence's end. None of a case without."""
    if case.ragged is None:
        return None
    longest, states = case.ragged
    some = torch.Generator().manual_seed(3)
    at_random = torch.randint(0, longest + 1, (case.B,), generator=some)
    chosen = torch.tensor([longest, 0, case.T + 3 if longest == case.T else longest, -2, 1, longest - 1])
    lengths = torch.cat((chosen, at_random))[: case.B]
    resets = torch.rand(case.T, case.B, generator=some) < 0.3
    resets[[0, longest - 1], :1] = True
    resets[:, 2:3] = True
    resets[:, 5:6] = torch.arange(case.T)[:, None] >= longest - 2
    state = torch.randn(case.D, states, case.H, generator=some) / 2
    return loops.Ragged(lengths, resets, state.to(DTYPES[case.dtype]))


def expected(case: Case, tensors: dict[str, Tensor | None], dtype: torch.dtype) -> list[Tensor]:
    """The oracle's y, hn, gates, dgx, da and dh, of ragged rows d_reset, too."""
    offsets = offsets_of(case)
    if offsets is None:
        return list(loops.expected(tensors, case.B, dtype, ragged_of(case)))
    lengths, rows = lengths_of(case), int(offsets[-1])
    out: list[Tensor] = []
    for length in sorted(set(lengths)):  # rows of equal length go together
        batch = [b for b in range(case.B) if lengths[b] == length]
        own_rows = [int(offsets[t]) + b for t in range(length) for b in batch]
        own = {name: v[own_rows] if v is not None and name in ("gx", "dy") else v for name, v in tensors.items()}
        own |= {name: None if (v := tensors[name]) is None else v[:, batch] for name in ("h0", "dhn")}
        found = loops.expected(own, len(batch), dtype)
        of_batch = [i in (1, 5) for i in range(len(found))]  # hn and dh; the others have a row for each step
        if not out:
            shapes = [
                (case.D, case.B, case.H) if whole else (rows, *v.shape[1:])
                for v, whole in zip(found, of_batch, strict=True)
            ]
            out = [torch.zeros(shape, dtype=dtype) for shape in shapes]
        for total, v, whole in zip(out, found, of_batch, strict=True):
            if whole:
                total[:, batch] = v.to(dtype)
            else:
                total[own_rows] = v.to(dtype)
    return out


def results(
    case: Case, tensors: dict[str, Tensor | None], launch: AnyLaunch, saved: tuple[Tensor, Tensor]
) -> dict[str, Tensor]:
    """What the kernels compute, by name. ``saved``: y and the gates that a backward pass begins with."""
    family, offsets, ragged = FAMILIES[case.family], offsets_of(case), ragged_of(case)
    if case.kernel == "forward":
        if ragged is not None:
            tensors = tensors | {"gx": loops.poisoned(tensors["gx"], ragged, case.B)}
        found = loops.run_forward(family, tensors, launch, case.B, case.gates, offsets, ragged)
        return dict(zip(("y", "hn", "gates"), found, strict=True)) if case.gates else {"y": found[0], "hn": found[1]}
    found = loops.run_backward(family, tensors, *saved, launch, offsets, case.parts, ragged)
    return dict(zip(("dgx", "da", "dh", "d_reset"), found, strict=False))


def digest(case: Case, host: Host) -> str:
    """A hash of the code that the case launches; nothing is run."""
    recording = Recording()
    with host.launching(recording.launch):
        if case.family == SINGLE:
            single_step.results(case, single_step.tensors_of(case))
            return recording.digest()
        results(case, tensors_of(case, blank=True), case.launch(), blank_saved(case))
    return recording.digest()


def run(case: Case, host: Host, options: Options) -> Result:
    """Runs the case in the machine and compares its results with the oracle."""
    if case.family == SINGLE:
        return single_step.run(case, host, options)
    dtype, tensors, session = DTYPES[case.dtype], tensors_of(case), Session(options)
    exact, same = expected(case, tensors, torch.float64), expected(case, tensors, dtype)
    same[5:] = [value.float() for value in same[5:]]  # the kernel leaves dh and d_reset in fp32
    with host.launching(session.launch):
        found = results(case, tensors, case.launch(), (exact[0].to(dtype), exact[2].to(dtype)))
    if word := host.taken_report():
        session.reports["watchdog"] += 1
        session.lines.append(f"watchdog: the host got {word}")
    eps, names = rounding(dtype, case.kind, case.family), list(loops.names_of(case.ragged))
    return Result(
        {name: parity(v, exact[names.index(name)], same[names.index(name)], eps) for name, v in found.items()},
        dict(session.reports),
        session.counts(),
        session.lines[:12],
        session.seconds,
    )

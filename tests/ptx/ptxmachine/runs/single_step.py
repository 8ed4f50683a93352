"""The run of a case of the single step: its operands, the oracle's result, and the kernel's from the machine."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from tolerance import rounding
from torch import Tensor

from ptxmachine.machine.options import Options
from ptxmachine.runs.cases import Case, Result
from ptxmachine.runs.driver import Host
from ptxmachine.runs.parity import parity
from ptxmachine.runs.session import Session
from tritongru import reference
from tritongru.kernels.single_step import launch as single_step

NAMES = ("x", "h", "reset", "w_ih", "w_hh", "b_ih", "b_hh")  # operands in the launcher's order
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def tensors_of(case: Case) -> dict[str, Tensor | None]:
    """The state of a row that begins anew is NaN."""
    B, I, H, dtype = case.B, case.inputs, case.H, DTYPES[case.dtype]
    assert I is not None
    torch.manual_seed(0)

    def some(*shape: int, scale: float = 0.5) -> Tensor:
        return (torch.randn(shape) * scale).to(dtype)

    found: dict[str, Tensor | None] = dict.fromkeys(NAMES)
    found |= {"x": some(B, I), "w_ih": some(3 * H, I, scale=I**-0.5), "w_hh": some(3 * H, H, scale=H**-0.5)}
    if case.bias:
        found |= {"b_ih": some(3 * H), "b_hh": some(3 * H)}
    if case.h0:
        found["h"] = h = some(B, H)
        if case.ragged is not None:
            found["reset"] = reset = torch.arange(B) % 3 == 0
            h[reset] = float("nan")
    return found


def expected(case: Case, tensors: dict[str, Tensor | None], dtype: torch.dtype) -> Tensor:
    """The oracle's hn."""
    given = {name: None if value is None else value.to(dtype) for name, value in tensors.items()}
    x, h = given["x"], given["h"]
    assert x is not None
    h = x.new_zeros(case.B, case.H) if h is None else h.nan_to_num(0.0)
    w_ih, w_hh, b_ih, b_hh = (given[name] for name in NAMES[3:])
    assert w_ih is not None
    assert w_hh is not None
    return reference.forward(x[None], h, w_ih, w_hh, b_ih, b_hh)[1]


def results(case: Case, tensors: dict[str, Tensor | None]) -> dict[str, Tensor]:
    """What the kernel computes in the case's form, by name."""
    found = {name: torch.full((case.B, case.H), float("nan"), dtype=DTYPES[case.dtype]) for name in ("y", "hn")}
    asked = {"form_of": lambda *where: case.single(), "kind": lambda dtype: case.kind}
    operands: dict[str, Any] = {**tensors, **found, "y": found["y"] if case.y else None}
    with mock.patch.dict(vars(single_step), asked):  # whatever torch's precision and the batch size would give
        single_step.step(**operands)
    return found if case.y else {"hn": found["hn"]}


def run(case: Case, host: Host, options: Options) -> Result:
    """Runs the case in the machine and compares its results with the oracle."""
    dtype, tensors, session = DTYPES[case.dtype], tensors_of(case), Session(options)
    exact, same = expected(case, tensors, torch.float64), expected(case, tensors, dtype)
    with host.launching(session.launch):
        found = results(case, tensors)
    eps = rounding(dtype, case.kind, "stepwise")  # fp32 operands are cut off, too
    errors = {name: parity(value, exact, same, eps) for name, value in found.items()}
    return Result(errors, dict(session.reports), session.counts(), session.lines[:12], session.seconds)

"""Functions of the vector language on whole tensors, and how far they are from float64 in units of the last place."""

import ctypes
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import torch
from torch import Tensor

from tritongru.llvm import compiling
from tritongru.llvm.language import I64, PTR, Function, Module, Value
from tritongru.llvm.passes import gate_math
from tritongru.planning.instruction_sets import SETS

DTYPES = {"float": torch.float32, "double": torch.float64}
# Largest errors over the values of ``inexact``, in units of the last place: 2.29 and 2.49; in fp64 1.73 and 2.42.
MOST = {"sigmoid": 2.4, "tanh": 2.6}
EXACT = {"sigmoid": torch.sigmoid, "tanh": torch.tanh}
_engines: list[Any] = []  # which own the code


def engine_of(text: str, isa: str) -> Any:
    """LLVM IR compiled for this CPU, without the cache."""
    machine = compiling._host_machine(isa)
    engine = llvm.create_mcjit_compiler(compiling.optimized(text), machine)
    engine.finalize_object()
    _engines.append(engine)
    return engine


def elementwise(function: Callable[[Function, Value], Value], isa: str, scalar: str) -> Callable[[Tensor], Tensor]:
    m = Module(SETS[isa], scalar)
    with m.function("apply", {"x": PTR, "y": PTR, "count": I64}, public=True) as (f, x, y, count):  # noqa: SIM117
        with f.loop(0, count, m.lanes) as k:
            mask = f.first_lanes(count - k, m.lanes)
            value = function(f, f.masked_load(f.at(x, k, scalar), m.vector, mask))
            f.masked_store(value, f.at(y, k, scalar), mask)
    address = engine_of(m.text(), isa).get_function_address("apply")
    run = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(address)

    def apply(values: Tensor) -> Tensor:
        values = values.contiguous()
        assert values.dtype == DTYPES[scalar]
        found = torch.full_like(values, float("nan"))
        run(values.data_ptr(), found.data_ptr(), values.numel())
        return found

    return apply


def ulps(found: Tensor, exact: Tensor) -> float:
    """The largest error in units of the last place of the exact value, which is in float64 or wider than ``found``."""
    finfo = torch.finfo(found.dtype)
    size = exact.double().abs().clamp(min=finfo.tiny)
    unit = torch.exp2(torch.floor(torch.log2(size))) * finfo.eps
    return ((found.double() - exact).abs() / unit).max().item()


def inexact(name: str, isa: str) -> str:
    """The error over three million values, if it is too large."""
    apply = elementwise(getattr(gate_math, name), isa, "float")
    small = torch.exp2(torch.linspace(-126, 0, 200_001, dtype=torch.float64))
    x = torch.cat([*(torch.linspace(-w, w, 1_000_001, dtype=torch.float64) for w in (87, 8, 1)), small, -small]).float()
    error = ulps(apply(x), EXACT[name](x.double()))
    return "" if error <= MOST[name] else f"{name}: {error:.2f} units of the last place"

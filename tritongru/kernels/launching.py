"""What every launcher needs: the compiler's options and the device of the tensors."""

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from tritongru.arguments.records import GateGradients, Outputs, Part, Recurrence, Saved
from tritongru.kernels.batch_tile import tile_at


def device_of(y: Tensor) -> torch.device:
    """The device on which kernels for y run; the only such place, so that tests can use CPU tensors for a GPU's."""
    return y.device


def on_device_of(y: Tensor) -> AbstractContextManager[Any]:
    device = device_of(y)
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


def kernel_options(y: Tensor, num_warps: int) -> dict[str, Any]:
    """``UPCAST`` and the compiler's options for tensors like y."""
    if device_of(y).type == "cuda":
        return options_of(num_warps, UPCAST=False)
    if not isinstance(tile_at, InterpretedFunction):
        raise RuntimeError("TRITON_INTERPRET=1 was set after the kernels were loaded; set it before the first call")
    return options_of(num_warps, UPCAST=y.dtype == torch.bfloat16)  # the interpreter's dot misreads bfloat16 operands


@functools.cache
def options_of(num_warps: int, **constants: bool) -> dict[str, Any]:
    """Constants of a kernel with the compiler's options for the GPU of this build of torch."""
    backend = "hip" if torch.version.hip else "cuda"
    return {**constants, "num_warps": num_warps, **compiler_options(backend, num_warps)}


def compiler_options(backend: str, num_warps: int) -> dict[str, Any]:
    """Fused multiply-adds are requested explicitly, because their default changes between versions of Triton;
    ``num_stages`` leaves pipelining to the loops that request it. Without ``maxnreg`` ptxas spills a few registers to
    make room for a second program, for which there is no shared memory."""
    options: dict[str, Any] = {"enable_fp_fusion": True, "num_stages": 1}
    if backend == "cuda":
        options["maxnreg"] = min(255, 65536 // (32 * num_warps))
    return options


def forward_sizes(recurrence: Recurrence, outputs: Outputs) -> dict[str, Any]:
    """The arguments of every forward kernel besides the tensors that it always has."""
    (D, B, H), N = outputs.hn.shape, outputs.y.shape[0]
    return {
        "T": recurrence.rows.steps(N),
        "B": B,
        "N": N,
        "D": D,
        "H": H,
        "USE_BIAS": recurrence.b_hh is not None,
        "USE_H0": recurrence.h0 is not None,
        "SAVE_GATES": outputs.gates.numel() > 0,
        "PACKED": recurrence.rows.offsets is not None,
        **ragged_arguments(recurrence),
    }


def backward_sizes(
    dy: Tensor | None, dh: Tensor, recurrence: Recurrence, saved: Saved, found: GateGradients, part: Part
) -> dict[str, Any]:
    """The arguments of every backward kernel besides the tensors that it always has."""
    (D, B, H), N = dh.shape, saved.y.shape[0]
    T = recurrence.rows.steps(N)
    return {
        "T": T,
        "B": B,
        "N": N,
        "start": part.start,
        "count": part.steps(T),
        "D": D,
        "H": H,
        "USE_H0": recurrence.h0 is not None,
        "USE_DY": dy is not None,
        "PACKED": recurrence.rows.offsets is not None,
        "d_reset": found.reset_state,
        **ragged_arguments(recurrence),
    }


def ragged_arguments(recurrence: Recurrence) -> dict[str, Any]:
    """What a kernel gets of ragged rows; other rows take the defaults, with which its code is as without."""
    rows, reset_state = recurrence.rows, recurrence.reset_state
    if not rows.ragged:
        return {}
    if rows.lengths is None or rows.resets is None or reset_state is None or rows.offsets is not None:
        raise ValueError("ragged rows need lengths, resets and a reset state, and are not packed")
    return {
        "lengths": rows.lengths,
        "resets": rows.resets,
        "reset_state": reset_state,
        "reset_rows": reset_state.shape[1],
        "RAGGED": True,
    }

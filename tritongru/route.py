"""Whether a call runs the kernels or torch's own GRU, decided once for each kind of layer."""

from __future__ import annotations

import functools
import logging
import os
from typing import NamedTuple

import torch

from tritongru.planning import triton_versions
from tritongru.planning.cpu_plan import refusal_by_size, refusal_on_cpu
from tritongru.planning.devices import device_facts
from tritongru.planning.instruction_sets import INSTALL, host_sets, refusal
from tritongru.planning.plan import limits_on, plan_on, precision_of

logger = logging.getLogger("tritongru")
NO_RESETS = "torch's own GRU has no resets, so it runs one time step at a time"


class Route(NamedTuple):
    """Whether and how kernels of this package run a layer. ``refusal``: why they cannot, or an empty string;
    ``family``: of ``FAMILIES``. For Triton, ``largest`` and ``shortest``: the largest batch and the shortest length for
    which ``impl="auto"`` uses them; ``beyond``: why no larger batch. For the loop on a CPU, ``hidden`` and
    ``training``, which select the measurements. ``device_bytes``: memory of the device."""

    refusal: str
    family: str = "triton"
    beyond: str = ""
    largest: int = 0
    shortest: int = 0
    device_bytes: int = 0
    hidden: int = 0
    training: bool = False


def asks_for_kernels(impl: str, device: torch.device) -> bool:
    """Whether the plan is consulted at all; if not, the reason is logged once, except for ``impl="torch"``."""
    if impl == "torch":
        return False
    if impl != "auto" or device.type == "cuda":
        return True
    reason = _missing_on_cpu() if device.type == "cpu" else _missing(device, False)
    if not reason:
        return True
    log_once(reason)
    return False


def route_of(
    impl: str,
    hidden: int,
    dtype: torch.dtype,
    device: torch.device,
    directions: int,
    training: bool,
    ragged: bool = False,
) -> Route | None:
    """The route to the kernels, or None if torch's GRU runs whatever the batch and the number of steps. ``ragged``:
    with lengths or resets, for which a few sizes have no kernel.

    Raises:
        RuntimeError: if ``impl="triton"`` or ``impl="llvm"`` cannot run the layer.
    """
    family = "llvm" if impl == "llvm" or (impl == "auto" and device.type == "cpu") else "triton"
    route = _route(family, hidden, dtype, device, directions, training, ragged)
    if not route.refusal:
        return route
    if impl != "auto":
        raise RuntimeError(f"impl={impl!r} cannot run this layer: {route.refusal} (impl='auto' runs torch's GRU here)")
    log_once(route.refusal, warn=device.type == "cuda" and not _installed("triton"))
    return None


def takes(route: Route, impl: str, batch: int, T: int) -> bool:
    """Whether a call of this size takes the route: always if ``impl`` names it."""
    if route.family == "llvm":
        if impl != "auto":
            return True
        size = route.hidden, route.training, T, batch, torch.get_num_threads()
        reason = refusal_by_size(host_sets()[0], *size)
        if reason:
            log_once(reason)
        return not reason
    if impl == "auto" and batch > route.largest:
        log_once(f"for batch sizes of {route.largest + 1} and more: {route.beyond}")
        return False
    if impl == "auto" and route.shortest > T:
        log_once(f"with fewer than {route.shortest} time steps, launches around the loop cost more than the loop saves")
        return False
    return True


def _route(
    family: str, hidden: int, dtype: torch.dtype, device: torch.device, directions: int, training: bool, ragged: bool
) -> Route:
    if family == "llvm":
        return _route_on_cpu(hidden, dtype, device, training)
    interpreted = device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    return _route_under(hidden, dtype, device, directions, training, ragged, precision_of(dtype), interpreted)


@functools.lru_cache(maxsize=1024)
def _route_on_cpu(hidden: int, dtype: torch.dtype, device: torch.device, training: bool) -> Route:
    refusal = refusal_on_cpu(device, dtype)
    if refusal:
        return Route(refusal, "llvm")
    return Route("", "llvm", hidden=hidden, training=training, device_bytes=device_facts(device).memory_bytes)


@functools.lru_cache(maxsize=1024)
def _route_under(
    hidden: int,
    dtype: torch.dtype,
    device: torch.device,
    directions: int,
    training: bool,
    ragged: bool,
    precision: str,  # as `precision_of` reads it
    interpreted: bool,
) -> Route:
    refusal = _missing(device, interpreted)
    if refusal:
        return Route(refusal)
    facts = device_facts(device)
    answer = plan_on(facts, hidden, dtype, directions=directions, training=training, impl="triton", lengths=ragged)
    if answer.family == "torch":
        return Route(answer.reason)
    limits = limits_on(facts, hidden, dtype, directions=directions, training=training)
    return Route("", "triton", limits.reason, limits.largest, limits.shortest, facts.memory_bytes)


def _missing(device: torch.device, interpreted: bool) -> str:
    """Why no kernel can run on the device, or an empty string."""
    if device.type == "cpu" and not interpreted:
        return (
            "the tensors are on the CPU; move the module and the input to a GPU, or set TRITON_INTERPRET=1 before "
            "the first call to run the kernels in Triton's interpreter"
        )
    if device.type not in ("cpu", "cuda"):
        return f"the tensors are on the device {device}, but the kernels run only on CUDA and ROCm devices"
    if not _installed("triton"):
        return "the package triton is not installed; install it with: pip install triton"
    numpy = _installed("numpy")
    if device.type == "cpu" and _installed("triton") < (3, 7) and numpy >= (2, 4):
        found = ".".join(map(str, numpy))
        return f"the interpreter of Triton 3.6 needs NumPy below 2.4, got {found}; run: pip install 'numpy<2.4'"
    return ""


def _missing_on_cpu() -> str:
    """Why no loop can be compiled here, with the remedy, or an empty string."""
    reason = refusal()
    return (
        f"{reason} (that usually makes the layer several times faster on this CPU)"
        if reason.endswith(INSTALL)
        else reason
    )


@functools.cache
def _installed(package: str) -> tuple[int, ...]:
    """Major and minor version of a package, or empty if it is not installed."""
    found = triton_versions.version_of(*(triton_versions.DISTRIBUTIONS if package == "triton" else (package,)))
    return () if found is None else triton_versions.minor_of(found) or (0,)


def log_once(reason: str, warn: bool = False) -> None:
    """Logs a reason for using torch's GRU, once per process."""
    _log(f"falling back to torch's own GRU: {reason}", logging.WARNING if warn else logging.INFO)


def log_no_resets() -> None:
    """Likewise, also where torch's GRU was asked for."""
    _log(NO_RESETS, logging.INFO)


# What torch.compiler.assume_constant_result sets: the compiler runs these functions while it traces. The decorator
# itself would import the compiler, which takes seconds.
_route._dynamo_marked_constant = True  # type: ignore[attr-defined]
_missing_on_cpu._dynamo_marked_constant = True  # type: ignore[attr-defined]
log_once._dynamo_marked_constant = True  # type: ignore[attr-defined]
log_no_resets._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _log(text: str, level: int) -> None:
    logger.log(level, "%s", text)

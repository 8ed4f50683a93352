"""Whether a call runs the kernels or torch's own GRU, decided once for each kind of layer."""

from __future__ import annotations

import functools
import logging
import os
from typing import NamedTuple

import torch

from tritongru.planning import triton_versions
from tritongru.planning.devices import device_facts
from tritongru.planning.plan import limits_on, plan_on, precision_of

logger = logging.getLogger("tritongru")


class Route(NamedTuple):
    """Whether and where Triton runs a layer. ``refusal``: why it cannot, or an empty string; ``largest``, ``shortest``:
    up to which batch and from which length on ``impl="auto"`` takes it, and why no larger batch; ``device_bytes``:
    memory of the device."""

    refusal: str
    beyond: str = ""
    largest: int = 0
    shortest: int = 0
    device_bytes: int = 0


def asks_for_kernels(impl: str, device: torch.device) -> bool:
    """Whether the plan is asked at all; if not, and not because torch was asked for, the reason is logged once."""
    if impl == "torch":
        return False
    if impl == "triton" or device.type == "cuda":
        return True
    on_cpu = "the tensors are on the CPU, and the kernels need a GPU"
    log_once(on_cpu if device.type == "cpu" else _missing(device, False))
    return False


def route_of(
    impl: str, hidden: int, dtype: torch.dtype, device: torch.device, directions: int, training: bool
) -> Route | None:
    """The way to the kernels, or None where torch's GRU runs whatever the batch and the number of steps.

    Raises:
        RuntimeError: for ``impl="triton"`` where no kernel can run the layer.
    """
    route = _route(hidden, dtype, device, directions, training)
    if not route.refusal:
        return route
    if impl == "triton":
        raise RuntimeError(f"impl='triton' cannot run this layer: {route.refusal} (impl='auto' runs torch's GRU here)")
    log_once(route.refusal, warn=device.type == "cuda" and not _installed("triton"))
    return None


def takes(route: Route, impl: str, batch: int, T: int) -> bool:
    """Whether a call of this size goes that way: always with ``impl="triton"``."""
    if impl == "auto" and batch > route.largest:
        log_once(f"from a batch of {route.largest + 1} on: {route.beyond}")
        return False
    if impl == "auto" and route.shortest > T:
        log_once(f"with fewer than {route.shortest} steps: launches around the time loop cost more than the loop saves")
        return False
    return True


def _route(hidden: int, dtype: torch.dtype, device: torch.device, directions: int, training: bool) -> Route:
    interpreted = device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    return _route_under(hidden, dtype, device, directions, training, precision_of(dtype), interpreted)


@functools.lru_cache(maxsize=1024)
def _route_under(
    hidden: int,
    dtype: torch.dtype,
    device: torch.device,
    directions: int,
    training: bool,
    precision: str,  # as `precision_of` reads it
    interpreted: bool,
) -> Route:
    refusal = _missing(device, interpreted)
    if refusal:
        return Route(refusal)
    facts = device_facts(device)
    answer = plan_on(facts, hidden, dtype, directions=directions, training=training, impl="triton")
    if answer.family == "torch":
        return Route(answer.reason)
    limits = limits_on(facts, hidden, dtype, directions=directions, training=training)
    return Route("", limits.reason, limits.largest, limits.shortest, facts.memory_bytes)


def _missing(device: torch.device, interpreted: bool) -> str:
    """Why no kernel can run on the device as things are, or an empty string."""
    if device.type == "cpu" and not interpreted:
        return (
            "the tensors are on the CPU; move module and input to a GPU, or set TRITON_INTERPRET=1 before the first "
            "call to run the kernels in Triton's interpreter"
        )
    if device.type not in ("cpu", "cuda"):
        return f"the tensors are on the device {device}, and the kernels run on CUDA and ROCm devices"
    if not _installed("triton"):
        return "the package triton is not installed; install it with: pip install triton"
    numpy = _installed("numpy")
    if device.type == "cpu" and _installed("triton") < (3, 7) and numpy >= (2, 4):
        found = ".".join(map(str, numpy))
        return f"the interpreter of Triton 3.6 needs NumPy below 2.4, got {found}; run: pip install 'numpy<2.4'"
    return ""


@functools.cache
def _installed(package: str) -> tuple[int, ...]:
    """Major and minor version of a package, or nothing where it is not installed."""
    found = triton_versions.version_of(*(triton_versions.DISTRIBUTIONS if package == "triton" else (package,)))
    return () if found is None else triton_versions.minor_of(found) or (0,)


def log_once(reason: str, warn: bool = False) -> None:
    """Each reason for torch's GRU is logged once in a process."""
    _log(reason, logging.WARNING if warn else logging.INFO)


# What torch.compiler.assume_constant_result sets: a compiler runs them while it traces. The decorator itself would
# import the compiler, which takes seconds.
_route._dynamo_marked_constant = True  # type: ignore[attr-defined]
log_once._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _log(reason: str, level: int) -> None:
    logger.log(level, "torch's own GRU runs: %s", reason)

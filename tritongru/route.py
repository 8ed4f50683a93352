"""Whether a call runs the kernels or torch's own GRU, decided once for each kind of layer."""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import os
from typing import NamedTuple

import torch

from tritongru.devices import device_facts
from tritongru.plan import limits_on, plan_on, precision_of

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
    return impl == "triton" or (impl == "auto" and device.type == "cuda")


def taken(
    impl: str,
    hidden: int,
    dtype: torch.dtype,
    device: torch.device,
    directions: int,
    training: bool,
    batch: int,
    T: int,
) -> Route | None:
    """The way to the kernels, or None for torch's GRU.

    Raises:
        RuntimeError: for ``impl="triton"`` where no kernel can run the layer.
    """
    route = _route(hidden, dtype, device, directions, training)
    if route.refusal and impl == "triton":
        raise RuntimeError(f"impl='triton' cannot run this layer: {route.refusal} (impl='auto' runs torch's GRU here)")
    if route.refusal:
        return None
    if impl == "auto" and batch > route.largest:
        if not torch.compiler.is_compiling():
            _log_once(f"from a batch of {route.largest + 1} on: {route.beyond}")
        return None
    return None if impl == "auto" and route.shortest > T else route


def _route(hidden: int, dtype: torch.dtype, device: torch.device, directions: int, training: bool) -> Route:
    """Each reason for torch is logged once."""
    interpreted = device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    return _route_under(hidden, dtype, device, directions, training, precision_of(dtype), interpreted)


# What torch.compiler.assume_constant_result sets; the decorator itself would import the compiler, which takes seconds.
_route._dynamo_marked_constant = True  # type: ignore[attr-defined]


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
    if device.type == "cpu" and not interpreted:
        return Route(
            "the tensors are on the CPU; move module and input to a GPU, or set TRITON_INTERPRET=1 before the first "
            "call to run the kernels in Triton's interpreter"
        )
    if device.type not in ("cpu", "cuda"):
        return Route(f"the tensors are on the device {device}, and the kernels run on CUDA and ROCm devices")
    if not _installed("triton"):
        return Route("the package triton is not installed; install it with: pip install triton")
    numpy = _installed("numpy")
    if device.type == "cpu" and _installed("triton") < (3, 7) and numpy >= (2, 4):
        found = ".".join(map(str, numpy))
        return Route(f"the interpreter of Triton 3.6 needs NumPy below 2.4, got {found}; run: pip install 'numpy<2.4'")
    facts = device_facts(device)
    answer = plan_on(facts, hidden, dtype, directions=directions, training=training, impl="triton")
    if answer.family == "torch":
        _log_once(answer.reason)
        return Route(answer.reason)
    limits = limits_on(facts, hidden, dtype, directions=directions, training=training)
    return Route("", limits.reason, limits.largest, limits.shortest, facts.memory_bytes)


@functools.cache
def _installed(package: str) -> tuple[int, ...]:
    """Major and minor version of a package, or nothing where it is not installed."""
    try:
        return tuple(int(number) for number in importlib.metadata.version(package).split(".")[:2])
    except importlib.metadata.PackageNotFoundError:
        return ()


@functools.cache
def _log_once(reason: str) -> None:
    logger.info("torch's own GRU runs: %s", reason)

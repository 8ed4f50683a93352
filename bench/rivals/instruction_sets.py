"""Compiles the CPU loop for a given instruction set instead of the host's best."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from unittest import mock

from tritongru import ops
from tritongru.interop import inference_ops
from tritongru.planning.instruction_sets import host_sets

NATIVE, BESIDE = "native", {"avx512": ("avx2",)}  # measured by default beside the host's best
CHOOSERS = (ops, inference_ops)  # modules that select the host's best set


@contextmanager
def compiled_for(isa: str) -> Iterator[None]:
    """Within this context, layers and cells with ``impl="llvm"`` run the loop compiled for this set."""

    def chosen() -> tuple[str, ...]:  # as fast as the original; calling a Mock takes longer than a step
        return (isa,)

    with ExitStack() as stack:
        if isa != host_sets()[0]:
            for module in CHOOSERS:
                stack.enter_context(mock.patch.object(module, "host_sets", chosen))
        yield


def sets_of(asked: Sequence[str]) -> tuple[str, ...]:
    """The requested sets, best first; by default the host's best and the one that many users have.

    Raises:
        ValueError: if this CPU lacks a requested set.
    """
    known = host_sets()
    wanted = {known[0] if name == NATIVE else name for name in asked or (NATIVE, *BESIDE.get(known[0], ()))}
    lacking = sorted(wanted - set(known))
    if lacking:
        raise ValueError(f"this CPU has no {', '.join(lacking)}; it has {', '.join(known)}")
    return tuple(name for name in known if name in wanted)

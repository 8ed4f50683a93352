"""The loop for CPUs, compiled for an instruction set that is given, whatever is the host's best."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from unittest import mock

from tritongru import ops
from tritongru.interop import inference_ops
from tritongru.planning.instruction_sets import host_sets

NATIVE, BESIDE = "native", {"avx512": ("avx2",)}  # sets that are measured by default besides the host's best
CHOOSERS = (ops, inference_ops)  # who asks for the host's sets and takes the best


@contextmanager
def compiled_for(isa: str) -> Iterator[None]:
    """Inside, layers and cells with ``impl="llvm"`` run the loop for this set."""

    def chosen() -> tuple[str, ...]:  # as fast as what it replaces: a call of a Mock takes longer than a step
        return (isa,)

    with ExitStack() as stack:
        if isa != host_sets()[0]:
            for module in CHOOSERS:
                stack.enter_context(mock.patch.object(module, "host_sets", chosen))
        yield


def sets_of(asked: Sequence[str]) -> tuple[str, ...]:
    """Those that are asked for, the best first; by default the host's best, and what many users have.

    Raises:
        ValueError: if this CPU lacks one of them.
    """
    known = host_sets()
    wanted = {known[0] if name == NATIVE else name for name in asked or (NATIVE, *BESIDE.get(known[0], ()))}
    lacking = sorted(wanted - set(known))
    if lacking:
        raise ValueError(f"this CPU has no {', '.join(lacking)}; it has {', '.join(known)}")
    return tuple(name for name in known if name in wanted)

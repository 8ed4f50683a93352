"""Which Triton is installed, and which version's readings in the launch tables are used for it.

What a compiler makes of a kernel (registers, stack, shared memory, instructions) changes from one Triton to the next,
so the tables hold readings of several. Triton itself is not imported.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Sequence

DISTRIBUTIONS = ("triton", "pytorch-triton", "triton-rocm", "pytorch-triton-rocm")


@functools.cache
def installed() -> str | None:
    """The version of Triton, under any of its distribution names."""
    return version_of(*DISTRIBUTIONS)


def version_of(*names: str) -> str | None:
    """The version of the first of these distributions that is installed."""
    import importlib.metadata

    for name in names:
        try:
            return importlib.metadata.version(name) or ""  # None with broken metadata
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def minor_of(version: str) -> tuple[int, ...]:
    """(3, 7) for 3.7.1 and 3.7rc1; empty without numbers."""
    return _numbers(version)[:2]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def nearest(version: str | None, known: Sequence[str]) -> str:
    """The version itself, if it has readings. Else the newest with readings whose minor version is not newer, or else
    the oldest. Without an installed Triton the newest of all, for plans of other machines."""
    ordered = sorted(known, key=_numbers)
    if not version or not minor_of(version):
        return ordered[-1]
    if version in known:
        return version
    return next((one for one in reversed(ordered) if minor_of(one) <= minor_of(version)), ordered[0])


def has_fences(version: str | None) -> bool:
    """Whether this Triton orders copies before the products of warp groups that read them (docs/kernels.md)."""
    return minor_of(version or "") >= (3, 7)


def has_readings(version: str | None, known: Sequence[str]) -> bool:
    return version is None or minor_of(version) in map(minor_of, known)


def read_with(known: Sequence[str]) -> str:
    """The version among ``known`` whose readings this process uses; logged if the installed version has none."""
    version = installed()
    stands = nearest(version, known)
    if not has_readings(version, known):
        logging.getLogger("tritongru").info(
            "the launch tables have no readings for Triton %s; using those for Triton %s", version, stands
        )
    return stands

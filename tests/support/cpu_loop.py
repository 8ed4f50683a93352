"""Whether this machine compiles the loop for CPUs, and how one without llvmlite behaves."""

import contextlib
from collections.abc import Iterator, Sequence
from unittest import mock

import pytest

from tritongru import ops, route
from tritongru.interop import inference_ops
from tritongru.planning import cpu_plan, devices, instruction_sets, plan

HAS_LOOP = not instruction_sets.refusal()
needs_loop = pytest.mark.skipif(not HAS_LOOP, reason=f"no loop for this CPU: {instruction_sets.refusal()}")
CACHED = (instruction_sets.refusal, instruction_sets.host_sets, devices._cpu_facts, plan.plan, cpu_plan._table)
CACHED += (route._route_on_cpu, route._route_under, route._installed, route._log, ops._loop_of)
CACHED += (inference_ops._least, cpu_plan.takes_cell, cpu_plan.nearest, cpu_plan._of)


def forget() -> None:
    """What was found out about this machine, and what was said."""
    for function in CACHED:
        function.cache_clear()


@contextlib.contextmanager
def llvmlite_of(*version: int) -> Iterator[None]:
    """With another version of llvmlite or, by default, without it."""
    forget()
    with mock.patch.object(instruction_sets, "_llvmlite", return_value=version):
        yield
    forget()


@contextlib.contextmanager
def table_of(*rows: dict[str, str | int], cells: Sequence[dict[str, str | float]] = ()) -> Iterator[None]:
    """With other rows and cells of what was measured."""
    forget()
    parts = {"rows": list(rows), "cells": list(cells)}
    with mock.patch.object(cpu_plan, "_table", lambda part="rows": parts[part]):
        yield
    forget()

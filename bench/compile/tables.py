"""The launch tables on disk: a configuration per row, with the readings of several Triton versions."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from tritongru.planning import launches, plan, triton_versions
from tritongru.planning.launches import Row

TABLES = Path(__file__).parents[2] / "tritongru" / "planning" / "tables"
PAGE = "3.7.1"  # Triton whose readings the documents show: the one of the torch that their rows were made with
HOME = "sm_90"  # the chip whose instructions and wavefronts are counted
READ = ("shared_bytes", "registers", "instructions", "barriers", "tensor_core", "wavefronts", "spills_on", "faults")


def unread(row: Row) -> Row:
    """A new row: readings made while searching belong to one Triton, and `readings` makes them again."""
    return {name: value for name, value in row.items() if name not in READ} | {"readings": {}}


def write(family: str, rows: Iterable[Row]) -> None:
    """Atomically, so that nobody reads half a table."""
    rows = [*rows]
    for row in rows:
        row["readings"] = dict(sorted(row["readings"].items(), key=lambda item: triton_versions.minor_of(item[0])))
    path = TABLES / f"{family}.json"
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    temporary.replace(path)


@contextmanager
def as_read_with(version: str) -> Iterator[None]:
    """Makes the plan use the readings of this Triton, whichever is installed."""
    tables = (launches.launches, launches.persistent_launches, launches.stepwise_launches, plan.plan, plan.limits)

    def forget() -> None:
        for table in tables:
            table.cache_clear()

    with mock.patch.object(launches, "read_with", return_value=version):
        forget()
        try:
            yield
        finally:
            forget()

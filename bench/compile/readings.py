"""Readings of the tables' rows with the installed Triton, written into the tables beside those of other versions.

Each row is compiled for sm_90 in two forms and for every other chip in the more demanding one (in both if registers are
scarce); a form represents the many options that a kernel is compiled with. For ragged rows a kernel has code of its
own, compiled likewise, whose readings stand beside the others as "ragged".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from typing import Any

from bench.compile import machine_code, persistent, resident, stepwise
from bench.compile.machine_code import Facts
from bench.compile.tables import HOME, write
from tritongru.planning import triton_versions
from tritongru.planning.devices import GPUS
from tritongru.planning.launches import Row, launch_of, rows_of

CHIPS = {"cuda": (HOME, "sm_80", "sm_86", "sm_100", "sm_120"), "hip": ("gfx942", "gfx950")}
SCARCE = 240  # of 255 registers; above this another form may spill even if the most demanding does not
COUNTED = ("instructions", "barriers", "tensor_core", "loads")
FORMS: dict[str, Callable[..., Facts]] = {
    "resident": resident.compile_form,
    "persistent": persistent.compile_form,
    "stepwise": stepwise.compile_form,
}
EVERY = {"resident": (2, 5), "persistent": (8, 14), "stepwise": (1, 4)}  # tests compile every n-th row: HOME, others
RAGGED = "ragged"  # what their readings are called
RAGGED_FORMS = tuple(name for name, form in machine_code.FORMS.items() if form.ragged)
Item = tuple[str, Row, str, tuple[str, ...]]  # family, row, chip, names of forms


def form_names(chip: str, reading: Mapping[str, Any]) -> tuple[str, ...]:
    """Those of padded and packed rows."""
    one_tells = chip != HOME and (reading.get("registers") or 255) <= SCARCE
    return ("demanding",) if one_tells else ("plain", "demanding")


def ragged_names(chip: str, registers: int | None) -> tuple[str, ...]:
    """Those of ragged rows, of which the first needs the most registers and the next the most shared memory."""
    if (registers or 255) > SCARCE:
        return RAGGED_FORMS
    return RAGGED_FORMS[:2] if chip == HOME else RAGGED_FORMS[:1]


def compile_form(family: str, row: Row, name: str, chip: str) -> Facts:
    """One form of a row, of `machine_code.FORMS`."""
    return FORMS[family](row, launch_of(family, row), name, chip, counts=chip == HOME and name == "plain")


def read(item: Item) -> dict[str, Facts]:
    family, row, chip, names = item
    found = {name: compile_form(family, row, name, chip) for name in names}
    more = ragged_names(chip, max(found[name].registers or 255 for name in names if name in RAGGED_FORMS))
    return found | {name: compile_form(family, row, name, chip) for name in more if name not in found}


def reading_of(found: Mapping[str, Facts], chip: str, before: Mapping[str, Any]) -> dict[str, Any]:
    """A reading extended by one more chip; HOME comes first and starts a new one, without the wavefronts of code that
    may have changed. With ragged forms alone the rest stays as it is."""
    ragged = [one for name, one in found.items() if name in RAGGED_FORMS]
    if ragged:
        started = before.get(RAGGED, {}) if chip != HOME else {}
        others = {name: one for name, one in found.items() if name not in RAGGED_FORMS}
        return {
            **(reading_of(others, chip, before) if others else before),
            RAGGED: ragged_reading_of(ragged, chip, started),
        }
    facts = [*found.values()]
    shared, stack = max(one.shared_bytes for one in facts), max(one.stack for one in facts)
    if chip != HOME and before:
        return {
            **before,
            "shared_bytes": max(shared, before["shared_bytes"]),
            "stack": before["stack"] | {chip: stack},
        }
    plain = found.get("plain", facts[0])
    return {
        "shared_bytes": shared,
        "registers": max((one.registers for one in facts if one.registers is not None), default=None),
        **{name: getattr(plain, name) for name in COUNTED},
        "stack": {chip: stack},
        "faults": sorted({fault for one in facts for fault in one.faults}),
    }


def ragged_reading_of(facts: Sequence[Facts], chip: str, before: Mapping[str, Any]) -> dict[str, Any]:
    """Of the ragged forms; counts and wavefronts, by which the plan compares launches, are the plain form's."""
    first = {
        "registers": max((one.registers for one in facts if one.registers is not None), default=None),
        "faults": sorted({fault for one in facts for fault in one.faults}),
    }
    return {
        "shared_bytes": max(before.get("shared_bytes", 0), *(one.shared_bytes for one in facts)),
        **{name: before.get(name, value) for name, value in first.items()},
        "stack": {**before.get("stack", {}), chip: max(one.stack for one in facts)},
    }


def has_room(row: Row, chip: str) -> bool:
    """Whether to compile for a chip: only if the row's shared memory, as some Triton compiled it, may fit."""
    most = max(gpu.shared_bytes for gpu in GPUS.values() if gpu.family == chip)
    return chip == HOME or min((one["shared_bytes"] for one in row["readings"].values()), default=0) <= most


def record(chips: Sequence[str], families: Sequence[str], jobs: int, ragged: bool = False) -> None:
    """Reads every row, or only its ``ragged`` forms, and writes each table after each chip."""
    version = triton_versions.installed()
    if version is None:
        raise SystemExit("no Triton is installed, so nothing can be compiled")
    with ProcessPoolExecutor(jobs) as pool:
        for chip in chips:
            for family in families:
                rows = rows_of(family)
                some = [row for row in rows if chip in CHIPS[row["backend"]] and has_room(row, chip)]
                extends = ragged or chip in CHIPS["cuda"][1:]
                if unread := sum(extends and version not in row["readings"] for row in some):
                    raise SystemExit(
                        f"{unread} rows of {family} have no reading with Triton {version}; read {HOME} first"
                    )
                items = [(family, row, chip, asked(row["readings"].get(version, {}), chip, ragged)) for row in some]
                for row, found in zip(some, pool.map(read, items, chunksize=4), strict=True):
                    row["readings"][version] = reading_of(found, chip, row["readings"].get(version, {}))
                write(family, rows)
                found_now = [row["readings"][version] for row in some]
                spilling = sum(bool(reading["stack"].get(chip)) for reading in found_now)
                of_ragged = sum(bool(reading[RAGGED]["stack"][chip]) for reading in found_now)
                print(
                    f"Triton {version}, {chip}, {family}: {len(some)} rows, {spilling} of them spill, {of_ragged} for "
                    "ragged rows",
                    flush=True,
                )


def asked(reading: Mapping[str, Any], chip: str, ragged: bool) -> tuple[str, ...]:
    """Names of the forms to begin with: at HOME the registers are not known yet."""
    own = ragged_names(chip, reading[RAGGED]["registers"] if chip != HOME and RAGGED in reading else 1)
    return own if ragged else (*form_names(chip, reading), *own)


def sample(chip: str, kernel: str, everything: bool) -> Iterator[tuple[str, Row, tuple[str, ...]]]:
    """(family, row, names of forms) of a kernel: of the rows read, some of each kind, varying by chip."""
    family, _, name = kernel.rpartition("-")
    family = family or "resident"
    version = triton_versions.installed() or ""
    rows = [row for row in rows_of(family) if row["kernel"] == name]
    rows = [row for row in rows if chip in row["readings"].get(version, {"stack": ()})["stack"]]
    every = 1 if everything else EVERY[family][chip != HOME]
    part = [chip for chips in CHIPS.values() for chip in chips].index(chip) % every
    kinds = [[row for row in rows if row["kind"] == kind] for kind in sorted({row["kind"] for row in rows})]
    some = [row for own in kinds for row in own[part % min(every, len(own)) :: every]]
    for i, row in enumerate(some):
        reading = row["readings"][version]
        names = form_names(chip, reading)
        if chip in reading.get(RAGGED, {"stack": ()})["stack"]:
            names += ragged_names(chip, reading[RAGGED]["registers"])
        yield family, row, names if everything else (names[i % len(names)],)


def check(chip: str, kernel: str, everything: bool) -> None:
    """Compiles a part of the rows and prints each with its readings and what was found, as a line of JSON."""
    rows = [*sample(chip, kernel, everything)]
    if not rows:
        raise SystemExit(f"no row of {kernel} has a reading for {chip} with Triton {triton_versions.installed()}")
    for family, row, names in rows:
        found = {name: asdict(compile_form(family, row, name, chip)) for name in names}
        print(json.dumps({"family": family, "row": row, "found": found}), flush=True)

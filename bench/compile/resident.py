"""The table of resident launches: the configurations that compile well, judged by their machine code."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

from bench.compile.machine_code import FORMS, Facts, compile_for, dtype_of
from bench.compile.tables import unread, write
from bench.compile.wavefronts import Item, counted
from tritongru.planning.candidates import resident_cost
from tritongru.planning.devices import GPUS
from tritongru.planning.launches import BLOCK_B, Launch, Row, chunks_of, dot_precision

SIZES = {"16-bit": range(32, 193, 16), "tf32": range(32, 129, 16), "ieee": range(32, 97, 16)}
# Of 255: a launch that needs more may spill on another chip or with another option, and with 4 warps it does.
SPARE_REGISTERS = 248
ARCHS = {"cuda": ("sm_90", "sm_80"), "hip": ("gfx942", "gfx950")}
LARGEST = {name: max(gpu.shared_bytes for gpu in GPUS.values() if gpu.backend == name) for name in ARCHS}
PRICED_ON = GPUS["h100"]  # the order of prices is the same on all chips
Key = tuple[str, str, str, int]  # backend, kernel, kind, padded hidden size
Compiled = list[tuple[Launch, Facts]]


def compile_kernel(
    kernel: str,
    hidden: int,
    dtype: str,
    launch: Launch,
    arch: str,
    *,
    directions: int = 1,
    packed: bool = False,
    save_gates: bool = True,
    ragged: bool = False,
    counts: bool = True,
) -> Facts:
    """Compile the resident ``forward`` or ``backward``."""
    from tritongru.kernels.resident.backward_kernel import resident_backward_kernel
    from tritongru.kernels.resident.forward_kernel import resident_forward_kernel

    constants: dict[str, Any] = {
        "D": directions,
        "H": hidden,
        "USE_H0": True,
        "PACKED": packed,
        "UPCAST": False,
        "PRECISION": launch.dot_precision,
        "CHUNKS": launch.chunks,
        "BB": launch.block_b,
        "STAGES": launch.stages,
    }
    if kernel == "forward":
        constants |= {"USE_BIAS": True, "SAVE_GATES": save_gates}
    else:
        constants |= {"USE_DY": True}
    if ragged:
        constants["RAGGED"] = True
    fn = {"forward": resident_forward_kernel, "backward": resident_backward_kernel}[kernel]
    return compile_for(fn, constants, dtype, launch.num_warps, arch, counts)


def compile_form(row: Row, launch: Launch, name: str, arch: str, counts: bool = True) -> Facts:
    """See `readings.compile_form`."""
    form = FORMS[name]
    asked = (row["kernel"], row["hidden"] - form.less, dtype_of(row["kind"]), launch, arch)
    return compile_kernel(*asked, directions=form.directions, packed=form.packed, ragged=form.ragged, counts=counts)


def candidates(backend: str, kind: str, hidden: int) -> list[Launch]:
    warps = (4, 8, 16) if hidden == 128 else (4, 8) if hidden == 64 or hidden > 96 or kind != "16-bit" else (4,)
    if backend == "hip":
        warps = (4,)
    return [
        Launch(chunks_of(hidden), BLOCK_B, w, stages, 0, dot_precision(backend, kind))
        for w in warps
        for stages in ((2, 1) if backend == "hip" else (3, 2, 1))
    ]


def compiled(key: Key) -> Compiled:
    """The candidates that compile well for the first chip, with their readings."""
    backend, kernel, kind, hidden = key
    found = []
    for launch in candidates(backend, kind, hidden):
        facts = compile_kernel(kernel, hidden, dtype_of(kind), launch, ARCHS[backend][0])
        tight = (facts.registers or 0) > SPARE_REGISTERS
        if facts.shared_bytes > LARGEST[backend] or facts.stack or (tight and launch.num_warps == 4):
            continue
        found.append((replace(launch, instructions=facts.instructions, barriers=facts.barriers), facts))
    return found


def price(launch: Launch) -> float:
    """Microseconds by the plan's cost model; where there are no counts, the launch that loads furthest ahead first."""
    cost = resident_cost(PRICED_ON, launch, BLOCK_B, 1)
    return -launch.stages if cost is None else cost.us


def rows_for(key: Key, found: Compiled) -> list[dict[str, Any]]:
    """The configurations worth keeping, the cheapest first."""
    backend, kernel, kind, hidden = key
    dtype, archs, largest = dtype_of(kind), ARCHS[backend], LARGEST[backend]
    rows: list[dict[str, Any]] = []
    for launch, facts in sorted(found, key=lambda item: price(item[0])):
        if not _worth_keeping(rows, backend, facts.shared_bytes):
            continue
        tight = (facts.registers or 0) > SPARE_REGISTERS
        other = [*_demanding(kernel, hidden, dtype, launch, archs[0], tight)]
        other.append(compile_kernel(kernel, hidden, dtype, launch, archs[1], packed=True))
        shared = max(f.shared_bytes for f in (facts, *other))
        if shared > largest or any(f.stack for f in other) or not _worth_keeping(rows, backend, shared):
            continue
        newer = ("sm_100", "sm_120") if backend == "cuda" else ()
        spills = []
        for arch in newer:
            plain = compile_kernel(kernel, hidden, dtype, launch, arch)
            if plain.stack or any(f.stack for f in _demanding(kernel, hidden, dtype, launch, arch, tight)):
                spills.append(arch)
        if not _worth_keeping(rows, backend, shared, spills):
            continue
        rows.append(
            {
                "backend": backend,
                "kernel": kernel,
                "kind": kind,
                "hidden": hidden,
                "chunks": list(launch.chunks),
                "num_warps": launch.num_warps,
                "stages": launch.stages,
                "shared_bytes": shared,
                "registers": facts.registers,
                "instructions": facts.instructions,
                "barriers": facts.barriers,
                "tensor_core": facts.tensor_core,
                "wavefronts": launch.wavefronts,
                "spills_on": spills,
            }
        )
    return rows


def _worth_keeping(rows: list[dict[str, Any]], backend: str, shared_bytes: int, spills_on: Sequence[str] = ()) -> bool:
    """A more expensive configuration is for chips on which the cheaper ones do not fit or spill."""
    families: dict[str, int] = {}  # the shared memory of the largest chip of each
    for gpu in GPUS.values():
        if gpu.backend == backend and gpu.family not in spills_on:
            families[gpu.family] = max(families.get(gpu.family, 0), gpu.shared_bytes)
    return any(
        shared_bytes <= largest
        and all(shared_bytes < row["shared_bytes"] for row in rows if family not in row["spills_on"])
        for family, largest in families.items()
    )


def _demanding(kernel: str, hidden: int, dtype: str, launch: Launch, arch: str, tight: bool) -> Iterator[Facts]:
    """The options that need the most registers: two directions and packed rows, with poorly aligned sizes. If registers
    are scarce, all sizes are tried, with packed rows and without."""
    sizes = (hidden - 1, hidden, hidden - 4) if tight else (hidden - 1, hidden - 4)
    for size, packed in itertools.product(sizes, (True, False) if tight else (True,)):
        yield compile_kernel(kernel, size, dtype, launch, arch, directions=2, packed=packed)


def with_wavefronts(found: dict[Key, Compiled]) -> dict[Key, Compiled]:
    """With the wavefronts of all NVIDIA launches."""
    cuda = [(key, launch) for key, own in found.items() for launch, _ in own if key[0] == "cuda"]
    items = [Item("resident", kernel, kind, hidden, launch) for (_, kernel, kind, hidden), launch in cuda]
    counts = dict(zip(cuda, counted(items), strict=True))
    return {
        key: [(replace(launch, wavefronts=counts.get((key, launch))), facts) for launch, facts in own]
        for key, own in found.items()
    }


def make() -> None:
    keys: list[Key] = [
        (backend, kernel, kind, hidden)
        for backend in ("cuda", "hip")
        for kind, sizes in SIZES.items()
        for kernel in ("forward", "backward")
        for hidden in sizes
    ]
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(2) as pool:
        good = with_wavefronts(dict(zip(keys, pool.map(compiled, keys), strict=True)))
        for key, found in zip(keys, pool.map(rows_for, keys, good.values()), strict=True):
            rows += found
            print(*key, len(found), flush=True)
    write("resident", map(unread, rows))

"""The table of persistent launches: those that compile without spilling and that the model picks for some shape."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from typing import Any

from bench.compile.machine_code import FORMS, Facts, compile_for, dtype_of
from bench.compile.tables import unread, write
from bench.compile.wavefronts import Item, counted
from tritongru.planning.candidates import persistent_options
from tritongru.planning.devices import GPUS
from tritongru.planning.launches import PersistentLaunch, Row, bits_of, chunks_of, dot_precision

SIZES = {
    "16-bit": (256, 384, 512, 768, 1024, 1536, 2048),
    "tf32": (256, 384, 512, 768, 1024),
    "ieee": (128, 256, 384, 512, 768, 1024),
}
# Of a part of the contraction. All chunks are in flight at once and wide ones spill; but each chunk means one wait.
WIDEST_CHUNK = {"counter": 64, "data": 256}
SPARE_REGISTERS = 240  # of 255; above this, another form may spill elsewhere even if the most demanding does not
RING = 32  # slots of the exchange by data
SPANS = (8, 16)
LARGEST_SHARED = max(gpu.shared_bytes for gpu in GPUS.values())
SLACK = 0.1  # relative; the prediction is hardly more accurate
BATCHES = (1, 17, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 2049, 4097, 8193)
ARCHS = ("sm_80", "sm_86", "sm_100", "sm_120")  # besides sm_90, on which no row may spill
KERNELS = ("forward", "backward")
Rows = tuple[PersistentLaunch, ...]
DROPPED = ("bits", "dot_precision", "groups")  # follow from the kind, or are the plan's to choose


# Rows of a tile, units of a program, warps, parts of k, padded to four gates, exchange; in tuning order, narrow tiles
# first. The backward pass collects three times the tile, which needs more warps; wide tiles spill there.
SHAPES = {
    "forward": (
        *((16, block_h, 8, 8, True, "counter") for block_h in (8, 16, 32)),
        *((16, block_h, 8, 8, False, "counter") for block_h in (16, 32)),
        *((16, block_h, 16, 16, False, "counter") for block_h in (8, 16)),
        *((16, block_h, 8, 8, True, "data") for block_h in (8, 16)),
        *((16, block_h, 4, 4, False, "counter") for block_h in (16, 32)),
        (16, 8, 8, 8, False, "counter"),
        *((32, block_h, 8, 8, False, "counter") for block_h in (8, 16, 32)),
        *((32, block_h, 4, 4, False, "counter") for block_h in (8, 16)),
        *((64, block_h, 4, 1, True, "counter") for block_h in (8, 16)),
        (64, 16, 4, 1, False, "counter"),
    ),
    "backward": (
        *((16, block_h, 8, 8, False, "counter") for block_h in (8, 16, 32, 64)),
        *((16, block_h, 16, 16, False, "counter") for block_h in (8, 16, 32)),
        *((16, block_h, 4, 4, False, "counter") for block_h in (16, 32)),
        *((32, block_h, 16, 16, False, "counter") for block_h in (16, 32)),
        *((32, block_h, 8, 8, False, "counter") for block_h in (8, 16, 32)),
        *((32, block_h, 4, 4, False, "counter") for block_h in (16, 32)),
        *((16, block_h, 8, 8, False, "data") for block_h in (8, 16)),
    ),
}


def candidates(kernel: str, kind: str, units: int) -> Iterator[PersistentLaunch]:
    bits = bits_of(kind)
    for block_b, block_h, warps, k_split, pad, exchange in SHAPES[kernel]:
        least = 32 if exchange == "data" and bits == 16 else 16  # units of a product; data makes two products
        width, odd = divmod(units if kernel == "forward" else 3 * units, k_split)
        if odd or width % least or units % block_h:
            continue
        launch = PersistentLaunch(
            kernel,
            bits,
            units,
            chunks_of(width, WIDEST_CHUNK[exchange]),
            block_b,
            block_h,
            warps,
            k_split,
            pad,
            exchange,
            RING if exchange == "data" else 2,
            0,
            dot_precision("cuda", kind),
        )
        held = launch.products - launch.products // 2  # tf32x3 keeps the high and the low part of W
        if held * launch.gates * block_h * units * bits // 8 < LARGEST_SHARED:
            yield from (replace(launch, span=span) for span in SPANS if span <= block_h)


def compile_launch(
    launch: PersistentLaunch,
    hidden: int,
    dtype: str,
    arch: str,
    *,
    directions: int = 1,
    packed: bool = False,
    save_gates: bool = True,
    ragged: bool = False,
    counts: bool = True,
) -> Facts:
    from tritongru.kernels.persistent.backward_kernel import persistent_backward_kernel
    from tritongru.kernels.persistent.forward_kernel import persistent_forward_kernel

    constants = {
        "D": directions,
        "H": hidden,
        "USE_H0": True,
        "PACKED": packed,
        "UPCAST": False,
        **launch.constants,
    }
    if ragged:
        constants["RAGGED"] = True
    if launch.kernel == "forward":
        constants |= {"USE_BIAS": True, "SAVE_GATES": save_gates}
        return compile_for(persistent_forward_kernel, constants, dtype, launch.num_warps, arch, counts)
    constants |= {"USE_DY": True}
    return compile_for(persistent_backward_kernel, constants, dtype, launch.num_warps, arch, counts)


def compile_named(name: str, launch: PersistentLaunch, kind: str, arch: str, counts: bool = True) -> Facts:
    form = FORMS[name]
    asked = (launch, launch.units - form.less, dtype_of(kind), arch)
    return compile_launch(*asked, directions=form.directions, packed=form.packed, ragged=form.ragged, counts=counts)


def plain(launch: PersistentLaunch, kind: str, arch: str, counts: bool = True) -> Facts:
    return compile_named("plain", launch, kind, arch, counts)


def demanding(launch: PersistentLaunch, kind: str, arch: str, counts: bool = True) -> Facts:
    """Two directions, packed rows and an unaligned size need the most registers."""
    return compile_named("demanding", launch, kind, arch, counts)


def compile_form(row: Row, launch: PersistentLaunch, name: str, arch: str, counts: bool = True) -> Facts:
    """See `readings.compile_form`."""
    return compile_named(name, launch, row["kind"], arch, counts)


def compiled(kind: str, launch: PersistentLaunch) -> PersistentLaunch | None:
    """The launch with its readings for sm_90, or None if it spills there or needs too much shared memory."""
    return _with_facts(launch, plain(launch, kind, "sm_90"))


def stands(kind: str, launch: PersistentLaunch) -> PersistentLaunch | None:
    """The launch with its largest needs and the chips on which it then spills, or None if it spills on sm_90."""
    found = _with_facts(launch, demanding(launch, kind, "sm_90"))
    if found is None:
        return None
    most = {name: max(getattr(launch, name), getattr(found, name)) for name in ("shared_bytes", "registers")}
    return elsewhere(kind, replace(launch, **most))


def _with_facts(launch: PersistentLaunch, facts: Facts) -> PersistentLaunch | None:
    if facts.stack or facts.shared_bytes > LARGEST_SHARED:
        return None
    return replace(
        launch,
        shared_bytes=facts.shared_bytes,
        registers=facts.registers or 255,
        instructions=facts.instructions or 0,
        barriers=facts.barriers or 0,
        tensor_core=facts.tensor_core or 0,
    )


def elsewhere(kind: str, launch: PersistentLaunch) -> PersistentLaunch:
    """The launch with the other chips on which its demanding form would spill or, if registers are short here, also its
    plain form."""
    forms = (demanding, plain) if launch.registers > SPARE_REGISTERS else (demanding,)
    spills = tuple(
        arch
        for arch in ARCHS
        if launch.shared_bytes <= max(gpu.shared_bytes for gpu in GPUS.values() if gpu.family == arch)
        and any(form(launch, kind, arch, counts=False).stack for form in forms)
    )
    return replace(launch, spills_on=spills)


def best(kind: str, rows: tuple[PersistentLaunch, ...], slack: float = 0.0) -> list[set[PersistentLaunch]]:
    """For each shape, device and exchange, the rows whose predicted time is the least, or within ``slack`` of it.

    The exchanges are judged separately, so that a measurement finds both in the table."""
    found: list[set[PersistentLaunch]] = []
    if not rows:
        return found
    first = rows[0]
    previous = max((size for size in SIZES[kind] if size < first.units), default=1)
    for device, batch, directions, hidden, exchange in itertools.product(
        GPUS.values(), BATCHES, (1, 2), (first.units, (previous + first.units) // 2), ("counter", "data")
    ):
        some = tuple(row for row in rows if row.exchange == exchange)
        options = persistent_options(device, first.kernel, kind, hidden, batch, directions, some)
        least = min((cost.us for cost, _ in options), default=0.0)
        if options:
            found.append({replace(row, groups=1) for cost, row in options if cost.us <= least * (1 + slack)})
    return found


def chosen(kind: str, rows: tuple[PersistentLaunch, ...]) -> set[PersistentLaunch]:
    """The rows that are best for some shape; the others are not needed. The first of equals is taken."""
    order = {row: i for i, row in enumerate(rows)}
    return {min(options, key=lambda row: order[row]) for options in best(kind, rows)}


def enough(kind: str, rows: tuple[PersistentLaunch, ...]) -> tuple[PersistentLaunch, ...]:
    """A few rows with one within SLACK of the best for each shape: tests compile every row for every chip."""
    open_ = best(kind, rows, SLACK)
    kept: list[PersistentLaunch] = []
    while open_:
        most = max(rows, key=lambda row: sum(row in options for options in open_))
        kept.append(most)
        open_ = [options for options in open_ if most not in options]
    return tuple(row for row in rows if row in needed(kind, tuple(kept)))


def needed(kind: str, rows: tuple[PersistentLaunch, ...]) -> tuple[PersistentLaunch, ...]:
    """Without the rows that are not needed, repeated until none is left to remove."""
    while set(rows) != (left := chosen(kind, rows)):
        rows = tuple(row for row in rows if row in left)
    return rows


Key = tuple[str, str, int]  # kernel, kind, padded hidden size


def make() -> None:
    keys = [(kernel, kind, size) for kernel in KERNELS for kind, sizes in SIZES.items() for size in sizes]
    items = [(kind, launch) for kernel, kind, size in keys for launch in candidates(kernel, kind, size)]
    with ProcessPoolExecutor(2) as pool:
        good = with_wavefronts(_by_key(items, pool.map(_compiled, items, chunksize=4)))
        print(f"{sum(map(len, good.values()))} of {len(items)} candidates compile without spilling", flush=True)
        kept = _standing(good, pool)
    rows = [(key, row) for key in keys for row in needed(key[1], kept.get(key, ()))]
    print(f"{len(rows)} are enough", flush=True)
    write("persistent", map(unread, _as_rows(rows)))


def with_wavefronts(good: dict[Key, Rows]) -> dict[Key, Rows]:
    items = [Item("persistent", *key, row) for key, rows in good.items() for row in rows]
    counts = iter(counted(items))
    return {key: tuple(replace(row, wavefronts=next(counts)) for row in rows) for key, rows in good.items()}


def _standing(good: dict[Key, Rows], pool: ProcessPoolExecutor) -> dict[Key, Rows]:
    """Enough rows for each key whose demanding form does not spill on sm_90; others replace those that fail, there
    or on a chip where they spill."""
    stood: set[PersistentLaunch] = set()
    while True:
        kept = {key: enough(key[1], rows) for key, rows in good.items()}
        asked = [(key[1], row) for key, rows in kept.items() for row in rows if row not in stood]
        if not asked:
            return kept
        found = dict(zip((row for _, row in asked), pool.map(_stands, asked, chunksize=2), strict=True))
        stood |= {row for row in found.values() if row is not None}
        good = {key: tuple(now for row in rows if (now := found.get(row, row))) for key, rows in good.items()}


def _by_key(items: list[tuple[str, PersistentLaunch]], found: Iterable[PersistentLaunch | None]) -> dict[Key, Rows]:
    table: dict[Key, Rows] = {}
    for (kind, launch), row in zip(items, found, strict=True):
        key = (launch.kernel, kind, launch.units)
        table[key] = table.get(key, ()) + (() if row is None else (row,))
    return table


def _compiled(item: tuple[str, PersistentLaunch]) -> PersistentLaunch | None:
    return compiled(*item)


def _stands(item: tuple[str, PersistentLaunch]) -> PersistentLaunch | None:
    return stands(*item)


def _as_rows(launches: Iterable[tuple[Key, PersistentLaunch]]) -> Iterator[dict[str, Any]]:
    for (_, kind, _), launch in launches:
        fields = {name: value for name, value in asdict(launch).items() if name not in DROPPED}
        yield {"backend": "cuda", "kind": kind, **fields}

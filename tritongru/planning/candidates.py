"""The configurations that could run a layer on a device, each with its predicted cost."""

from __future__ import annotations

import math
from dataclasses import replace

from tritongru.planning import cost_model
from tritongru.planning.devices import KB, Device
from tritongru.planning.launches import (
    AnyLaunch,
    Launch,
    PersistentLaunch,
    StepwiseLaunch,
    bits_of,
    launches,
    padded,
    persistent_launches,
    stepwise_launches,
)

REGISTERS = 65536  # of a multiprocessor


def kind_of(dtype: str, precision: str) -> str:
    """Kernels differ by element size and by how fp32 products are made, not by which 16-bit type it is."""
    return precision if dtype == "float32" else "16-bit"


Option = tuple[cost_model.Cost | None, AnyLaunch]


def cheapest(
    device: Device,
    kernel: str,
    kind: str,
    hidden: int,
    batch: int,
    directions: int,
    asked: str | None = None,
    ragged: bool = False,
) -> Option | None:
    """The cheapest configuration of any family by the model, or the persistent one named ``asked``. Configurations that
    hold W_hh on chip are preferred to those that read it at every step."""
    where = (device, kernel, kind, hidden, batch, directions)
    options: list[Option] = [*persistent_options(*where, ragged=ragged)]
    named = [option for option in options if isinstance(option[1], PersistentLaunch) and option[1].name == asked]
    if named:
        return named[0]
    launch = smallest(device, kernel, kind, padded(hidden), ragged)
    if launch is not None:
        options.append((resident_cost(device, launch, batch, directions), launch))
    if not options:
        options = [*stepwise_options(*where, ragged)]
    return min(options, key=lambda option: math.inf if option[0] is None else option[0].us, default=None)


def resident_cost(device: Device, launch: Launch, batch: int, directions: int) -> cost_model.Cost | None:
    if launch.instructions is None or launch.barriers is None or device.clock_mhz <= 0:
        return None
    tiles = math.ceil(batch / launch.block_b) * directions
    waves = max(1, math.ceil(tiles / device.multiprocessors))
    counts = launch.instructions, launch.barriers, launch.num_warps
    return cost_model.resident(device, *counts, waves, launch.wavefronts)


def smallest(device: Device, kernel: str, kind: str, size: int, ragged: bool = False) -> Launch | None:
    """The configuration of the smallest size of at least ``size`` that fits the device: a few sizes have none of their
    own, because all their forms spill registers."""
    table = launches(ragged=True) if ragged else launches()
    sizes = sorted(key[3] for key in table if key[:3] == (device.backend, kernel, kind) and key[3] >= size)
    rows = (row for size in sizes for row in table[device.backend, kernel, kind, size])
    return next((row for row in rows if fits(row, device)), None)


def fits(launch: AnyLaunch, device: Device) -> bool:
    """Whether the device has room for it, and its machine code is sound and does not spill."""
    sound = device.family not in launch.spills_on and not (launch.faults and device.family == "sm_90")
    return sound and launch.shared_bytes <= device.shared_bytes


def persistent_options(
    device: Device,
    kernel: str,
    kind: str,
    hidden: int,
    batch: int,
    directions: int,
    rows: tuple[PersistentLaunch, ...] | None = None,
    ragged: bool = False,
) -> list[tuple[cost_model.Cost, PersistentLaunch]]:
    """Every configuration, from the table or from the given rows, all of whose programs fit on the device at once, with
    its predicted cost."""
    if device.backend != "cuda" or device.clock_mhz <= 0 or not device.mma:
        return []
    if rows is None:
        table = persistent_launches(ragged=True) if ragged else persistent_launches()
        key = (device.backend, kernel, kind)
        sizes = (units for *other, units in table if tuple(other) == key and units >= hidden)
        rows = table.get((*key, min(sizes, default=0)), ())
    options = []
    for row in rows:
        if not fits(row, device):
            continue
        tiles = max(1, math.ceil(batch / row.block_b))
        programs = row.programs(hidden)
        at_once = min(
            (device.shared_bytes + KB) // (row.shared_bytes + KB), REGISTERS // (32 * row.num_warps * row.registers)
        )
        groups = min(tiles, device.multiprocessors * at_once // (programs * directions))
        if groups == 0:
            continue
        groups = math.ceil(tiles / math.ceil(tiles / groups))  # no program idles in the last turn if that costs nothing
        exchanged = tiles * directions * row.slots * row.tile_bytes
        if exchanged > device.l2_bytes // 2:  # the exchanged data should stay in L2
            continue
        cost = cost_model.persistent(
            device,
            programs=programs * groups * directions,
            neighbours=programs,
            turns=math.ceil(tiles / groups),
            tile_bytes=row.tile_bytes,
            weight_bytes=row.gates * row.block_h * row.units * row.bits // 8,
            part_bytes=4 * row.k_split * row.block_b * (row.gates if kernel == "forward" else 1) * row.block_h,
            multiply_adds=row.products * row.gates * row.block_h * row.units * row.block_b,
            bits=row.bits,
            instructions=row.instructions,
            barriers=row.barriers,
            num_warps=row.num_warps,
            per_multiprocessor=at_once,
            data=row.exchange == "data",
            wavefronts=row.wavefronts,
        )
        options.append((cost, replace(row, groups=groups)))
    return options


def stepwise_options(
    device: Device, kernel: str, kind: str, hidden: int, batch: int, directions: int, ragged: bool = False
) -> list[tuple[cost_model.Cost, StepwiseLaunch]]:
    """The configurations whose tiles waste the fewest rows of the batch, the one with the largest tiles first."""
    table = stepwise_launches(ragged=True) if ragged else stepwise_launches()
    rows = [row for row in table.get((device.backend, kernel, kind), ()) if fits(row, device)]
    if not rows or device.clock_mhz <= 0 or not device.mma:
        return []
    padded_rows = {row: math.ceil(batch / row.block_b) * row.block_b for row in rows}
    fewest = min(padded_rows.values())
    some = sorted((row for row in rows if padded_rows[row] == fewest), key=lambda row: -row.block_b)
    return [(stepwise_cost(device, row, kind, hidden, batch, directions), row) for row in some]


def stepwise_cost(
    device: Device, launch: StepwiseLaunch, kind: str, hidden: int, batch: int, directions: int
) -> cost_model.Cost:
    bits = bits_of(kind)
    weights = 3 * hidden * hidden * directions
    tiles = math.ceil(batch / launch.block_b)
    products = 3 if launch.dot_precision == "tf32x3" else 1
    multiply_adds = products * weights * tiles * launch.block_b
    return cost_model.stepwise(device, weights * bits // 8, tiles, multiply_adds, bits)

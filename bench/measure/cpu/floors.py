"""A CPU's peak rates, measured in the same run: independent packed multiply-adds, and reads from the caches and from
memory. Both loops are written in the package's own vector language."""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import torch

from bench.measure.cpu.timing import CLOCKS, clock_of
from tritongru.llvm.compiling import optimized
from tritongru.llvm.language import I64, PTR, Module
from tritongru.planning.instruction_sets import SETS

PEAK = "fma"
BEST_OF = 5
FLOPS, BYTES = 2e9, 1e9  # of one sample and thread: a few hundredths of a second
SUMS = 8  # independent sums in the read loop
MEMORY = 2**28  # bytes, more than any cache
DEFAULT = {"l1": 2**15, "l2": 2**19, "l3": 2**23}
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


@dataclass(frozen=True)
class Floor:
    """``rate``: operations or bytes per second, of all threads."""

    name: str
    isa: str
    threads: int
    rate: float


def write_multiply_adds(module: Module) -> int:
    """``fma(place, n)``; returns the operations of each of its n iterations."""
    sums = 3 * module.isa.rows  # as the largest tile of the loop has
    with module.function(PEAK, {"place": PTR, "n": I64}, public=True) as (f, place, n):
        a, b = (f.load(f.at(place, k * module.lanes, "float"), module.vector) for k in range(2))
        found = [f.variable(f.constant(k, module.vector)) for k in range(sums)]
        with f.loop(0, n):
            for one in found:
                one.set(f.fma(one.get(), a, b))
        whole = found[0].get()
        for one in found[1:]:
            whole = whole + one.get()
        f.store(whole, place)
    return 2 * sums * module.lanes


def write_reads(module: Module) -> int:
    """``read(place, n, again, out)`` sums n blocks, ``again`` times; returns the bytes of a block."""
    block = SUMS * module.lanes
    parameters = {"place": PTR, "n": I64, "again": I64, "out": PTR}
    with module.function("read", parameters, public=True) as (f, place, n, again, out):
        found = [f.variable(f.constant(0, module.vector)) for _ in range(SUMS)]
        with f.loop(0, again), f.loop(0, n) as i:
            for k, one in enumerate(found):
                one.set(one.get() + f.load(f.at(place, i * block + k * module.lanes, "float"), module.vector))
        whole = found[0].get()
        for one in found[1:]:
            whole = whole + one.get()
        f.store(whole, out)
    return block * 4


def compiled(
    isa: str, write: Callable[[Module], int], name: str, arguments: int
) -> tuple[Any, Callable[..., None], int]:
    """The engine, which has to outlive the function; the function; and what ``write`` returned."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    found = SETS[isa]
    module = Module(found, "float")
    amount = write(module)
    features = ",".join(f"+{feature}" for feature in found.features)
    machine = llvm.Target.from_default_triple().create_target_machine(cpu=found.cpu, features=features, opt=3)
    engine = llvm.create_mcjit_compiler(optimized(module.text()), machine)
    engine.finalize_object()
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * arguments)(engine.get_function_address(name))
    return engine, function, amount


def least_s(threads: int, calls: Sequence[Callable[[], None]]) -> float:
    """Least seconds of the calls, run at once, one per thread."""
    now = CLOCKS[clock_of(threads)]

    def once() -> float:
        start = now()
        if threads == 1:
            calls[0]()
        else:
            running = [threading.Thread(target=call) for call in calls]
            for thread in running:
                thread.start()
            for thread in running:
                thread.join()
        return max(now() - start, 1e-9)

    return min(once() for _ in range(BEST_OF))


def multiply_adds(isa: str, threads: int, flops: float = FLOPS) -> Floor:
    engine, function, amount = compiled(isa, write_multiply_adds, PEAK, 2)
    places = [torch.full((2 * SETS[isa].bytes // 4,), 0.5) for _ in range(threads)]
    turns = max(1, int(flops / amount))
    seconds = least_s(threads, [functools.partial(function, place.data_ptr(), turns) for place in places])
    del engine
    return Floor(PEAK, isa, threads, threads * turns * amount / seconds)


def reads(isa: str, threads: int, name: str, size: int, bytes_: float = BYTES) -> Floor:
    """Each thread repeatedly sums its own floats, ``size`` bytes of them."""
    engine, function, block = compiled(isa, write_reads, "read", 4)
    data = [torch.ones(size // 4) for _ in range(threads)]
    out = torch.empty(threads, SETS[isa].bytes // 4)
    blocks, again = size // block, max(1, int(bytes_ / size))
    calls = [
        functools.partial(function, own.data_ptr(), blocks, again, to.data_ptr())
        for own, to in zip(data, out, strict=True)
    ]
    seconds = least_s(threads, calls)
    del engine
    return Floor(name, isa, threads, threads * again * blocks * block / seconds)


def cache_sizes() -> dict[str, int]:
    """Bytes of a core's caches as Linux reports them; otherwise defaults."""
    found = dict(DEFAULT)
    for index in CACHES.glob("index*"):
        try:
            level, kind, size = ((index / part).read_text().strip() for part in ("level", "type", "size"))
            if kind != "Instruction" and f"l{level}" in found:
                found[f"l{level}"] = int(size.removesuffix("K")) * 1024
        except (OSError, ValueError):
            continue
    return found


def measure(sets: tuple[str, ...], threads: tuple[int, ...]) -> list[Floor]:
    """Multiply-adds of each instruction set, and reads of half of each cache and of memory with the best set."""
    sizes = {name: size // 2 for name, size in cache_sizes().items()} | {"memory": MEMORY}
    found = [multiply_adds(isa, number) for isa in sets for number in threads]
    return [*found, *(reads(sets[0], number, name, size) for name, size in sizes.items() for number in threads)]

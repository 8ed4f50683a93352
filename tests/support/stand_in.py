"""A driver for Triton that needs no GPU: kernels are compiled for a chip, and each launch goes to a function.

CPU tensors are the chip's memory. `install` belongs in a process of its own, without TRITON_INTERPRET: what it puts in
place stays. Every launch is checked; none runs, unless `install` gets a machine that executes the PTX.
"""

import contextlib
import functools
import re
import subprocess
import tempfile
import threading
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import mangle_type

from tritongru import route, warmup
from tritongru.interop import compiler_ops
from tritongru.kernels import launching, rebuild
from tritongru.kernels.persistent import cooperative, watchdog
from tritongru.kernels.persistent import launch as persistent
from tritongru.kernels.resident import launch as resident
from tritongru.kernels.stepwise import launch as stepwise
from tritongru.planning import plan
from tritongru.planning.devices import GPUS, KB, Device

REGISTERS, WARP_REGISTERS = 65536, 256  # of a multiprocessor, and the unit in which a warp gets them
# Threads and programs of a multiprocessor at most: the CUDA programming guide's table of compute capabilities.
RESIDENT = {"sm_80": (2048, 32), "sm_86": (1536, 16), "sm_89": (1536, 24), "sm_90": (2048, 32)}
GRID = (2**31 - 1, 65535, 65535)
SCRATCH = 2  # pointers that Triton puts behind a kernel's own parameters
PTX_TYPES = {"i32": ".u32", "u32": ".u32", "i64": ".u64", "u64": ".u64", "fp32": ".f32"}
MEETS = re.compile(r"^\s*(@!?%p\d+\s+)?(atom|red|(ld|st)\.(acquire|release|relaxed|volatile))\b", re.MULTILINE)


@dataclass(frozen=True)
class Launched:
    """One launch. ``device``: the current one; ``arguments``: all of the kernel's, by name and in its order, of which
    the compiled form takes those in ``passed`` and holds the others as constants."""

    compiled: Any  # Triton's CompiledKernel: asm, metadata, src
    grid: tuple[int, int, int]
    stream: int
    device: int
    cooperative: bool
    arguments: dict[str, Any]

    @property
    def name(self) -> str:
        return self.compiled.name

    @property
    def constants(self) -> dict[str, Any]:
        names = [*self.arguments]
        return {names[path[0]]: value for path, value in self.compiled.src.constants.items()}

    @property
    def passed(self) -> dict[str, Any]:
        constants = self.constants
        return {name: value for name, value in self.arguments.items() if name not in constants}


@dataclass
class Stream:
    device: int
    cuda_stream: int  # the handle
    synchronized: int = 0

    def synchronize(self) -> None:
        self.synchronized += 1


@functools.cache
def default_stream(device: int) -> Stream:
    return Stream(device, 100 + device)


class Cuda(threading.local):
    """What torch.cuda knows of the current device and its streams, in each thread."""

    def __init__(self) -> None:
        self.index = 0
        self.streams: dict[int, Stream] = {}

    def current_device(self) -> int:
        return self.index

    @contextlib.contextmanager
    def device(self, device: torch.device | int) -> Iterator[None]:
        before, self.index = self.index, device if isinstance(device, int) else device.index
        try:
            yield
        finally:
            self.index = before

    def current_stream(self, device: torch.device | int | None = None) -> Stream:
        index = self.index if device is None else device if isinstance(device, int) else device.index
        return self.streams.get(index, default_stream(index))

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before = self.streams
        with self.device(stream.device):
            self.streams = before | {stream.device: stream}
            try:
                yield
            finally:
                self.streams = before


class Driver:
    """Triton's own interface to a GPU, as far as compiling and launching ask for it."""

    def __init__(self, gpu: Device, cuda: Cuda, launch: Callable[[Launched], None]) -> None:
        self.gpu, self.cuda, self.launch = gpu, cuda, launch
        self.launcher_cls = functools.partial(_Launcher, self)
        self.utils = types.SimpleNamespace(
            load_binary=lambda name, cubin, shared, device: (1, 1, 0, 0, 1024),
            unload_module=lambda module: None,
            get_device_properties=lambda device: {"max_shared_mem": gpu.shared_bytes},
        )

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", int(self.gpu.arch.removeprefix("sm_")), 32)

    def get_current_device(self) -> int:
        return self.cuda.current_device()

    def get_current_stream(self, device: int) -> int:
        return self.cuda.current_stream(device).cuda_stream


class _Launcher:
    """Triton makes one for each compiled form."""

    def __init__(self, driver: Driver, source: Any, metadata: Any) -> None:
        self.driver, self.source, self.cooperative = driver, source, metadata.launch_cooperative_grid

    @functools.cached_property
    def compiled(self) -> Any:
        tables = [cache[0] for cache in [*self.source.fn.device_caches.values()]]
        found = [form for table in tables for form in [*table.values()] if form.src is self.source]
        assert found, f"a form of {self.source.name} is in no table: two threads have made a table each"
        return found[0]

    def __call__(self, x: int, y: int, z: int, stream: int, *others: Any) -> None:
        names, arguments = self.source.fn.arg_names, others[5:]  # behind the function, two of metadata and two hooks
        given = len(arguments)
        assert given == len(names), f"{self.source.name} has {len(names)} arguments, and a launch gave {given}"
        bound, device = dict(zip(names, arguments, strict=True)), self.driver.get_current_device()
        self.driver.launch(Launched(self.compiled, (x, y, z), stream, device, self.cooperative, bound))


@dataclass
class Machine:
    """Checks each launch, keeps it, and hands it on."""

    gpu: Device
    device: torch.device  # of all tensors
    cuda: Cuda
    execute: Callable[[Launched], None] | None = None
    launches: list[Launched] = field(default_factory=list)

    def launch(self, launched: Launched) -> None:
        self.check(launched)
        self.launches.append(launched)
        if self.execute is not None:
            self.execute(launched)

    def check(self, launched: Launched) -> None:
        """Raises an AssertionError with what is wrong of a launch."""
        check_place(launched, self.device, self.cuda)
        check_types(launched)
        check_specialised(launched)
        check_memory(launched)
        check_grid(launched, self.gpu)


def check_place(launched: Launched, device: torch.device, cuda: Cuda) -> None:
    name = launched.name
    assert launched.device == device.index, f"{name} ran on cuda:{launched.device}, and its tensors are on {device}"
    current = cuda.current_stream(device).cuda_stream
    assert launched.stream == current, f"{name} ran in stream {launched.stream}, and the current one is {current}"


def check_types(launched: Launched) -> None:
    """What is passed is what was compiled for, in number, type and size, in Triton's words and in the PTX."""
    name, signature = launched.name, launched.compiled.src.signature
    for argument, value in launched.constants.items():
        given = launched.arguments[argument]
        same = given is value or (not isinstance(given, Tensor) and given == value)
        assert same, f"{argument} of {name} is {_shown(given)}, and was compiled in as {_shown(value)}"
    for argument, value in launched.passed.items():
        kind, compiled = mangle_type(value), signature[argument]
        assert kind == compiled, f"{argument} of {name} is {_shown(value)} ({kind}), and was compiled as {compiled}"
    own = [".u64.ptr" if kind[0] == "*" else PTX_TYPES[kind] for kind in map(signature.get, launched.passed)]
    found = parameters(launched.compiled.asm["ptx"])
    assert found == [*own, *[".u64.ptr"] * SCRATCH], (
        f"{name} takes {len(found)} parameters ({', '.join(found)}), the last {SCRATCH} for scratch memory, and gets "
        f"{len(own)} ({', '.join(own)})"
    )
    scratch = launched.compiled.metadata.global_scratch_size, launched.compiled.metadata.profile_scratch_size
    assert scratch == (0, 0), f"{name} needs {sum(scratch)} bytes of scratch memory, and nobody allocates them"


def check_specialised(launched: Launched) -> None:
    """Divisible where the compiled form counts on it, and not specialised where the kernel forbids it."""
    source = launched.compiled.src
    for i, (param, value) in enumerate(zip(source.fn.params, launched.arguments.values(), strict=True)):
        assumed = dict(source.attrs.get((i,), []))
        if param.do_not_specialize:
            free = value is None or ((i,) not in source.constants and not assumed)  # None: what only ragged rows need
            assert free, f"{param.name} of {launched.name} is specialised, which the kernel forbids"
        if param.name in launched.passed and "tt.divisibility" in assumed:
            divisor = assumed["tt.divisibility"]
            number = value.data_ptr() if isinstance(value, Tensor) else value
            assert number % divisor == 0, (
                f"{param.name} of {launched.name} was compiled as divisible by {divisor}, and {number:#x} leaves "
                f"{number % divisor}"
            )


def check_memory(launched: Launched) -> None:
    """Tensors have memory, and no strides, of which kernels are not told."""
    for argument, value in launched.passed.items():
        if not isinstance(value, Tensor) or value.numel() == 0:
            continue
        what = f"{argument} of {launched.name}"
        assert value.device.type == "cpu", f"{what} is on {value.device}"
        assert value.is_contiguous(), f"{what} has shape {tuple(value.shape)} and strides {value.stride()}"
        storage = value.untyped_storage()
        before = value.data_ptr() - storage.data_ptr()
        behind = storage.nbytes() - before - value.nbytes
        assert min(before, behind) >= 0, f"{what} takes {value.nbytes} bytes from byte {before} of {storage.nbytes()}"


def check_grid(launched: Launched, gpu: Device) -> None:
    name, grid = launched.name, launched.grid
    fits = all(1 <= size <= most for size, most in zip(grid, GRID, strict=True))
    assert fits, f"{name} has a grid of {grid}, and each size should be in 1..{GRID}"
    meets, cooperative = waits(launched.compiled.asm["ptx"]), launched.cooperative
    assert cooperative == meets, (
        f"{name}, whose programs {'' if meets else 'do not '}wait for each other, is launched with "
        f"launch_cooperative_grid={cooperative}"
    )
    if cooperative:
        programs, room = grid[0] * grid[1] * grid[2], gpu.multiprocessors * at_once(launched.compiled, gpu)
        assert programs <= room, f"{name} has {programs} programs, and {gpu.name} runs {room} at once"


@functools.lru_cache(maxsize=4096)
def parameters(ptx: str) -> list[str]:
    """Type of each, and whether it is a pointer."""
    header = re.search(r"\.entry\s+\w+\((.*?)\)", ptx, re.DOTALL)
    assert header is not None, "no .entry in the PTX"
    return ["".join(found) for found in re.findall(r"\.param\s+(\.\w+)(?:\s+(\.ptr))?", header[1])]


@functools.lru_cache(maxsize=4096)
def waits(ptx: str) -> bool:
    """Whether programs talk to each other."""
    return MEETS.search(ptx) is not None


def at_once(compiled: Any, gpu: Device) -> int:
    """Programs that a multiprocessor runs side by side, by the rules of NVIDIA's occupancy calculator."""
    warps, shared = compiled.metadata.num_warps, compiled.metadata.shared
    threads, programs = RESIDENT[gpu.arch]
    of_warp = -(-registers(compiled.asm["cubin"]) * 32 // WARP_REGISTERS) * WARP_REGISTERS
    of_program = -(-shared // 128) * 128 + KB
    return min(programs, threads // (32 * warps), REGISTERS // of_warp // warps, (gpu.shared_bytes + KB) // of_program)


@functools.lru_cache(maxsize=4096)
def registers(cubin: bytes) -> int:
    """Of a thread."""
    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run([cuobjdump, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+)", usage)
    assert found is not None, f"cuobjdump told no register count: {usage!r}"
    return int(found[1])


def _shown(value: Any) -> str:
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


def install(execute: Callable[[Launched], None] | None = None, gpu: str = "h200", index: int = 1) -> Machine:
    """Puts the driver in place, and lets the package take CPU tensors for those of ``cuda:index`` of that chip, while
    cuda:0 is current. ``execute`` gets each launch that passed the checks and may write into its tensors."""
    cuda, facts, device = Cuda(), GPUS[gpu], torch.device("cuda", index)
    machine = Machine(facts, device, cuda, execute)
    triton.runtime.driver.set_active(Driver(facts, cuda, machine.launch))
    torch.cuda.current_device, torch.cuda.device = cuda.current_device, cuda.device
    torch.cuda.current_stream, torch.cuda.stream = cuda.current_stream, cuda.stream
    launching.device_of = lambda y: device
    pinned = watchdog.report_of  # pinned memory needs a GPU's library
    cooperative.report_of = watchdog.report_of = lambda where: pinned(torch.device("cpu"))
    route._missing = lambda where, interpreted: ""
    for room in (plan, route, compiler_ops, warmup):
        room.device_facts = lambda where: facts
    run = warmup._run
    warmup._run = lambda works, where: run(works, device)
    return machine


def kernels() -> list[Any]:
    rooms = (persistent, rebuild, resident, stepwise)
    return [value for room in rooms for name, value in vars(room).items() if name.endswith("_kernel")]


def forms() -> int:
    """How many the package's kernels have been compiled in, for all devices."""
    return sum(len(cache[0]) for kernel in kernels() for cache in kernel.device_caches.values())

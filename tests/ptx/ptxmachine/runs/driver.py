"""A driver for Triton that compiles as for a GPU and hands every launch to a function of ours."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import CompiledKernel

from tritongru.kernels import launching
from tritongru.kernels.persistent import launch as persistent
from tritongru.kernels.resident import launch as resident
from tritongru.kernels.single_step import launch as single_step
from tritongru.kernels.stepwise import launch as stepwise
from tritongru.planning.devices import Device

Grid = tuple[int, int, int]
# Gets Triton's CompiledKernel (the PTX is in ``asm["ptx"]``), the grid, and by name the arguments that the code takes.
Launch = Callable[[Any, Grid, dict[str, Any]], None]


class Driver:
    """What Triton asks of a driver, for a device that is not there."""

    launcher_cls = staticmethod(lambda source, metadata: None)

    def __init__(self, device: Device) -> None:
        self.arch = int(device.arch.removeprefix("sm_"))
        self.utils = SimpleNamespace(
            load_binary=lambda name, kernel, shared, device: (1, 1, 0, 0, 1024),
            get_device_properties=lambda index: {"max_shared_mem": device.shared_bytes},
        )

    def get_current_target(self) -> Any:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


class Host:
    """The process after `install`: where launches go, and the word in which kernels report that a wait was in vain."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.word = torch.zeros(1, dtype=torch.int64)
        self.launch: Launch | None = None

    @contextlib.contextmanager
    def launching(self, launch: Launch) -> Iterator[None]:
        """Hands the launches of the body to ``launch``."""
        before, self.launch = self.launch, launch
        try:
            yield
        finally:
            self.launch = before

    def taken_report(self) -> int:
        """The word, which is cleared."""
        found = int(self.word[0])
        self.word.zero_()
        return found


def install(device: Device) -> Host:
    """Makes this process compile for ``device`` and lets tritongru's launchers take CPU tensors for the GPU's. To be
    called once, before the first kernel is."""
    host = Host(device)
    triton.runtime.driver.set_active(Driver(device))

    def runner(compiled: Any) -> Callable[..., None]:
        def run(x: int, y: int, z: int, stream: int, function: int, *rest: Any) -> None:
            _packed, _metadata, _enter, _leave, *args = rest
            assert host.launch is not None, "a launch outside of Host.launching"
            compiled.asm = {"ptx": compiled.asm["ptx"]}  # the rest would fill the memory in a long sweep
            named = zip(compiled.src.fn.arg_names, args, strict=True)
            types = compiled.src.signature  # an argument that is None or 1 is a constant, too
            host.launch(compiled, (x, y, z), {name: value for name, value in named if types[name] != "constexpr"})

        return run

    CompiledKernel.run = property(runner)

    def kernel_options(y: Tensor, num_warps: int) -> dict[str, Any]:
        return {"UPCAST": False, "num_warps": num_warps, **launching.compiler_options("cuda", num_warps)}

    def launch_cooperative(kernel: Any, grid: Grid, like: Tensor, *args: Any, **kwargs: Any) -> None:
        kernel[grid](*args, host.word, launch_cooperative_grid=True, **kwargs)

    for family in (persistent, resident, stepwise, single_step):
        vars(family)["kernel_options"] = kernel_options
    vars(persistent)["launch_cooperative"] = launch_cooperative
    return host

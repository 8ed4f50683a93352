"""A driver for Triton that compiles as for a GPU and hands each launch to a function of ours.

``install(launch, arch)`` must run before the first kernel is called. ``launch(compiled, grid, args)`` gets Triton's
CompiledKernel (PTX in ``asm["ptx"]``), the grid and the bound arguments by name.
"""

import types

import torch
import triton
from triton.backends.compiler import GPUTarget

SHARED = {80: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024}


class Driver:
    def __init__(self, arch):
        self.arch = arch
        self.utils = types.SimpleNamespace(
            load_binary=lambda name, kernel, shared, device: (1, 1, 0, 0, 1024),
            get_device_properties=lambda device: {"max_shared_mem": SHARED.get(arch, 227 * 1024)},
        )

    launcher_cls = staticmethod(lambda source, metadata: None)

    def get_current_target(self):
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_active_torch_device(self):
        return torch.device("cpu")


def install(launch, arch=90):
    from triton.compiler.compiler import CompiledKernel

    triton.runtime.driver.set_active(Driver(arch))

    def run(self):
        def go(gx, gy, gz, stream, function, packed, meta, enter, leave, *args):
            launch(self, (gx, gy, gz), dict(zip(self.src.fn.arg_names, args)))

        return go

    CompiledKernel.run = property(run)


def adopt():
    """Lets tritongru's launchers take CPU tensors for a GPU's. Returns the word in which kernels report."""
    from tritongru.kernels import launching
    from tritongru.kernels.persistent import launch as persistent
    from tritongru.kernels.resident import launch as resident
    from tritongru.kernels.stepwise import launch as stepwise

    word = torch.zeros(1, dtype=torch.int64)

    def options(y, num_warps):
        return {"UPCAST": False, "num_warps": num_warps, **launching.compiler_options("cuda", num_warps)}

    def together(kernel, grid, like, *args, **kwargs):
        kernel[grid](*args, word, launch_cooperative_grid=True, **kwargs)

    for room in (persistent, resident, stepwise):
        room.kernel_options = options
    persistent.launch_cooperative = together
    return word

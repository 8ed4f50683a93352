"""Machine code of the passes for an instruction set and a type of numbers: compiled when first needed, or read from the
cache on disk."""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections.abc import Callable
from typing import Any

import llvmlite
import llvmlite.binding as llvm

from tritongru.llvm import cache
from tritongru.planning.instruction_sets import SETS, InstructionSet, host_sets

_lock = threading.Lock()


def _forget_lock() -> None:
    """In a forked child, where the thread that held the lock does not exist."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget_lock)
_engines: list[Any] = []  # they own the code


@functools.cache
def _initialize() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


def function_of(isa: str, scalar: str, kernel: str) -> Callable[[bytes], None]:
    """The pass ``kernel``, "forward", "backward", "step" or "segments", for ``scalar``, "float" or "double". It takes a
    packed ``CALL``, for the segments ``SEGMENTS``, and runs without Python's lock."""
    with _lock:
        return _function_of(isa, scalar, kernel)


@functools.cache
def _function_of(isa: str, scalar: str, kernel: str) -> Callable[[bytes], None]:
    machine = _host_machine(isa)
    key = cache.key_of(llvmlite.__version__, machine.triple, *_host_target(isa), isa, scalar, kernel)
    code = cache.read(key)
    if code is None:
        code = machine.emit_object(optimized(source(SETS[isa], scalar, kernel)))
        cache.write(key, code)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    return ctypes.CFUNCTYPE(None, ctypes.c_char_p)(engine.get_function_address(kernel))


def source(isa: InstructionSet, scalar: str, kernel: str) -> str:
    """LLVM IR. The modules that write it are not loaded if the code comes from the disk."""
    from tritongru.llvm.language import Module
    from tritongru.llvm.passes.backward_pass import write_backward
    from tritongru.llvm.passes.forward_pass import write_forward
    from tritongru.llvm.passes.segments import write_segments
    from tritongru.llvm.passes.step_pass import write_step
    from tritongru.llvm.passes.tiles import Tiles

    module = Module(isa, scalar)
    if kernel == "segments":
        write_segments(module)
    else:
        {"forward": write_forward, "backward": write_backward, "step": write_step}[kernel](module, Tiles(module))
    return module.text()


def optimized(text: str) -> Any:
    """The passes that the vector language leaves to LLVM: variables into registers, and sums of addresses. Tiles are
    already unrolled, so LLVM's full pipeline would find nothing more and take ten times as long."""
    module = llvm.parse_assembly(text)
    passes = llvm.create_new_module_pass_manager()
    passes.add_sroa_pass()
    passes.add_simplify_cfg_pass()
    passes.add_instruction_combine_pass()
    target = llvm.Target.from_default_triple().create_target_machine()
    passes.run(module, llvm.create_pass_builder(target, llvm.create_pipeline_tuning_options(speed_level=1)))
    return module


def assembly(isa: InstructionSet, scalar: str, kernel: str) -> str:
    """For any instruction set, supported here or not."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    triple = {"x86_64": "x86_64-unknown-linux-gnu", "aarch64": "aarch64-unknown-linux-gnu"}[isa.architecture]
    features = ",".join(f"+{feature}" for feature in isa.features)
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=isa.cpu, features=features, opt=2)
    return str(machine.emit_assembly(optimized(source(isa, scalar, kernel))))


def _host_target(isa: str) -> tuple[str, str]:
    """The CPU and its features as LLVM names them: this CPU for its best instruction set, else the oldest CPU that has
    the set."""
    if isa == host_sets()[0]:
        return llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    return SETS[isa].cpu, ",".join(f"+{feature}" for feature in SETS[isa].features)


def _host_machine(isa: str) -> Any:
    _initialize()
    cpu, features = _host_target(isa)
    return llvm.Target.from_default_triple().create_target_machine(cpu=cpu, features=features, opt=2)

"""Compile a kernel without a GPU and read its machine code."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.compile.hazards import Code, backward_branches, early_writes, unfenced

TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_86": ("cuda", 86, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "sm_120": ("cuda", 120, 32),
    "gfx942": ("hip", "gfx942", 64),
    "gfx950": ("hip", "gfx950", 64),
}
ELEMENT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
INTEGERS = ("T", "B", "N", "s", "start", "count", "tiles", "limit", "reset_rows")  # arguments that are not pointers
TENSOR_CORE = r"\b[HIDQ]G?MMA\b|\bUT\w*MMA\b"  # but not HFMA2.MMA, which loads a constant into a register
# Pointers to other dtypes than the storage dtype.
POINTERS = {
    "dh": "*fp32",
    "offsets": "*i64",
    "lengths": "*i64",
    "resets": "*i1",
    "d_reset": "*fp32",
    "report": "*i64",
    "counters": "*i32",
    "state": "*fp32",
}


@dataclass(frozen=True)
class Form:
    """Options that a row is compiled with. ``less``: hidden units less than the row's own: 1 leaves nothing aligned, 4
    leaves 16-bit rows aligned to 8 bytes."""

    directions: int = 1
    less: int = 0
    packed: bool = False
    ragged: bool = False


FORMS = {
    "plain": Form(),
    "demanding": Form(directions=2, less=1, packed=True),
    "ragged": Form(directions=2, less=1, ragged=True),
    "ragged-aligned": Form(ragged=True),
    "ragged-masked": Form(directions=2, less=4, ragged=True),
}


def dtype_of(kind: str, i: int = 0) -> str:
    return ("bfloat16", "float16")[i % 2] if kind == "16-bit" else "float32"


@dataclass(frozen=True)
class Facts:
    """Of one compiled kernel. ``instructions``, ``barriers``, ``tensor_core`` and ``loads`` (from global memory) count
    the longest loop, per warp: the time loop, or in a stepwise kernel the loop over k. They and ``registers`` are None
    if the code is not for NVIDIA. ``faults``: names of what `hazards` finds."""

    shared_bytes: int
    stack: int
    registers: int | None = None
    instructions: int | None = None
    barriers: int | None = None
    tensor_core: int | None = None
    loads: int | None = None
    faults: tuple[str, ...] = ()


def compile_for(
    fn: Any, constants: dict[str, Any], dtype: str, num_warps: int, arch: str, counts: bool = True
) -> Facts:
    """Compile a kernel as its launcher would, with pointers aligned to 16 bytes, and read the result; without
    ``counts`` only registers, stack and shared memory, which is quicker."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from tritongru.kernels.launching import compiler_options

    if not constants.get("RAGGED"):  # what only ragged rows need is left out
        constants = {param.name: param.default for param in fn.params if param.has_default} | constants
    signature = {}
    for name in fn.arg_names:
        kind = "constexpr" if name in constants else "i32" if name in INTEGERS else None
        signature[name] = kind or POINTERS.get(name, "*" + ELEMENT[dtype])
    aligned = {
        (i,): [["tt.divisibility", 16]] for i, name in enumerate(fn.arg_names) if signature[name].startswith("*")
    }
    backend, chip, lanes = TARGETS[arch]
    options = {"num_warps": num_warps} | compiler_options(backend, num_warps)
    compiled = triton.compile(
        ASTSource(fn, signature, constants, aligned), target=GPUTarget(backend, chip, lanes), options=options
    )
    if backend == "hip":
        scratch = re.search(r"\.private_segment_fixed_size:\s*(\d+)", compiled.asm["amdgcn"])
        return Facts(compiled.metadata.shared, int(scratch[1]) if scratch else 0)
    return _read_sass(compiled.asm["cubin"], compiled.asm["ptx"], compiled.metadata.shared, counts)


def _read_sass(cubin: bytes, ptx: str, shared_bytes: int, counts: bool) -> Facts:
    import triton

    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    groups = "wgmma" in ptx  # warp-group products
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, sass = (
            subprocess.run([cuobjdump, flag, file.name], capture_output=True, text=True, check=True).stdout
            if wanted
            else ""
            for flag, wanted in (("-res-usage", True), ("-sass", counts or groups))
        )
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump printed no register count: {usage!r}")
    code = [(int(address, 16), text) for address, text in re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(.*?);", sass)]
    faults = {"fence": unfenced(ptx), "register": early_writes(code)} if groups else {}
    facts = Facts(shared_bytes, int(found[2]), int(found[1]), faults=tuple(name for name in faults if faults[name]))
    if not counts:
        return facts
    loop = _longest_loop(code)
    patterns = (r"\bBAR\.", TENSOR_CORE, r"\bLDG")
    barriers, products, loads = (sum(bool(re.search(p, line)) for line in loop) for p in patterns)
    return replace(facts, instructions=len(loop), barriers=barriers, tensor_core=products, loads=loads)


def _longest_loop(code: Code) -> list[str]:
    """The instructions between the farthest backward branch and its target: the time loop."""
    best: list[str] = []
    for end, begin in backward_branches(code).items():
        if end - begin >= len(best):
            best = [text for _, text in code[begin : end + 1]]
    return best

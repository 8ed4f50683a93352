"""Compile kernels without a GPU and read what the compiler made.

``python -m bench.compile table`` makes ``tritongru/kernels/launches.json`` anew: for each kernel, kind of arithmetic
and padded hidden size, the launch configurations that use no stack, the cheapest first by the plan's cost model; a
dearer one stays only where it needs less shared memory, for chips that have less. ``python -m bench.compile check
sm_90 forward`` compiles every row that the plan picks on that chip and prints what came out as JSON lines.
``python -m bench.compile markdown`` prints the table of docs/kernels.md.
TRITON_INTERPRET must not be set.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tritongru.plan import BARRIER_CYCLES, BLOCK_B, GPUS, SCHEDULERS, Launch, chunks_of, dot_precision, plan

LAUNCHES = Path(__file__).parents[1] / "tritongru" / "kernels" / "launches.json"
SIZES = {"16-bit": range(32, 193, 16), "tf32": range(32, 129, 16), "ieee": range(32, 97, 16)}
TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_86": ("cuda", 86, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "sm_120": ("cuda", 120, 32),
    "gfx942": ("hip", "gfx942", 64),
    "gfx950": ("hip", "gfx950", 64),
}
SPARE_REGISTERS = 248  # of 255: with 4 warps, a form that needs more here spills on another chip or with another option
ELEMENT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Facts:
    """Of one compiled kernel. ``instructions``, ``barriers``, ``tensor_core`` and ``loads`` (from global memory) are
    those of the time loop, per warp; they and ``registers`` are None where the code is not NVIDIA's."""

    shared_bytes: int
    stack: int
    registers: int | None = None
    instructions: int | None = None
    barriers: int | None = None
    tensor_core: int | None = None
    loads: int | None = None


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
) -> Facts:
    """Compile ``forward`` or ``backward`` as the launcher would and read the result."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from tritongru.kernels import resident

    fn = getattr(resident, f"resident_{kernel}_kernel")
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
        constants |= {"USE_DY": True, "USE_DHN": True}
    signature = {
        name: "constexpr" if name in constants else "i32" if name in ("T", "B") else "*" + ELEMENT[dtype]
        for name in fn.arg_names
    }
    signature["offsets"] = "*i64"
    aligned = {
        (i,): [["tt.divisibility", 16]] for i, name in enumerate(fn.arg_names) if signature[name].startswith("*")
    }
    backend, chip, lanes = TARGETS[arch]
    options = {"num_warps": launch.num_warps} | resident.compiler_options(backend, launch)
    compiled = triton.compile(
        ASTSource(fn, signature, constants, aligned), target=GPUTarget(backend, chip, lanes), options=options
    )
    if backend == "hip":
        scratch = re.search(r"\.private_segment_fixed_size:\s*(\d+)", compiled.asm["amdgcn"])
        return Facts(compiled.metadata.shared, int(scratch[1]) if scratch else 0)
    return _read_sass(compiled.asm["cubin"], compiled.metadata.shared)


def _read_sass(cubin: bytes, shared_bytes: int) -> Facts:
    import triton

    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, sass = (
            subprocess.run([cuobjdump, flag, file.name], capture_output=True, text=True, check=True).stdout
            for flag in ("-res-usage", "-sass")
        )
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump told no register count: {usage!r}")
    loop = _longest_loop(re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(.*?);", sass))
    count = [sum(bool(re.search(pattern, line)) for line in loop) for pattern in (r"\bBAR\.", "MMA", r"\bLDG")]
    return Facts(shared_bytes, int(found[2]), int(found[1]), len(loop), *count)


def _longest_loop(code: list[tuple[str, str]]) -> list[str]:
    """The instructions between the farthest backward branch and its target: the time loop."""
    place = {int(address, 16): i for i, (address, _) in enumerate(code)}
    best: list[str] = []
    for i, (_, line) in enumerate(code):
        branch = re.search(r"\bBRA\b.*0x([0-9a-f]+)", line)
        to = place.get(int(branch[1], 16)) if branch else None
        if to is not None and to < i and i - to >= len(best):
            best = [text for _, text in code[to : i + 1]]
    return best


def candidates(backend: str, kind: str, hidden: int) -> list[Launch]:
    warps = (4, 8, 16) if hidden == 128 else (4, 8) if hidden == 64 or hidden > 96 or kind != "16-bit" else (4,)
    if backend == "hip":
        warps = (4,)
    return [
        Launch(chunks_of(hidden), BLOCK_B, w, stages, 0, dot_precision(backend, kind))
        for w in warps
        for stages in ((2, 1) if backend == "hip" else (3, 2, 1))
    ]


def rows_for(backend: str, kernel: str, kind: str, hidden: int) -> list[dict[str, Any]]:
    """The configurations worth keeping, the cheapest first."""
    dtype = "bfloat16" if kind == "16-bit" else "float32"
    archs = ["gfx942", "gfx950"] if backend == "hip" else ["sm_90", "sm_80"]
    largest = max(gpu.shared_bytes for gpu in GPUS.values() if gpu.backend == backend)
    priced = []
    for launch in candidates(backend, kind, hidden):
        facts = compile_kernel(kernel, hidden, dtype, launch, archs[0])
        tight = launch.num_warps == 4 and (facts.registers or 0) > SPARE_REGISTERS
        if facts.shared_bytes > largest or facts.stack or tight:
            continue
        slots = (facts.instructions or 0) * max(1, launch.num_warps / SCHEDULERS)
        cost = slots + BARRIER_CYCLES * (facts.barriers or 0)
        priced.append((cost or -launch.stages, launch, facts))
    rows: list[dict[str, Any]] = []
    for _, launch, facts in sorted(priced, key=lambda item: item[0]):
        if not _worth_keeping(rows, facts.shared_bytes):
            continue
        other = [*_demanding(kernel, hidden, dtype, launch, archs[0])]
        other.append(compile_kernel(kernel, hidden, dtype, launch, archs[1], packed=True))
        shared = max(f.shared_bytes for f in (facts, *other))
        if shared > largest or any(f.stack for f in other) or not _worth_keeping(rows, shared):
            continue
        newer = ("sm_100", "sm_120") if backend == "cuda" else ()
        spills = []
        for arch in newer:
            plain = compile_kernel(kernel, hidden, dtype, launch, arch)
            if plain.stack or any(f.stack for f in _demanding(kernel, hidden, dtype, launch, arch)):
                spills.append(arch)
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
                "spills_on": spills,
            }
        )
    return rows


def _worth_keeping(rows: list[dict[str, Any]], shared_bytes: int) -> bool:
    """A dearer configuration is for chips on which the cheaper ones do not fit or spill."""
    return all(shared_bytes < row["shared_bytes"] or row["spills_on"] for row in rows)


def _demanding(kernel: str, hidden: int, dtype: str, launch: Launch, arch: str) -> Iterator[Facts]:
    """The options that ask for the most registers: two directions and packed rows, of sizes that align badly."""
    for size in (hidden - 1, hidden - 4):
        yield compile_kernel(kernel, size, dtype, launch, arch, directions=2, packed=True)


def picked(arch: str, kernel: str) -> list[tuple[str, int, Launch]]:
    """(kind, padded hidden size, configuration) of every row that the plan picks on a chip."""
    device = next(gpu for gpu in GPUS.values() if gpu.arch == arch)
    found = []
    for kind, sizes in SIZES.items():
        for hidden in sizes:
            dtype = "float16" if kind == "16-bit" else "float32"
            precision = "ieee" if kind == "ieee" else "tf32"
            answer = plan(hidden, dtype, device, precision=precision, training=kernel == "backward")
            launch: Launch | None = getattr(answer, kernel)
            if launch is not None and sum(launch.chunks) == hidden:
                found.append((kind, hidden, launch))
    return found


def check(arch: str, kernel: str) -> None:
    """Compile each picked row plainly and with an odd size, two directions, packed rows or nothing saved, by turns;
    on sm_90, whose counts are in the table, each row both ways."""
    for i, (kind, hidden, launch) in enumerate(picked(arch, kernel)):
        dtype = ("bfloat16", "float16")[i % 2] if kind == "16-bit" else "float32"
        found = {}
        if arch == "sm_90" or i % 2:
            found["plain"] = compile_kernel(kernel, hidden, dtype, launch, arch)
        if arch == "sm_90" or not i % 2:
            size, packed, save_gates = hidden - (1, 0, 4)[i % 3], i % 4 < 2, i % 8 < 4
            found["other"] = compile_kernel(
                kernel, size, dtype, launch, arch, directions=2, packed=packed, save_gates=save_gates
            )
        facts = {name: asdict(value) for name, value in found.items()}
        print(json.dumps({"kind": kind, "hidden": hidden, "plan": asdict(launch), "found": facts}), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.compile", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("table")
    commands.add_parser("markdown")
    command = commands.add_parser("check")
    command.add_argument("arch", choices=TARGETS)
    command.add_argument("kernel", choices=("forward", "backward"))
    args = parser.parse_args()
    if args.command != "markdown" and os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("TRITON_INTERPRET=1 is set, so nothing would be compiled; unset it")
    if args.command == "markdown":
        print(markdown())
    elif args.command == "check":
        check(args.arch, args.kernel)
    else:
        make_table()
    return 0


def markdown() -> str:
    columns = ["backend", "kernel", "kind", "hidden", "chunks", "num_warps", "stages", "shared_bytes", "registers"]
    columns += ["instructions", "barriers", "tensor_core"]
    lines = ["| " + " | ".join(columns).replace("_", " ") + " |", "|" + " --- |" * len(columns)]
    for row in json.loads(LAUNCHES.read_text()):
        cells = [row[name] for name in columns]
        cells[4] = " + ".join(map(str, row["chunks"]))
        lines.append("| " + " | ".join("-" if cell is None else str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def make_table() -> None:
    rows: list[dict[str, Any]] = []
    for backend in ("cuda", "hip"):
        for kind, sizes in SIZES.items():
            for kernel in ("forward", "backward"):
                for hidden in sizes:
                    found = rows_for(backend, kernel, kind, hidden)
                    rows += found
                    print(backend, kind, kernel, hidden, len(found), flush=True)
    temporary = LAUNCHES.with_suffix(".tmp")
    temporary.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    temporary.replace(LAUNCHES)


if __name__ == "__main__":
    sys.exit(main())

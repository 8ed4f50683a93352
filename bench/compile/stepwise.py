"""The table of stepwise launches: the first of a few candidates that compiles without spilling on every chip."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from bench.compile.machine_code import FORMS, Facts, compile_for, dtype_of
from bench.compile.tables import unread, write
from tritongru.planning.devices import GPUS
from tritongru.planning.launches import Row, StepwiseLaunch, dot_precision

HIDDEN = 4096  # for the counts; the code depends on the block, not on this size
ARCHS = ("sm_80", "sm_86", "sm_100", "sm_120")  # besides sm_90
SMALLEST_SHARED = min(gpu.shared_bytes for gpu in GPUS.values() if gpu.backend == "cuda")
# block_b, block_h, block_k, num_warps, stages: groups for fewer and for more rows, the best first in each. 32 units per
# program give 128 programs at H=4096, about one per multiprocessor; a tile of few rows must then keep 36 KB of W_hh in
# flight on each (4.8 TB/s for a microsecond, over 132 multiprocessors). For many rows the best tile reads the least
# from L2: block_b + 3 block_h elements forward and block_b + block_h backward for each k. Backward that would be
# 64 x 64, which spills 8 to 32 bytes on sm_90 in every form tried.
CANDIDATES: dict[tuple[str, str], tuple[tuple[tuple[int, int, int, int, int], ...], ...]] = {
    ("forward", "16-bit"): (
        ((16, 32, 128, 8, 4),),
        ((64, 32, 64, 8, 4),),
        ((128, 32, 64, 8, 3), (128, 32, 32, 8, 3)),
    ),
    ("backward", "16-bit"): (
        ((16, 32, 256, 8, 4),),
        ((64, 32, 64, 8, 4),),
    ),
    ("forward", "tf32"): (
        ((16, 32, 64, 8, 4),),
        ((64, 32, 32, 8, 4),),
        ((128, 32, 32, 8, 3),),
    ),
    ("backward", "tf32"): (
        ((16, 32, 128, 8, 4),),
        ((64, 32, 64, 8, 4),),
    ),
    ("forward", "ieee"): (
        ((16, 32, 64, 8, 4),),
        ((64, 32, 32, 8, 4), (64, 32, 16, 8, 4), (64, 16, 32, 8, 4)),
        ((128, 32, 32, 8, 3), (128, 16, 32, 8, 3)),
    ),
    ("backward", "ieee"): (
        ((16, 32, 64, 8, 4),),
        ((64, 32, 32, 8, 4),),
    ),
}


def compile_launch(
    kernel: str,
    launch: StepwiseLaunch,
    hidden: int,
    dtype: str,
    arch: str,
    *,
    directions: int = 1,
    packed: bool = False,
    save_gates: bool = True,
    use_h0: bool = True,
    ragged: bool = False,
    counts: bool = True,
) -> Facts:

    from tritongru.kernels.stepwise.backward_kernel import stepwise_backward_kernel
    from tritongru.kernels.stepwise.forward_kernel import stepwise_forward_kernel
    from tritongru.kernels.stepwise.launch import blocks

    constants = {
        "D": directions,
        "H": hidden,
        "USE_H0": use_h0,
        "PACKED": packed,
        "UPCAST": False,
        **blocks(launch),
    }
    constants |= {"USE_BIAS": True, "SAVE_GATES": save_gates} if kernel == "forward" else {"USE_DY": True}
    if ragged:
        constants["RAGGED"] = True
    fn = {"forward": stepwise_forward_kernel, "backward": stepwise_backward_kernel}[kernel]
    return compile_for(fn, constants, dtype, launch.num_warps, arch, counts)


def compile_form(row: Row, launch: StepwiseLaunch, name: str, arch: str, counts: bool = True) -> Facts:
    """See `readings.compile_form`."""
    form = FORMS[name]
    asked = (row["kernel"], launch, HIDDEN - form.less, dtype_of(row["kind"]), arch)
    return compile_launch(*asked, directions=form.directions, packed=form.packed, ragged=form.ragged, counts=counts)


def plain(kernel: str, launch: StepwiseLaunch, kind: str, arch: str) -> Facts:
    return compile_launch(kernel, launch, HIDDEN, dtype_of(kind), arch)


def others(kernel: str, launch: StepwiseLaunch, kind: str, arch: str) -> Iterator[Facts]:
    """Two directions, packed rows and an unaligned size need the most registers; on sm_90 also aligned sizes that are
    not multiples of a block."""
    yield compile_launch(kernel, launch, HIDDEN - 1, dtype_of(kind), arch, directions=2, packed=True)
    if arch == "sm_90":
        yield compile_launch(kernel, launch, 3000, dtype_of(kind, 1), arch, directions=2)
        yield compile_launch(kernel, launch, 3000, dtype_of(kind), arch, save_gates=False, use_h0=False)


def compiled(kernel: str, kind: str, launch: StepwiseLaunch) -> StepwiseLaunch | None:
    """The launch with its readings, or None if it spills on sm_90 or does not fit on some chip."""
    first = plain(kernel, launch, kind, "sm_90")
    found = {"sm_90": [first] if first.stack else [first, *others(kernel, launch, kind, "sm_90")]}
    if not any(facts.stack for facts in found["sm_90"]):
        found |= {arch: [plain(kernel, launch, kind, arch), *others(kernel, launch, kind, arch)] for arch in ARCHS}
    shared = max(facts.shared_bytes for some in found.values() for facts in some)
    spills = {arch: stack for arch, some in found.items() if (stack := max(facts.stack for facts in some))}
    print(kernel, kind, launch, f"{shared} bytes of shared memory, stack {spills}", flush=True)
    if "sm_90" in spills or shared > SMALLEST_SHARED:
        return None
    return replace(
        launch,
        shared_bytes=shared,
        instructions=first.instructions or 0,
        barriers=first.barriers or 0,
        spills_on=tuple(spills),
    )


def kept(kernel: str, kind: str, group: tuple[tuple[int, int, int, int, int], ...]) -> Iterator[StepwiseLaunch]:
    """The first that does not spill on sm_90; then, until no chip is without one, those that spill on fewer chips."""
    spills: set[str] | None = None
    for shape in group:
        candidate = StepwiseLaunch(*shape, shared_bytes=0, dot_precision=dot_precision("cuda", kind))
        launch = compiled(kernel, kind, candidate)
        if launch is not None and (spills is None or set(launch.spills_on) < spills):
            yield launch
            spills = set(launch.spills_on)
        if spills == set():
            return


def make() -> None:
    rows: list[dict[str, Any]] = []
    for (kernel, kind), groups in CANDIDATES.items():
        for group in groups:
            for launch in kept(kernel, kind, group):
                fields = {name: value for name, value in asdict(launch).items() if name != "dot_precision"}
                rows.append({"backend": "cuda", "kernel": kernel, "kind": kind, **fields})
    write("stepwise", map(unread, rows))

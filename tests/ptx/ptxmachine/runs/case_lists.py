"""The lists of cases. A case depends on its own form alone, so that a new row in a table changes no other case."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ptxmachine.runs.cases import SINGLE, Case, Key, forms, single_forms
from tritongru.planning import candidates
from tritongru.planning.devices import GPUS, Device
from tritongru.planning.launches import AnyLaunch, PersistentLaunch, StepwiseLaunch, tritons_read
from tritongru.planning.triton_versions import has_fences, installed

KINDS = ("16-bit", "tf32", "ieee")
KERNELS = ("forward", "backward")
ALL_TENSORS = ("gx", "w_hh", "b_hh", "h0", "dy")
CHIPS = ("h100", "a100")
LARGEST_OTHER = 512  # hidden size of the persistent kernels' second case: larger ones take minutes


class Form(NamedTuple):
    """A launch with what its cases begin with, and a number that is its own."""

    launch: AnyLaunch
    size: int
    start: dict[str, Any]
    number: int

    def dtype(self, other: bool = False) -> str:
        """Each 16-bit form is run in one type by its first case and in the other by its second."""
        return ("bf16", "fp16")[(self.number + other) % 2] if self.start["kind"] == "16-bit" else "fp32"

    def choices(self) -> dict[str, Any]:
        """What a second case leaves out, and whether its rows are packed."""
        n = self.number
        return {
            "D": 2,
            "packed": n // 2 % 2 == 0,
            "h0": n % 3 > 0,
            "gates": n // 4 % 2 == 0,
            "bias": n % 5 > 0,
            "dy": n // 8 % 4 > 0,
        }


def all_forms(family: str) -> Iterator[Form]:
    """Small sizes first, because they take the least time."""
    found = [(key, form, launch) for key, rows in forms(family).items() for form, launch in rows.items()]
    for (kernel, kind, size), form, launch in sorted(found, key=lambda one: (one[0][2] or 0, *one[0][:2], one[1])):
        start = {"family": family, "kernel": kernel, "kind": kind, "size": size, "form": form}
        yield Form(launch, size or 0, start, zlib.crc32(f"{kernel} {kind} {size} {form}".encode()))


def resident() -> Iterator[Case]:
    """Each form with the hidden size that it is for, and with a smaller one, two directions and a second batch tile."""
    for one in all_forms("resident"):
        yield Case(**one.start, dtype=one.dtype(), H=one.size, T=4, B=16)
        H = one.size - (15, 1, 8, 3)[one.number % 4]
        yield Case(**one.start, dtype=one.dtype(True), H=H, T=4, B=19, **one.choices())


def persistent() -> Iterator[Case]:
    """Each form with the hidden size that it is for, and one batch tile."""
    for one in all_forms("persistent"):
        assert isinstance(one.launch, PersistentLaunch)
        yield Case(**one.start, dtype=one.dtype(), H=one.size, T=3, B=one.launch.block_b)


def persistent_other() -> Iterator[Case]:
    """Each form of up to LARGEST_OTHER units with fewer of them, two directions and three batch tiles."""
    for one in all_forms("persistent"):
        assert isinstance(one.launch, PersistentLaunch)
        if one.size <= LARGEST_OTHER:
            H, B = one.size - (1, 8, 3, 60)[one.number % 4], 2 * one.launch.block_b + 3
            groups = 1 + one.number % 2
            yield Case(**one.start, dtype=one.dtype(True), H=H, T=4, B=B, groups=groups, **one.choices())


def stepwise() -> Iterator[Case]:
    """Each form with three blocks of units or more, and with an odd size, two directions and a second batch tile."""
    for one in all_forms("stepwise"):
        assert isinstance(one.launch, StepwiseLaunch)
        yield Case(**one.start, dtype=one.dtype(), H=288, T=2, B=one.launch.block_b)
        H, B = (137, 264, 99)[one.number % 3], one.launch.block_b + 5
        yield Case(**one.start, dtype=one.dtype(True), H=H, T=3, B=B, **one.choices())


def ragged() -> Iterator[Case]:
    """Each form of up to LARGEST_OTHER units once: two directions, sequences that end early and begin anew, a second
    batch tile, and of some a longest length below T, of some a backward pass in parts."""
    for one in (*all_forms("resident"), *all_forms("stepwise"), *all_forms("persistent")):
        if one.start["family"] == "persistent" and one.size > LARGEST_OTHER:
            continue
        n, T, B = one.number, 4, one.launch.block_b + 3
        sizes: dict[str, Any] = {
            "H": one.size - (3, 8, 1, 5)[n % 4] if one.size else (99, 137, 72)[n % 3],
            "T": T,
            "B": B,
        }
        more = one.choices() | {"packed": False, "ragged": (T - n // 3 % 2, (B, 1)[n // 2 % 2])}
        if one.start["kernel"] == "backward" and n // 16 % 3 == 0:
            more["parts"] = (1, T - 1)
        if isinstance(one.launch, PersistentLaunch):
            more["groups"] = 1 + n % 2
        yield Case(**one.start, dtype=one.dtype(n // 32 % 2 == 0), **sizes, **more)


def single() -> Iterator[Case]:
    """Each form of the single step with aligned sizes, and with odd ones, two tiles, and something left out."""
    for kind, forms_of_kind in single_forms().items():
        for form in forms_of_kind.values():
            start: dict[str, Any] = {"family": SINGLE, "kernel": "step", "kind": kind, "size": None, "form": form.name}
            n, B = zlib.crc32(f"{kind} {form.name}".encode()), form.block_b + 3
            dtypes = ("bf16", "fp16") if kind == "16-bit" else ("fp32", "fp32")
            yield Case(**start, dtype=dtypes[n % 2], H=64, T=1, B=form.block_b, inputs=256, ragged=(1, 0))
            more: dict[str, Any] = {"h0": n % 3 > 0, "bias": n // 2 % 2 == 0, "y": n // 4 % 2 == 0}
            more["ragged"] = (1, 0) if more["h0"] and n // 8 % 2 else None
            yield Case(**start, dtype=dtypes[(n + 1) % 2], H=37, T=1, B=B, inputs=(5, 40, 17)[n // 16 % 3], **more)
            yield Case(**start, dtype=dtypes[n % 2], H=70, T=1, B=B, inputs=33, ragged=(1, 0))
    for kind, dtype in (("16-bit", "bf16"), ("tf32", "fp32")):
        form = next(iter(single_forms()[kind].values()))
        start = {"family": SINGLE, "kernel": "step", "kind": kind, "size": None, "form": form.name}
        yield Case(**start, dtype=dtype, H=1, T=1, B=1, inputs=1)
        yield Case(**start, dtype=dtype, H=512, T=1, B=1, inputs=512)


def start_of(
    family: str, kernel: str, kind: str, size: int | None, wanted: Callable[[Any], bool] = lambda launch: True
) -> dict[str, Any] | None:
    """The first form of a table that is ``wanted``, as the start of a case; if there is one, of those that may run on
    all of CHIPS with every Triton."""
    key = kernel, kind, size
    found = [form for form, launch in forms(family).get(key, {}).items() if wanted(launch)]
    form = next((form for form in found if fits_everywhere(family, key, form)), next(iter(found), None))
    return None if form is None else {"family": family, "kernel": kernel, "kind": kind, "size": size, "form": form}


def fits_everywhere(family: str, key: Key, form: str) -> bool:
    launches = [forms(family, triton)[key][form] for triton in tritons_read()]
    return all(candidates.fits(launch, GPUS[chip]) for launch in launches for chip in CHIPS)


def extra() -> Iterator[Case]:
    """Odd sizes, tensors that are not aligned, several tiles for one program, and backward passes in parts."""
    for kernel in KERNELS:
        yield from extra_resident(kernel)
        yield from extra_persistent(kernel)
        for kind, dtype in (("16-bit", "bf16"), ("tf32", "fp32")):
            if start := start_of("stepwise", kernel, kind, None):
                yield Case(**start, dtype=dtype, H=101, T=2, B=20, D=2, unaligned=ALL_TENSORS)
    yield from in_parts()


def extra_resident(kernel: str) -> Iterator[Case]:
    for kind, dtype in (("16-bit", "bf16"), ("tf32", "fp32"), ("ieee", "fp32"), ("16-bit", "fp16")):
        if start := start_of("resident", kernel, kind, 32):
            yield Case(**start, dtype=dtype, H=16, T=5, B=3, D=2)
            yield Case(**start, dtype=dtype, H=1, T=1, B=1)
        if start := start_of("resident", kernel, kind, 80):
            yield Case(**start, dtype=dtype, H=65, T=3, B=33, D=2, unaligned=ALL_TENSORS)
    if start := start_of("resident", kernel, "16-bit", 128):
        yield Case(**start, dtype="bf16", H=128, T=5, B=33, unaligned=("w_hh", "b_hh"))
    if start := start_of("resident", kernel, "16-bit", 112):
        yield Case(**start, dtype="fp16", H=100, T=6, B=18, D=2, packed=True)


def extra_persistent(kernel: str) -> Iterator[Case]:
    """Of the smallest size, once for each form of exchange."""
    for kind, dtype in (("16-bit", "bf16"), ("tf32", "fp32"), ("ieee", "fp32")):
        size = smallest(kernel, kind)
        for exchange in ("counter", "data"):
            if start := start_of("persistent", kernel, kind, size, functools.partial(is_narrow, exchange)):
                yield Case(**start, dtype=dtype, H=96, T=4, B=37, D=2, groups=1)  # the last tile has five rows
                yield Case(**start, dtype=dtype, H=101, T=3, B=16, unaligned=ALL_TENSORS)
                yield Case(**start, dtype=dtype, H=96, T=1, B=1, D=2, h0=False)
                yield Case(**start, dtype=dtype, H=96, T=6, B=20, D=2, packed=True, groups=1)


def is_narrow(exchange: str, launch: PersistentLaunch) -> bool:
    return launch.exchange == exchange and launch.block_b == 16


def smallest(kernel: str, kind: str) -> int | None:
    return min((size or 0 for one, other, size in forms("persistent") if (one, other) == (kernel, kind)), default=None)


def in_parts() -> Iterator[Case]:
    """Backward passes in parts of the steps."""
    for family, kind, size, H, dtype in (
        ("resident", "16-bit", 80, 65, "bf16"),
        ("resident", "tf32", 48, 40, "fp32"),
        ("persistent", "16-bit", smallest("backward", "16-bit"), 101, "fp16"),
        ("persistent", "tf32", smallest("backward", "tf32"), 96, "fp32"),
        ("stepwise", "16-bit", None, 101, "bf16"),
    ):
        if start := start_of(family, "backward", kind, size):
            for parts in ((2, 3), (1, 1, 3)):
                yield Case(**start, dtype=dtype, H=H, T=5, B=19, D=2, parts=parts)


LISTS: dict[str, Callable[[], Iterator[Case]]] = {
    "resident": resident,
    "persistent": persistent,
    "persistent-other": persistent_other,
    "stepwise": stepwise,
    "extra": extra,
    "ragged": ragged,
    "single": single,
}


def offered(name: str, device: Device, triton: str | None = None) -> list[Case]:
    """The cases of a list whose forms the plan may give to the device, with the installed Triton or another."""
    return [case for case in LISTS[name]() if _is_offered(case, device, triton)]


def _is_offered(case: Case, device: Device, triton: str | None) -> bool:
    if case.family != SINGLE:
        return candidates.fits(case.launch(triton), device)
    return device.family != "sm_90" or case.form in single_forms(has_fences(triton or installed()))[case.kind]

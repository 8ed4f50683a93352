"""Every buffer that a compiled pass is given, inside a larger one of its own, on whose other values it must not depend.

``Fences`` puts itself between the launcher and the machine code. What the pass is to fill is NaN before; around every
buffer lie NaNs with a payload, which must be as they were afterwards; and what it only reads must not change.
"""

import ctypes
import mmap
import struct
from collections.abc import Callable
from types import TracebackType
from unittest import mock

import torch
from torch import Tensor

from tritongru.llvm import launch
from tritongru.llvm.passes.call import CALL
from tritongru.planning.cpu_plan import KEPT

FORM = struct.Struct(f"{len(CALL.fields)}q")
ROOM = 4097  # elements on either side; odd, so that no window is aligned
BITS = {4: (torch.int32, 0x7FC0BEEF), 8: (torch.int64, 0x7FF8BEEFBEEFBEEF)}  # NaN; as an offset far too large
CHANGED = {"dh", "dx", "dw_ih", "dw_hh", "db_ih", "db_hh"}  # by a backward
ITEMSIZE = {"float": 4, "double": 8}


def counts_of(fields: dict[str, int]) -> dict[str, int]:
    """Elements of each tensor of a call."""
    D, B, T, I, H = (fields[name] for name in "DBTIH")
    N = T * B
    if fields["offsets"]:
        N = ctypes.c_int64.from_address(fields["offsets"] + 8 * T).value
    w_ih, w_hh, bias, states = D * 3 * H * I, D * 3 * H * H, D * 3 * H, D * B * H
    return {
        "x": N * I,
        "w_ih": w_ih,
        "w_hh": w_hh,
        "b_ih": bias,
        "b_hh": bias,
        "h0": states,
        "offsets": T + 1,
        "y": N * D * H,
        "hn": states,
        "kept": N * D * KEPT * H,
        "dy": N * D * H,
        "dh": states,
        "dx": N * I,
        "dw_ih": w_ih,
        "dw_hh": w_hh,
        "db_ih": bias,
        "db_hh": bias,
        "zeros": H,
        "scratch": D * fields["share"],
    }


class Window:
    """A copy of so many elements between fences. ``filled``: they are NaN at first instead."""

    def __init__(self, address: int, count: int, size: int, filled: bool) -> None:
        self.original, self.bytes = address, count * size
        kind, self.pattern = BITS[size]
        self.inside = self.place(count, size, kind)
        if filled:
            self.inside.fill_(self.pattern)
        else:
            ctypes.memmove(self.inside.data_ptr(), address, self.bytes)

    def place(self, count: int, size: int, kind: torch.dtype) -> Tensor:
        self.room = torch.full((ROOM + count + ROOM,), self.pattern, dtype=kind)
        return self.room[ROOM : ROOM + count]

    def broken(self) -> str:
        sides = {"before": self.room[:ROOM], "behind": self.room[-ROOM:]}
        return " and ".join(side for side, values in sides.items() if (values != self.pattern).any())

    def changed(self) -> bool:
        return ctypes.string_at(self.inside.data_ptr(), self.bytes) != ctypes.string_at(self.original, self.bytes)

    def give_back(self) -> None:
        ctypes.memmove(self.original, self.inside.data_ptr(), self.bytes)


class _Page(Window):
    """A window beside a page that nobody may touch: a pass that does so ends the process."""

    at_end: bool

    def place(self, count: int, size: int, kind: torch.dtype) -> Tensor:
        page = mmap.PAGESIZE
        behind = (-(-count * size // page) + 1) * page
        everything = torch.frombuffer(mmap.mmap(-1, behind + page), dtype=torch.uint8)
        protect = ctypes.CDLL(None).mprotect
        protect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        for place in (0, behind):
            assert protect(everything.data_ptr() + place, page, 0) == 0
        start = behind - count * size if self.at_end else page
        return everything[start : start + count * size].view(kind)

    def broken(self) -> str:
        return ""


class BeforePage(_Page):
    at_end = True


class BehindPage(_Page):
    at_end = False


class Fences:
    """While entered, passes run between fences. ``broken``: what they did that they must not; ``threads``: how many
    they took at most."""

    def __init__(self, window: type[Window] = Window) -> None:
        self.broken: list[str] = []
        self.passes = self.threads = 0
        self._window, self._function_of = window, launch.function_of
        self._held: dict[int, int] = {}  # address -> bytes of the tensor whose address was asked for
        self._patches = [
            mock.patch.object(launch, "function_of", self._fenced),
            mock.patch.object(Tensor, "data_ptr", self._address()),
        ]

    def __enter__(self) -> "Fences":
        for patch in self._patches:
            patch.start()
        forget()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for patch in self._patches:
            patch.stop()
        forget()
        assert self.passes or error, "nothing ran between the fences"

    def _address(self) -> Callable[[Tensor], int]:
        plain, held = Tensor.data_ptr, self._held

        def data_ptr(tensor: Tensor) -> int:
            address = plain(tensor)
            held[address] = max(held.get(address, 0), tensor.nbytes)
            return address

        return data_ptr

    def _fenced(self, isa: str, scalar: str, kernel: str) -> Callable[[bytes], None]:
        run = self._function_of(isa, scalar, kernel)

        def fenced(packed: bytes) -> None:
            fields = dict(zip(CALL.fields, FORM.unpack(packed), strict=True))
            self.threads = max(self.threads, fields["threads"])
            forward = kernel in ("forward", "step")
            outputs = {"y", "hn", "kept"} if forward else CHANGED
            filled = {"scratch"} | (outputs if forward else {"dx"} if fields["D"] == 1 else set())
            windows = {}
            for name, count in counts_of(fields).items():
                size = 8 if name == "offsets" else ITEMSIZE[scalar]
                address = fields[name]
                if address and count:
                    held = self._held.get(address, count * size)
                    assert held >= count * size, f"{name} is a tensor of {held} bytes, {kernel} takes {count * size}"
                    windows[name] = self._window(address, count, size, name in filled)
            run(FORM.pack(*(fields | {name: w.inside.data_ptr() for name, w in windows.items()}).values()))
            self.passes += 1
            for name, window in windows.items():
                if sides := window.broken():
                    self.broken.append(f"{kernel} wrote {sides} {name}")
                if name in outputs:
                    window.give_back()
                elif name != "scratch" and window.changed():
                    self.broken.append(f"{kernel} wrote to {name}")

        return fenced


def forget() -> None:
    """What the launcher keeps of calls by their sizes."""
    for value in vars(launch).values():
        if hasattr(value, "cache_clear") and value.__module__ == launch.__name__:
            value.cache_clear()

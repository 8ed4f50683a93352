"""Every buffer that a compiled pass is given, inside a larger one of its own, on whose other values it must not depend.

``Fences`` puts itself between the launcher and the machine code. What the pass is to fill is NaN before; around every
buffer lie NaNs with a payload, which must be as they were afterwards; and what it only reads must not change.
"""

import ctypes
import mmap
import struct
from collections.abc import Callable, Collection
from types import TracebackType
from unittest import mock

import torch
from torch import Tensor

from tritongru.llvm import launch, segments
from tritongru.llvm.language import Record
from tritongru.llvm.passes.call import CALL
from tritongru.llvm.passes.segments import SEGMENTS
from tritongru.planning.cpu_plan import KEPT

FORM = struct.Struct(f"{len(CALL.fields)}q")
INDEX_FORM = struct.Struct(f"{len(SEGMENTS.fields)}q")
ROOM = 4097  # elements on either side; odd, so that no window is aligned
# NaN; as an offset far too large, as a reset True.
BITS = {1: (torch.uint8, 0xEF), 4: (torch.int32, 0x7FC0BEEF), 8: (torch.int64, 0x7FF8BEEFBEEFBEEF)}
CHANGED = {"dh", "dx", "dw_ih", "dw_hh", "db_ih", "db_hh", "d_reset"}  # by a backward
INDEX = {"offsets", "places", "source", "target"}  # int64, whatever the tensors are
FOUND = {"counts", "offsets", "places", "source", "target"}  # what later passes read of the segments
ITEMSIZE = {"float": 4, "double": 8}


def counts_of(fields: dict[str, int], whole: tuple[int, int] | None = None) -> dict[str, int]:
    """Elements of each tensor of a call. ``whole``: of ragged rows, steps and sequences of its tensors; then B and T
    are those of the segments."""
    D, B, T, I, H = (fields[name] for name in "DBTIH")
    N = rows = T * B
    if fields["offsets"]:
        N = rows = ctypes.c_int64.from_address(fields["offsets"] + 8 * T).value
    if whole is not None:
        N, B = whole[0] * whole[1], whole[1]
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
        "kept": rows * D * KEPT * H,
        "dy": N * D * H,
        "dh": states,
        "dx": N * I,
        "dw_ih": w_ih,
        "dw_hh": w_hh,
        "db_ih": bias,
        "db_hh": bias,
        "places": rows,
        "source": 2 * fields["segments"],
        "target": 2 * fields["segments"],
        "reset_state": states,
        "d_reset": states,
        "zeros": H,
        "scratch": D * fields["share"],
    }


def counts_of_index(fields: dict[str, int]) -> dict[str, int]:
    """Elements of what the search for segments reads and writes."""
    T, B = fields["T"], fields["B"]
    segments = B + (T - 1) * B if fields["resets"] else B
    return {
        "lengths": B,
        "resets": T * B,
        "counts": 3,
        "offsets": T + 1,
        "places": T * B,
        "source": 2 * segments,
        "target": 2 * segments,
        "ends": B,
        "begun": B,
        "next": T + 1,
    }


class Window:
    """A copy of so many elements between fences. ``filled``: they are NaN at first instead."""

    others: Tensor | None = None  # rows of a matrix that nobody may write to

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

    def keep(self, rows: Tensor, width: int, filled: bool) -> None:
        """Of a matrix whose rows have so many elements, all but these rows are a fence, too, and are not given back."""
        matrix = self.inside.view(-1, width)
        self.others = torch.ones(len(matrix), dtype=torch.bool).index_fill_(0, rows, False)
        matrix[slice(None) if filled else self.others] = self.pattern

    def broken(self) -> str:
        sides = {"before": self.room[:ROOM], "behind": self.room[-ROOM:], "to the padding of": self._padding()}
        return " and ".join(side for side, values in sides.items() if (values != self.pattern).any())

    def _padding(self) -> Tensor:
        return self.inside[:0] if self.others is None else self.inside.view(len(self.others), -1)[self.others]

    def changed(self) -> bool:
        return ctypes.string_at(self.inside.data_ptr(), self.bytes) != ctypes.string_at(self.original, self.bytes)

    def give_back(self) -> None:
        if self.others is not None:
            own = self.inside.view(len(self.others), -1)
            before = torch.empty_like(own)
            ctypes.memmove(before.data_ptr(), self.original, self.bytes)
            own[self.others] = before[self.others]
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
        return "to the padding of" if (self._padding() != self.pattern).any() else ""


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
        self._index_of = segments.function_of
        self._held: dict[int, int] = {}  # address -> bytes of the tensor whose address was asked for
        self._whole: dict[int, tuple[int, int]] = {}  # address of offsets -> steps and sequences
        self._patches = [
            mock.patch.object(launch, "function_of", self._fenced),
            mock.patch.object(segments, "function_of", self._fenced_index),
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
            fields = fields_of(CALL, FORM, packed)
            self.threads = max(self.threads, fields["threads"])
            forward = kernel in ("forward", "step")
            outputs = {"y", "hn", "kept"} if forward else CHANGED
            filled = {"scratch"} | (outputs if forward else {"dx"} if fields["D"] == 1 else set())
            ragged = fields["places"] != 0
            counts = counts_of(fields, self._whole[fields["offsets"]] if ragged else None)
            sizes = {name: 8 if name in INDEX else ITEMSIZE[scalar] for name in counts}
            windows = self._windows(kernel, fields, counts, sizes, filled)
            if ragged:
                places = torch.tensor(
                    list((ctypes.c_int64 * counts["places"]).from_address(fields["places"])), dtype=torch.int64
                )
                widths = {"y": fields["D"] * fields["H"], "dx": fields["I"]}
                for name in widths.keys() & outputs & windows.keys():
                    windows[name].keep(places, widths[name], name in filled)
            self._run(kernel, run, FORM, fields, windows, outputs, {"scratch"})

        return fenced

    def _fenced_index(self, isa: str, scalar: str, kernel: str) -> Callable[[bytes], None]:
        run = self._index_of(isa, scalar, kernel)

        def fenced(packed: bytes) -> None:
            fields = fields_of(SEGMENTS, INDEX_FORM, packed)
            self._whole[fields["offsets"]] = fields["T"], fields["B"]
            counts = counts_of_index(fields)
            sizes = {name: 1 if name == "resets" else 8 for name in counts}
            written = counts.keys() - {"lengths", "resets"}
            windows = self._windows(kernel, fields, counts, sizes, written)
            self._run(kernel, run, INDEX_FORM, fields, windows, FOUND, written - FOUND)

        return fenced

    def _windows(
        self,
        kernel: str,
        fields: dict[str, int],
        counts: dict[str, int],
        sizes: dict[str, int],
        filled: Collection[str],
    ) -> dict[str, Window]:
        windows = {}
        for name, count in counts.items():
            address, size = fields[name], sizes[name]
            if address and count:
                held = self._held.get(address, count * size)
                assert held >= count * size, f"{name} is a tensor of {held} bytes, {kernel} takes {count * size}"
                windows[name] = self._window(address, count, size, name in filled)
        return windows

    def _run(
        self,
        kernel: str,
        run: Callable[[bytes], None],
        form: struct.Struct,
        fields: dict[str, int],
        windows: dict[str, Window],
        outputs: Collection[str],
        working: Collection[str],
    ) -> None:
        run(form.pack(*(fields | {name: w.inside.data_ptr() for name, w in windows.items()}).values()))
        self.passes += 1
        for name, window in windows.items():
            if sides := window.broken():
                self.broken.append(f"{kernel} wrote {sides} {name}")
            if name in outputs:
                window.give_back()
            elif name not in working and window.changed():
                self.broken.append(f"{kernel} wrote to {name}")


def fields_of(record: Record, form: struct.Struct, packed: bytes) -> dict[str, int]:
    return dict(zip(record.fields, form.unpack(packed), strict=True))


def forget() -> None:
    """What the launcher keeps of calls by their sizes."""
    for value in vars(launch).values():
        if hasattr(value, "cache_clear") and value.__module__ == launch.__name__:
            value.cache_clear()

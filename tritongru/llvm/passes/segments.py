"""The segments of ragged sequences: from a sequence's first step or a reset to the next reset or the end.

Segments are independent of each other, like the sequences of a batch, so a pass walks through them as through packed
rows, the longest first. What it needs for that is found here: which segment a row belongs to, where the row lies in the
tensors of the call, and which state a segment begins with and where its last one goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tritongru.llvm.language import I8, I64, PTR, Function, Module, Operand, Record, Value
from tritongru.llvm.passes.call import Layer
from tritongru.llvm.passes.packing import copy_rows

# ``lengths`` (B,) or null, ``resets`` (T, B) bytes or null. Written: ``counts``, the number of segments, the steps of
# the longest one, and 1 if a length is outside of [0, T]; ``offsets`` (T + 1,), the first row of each step; ``places``
# (T * B,), which row of the tensors it is; ``source`` and ``target`` (segments, 2), of each segment and direction: the
# row of h0 that it begins with, or -1 minus that of the reset state, and the row of h_n where its last state goes, or
# -1. ``ends``, ``begun`` (B,) and ``next`` (T + 1,): working memory.
SEGMENTS = Record(
    **dict.fromkeys(("lengths", "resets"), PTR),
    **dict.fromkeys(("counts", "offsets", "places", "source", "target", "ends", "begun", "next"), PTR),
    T=I64,
    B=I64,
)
# Of a segment: its sequence, its first step, its length, and whether (1 or 0) it begins with a reset and is the last.
Visit = Callable[[Value, Value, Value, Value, Value], None]


def write_segments(m: Module) -> None:
    with m.function("segments", {"call": PTR}, public=True) as (f, call):
        own = {name: SEGMENTS.get(f, call, name) for name in SEGMENTS.fields}
        T, B = own["T"], own["B"]

        def place(name: str, k: Operand, f: Function = f) -> Value:
            return f.at(own[name], k, I64)

        def number(name: str, k: Operand, f: Function = f) -> Value:
            return f.load(place(name, k), I64)

        odd = f.variable(f.integer(0))
        with f.loop(0, B) as b:
            end = f.variable(T)
            with f.given(f.is_there(own["lengths"])):
                given = number("lengths", b)
                end.set(f.most(f.least(given, T), 0))
                with f.otherwise(given.equals(end.get())):
                    odd.set(1)
            f.store(end.get(), place("ends", b))
        with f.loop(0, T + 1) as length:
            f.store(f.integer(0), place("next", length))

        def count(b: Value, start: Value, length: Value, fresh: Value, last: Value) -> None:
            f.store(number("next", length) + 1, place("next", length))

        _each(f, own, count)
        total = f.variable(f.integer(0))  # of the segments longer than this length
        with f.loop(0, T + 1) as k:
            more = number("next", T - k)
            f.store(total.get(), place("next", T - k))
            total.set(total.get() + more)
        rows, steps = f.variable(f.integer(0)), f.variable(f.integer(0))
        with f.loop(0, T) as t:
            f.store(rows.get(), place("offsets", t))
            with f.given(number("next", t) > 0):
                steps.set(t + 1)
            rows.set(rows.get() + number("next", t))
        f.store(rows.get(), place("offsets", T))
        for k, value in enumerate((total, steps, odd)):
            f.store(value.get(), place("counts", k))

        def put(b: Value, start: Value, length: Value, fresh: Value, last: Value) -> None:
            segment = number("next", length)
            f.store(segment + 1, place("next", length))
            first = f.select(start.equals(0), f.integer(1), f.integer(0))
            for d, (by_reset, ends) in enumerate(((fresh, last), (1 - last, first))):
                row = b + B * d
                source = f.select(by_reset.equals(0), row, -1 - row)
                f.store(source, place("source", segment * 2 + d))
                f.store(f.select(ends.equals(0), f.integer(-1), row), place("target", segment * 2 + d))
            with f.loop(0, length) as k:
                f.store((start + k) * B + b, place("places", number("offsets", k) + segment))

        _each(f, own, put)


def _each(f: Function, own: dict[str, Value], visit: Visit) -> None:
    """Visits all segments, always in the same order. ``begun``, of each sequence: twice the first step of the segment
    that is going on, plus one if it begins with a reset."""
    T, B, resets = own["T"], own["B"], own["resets"]

    def finish(b: Value, end: Value, last: int) -> None:
        begun = f.load(f.at(own["begun"], b, I64), I64)
        start = begun // 2
        with f.given(end > start if not last else end >= start):  # a reset at step 0 ends nothing
            visit(b, start, end - start, begun % 2, f.integer(last))

    def look(t: Value, b: Value) -> None:
        resets_here = f.load(f.at(resets, t * B + b, I8), I8).equals(0)
        with f.otherwise(resets_here), f.given(t < f.load(f.at(own["ends"], b, I64), I64)):
            finish(b, t, last=0)
            f.store(t * 2 + 1, f.at(own["begun"], b, I64))

    with f.loop(0, B) as b:
        f.store(f.integer(0), f.at(own["begun"], b, I64))
    with f.given(f.is_there(resets)), f.loop(0, T) as t:
        whole = B - B % 8
        with f.loop(0, whole, 8) as first:  # resets are rare: eight are looked at together
            eight = f.load(f.at(resets, t * B + first, I8), I64, align=1)
            with f.otherwise(eight.equals(0)), f.loop(first, first + 8) as b:
                look(t, b)
        with f.loop(whole, B) as b:
            look(t, b)
    with f.loop(0, B) as b:
        finish(b, f.load(f.at(own["ends"], b, I64), I64), last=1)


# What the passes do with it


def first_states(f: Function, own: Layer, d: Value, target: Value) -> None:
    """Copies the state that each segment begins with."""
    m, H = f.module, own.H
    copy = m.once("copy_rows", copy_rows)
    with f.loop(0, own.segments) as segment:
        row = f.load(f.at(own.source, segment * 2 + d, I64), I64)
        state = f.variable(own.zeros)
        for of_h0, states, place in ((row >= 0, own.h0, row), (row < 0, own.reset_state, -1 - row)):
            with f.given(f.both(of_h0, f.is_there(states))):
                state.set(f.at(states, place * H, m.scalar))
        f.call(copy, state.get(), H, f.at(target, segment * H, m.scalar), H, 1, H)


def last_states(f: Function, own: Layer, d: Value, states: Value) -> None:
    """Copies the last states of sequences to h_n."""
    m, H = f.module, own.H
    copy = m.once("copy_rows", copy_rows)
    with f.loop(0, own.segments) as segment:
        row = f.load(f.at(own.target, segment * 2 + d, I64), I64)
        with f.given(row >= 0):
            state = f.at(states, segment * H, m.scalar)
            f.call(copy, state, H, f.at(own.hn, row * H, m.scalar), H, 1, H)


def gradients_of_last_states(f: Function, own: Layer, d: Value, target: Value) -> None:
    """Moves the gradient of h_n to the segments that end there; of all others it is zero."""
    m, H = f.module, own.H
    copy = m.once("copy_rows", copy_rows)
    with f.loop(0, own.segments) as segment:
        row = f.load(f.at(own.target, segment * 2 + d, I64), I64)
        here, there = f.at(target, segment * H, m.scalar), f.variable(own.zeros)
        with f.given(row >= 0):
            there.set(f.at(own.dh, row * H, m.scalar))
        f.call(copy, there.get(), H, here, H, 1, H)
        with f.given(row >= 0):
            f.call(copy, own.zeros, 0, there.get(), H, 1, H)


def gradients_of_first_states(f: Function, own: Layer, d: Value, gradients: Value) -> None:
    """Copies the gradients of the states that segments begin with to that of h0, or adds them to that of the reset
    state, in the order of the segments."""
    m, H = f.module, own.H
    copy, add = m.once("copy_rows", copy_rows), m.once("add_row", add_row)
    with f.loop(0, own.segments) as segment:
        row = f.load(f.at(own.source, segment * 2 + d, I64), I64)
        here = f.at(gradients, segment * H, m.scalar)
        with f.given(row >= 0):
            f.call(copy, here, H, f.at(own.dh, row * H, m.scalar), H, 1, H)
        with f.given(f.both(row < 0, f.is_there(own.d_reset))):
            f.call(add, here, f.at(own.d_reset, (-1 - row) * H, m.scalar), H)


def add_row(m: Module) -> Function:
    """target += source, of ``columns`` values."""
    L = m.lanes
    with (
        m.function("add_row", {"source": PTR, "target": PTR, "columns": I64}) as (f, source, target, columns),
        f.loop(0, columns, L) as k,
    ):
        mask = f.first_lanes(columns - k, L)
        here, there = f.at(source, k, m.scalar), f.at(target, k, m.scalar)
        total = f.masked_load(there, m.vector, mask) + f.masked_load(here, m.vector, mask)
        f.masked_store(total, there, mask)
    return f  # type: ignore[no-any-return]


def gather_rows(m: Module) -> Function:
    """Copies those rows of a matrix with ``stride`` that ``places`` names, side by side."""
    parameters = {"matrix": PTR, "stride": I64, "places": PTR, "target": PTR, "rows": I64, "columns": I64}
    with m.function("gather_rows", parameters) as (f, matrix, stride, places, target, rows, columns):
        vectors = _vectors(f, columns)
        with f.loop(0, rows) as row:
            there = f.load(f.at(places, row, I64), I64)
            source, to = f.at(matrix, there * stride, m.scalar), f.at(target, row * columns, m.scalar)
            for k, masked in vectors():
                f.store_lanes(f.load_lanes(f.at(source, k, m.scalar), m.vector, masked), f.at(to, k, m.scalar), masked)
    return f  # type: ignore[no-any-return]


def _vectors(f: Function, columns: Value) -> Callable[[], Iterator[tuple[Value, Value | None]]]:
    """Writes the code for each vector of a row, and for the rest of the row: where it begins, and its mask."""
    L = f.module.lanes
    whole = columns - columns % L
    mask = f.first_lanes(columns - whole, L)

    def each() -> Iterator[tuple[Value, Value | None]]:
        with f.loop(0, whole, L) as k:
            yield k, None
        with f.given(whole < columns):
            yield whole, mask

    return each


def scatter_rows(m: Module) -> Function:
    """The inverse of ``gather_rows``; ``adds``: 1 to add to the rows, 0 to replace them."""
    parameters = {"source": PTR, "places": PTR, "matrix": PTR, "stride": I64, "rows": I64, "columns": I64, "adds": I64}
    add = m.once("add_row", add_row)
    with m.function("scatter_rows", parameters) as (f, source, places, matrix, stride, rows, columns, adds):
        vectors, replaces = _vectors(f, columns), adds.equals(0)
        with f.loop(0, rows) as row:
            there = f.load(f.at(places, row, I64), I64)
            here, target = f.at(source, row * columns, m.scalar), f.at(matrix, there * stride, m.scalar)
            with f.given(replaces):
                for k, masked in vectors():
                    value = f.load_lanes(f.at(here, k, m.scalar), m.vector, masked)
                    f.store_lanes(value, f.at(target, k, m.scalar), masked)
            with f.otherwise(replaces):
                f.call(add, here, target, columns)
    return f  # type: ignore[no-any-return]

"""The record in which a compiled pass receives a layer, and what follows from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tritongru.llvm.language import I64, PTR, Function, Record, Value
from tritongru.planning.cpu_plan import PARTS

# Missing tensors and gradients that are not needed are null. ``y``, ``hn``, ``dy`` and so on as in the operators;
# ``kept`` (N, D, KEPT, H); ``dh``: on entry the gradient of h_n, on exit that of h0. Of ragged rows ``places``,
# ``source`` and ``target`` are as in ``segments.py``, ``reset_state`` and its gradient ``d_reset`` (D, sequences, H),
# the batch consists of segments, and ``B`` is at least their number.
TENSORS = (
    *("x", "w_ih", "w_hh", "b_ih", "b_hh", "h0", "offsets", "y", "hn", "kept"),
    *("dy", "dh", "dx", "dw_ih", "dw_hh", "db_ih", "db_hh"),
    *("places", "source", "target", "reset_state", "d_reset", "zeros", "scratch"),
)
COUNTS = ("T", "segments")  # what may differ between calls of one size
_SIZES = ("D", "B", "I", "H", "chunk", "groups", "threads")  # chunk: steps; groups: of rows, one task each
CALL = Record(
    **dict.fromkeys(TENSORS, PTR),
    **dict.fromkeys(COUNTS, I64),
    **dict.fromkeys(_SIZES, I64),
    share=I64,
    **{f"at_{part}": I64 for part in PARTS},
    parallel=PTR,
)


class Layer:
    """The fields of a call, each read where it is used, and what follows from them."""

    def __init__(self, f: Function, call: Value) -> None:
        self.f, self.call = f, call

    def __getattr__(self, name: str) -> Value:
        if name not in CALL.fields:
            raise AttributeError(name)
        return CALL.get(self.f, self.call, name)

    @property
    def vectors(self) -> Value:
        """Vectors of units."""
        return vectors_of(self.f, self.H)

    def scratch_of(self, d: Value) -> Value:
        return self.f.at(self.scratch, d * self.share, self.f.module.scalar)

    def first_row(self, t: Value) -> Value:
        """The first row of step t; for t = T the number of all rows."""
        f = self.f
        row, offsets = f.variable(t * self.B), self.offsets
        with f.given(f.is_there(offsets)):
            row.set(f.load(f.at(offsets, t, I64), I64))
        return row.get()

    def most_rows(self, count: Value) -> Value:
        """At least the rows of a chunk of ``count`` steps in any direction."""
        f = self.f
        return f.select(f.is_there(self.offsets), self.chunk, count) * self.B

    @property
    def is_ragged(self) -> Value:
        return self.f.is_there(self.places)

    def rows_of_group(self, group: Value, t: Value) -> tuple[Value, Value]:
        """The first of a group's rows in the batch, and their end, of those that there are at step t; groups consist of
        whole tiles except the last."""
        f, R = self.f, self.f.module.isa.rows
        rows = self.first_row(t + 1) - self.first_row(t)
        each = (rows + self.groups * R - 1) // (self.groups * R) * R
        first = f.least(group * each, rows)
        return first, f.least(first + each, rows)


@contextmanager
def chunks(own: Layer, backward: bool) -> Iterator[tuple[Value, Value]]:
    """The chunks of a walk: the first step of each, and the number of its steps. It is ``chunk``, or more where fewer
    rows are left: as many steps as have no more rows, in any direction."""
    f, T, D = own.f, own.T, own.D
    first, count = f.variable(f.integer(0)), f.variable(f.integer(0))
    with f.forever() as done:
        begin = first.get()
        f.leave(done, begin >= T)
        count.set(f.least(T - begin, own.chunk))
        with f.given(f.is_there(own.offsets)), f.forever() as enough:
            end = begin + count.get() + 1
            f.leave(enough, end > T)
            ahead = own.first_row(end) - own.first_row(begin)
            back = own.first_row(T - begin) - own.first_row(T - end)
            rows = f.select(D.equals(1), back if backward else ahead, f.most(ahead, back))
            f.leave(enough, rows > own.chunk * own.B)
            count.set(count.get() + 1)
        yield begin, count.get()
        first.set(begin + count.get())


class Walk:
    """A task's way through the steps of a chunk in direction d, from the walk's step ``first`` on. A backward pass
    walks each direction from its last step."""

    def __init__(self, own: Layer, d: Value, backward: bool) -> None:
        self.own, self.d = own, d
        self.ahead = d.equals(1 if backward else 0)  # whether it walks forward in time

    def step(self, walked: Value) -> Value:
        return self.own.f.select(self.ahead, walked, self.own.T - 1 - walked)

    def earliest(self, first: Value, count: Value) -> Value:
        """The earliest in time of the ``count`` steps of the walk from ``first`` on."""
        return self.own.f.select(self.ahead, first, self.own.T - first - count)

    def neighbour(self, t: Value, before: bool) -> Value:
        """The step before or after t in the direction of the state, or t itself if there is none."""
        f, T = self.own.f, self.own.T
        earlier = self.d.equals(0 if before else 1)
        return f.select(earlier, f.most(t - 1, 0), f.least(t + 1, T - 1))

    def shared(self, t: Value, other: Value, start: Value, end: Value) -> Value:
        """The end of those rows in [start, end) of step t that the other step has as well; ``start`` if the other step
        is t itself."""
        f, own = self.own.f, self.own
        found = f.least(own.first_row(other + 1) - own.first_row(other), end)
        return f.select(other.equals(t), start, f.most(found, start))


def states_before(
    own: Layer, walk: Walk, t: Value, start: Value, end: Value, states: Value
) -> list[tuple[Value, Value, Value, Value]]:
    """For the rows [start, end) of step t: (from, to, address of their previous states, stride). ``states``: of ragged
    rows, the states of the previous step."""
    f, scalar, ragged = own.f, own.f.module.scalar, own.is_ragged
    before = walk.neighbour(t, before=True)
    middle = walk.shared(t, before, start, end)
    apart = f.select(ragged, own.H, own.D * own.H)
    of_y = f.variable(f.at(own.y, (own.first_row(before) + start) * apart + walk.d * own.H, scalar))
    first = f.select(ragged, f.at(own.scratch_of(walk.d), own.at_h0, scalar), own.h0)
    there = f.is_there(first)
    of_h0 = f.variable(own.zeros)
    stride = f.select(there, own.H, f.integer(0))
    with f.given(there):
        of_h0.set(f.at(first, (f.select(ragged, f.integer(0), walk.d * own.B) + middle) * own.H, scalar))
    with f.given(ragged):
        of_y.set(f.at(states, start * own.H, scalar))
    return [(start, middle, of_y.get(), apart), (middle, end, of_h0.get(), stride)]


def vectors_of(f: Function, count: Value) -> Value:
    L = f.module.lanes
    return (count + (L - 1)) // L

"""Products of a few rows with packed weights, in registers.

A matrix of weights is packed into strips: one vector of columns for every k, one after the other. A tile multiplies R
rows of the left matrix with V strips. Its sums start at zero and add the products in the order of k, in blocks that
depend only on K, not on R and V, so that a row has the same bits in every tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from tritongru.llvm.language import BITS, I64, PTR, Function, Module, Value
from tritongru.planning.cpu_plan import LINE


class Left(NamedTuple):
    """The left matrix, with K columns. ``stride``: from row to row, with adjacent k; or, if ``across``, from k to k,
    with adjacent rows."""

    matrix: Value
    stride: Value
    K: Value
    across: bool = False


ABREAST = 3  # strips that are multiplied across at once
SUMMED = 128  # products that are summed in one chain

# Writes the code for a tile of R rows and V strips, given its first row and strip.
Body = Callable[[int, int, Value, Value], None]


class Tiles:
    """The tiles of a module, each written when first needed."""

    def __init__(self, module: Module) -> None:
        self.module = module

    def strip(self, K: Value) -> Value:
        """As ``strip_length``."""
        return K * self.module.lanes + LINE * 8 // BITS[self.module.scalar]

    def sums(self, R: int, V: int) -> Function:
        """The sums of a tile, to (R, V, lanes)."""

        def write(m: Module) -> Function:
            with m.function(f"sums_{R}x{V}", {**_TILE, "target": PTR}) as (f, a, stride, b, strip, K, target):
                _sum(f, Left(a, stride, K), b, strip, R, V, target)
            return f  # type: ignore[no-any-return]

        return self.module.once(f"sums_{R}x{V}", write)

    def added(self, R: int, V: int, across: bool) -> Function:
        """The sums of a tile, plus ``plus``, into rows in memory, with ``columns`` columns left from the tile's first
        one on."""
        L, name = self.module.lanes, f"added_{R}x{V}{'_across' if across else ''}"
        parameters = {**_TILE, "plus": PTR, "plus_stride": I64, "target": PTR, "target_stride": I64, "columns": I64}

        def write(m: Module) -> Function:
            rest = m.once("sums_to_rows", _sums_to_rows)
            with m.function(name, parameters) as (f, a, stride, b, strip, K, *places):
                plus, plus_stride, target, target_stride, columns = places
                sums = f.local(m.vector, R * V)
                _sum(f, Left(a, stride, K, across), b, strip, R, V, sums)
                whole = columns >= V * L
                with f.given(whole):
                    for r in range(R):
                        row, to = (f.at(p, s * r, m.scalar) for p, s in ((plus, plus_stride), (target, target_stride)))
                        for v in range(V):
                            value = f.load(f.at(sums, (r * V + v) * L, m.scalar), m.vector)
                            more = f.load(f.at(row, v * L, m.scalar), m.vector)
                            f.store(value + more, f.at(to, v * L, m.scalar))
                with f.otherwise(whole):
                    f.call(rest, sums, R, V, *places)
            return f  # type: ignore[no-any-return]

        return self.module.once(name, write)


def over(f: Function, tiles: dict[int, tuple[int, ...]], rows: Value, strips: Value, body: Body) -> None:
    """Covers rows and strips with tiles. Strips stay in the nearest cache while the rows change."""
    most = max(tiles)
    done = rows - rows % most
    for R in sorted(tiles, reverse=True):
        cuts = list(_cut(f, tiles[R], strips))
        if most == R:
            for V, first, end in cuts:
                with f.loop(first, end, V) as strip, f.loop(0, done, R) as row:
                    body(R, V, row, strip)
            continue
        more = rows - done >= R
        with f.given(more):
            for V, first, end in cuts:
                with f.loop(first, end, V) as strip:
                    body(R, V, done, strip)
        done = f.select(more, done + R, done)


_TILE = {"a": PTR, "stride": I64, "b": PTR, "strip": I64, "K": I64}


def _sum(f: Function, left: Left, b: Value, strip: Value, R: int, V: int, sums: Value) -> None:
    """Sums ``SUMMED`` products at a time in registers, starting from zero, and adds these sums up. One long chain would
    be several times less exact than torch's products."""
    m, L = f.module, f.module.lanes
    with f.loop(0, left.K, SUMMED) as first:
        found = [f.variable(f.constant(0.0, m.vector)) for _ in range(R * V)]
        with f.loop(first, f.least(first + SUMMED, left.K)) as k:
            here = f.at(b, k * L, m.scalar)
            weights = [f.load(f.at(here, strip * v, m.scalar), m.vector) for v in range(V)]
            for r in range(R):
                place = left.stride * k + r if left.across else left.stride * r + k
                value = f.splat(f.load(f.at(left.matrix, place, m.scalar), m.scalar), L)
                for v in range(V):
                    found[r * V + v].set(f.fma(value, weights[v], found[r * V + v].get()))
        places = [f.at(sums, k * L, m.scalar) for k in range(R * V)]
        with f.given(first > 0):
            for total, place in zip(found, places, strict=True):
                total.set(total.get() + f.load(place, m.vector))
        for total, place in zip(found, places, strict=True):
            f.store(total.get(), place)


def product(m: Module, tiles: Tiles, across: bool = False) -> Function:
    """A function for target = plus + left right, restricted to the first ``columns`` columns. ``plus``: null, or added
    last: a matrix or, with stride 0, one row for all. ``across``: for at most ``ABREAST`` strips."""
    L = m.lanes
    parameters = {
        "rows": I64,
        "a": PTR,
        "a_stride": I64,
        "K": I64,
        "b": PTR,
        "columns": I64,
        "plus": PTR,
        "plus_stride": I64,
        "target": PTR,
        "stride": I64,
    }
    with m.function(f"product{'_across' if across else ''}", parameters) as (f, rows, a, a_stride, K, b, *rest):
        columns, plus, plus_stride, target, stride = rest
        length, adds = tiles.strip(K), f.is_there(plus)
        widths = {R: tuple(V for V in own if V <= ABREAST or not across) for R, own in m.isa.tiles.items()}
        most = max(max(own) for own in widths.values())
        zeros = f.local(m.vector, most)
        for v in range(most):
            f.store(f.constant(0.0, m.vector), f.at(zeros, v * L, m.scalar))

        def body(R: int, V: int, row: Value, strip: Value) -> None:
            column = strip * L
            f.call(
                *(tiles.added(R, V, across), f.at(a, row if across else row * a_stride, m.scalar), a_stride),
                *(f.at(b, strip * length, m.scalar), length, K),
                f.select(adds, f.at(plus, row * plus_stride + column, m.scalar), zeros),
                *(f.select(adds, plus_stride, f.integer(0)), f.at(target, row * stride + column, m.scalar), stride),
                columns - column,
            )

        over(f, widths, rows, (columns + (L - 1)) // L, body)
    return f  # type: ignore[no-any-return]


def _sums_to_rows(m: Module) -> Function:
    """What ``Tiles.added`` does if a tile reaches beyond the last column."""
    L = m.lanes
    parameters = {
        "sums": PTR,
        "R": I64,
        "V": I64,
        "plus": PTR,
        "plus_stride": I64,
        "target": PTR,
        "stride": I64,
        "columns": I64,
    }
    with m.function("sums_to_rows", parameters) as (f, sums, R, V, plus, plus_stride, target, stride, columns):
        whole = f.least(columns // L, V)
        mask = f.first_lanes(columns - whole * L, L)
        with f.loop(0, R) as r:
            for masked, low, high in ((None, f.integer(0), whole), (mask, whole, f.least(whole + 1, V))):
                with f.loop(low, high) as v:
                    value = f.load(f.at(sums, (r * V + v) * L, m.scalar), m.vector)
                    more = f.load_lanes(f.at(plus, r * plus_stride + v * L, m.scalar), m.vector, masked)
                    f.store_lanes(value + more, f.at(target, r * stride + v * L, m.scalar), masked)
    return f  # type: ignore[no-any-return]


def _cut(f: Function, widths: tuple[int, ...], strips: Value) -> Iterator[tuple[int, Value, Value]]:
    """Which tile widths cover which strips."""
    first = f.integer(0)
    for V in widths:
        left = strips - first
        end = first + left - left % V
        if V == 3 and 2 in widths:  # two and two instead of three and one, which has too few sums
            lone = f.both((left % V).equals(1), left > 1)
            end = f.select(lone, end - V, end)
        yield V, first, end
        first = end

"""Brings weights and rows into the order in which tiles read them."""

from __future__ import annotations

from tritongru.llvm.language import BITS, I64, PTR, Function, Module, Value, lanes_of


def strip_of_rows(m: Module) -> Function:
    """A strip of L rows of a matrix (rows, K), which become a tile's columns. The last row is repeated beyond the end:
    those results are not read."""
    L = m.lanes
    parameters = {"matrix": PTR, "rows": I64, "K": I64, "first": I64, "strip": PTR}
    with m.function("strip_of_rows", parameters) as (f, matrix, rows, K, first, strip):
        lines = [f.at(matrix, f.least(first + lane, rows - 1) * K, m.scalar) for lane in range(L)]
        whole = K - K % L
        with f.loop(0, whole, L) as k:
            columns = transposed(f, [f.load(f.at(line, k, m.scalar), m.vector) for line in lines])
            for j, column in enumerate(columns):
                f.store(column, f.at(strip, (k + j) * L, m.scalar))
        with f.loop(whole, K) as k:
            for lane, line in enumerate(lines):
                f.store(f.load(f.at(line, k, m.scalar), m.scalar), f.at(strip, k * L + lane, m.scalar))
    return f  # type: ignore[no-any-return]


def strip_of_columns(m: Module) -> Function:
    """``rows`` rows of a strip of L columns of a matrix with row stride ``stride``; zeros beyond the last column."""
    L = m.lanes
    parameters = {"matrix": PTR, "stride": I64, "rows": I64, "columns": I64, "first": I64, "strip": PTR}
    with m.function("strip_of_columns", parameters) as (f, matrix, stride, rows, columns, first, strip):
        source, whole = f.at(matrix, first, m.scalar), columns - first >= L
        mask = f.first_lanes(columns - first, L)
        with f.given(whole), f.loop(0, rows) as row:
            f.store(f.load(f.at(source, row * stride, m.scalar), m.vector), f.at(strip, row * L, m.scalar))
        with f.otherwise(whole), f.loop(0, rows) as row:
            value = f.masked_load(f.at(source, row * stride, m.scalar), m.vector, mask)
            f.store(value, f.at(strip, row * L, m.scalar))
    return f  # type: ignore[no-any-return]


def copy_rows(m: Module) -> Function:
    """Copies ``rows`` rows of ``columns`` values."""
    L = m.lanes
    parameters = {"source": PTR, "source_stride": I64, "target": PTR, "target_stride": I64, "rows": I64, "columns": I64}
    with m.function("copy_rows", parameters) as (f, source, source_stride, target, target_stride, rows, columns):
        whole = columns - columns % L
        mask = f.first_lanes(columns - whole, L)
        with f.loop(0, rows) as row:
            there, here = f.at(target, row * target_stride, m.scalar), f.at(source, row * source_stride, m.scalar)
            with f.loop(0, whole, L) as k:
                f.store(f.load(f.at(here, k, m.scalar), m.vector), f.at(there, k, m.scalar))
            with f.given(whole < columns):
                f.masked_store(
                    f.masked_load(f.at(here, whole, m.scalar), m.vector, mask), f.at(there, whole, m.scalar), mask
                )
    return f  # type: ignore[no-any-return]


def transposed(f: Function, rows: list[Value]) -> list[Value]:
    """Transposes L vectors of L lanes by exchanging halves, quarters and so on."""
    L, step = len(rows), len(rows) // 2
    while step:
        first = [k if not k & step else L + k - step for k in range(L)]
        second = [k + step if not k & step else L + k for k in range(L)]
        new = list(rows)
        for i in range(L):
            if not i & step:
                new[i] = f.shuffle(rows[i], rows[i + step], first)
                new[i + step] = f.shuffle(rows[i], rows[i + step], second)
        rows, step = new, step // 2
    return rows


PIECE = 16  # bytes that move between lanes of a vector without crossing its quarters


def quarter(m: Module) -> int:
    """Numbers in a piece, at most a vector's."""
    return min(m.lanes, PIECE * 8 // BITS[m.scalar])


def columns_of(f: Function, lines: list[Value]) -> list[Value]:
    """The first few columns (as many as a piece has numbers) of L rows at these addresses: pieces of rows that lie far
    apart are loaded side by side, so that only numbers within a piece have to be exchanged. That takes half as many
    shuffles as transposing a square."""
    m = f.module
    L, Q = m.lanes, quarter(m)
    rows = []
    for i in range(Q):
        parts = [f.load(line, f"<{Q} x {m.scalar}>") for line in lines[i::Q]]
        while len(parts) > 1:
            wide = range(2 * lanes_of(parts[0].kind))
            parts = [f.shuffle(a, b, wide) for a, b in zip(parts[::2], parts[1::2], strict=True)]
        rows.append(parts[0])
    step = Q // 2
    while step:
        first = [lane if not lane & step else L + lane - step for lane in range(L)]
        second = [lane + step if not lane & step else L + lane for lane in range(L)]
        new = list(rows)
        for i in range(Q):
            if not i & step:
                new[i] = f.shuffle(rows[i], rows[i + step], first)
                new[i + step] = f.shuffle(rows[i], rows[i + step], second)
        rows, step = new, step // 2
    return rows

"""The forward pass of a layer.

Weights are packed; then, for each chunk of time, the products of the inputs are followed by the loop over the steps,
which finds the products in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tritongru.llvm.language import I64, PTR, Function, Module, Operand, Record, Value, lanes_of
from tritongru.llvm.passes import gate_math
from tritongru.llvm.passes.call import Layer, Walk, chunks, states_before
from tritongru.llvm.passes.packing import copy_rows, strip_of_rows
from tritongru.llvm.passes.phases import PHASE, Task, run, worker
from tritongru.llvm.passes.segments import first_states, gather_rows, last_states, scatter_rows
from tritongru.llvm.passes.tiles import Tiles, over, product
from tritongru.planning.cpu_plan import KEPT

BLOCK = 64  # rows of a task of products


@dataclass(frozen=True)
class Parts:
    """What a backward pass that rebuilds gates shares with the forward pass. ``step``: for rows in one direction."""

    pack: Function
    begin: Function
    project: Function
    step: Function


def write_forward(m: Module, tiles: Tiles) -> None:
    found = write_parts(m, tiles, backward=False)
    walk = worker(m, "walk_forward", _walk(m, found.step))
    end = worker(m, "end_segments", _end)
    with m.function("forward", {"call": PTR}, public=True) as (f, call):
        own, phase = Layer(f, call), f.local(I64, len(PHASE.fields))
        D = own.D
        run(f, call, phase, found.pack, D * own.vectors)
        with f.given(own.is_ragged):
            run(f, call, phase, found.begin, D)
        with chunks(own, backward=False) as (first, count):
            PHASE.set(f, phase, first=first, count=count)
            run(f, call, phase, found.project, D * blocks_of(own.most_rows(count)))
            run(f, call, phase, walk, D * own.groups)
        with f.given(own.is_ragged):
            run(f, call, phase, end, D)


def write_parts(m: Module, tiles: Tiles, backward: bool) -> Parts:
    pack = worker(m, "pack_forward", _pack(m, tiles))
    begin = worker(m, "begin_segments", _begin)
    return Parts(pack, begin, worker(m, "project_inputs", _project(m, tiles, backward)), _step(m, tiles))


def blocks_of(rows: Value) -> Value:
    return (rows + (BLOCK - 1)) // BLOCK


def _pack(m: Module, tiles: Tiles) -> Task:
    """Packs one vector of units of one direction, all gates."""
    L, strip_of = m.lanes, strip_of_rows(m)

    def task(f: Function, call: Value, phase: Value, number: Value) -> None:
        own = Layer(f, call)
        H, I, P = own.H, own.I, own.vectors
        d, p = number // P, number % P
        scratch = own.scratch_of(d)
        for gate in range(3):
            row, strip = (d * 3 + gate) * H, p * 3 + gate
            recurrent = f.at(scratch, strip * tiles.strip(H), m.scalar)
            f.call(strip_of, f.at(own.w_hh, row * H, m.scalar), H, H, p * L, recurrent)
            of_inputs = f.at(scratch, own.at_w_ih + strip * tiles.strip(I), m.scalar)
            f.call(strip_of, f.at(own.w_ih, row * I, m.scalar), H, I, p * L, of_inputs)
        b_ih, b_hh = own.b_ih, own.b_hh
        mask = f.first_lanes(H - p * L, L)
        for gate in range(4):  # r, z and n of the input product; n of the state product
            found = f.variable(f.constant(0.0, m.vector))
            with f.given(f.is_there(b_ih)):
                place = (d * 3 + min(gate, 2)) * H + p * L
                if gate < 3:
                    found.set(f.masked_load(f.at(b_ih, place, m.scalar), m.vector, mask))
                if gate != 2:
                    found.set(found.get() + f.masked_load(f.at(b_hh, place, m.scalar), m.vector, mask))
            to = own.at_bias + (p * 3 + gate) * L if gate < 3 else own.at_bias_a + p * L
            f.store(found.get(), f.at(scratch, to, m.scalar))

    return task


def _begin(f: Function, call: Value, phase: Value, number: Value) -> None:
    """The first states of the segments in one direction."""
    own = Layer(f, call)
    first_states(f, own, number, f.at(own.scratch_of(number), own.at_h0, f.module.scalar))


def _end(f: Function, call: Value, phase: Value, number: Value) -> None:
    """h_n in one direction; by now the segments' last states have replaced the first ones."""
    own = Layer(f, call)
    last_states(f, own, number, f.at(own.scratch_of(number), own.at_h0, f.module.scalar))


def rows_of_x(own: Layer, d: Value, row: Value, start: Value, rows: Value) -> Value:
    """The address of ``rows`` rows of x, from ``start`` on behind the chunk's first ``row``; of ragged rows they are
    copied from where they lie."""
    f, m = own.f, own.f.module
    x = f.variable(f.at(own.x, (row + start) * own.I, m.scalar))
    with f.given(own.is_ragged):
        to, places = f.at(own.scratch_of(d), own.at_x + start * own.I, m.scalar), f.at(own.places, row + start, I64)
        f.call(m.written["gather_rows"], own.x, own.I, places, to, rows, own.I)
        x.set(to)
    return x.get()


def _project(m: Module, tiles: Tiles, backward: bool) -> Task:
    """gx = x W_ih^T + b for a block of a chunk's rows, as (row, vector of units, gate, lane)."""
    L, multiply = m.lanes, m.once("product", lambda m: product(m, tiles))
    m.once("gather_rows", gather_rows)

    def task(f: Function, call: Value, phase: Value, number: Value) -> None:
        own = Layer(f, call)
        I, strips = own.I, own.vectors * 3
        first, count = PHASE.get(f, phase, "first"), PHASE.get(f, phase, "count")
        blocks = blocks_of(own.most_rows(count))
        d, start = number // blocks, number % blocks * BLOCK
        begin = Walk(own, d, backward).earliest(first, count)
        row = own.first_row(begin)
        rows = f.least(own.first_row(begin + count) - row - start, BLOCK)
        scratch = own.scratch_of(d)
        w, bias = f.at(scratch, own.at_w_ih, m.scalar), f.at(scratch, own.at_bias, m.scalar)
        gx = f.at(scratch, own.at_gx + start * (strips * L), m.scalar)
        with f.given(rows > 0):
            x = rows_of_x(own, d, row, start, rows)
            f.call(multiply, rows, x, I, I, w, strips * L, bias, 0, gx, strips * L)

    return task


def _walk(m: Module, step: Function) -> Task:
    """All steps of a chunk for the rows of a group, in one direction."""
    copy, scatter = m.once("copy_rows", copy_rows), m.once("scatter_rows", scatter_rows)

    def task(f: Function, call: Value, phase: Value, number: Value) -> None:
        own = Layer(f, call)
        D, H = own.D, own.H
        apart, width = D * H, own.vectors * (3 * m.lanes)
        first, count = PHASE.get(f, phase, "first"), PHASE.get(f, phase, "count")
        d = number // own.groups
        walk, ragged = Walk(own, d, backward=False), own.is_ragged
        earliest = walk.earliest(first, count)
        start, stop = own.rows_of_group(number % own.groups, earliest)
        scratch = own.scratch_of(d)
        gx = f.at(scratch, own.at_gx, m.scalar)
        row_of_chunk = own.first_row(earliest)
        y, hn = f.at(own.y, d * H, m.scalar), f.at(own.hn, d * own.B * H, m.scalar)
        hn = f.select(ragged, f.at(scratch, own.at_h0, m.scalar), hn)
        with f.loop(first, first + count) as walked:
            t = walk.step(walked)
            row = own.first_row(t)
            end = f.least(own.first_row(t + 1) - row, stop)
            before, after = states_of(own, d, walked + 1), states_of(own, d, walked)
            new = f.select(ragged, after, f.at(y, row * apart, m.scalar))
            new_stride = f.select(ragged, H, apart)
            for low, high, h, stride in states_before(own, walk, t, start, end, before):
                with f.given(low < high):
                    saved = f.variable(f.null())
                    with f.given(f.is_there(own.kept)):
                        saved.set(f.at(own.kept, (row + low) * apart * KEPT + d * (H * KEPT), m.scalar))
                    here = f.at(gx, (row + low - row_of_chunk) * width, m.scalar)
                    to = f.at(new, new_stride * low, m.scalar)
                    f.call(step, call, scratch, high - low, h, stride, here, to, new_stride, saved.get(), apart * KEPT)
            goes_on = walk.shared(t, walk.neighbour(t, before=False), start, end)
            with f.given(f.both(goes_on < end, f.is_there(hn))):
                last = f.at(new, new_stride * goes_on, m.scalar)
                f.call(copy, last, new_stride, f.at(hn, goes_on * H, m.scalar), H, end - goes_on, H)
            with f.given(f.both(ragged, start < end)):
                of_group, places = f.at(new, H * start, m.scalar), f.at(own.places, row + start, I64)
                f.call(scatter, of_group, places, y, apart, end - start, H, 0)

    return task


def states_of(own: Layer, d: Value, walked: Value) -> Value:
    """Where the states of ragged rows are after a step of the walk, until the one after the next."""
    return own.f.at(own.scratch_of(d), own.at_states + walked % 2 * (own.B * own.H), own.f.module.scalar)


def _step(m: Module, tiles: Tiles) -> Function:
    """One step of some rows in one direction: products with the state and the gates, vector by vector of units."""
    L, finish_items = m.lanes, _gates_of_items(m)
    parameters = {
        "call": PTR,
        "scratch": PTR,
        "rows": I64,
        "h": PTR,
        "h_stride": I64,
        "gx": PTR,
        "y": PTR,
        "y_stride": I64,
        "kept": PTR,  # or null
        "kept_stride": I64,
    }
    with m.function("step_forward", parameters) as (f, call, scratch, rows, h, h_stride, gx, y, y_stride, *keeps):
        kept, kept_stride = keeps
        own = Layer(f, call)
        H, strips = own.H, own.vectors * 3
        bias_a, items = f.at(scratch, own.at_bias_a, m.scalar), f.local(I64, len(ITEMS.fields))
        sums, length = f.local(m.vector, max(R * max(widths) for R, widths in m.isa.gate_tiles.items())), tiles.strip(H)

        def finish(row: Value, unit: Value, sums: Value, count: Value, apart: Sequence[Operand]) -> None:
            saved = f.variable(kept)
            with f.given(f.is_there(kept)):
                saved.set(f.at(kept, row * kept_stride + unit, m.scalar))
            places = {
                "sums": sums,
                "gx": f.at(gx, row * (strips * L) + unit * 3, m.scalar),
                "h": f.at(h, row * h_stride + unit, m.scalar),
                "y": f.at(y, row * y_stride + unit, m.scalar),
                "kept": saved.get(),
                "bias_a": f.at(bias_a, unit, m.scalar),
            }
            strides = {f"{name}_stride": stride for name, stride in zip(ITEM, apart, strict=True)}
            ITEMS.set(f, items, **places, **strides, count=count, H=H, units=H - unit)
            f.call(finish_items, items)

        def body(R: int, V: int, row: Value, strip: Value) -> None:
            """Gates of several rows for one vector of units or, for a single row, of several vectors of units."""
            right, unit, groups = f.at(scratch, strip * length, m.scalar), strip // 3 * L, V // 3
            f.call(tiles.sums(R, V), f.at(h, row * h_stride, m.scalar), h_stride, right, length, H, sums)
            apart: tuple[Operand, ...]
            if R == 1:
                whole, apart = f.least((H - unit) // L, groups), (3 * L, 3 * L, L, L, L, L)
                with f.given(whole > 0):
                    finish(row, unit, sums, whole, apart)
                with f.given(whole < groups):
                    finish(row, unit + whole * L, f.at(sums, whole * 3 * L, m.scalar), f.integer(1), apart)
                return
            for group in range(groups):
                apart = (V * L, strips * L, h_stride, y_stride, kept_stride, 0)
                finish(row, unit + group * L, f.at(sums, group * 3 * L, m.scalar), f.integer(R), apart)

        over(f, m.isa.gate_tiles, rows, strips, body)
    return f  # type: ignore[no-any-return]


# What the gates of a vector of units need: its sums, input products and states, the addresses of the results, and its
# bias. Items are rows or, for a single row, vectors of units; ``units``: how many remain from the first item's first
# unit on; the last vector may have fewer units than lanes.
ITEM = ("sums", "gx", "h", "y", "kept", "bias_a")
ITEMS = Record(**dict.fromkeys(ITEM, PTR), **{f"{name}_stride": I64 for name in ITEM}, count=I64, H=I64, units=I64)
ABREAST = 4  # items whose gates are computed at once, to hide the latency of each operation


def _gates_of_items(m: Module) -> Function:
    """Gates and new states."""
    L = m.lanes
    with m.function("gates_of_items", {"items": PTR}) as (f, items):
        places = [ITEMS.get(f, items, name) for name in ITEM]
        strides = [ITEMS.get(f, items, f"{name}_stride") for name in ITEM]
        count, H, units = (ITEMS.get(f, items, name) for name in ("count", "H", "units"))
        mask, whole = f.first_lanes(units, L), units >= L

        def some(first: Value, abreast: int, masked: Value | None) -> None:
            own = [
                [f.at(place, stride * (first + k), m.scalar) for place, stride in zip(places, strides, strict=True)]
                for k in range(abreast)
            ]

            def joined(which: int, offset: int, partial: Value | None = None) -> Value:
                found: list[Value] = [
                    f.load_lanes(f.at(item[which], offset, m.scalar), m.vector, partial) for item in own
                ]
                while len(found) > 1:
                    wide = range(2 * lanes_of(found[0].kind))
                    found = [f.shuffle(a, b, wide) for a, b in zip(found[::2], found[1::2], strict=True)]
                return found[0]

            gh = [joined(0, k * L) for k in range(3)]
            gi = [joined(1, k * L) for k in range(3)]
            state = joined(2, 0, masked)
            new, gates = gate_math.step(f, state, (gh[0], gh[1], gh[2] + joined(5, 0)), (gi[0], gi[1], gi[2]))

            def keep(value: Value, which: int, offset: Operand) -> None:
                for k, item in enumerate(own):
                    part = value if abreast == 1 else f.shuffle(value, value, range(k * L, (k + 1) * L))
                    f.store_lanes(part, f.at(item[which], offset, m.scalar), masked)

            keep(new, 3, 0)
            with f.given(f.is_there(places[4])):
                for k, value in enumerate((*gates, state)):
                    keep(value, 4, H * k)

        with f.given(whole):
            pairs = count - count % ABREAST
            with f.loop(0, pairs, ABREAST) as item:
                some(item, ABREAST, None)
            with f.loop(pairs, count) as item:
                some(item, 1, None)
        with f.otherwise(whole), f.loop(0, count) as item:
            some(item, 1, mask)
    return f  # type: ignore[no-any-return]

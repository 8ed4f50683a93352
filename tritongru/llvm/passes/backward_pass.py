"""The backward pass of a layer, the mirror of the forward pass: for each chunk the loop over the steps, the last one
first, then the products over the chunk's rows.

A step first computes the gradients of its gates, stored in a row side by side as (n, r, z, a), so that those of the
input product (n, r, z) and those of the state product (r, z, a) are one operand each. What the forward pass kept of a
step includes the previous state, for the gradient of W_hh; if nothing was kept it is rebuilt from the outputs, chunk by
chunk. Gradients of weights are summed in blocks of rows, and the blocks depend only on the sizes of the call.
"""

from __future__ import annotations

from tritongru.llvm.language import BITS, I64, PTR, Function, Module, Value
from tritongru.llvm.passes import gate_math
from tritongru.llvm.passes.call import Layer, Walk, chunks, states_before, vectors_of
from tritongru.llvm.passes.forward_pass import BLOCK, Parts, blocks_of, rows_of_x, states_of, write_parts
from tritongru.llvm.passes.packing import strip_of_columns
from tritongru.llvm.passes.phases import PHASE, Task, run, worker
from tritongru.llvm.passes.segments import (
    gather_rows,
    gradients_of_first_states,
    gradients_of_last_states,
    scatter_rows,
)
from tritongru.llvm.passes.tiles import ABREAST, SUMMED, Tiles, product
from tritongru.planning.cpu_plan import GRADIENTS, KEPT, LINE, strip_length

N, R, Z, A = range(GRADIENTS)  # the order in a row of gradients, H values each
BEFORE = KEPT - 1
# Rows of a chunk from which on more than ``SUMMED`` products are summed separately before they are added to a gradient
# of weights: with 330,000 rows, chains of ``SUMMED`` added one by one had more than twice torch's error.
MANY = 4096
FAR_BYTES = 128 * SUMMED  # of a strip of such a sum: three strips are on a thread's stack


def write_backward(m: Module, tiles: Tiles) -> None:
    forward = write_parts(m, tiles, backward=True)
    columns = strip_of_columns(m)
    pack = worker(m, "pack_backward", _pack(m, tiles, columns))
    walk = worker(m, "walk_backward", _walk(m, tiles, forward))
    gather = worker(m, "gather_inputs", _gather)
    products = worker(m, "multiply_gradients", _products(m, tiles, columns))
    begin, end = worker(m, "begin_gradients", _begin), worker(m, "end_gradients", _end)
    with m.function("backward", {"call": PTR}, public=True) as (f, call):
        own, phase = Layer(f, call), f.local(I64, len(PHASE.fields))
        D = own.D
        rebuilds = f.is_there(own.kept).equals(0)
        run(f, call, phase, pack, D * (own.vectors + vectors_of(f, own.I)))
        with f.given(rebuilds):
            run(f, call, phase, forward.pack, D * own.vectors)
        with f.given(own.is_ragged):
            run(f, call, phase, begin, D)
        with f.given(f.both(own.is_ragged, rebuilds)):
            run(f, call, phase, forward.begin, D)
        with chunks(own, backward=True) as (first, count):
            PHASE.set(f, phase, first=first, count=count)
            with f.given(rebuilds):
                run(f, call, phase, forward.project, D * blocks_of(own.most_rows(count)))
            run(f, call, phase, walk, D * own.groups)
            with f.otherwise(rebuilds), f.given(f.both(own.is_ragged, f.is_there(own.dw_ih))):
                run(f, call, phase, gather, D * blocks_of(own.most_rows(count)))
            with f.loop(0, D) as d:  # one after the other: both add to the gradient of x
                PHASE.set(f, phase, direction=d)
                tasks = blocks_of(own.most_rows(count)) + _abreast(f, own.I) + _abreast(f, own.H) + 1
                run(f, call, phase, products, tasks)
        with f.given(own.is_ragged):
            run(f, call, phase, end, D)


def _begin(f: Function, call: Value, phase: Value, number: Value) -> None:
    own = Layer(f, call)
    gradients_of_last_states(f, own, number, f.at(own.scratch_of(number), own.at_dh, f.module.scalar))


def _end(f: Function, call: Value, phase: Value, number: Value) -> None:
    own = Layer(f, call)
    gradients_of_first_states(f, own, number, f.at(own.scratch_of(number), own.at_dh, f.module.scalar))


def _gather(f: Function, call: Value, phase: Value, number: Value) -> None:
    """A block of the inputs of a chunk of ragged rows, for the gradient of W_ih."""
    own = Layer(f, call)
    first, count = PHASE.get(f, phase, "first"), PHASE.get(f, phase, "count")
    blocks = blocks_of(own.most_rows(count))
    d, start = number // blocks, number % blocks * BLOCK
    begin = Walk(own, d, backward=True).earliest(first, count)
    row = own.first_row(begin)
    rows = f.least(own.first_row(begin + count) - row - start, BLOCK)
    with f.given(rows > 0):
        rows_of_x(own, d, row, start, rows)


def _abreast(f: Function, columns: Value) -> Value:
    """Tasks for ``columns`` columns of a gradient of weights."""
    return (vectors_of(f, columns) + (ABREAST - 1)) // ABREAST


def _length(m: Module, H: Value) -> Value:
    """As ``row_of_gradients``."""
    return H * GRADIENTS + LINE * 8 // BITS[m.scalar]


def _pack(m: Module, tiles: Tiles, columns: Function) -> Task:
    """A strip of W_hh, with its rows in the order r, z, n, or of W_ih, in the order n, r, z."""
    L = m.lanes

    def task(f: Function, call: Value, phase: Value, number: Value) -> None:
        own = Layer(f, call)
        H, I, P = own.H, own.I, own.vectors
        each = P + vectors_of(f, I)
        d, strip = number // each, number % each
        scratch, length = own.scratch_of(d), tiles.strip(H * 3)
        with f.given(strip < P):
            to = f.at(scratch, own.at_w_hh_back + strip * length, m.scalar)
            f.call(columns, f.at(own.w_hh, d * 3 * H * H, m.scalar), H, H * 3, H, strip * L, to)
        with f.otherwise(strip < P):
            to = f.at(scratch, own.at_w_ih_back + (strip - P) * length, m.scalar)
            for place, gate in enumerate((2, 0, 1)):
                block = f.at(own.w_ih, (d * 3 + gate) * H * I, m.scalar)
                f.call(columns, block, I, H, I, (strip - P) * L, f.at(to, H * (place * L), m.scalar))

    return task


def _walk(m: Module, tiles: Tiles, forward: Parts) -> Task:
    """All steps of a chunk for the rows of a group, in one direction, from the last one on."""
    gradients, multiply = _gradients_of_gates(m), m.once("product", lambda m: product(m, tiles))
    gather = m.once("gather_rows", gather_rows)

    def task(f: Function, call: Value, phase: Value, number: Value) -> None:
        own = Layer(f, call)
        H = own.H
        apart, width, length = own.D * H, own.vectors * (3 * m.lanes), _length(m, H)
        first, count = PHASE.get(f, phase, "first"), PHASE.get(f, phase, "count")
        d = number // own.groups
        walk, ragged = Walk(own, d, backward=True), own.is_ragged
        earliest = walk.earliest(first, count)
        start, stop = own.rows_of_group(number % own.groups, earliest)
        scratch = own.scratch_of(d)
        w_hh, dg = f.at(scratch, own.at_w_hh_back, m.scalar), f.at(scratch, own.at_dg, m.scalar)
        rebuilt_y, gx = f.at(scratch, own.at_rebuilt_y, m.scalar), f.at(scratch, own.at_gx, m.scalar)
        dh = f.select(ragged, f.at(scratch, own.at_dh, m.scalar), f.at(own.dh, d * own.B * H, m.scalar))
        row_of_chunk = own.first_row(earliest)
        kept, kept_stride = kept_of_chunk(own, d, row_of_chunk)
        rebuilds, has_dy = f.is_there(own.kept).equals(0), f.is_there(own.dy)
        with f.loop(first, first + count) as walked:
            t = walk.step(walked)
            row = own.first_row(t)
            end = f.least(own.first_row(t + 1) - row, stop)
            in_chunk = row - row_of_chunk
            with f.given(rebuilds):
                states = states_of(own, d, walked)
                with f.given(ragged):
                    before = walk.neighbour(t, before=True)
                    some = walk.shared(t, before, start, end) - start
                    named = f.at(own.places, own.first_row(before) + start, I64)
                    f.call(
                        gather, f.at(own.y, d * H, m.scalar), apart, named, f.at(states, start * H, m.scalar), some, H
                    )
                for low, high, h, stride in states_before(own, walk, t, start, end, states):
                    with f.given(low < high):
                        here = f.at(gx, (in_chunk + low) * width, m.scalar)
                        to = f.at(kept, (in_chunk + low) * (H * KEPT), m.scalar)
                        unused = f.at(rebuilt_y, low * H, m.scalar)
                        f.call(forward.step, call, scratch, high - low, h, stride, here, unused, H, to, H * KEPT)
            of_group = f.at(dh, start * H, m.scalar)
            with f.given(start < end):
                dy, places = f.variable(f.null()), f.variable(f.null())
                with f.given(has_dy):
                    dy.set(f.at(own.dy, f.select(ragged, f.integer(0), (row + start) * apart) + d * H, m.scalar))
                with f.given(ragged):
                    places.set(f.at(own.places, row + start, I64))
                place = f.at(dg, (in_chunk + start) * length, m.scalar)
                f.call(
                    *(gradients, end - start, H, of_group, dy.get(), apart, places.get()),
                    *(f.at(kept, (in_chunk + start) * kept_stride, m.scalar), kept_stride, place, length),
                )
                f.call(
                    *(multiply, end - start, f.at(place, H * R, m.scalar), length, H * 3, w_hh, H),
                    *(of_group, H, of_group, H),
                )

    return task


def kept_of_chunk(own: Layer, d: Value, row: Value) -> tuple[Value, Value]:
    """What the forward pass kept, or what was rebuilt, from a row of a chunk on; and the stride between rows."""
    f, scalar = own.f, own.f.module.scalar
    there, each = f.is_there(own.kept), own.H * KEPT
    stride = f.select(there, own.D * each, each)
    place = f.variable(f.at(own.scratch_of(d), own.at_rebuilt, scalar))
    with f.given(there):
        place.set(f.at(own.kept, row * stride + d * each, scalar))
    return place.get(), stride


def _gradients_of_gates(m: Module) -> Function:
    """For one step of some rows. ``dh``: on entry the gradient of the state after the step, from later steps; on exit
    the part of the gradient of the previous state that passes through z. ``places``: which rows of dy, or null."""
    L = m.lanes
    parameters = {
        "rows": I64,
        "H": I64,
        "dh": PTR,
        "dy": PTR,
        "dy_stride": I64,
        "places": PTR,
        "kept": PTR,
        "kept_stride": I64,
        "dg": PTR,
        "dg_stride": I64,
    }
    with m.function("gradients_of_gates", parameters) as (
        f,
        rows,
        H,
        dh,
        dy,
        dy_stride,
        places,
        kept,
        kept_stride,
        dg,
        dg_stride,
    ):
        whole = H - H % L
        mask = f.first_lanes(H - whole, L)

        def one(r: Value, of_dy: Value, unit: Value, masked: Value | None) -> None:
            place = f.at(dh, r * H + unit, m.scalar)
            arriving = f.variable(f.load_lanes(place, m.vector, masked))
            with f.given(f.is_there(dy)):
                more = f.load_lanes(f.at(dy, of_dy * dy_stride + unit, m.scalar), m.vector, masked)
                arriving.set(arriving.get() + more)
            of_row = f.at(kept, r * kept_stride + unit, m.scalar)
            *gates, state = [f.load_lanes(f.at(of_row, H * k, m.scalar), m.vector, masked) for k in range(KEPT)]
            of, passing = gate_math.step_gradients(f, arriving.get(), state, gate_math.Gates(*gates))
            f.store_lanes(passing, place, masked)
            target = f.at(dg, r * dg_stride + unit, m.scalar)
            for slot, value in ((N, of.n), (R, of.r), (Z, of.z), (A, of.a)):
                f.store_lanes(value, f.at(target, H * slot, m.scalar), masked)

        with f.loop(0, rows) as r:
            of_dy = f.variable(r)
            with f.given(f.is_there(places)):
                of_dy.set(f.load(f.at(places, r, I64), I64))
            with f.loop(0, whole, L) as unit:
                one(r, of_dy.get(), unit, None)
            with f.given(whole < H):
                one(r, of_dy.get(), whole, mask)
    return f  # type: ignore[no-any-return]


def _products(m: Module, tiles: Tiles, columns: Function) -> Task:
    """For a chunk in one direction: the gradient of x for a block of rows, or of a few columns of a weight matrix, or
    of the biases."""
    block, weights = _gradient_of_x(m, tiles), _gradient_of_weights(m, tiles, columns)
    biases = _gradient_of_biases(m)

    def task(f: Function, call: Value, phase: Value, number: Value) -> None:
        own = Layer(f, call)
        H, I = own.H, own.I
        d = PHASE.get(f, phase, "direction")
        first, count = PHASE.get(f, phase, "first"), PHASE.get(f, phase, "count")
        begin = Walk(own, d, backward=True).earliest(first, count)
        row = own.first_row(begin)
        rows = own.first_row(begin + count) - row
        dg = f.at(own.scratch_of(d), own.at_dg, m.scalar)
        blocks = blocks_of(own.most_rows(count))
        after_x = number - blocks
        after_w_ih = after_x - _abreast(f, I)
        after_w_hh = after_w_ih - _abreast(f, H)
        dx, dw_ih, dw_hh = own.dx, own.dw_ih, own.dw_hh
        with f.given(f.both(after_x < 0, f.is_there(dx))):
            f.call(block, call, d, dg, row, number * BLOCK, rows)
        of_w_ih = f.both(f.both(after_x >= 0, after_w_ih < 0), f.is_there(dw_ih))
        with f.given(of_w_ih):
            gathered = f.at(own.scratch_of(d), own.at_x, m.scalar)
            x = f.select(own.is_ragged, gathered, f.at(own.x, row * I, m.scalar))
            to = f.at(dw_ih, d * 3 * H * I, m.scalar)
            f.call(weights, H, dg, rows, x, I, I, after_x * ABREAST, to, f.integer(N))
        of_w_hh = f.both(f.both(after_w_ih >= 0, after_w_hh < 0), f.is_there(dw_hh))
        with f.given(of_w_hh):
            kept, stride = kept_of_chunk(own, d, row)
            to = f.at(dw_hh, d * 3 * H * H, m.scalar)
            before = f.at(kept, H * BEFORE, m.scalar)
            f.call(weights, H, dg, rows, before, stride, H, after_w_ih * ABREAST, to, f.integer(A))
        with f.given(f.both(after_w_hh.equals(0), f.is_there(own.db_ih))):
            f.call(biases, H, dg, rows, f.at(own.db_ih, d * 3 * H, m.scalar), f.integer(N))
        with f.given(f.both(after_w_hh.equals(0), f.is_there(own.db_hh))):
            f.call(biases, H, dg, rows, f.at(own.db_hh, d * 3 * H, m.scalar), f.integer(A))

    return task


def _gradient_of_x(m: Module, tiles: Tiles) -> Function:
    """dx += (dn, dr, dz) W_ih for a block of a chunk's rows."""
    multiply, scatter = m.once("product", lambda m: product(m, tiles)), m.once("scatter_rows", scatter_rows)
    parameters = {"call": PTR, "d": I64, "dg": PTR, "row": I64, "start": I64, "rows": I64}
    with m.function("gradient_of_x", parameters) as (f, call, d, dg, row, start, rows):
        own = Layer(f, call)
        I, H, length = own.I, own.H, _length(m, own.H)
        w_ih = f.at(own.scratch_of(d), own.at_w_ih_back, m.scalar)
        ragged, lone = own.is_ragged, own.D.equals(1)
        here = f.at(own.scratch_of(d), own.at_dx + start * I, m.scalar)
        dx = f.select(ragged, here, f.at(own.dx, (row + start) * I, m.scalar))
        some = f.least(rows - start, BLOCK)
        adds = f.variable(f.null())
        with f.otherwise(lone), f.otherwise(ragged):  # to the other direction's
            adds.set(dx)
        with f.given(some > 0):
            f.call(multiply, some, f.at(dg, start * length, m.scalar), length, H * 3, w_ih, I, adds.get(), I, dx, I)
            with f.given(ragged):
                places = f.at(own.places, row + start, I64)
                f.call(scatter, dx, places, own.dx, I, some, I, f.select(lone, f.integer(0), f.integer(1)))
    return f  # type: ignore[no-any-return]


def _gradient_of_weights(m: Module, tiles: Tiles, columns: Function) -> Function:
    """A few strips of columns of dW += dg^T x over a chunk's rows. ``third``: which gradient belongs to gate n."""
    L = m.lanes
    multiply = product(m, tiles, across=True)
    far = FAR_BYTES // m.isa.bytes
    most = strip_length(far, L, BITS[m.scalar] // 8)
    parameters = {
        "H": I64,
        "dg": PTR,
        "rows": I64,
        "x": PTR,
        "x_stride": I64,
        "I": I64,
        "first": I64,
        "dw": PTR,
        "third": I64,
    }
    with m.function("gradient_of_weights", parameters) as (f, H, dg, rows, x, x_stride, I, first, dw, third):
        length, packed = _length(m, H), f.local(m.scalar, ABREAST * most)
        some = f.least(vectors_of(f, I) - first, ABREAST)
        each = f.select(rows >= MANY, f.integer(far), f.integer(SUMMED))
        with f.loop(0, rows, each) as start:
            count = f.least(rows - start, each)
            apart = tiles.strip(count)
            with f.loop(0, some) as strip:
                here = f.at(x, start * x_stride, m.scalar)
                f.call(columns, here, x_stride, count, I, (first + strip) * L, f.at(packed, strip * apart, m.scalar))
            with f.loop(0, 3) as gate:
                slot = f.select(gate.equals(2), third, gate + R)
                a = f.at(dg, start * length + slot * H, m.scalar)
                to = f.at(dw, H * gate * I + first * L, m.scalar)
                columns_left = f.least(I - first * L, some * L)
                f.call(multiply, H, a, length, count, packed, columns_left, to, I, to, I)
    return f  # type: ignore[no-any-return]


def _gradient_of_biases(m: Module) -> Function:
    """db += the sum of dg over a chunk's rows. ``third``: which gradient belongs to gate n."""
    L = m.lanes
    with m.function("gradient_of_biases", {"H": I64, "dg": PTR, "rows": I64, "db": PTR, "third": I64}) as (
        f,
        H,
        dg,
        rows,
        db,
        third,
    ):
        length, whole = _length(m, H), H - H % L
        mask = f.first_lanes(H - whole, L)

        def one(unit: Value, masked: Value | None) -> None:
            place = f.at(db, H * gate + unit, m.scalar)
            source = f.at(dg, slot * H + unit, m.scalar)
            total = f.variable(f.load_lanes(place, m.vector, masked))
            with f.loop(0, rows, SUMMED * SUMMED) as far:
                of_far = f.variable(f.constant(0.0, m.vector))
                with f.loop(far, f.least(far + SUMMED * SUMMED, rows), SUMMED) as start:
                    block = f.variable(f.constant(0.0, m.vector))
                    with f.loop(start, f.least(start + SUMMED, rows)) as row:
                        block.set(block.get() + f.load_lanes(f.at(source, row * length, m.scalar), m.vector, masked))
                    of_far.set(of_far.get() + block.get())
                total.set(total.get() + of_far.get())
            f.store_lanes(total.get(), place, masked)

        with f.loop(0, 3) as gate:
            slot = f.select(gate.equals(2), third, gate + R)
            with f.loop(0, whole, L) as unit:
                one(unit, None)
            with f.given(whole < H):
                one(whole, mask)
    return f  # type: ignore[no-any-return]

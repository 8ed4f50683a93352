"""One time step of a few rows, which reads the weights unpacked: packing them takes longer than using them once.

The sums are equal to those of the tiles, bit for bit: pieces of weights are transposed in registers, so that a vector
holds the same k of several units, and each unit adds its products in the same order and blocks.
"""

from __future__ import annotations

from typing import Any

from tritongru.llvm.language import I64, PTR, Function, Module, Value
from tritongru.llvm.passes import gate_math
from tritongru.llvm.passes.call import Layer
from tritongru.llvm.passes.packing import columns_of, quarter
from tritongru.llvm.passes.tiles import SUMMED, Tiles


def write_step(m: Module, tiles: Tiles) -> None:
    """For one direction, with neither packed rows nor values to keep."""
    L, sums_of = m.lanes, m.once("sums_of_gates", _sums_of_gates)
    with m.function("step", {"call": PTR}, public=True) as (f, call):
        own = Layer(f, call)
        H, I, x, y, hn = own.H, own.I, own.x, own.y, own.hn
        w_ih, w_hh, b_ih, b_hh = own.w_ih, own.w_hh, own.b_ih, own.b_hh
        h, h_stride = f.variable(own.zeros), f.variable(f.integer(0))
        with f.given(f.is_there(own.h0)):
            h.set(own.h0)
            h_stride.set(H)
        of_inputs, of_states = f.local(m.vector, 3), f.local(m.vector, 3)
        with f.loop(0, H, L) as unit, f.loop(0, own.B) as row:
            mask = f.first_lanes(H - unit, L)
            state = f.at(h.get(), row * h_stride.get(), m.scalar)
            f.call(sums_of, w_ih, H, I, unit, f.at(x, row * I, m.scalar), of_inputs)
            f.call(sums_of, w_hh, H, H, unit, state, of_states)
            gx, gh = ([f.load(f.at(s, k * L, m.scalar), m.vector) for k in range(3)] for s in (of_inputs, of_states))
            biases = [f.variable(f.constant(0.0, m.vector)) for _ in range(4)]
            with f.given(f.is_there(b_ih)):
                for gate in range(3):
                    place = H * gate + unit
                    ours, theirs = (f.masked_load(f.at(b, place, m.scalar), m.vector, mask) for b in (b_ih, b_hh))
                    biases[gate].set(ours if gate == 2 else ours + theirs)
                biases[3].set(theirs)
            gx = [value + bias.get() for value, bias in zip(gx, biases[:3], strict=True)]
            before = f.masked_load(f.at(state, unit, m.scalar), m.vector, mask)
            new, _ = gate_math.step(f, before, (gh[0], gh[1], gh[2] + biases[3].get()), (gx[0], gx[1], gx[2]))
            for target in (y, hn):
                with f.given(f.is_there(target)):
                    f.masked_store(new, f.at(target, row * H + unit, m.scalar), mask)


def _sums_of_gates(m: Module) -> Function:
    """The products of a row with the three gates' weights (3, H, K), for the vector of units from ``unit`` on."""
    L, Q = m.lanes, quarter(m)
    parameters = {"matrix": PTR, "H": I64, "K": I64, "unit": I64, "row": PTR, "sums": PTR}
    with m.function("sums_of_gates", parameters) as (f, matrix, H, K, unit, row, sums):
        lines = [f.least(unit + lane, H - 1) * K for lane in range(L)]  # results of repeated lines are not read
        starts = [f.at(matrix, H * K * gate, m.scalar) for gate in range(3)]
        with f.loop(0, K, SUMMED) as first:
            found = [f.variable(f.constant(0.0, m.vector)) for _ in range(3)]
            end = f.least(first + SUMMED, K)
            whole = end - (end - first) % Q

            def take(gate: int, k: Value, column: Value, totals: list[Any] = found) -> None:
                value = f.splat(f.load(f.at(row, k, m.scalar), m.scalar), L)
                totals[gate].set(f.fma(value, column, totals[gate].get()))

            with f.loop(first, whole, Q) as k:
                for gate, start in enumerate(starts):
                    places = [f.at(start, line + k, m.scalar) for line in lines]
                    for j, column in enumerate(columns_of(f, places)):
                        take(gate, k + j, column)
            with f.loop(whole, end) as k:
                for gate, start in enumerate(starts):
                    column = f.constant(0.0, m.vector)
                    for lane, line in enumerate(lines):
                        column = f.insert(column, f.load(f.at(start, line + k, m.scalar), m.scalar), lane)
                    take(gate, k, column)
            for gate, total in enumerate(found):
                place = f.at(sums, gate * L, m.scalar)
                with f.given(first > 0):
                    total.set(total.get() + f.load(place, m.vector))
                f.store(total.get(), place)
    return f  # type: ignore[no-any-return]

"""Faults that are planted into what writes the code, each of which one of the checks of the other tests must notice.

The faulty passes are compiled afresh, past the cache, and run between fences: they may write anywhere near.
"""

import ctypes
import inspect
import re

import pytest

pytest.importorskip("llvmlite")

from compiled_loop import Layer, chunks_of, parity, precision, rows_alone, stale, threads_apart
from fences import FORM, counts_of, forget
from vector_functions import engine_of, inexact

from tritongru.llvm import compiling, launch
from tritongru.llvm import segments as searching
from tritongru.llvm.language import Function
from tritongru.llvm.passes import backward_pass, forward_pass, gate_math, segments, tiles
from tritongru.llvm.passes.call import CALL, Walk
from tritongru.llvm.passes.call import Layer as Told
from tritongru.planning.instruction_sets import SETS, host_sets

pytestmark = pytest.mark.skipif(not host_sets(), reason="no loop for this CPU")
ISA = host_sets()[0] if host_sets() else ""
FORWARD, BACKWARD, BOTH, SEARCH = ("forward",), ("backward",), ("forward", "backward"), ("segments",)


def compiled(kernel, scalar="float"):
    """A pass of the sources as they are now, faults included."""
    text = compiling.source(SETS[ISA], scalar, kernel)
    return ctypes.CFUNCTYPE(None, ctypes.c_char_p)(engine_of(text, ISA).get_function_address(kernel))


def refuse(key, code):
    raise AssertionError("code with a planted fault would have been kept on disk")


def noticed(fault, kernels, check):
    """What the check says of passes with the fault."""
    plain, made = launch.function_of, {}
    for kernel in {"forward", "backward", "step", "segments"} - set(kernels):
        for scalar in ("float", "double"):  # compiled later they would have the fault, too, and keep it
            plain(ISA, scalar, kernel)

    def function_of(isa, scalar, kernel):
        if isa != ISA or kernel not in kernels:
            return plain(isa, scalar, kernel)
        if (scalar, kernel) not in made:
            made[scalar, kernel] = compiled(kernel, scalar)
        return made[scalar, kernel]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiling.cache, "write", refuse)
        fault(patch)
        if kernels:
            patch.setattr(launch, "function_of", function_of)
            patch.setattr(searching, "function_of", function_of)
        forget()
        found = check()
    forget()
    return found


# Faults: each is given what patches


def none(patch):
    pass


def a_lane_too_many(patch):
    plain = Function.first_lanes
    patch.setattr(Function, "first_lanes", lambda f, count, lanes: plain(f, count + 1, lanes))


def a_lane_too_few(patch):
    plain = Function.first_lanes
    patch.setattr(Function, "first_lanes", lambda f, count, lanes: plain(f, count - 1, lanes))


def gates_swapped(patch):
    plain = gate_math.step
    patch.setattr(gate_math, "step", lambda f, h, gh, gx: plain(f, h, (gh[1], gh[0], gh[2]), (gx[1], gx[0], gx[2])))


def the_last_block_dropped(patch):
    for module in (forward_pass, backward_pass):
        patch.setattr(module, "blocks_of", lambda rows: rows // forward_pass.BLOCK)


def a_chunk_begins_late(patch):
    """In the direction that walks against time."""
    plain = Walk.earliest
    patch.setattr(Walk, "earliest", lambda w, first, count: w.own.f.select(w.ahead, first, plain(w, first, count) + 1))


def rows_beyond_whole_tiles_dropped(patch):
    plain = tiles.over

    def over(f, shapes, rows, strips, body):
        plain(f, shapes, rows - rows % max(shapes), strips, body)

    for module in (forward_pass, tiles):
        patch.setattr(module, "over", over)


def _states(patch, changed):
    plain = forward_pass.states_before
    for module in (forward_pass, backward_pass):
        patch.setattr(module, "states_before", lambda own, *rest: changed(own, *plain(own, *rest)))


def h0_ignored(patch):
    def changed(own, of_y, of_h0):
        f, vector = own.f, own.f.module.vector
        zeros = f.local(vector, 16)
        for k in range(16):
            f.store(f.constant(0.0, vector), f.at(zeros, k, vector))
        return [of_y, (of_h0[0], of_h0[1], zeros, f.integer(0))]

    _states(patch, changed)


def the_state_of_the_row_beside(patch):
    def changed(own, of_y, of_h0):
        start, end, place, apart = of_y
        return [(start, end, own.f.at(place, apart, own.f.module.scalar), apart), of_h0]

    _states(patch, changed)


def the_gradient_that_passes_z_lost(patch):
    plain = gate_math.step_gradients

    def step_gradients(f, dh, h, gates):
        of, passing = plain(f, dh, h, gates)
        return of, passing - passing

    patch.setattr(gate_math, "step_gradients", step_gradients)


def r_forgotten_in_the_gradient_of_a(patch):
    plain = gate_math.step_gradients

    def step_gradients(f, dh, h, gates):
        of, passing = plain(f, dh, h, gates)
        return of._replace(a=of.n), passing

    patch.setattr(gate_math, "step_gradients", step_gradients)


def later_chunks_replace_the_gradients_of_weights(patch):
    plain = Function.call

    def call(f, callee, *arguments, **options):
        if isinstance(callee, Function) and callee.name == "product_across":
            place = list(callee.parameters).index("plus")
            arguments = (*arguments[:place], f.null(), *arguments[place + 1 :])
        plain(f, callee, *arguments, **options)

    patch.setattr(Function, "call", call)


def a_row_between_two_groups_dropped(patch):
    plain = Told.rows_of_group

    def rows_of_group(own, group, t):
        first, end = plain(own, group, t)
        return own.f.select(group > 0, first + 1, first), end

    patch.setattr(Told, "rows_of_group", rows_of_group)


def rows_that_have_ended_go_on(patch):
    """Of packed input: the step before is taken to have all rows."""
    patch.setattr(Walk, "shared", lambda w, t, other, start, end: w.own.f.select(other.equals(t), start, end))


def a_row_alone_is_rounded_twice(patch):
    plain = Function.fma

    def fma(f, a, b, c):
        return f.coerce(a, b.kind) * b + f.coerce(c, b.kind) if re.search(r"_1x\d", f.name) else plain(f, a, b, c)

    patch.setattr(Function, "fma", fma)


def sums_begin_at_the_large_term(patch):
    """Each at 1, of the size of a gradient, which is taken off at the end: what is added to it is rounded to its last
    place."""
    plain, constant, store, inside = tiles._sum, Function.constant, Function.store, []

    def summed(*arguments):
        inside.append(True)
        plain(*arguments)
        inside.pop()

    def begin(f, number, kind):
        return constant(f, 1.0 if inside and number == 0.0 and kind == f.module.vector else number, kind)

    def end(f, value, pointer, align=None):
        if inside and value.kind == f.module.vector and not pointer.name.startswith("%m"):
            value = value - 1.0
        store(f, value, pointer, align)

    patch.setattr(tiles, "_sum", summed)
    patch.setattr(Function, "constant", begin)
    patch.setattr(Function, "store", end)


def a_sigmoid_of_less_than_full_accuracy(patch):
    plain = gate_math.sigmoid
    patch.setattr(gate_math, "sigmoid", lambda f, x: plain(f, x) * (1 + 2**-21))


def weights_packed_once(patch):
    """The scratch of the first call is the second's, whose weights are other ones."""
    scratch = {}
    plain, worker = launch.function_of, forward_pass.worker

    def without_packing(m, name, task):
        return worker(m, name, (lambda *_: None) if name == "pack_forward" else task)

    patch.setattr(forward_pass, "worker", without_packing)
    run = compiled("forward")

    def function_of(isa, scalar, kernel):
        if kernel != "forward":
            return plain(isa, scalar, kernel)

        def forward(packed):
            fields = dict(zip(CALL.fields, FORM.unpack(packed), strict=True))
            size = counts_of(fields)["scratch"] * 4
            if "first" in scratch:
                ctypes.memmove(fields["scratch"], scratch["first"], size)
                run(packed)
            else:
                plain(isa, scalar, kernel)(packed)
                scratch["first"] = ctypes.string_at(fields["scratch"], size)

        return forward

    patch.setattr(launch, "function_of", function_of)


def _written(patch, name, old, new):
    """A function of ``passes/segments.py``, with other words in it, wherever it is used."""
    text = inspect.getsource(segments)
    assert text.count(old) == 1, f"{text.count(old)} times {old!r}"
    own = vars(segments).copy()
    exec(text.replace(old, new), own)
    for module in (segments, forward_pass, backward_pass):
        if hasattr(module, name):
            patch.setattr(module, name, own[name])


def the_directions_of_segments_swapped(patch):
    _written(patch, "write_segments", "((fresh, last), (1 - last, first))", "((1 - last, first), (fresh, last))")


def offsets_are_one_too_small(patch):
    _written(
        patch,
        "write_segments",
        'f.store(rows.get(), place("offsets", t))',
        "f.store(f.most(rows.get() - 1, 0), place('offsets', t))",
    )


def the_beginnings_are_those_of_the_search_before(patch):
    _written(patch, "write_segments", 'f.store(f.integer(0), f.at(own["begun"], b, I64))', "pass")


def a_reset_at_the_last_step_missed(patch):
    _written(patch, "write_segments", 't < f.load(f.at(own["ends"]', 't + 1 < f.load(f.at(own["ends"]')


def resets_behind_the_end_count(patch):
    _written(patch, "write_segments", 'f.given(t < f.load(f.at(own["ends"], b, I64), I64))', "f.given(t >= 0)")


def a_reset_at_the_first_step_forgotten(patch):
    fresh = "f.select(start > 0, f.integer(1), f.integer(0))"
    _written(patch, "write_segments", "end - start, begun % 2,", f"end - start, {fresh},")


def one_of_eight_resets_not_looked_at(patch):
    _written(patch, "write_segments", "f.loop(first, first + 8)", "f.loop(first, first + 7)")


def resets_beyond_eights_not_looked_at(patch):
    _written(patch, "write_segments", "f.loop(whole, B) as b", "f.loop(B, B) as b")


def the_reset_state_ignored(patch):
    _written(patch, "first_states", "(row < 0, own.reset_state, -1 - row)", "(row < 0, own.h0, -1 - row)")


def the_last_state_is_that_of_the_segment_beside(patch):
    _written(
        patch, "last_states", "state = f.at(states, segment * H", "state = f.at(states, f.most(segment - 1, 0) * H"
    )


def the_gradient_of_a_last_state_arrives_twice(patch):
    """At the segment, and in what becomes the gradient of h0."""
    _written(patch, "gradients_of_last_states", "f.call(copy, own.zeros, 0, there.get(), H, 1, H)", "pass")


def gradients_of_the_reset_state_replace_each_other(patch):
    added = "f.call(add, here, f.at(own.d_reset, (-1 - row) * H, m.scalar), H)"
    replaced = "f.call(copy, here, 0, f.at(own.d_reset, (-1 - row) * H, m.scalar), 0, 1, H)"
    _written(patch, "gradients_of_first_states", added, replaced)


def two_directions_replace_each_other(patch):
    _written(
        patch, "scatter_rows", "replaces = _vectors(f, columns), adds", "replaces = _vectors(f, columns), (adds * 0)"
    )


def rows_gathered_from_the_place_beside(patch):
    beside = "f.load(f.at(places, f.most(row - 1, 0), I64), I64)"
    _written(patch, "gather_rows", "source, to = f.at(matrix, there *", f"source, to = f.at(matrix, {beside} *")


def states_replaced_while_they_are_read(patch):
    def states_of(own, d, walked):
        return own.f.at(own.scratch_of(d), own.at_states, own.f.module.scalar)

    patch.setattr(forward_pass, "states_of", states_of)


def in_chunks(layer, keeps=True):
    with chunks_of(2):
        return parity(layer, ISA, keeps)


ODD = Layer(T=5, B=7, I=5, H=9, D=2)
RAGGED = Layer(T=5, ends=(4, 5, 0, 3, 6, 5, 2, 4, 1, 5), resets=0.4, states=10, I=5, H=40, D=2)
FAULTS = {
    a_lane_too_many: (BOTH, lambda: parity(ODD, ISA)),
    a_lane_too_few: (BOTH, lambda: parity(ODD, ISA)),
    gates_swapped: (FORWARD, lambda: parity(ODD, ISA)),
    the_last_block_dropped: (BOTH, lambda: parity(Layer(T=2, B=40), ISA)),
    a_chunk_begins_late: (BOTH, lambda: in_chunks(ODD)),
    rows_beyond_whole_tiles_dropped: (BOTH, lambda: parity(ODD, ISA)),
    h0_ignored: (FORWARD, lambda: parity(ODD, ISA)),
    the_state_of_the_row_beside: (FORWARD, lambda: parity(ODD, ISA)),
    the_gradient_that_passes_z_lost: (BACKWARD, lambda: parity(ODD, ISA)),
    r_forgotten_in_the_gradient_of_a: (BACKWARD, lambda: parity(ODD, ISA)),
    later_chunks_replace_the_gradients_of_weights: (BACKWARD, lambda: in_chunks(ODD)),
    a_row_between_two_groups_dropped: (FORWARD, lambda: threads_apart(Layer(T=2, B=40, H=9), ISA, (2,))),
    rows_that_have_ended_go_on: (FORWARD, lambda: parity(Layer(lengths=(5, 3, 1), D=2), ISA)),
    a_row_alone_is_rounded_twice: (FORWARD, lambda: rows_alone(Layer(T=3, B=5, I=9, H=20), ISA, range(1, 6))),
    sums_begin_at_the_large_term: (BACKWARD, lambda: precision(Layer(T=50, B=4, I=16, H=64), ISA, 2.5)),
    a_sigmoid_of_less_than_full_accuracy: ((), lambda: inexact("sigmoid", ISA)),
    weights_packed_once: ((), lambda: stale(ISA)),
    the_directions_of_segments_swapped: (SEARCH, lambda: parity(RAGGED, ISA)),
    offsets_are_one_too_small: (SEARCH, lambda: parity(RAGGED, ISA)),
    the_beginnings_are_those_of_the_search_before: (SEARCH, lambda: parity(RAGGED, ISA)),
    a_reset_at_the_last_step_missed: (SEARCH, lambda: parity(RAGGED, ISA)),
    resets_behind_the_end_count: (SEARCH, lambda: parity(RAGGED, ISA)),
    a_reset_at_the_first_step_forgotten: (SEARCH, lambda: parity(RAGGED, ISA)),
    one_of_eight_resets_not_looked_at: (SEARCH, lambda: parity(RAGGED, ISA)),
    resets_beyond_eights_not_looked_at: (SEARCH, lambda: parity(RAGGED, ISA)),
    the_reset_state_ignored: (FORWARD, lambda: parity(RAGGED, ISA)),
    the_last_state_is_that_of_the_segment_beside: (FORWARD, lambda: parity(RAGGED, ISA)),
    the_gradient_of_a_last_state_arrives_twice: (BACKWARD, lambda: parity(RAGGED, ISA)),
    gradients_of_the_reset_state_replace_each_other: (BACKWARD, lambda: parity(RAGGED, ISA)),
    two_directions_replace_each_other: (BACKWARD, lambda: parity(RAGGED, ISA)),
    rows_gathered_from_the_place_beside: (FORWARD, lambda: parity(RAGGED, ISA)),
    states_replaced_while_they_are_read: (FORWARD, lambda: parity(RAGGED, ISA)),
}
# Where a check is right about a rebuilding backward alone.
REBUILT = {
    h0_ignored: lambda: parity(ODD, ISA, keeps=False),
    the_state_of_the_row_beside: lambda: in_chunks(ODD, keeps=False),
    the_reset_state_ignored: lambda: parity(RAGGED, ISA, keeps=False),
    rows_gathered_from_the_place_beside: lambda: in_chunks(RAGGED, keeps=False),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_noticed(fault):
    kernels, check = FAULTS[fault]
    found = noticed(fault, kernels, check)
    assert found
    if fault is sums_begin_at_the_large_term:
        assert re.search(r"\b(dx|dw_hh|dh0): ", found), "the gradients show it"


@pytest.mark.parametrize("fault", REBUILT, ids=lambda fault: fault.__name__)
def test_a_fault_of_a_rebuilding_backward_is_noticed(fault):
    found = noticed(fault, BACKWARD, REBUILT[fault])
    assert found
    assert " hn" not in found, "the forward has no fault"


def test_without_a_fault_nothing_is_noticed():
    """Of the passes as they are, compiled in the same way."""
    assert not noticed(none, BOTH, lambda: "".join(check() for _, check in FAULTS.values()))

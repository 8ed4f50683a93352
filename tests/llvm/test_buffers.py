"""What a compiled pass reads and writes: its own buffers, all of what it is to fill, and nothing beside them."""

import ctypes

import pytest
import torch

pytest.importorskip("llvmlite")
pytest.importorskip("hypothesis")

from compiled_loop import ALL, Layer, chunks_of, given, ours, same_bits, threads_of
from fences import CALL, FORM, Fences, forget
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from processes import ROOT, python

from tritongru.llvm import launch
from tritongru.planning.instruction_sets import host_sets

LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=20).map(lambda v: tuple(sorted(v, reverse=True)))
DTYPES = st.sampled_from([torch.float32, torch.float64])
ENDS = st.lists(st.integers(-1, 7), min_size=1, max_size=20).map(tuple)
NEEDS = st.lists(st.booleans(), min_size=7, max_size=7)
SHAPES = {
    "T": st.integers(1, 6),
    "B": st.integers(1, 20),
    "I": st.integers(1, 70),
    "H": st.integers(1, 70),
    "D": st.sampled_from([1, 2]),
    "bias": st.booleans(),
    "h0": st.booleans(),
    "lengths": st.just(()) | LENGTHS,
    "dtype": DTYPES,
}
# How sequences end and begin anew, and whether each has a reset state of its own.
RAGGED = {"ends": st.just(()) | ENDS, "resets": st.sampled_from([0.0, 0.1, 0.5, 1.0]), "states": st.sampled_from("01B")}


@settings(max_examples=25)
@drawn(
    shape=st.fixed_dictionaries(SHAPES),
    isa=st.sampled_from(host_sets() or ("none",)),
    keeps=st.booleans(),
    needs=st.just(ALL) | NEEDS,
    steps=st.integers(1, 7),
    threads=st.sampled_from([1, 2]),
)
@pytest.mark.skipif(not host_sets(), reason="no loop for this CPU")
def test_odd_shapes_between_fences(shape, isa, keeps, needs, steps, threads):
    """The same bits as without fences: nothing beside the operands is read, all of the results is written, and of the
    scratch nothing is read before it is written."""
    data = given(Layer(**shape))
    with chunks_of(steps), threads_of(threads):
        expected = ours(data, isa, keeps, needs)
        with Fences() as fences:
            found = ours(data, isa, keeps, needs)
    assert not fences.broken
    assert not same_bits(found, expected)
    for name, value in found.items():
        assert value.isfinite().all(), name


@settings(max_examples=25)
@drawn(
    shape=st.fixed_dictionaries(SHAPES | {"lengths": st.just(())}),
    ragged=st.fixed_dictionaries(RAGGED),
    isa=st.sampled_from(host_sets() or ("none",)),
    keeps=st.booleans(),
    needs=st.just(ALL) | NEEDS,
    steps=st.integers(1, 7),
    threads=st.sampled_from([1, 2]),
)
@pytest.mark.skipif(not host_sets(), reason="no loop for this CPU")
def test_ragged_rows_between_fences(shape, ragged, isa, keeps, needs, steps, threads):
    """The memory of the search, too; and nothing is written to the padding."""
    B = len(ragged["ends"]) or shape["B"]
    states = {"0": 0, "1": 1, "B": B}[ragged["states"]] if ragged["resets"] else 0
    data = given(Layer(**(shape | ragged | {"states": states})))
    with chunks_of(steps), threads_of(threads):
        expected = ours(data, isa, keeps, needs)
        with Fences() as fences:
            found = ours(data, isa, keeps, needs)
    assert not fences.broken
    assert not same_bits(found, expected)
    for name, value in found.items():
        assert value.isfinite().all(), name


def test_the_fences_are_noticed():
    """One value before, behind or in an operand, and one that is left out."""
    data = given(Layer(H=5))
    isa = host_sets()[0]
    plain = launch.function_of

    def writes(name, element):
        def function_of(isa, scalar, kernel):
            run = plain(isa, scalar, kernel)

            def wrong(packed):
                run(packed)
                place = dict(zip(CALL.fields, FORM.unpack(packed), strict=True))[name] + 4 * element
                ctypes.c_float.from_address(place).value = 1.0

            return wrong if kernel == "forward" else run

        return function_of

    def complaints(name, element):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(launch, "function_of", writes(name, element))
            forget()
            with Fences() as fences:
                ours(data, isa)
        return fences.broken

    assert complaints("y", -1) == ["forward wrote before y"]
    assert complaints("scratch", -1) == ["forward wrote before scratch"]
    assert complaints("hn", 15) == ["forward wrote behind hn"]
    assert complaints("w_hh", 7) == ["forward wrote to w_hh"]
    assert complaints("y", 0) == []
    data = given(Layer(H=5, T=4, ends=(4, 2, 3), resets=0.2, states=1))
    assert complaints("y", 35) == ["forward wrote to the padding of y"]
    assert complaints("places", 0) == ["forward wrote to places"]
    assert complaints("target", -1) == ["forward wrote before target"]
    assert complaints("reset_state", 0) == ["forward wrote to reset_state"]


PAGES = """
import torch
from compiled_loop import Layer, chunks_of, given, ours, same_bits
from fences import BeforePage, BehindPage, Fences
from tritongru.planning.instruction_sets import host_sets

torch.set_num_threads(1)
LAYERS = [
    Layer(T=1, B=1, I=1, H=1), Layer(T=3, B=5, I=7, H=9, D=2), Layer(T=2, B=9, I=33, H=63, bias=False),
    Layer(T=2, B=3, I=16, H=32, h0=False), Layer(lengths=(5, 4, 4, 1), I=13, H=17, D=2),
    Layer(T=3, B=11, I=65, H=31, D=2, dtype=torch.float64),
    Layer(T=4, I=13, H=17, D=2, ends=(4, 2, 0, 3, 1, 4, 4, 2, 3), resets=0.3, states=9),
]
for isa in host_sets():
    for layer in LAYERS:
        data = given(layer)
        for keeps in (True, False):
            with chunks_of(2):
                expected = ours(data, isa, keeps)
                for window in (BeforePage, BehindPage):
                    with Fences(window) as fences:
                        wrong = same_bits(ours(data, isa, keeps), expected)
                    assert not fences.broken and not wrong, (layer, isa, window, fences.broken, wrong)
print("in bounds")
"""


@pytest.mark.skipif(not host_sets(), reason="no loop for this CPU")
def test_no_page_beside_a_buffer_is_touched():
    """Buffers that end before a page, or begin behind one, that ends the process if it is read."""
    run = python("-c", PAGES, PYTHONPATH=f"{ROOT}:{ROOT / 'tests' / 'support'}")
    assert run.stdout == "in bounds\n", (run.returncode, run.stderr[-2000:])


@pytest.mark.slow
def test_a_page_that_is_touched_ends_the_process():
    code = """
import ctypes, torch
from fences import BeforePage
values = torch.arange(5.0)
window = BeforePage(values.data_ptr(), 5, 4, False)
print(window.inside.view(torch.float32).sum().item(), flush=True)
ctypes.c_float.from_address(window.inside.data_ptr() + 20).value
print("read")
"""
    run = python("-c", code, PYTHONPATH=f"{ROOT}:{ROOT / 'tests' / 'support'}")
    assert run.stdout == "10.0\n"
    assert run.returncode < 0

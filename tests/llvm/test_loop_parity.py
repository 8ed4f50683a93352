"""The compiled loop, forward and every gradient, against torch's GRU and float64; for every set of this CPU."""

import copy

import pytest
import torch

pytest.importorskip("llvmlite")

from compiled_loop import ALL, GRADIENTS, Layer, chunks_of, given, ours, parity, precision, same_bits
from layers import Case, assert_parity
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import tritongru
from tritongru import reference
from tritongru.planning.instruction_sets import host_sets

MOST = 2.5  # times the root of torch's mean squared error; 2.1 was measured
SIZES = [1, 3, 16, 63, 64, 65, 100, 200]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
NEEDS = [[k == i for k in range(7)] for i in range(7)] + [[k != i for k in range(7)] for i in range(7)]
# Rows that end together, alone and at once; one row; more rows than a tile has; rows of one step.
PACKED = [(5, 5, 3, 1), (4,), (7,) * 3 + (5,) * 9 + (1,) * 6, (1, 1, 1), (9, 1)]

every_set = pytest.mark.parametrize("isa", host_sets())
both = pytest.mark.parametrize("D", [1, 2])


@every_set
@both
@pytest.mark.parametrize("H", SIZES)
def test_hidden_sizes(H, D, isa):
    assert not parity(Layer(T=3, B=5, I=7, H=H, D=D), isa)


@every_set
@both
@pytest.mark.parametrize("I", SIZES)
def test_input_sizes(I, D, isa):
    assert not parity(Layer(T=3, B=5, I=I, H=9, D=D), isa)


@every_set
@both
@pytest.mark.parametrize("B", [1, 2, 3, 5, 8, 9, 17])
def test_batch_sizes(B, D, isa):
    assert not parity(Layer(T=3, B=B, I=6, H=21, D=D), isa)


@every_set
@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("T", [1, 2, 7, 40])
def test_lengths_in_chunks(T, keeps, isa):
    """With seven steps a chunk: one that is not full, one that is, and several with a rest."""
    with chunks_of(7):
        assert not parity(Layer(T=T, B=3, H=17, D=2), isa, keeps)


@every_set
@pytest.mark.parametrize("B, T", [(33, 4), (130, 2)])
def test_chunks_of_many_rows(B, T, isa):
    """Products are made in blocks of 64 rows, gradients of weights summed in blocks of 128: two and a rest of each."""
    assert not parity(Layer(T=T, B=B, I=5, H=12, D=2), isa)


def test_the_plans_own_chunks():
    """Long enough for several chunks as the plan cuts them."""
    assert not parity(Layer(T=700, B=8, I=3, H=64), host_sets()[0])


@every_set
@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("h0", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_options(bias, h0, dtype, keeps, isa):
    with chunks_of(2):
        assert not parity(Layer(bias=bias, h0=h0, dtype=dtype, D=2), isa, keeps)


@every_set
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("H", [33, 112])
def test_dtypes_on_larger_sizes(H, dtype, isa):
    assert not parity(Layer(T=4, B=6, I=18, H=H, D=2, dtype=dtype), isa)


@every_set
@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 100])
@pytest.mark.parametrize("lengths", PACKED, ids=str)
@both
def test_packed_rows(D, lengths, steps, keeps, isa):
    with chunks_of(steps):
        assert not parity(Layer(lengths=lengths, H=11, D=D), isa, keeps)


@every_set
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias, h0", [(False, False), (True, False)])
def test_packed_rows_of_other_layers(bias, h0, dtype, isa):
    assert not parity(Layer(lengths=(6, 4, 4, 1), H=11, D=2, bias=bias, h0=h0, dtype=dtype), isa, keeps=False)


@every_set
@pytest.mark.parametrize("keeps", [True, False])
@both
def test_every_choice_of_gradients(D, keeps, isa):
    """Each alone and all but each: the same bits as together, and nothing of what nobody asked for."""
    data = given(Layer(T=5, B=3, I=9, H=10, D=D))
    with chunks_of(2):
        whole = ours(data, isa, keeps)
        for needs in NEEDS:
            names = [name for name, need in zip(GRADIENTS, needs, strict=True) if need and name in whole]
            assert not same_bits(ours(data, isa, keeps, needs), whole, "y", "hn", *names), needs


@every_set
@pytest.mark.parametrize("which", ["dy", "dhn"])
def test_gradients_of_one_output_alone(which, isa):
    """None that arrives counts as zeros."""
    data = given(Layer(D=2, T=5))
    zeros = data.grads._replace(**{which: torch.zeros_like(getattr(data.grads, which))})
    none = data.grads._replace(**{which: None})
    assert not same_bits(ours(data._replace(grads=none), isa), ours(data._replace(grads=zeros), isa))


@every_set
@pytest.mark.parametrize("scale", [1e-4, 30.0, 1e4])
def test_small_and_large_values(scale, isa):
    assert not parity(Layer(scale=scale, h0=False), isa)


@every_set
@pytest.mark.parametrize("layer", [Layer(T=50, B=4, I=16, H=64), Layer(T=30, B=16, I=32, H=100)], ids=["64", "100"])
def test_errors_are_of_the_size_of_torchs(layer, isa):
    """The sums of products begin at zero and take the large term last."""
    assert not precision(layer, isa, MOST)


@every_set
@pytest.mark.parametrize("T, B, H", [(200, 40, 16), (200, 80, 8)])
def test_gradients_of_biases_are_sums_over_many_rows(T, B, H, isa):
    """The tolerance rule where a chunk has thousands of rows."""
    assert not parity(Layer(T=T, B=B, I=3, H=H), isa)


@every_set
@pytest.mark.parametrize("reverse", [False, True])
def test_the_oracle_agrees(reverse, isa):
    """The hand-derived loops of tritongru/reference.py, in float64."""
    data = given(Layer(T=6, B=3, I=4, H=7, D=2, dtype=torch.float64))
    (x, weights, h0, *_), (dy, dhn) = data
    found, d, H = ours(data, isa), int(reverse), 7
    own = slice(d * 3 * H, (d + 1) * 3 * H)
    gx = (x @ weights.w_ih[own].t() + weights.b_ih[own]).view(6, 3, 3 * H)
    y, hn, gates = reference.forward_loop(gx, h0[d], weights.w_hh[d], weights.b_hh[d], reverse)
    dgx, dgh, dh0, _ = reference.backward_loop(
        dy[:, d].reshape(y.shape), dhn[d], h0[d], weights.w_hh[d], y, gates, reverse
    )
    expected = {
        "y": (found["y"][:, d], y.flatten(0, 1)),
        "hn": (found["hn"][d], hn),
        "dw_ih": (found["dw_ih"][own], dgx.flatten(0, 1).t() @ x),
        "db_ih": (found["db_ih"][own], dgx.sum((0, 1))),
        "db_hh": (found["db_hh"][d], dgh.sum((0, 1))),
        "dh0": (found["dh0"][d], dh0),
    }
    for name, (actual, value) in expected.items():
        torch.testing.assert_close(actual, value, rtol=1e-12, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")


# The whole way, from the module


@pytest.mark.parametrize("memory", ["save", "recompute"])
@pytest.mark.parametrize("dtype", DTYPES[:1] + DTYPES[2:])
@pytest.mark.parametrize("hx", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_two_layers_in_both_directions(bias, hx, dtype, memory):
    case = Case(layers=2, bidirectional=True, bias=bias, hx=hx, dtype=dtype, memory=memory, impl="llvm")
    assert_parity(case, torch.device("cpu"))


@pytest.mark.parametrize("memory", ["save", "recompute"])
def test_two_layers_in_fp64(memory):
    torch.manual_seed(0)
    gru = tritongru.GRU(4, 19, 2, bidirectional=True, impl="llvm", memory=memory).double()
    theirs, x = gru.to_torch(copy=True), torch.randn(9, 5, 4, dtype=torch.float64)
    results = [module(x)[0] for module in (gru, theirs)]
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)
    gradients = [
        torch.autograd.grad(y.sin().sum(), list(m.parameters())) for m, y in zip((gru, theirs), results, strict=True)
    ]
    for (name, _), *both_grads in zip(gru.named_parameters(), *gradients, strict=True):
        torch.testing.assert_close(*both_grads, rtol=0, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("memory", ["save", "recompute"])
@pytest.mark.parametrize("lengths", [(3, 6, 1, 4), (1, 1), (2, 9, 9, 1, 5)], ids=str)
def test_unsorted_packed_sequences(lengths, memory):
    torch.manual_seed(0)
    gru = tritongru.GRU(4, 13, 2, bidirectional=True, impl="llvm", memory=memory)
    exact = gru.to_torch(copy=True).double()
    rows = pack_sequence([torch.randn(length, 4) for length in lengths], enforce_sorted=False)
    rows = rows._replace(data=rows.data.requires_grad_())
    twice = PackedSequence(rows.data.double(), *rows[1:])
    hx = torch.randn(4, len(lengths), 13)
    found = gru(rows, hx), exact(twice, hx.double())
    torch.testing.assert_close(found[0][0].data.double(), found[1][0].data, rtol=0, atol=1e-6)
    torch.testing.assert_close(found[0][1].double(), found[1][1], rtol=0, atol=1e-6)
    gradients = [
        torch.autograd.grad(y.data.sin().sum() + hn.sum(), [rows.data, *module.parameters()])
        for (y, hn), module in zip(found, (gru, exact), strict=True)
    ]
    for ours_, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours_.double(), theirs.double(), rtol=1e-5, atol=1e-5)


def test_a_batch_that_is_larger_than_the_first_step_keeps_the_rest_of_h0():
    """As the operators of Triton do: a row without steps ends where it begins."""
    (x, weights, h0, *_), _ = given(Layer(T=1, B=4, H=5, D=2))
    offsets = torch.tensor([0, 2, 3])
    operands = (x[:3].contiguous(), *weights, h0, None, offsets, None, None, 4)
    for save in (True, False):
        y, hn, kept = torch.ops.tritongru.gru_forward(*operands, save, "llvm")
        assert torch.equal(hn[:, 2:], h0[:, 2:])
        dhn = torch.randn_like(hn)
        grads = torch.ops.tritongru.gru_backward(torch.ones_like(y), dhn, *operands, y, kept, ALL, "llvm")
        assert torch.equal(grads[5][:, 2:], dhn[:, 2:])


@pytest.mark.slow
def test_sums_over_very_many_rows_are_as_exact_as_torchs():
    """Gradients of weights and biases over 900,000 rows: one chain of so many had missed what is allowed."""
    torch.manual_seed(0)
    theirs = torch.nn.GRU(4, 4)
    ours = tritongru.GRU.from_torch(copy.deepcopy(theirs), impl="llvm")
    exact = copy.deepcopy(theirs).double()
    x, dy = torch.randn(9, 100_000, 4), torch.randn(9, 100_000, 4)
    grads = [
        torch.autograd.grad(layer(x.to(dtype))[0], list(layer.parameters()), dy.to(dtype))
        for layer, dtype in ((exact, torch.float64), (theirs, torch.float32), (ours, torch.float32))
    ]
    for (name, _), truth, other, own in zip(theirs.named_parameters(), *grads, strict=True):
        error, allowed = ((found - truth).abs().max().item() for found in (own, other))
        assert error <= 2 * allowed + 8 * 2**-23 * truth.abs().max().item(), name

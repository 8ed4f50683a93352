"""``tritongru.gru``, ``impl="llvm"``, and the way to torch's module and back."""

import copy
import pickle

import pytest
import torch
from cpu_loop import llvmlite_of, needs_loop
from layers import Case, build, outputs_and_gradients
from tolerance import assert_same
from torch import nn
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import tritongru
from tritongru import route
from tritongru.arguments.options import IMPLS

pytestmark = pytest.mark.quick

X = torch.randn(5, 2, 3)


@pytest.mark.parametrize("impl", ["torch", "auto", "triton"])
@pytest.mark.parametrize("bias", [True, False])
def test_the_function_is_the_module(bias, impl, device):
    module, x, hx = build(Case(layers=2, bidirectional=True, bias=bias), device, batch_first=True)
    module.impl = impl
    x = x.transpose(0, 1)
    options = {"num_layers": 2, "bias": bias, "batch_first": True, "bidirectional": True, "impl": impl}
    for found, expected in zip(tritongru.gru(x, hx, list(module.parameters()), **options), module(x, hx), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("impl", ["torch", "auto", "triton"])
def test_packed_data(impl, device):
    module, x, _ = build(Case(T=4, B=3), device)
    module.impl = impl
    packed = pack_padded_sequence(x, torch.tensor([4, 2, 1]))
    output, h_n = tritongru.gru(packed.data, None, list(module.parameters()), batch_sizes=packed.batch_sizes, impl=impl)
    expected, expected_h = module(packed)
    torch.testing.assert_close(output, expected.data, rtol=0, atol=0)
    torch.testing.assert_close(h_n, expected_h, rtol=0, atol=0)


@pytest.mark.parametrize(
    "change, error, says",
    [
        ({"impl": "cuda"}, ValueError, "impl should be one of 'auto', 'triton', 'llvm', 'torch', got 'cuda'"),
        ({"memory": "x"}, ValueError, "memory should be one of 'auto', 'save', 'recompute', got 'x'"),
        ({"dropout": 2}, ValueError, "dropout should be a number in range [0, 1], got 2"),
        ({"num_layers": 2}, ValueError, "weights should hold 8 tensors (4 for each of 2 layers and 1 directions"),
        ({"bias": False}, ValueError, "weights should hold 2 tensors (2 for each of 1 layers and 1 directions"),
        ({"num_layers": 0}, ValueError, "num_layers should be at least 1, got 0"),
        ({"input": torch.zeros(3, 4)}, RuntimeError, "input must have 3 dimensions, got 2"),
        ({"input": torch.zeros(5, 3, 7)}, RuntimeError, "must be equal to input_size. Expected 4, got 7"),
        ({"input": torch.zeros(5, 3, 4).double()}, ValueError, "does not match weight dtype (torch.float32)"),
        ({"hx": torch.zeros(1, 2, 5)}, RuntimeError, "Expected hidden size (1, 3, 5), got [1, 2, 5]"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_errors_are_sentences(change, error, says):
    module = tritongru.GRU(4, 5)
    arguments = {"input": torch.zeros(5, 3, 4), "hx": None, "weights": list(module.parameters())} | change
    with pytest.raises(error) as raised:
        tritongru.gru(**arguments)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_weight_of_a_wrong_shape_never_reaches_a_kernel(device):
    module, x, _ = build(Case(), device)
    weights = [p.detach() for p in module.parameters()]
    weights[1] = weights[1][:-1]
    with pytest.raises(RuntimeError, match=r"weight 1 of the GRU should have the shape \(15, 5\), got \(14, 5\)"):
        tritongru.gru(x, None, weights, impl="triton")


def test_an_option_set_later_is_checked_at_the_call(device):
    module, x, _ = build(Case(), device)
    module.memory = "keep"
    with pytest.raises(ValueError, match="memory should be one of 'auto', 'save', 'recompute', got 'keep'"):
        module(x)


@pytest.mark.parametrize("copies", [False, True])
def test_from_torch_and_back(copies):
    theirs = nn.GRU(3, 4, 2, batch_first=True, dropout=0.25, bidirectional=True).eval()
    theirs.bias_hh_l1.requires_grad_(False)
    ours = tritongru.GRU.from_torch(theirs, memory="recompute", copy=copies)
    back = ours.to_torch(copy=copies)
    x = torch.randn(2, 5, 3)
    assert str(back) == str(theirs)
    assert (ours.memory, ours.dropout, ours.batch_first, ours.training, back.training) == (
        "recompute",
        0.25,
        True,
        False,
        False,
    )
    for (name, p), q, r in zip(theirs.named_parameters(), ours.parameters(), back.parameters(), strict=True):
        assert (p is q is r) == (not copies), name
        assert p.requires_grad == q.requires_grad == r.requires_grad
        assert torch.equal(p, q)
    assert torch.equal(back(x)[0], theirs(x)[0])
    assert_same(ours(x)[0], theirs(x)[0])


def test_from_torch_refuses_what_it_cannot_take():
    with pytest.raises(TypeError, match=r"expected a torch.nn.GRU, got LSTM"):
        tritongru.GRU.from_torch(nn.LSTM(2, 3))
    computed = nn.utils.parametrizations.weight_norm(nn.GRU(2, 3), "weight_hh_l0")
    with pytest.raises(ValueError, match="weight_hh_l0 is computed, not a parameter of the module"):
        tritongru.GRU.from_torch(computed)


def test_the_way_to_the_kernels(monkeypatch):
    def way(impl, batch, steps):
        way = route.route_of(impl, 8, torch.float32, torch.device("cpu"), 1, False)
        return way if way is not None and route.takes(way, impl, batch, steps) else None

    found = route.Route("", "triton", "why", largest=32, shortest=8, device_bytes=1 << 30)
    monkeypatch.setattr(route, "_route", lambda *asked: found)
    assert way("auto", 32, 8) is found
    assert way("auto", 33, 8) is None
    assert way("auto", 32, 7) is None
    assert way("triton", 33, 7) is found
    monkeypatch.setattr(route, "_route", lambda *asked: route.Route("no kernel"))
    assert way("auto", 1, 100) is None
    with pytest.raises(RuntimeError, match="impl='triton' cannot run this layer: no kernel"):
        way("triton", 1, 100)


# impl="llvm"


def test_it_is_one_of_the_choices_and_shows():
    assert IMPLS == ("auto", "triton", "llvm", "torch")
    ours = tritongru.GRU(3, 4, 2, impl="llvm")
    assert repr(ours) == "GRU(3, 4, num_layers=2, impl='llvm')"
    for twin in (copy.deepcopy(ours), copy.copy(ours), pickle.loads(pickle.dumps(ours))):
        assert (twin.impl, repr(twin)) == ("llvm", repr(ours))
    assert tritongru.GRU.from_torch(nn.GRU(3, 4), impl="llvm").impl == "llvm"
    assert type(ours.to_torch()) is nn.GRU


def test_it_is_built_without_llvmlite_and_refused_at_the_call():
    with llvmlite_of():
        ours = tritongru.GRU(3, 4, impl="llvm")
        for run in (lambda: ours(X), lambda: tritongru.gru(X, None, list(ours.parameters()), impl="llvm")):
            assert refusal(run) == (
                "impl='llvm' cannot run this layer: the package llvmlite is not installed; install it with: "
                "pip install 'tritongru[cpu]' (impl='auto' runs torch's GRU here)"
            )
        assert torch.equal(tritongru.GRU.from_torch(ours.to_torch())(X)[0], ours.to_torch()(X)[0])


def refusal(run):
    with pytest.raises(RuntimeError) as refused:
        run()
    return str(refused.value)


@needs_loop
@pytest.mark.parametrize("grad", [False, True])
def test_it_is_the_auto_of_a_cpu_bit_for_bit(grad):
    ours = tritongru.GRU(3, 4, 2, bidirectional=True)
    asked = copy.deepcopy(ours)
    asked.impl = "llvm"
    if grad:
        found, expected = (outputs_and_gradients(module, X, None) for module in (asked, ours))
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    else:
        with torch.no_grad():
            assert all(torch.equal(a, b) for a, b in zip(asked(X), ours(X), strict=True))


def under_func(derivative):
    def run(gru):
        weights = {name: weight.detach() for name, weight in gru.named_parameters()}
        return derivative(lambda weights: functional_call(gru, weights, (X,))[1].sum((0, 1)))(weights)

    return run


def forward_mode(gru):
    with torch.autograd.forward_ad.dual_level():
        return gru(torch.autograd.forward_ad.make_dual(X, X))


# Triton's kernels have no derivative but the first either.
WITHOUT_DERIVATIVE = {
    "jvp": lambda gru: torch.func.jvp(gru, (X,), (X,)),
    "forward mode": forward_mode,
    "jacfwd": under_func(torch.func.jacfwd),
    "jacrev": under_func(torch.func.jacrev),
}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("how", WITHOUT_DERIVATIVE)
@pytest.mark.parametrize("impl", [pytest.param("llvm", marks=needs_loop), "triton"])
def test_a_derivative_that_there_is_not_is_refused_and_never_zero(impl, how, frozen, device):
    gru = tritongru.GRU(3, 4, impl=impl).requires_grad_(not frozen)
    if device.type == "cuda":
        pytest.skip("X is on the CPU")
    text = refusal(lambda: WITHOUT_DERIVATIVE[how](gru))
    if impl == "llvm":
        assert one_sentence(text)


def one_sentence(text):
    return "\n" not in text and ". " not in text and text.startswith("impl='llvm' cannot run this")


REFUSED = {
    "complex": lambda: tritongru.GRU(3, 4, impl="llvm", dtype=torch.complex64)(X.to(torch.complex64)),
    "meta": lambda: tritongru.GRU(3, 4, impl="llvm", device="meta")(X.to("meta")),
}


@needs_loop
@pytest.mark.parametrize("what", REFUSED)
def test_what_it_cannot_run_is_refused_in_one_sentence(what):
    assert one_sentence(refusal(REFUSED[what]))


@needs_loop
def test_odd_packed_rows_are_no_reason_for_torchs():
    """ "auto" leaves them to torch; whoever asks for ours gets it, or a sentence."""
    odd = PackedSequence(torch.randn(9, 3), torch.tensor([3, 2, 1]))
    ours = tritongru.GRU(3, 4)
    expected = ours(odd)[0].data
    ours.impl = "llvm"
    found = ours(odd)[0].data
    assert_same(found[:6], expected[:6])


@needs_loop
def test_autocast_computes_in_the_dtype_that_it_asks_for():
    gru = tritongru.GRU(3, 4, impl="llvm")
    with torch.autocast("cpu", torch.bfloat16):
        output, h_n = gru(X)
    assert output.dtype == h_n.dtype == torch.bfloat16
    assert_same(output, copy.deepcopy(gru).bfloat16()(X.bfloat16())[0])

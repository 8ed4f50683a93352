"""Values at the ends: NaN, infinities, denormals, saturated gates; and how exact the gate functions are."""

import math

import pytest
import torch

pytest.importorskip("llvmlite")

import mpmath  # torch needs it, too
from compiled_loop import Layer, given, ours, parity, torchs
from vector_functions import DTYPES, MOST, elementwise, inexact

import tritongru
from tritongru.llvm.passes import gate_math
from tritongru.planning.instruction_sets import host_sets

every_set = pytest.mark.parametrize("isa", host_sets())
INF, NAN = math.inf, math.nan
OPERANDS = ("x", "h0", "w_ih", "w_hh", "b_ih", "b_hh")


def with_one(where, value, layer):
    """Operands of which one value is this."""
    data = given(layer)
    tensors = {"x": data.call.x, "h0": data.call.h0, **data.call.weights._asdict()}
    tensors[where].view(-1)[tensors[where].numel() // 2] = value
    return data


def places(values):
    return {"NaN": values.isnan(), "inf": values == INF, "-inf": values == -INF}


def assert_same_places(found, expected, names):
    for name in names:
        ours_, theirs = places(found[name]), places(expected[name])
        for kind, where in theirs.items():
            assert torch.equal(ours_[kind], where), f"{kind} in {name}: {ours_[kind].sum()}, torch's {where.sum()}"


@every_set
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("where", OPERANDS)
def test_nan_goes_where_torchs_goes(where, D, isa):
    data = with_one(where, NAN, Layer(T=4, I=5, H=19, D=D))
    expected = torchs(data, torch.float32)
    assert expected["y"].isnan().any()
    assert not expected["y"].isnan().all()
    assert_same_places(ours(data, isa), expected, expected)


@every_set
@pytest.mark.parametrize("value", [INF, -INF])
@pytest.mark.parametrize("where", OPERANDS)
def test_infinity_goes_where_torchs_goes(where, value, isa):
    """As NaN where torch has one: 0 times infinity, their difference. A gate that is closed lets nothing through."""
    data = with_one(where, value, Layer(T=4, I=5, H=19, D=2))
    expected = torchs(data, torch.float32)
    assert_same_places(ours(data, isa), expected, ("y", "hn"))


@every_set
@pytest.mark.parametrize("where", ["x", "w_ih", "w_hh"])
@pytest.mark.parametrize("value", [INF, -INF])
def test_gradients_of_infinite_operands_are_as_torchs(where, value, isa):
    data = with_one(where, value, Layer(T=4, I=5, H=19, D=2))
    expected = torchs(data, torch.float32)
    assert_same_places(ours(data, isa), expected, expected)


@every_set
@pytest.mark.parametrize("value", [1e30, -1e30, 3e38, -3e38])
@pytest.mark.parametrize("where", OPERANDS)
def test_a_huge_value_makes_no_nan(where, value, isa):
    data = with_one(where, value, Layer(T=4, I=5, H=19, D=2))
    found, expected = ours(data, isa), torchs(data, torch.float32)
    for name in ("y", "hn"):
        assert found[name].isfinite().all()
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)


@every_set
def test_huge_states_are_replaced_by_a_closed_gate(isa):
    """With z = 0 the state is n, whatever it was before."""
    data = given(Layer(T=2, B=2, H=9))
    data.call.weights.b_ih[9:18] = -1e4
    data.call.weights.w_hh.zero_()
    for size in (1e30, 3e38):
        data.call.h0.fill_(size)
        found, expected = ours(data, isa), torchs(data, torch.float32)
        torch.testing.assert_close(found["y"], expected["y"], rtol=0, atol=1e-6)


@every_set
@pytest.mark.parametrize("keeps", [True, False])
def test_saturated_gates(keeps, isa):
    for gate in range(3):
        for bias in (200.0, -200.0):
            data = given(Layer(T=3, H=11))
            data.call.weights.b_ih[gate * 11 : gate * 11 + 11] = bias
            found, exact = ours(data, isa, keeps), torchs(data, torch.float64)
            for name, value in exact.items():
                torch.testing.assert_close(found[name].double(), value, rtol=0, atol=1e-5, msg=f"{name} {gate} {bias}")


@every_set
@pytest.mark.parametrize("scale", [1e-38, 1e-42, 1e-45])
def test_denormal_inputs(scale, isa):
    assert not parity(Layer(scale=scale, h0=False), isa)


@every_set
def test_denormal_states_are_not_flushed(isa):
    """z = 1 keeps the state, bit for bit."""
    data = given(Layer(T=3, B=2, H=9))
    data.call.weights.b_ih[9:18] = 1e4
    data.call.h0.mul_(1e-41)
    assert (data.call.h0 != 0).any()
    data.call.weights.w_ih[18:].zero_()
    data.call.weights.w_hh[:, 18:].zero_()
    for bias in (data.call.weights.b_ih[18:], data.call.weights.b_hh[:, 18:]):
        bias.zero_()  # n = 0
    y = ours(data, isa)["y"].view(3, 2, 9)
    assert torch.equal(y, data.call.h0.expand(3, 2, 9))


@pytest.mark.parametrize("bad", [NAN, INF])
def test_nan_and_infinity_stay_in_their_row(bad):
    torch.manual_seed(0)
    gru, x = tritongru.GRU(4, 19, impl="llvm"), torch.randn(5, 9, 4)
    expected, _ = gru(x)
    x[1, 3, 0] = bad
    output, _ = gru(x)
    others = [b for b in range(9) if b != 3]
    assert torch.equal(output[:, others], expected[:, others])
    assert torch.equal(output[0], expected[0])
    assert output[1:, 3].isnan().all() == math.isnan(bad)


# The gate functions


@every_set
@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_gate_functions_in_fp32(name, isa):
    assert not inexact(name, isa)


@every_set
@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_gate_functions_in_fp64(name, isa):
    apply = elementwise(getattr(gate_math, name), isa, "double")
    torch.manual_seed(0)
    x = torch.cat([torch.empty(500, dtype=torch.float64).uniform_(-w, w) for w in (700, 40, 1, 0.1)])
    with mpmath.workprec(200):
        function = {"sigmoid": lambda v: 1 / (1 + mpmath.exp(-v)), "tanh": mpmath.tanh}[name]
        for value, found in zip(x.tolist(), apply(x).tolist(), strict=True):
            exact = function(mpmath.mpf(value))
            unit = mpmath.mpf(2) ** (mpmath.floor(mpmath.log(abs(exact), 2)) - 52)
            assert abs(found - exact) <= MOST[name] * unit, value


@every_set
@pytest.mark.parametrize("scalar", ["float", "double"])
def test_gate_functions_at_the_ends(scalar, isa):
    sigmoid, tanh = (elementwise(getattr(gate_math, name), isa, scalar) for name in ("sigmoid", "tanh"))
    dtype = DTYPES[scalar]
    x = torch.tensor([NAN, INF, -INF, 1e38, -1e38, 800, -800, 0.0, -0.0, 1e-45, -1e-45], dtype=dtype)
    found = tanh(x)
    assert torch.equal(found.nan_to_num(9), torch.tanh(x).nan_to_num(9))
    assert found[0].isnan()
    found = sigmoid(x)
    assert found[0].isnan()
    assert torch.equal(found[[1, 3, 5, 7, 8, 9, 10]], torch.sigmoid(x[[1, 3, 5, 7, 8, 9, 10]]))
    below = torch.tensor([-1000.0, -800.0, -INF, torch.finfo(dtype).min], dtype=dtype)
    assert torch.equal(sigmoid(below), torch.zeros(4, dtype=dtype)), "a closed gate is not quite closed"


@every_set
def test_gates_stay_within_their_bounds(isa):
    """0 <= sigmoid <= 1 and -1 <= tanh <= 1, rounding included, and neither ever falls by more than rounding."""
    x = torch.cat([torch.linspace(-100, 100, 1_000_001), torch.linspace(-1, 1, 1_000_001)])
    for name, least in (("sigmoid", 0.0), ("tanh", -1.0)):
        found = elementwise(getattr(gate_math, name), isa, "float")(x)
        assert found.min() >= least
        assert found.max() <= 1
        assert found[:1_000_001].diff().min() >= -3e-7

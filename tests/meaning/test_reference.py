"""The oracle agrees with torch.nn.GRU, with autograd and with finite differences."""

import pytest
import torch
from torch import nn

from tritongru import reference

pytestmark = pytest.mark.quick

T, B, I, H = 5, 3, 4, 6


def problem(bias=True):
    torch.manual_seed(0)
    gru = nn.GRU(I, H, bias=bias, dtype=torch.float64)
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    h0 = torch.randn(B, H, dtype=torch.float64, requires_grad=True)
    return gru, x, h0


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("reverse", [False, True])
def test_forward_is_torch_nn_gru(bias, reverse):
    gru, x, h0 = problem(bias)
    expected, expected_hn = gru(x.flip(0) if reverse else x, h0[None])
    y, hn, gates = reference.forward(x, h0, *gru.parameters(), reverse=reverse)
    torch.testing.assert_close(y.flip(0) if reverse else y, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(hn, expected_hn[0], rtol=0, atol=1e-12)
    h_prev = torch.cat((y[1:], h0[None])) if reverse else torch.cat((h0[None], y[:-1]))
    torch.testing.assert_close(gates.n + gates.z * (h_prev - gates.n), y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("reverse", [False, True])
def test_hand_derived_backward_is_autograd(reverse):
    gru, x, h0 = problem()
    inputs = (x, h0, *gru.parameters())
    y, hn, gates = reference.forward(*inputs, reverse=reverse)
    dy, dhn = torch.randn_like(y), torch.randn_like(hn)
    expected = torch.autograd.grad((y, hn), inputs, (dy, dhn))
    w_ih, w_hh = gru.weight_ih_l0, gru.weight_hh_l0
    with torch.no_grad():
        found = reference.backward(dy, dhn, x, h0, w_ih, w_hh, y, gates, reverse)
    for name, a, b in zip(found._fields[:6], found[:6], expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("reverse", [False, True])
def test_gradcheck(reverse):
    gru, x, h0 = problem()
    inputs = [t.detach().requires_grad_() for t in (x[:3], h0, *gru.parameters())]
    assert torch.autograd.gradcheck(reference.ReferenceGRU.apply, (*inputs, reverse))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_keeps_the_dtype(dtype):
    gru, x, h0 = problem()
    y, hn, gates = reference.forward(x.to(dtype), h0.to(dtype), *(p.to(dtype) for p in gru.parameters()))
    assert {y.dtype, hn.dtype, *(gate.dtype for gate in gates)} == {dtype}


LENGTHS = torch.tensor([5, 2, 0])
RESETS = torch.tensor([[0, 0, 1], [1, 0, 0], [0, 1, 0], [1, 1, 0], [1, 0, 1]]).bool()


def ragged_problem(dtype=torch.float64):
    gru, x, h0 = problem()
    return gru, x, h0, torch.randn(B, H, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_ragged_call_is_its_segments_one_by_one(reverse):
    gru, x, h0, reset_state = ragged_problem()
    ragged = reference.Ragged(LENGTHS, RESETS, reset_state)
    y, hn, _ = reference.forward(x, h0, *gru.parameters(), reverse=reverse, ragged=ragged)
    for b, length in enumerate(LENGTHS.tolist()):
        cuts = [t for t in range(1, length) if RESETS[t, b]]
        segments = [*zip([0, *cuts], [*cuts, length], strict=True)] if length else []
        assert not y[length:, b].any()
        h = h0[b : b + 1]
        for start, end in reversed(segments) if reverse else segments:
            first = end == length if reverse else start == 0 and not RESETS[0, b]
            h = h0[b : b + 1] if first else reset_state[b : b + 1]
            own = x[start:end, b : b + 1]
            expected, h, _ = reference.forward(own, h, *gru.parameters(), reverse=reverse)
            torch.testing.assert_close(y[start:end, b : b + 1], expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(hn[b : b + 1], h, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rows", [B, 1])
@pytest.mark.parametrize("reverse", [False, True])
def test_hand_derived_ragged_backward_is_autograd(reverse, rows):
    gru, x, h0, reset_state = ragged_problem()
    reset_state = reset_state[:rows].detach().requires_grad_()
    ragged = reference.Ragged(LENGTHS, RESETS, reset_state)
    inputs = (x, h0, *gru.parameters(), reset_state)
    y, hn, gates = reference.forward(x, h0, *gru.parameters(), reverse=reverse, ragged=ragged)
    dy, dhn = torch.randn_like(y), torch.randn_like(hn)
    expected = torch.autograd.grad((y, hn), inputs, (dy, dhn))
    with torch.no_grad():
        weights = gru.weight_ih_l0, gru.weight_hh_l0
        found = reference.backward(dy, dhn, x, h0, *weights, y, gates, reverse, ragged)
    for name, a, b in zip(found._fields, found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")
    assert not found.x[2:, 1].any()
    assert torch.equal(found.h0[2], dhn[2])


@pytest.mark.parametrize("reverse", [False, True])
def test_ragged_gradcheck(reverse):
    gru, x, h0, reset_state = ragged_problem()
    inputs = [t.detach().requires_grad_() for t in (x, h0, *gru.parameters())]
    assert torch.autograd.gradcheck(reference.ReferenceGRU.apply, (*inputs, reverse, LENGTHS, RESETS, reset_state))


@pytest.mark.parametrize("reverse", [False, True])
def test_padding_never_leaks_into_the_oracle(reverse):
    gru, x, h0, reset_state = ragged_problem()
    ragged = reference.Ragged(LENGTHS, RESETS, reset_state)
    padding = torch.arange(T)[:, None] >= LENGTHS
    poisoned = x.detach().masked_fill(padding[..., None], float("nan"))
    dy = torch.randn(T, B, H, dtype=x.dtype)
    weights = gru.weight_ih_l0, gru.weight_hh_l0
    results = []
    with torch.no_grad():
        for given, arriving in ((x, dy), (poisoned, dy.masked_fill(padding[..., None], float("inf")))):
            y, hn, gates = reference.forward(given, h0, *gru.parameters(), reverse=reverse, ragged=ragged)
            grads = reference.backward(arriving, hn, given, h0, *weights, y, gates, reverse, ragged)
            results.append((y, hn, *grads))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)

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
    for name, a, b in zip(found._fields, found, expected, strict=True):
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

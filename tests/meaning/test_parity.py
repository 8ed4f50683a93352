"""The kernels, forward and every gradient, against torch and float64: on a GPU if there is one, else interpreted."""

import pytest
import torch
from layers import Case, assert_parity, build, outputs_and_gradients

SIZES = [1, 16, 33, 48, 63, 65, 100]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("H", SIZES)
def test_hidden_sizes(H, bidirectional, device):
    assert_parity(Case(T=3, B=2, H=H, bidirectional=bidirectional), device)


@pytest.mark.parametrize("B", [0, 1, 15, 16, 17, 33])
def test_batch_sizes(B, device):
    assert_parity(Case(T=3, B=B, bidirectional=True), device)


@pytest.mark.parametrize("T", [1, 2, 7, 40])
def test_lengths(T, device):
    assert_parity(Case(T=T, B=2), device)


@pytest.mark.every(3)
@pytest.mark.parametrize("memory", ["save", "recompute"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hx", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_options(bias, hx, dtype, memory, device):
    assert_parity(Case(layers=2, bidirectional=True, bias=bias, hx=hx, dtype=dtype, memory=memory), device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("H", [33, 112])
def test_dtypes_on_odd_sizes(H, dtype, device):
    assert_parity(Case(T=3, B=2, H=H, dtype=dtype), device)


@pytest.mark.parametrize("scale", [1e-4, 30.0, 1e4])
@pytest.mark.usefixtures("ieee")
def test_small_and_large_values(scale, device):
    assert_parity(Case(scale=scale, hx=False), device)


@pytest.mark.parametrize("largest", [3e38, -3e38])
def test_a_finite_input_never_makes_a_nan(largest, device):
    ours, x, hx = build(Case(T=2, B=2), device)
    x[0, 0, 0] = largest
    output, h_n = ours(x, hx)
    assert output.isfinite().all()
    assert h_n.isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_stay_in_their_row(bad, device):
    ours, x, hx = build(Case(B=3), device)
    expected, _ = ours(x, hx)
    x[1, 1, 0] = bad
    output, _ = ours(x, hx)
    torch.testing.assert_close(output[:, [0, 2]], expected[:, [0, 2]], rtol=0, atol=0)
    if bad != bad:
        assert output[1:, 1].isnan().all()
    assert output[0].isfinite().all()


@pytest.mark.parametrize("memory", ["save", "recompute"])
def test_every_buffer_is_written(memory, device, monkeypatch):
    """Fresh memory is filled with NaN: what the kernels do not write, or read too early, shows."""
    plain = {name: getattr(torch.Tensor, name) for name in ("new_empty",)}
    poisoned = []

    def new_empty(self, *args, **kwargs):
        tensor = plain["new_empty"](self, *args, **kwargs)
        if tensor.is_floating_point() and tensor.numel():
            poisoned.append(tensor.shape)
            tensor.fill_(float("nan"))
        return tensor

    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)
    assert_parity(Case(T=4, B=17, H=33, bidirectional=True, memory=memory), device)
    assert len(poisoned) >= 6, "the operators no longer allocate by new_empty, so nothing was poisoned"


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("H", [5, 33])
def test_nothing_beside_the_tensors_is_read(H, bidirectional, device):
    """Weights, input and state lie between NaNs: what is read past an edge shows, even where it meets a zero."""

    def between_nans(tensor):
        buffer = torch.full((tensor.numel() + 8192,), float("nan"), device=tensor.device, dtype=tensor.dtype)
        return buffer[4096:-4096].view(tensor.shape).copy_(tensor.detach())

    ours, x, hx = build(Case(T=3, B=2, H=H, bidirectional=bidirectional), device)
    expected = outputs_and_gradients(ours, x, hx)
    for parameter in ours.parameters():
        parameter.data = between_nans(parameter)
    found = outputs_and_gradients(ours, between_nans(x), between_nans(hx))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.slow
def test_the_same_bits_every_time(device):
    ours, x, hx = build(Case(T=9, B=17, H=40, layers=2, bidirectional=True), device)
    first, second = (outputs_and_gradients(ours, x, hx) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_strided_and_expanded_tensors(device):
    case = Case(T=4, B=3, bidirectional=True)
    ours, x, hx = build(case, device)
    y, hn = ours(x, hx)
    wide = torch.empty(4, 3, 8, device=device)[..., ::2].copy_(x)
    torch.testing.assert_close(ours(wide, hx)[0], y, rtol=0, atol=0)
    one = torch.randn(2, 1, 5, device=device)
    expanded = ours(x, one.expand(2, 3, 5))
    torch.testing.assert_close(expanded[0], ours(x, one.repeat(1, 3, 1))[0], rtol=0, atol=0)
    grads = torch.autograd.grad(y.sum() + hn.sum(), list(ours.parameters()), retain_graph=True)
    strided = torch.autograd.grad(
        (y, hn), list(ours.parameters()), (torch.ones((), device=device).expand_as(y), torch.ones_like(hn))
    )
    for a, b in zip(grads, strided, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.usefixtures("ieee")
def test_changed_weights_are_seen_at_once(device):
    """A ``.data`` write moves no version counter, so nothing may be kept from the weights between calls."""
    ours, x, hx = build(Case(), device)
    before, _ = ours(x, hx)
    ours.weight_hh_l0.data.mul_(-1)
    after, _ = ours(x, hx)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, ours.to_torch()(x, hx)[0], rtol=0, atol=1e-6)

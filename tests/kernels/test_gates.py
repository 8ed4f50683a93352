"""Gate math alone, over the whole range of fp32, against float64."""

import pytest
import torch

pytestmark = pytest.mark.quick


def run(kernel, x, device, **flags):
    y = torch.full_like(x, float("nan"), device=device)
    kernel[(-(-x.numel() // 256),)](x.to(device), y, x.numel(), BLOCK=256, **flags)
    return y.cpu()


@pytest.fixture(scope="module")
def kernels():
    from gate_kernels import sigmoid_kernel, tanh_kernel

    return sigmoid_kernel, tanh_kernel


def values():
    torch.manual_seed(0)
    magnitudes = torch.logspace(-38, 38, 2001, dtype=torch.float64).float()
    edges = torch.tensor([0.0, 0.015625, 0.25, 1.0, 44.0, 88.8, 104.0, 3.4028235e38])
    positive = torch.cat((magnitudes, edges, torch.rand(2000) * 20))
    return torch.cat((positive, -positive))


@pytest.mark.parametrize("refine", [False, True])
def test_sigmoid(refine, kernels, device):
    x = values()
    y, exact = run(kernels[0], x, device, REFINE=refine).double(), torch.sigmoid(x.double())
    assert y.isfinite().all()
    assert ((y - exact).abs() <= (1.5 if refine else 4) * 2**-24 * (1 + exact)).all()


@pytest.mark.parametrize("refine", [False, True])
def test_tanh_series_is_relatively_exact(refine, kernels, device):
    x = values()
    y, exact = run(kernels[1], x, device, SERIES=True, REFINE=refine).double(), torch.tanh(x.double())
    normal = exact.abs() > 2**-126
    assert ((y - exact).abs() <= 24 * 2**-24 * exact.abs())[normal].all()
    assert (y[~normal].abs() <= 2**-126).all()


def test_tanh_in_16_bit_storage(kernels, device):
    x = values()
    y, exact = run(kernels[1], x, device, SERIES=False, REFINE=False).double(), torch.tanh(x.double())
    normal = exact.abs() > 2**-126
    assert ((y - exact).abs() <= 1e-4 * exact.abs())[normal].all(), "more than a fifth of float16's eps"


def test_nan_stays_and_infinity_saturates(kernels, device):
    x = torch.tensor([float("nan"), float("inf"), -float("inf")])
    for refine in (False, True):
        s = run(kernels[0], x, device, REFINE=refine)
        t = run(kernels[1], x, device, SERIES=True, REFINE=refine)
        assert s[0].isnan()
        assert t[0].isnan()
        torch.testing.assert_close(s[1:], torch.tensor([1.0, 0.0]), rtol=0, atol=1e-6)
        torch.testing.assert_close(t[1:], torch.tensor([1.0, -1.0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_saved_z_keeps_the_distance_from_zero_and_from_one(dtype, kernels, device):
    """Down to 2^-24, where fp32 has no values between z and 1; and z = 0 and z = 1 are told apart."""
    import triton.language as tl
    from gate_kernels import kept_kernel

    near = torch.logspace(-7, -0.31, 62, dtype=torch.float64)
    z = torch.cat((near, 1 - near, torch.tensor([0.0, 1.0, 0.5, float("nan")]))).float().to(device)
    found = torch.full((2, z.numel()), float("nan"), device=device)
    kept_kernel[(1,)](z, found, DT=getattr(tl, dtype), BLOCK=z.numel())
    assert found[:, -1].isnan().all()
    eps = torch.finfo(getattr(torch, dtype)).eps
    for through, exact in ((found[0], z), (found[1], 1 - z)):
        through, exact = through[:-1].double(), exact[:-1].double()
        assert ((through - exact).abs() <= eps * exact + 2**-24).all()

"""tritongru.GRUCell is built as, computes as and refuses as torch.nn.GRUCell."""

import copy
import inspect
import itertools
import pickle

import pytest
import torch
from cpu_loop import llvmlite_of, needs_loop
from tolerance import assert_same, failure
from torch import nn
from torch.func import functional_call, vmap
from torch.nn.utils import parametrizations, parametrize

import tritongru
from tritongru import cell as cell_room
from tritongru.interop import stepping

pytestmark = pytest.mark.quick

I, H, B = 3, 4, 2
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)


def pair(*args, **kwargs):
    """torch.nn.GRUCell and tritongru.GRUCell with the same weights."""
    torch.manual_seed(0)
    theirs, ours = nn.GRUCell(*args, **kwargs), tritongru.GRUCell(*args, **kwargs)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def values(*shape, seed=1, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def results(module, x, hx=None):
    """The output, and the gradient of everything that the caller gave or the module owns."""
    x, hx = (None if v is None else v.detach().clone().requires_grad_() for v in (x, hx))
    output = module(x, hx)
    leaves = {"input": x} | ({} if hx is None else {"hx": hx}) | dict(module.named_parameters())
    grads = torch.autograd.grad(output, list(leaves.values()), values(*output.shape, seed=3).to(output.dtype))
    return {"output": output, **{f"grad of {n}": g for n, g in zip(leaves, grads, strict=True)}}


def assert_same_results(ours, theirs, *call):
    actual, expected = results(ours, *call), results(theirs, *call)
    assert actual.keys() == expected.keys()
    for what in expected:
        assert actual[what].dtype == expected[what].dtype, what
        assert torch.equal(actual[what], expected[what]), what


# ---- construction ----


def test_what_kind_of_class_it_is():
    ours = tritongru.GRUCell(I, H)
    assert isinstance(ours, nn.GRUCell)
    assert type(ours).__name__ == "GRUCell"
    for name in nn.GRUCell.__constants__:
        assert getattr(ours, name) == getattr(nn.GRUCell(I, H), name), name


def test_arguments_by_position_and_signature():
    ours = tritongru.GRUCell(I, H, False, "cpu", torch.float64)
    assert (ours.bias, ours.weight_ih.dtype) == (False, torch.float64)
    names = list(inspect.signature(nn.GRUCell).parameters)
    assert list(inspect.signature(tritongru.GRUCell).parameters)[: len(names)] == names


@pytest.mark.parametrize("bias", [True, False, "relu", 0, None], ids=str)
def test_repr_and_state(bias):
    theirs, ours = pair(I, H, bias)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert ours.state_dict()._metadata == theirs.state_dict()._metadata
    assert list(ours._parameters) == list(theirs._parameters) == ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]
    assert (ours.bias_ih is None) == (theirs.bias_ih is None) == (not bias)
    theirs.load_state_dict(ours.state_dict(), strict=True)


@DTYPES
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_initial_values_and_generator_state(bias, dtype):
    torch.manual_seed(3)
    theirs, their_state = nn.GRUCell(I, H, bias, dtype=dtype), torch.get_rng_state()
    torch.manual_seed(3)
    ours, our_state = tritongru.GRUCell(I, H, bias, dtype=dtype), torch.get_rng_state()
    assert torch.equal(our_state, their_state)
    for mine, torchs in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, torchs)


@pytest.mark.parametrize(
    "args",
    [(), (3,), (3, -1), (-1, 4), (3.0, 4), (3, 4.0), (3, 4, True, "nowhere"), (3, 4, True, None, torch.int32)],
    ids=str,
)
def test_refused_construction(args):
    expected = failure(nn.GRUCell, *args)
    assert expected is not None
    assert failure(tritongru.GRUCell, *args) == expected


def test_sizes_of_zero_are_accepted():
    for sizes in ((0, H), (I, 0)):
        theirs, ours = pair(*sizes)
        assert_same_results(ours, theirs, values(B, sizes[0]))


def test_meta_device_and_skip_init():
    ours = tritongru.GRUCell(I, H, device="meta")
    assert ours.weight_hh.is_meta
    assert ours(torch.empty(B, I, device="meta")).shape == (B, H)
    assert nn.utils.skip_init(tritongru.GRUCell, I, H).weight_ih.shape == (3 * H, I)


# ---- forward and gradients ----


@DTYPES
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("with_hx", [False, True], ids=["no_hx", "hx"])
@pytest.mark.parametrize("batch", [(), (B,), (1,), (0,)], ids=str)
def test_results_and_every_gradient(batch, with_hx, bias, dtype):
    theirs, ours = pair(I, H, bias, dtype=dtype)
    hx = values(*batch, H, seed=2, dtype=dtype) if with_hx else None
    assert_same_results(ours, theirs, values(*batch, I, dtype=dtype), hx)


def test_strided_inputs():
    theirs, ours = pair(I, H)
    x, hx = values(I, 2 * B).t()[::2], values(1, H, seed=2).expand(B, H)
    assert not x.is_contiguous()
    assert torch.equal(ours(x, hx), theirs(x, hx))
    assert torch.equal(ours(input=x, hx=hx), theirs(x, hx))


def test_a_loop_over_the_cell_is_the_layer():
    torch.manual_seed(0)
    layer, cell = tritongru.GRU(I, H, dtype=torch.float64), tritongru.GRUCell(I, H, dtype=torch.float64)
    cell.load_state_dict({name.removesuffix("_l0"): weight for name, weight in layer.state_dict().items()})
    x, h = values(5, B, I, dtype=torch.float64), None
    output, _ = layer(x)
    for t in range(5):
        h = cell(x[t], h)
        torch.testing.assert_close(h, output[t], rtol=0, atol=1e-14)


def test_nan_stays_in_its_row():
    _, ours = pair(I, H)
    x = values(3, I)
    clean = ours(x)
    x[1, 0] = float("nan")
    assert ours(x)[1].isnan().all()
    assert torch.equal(ours(x)[::2], clean[::2])


def test_double_backward_and_forward_mode():
    _, ours = pair(2, 3, dtype=torch.float64)
    x, hx = (values(B, n, seed=n, dtype=torch.float64).requires_grad_() for n in (2, 3))
    assert torch.autograd.gradgradcheck(ours, (x, hx))
    assert torch.autograd.gradcheck(ours, (x, hx), check_forward_ad=True)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap():
    theirs, ours = pair(I, H)
    x, hx = values(5, B, I), values(5, B, H, seed=2)
    mine = vmap(ours)(x, hx)
    assert torch.equal(mine, vmap(theirs)(x, hx))
    torch.testing.assert_close(mine, torch.stack([theirs(*row) for row in zip(x, hx, strict=True)]))


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_on_the_cpu(low):
    theirs, ours = pair(I, H)
    for x_dtype, hx_dtype in itertools.product((torch.float32, low, torch.float64), repeat=2):
        x, hx = values(B, I, dtype=x_dtype), values(B, H, seed=2, dtype=hx_dtype)
        with torch.autocast("cpu", dtype=low):
            expected = failure(theirs, x, hx)
            assert failure(ours, x, hx) == expected
            if expected is None:
                assert_same_results(ours, theirs, x, hx)
    with torch.autocast("cpu", dtype=low):
        assert ours(values(B, I)).dtype == torch.float32
        assert ours(values(B, I, dtype=low)).dtype == low


# ---- errors ----


def tensors(*shapes):
    return [
        torch.zeros(s, device=d, dtype=t)
        for s in shapes
        for d, t in (("cpu", torch.float32), ("cpu", torch.float64), ("meta", torch.float32))
    ]


def spec(v):
    return f"{list(v.shape)}-{v.dtype}-{v.device}".replace("torch.", "") if isinstance(v, torch.Tensor) else str(v)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("x", [*tensors((), (3,), (5,), (2, 3), (2, 5), (1, 2, 3)), None, [0.0]], ids=spec)
def test_refused_calls(x, bias):
    theirs, ours = pair(3, 4, bias)
    hiddens = [None, [0.0], *tensors((), (4,), (5,), (2, 4), (3, 4), (1, 4), (2, 5), (1, 2, 4))]
    mine, torchs = ({spec(hx): failure(module, x, hx) for hx in hiddens} for module in (ours, theirs))
    assert mine == torchs
    assert any(torchs.values())


@pytest.mark.parametrize(
    "x, hx, error, text",
    [
        ((1, 2, 3), None, ValueError, "GRUCell: Expected input to be 1D or 2D, got 3D instead"),
        ((2, 3), (1, 2, 4), ValueError, "GRUCell: Expected hidden to be 1D or 2D, got 3D instead"),
        ((2, 5), (2, 5), RuntimeError, "input has inconsistent input_size: got 5 expected 3"),
        ((2, 3), (2, 5), RuntimeError, "hidden0 has inconsistent hidden_size: got 5, expected 4"),
        ((2, 3), (3, 4), RuntimeError, "Input batch size 2 doesn't match hidden0 batch size 3"),
        ((2, 3), (1, 4), RuntimeError, "Input batch size 2 doesn't match hidden0 batch size 1"),
        ((3,), (1, 4), RuntimeError, "hidden0 has inconsistent hidden_size: got 1, expected 4"),
        ((2, 3), (4,), RuntimeError, "Input batch size 2 doesn't match hidden0 batch size 4"),
    ],
    ids=str,
)
def test_the_words_of_an_error(x, hx, error, text):
    _, ours = pair(3, 4)
    assert failure(ours, torch.zeros(x), None if hx is None else torch.zeros(hx)) == (error, text)


# ---- weights as state ----


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_copies_are_equal_and_independent(bias, how):
    theirs, ours = pair(I, H, bias)
    twin = how(ours)
    assert type(twin) is tritongru.GRUCell
    with torch.no_grad():
        ours.weight_hh.add_(1)
    assert torch.equal(twin(values(B, I), values(B, H)), theirs(values(B, I), values(B, H)))
    assert not torch.equal(ours(values(B, I), values(B, H)), twin(values(B, I), values(B, H)))


def test_functional_call_and_data_writes():
    theirs, ours = pair(I, H)
    x, hx = values(B, I), values(B, H, seed=2)
    weights = {"weight_hh": torch.ones(3 * H, H)}
    assert torch.equal(functional_call(ours, weights, (x, hx)), functional_call(theirs, weights, (x, hx)))
    for module in (ours, theirs):
        module.weight_ih.data.mul_(2)
    assert torch.equal(ours(x, hx), theirs(x, hx))


def test_a_plain_tensor_is_refused():
    theirs, ours = pair(I, H)
    expected = failure(setattr, theirs, "weight_ih", torch.zeros(12, 3))
    assert failure(setattr, ours, "weight_ih", torch.zeros(12, 3)) == expected
    assert expected[0] is TypeError


def test_parametrized_weight():
    theirs, ours = pair(I, H)
    for module in (theirs, ours):
        parametrizations.weight_norm(module, "weight_hh")
        with torch.no_grad():
            module.parametrizations.weight_hh.original0.mul_(2)
    assert_same_results(ours, theirs, values(B, I), values(B, H, seed=2))
    for module in (theirs, ours):
        parametrize.remove_parametrizations(module, "weight_hh")
    assert type(ours) is tritongru.GRUCell
    assert_same_results(ours, theirs, values(B, I), values(B, H, seed=2))


# ---- the loop's step, where nothing is asked for but results ----


@DTYPES
@pytest.mark.parametrize("batch", [None, 1, B, 9])
@pytest.mark.parametrize("with_hx", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_results_without_gradients(bias, with_hx, batch, dtype):
    theirs, ours = pair(I, H, bias, dtype=dtype)
    x = values(I, dtype=dtype) if batch is None else values(batch, I, dtype=dtype)
    hx = values(*x.shape[:-1], H, seed=2, dtype=dtype) if with_hx else None
    with torch.no_grad():
        assert_same(ours(x, hx), theirs(x, hx))
        ours.impl = "torch"
        assert torch.equal(ours(x, hx), theirs(x, hx))


def test_impl_is_a_choice_that_is_checked_and_shown():
    with pytest.raises(ValueError, match="impl should be one of 'auto', 'triton', 'llvm', 'torch', got 'cuda'"):
        tritongru.GRUCell(I, H, impl="cuda")
    ours = tritongru.GRUCell(I, H, impl="llvm")
    assert repr(ours) == "GRUCell(3, 4, impl='llvm')"
    assert pickle.loads(pickle.dumps(ours)).impl == copy.deepcopy(ours).impl == "llvm"


@needs_loop
def test_llvm_runs_or_raises_without_gradients():
    theirs, ours = pair(I, H, dtype=torch.bfloat16)
    ours.impl = "llvm"
    x = values(B, I, dtype=torch.bfloat16)
    with torch.no_grad():
        assert_same(ours.float()(x.float()), theirs.float()(x.float()))
        with llvmlite_of(), pytest.raises(RuntimeError, match="the package llvmlite is not installed"):
            ours(x.float())


@pytest.mark.parametrize("batch", [(), (B,)], ids=str)
def test_triton_on_a_cpu_raises_without_gradients(batch):
    theirs, ours = pair(I, H)
    ours.impl = "triton"
    x = values(*batch, I)
    assert_same_results(ours, theirs, x)
    with torch.no_grad(), pytest.raises(RuntimeError) as found:
        ours(x)
    assert str(found.value) == (
        "impl='triton' cannot run this cell: the tensors are on cpu, but the kernel needs a GPU (impl='auto' runs "
        "torch.nn.GRUCell here)"
    )


class OnGpu(torch.Tensor):
    """A tensor that says that it is on a GPU."""

    is_cuda = True
    is_cpu = False


@pytest.mark.parametrize("impl", ["auto", "triton"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("with_hx", [True, False], ids=["hx", "no_hx"])
@pytest.mark.parametrize("batch", [(), (B,)], ids=str)
def test_on_a_gpu_it_is_one_step_of_one_layer(batch, with_hx, bias, impl, monkeypatch):
    theirs, ours = pair(I, H, bias)
    ours.impl = impl
    x, hx = values(*batch, I).as_subclass(OnGpu), values(*batch, H, seed=2) if with_hx else None
    monkeypatch.setattr(stepping, "route_of", lambda *given: "triton")
    calls = []

    def step(x, hx, reset, weights, layers):
        calls.append((tuple(x.shape), None if hx is None else tuple(hx.shape), reset, layers))
        assert all(a is b for a, b in zip(weights, ours.parameters(), strict=True))
        y = theirs(x.as_subclass(torch.Tensor), None if hx is None else hx[0])
        return y, y[None]

    monkeypatch.setattr(cell_room, "run_step", step)
    with torch.no_grad():
        found = ours(x, hx)
        assert torch.equal(found, theirs(values(*batch, I), hx))
    rows = batch or (1,)
    assert calls == [((*rows, I), (1, *rows, H) if with_hx else None, None, 1)]
    calls.clear()
    ours(x, hx)  # with gradients it is torch's
    assert not calls


def test_what_the_operator_refuses_on_a_gpu_is_torchs(monkeypatch):
    theirs, ours = pair(I, H)
    monkeypatch.setattr(cell_room, "takes_kernel", lambda *given: True)

    def refuses(*given):
        raise RuntimeError("no")

    monkeypatch.setattr(cell_room, "run_step", refuses)
    with torch.no_grad():
        found = ours(values(B, I).as_subclass(OnGpu))
        assert torch.equal(found.as_subclass(torch.Tensor), theirs(values(B, I)))

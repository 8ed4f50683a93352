"""tritongru.GRU is built, printed, initialised, saved, copied and re-parametrised as torch.nn.GRU is."""

import copy
import doctest
import importlib
import io
import itertools
import pickle
import warnings

import pytest
import torch
from tolerance import assert_close_to_float64, assert_same, assert_same_failure, failure
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize, prune

import tritongru

pytestmark = pytest.mark.usefixtures("ieee")

IMPLS = ("torch", "auto", "triton")
DEVICE = {"torch": "cpu", "auto": "cpu", "triton": "cuda" if torch.cuda.is_available() else "cpu"}
every_impl = pytest.mark.parametrize("impl", IMPLS)
on_the_cpu = pytest.mark.parametrize("impl", ["torch", "auto"])

NAMES = ("num_layers", "bias", "batch_first", "dropout", "bidirectional")
VALUES = itertools.product((1, 3), (True, False), (True, False), (0.0, 0.25), (True, False))
OPTIONS = [dict(zip(NAMES, v, strict=True)) for v in VALUES if v[0] > 1 or v[3] == 0]
options = pytest.mark.parametrize("kwargs", OPTIONS, ids=lambda kw: "-".join(str(v) for v in kw.values()))


@pytest.mark.parametrize("name", ["tritongru.module", "tritongru.planning.explaining"])
def test_the_examples_of_the_docstrings_run(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted > 1
    assert found.failed == 0


def seeded(build, seed=0):
    torch.manual_seed(seed)
    return build()


def small(impl="auto", *args, **kwargs):
    """A module of two features and three hidden units, and an input for it."""
    module = seeded(lambda: tritongru.GRU(2, 3, *args, **kwargs, impl=impl, device=DEVICE[impl]))
    return module, torch.randn(2, 2, 2, generator=torch.Generator().manual_seed(1)).to(DEVICE[impl])


def names_of(module):
    return [name for names in module._all_weights for name in names]


def assert_computes_with(module, weights, x, call=None):
    """`module(x)` is torch.nn.GRU's result for `weights`: bit for bit where it runs, else within rounding."""
    sizes = module.input_size, module.hidden_size, module.num_layers
    theirs = nn.GRU(*sizes, bidirectional=module.bidirectional, device=x.device)
    weights = {name: weight.detach() for name, weight in weights.items()}
    expected = functional_call(theirs.to(x.dtype), weights, (x,), strict=True)
    expected64 = functional_call(theirs.double(), {n: w.double() for n, w in weights.items()}, (x.double(),))
    actual = module(x) if call is None else call(x)
    for what, mine, torchs, wide in zip(("output", "h_n"), actual, expected, expected64, strict=True):
        if module.impl != "triton":
            assert_same(mine, torchs, what, module.impl)
        assert_close_to_float64(mine, wide, torchs, what)


def assert_uses_its_weights(module, x):
    assert_computes_with(module, {name: getattr(module, name) for name in names_of(module)}, x)


# ---- constructor ----


def test_every_argument_by_position():
    args = (3, 4, 2, False, True, 0.25, True, 0, "cpu", torch.float64)
    theirs, ours = nn.GRU(*args), tritongru.GRU(*args)
    for name in ("mode", *nn.GRU.__constants__, "training"):
        assert getattr(ours, name) == getattr(theirs, name), name
        assert type(getattr(ours, name)) is type(getattr(theirs, name)), name
    assert ours.weight_ih_l0.dtype == torch.float64


def test_every_argument_by_keyword():
    kwargs = {"input_size": 3, "hidden_size": 4, "num_layers": 2, "bias": False, "batch_first": True}
    kwargs |= {"dropout": 0.25, "bidirectional": True, "device": "cpu", "dtype": torch.float64}
    theirs, ours = nn.GRU(**kwargs), tritongru.GRU(**kwargs)
    for name in nn.GRU.__constants__:
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.weight_hh_l1_reverse.dtype == torch.float64


def test_what_kind_of_class_it_is():
    ours = tritongru.GRU(3, 4)
    assert isinstance(ours, nn.RNNBase)
    assert not isinstance(ours, nn.GRU)
    assert type(ours).__name__ == "GRU"
    assert (ours.mode, ours.proj_size, ours._version) == ("GRU", 0, 1)
    assert set(nn.GRU.__constants__) <= set(type(ours).__constants__)


REFUSED = {
    "nothing": ((), {}),
    "one size": ((3,), {}),
    "unknown keyword": ((3, 4), {"foo": 1}),
    "mode": ((3, 4), {"mode": "LSTM"}),
    "twice": ((3, 4, 1), {"num_layers": 2}),
    "one too many": ((3, 4, 1, True, False, 0.0, False, 0, None, None, None), {}),
    "proj_size=0": ((3, 4), {"proj_size": 0}),
    "proj_size=2": ((3, 4), {"proj_size": 2}),
    "proj_size before sizes": ((-3, 4), {"proj_size": 2}),
    "dropout text": ((3, 4, 2), {"dropout": "a"}),
    "dropout None": ((3, 4, 2), {"dropout": None}),
    "dropout negative": ((3, 4, 2), {"dropout": -0.1}),
    "dropout large": ((3, 4, 2), {"dropout": 1.1}),
    "dropout nan": ((3, 4, 2), {"dropout": float("nan")}),
    "dropout bool": ((3, 4, 2), {"dropout": True}),
    "dropout '0.5'": ((3, 4, 2), {"dropout": "0.5"}),
    "dropout tensor": ((3, 4, 2), {"dropout": torch.tensor(0.5)}),
    "bias": ((3, 4), {"bias": 1}),
    "batch_first": ((3, 4), {"batch_first": 1}),
    "input_size float": ((3.0, 4), {}),
    "input_size None": ((None, 4), {}),
    "hidden_size float": ((3, 4.0), {}),
    "input_size 0": ((0, 4), {}),
    "input_size -1": ((-1, 4), {}),
    "hidden_size 0": ((3, 0), {}),
    "hidden_size -1": ((3, -1), {}),
    "num_layers 0": ((3, 4, 0), {}),
    "num_layers -1": ((3, 4, -1), {}),
    "num_layers 1.5": ((3, 4, 1.5), {}),
    "num_layers 2.0": ((3, 4, 2.0), {}),
    "num_layers text": ((3, 4, "2"), {}),
    "dtype int32": ((3, 4), {"dtype": torch.int32}),
    "dtype text": ((3, 4), {"dtype": "float32"}),
    "device": ((3, 4), {"device": "nowhere"}),
    # which check comes first
    "dropout before bias": ((3, 4, 2, 1, 1, 2.0), {}),
    "bias before batch_first": ((3, 4, 2, 1, 1), {}),
    "batch_first before input_size": ((3.0, 4, 2, True, 1), {}),
    "input_size before hidden_size": ((0, 4.0), {}),
    "hidden_size before num_layers": ((3, 0, 0), {}),
    "num_layers before dtype": ((3, 4, 0), {"dtype": torch.int32}),
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.filterwarnings("ignore:dropout option adds dropout")
def test_refused_arguments(what):
    args, kwargs = REFUSED[what]
    assert_same_failure(tritongru.GRU, nn.GRU, *args, **kwargs)


@pytest.mark.parametrize(
    "kwargs, error, text",
    [
        (
            {"dropout": 1.5},
            ValueError,
            "dropout should be a number in range [0, 1] representing the probability of an element being zeroed",
        ),
        ({"bias": 1}, TypeError, "bias should be of type bool, got: int"),
        ({"batch_first": None}, TypeError, "batch_first should be of type bool, got: NoneType"),
        ({"input_size": 3.0}, TypeError, "input_size should be of type int, got: float"),
        ({"hidden_size": 0}, ValueError, "hidden_size must be greater than zero"),
        ({"num_layers": 0}, ValueError, "num_layers must be greater than zero"),
        ({"proj_size": 0}, ValueError, "proj_size argument is only supported for LSTM, not RNN or GRU"),
        ({"impl": "cuda"}, ValueError, "impl should be one of 'auto', 'triton', 'llvm', 'torch', got 'cuda'"),
        ({"memory": "x"}, ValueError, "memory should be one of 'auto', 'save', 'recompute', got 'x'"),
    ],
    ids=str,
)
def test_the_words_of_an_error(kwargs, error, text):
    assert failure(tritongru.GRU, **{"input_size": 3, "hidden_size": 4, **kwargs}) == (error, text)


@pytest.mark.parametrize("proj_size", [1, 2, 4])
def test_a_projection_by_position_is_refused(proj_size):
    with pytest.raises(ValueError, match=r"^proj_size argument is only supported for LSTM, not RNN or GRU$"):
        tritongru.GRU(3, 4, 1, True, False, 0.0, False, proj_size)


def test_the_eighth_position_is_not_the_device():
    args = (3, 4, 2, False, True, 0.25, True)
    assert failure(nn.GRU, *args, "cpu")[0] is TypeError
    assert failure(tritongru.GRU, *args, "cpu")[0] in (TypeError, ValueError)
    assert tritongru.GRU(*args, 0, "cpu").weight_ih_l0.device.type == "cpu"


@pytest.mark.parametrize("dropout", [0.5, 1, 1.0], ids=str)
def test_warning_of_dropout_without_a_second_layer(dropout):
    heard = []
    for build in (tritongru.GRU, nn.GRU):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            build(3, 4, dropout=dropout)
        heard.append([(w.category, str(w.message)) for w in caught])
    assert heard[0] == heard[1]
    assert len(heard[0]) == 1


@pytest.mark.parametrize("dropout", [0, 1, 0.25, 1.0], ids=str)
def test_dropout_is_kept_as_a_float(dropout):
    ours = tritongru.GRU(3, 4, 2, dropout=dropout)
    assert type(ours.dropout) is float
    assert ours.dropout == dropout


@options
def test_repr(kwargs):
    assert repr(tritongru.GRU(3, 4, **kwargs)) == repr(nn.GRU(3, 4, **kwargs))
    assert tritongru.GRU(3, 4, **kwargs).extra_repr() == nn.GRU(3, 4, **kwargs).extra_repr()


# ---- parameters and their initial values ----


@pytest.mark.parametrize("dtype", [None, torch.float64, torch.bfloat16, torch.float16], ids=str)
@options
def test_initial_values_and_generator_state(kwargs, dtype):
    theirs, their_state = seeded(lambda: nn.GRU(3, 4, **kwargs, dtype=dtype)), torch.get_rng_state()
    ours, our_state = seeded(lambda: tritongru.GRU(3, 4, **kwargs, dtype=dtype)), torch.get_rng_state()
    assert torch.equal(our_state, their_state)
    mine, torchs = dict(ours.named_parameters()), dict(theirs.named_parameters())
    assert list(mine) == list(torchs)
    for name in torchs:
        assert type(mine[name]) is nn.Parameter, name
        assert mine[name].dtype == torchs[name].dtype, name
        assert mine[name].requires_grad, name
        assert torch.equal(mine[name], torchs[name]), name


def test_reset_parameters_draws_again_as_torch_does():
    ours, theirs = tritongru.GRU(3, 4, 2), nn.GRU(3, 4, 2)
    seeded(ours.reset_parameters, 5)
    seeded(theirs.reset_parameters, 5)
    for mine, torchs in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, torchs)


def test_one_layer_and_the_cell_draw_the_same_numbers():
    layer, cell = seeded(lambda: tritongru.GRU(3, 4)), seeded(lambda: tritongru.GRUCell(3, 4))
    for one, other in zip(layer.parameters(), cell.parameters(), strict=True):
        assert torch.equal(one, other)


@options
def test_names_and_order(kwargs):
    ours, theirs = tritongru.GRU(3, 4, **kwargs), nn.GRU(3, 4, **kwargs)
    shapes = [[(name, p.shape) for name, p in module.named_parameters()] for module in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert ours.state_dict()._metadata == theirs.state_dict()._metadata
    assert not list(ours.buffers())
    assert ours._flat_weights_names == theirs._flat_weights_names
    assert [id(w) for w in ours._flat_weights] == [id(p) for p in ours.parameters()]
    assert [[id(w) for w in group] for group in ours.all_weights] == [
        [id(getattr(ours, name)) for name in names] for names in theirs._all_weights
    ]
    assert hasattr(ours, "bias_ih_l0") == ours.bias


@every_impl
def test_flatten_parameters_changes_no_value(impl):
    ours, x = small(impl)
    before = ours(x)
    assert ours.flatten_parameters() is None
    for one, other in zip(before, ours(x), strict=True):
        assert torch.equal(one, other)


def test_meta_device():
    ours = tritongru.GRU(3, 4, 2, device="meta")
    assert all(p.is_meta for p in ours.parameters())
    with torch.device("meta"):
        assert all(p.is_meta for p in tritongru.GRU(3, 4).parameters())
    output, h_n = ours(torch.empty(5, 2, 3, device="meta"))
    assert (output.shape, h_n.shape) == ((5, 2, 4), (2, 2, 4))
    assert output.is_meta
    assert h_n.is_meta
    source = nn.GRU(3, 4, 2)
    ours.to_empty(device="cpu").load_state_dict(source.state_dict())
    x = torch.ones(5, 2, 3)
    assert_same(ours(x)[0], source(x)[0])


def test_default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        ours, theirs = seeded(lambda: tritongru.GRU(3, 4)), seeded(lambda: nn.GRU(3, 4))
    finally:
        torch.set_default_dtype(torch.float32)
    assert ours.weight_ih_l0.dtype == torch.float64
    assert torch.equal(ours.weight_ih_l0, theirs.weight_ih_l0)


def test_skip_init():
    ours = nn.utils.skip_init(tritongru.GRU, 3, 4, num_layers=2, bidirectional=True)
    assert [tuple(p.shape) for p in ours.parameters()] == [
        tuple(p.shape) for p in nn.GRU(3, 4, 2, bidirectional=True).parameters()
    ]
    assert not any(p.is_meta for p in ours.parameters())
    state = torch.get_rng_state()
    nn.utils.skip_init(tritongru.GRU, 3, 4)
    assert torch.equal(state, torch.get_rng_state())


# ---- state dict ----


@options
def test_state_dict_goes_both_ways(kwargs):
    theirs, ours = nn.GRU(3, 4, **kwargs), tritongru.GRU(3, 4, **kwargs)
    assert str(ours.load_state_dict(theirs.state_dict(), strict=True)) == "<All keys matched successfully>"
    back = nn.GRU(3, 4, **kwargs)
    back.load_state_dict(ours.state_dict(), strict=True)
    for mine, torchs, returned in zip(ours.parameters(), theirs.parameters(), back.parameters(), strict=True):
        assert torch.equal(mine, torchs)
        assert torch.equal(returned, torchs)


@pytest.mark.parametrize("other", [{"num_layers": 2}, {"bias": False}, {"bidirectional": True}], ids=str)
def test_state_dict_that_does_not_fit(other):
    state = nn.GRU(3, 4, **other).state_dict()
    ours, theirs = tritongru.GRU(3, 4), nn.GRU(3, 4)
    assert_same_failure(ours.load_state_dict, theirs.load_state_dict, state)
    assert ours.load_state_dict(state, strict=False) == theirs.load_state_dict(state, strict=False)


@pytest.mark.parametrize("state", [{}, nn.GRU(3, 5).state_dict(), [1]], ids=["empty", "other sizes", "list"])
def test_state_dict_errors_have_the_same_words(state):
    assert_same_failure(tritongru.GRU(3, 4).load_state_dict, nn.GRU(3, 4).load_state_dict, state)


@every_impl
def test_load_with_assign(impl):
    ours, x = small(impl)
    state = seeded(lambda: nn.GRU(2, 3, device=x.device), 1).state_dict()
    ours(x)
    ours.load_state_dict(state, assign=True)
    assert ours.weight_hh_l0.data_ptr() == state["weight_hh_l0"].data_ptr()
    assert_computes_with(ours, state, x)


# ---- copies and pickles ----


def copied_by_torch_save(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "save": copied_by_torch_save}


@pytest.mark.parametrize("used", [False, True], ids=["fresh", "after a forward"])
@pytest.mark.parametrize("how", COPIES)
@every_impl
def test_copies_are_equal_and_independent(impl, how, used):
    ours, x = small(impl, bidirectional=True, memory="recompute")
    if used:
        ours(x)[0].sum().backward()
    twin = COPIES[how](ours.eval())
    assert type(twin) is type(ours)
    assert repr(twin) == repr(ours)
    assert (twin.impl, twin.memory, twin.training) == (impl, "recompute", False)
    assert [id(w) for w in twin._flat_weights] == [id(p) for p in twin.parameters()]
    before = ours(x)[0]
    assert torch.equal(twin(x)[0], before)
    with torch.no_grad():
        twin.weight_hh_l0.add_(1)
    assert torch.equal(ours(x)[0], before)
    assert_uses_its_weights(twin, x)


def test_shallow_copy_shares_parameters():
    ours, x = small()
    twin = copy.copy(ours)
    assert twin.weight_hh_l0 is ours.weight_hh_l0
    with torch.no_grad():
        ours.weight_hh_l0.add_(1)
    assert torch.equal(twin(x)[0], ours(x)[0])


# ---- weights that change between calls take effect at the next call ----


def changed(weight):
    return weight.detach() * 0.5 + 0.25


def set_data(m):
    m.weight_hh_l0.data = changed(m.weight_hh_l0)


def write_data(m):
    m.weight_hh_l0.data.mul_(-1)


def write_data_of_the_bias(m):
    m.bias_hh_l0.data.add_(1)


def write_in_place(m):
    with torch.no_grad():
        m.weight_ih_l0.copy_(changed(m.weight_ih_l0))


def assign_parameter(m):
    m.weight_hh_l0 = nn.Parameter(changed(m.weight_hh_l0))


def register(m):
    m.register_parameter("weight_hh_l0", nn.Parameter(changed(m.weight_hh_l0)))


def write_the_dict(m):
    m._parameters["weight_hh_l0"] = nn.Parameter(changed(m.weight_hh_l0))


def delete_and_set_a_tensor(m):
    raw = m.weight_hh_l0
    del m.weight_hh_l0
    m.weight_hh_l0 = changed(raw)


def load_a_state(m):
    m.load_state_dict({name: changed(weight) for name, weight in m.state_dict().items()})


def step_of_an_optimiser(m):
    for p in m.parameters():
        p.grad = torch.ones_like(p)
    torch.optim.SGD(m.parameters(), lr=0.1).step()


def write_all_from_a_vector(m):
    nn.utils.vector_to_parameters(changed(nn.utils.parameters_to_vector(m.parameters())), m.parameters())


def draw_again(m):
    seeded(m.reset_parameters, 7)


CHANGES = [set_data, write_data, write_data_of_the_bias, write_in_place, assign_parameter, register, write_the_dict]
CHANGES += [delete_and_set_a_tensor, load_a_state, step_of_an_optimiser, write_all_from_a_vector, draw_again]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
@every_impl
def test_a_changed_weight_takes_effect_at_once(impl, change):
    ours, x = small(impl)
    before = ours(x)[0]
    change(ours)
    assert_uses_its_weights(ours, x)
    assert not torch.equal(ours(x)[0], before)


@every_impl
def test_a_plain_tensor_is_refused_and_changes_nothing(impl):
    ours, x = small(impl)
    before = ours(x)[0]
    with pytest.raises(TypeError) as refused:
        ours.weight_ih_l0 = torch.zeros(9, 2)
    assert str(refused.value) == (
        "cannot assign 'torch.FloatTensor' as parameter 'weight_ih_l0' (torch.nn.Parameter or None expected)"
    )
    assert torch.equal(ours(x)[0], before)
    assert [id(w) for w in ours._flat_weights] == [id(p) for p in ours.parameters()]


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_hh_l0"])
@every_impl
def test_a_weight_of_none_is_refused_by_forward(impl, name):
    ours, x = small(impl)
    theirs = nn.GRU(2, 3, device=x.device)
    for module in (ours, theirs):
        setattr(module, name, None)
    expected = failure(theirs, x)
    assert expected[0] in (TypeError, AttributeError)
    assert failure(ours, x)[0] is expected[0]


@pytest.mark.parametrize("shape", [(9, 4), (12, 3), (9,)], ids=str)
@every_impl
def test_a_weight_of_another_shape_is_refused_by_forward(impl, shape):
    ours, x = small(impl)
    ours.weight_hh_l0 = nn.Parameter(torch.zeros(shape, device=x.device))
    with pytest.raises(RuntimeError):
        ours(x)


@every_impl
def test_a_weight_of_another_dtype_is_refused_by_forward(impl):
    ours, x = small(impl)
    ours.weight_hh_l0.data = ours.weight_hh_l0.data.double()
    with pytest.raises(RuntimeError, match="dtype"):
        ours(x)


@every_impl
def test_tied_weights(impl):
    ours, x = small(impl, 2)
    theirs = nn.GRU(2, 3, 2, device=x.device)
    theirs.load_state_dict(ours.state_dict())
    for module in (ours, theirs):
        module.weight_hh_l1 = module.weight_hh_l0
    assert len(list(ours.parameters())) == 7
    assert_uses_its_weights(ours, x)
    wide = copy.deepcopy(theirs).double()
    ours(x)[0].sum().backward()
    theirs(x)[0].sum().backward()
    wide(x.double())[0].sum().backward()
    assert wide.weight_hh_l1 is wide.weight_hh_l0
    assert_close_to_float64(ours.weight_hh_l0.grad, wide.weight_hh_l0.grad, theirs.weight_hh_l0.grad, "tied weight")


# ---- functional_call ----


@pytest.mark.parametrize("partial", [False, True], ids=["full", "partial"])
@every_impl
def test_functional_call(impl, partial):
    ours, x = small(impl)
    own = {name: weight.detach().clone() for name, weight in ours.named_parameters()}
    other = {name: changed(weight) for name, weight in own.items() if not partial or name == "weight_hh_l0"}
    assert_computes_with(ours, {**own, **other}, x, call=lambda x: functional_call(ours, other, (x,)))
    assert_computes_with(ours, own, x)


@every_impl
def test_gradients_through_functional_call(impl):
    ours, x = small(impl)
    theirs = nn.GRU(2, 3, device=x.device)
    theirs.load_state_dict(ours.state_dict())
    scale = torch.tensor(0.5, device=x.device, requires_grad=True)

    def grad(module, dtype=torch.float32):
        weights = {name: weight.detach().to(dtype) * scale for name, weight in module.named_parameters()}
        (grad,) = torch.autograd.grad(functional_call(module.to(dtype), weights, (x.to(dtype),))[0].sum(), scale)
        return grad

    mine, torchs = grad(ours), grad(theirs)
    assert_close_to_float64(mine, grad(theirs, torch.float64).double(), torchs, "gradient of a scale of all weights")


# ---- parametrizations ----


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


PARAMETRIZATIONS = {
    "own": lambda m: parametrize.register_parametrization(m, "weight_hh_l0", Halved()),
    "weight_norm": lambda m: parametrizations.weight_norm(m, "weight_hh_l0"),
    "spectral_norm": lambda m: parametrizations.spectral_norm(m, "weight_hh_l0"),
    "orthogonal": lambda m: parametrizations.orthogonal(m, "weight_hh_l0"),
}


def trained(module, x, steps=2):
    """Outputs before each step of gradient descent, then after the last."""
    optimiser = torch.optim.SGD(module.parameters(), lr=0.5)
    outputs = []
    for _ in range(steps):
        outputs.append(module(x)[0])
        outputs[-1].square().sum().backward()
        optimiser.step()
        optimiser.zero_grad()
    return [*outputs, module(x)[0]]


@pytest.mark.parametrize("how", PARAMETRIZATIONS)
@on_the_cpu
def test_parametrized_weights_train_as_torchs_do(impl, how):
    ours, x = small(impl)
    theirs = nn.GRU(2, 3)
    theirs.load_state_dict(ours.state_dict())
    for module in (ours, theirs):
        seeded(lambda module=module: PARAMETRIZATIONS[how](module))
        module.eval()  # in training, spectral_norm changes its weight whenever somebody reads it
    assert type(ours).__name__ == "ParametrizedGRU"
    assert repr(ours).replace(", impl='torch'", "") == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for mine, torchs in zip(trained(ours, x), trained(theirs, x), strict=True):
        assert_same(mine, torchs, impl=impl)
    for module in (ours, theirs):
        parametrize.remove_parametrizations(module, "weight_hh_l0")
    assert type(ours) is tritongru.GRU
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert list(ours.state_dict())[-1] == "weight_hh_l0"
    assert_same(ours(x)[0], theirs(x)[0], impl=impl)


def test_spectral_norm_converges_in_training():
    ours, x = small()
    parametrizations.spectral_norm(ours, "weight_hh_l0")
    with torch.no_grad():
        ours.parametrizations.weight_hh_l0.original.mul_(5)
    for _ in range(50):
        ours(x)
    ours.eval()
    assert torch.linalg.matrix_norm(ours.weight_hh_l0, 2).item() == pytest.approx(1, abs=1e-4)
    assert_uses_its_weights(ours, x)


@every_impl
def test_a_parametrized_weight_is_computed_anew_for_every_call(impl):
    ours, x = small(impl)
    plain = ours.weight_hh_l0.detach().clone()
    parametrize.register_parametrization(ours, "weight_hh_l0", Halved())
    weights = {name: getattr(ours, name) for name in names_of(ours)} | {"weight_hh_l0": plain / 2}
    assert_computes_with(ours, weights, x)
    with torch.no_grad():
        ours.parametrizations.weight_hh_l0.original.mul_(3)
    assert_computes_with(ours, weights | {"weight_hh_l0": plain * 3 / 2}, x)
    with parametrize.cached():
        assert_computes_with(ours, weights | {"weight_hh_l0": plain * 3 / 2}, x)
    parametrize.remove_parametrizations(ours, "weight_hh_l0", leave_parametrized=False)
    assert_computes_with(ours, weights | {"weight_hh_l0": plain * 3}, x)
    ours(x)[0].sum().backward()
    assert ours.weight_hh_l0.grad.any()


@pytest.mark.parametrize("how", PARAMETRIZATIONS)
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "after a forward"])
def test_deepcopy_of_a_parametrized_module(how, used):
    ours, x = small()
    PARAMETRIZATIONS[how](ours)
    ours.eval()
    if used:
        ours(x)[0].sum().backward()
    twin = copy.deepcopy(ours)
    assert torch.equal(twin(x)[0], ours(x)[0])
    with torch.no_grad():
        for p in twin.parametrizations.weight_hh_l0.parameters():
            p.add_(1)
        twin.bias_hh_l0.add_(1)
    assert not torch.equal(twin(x)[0], ours(x)[0])
    assert_uses_its_weights(twin, x)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize(
    "add, remove",
    [
        (nn.utils.weight_norm, nn.utils.remove_weight_norm),
        (nn.utils.spectral_norm, nn.utils.remove_spectral_norm),
        (lambda m, name: prune.l1_unstructured(m, name, 0.5), prune.remove),
    ],
    ids=["weight_norm", "spectral_norm", "prune"],
)
@on_the_cpu
def test_weights_recomputed_by_a_hook_before_every_call(impl, add, remove):
    ours, x = small(impl)
    theirs = nn.GRU(2, 3)
    theirs.load_state_dict(ours.state_dict())
    for module in (ours, theirs):
        seeded(lambda module=module: add(module, "weight_hh_l0"))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for mine, torchs in zip(trained(ours, x), trained(theirs, x), strict=True):
        assert_same(mine, torchs, impl=impl)
    for module in (ours, theirs):
        remove(module, "weight_hh_l0")
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert_same(ours(x)[0], theirs(x)[0], impl=impl)


@every_impl
def test_pruned_weights(impl):
    ours, x = small(impl)
    prune.l1_unstructured(ours, "weight_hh_l0", 0.5)
    assert_uses_its_weights(ours, x)
    ours(x)[0].sum().backward()
    assert (ours.weight_hh_l0_orig.grad != 0).sum() <= 14
    assert not ours.weight_hh_l0_orig.grad[ours.weight_hh_l0_mask == 0].any()
    prune.remove(ours, "weight_hh_l0")
    assert (ours.weight_hh_l0 == 0).sum() in (13, 14)
    assert_uses_its_weights(ours, x)


# ---- moves ----

MOVES = {
    "double": lambda m: m.double(),
    "half": lambda m: m.half(),
    "bfloat16": lambda m: m.bfloat16(),
    "to": lambda m: m.to(torch.float64),
    "to cpu": lambda m: m.to("cpu"),
    "share_memory": lambda m: m.share_memory(),
}


@pytest.mark.parametrize("move", MOVES)
@on_the_cpu
def test_moves_keep_the_parameters(impl, move):
    ours, x = small(impl)
    theirs = nn.GRU(2, 3)
    theirs.load_state_dict(ours.state_dict())
    ours(x)
    before = [id(p) for p in ours.parameters()]
    assert MOVES[move](ours) is ours
    MOVES[move](theirs)
    assert [id(p) for p in ours.parameters()] == before == [id(w) for w in ours._flat_weights]
    assert ours.weight_hh_l0.dtype == theirs.weight_hh_l0.dtype
    assert ours.weight_hh_l0.is_shared() == theirs.weight_hh_l0.is_shared()
    x = x.to(theirs.weight_hh_l0.dtype)
    assert_same(ours(x)[0], theirs(x)[0], impl=impl)


@pytest.mark.parametrize("flag", ["swap_module_params_on_conversion", "overwrite_module_params_on_conversion"])
def test_moves_that_replace_the_parameters(flag):
    ours, x = small()
    ours(x)
    getattr(torch.__future__, f"set_{flag}")(True)
    try:
        ours.double()
    finally:
        getattr(torch.__future__, f"set_{flag}")(False)
    assert ours.weight_hh_l0.dtype == torch.float64
    assert [id(p) for p in ours.parameters()] == [id(w) for w in ours._flat_weights]
    assert_uses_its_weights(ours, x.double())


@every_impl
def test_a_move_and_back_takes_effect_at_once(impl):
    ours, x = small(impl)
    before = ours(x)[0]
    ours.bfloat16()
    assert ours(x.bfloat16())[0].dtype == torch.bfloat16
    ours.float()
    assert not torch.equal(ours(x)[0], before)
    assert_uses_its_weights(ours, x)

"""Modules taken over from torch's class and given back: what comes along, and what is refused."""

import copy
import pickle
from functools import partial

import pytest
import torch
from tolerance import assert_same
from torch import nn
from torch.ao.nn.quantized import dynamic

import tritongru

pytestmark = pytest.mark.quick

X = torch.randn(5, 2, 3)


def takers():
    return [
        pytest.param(tritongru.GRU.from_torch, lambda: nn.GRU(3, 4, 2, bidirectional=True), id="from_torch"),
        pytest.param(
            partial(tritongru.GRU.from_torch, as_torch_type=True),
            lambda: nn.GRU(3, 4, 2, bidirectional=True),
            id="both",
        ),
        pytest.param(tritongru.GRU.to_torch, lambda: tritongru.GRU(3, 4, 2, bidirectional=True), id="to_torch"),
    ]


@pytest.mark.parametrize("take, make", takers())
@pytest.mark.parametrize("copies", [False, True])
def test_hooks_attributes_and_modes_come_along(take, make, copies):
    theirs, heard = make(), []
    theirs.register_forward_pre_hook(lambda m, a: heard.append(("before", m)))
    theirs.register_forward_pre_hook(lambda m, a, k: heard.append(("before, by name", m)), with_kwargs=True)
    theirs.register_forward_hook(lambda m, a, y: heard.append(("after", m)))
    theirs.register_forward_hook(lambda m, a, k, y: heard.append(("after, by name", m)), with_kwargs=True)
    theirs.register_forward_hook(lambda m, a, y: heard.append(("always", m)), always_call=True)
    theirs.register_full_backward_pre_hook(lambda m, g: heard.append(("before backward", m)))
    theirs.register_full_backward_hook(lambda m, g, h: heard.append(("backward", m)))
    theirs.register_state_dict_pre_hook(lambda m, p, k: heard.append(("before state", m)))
    theirs.register_state_dict_post_hook(lambda m, s, p, k: heard.append(("state", m)))
    theirs.register_load_state_dict_pre_hook(lambda m, *_: heard.append(("before loading", m)))
    theirs.register_load_state_dict_post_hook(lambda m, k: heard.append(("loading", m)))
    theirs.register_buffer("scale", torch.ones(2))
    theirs.register_buffer("temporary", torch.zeros(1), persistent=False)
    theirs.register_parameter("own", nn.Parameter(torch.ones(1)))
    theirs.head = nn.Linear(4, 1)
    theirs.note = ["anything"]
    theirs.weight_hh_l1.requires_grad_(False)
    theirs.eval()

    ours = take(theirs, copy=copies)
    assert type(ours) is not type(theirs)
    assert not ours.training
    assert ours.note is theirs.note
    assert [(n, p.requires_grad) for n, p in ours.named_parameters()] == [
        (n, p.requires_grad) for n, p in theirs.named_parameters()
    ]
    for name, parameter in theirs.named_parameters():
        assert (ours.get_parameter(name) is parameter) is not copies
        assert torch.equal(ours.get_parameter(name), parameter)
    for name, buffer in theirs.named_buffers():
        assert (ours.get_buffer(name) is buffer) is not copies
    assert list(ours.state_dict()) == list(theirs.state_dict())

    def told(module):
        heard.clear()
        x = X.clone().requires_grad_()
        module(x)[0].sum().backward()
        module.load_state_dict(module.state_dict())
        assert {m for _, m in heard} == {module}
        return [what for what, _ in heard]

    assert told(ours) == told(theirs)
    assert len(set(told(ours))) == 11
    ours.register_forward_hook(lambda *_: heard.append(("own", ours)))
    assert "own" not in told(theirs)


class Doubled(nn.GRU):
    def forward(self, input, hx=None):
        output, h_n = super().forward(input, hx)
        return 2 * output, h_n


class DoubledOurs(tritongru.GRU):
    def forward(self, input, hx=None):
        output, h_n = super().forward(input, hx)
        return 2 * output, h_n


@pytest.mark.parametrize("take, theirs", [(tritongru.GRU.from_torch, Doubled), (tritongru.GRU.to_torch, DoubledOurs)])
def test_a_subclass_is_refused_by_name(take, theirs):
    with pytest.raises(TypeError, match=f"got its subclass .*{theirs.__name__}, whose own methods would be lost"):
        take(theirs(3, 4))


@pytest.mark.parametrize("take, make", takers())
def test_what_belongs_to_the_object_is_refused(take, make):
    theirs = make()
    theirs.forward = lambda input, hx=None: None
    with pytest.raises(ValueError, match="has a forward of its own, which would be lost"):
        take(theirs)
    theirs = make()
    theirs.again = theirs.flatten_parameters
    with pytest.raises(ValueError, match="again holds one of its methods; do that on the new module"):
        take(theirs)
    theirs = make()
    theirs.register_forward_pre_hook(theirs.check_input)
    with pytest.raises(ValueError, match="_forward_pre_hooks holds one of its methods"):
        take(theirs)
    theirs = make()
    theirs.compile()
    with pytest.raises(ValueError, match=r"compile\(\) was called on it"):
        take(theirs)


def test_a_class_of_both_kinds():
    theirs = nn.GRU(3, 4, 2)
    both = tritongru.GRU.from_torch(theirs, impl="torch", memory="save", as_torch_type=True)
    assert isinstance(both, nn.GRU)
    assert isinstance(both, tritongru.GRU)
    assert type(both) is tritongru.TorchTypeGRU
    assert (both.impl, both.memory) == ("torch", "save")
    assert torch.equal(both(X)[0], theirs(X)[0])
    for again in (copy.deepcopy(both), pickle.loads(pickle.dumps(both))):
        assert type(again) is tritongru.TorchTypeGRU
        assert torch.equal(again(X)[1], theirs(X)[1])
    assert tritongru.TorchTypeGRU(3, 4, 2, True, False, 0.5).dropout == 0.5
    with pytest.raises(ValueError, match="proj_size argument is only supported for LSTM"):
        tritongru.TorchTypeGRU(3, 4, proj_size=2)


def test_a_class_of_both_kinds_compiles_where_dynamo_is_told():
    both = tritongru.GRU.from_torch(nn.GRU(3, 4), as_torch_type=True)
    compiled = torch.compile(both, fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="RNN"):
        compiled(X)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(allow_rnn=True):
        torch.testing.assert_close(compiled(X)[0], both(X)[0])
    torch._dynamo.reset()


@pytest.mark.parametrize("missing", [("impl",), ("memory",), ("impl", "memory")])
def test_a_state_without_our_options_works(missing):
    ours = tritongru.GRU(3, 4)
    expected = ours(X)[0]
    for name in missing:
        ours.__dict__.pop(name)
    again = pickle.loads(pickle.dumps(ours))
    assert torch.equal(again(X)[0], expected)
    assert repr(again) == "GRU(3, 4)"
    theirs = nn.GRU(3, 4)
    expected = theirs(X)[0]
    theirs.__class__ = tritongru.GRU
    assert_same(theirs(X)[0], expected)


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_the_cell_goes_both_ways(bias, copies):
    theirs, x = nn.GRUCell(3, 4, bias).eval(), torch.randn(2, 3)
    theirs.note = ["anything"]
    ours = tritongru.GRUCell.from_torch(theirs, copy=copies)
    back = ours.to_torch(copy=copies)
    assert (type(ours), type(back), ours.training, back.training) == (tritongru.GRUCell, nn.GRUCell, False, False)
    assert ours.note is back.note is theirs.note
    for (name, p), q, r in zip(theirs.named_parameters(), ours.parameters(), back.parameters(), strict=True):
        assert (p is q is r) is not copies, name
        assert torch.equal(p, q)
    assert torch.equal(back(x), theirs(x))
    assert_same(ours(x), theirs(x))


def test_a_cell_that_cannot_be_taken_gets_a_sentence():
    class Doubled(nn.GRUCell):
        pass

    with pytest.raises(TypeError, match=r"expected a torch.nn.GRUCell, got GRU"):
        tritongru.GRUCell.from_torch(nn.GRU(3, 4))
    with pytest.raises(TypeError, match="Doubled, whose own methods would be lost"):
        tritongru.GRUCell.from_torch(Doubled(3, 4))
    computed = nn.utils.parametrizations.weight_norm(nn.GRUCell(2, 3), "weight_hh")
    with pytest.raises(ValueError, match="weight_hh is computed, not a parameter of the module"):
        tritongru.GRUCell.from_torch(computed)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("as_torch_type", [False, True])
def test_dynamic_quantisation_takes_ours_as_torchs(as_torch_type):
    quantization = pytest.importorskip("torch.ao.quantization", reason="torch has given it up")
    theirs = nn.GRU(3, 4, 2, bidirectional=True)
    ours = tritongru.GRU.from_torch(theirs, as_torch_type=as_torch_type)
    made = [
        quantization.quantize_dynamic(nn.Sequential(gru).eval(), {type(gru)}, dtype=torch.qint8)
        for gru in (theirs, ours)
    ]
    assert all(type(model[0]) is dynamic.GRU for model in made)
    for found, expected in zip(made[1](X), made[0](X), strict=True):
        assert torch.equal(found, expected)
    assert type(ours) in (tritongru.GRU, tritongru.TorchTypeGRU)

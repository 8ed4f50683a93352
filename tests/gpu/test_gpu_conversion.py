"""Models on a GPU, converted and back: kernels run, cuDNN's single buffer of weights survives."""

import copy
import warnings

import pytest
import torch
from tolerance import assert_close_to_float64
from torch import nn

import tritongru

pytestmark = pytest.mark.gpu


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.cell = nn.GRU(24, 96, 2, bidirectional=True), nn.GRUCell(192, 32)

    def forward(self, x):
        return self.cell(self.rnn(x)[0][-1])


def results(model, x):
    y = model(x)
    return [y, *torch.autograd.grad(y.square().sum(), [*model.parameters()])]


@pytest.fixture
def model(device):
    torch.manual_seed(0)
    return Model().to(device)


def test_there_and_back(model, device):
    x = torch.randn(40, 5, 24, device=device)
    buffers = model.rnn.weight_ih_l0.untyped_storage().data_ptr()
    exact, before = results(copy.deepcopy(model).double(), x.double()), results(model, x)
    report = tritongru.convert(model)
    assert len(report.swapped) == 2
    assert tritongru.explain(model.rnn, batch=5, time=40).family != "torch"
    for name, *three in zip(("y", *dict(model.named_parameters())), results(model, x), exact, before, strict=True):
        assert_close_to_float64(*three, name)
    with torch.no_grad():
        assert_close_to_float64(model(x), exact[0], before[0], "without gradients")
    tritongru.convert(model, back=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # cuDNN's, about weights that are not one buffer
        again = results(model, x)
    assert model.rnn.weight_ih_l0.untyped_storage().data_ptr() == buffers
    torch.testing.assert_close(again, before)


def test_a_parameter_replaced_in_between_is_one_buffer_again_afterwards(model, device):
    tritongru.convert(model)
    model.rnn.weight_hh_l0 = nn.Parameter(2 * model.rnn.weight_hh_l0.detach())
    x = torch.randn(40, 5, 24, device=device)
    ours = results(model, x)
    tritongru.convert(model, back=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theirs = results(model, x)
    exact = results(copy.deepcopy(model).double(), x.double())
    assert_close_to_float64(ours[0], exact[0], theirs[0], "y")


MOVES = {"half": lambda m: m.half(), "there and back": lambda m: m.cpu().cuda(), "copied": copy.deepcopy}


@pytest.mark.parametrize("move", MOVES)
def test_moved_while_converted(model, device, move):
    tritongru.convert(model)
    moved = MOVES[move](model)
    x = torch.randn(40, 5, 24, device=device, dtype=moved.cell.weight_hh.dtype)
    found = results(moved, x)
    tritongru.convert(moved, back=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if move == "copied" else "error")  # torch's own copies are no single buffer
        same = results(moved, x)
    exact = results(copy.deepcopy(moved).double(), x.double())
    for name, *three in zip(("y", *dict(moved.named_parameters())), found, exact, same, strict=True):
        assert_close_to_float64(*three, name)


def test_built_within_patch_on_the_gpu(device):
    with tritongru.patch(), torch.device(device):
        model = Model()
    assert type(model.rnn) is tritongru.GRU
    x = torch.randn(40, 5, 24, device=device)
    found = results(model, x)
    tritongru.convert(model, back=True)
    same, exact = results(model, x), results(copy.deepcopy(model).double(), x.double())
    assert_close_to_float64(found[0], exact[0], same[0], "y")


def test_compiled_before_with_inductor(model, device):
    compiled = torch.compile(model)
    x = torch.randn(40, 5, 24, device=device)
    with torch.no_grad():
        before = compiled(x)
        tritongru.convert(compiled)
        found = compiled(x)
        exact = copy.deepcopy(model).double()(x.double())
    assert_close_to_float64(found, exact, before, "y")

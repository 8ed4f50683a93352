"""The comparison finds what it is there to find: faults are planted in a small model."""

import dataclasses

import pytest
import torch
from torch import nn
from toy_model import TOY

import tritongru
from bench.models import check as checking
from bench.models.check import Checked, Differs, check, twins

pytestmark = pytest.mark.quick
convert = tritongru.convert


def refused(match, model=TOY):
    with pytest.raises(Differs, match=match):
        check(model, seed=3)


def after_conversion(monkeypatch, change, back=False):
    """``change`` is applied to the model after it was converted, or converted back."""

    def planted(module, **options):
        report = convert(module, **options)
        if options.get("back", False) == back:
            change(module)
        return report

    monkeypatch.setattr(checking.tritongru, "convert", planted)


def test_a_sound_conversion_passes():
    for seed in range(3):
        assert 0 <= check(TOY, seed).parity < 1
    assert check(dataclasses.replace(TOY, as_torch_type=True, kinks=True)).parity < 1


def test_dropout_draws_the_same_masks():
    pair = twins(TOY, 0)
    (one, _), (two, _), (other, _) = (checking.gradients_of(TOY, pair.theirs, pair.inputs, seed) for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_a_model_compared_with_itself(monkeypatch):
    def same(model, seed):
        pair = twins(model, seed)
        return dataclasses.replace(pair, theirs=pair.ours)

    monkeypatch.setattr(checking, "twins", same)
    refused("the model to compare with has no layers of torch")


def test_a_conversion_that_does_nothing(monkeypatch):
    monkeypatch.setattr(checking.tritongru, "convert", lambda module, **options: convert(nn.Linear(1, 1)))
    refused("converted nothing, expected rnn, cell")


def test_a_conversion_that_only_says_it_converted(monkeypatch):
    def undo(module):
        module.rnn.__class__ = nn.GRU

    after_conversion(monkeypatch, undo)
    refused("rnn is still a GRU")


def test_a_layer_that_was_not_expected():
    refused("converted rnn, cell, expected rnn", dataclasses.replace(TOY, swapped=("rnn",)))


@pytest.mark.parametrize("size", [1e-2, float("nan")])
def test_a_weight_that_changed_with_the_conversion(monkeypatch, size):
    def nudge(module):
        with torch.no_grad():
            module.rnn.weight_hh_l0[-1, 0] += size

    after_conversion(monkeypatch, nudge)
    refused("outputs, y: error")


def test_gradients_that_are_wrong(monkeypatch):
    def scale(module):
        module.rnn.weight_hh_l0.register_hook(lambda gradient: gradient * 1.001)

    after_conversion(monkeypatch, scale)
    refused("gradients, rnn.weight_hh_l0, step 0")


def test_a_parameter_without_a_gradient(monkeypatch):
    after_conversion(monkeypatch, lambda module: module.rnn.bias_hh_l0.requires_grad_(False))
    refused("gradients: not of the same parameters")


def test_layers_that_nothing_trains():
    def frozen():
        module = TOY.build()
        module.rnn.requires_grad_(False)
        return module

    refused("rnn was not trained", dataclasses.replace(TOY, build=frozen))


def test_another_shape(monkeypatch):
    after_conversion(monkeypatch, lambda module: module.register_forward_hook(lambda *call: call[-1][:, :1]))
    refused(r"outputs, y: torch.float32 \(5, 1\)")


def test_a_class_that_stays_on_the_way_back(monkeypatch):
    def stay(module):
        module.cell.__class__ = tritongru.GRUCell

    after_conversion(monkeypatch, stay, back=True)
    refused("converted back, cell differ")


def test_an_option_that_stays_on_the_way_back(monkeypatch):
    after_conversion(monkeypatch, lambda module: setattr(module.rnn, "impl", "auto"), back=True)
    refused("converted back, a layer keeps impl")


def test_one_bit_that_differs_on_the_way_back(monkeypatch):
    def hook(module):
        module.register_forward_hook(lambda module, given, y: torch.nextafter(y, y + 1))

    after_conversion(monkeypatch, hook, back=True)
    refused("converted back, y differs from what it was")


def test_models_with_kinks_take_each_step_from_equal_parameters(monkeypatch):
    starts = []
    own = checking.gradients_of

    def spied(model, module, inputs, seed):
        starts.append([parameter.detach().clone() for parameter in module.parameters()])
        return own(model, module, inputs, seed)

    monkeypatch.setattr(checking, "gradients_of", spied)
    check(dataclasses.replace(TOY, kinks=True))
    pairs = list(zip(starts[::2], starts[1::2], strict=True))
    assert len(pairs) == checking.STEPS
    assert all(torch.equal(one, two) for theirs, ours in pairs for one, two in zip(theirs, ours, strict=True))
    assert not torch.equal(pairs[0][0][0], pairs[-1][0][0]), "they moved"


def test_a_nan_is_above_every_limit():
    with pytest.raises(Differs):
        Checked().note("outputs", float("nan"), 1.0, "y")

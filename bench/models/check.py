"""Whether a converted model computes what it did: outputs, three training steps, and the way back.

Errors are relative to the largest value of what is compared, as rounding is: a product of H terms in fp32 errs by a few
times 2^-24 of its largest terms, and T steps and the layers around it multiply this.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import tritongru
from bench.models.model import Model, Outputs, loss_of

VALUES = 1e-5  # of outputs, losses and parameters; measured over the catalogue: up to 4e-6
GRADIENTS = 1e-4  # measured: up to 7e-6
# Outside the converted layers, a gradient below this part of the model's largest counts as if it were as large: that of
# a bias before batch norm or a softmax is zero but for rounding, which was up to 6e-6 of the largest.
NOISE = 0.3
STEPS = 3
MOVED = 0.01  # how far a training step moves the parameters, of their norm
TORCHS = (nn.GRU, nn.GRUCell)
OURS = (tritongru.GRU, tritongru.TorchTypeGRU, tritongru.GRUCell)


class Differs(AssertionError):
    """The converted model is not what it was; the text says in what."""


@dataclass
class Checked:
    """``errors``: the largest error over the allowed one, by kind."""

    errors: dict[str, float] = field(default_factory=dict)

    @property
    def parity(self) -> float:
        return max(self.errors.values())

    def note(self, kind: str, error: float, allowed: float, what: str) -> None:
        """A NaN is above every limit."""
        if not error <= allowed:
            raise Differs(f"{kind}, {what}: error {error:.2g}, allowed {allowed:.2g}")
        self.errors[kind] = max(self.errors.get(kind, 0.0), error / allowed if allowed else 0.0)


@dataclass(frozen=True)
class Twins:
    """The same model twice, with equal parameters, before and after conversion. Not every package's model can be
    copied, so it is built twice."""

    theirs: nn.Module
    ours: nn.Module
    inputs: Any


def twins(model: Model, seed: int) -> Twins:
    """Both still with torch's layers."""
    built = []
    for _ in range(2):
        torch.manual_seed(seed)
        built.append(model.build())
    theirs, ours = built
    ours.load_state_dict(theirs.state_dict())
    torch.manual_seed(seed)  # some packages seed it when they build
    return Twins(theirs, ours, model.inputs())


def converted(model: Model, module: nn.Module, impl: str = "auto") -> nn.Module:
    """Raises Differs if other layers were converted than the catalogue says."""
    report = tritongru.convert(module, as_torch_type=model.as_torch_type)
    names = tuple(swap.name for swap in report.swapped)
    if names != model.swapped:
        raise Differs(f"converted {', '.join(names) or 'nothing'}, expected {', '.join(model.swapped)}")
    for name in names:
        layer = module.get_submodule(name)
        if type(layer) not in OURS:
            raise Differs(f"{name} is still a {type(layer).__name__}")
        layer.impl = impl  # type: ignore[assignment]
    return module


def check(model: Model, seed: int = 0, impl: str = "auto") -> Checked:
    """``impl``: of the converted layers; ``"llvm"`` never runs torch's own loop.

    Raises:
        Differs: if the converted model differs by more than rounding, or the model converted back differs at all.
    """
    pair, checked = twins(model, seed), Checked()
    classes = classes_of(pair.ours)
    kept = {name: value.clone() for name, value in pair.ours.state_dict().items()}
    before = outputs_of(model, pair.ours, pair.inputs, seed)
    converted(model, pair.ours, impl)
    if any(type(pair.theirs.get_submodule(name)) not in TORCHS for name in model.swapped):
        raise Differs("the model to compare with has no layers of torch")
    expected = outputs_of(model, pair.theirs, pair.inputs, seed)
    compare(checked, "outputs", outputs_of(model, pair.ours, pair.inputs, seed), expected)
    train(model, pair, seed, checked)
    go_back(model, pair.ours, classes)
    pair.ours.load_state_dict(kept)
    for name, value in outputs_of(model, pair.ours, pair.inputs, seed).items():
        if not torch.equal(value, before[name]):
            raise Differs(f"converted back, {name} differs from what it was")
    return checked


def go_back(model: Model, module: nn.Module, classes: Mapping[str, type]) -> None:
    tritongru.convert(module, back=True)
    found = classes_of(module)
    wrong = [name for name, kind in classes.items() if found.get(name) is not kind]
    if wrong or found.keys() != classes.keys():
        raise Differs(f"converted back, {', '.join(wrong) or 'the names'} differ from what they were")
    if any("impl" in vars(module.get_submodule(name)) for name in model.swapped):
        raise Differs("converted back, a layer keeps impl")


def classes_of(module: nn.Module) -> dict[str, type]:
    return {name: type(layer) for name, layer in module.named_modules()}


@contextmanager
def mode(module: nn.Module, training: bool) -> Iterator[None]:
    before = module.training
    module.train(training)
    try:
        yield
    finally:
        module.train(before)


def outputs_of(model: Model, module: nn.Module, inputs: Any, seed: int) -> Outputs:
    with mode(module, False), torch.no_grad():
        torch.manual_seed(seed)
        return {name: value.clone() for name, value in model.run(module, inputs).items()}


def compare(checked: Checked, kind: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    if found.keys() != expected.keys() or not expected:
        raise Differs(f"{kind}: {', '.join(found) or 'none'}, expected {', '.join(expected) or 'some'}")
    for name, value in expected.items():
        if found[name].shape != value.shape or found[name].dtype != value.dtype:
            raise Differs(f"{kind}, {name}: {found[name].dtype} {tuple(found[name].shape)}")
        checked.note(kind, distance(found[name], value), VALUES * largest(value), name)


def largest(value: Tensor) -> float:
    return float(value.detach().abs().max()) if value.numel() else 0.0


def distance(found: Tensor, expected: Tensor) -> float:
    return largest(found.detach() - expected.detach())


def gradients_of(model: Model, module: nn.Module, inputs: Any, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and the gradients of a step; the seed draws the same dropout for both models."""
    with mode(module, True):
        torch.manual_seed(seed)
        module.zero_grad()
        loss = loss_of(model.run(module, inputs))
        loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach(), {n: p.grad for n, p in module.named_parameters() if p.grad is not None}


def train(model: Model, pair: Twins, seed: int, checked: Checked) -> None:
    """By plain gradient descent, whose steps are proportional to the gradients: where a gradient is zero, Adam would
    make its rounding as large as the rest. Models with kinks take each step from equal parameters, since a ReLU that
    switches changes a gradient by more than rounding."""
    start = {name: value.detach().clone() for name, value in pair.theirs.named_parameters()}
    rate = None
    for step in range(STEPS):
        theirs_loss, expected = gradients_of(model, pair.theirs, pair.inputs, seed + step)
        ours_loss, found = gradients_of(model, pair.ours, pair.inputs, seed + step)
        compare(checked, "losses", {f"step {step}": ours_loss}, {f"step {step}": theirs_loss})
        if found.keys() != expected.keys():
            raise Differs("gradients: not of the same parameters")
        noise = NOISE * max(map(largest, expected.values()))
        for name, value in expected.items():
            own = name.rpartition(".")[0] in model.swapped
            allowed = GRADIENTS * max(largest(value), 0.0 if own else noise)
            checked.note("gradients", distance(found[name], value), allowed, f"{name}, step {step}")
        rate = rate or MOVED * norm(start) / norm(expected)
        for module in (pair.theirs, pair.ours):
            torch.optim.SGD(module.parameters(), lr=rate).step()
        moved = dict(pair.theirs.named_parameters())
        compare(checked, "parameters", dict(pair.ours.named_parameters()), moved)
        if model.kinks:
            pair.ours.load_state_dict(pair.theirs.state_dict())
    for name in model.swapped:
        if all(torch.equal(moved[key], start[key]) for key in moved if key.startswith(f"{name}.")):
            raise Differs(f"{name} was not trained")


def norm(values: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float(value.square().sum()) for value in values.values()))

"""Inference on a CPU goes past torch's dispatcher only where nothing can tell."""

import pytest
import torch
from cpu_loop import needs_loop
from modes import Functions, Operators
from processes import python
from tolerance import assert_same, failure

import tritongru
from tritongru.interop import inference_ops

pytestmark = needs_loop
OPERATORS = {
    "call": torch.ops.tritongru.gru_infer.default,
    "lengths": torch.ops.tritongru.gru_infer.default,
    "cell": torch.ops.tritongru.gru_cell_infer.default,
    "step": torch.ops.tritongru.gru_step.default,
}
kinds = pytest.mark.parametrize("kind", OPERATORS)


def made(kind):
    """A module, and a call of it without gradients."""
    torch.manual_seed(0)
    x, h = torch.randn(4, 3, 2), torch.randn(1, 3, 5)
    module = (tritongru.GRUCell if kind == "cell" else tritongru.GRU)(2, 5, impl="llvm")

    @torch.no_grad()
    def run(x=x, h=h):
        if kind == "cell":
            return module(x[0], h[0])
        if kind == "step":
            return module.step(x[0], h)[0]
        return module(x, h, lengths=torch.tensor([4, 0, 2]) if kind == "lengths" else None)[0]

    return module, run


@kinds
@pytest.mark.parametrize("mode", [Operators, Functions])
def test_a_mode_sees_the_operator(kind, mode):
    _, run = made(kind)
    plain = run()
    with mode() as found:
        same = run()
    assert OPERATORS[kind] in found.seen
    assert torch.equal(plain, same)


@kinds
def test_the_profiler_sees_the_operator(kind):
    _, run = made(kind)
    with torch.profiler.profile() as profile:
        run()
    assert OPERATORS[kind].name() in {event.key for event in profile.key_averages()}


@pytest.mark.parametrize("kind", ["call", "lengths", "cell"])
def test_nothing_else_sees_it(kind, monkeypatch):
    """The tests above would pass without a shortcut."""
    _, run = made(kind)
    plain = run()

    def refuse(*_):
        raise AssertionError("took the operator")

    monkeypatch.setattr(inference_ops, "_run_step" if kind == "cell" else "_run_layers", refuse)
    assert torch.equal(run(), plain)


class Own(torch.Tensor):
    pass


@kinds
@pytest.mark.parametrize("which", ["x", "weight"])
def test_tensors_that_are_more_than_their_memory(kind, which):
    """Negated when read, without memory, of a class of their own."""
    module, run = made(kind)
    x, w = torch.randn(4, 3, 2), module.get_parameter("weight_hh" if kind == "cell" else "weight_hh_l0")
    name = "weight_hh" if kind == "cell" else "weight_hh_l0"

    def result(values):
        if which == "x":
            return run(x=values)
        module._parameters[name] = torch.nn.Parameter(values) if type(values) is torch.Tensor else values
        return run()

    values = (x if which == "x" else w).detach().clone()
    wanted = result(values)
    assert_same(result(torch._neg_view(-values)), wanted)
    assert_same(result(values.as_subclass(Own)), wanted)
    assert_same(result(torch._efficientzerotensor(values.shape)), result(torch.zeros_like(values)))
    for wrong in (values.to("meta"), values.to_sparse()):  # torch's own cell computes something with these
        assert kind == "cell" or failure(result, wrong) is not None


DEFAULT_DEVICE = """
import torch, tritongru
gru, cell = (kind(2, 5, impl="llvm") for kind in (tritongru.GRU, tritongru.GRUCell))
x, state, lengths = torch.randn(4, 3, 2), torch.randn(1, 3, 5), torch.tensor([4, 0, 2])
resets, reset = torch.rand(4, 3) < 0.5, torch.tensor([True, False, True])
torch.set_default_device("meta")
found = []
with torch.no_grad():
    {first}
    for given in (None, state):
        found += gru.step(x[0], given), gru.step(x[0], given, reset=reset)
        found += gru(x, given), gru(x, given, lengths=lengths), gru(x, given, resets=resets)
        found += (cell(x[0], None if given is None else given[0]),),
    found += gru.step(x[0], state),
for ragged in ({{}}, {{"lengths": lengths}}, {{"resets": resets, "reset_state": state.clone().requires_grad_()}}):
    y, h_n = gru(x, state, **ragged)
    (y.sum() + h_n.sum()).backward()
    found += (y, h_n),
assert all(t.device.type == "cpu" for one in found for t in one)
assert all(w.grad.device.type == "cpu" for w in gru.parameters())
print(sum(float(t.detach().double().sum()) for one in found for t in one))
"""


@pytest.mark.parametrize(
    "first",
    ["gru.step(x[0])", "gru.step(x[0], state)", "gru.step(x[0], state, reset=reset)", "gru(x, resets=resets)"],
)
def test_a_default_device_elsewhere_changes_nothing(first):
    """In a new process, where no memory has been kept yet: memory on another device would have no address here."""
    done = python("-c", DEFAULT_DEVICE.format(first=first))
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) == float(done.stdout)

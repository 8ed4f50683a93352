"""Derivatives, as torch's GRU has them: checked by differences, of the second order, batched, by torch.func; and what
may be done to tensors in between."""

import copy

import pytest
import torch

pytest.importorskip("llvmlite")

from compiled_loop import Layer, given
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, jvp
from torch.utils.checkpoint import checkpoint

import tritongru
from tritongru.planning.instruction_sets import host_sets

pytestmark = pytest.mark.skipif(not host_sets(), reason="no loop for this CPU")
MEMORIES = ["save", "recompute"]


def pair(I=3, H=4, layers=1, bidirectional=False, dtype=torch.float64, impl="llvm", **options):
    """Ours, and torch's with the same weights."""
    torch.manual_seed(0)
    gru = tritongru.GRU(I, H, layers, bidirectional=bidirectional, impl=impl, **options).to(dtype)
    theirs = torch.nn.GRU(I, H, layers, bidirectional=bidirectional).to(dtype)
    theirs.load_state_dict(gru.state_dict())
    return gru, theirs


def close(found, expected, rtol=1e-9, atol=1e-10):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def as_function(gru):
    """Of input, state and weights."""
    names = [name for name, _ in gru.named_parameters()]

    def run(x, hx, *weights):
        return functional_call(gru, dict(zip(names, weights, strict=True)), (x, hx))

    return run


def leaves(gru, T=3, B=2, I=3):
    dtype = next(gru.parameters()).dtype
    states = gru.num_layers * (2 if gru.bidirectional else 1)
    x = torch.randn(T, B, I, dtype=dtype, requires_grad=True)
    hx = torch.randn(states, B, gru.hidden_size, dtype=dtype, requires_grad=True)
    return x, hx, *(p.detach().clone().requires_grad_() for p in gru.parameters())


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_gradcheck(bidirectional, memory):
    gru, _ = pair(bidirectional=bidirectional, memory=memory)
    assert gradcheck(as_function(gru), leaves(gru))


@pytest.mark.parametrize("memory", MEMORIES)
def test_gradgradcheck(memory):
    """By torch's own GRU, which computes the first derivative where it is to be differentiated."""
    gru, _ = pair(I=2, H=2, memory=memory)
    assert gradgradcheck(as_function(gru), leaves(gru, T=2, B=1, I=2))


def test_second_derivatives_are_torchs():
    """Of a gradient penalty, with respect to everything."""
    results = []
    for module in pair(layers=2, bidirectional=True):
        torch.manual_seed(1)
        x = torch.randn(4, 3, 3, dtype=torch.float64, requires_grad=True)
        y, hn = module(x)
        (first,) = torch.autograd.grad(y.sin().sum() + hn.sum(), x, create_graph=True)
        results.append((first.detach(), *torch.autograd.grad(first.square().sum(), list(module.parameters()))))
    close(*results)


def test_a_first_derivative_with_a_graph_is_the_one_without():
    gru, _ = pair()
    x = torch.randn(4, 3, 3, dtype=torch.float64, requires_grad=True)
    loss = gru(x)[0].sin().sum()
    (plain,) = torch.autograd.grad(loss, x, retain_graph=True)
    (graph,) = torch.autograd.grad(loss, x, create_graph=True)
    close([plain], [graph])


def test_batched_gradients():
    """``is_grads_batched``: a Jacobian in one call."""
    results = []
    for module in pair(bidirectional=True):
        torch.manual_seed(1)
        x = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
        y, _ = module(x)
        rows = torch.eye(y.numel(), dtype=y.dtype).view(-1, *y.shape)
        results.append(torch.autograd.grad(y, [x, *module.parameters()], rows, is_grads_batched=True))
    close(*results)


def test_jacobian_and_hessian():
    torch.manual_seed(1)
    x, results = torch.randn(2, 1, 3, dtype=torch.float64), []
    for module in pair():
        jacobian = torch.autograd.functional.jacobian(lambda x, m=module: m(x)[0], x)
        hessian = torch.autograd.functional.hessian(lambda x, m=module: m(x)[0].sin().sum(), x)
        results.append([jacobian, hessian])
    close(*results)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_torch_func_under_auto(bidirectional):
    """grad and jvp are those of torch's GRU, which has no vmap either."""
    gru, theirs = pair(bidirectional=bidirectional, impl="auto")
    torch.manual_seed(1)
    x = torch.randn(3, 2, 3, dtype=torch.float64)
    tangent = torch.randn_like(x)
    results = []
    for module in (gru, theirs):
        parameters = {name: p.detach() for name, p in module.named_parameters()}

        def loss(parameters, x, m=module):
            return functional_call(m, parameters, (x,))[0].sin().sum()

        found = [*grad(loss)(parameters, x).values(), grad(loss, argnums=1)(parameters, x)]
        found += jvp(lambda x, m=module: m(x)[0], (x,), (tangent,))
        results.append(found)
    close(*results)


def test_forward_mode_under_auto():
    results = []
    for module in pair(impl="auto", layers=2):
        torch.manual_seed(1)
        x, tangent = torch.randn(2, 3, 2, 3, dtype=torch.float64)
        with forward_ad.dual_level():
            y, hn = module(forward_ad.make_dual(x, tangent))
            results.append([*forward_ad.unpack_dual(y), *forward_ad.unpack_dual(hn)])
    close(*results)


CASES = [Layer(T=4), Layer(lengths=(4, 3, 1), D=2), Layer(bias=False, h0=False), Layer(dtype=torch.bfloat16)]


@pytest.mark.every(2)
@pytest.mark.parametrize("save", [True, False])
@pytest.mark.parametrize("layer", CASES, ids=["plain", "packed", "bare", "bf16"])
def test_opcheck(layer, save):
    """Schemas, fakes, autograd registration, tracing with symbolic sizes: forward, then backward."""
    call, (dy, dhn) = given(layer)
    batch, *rows = call.rows
    operands = (*call.leaves, *rows, batch)
    torch.library.opcheck(torch.ops.tritongru.gru_forward, (*operands, save, "llvm"))
    y, _, kept = torch.ops.tritongru.gru_forward(*operands, save, "llvm")
    given_state = call.reset_state is not None
    for needs in ([True] * 6 + [given_state], [False, True, False, True, False, True, False]):
        arguments = (dy, dhn, *operands, y, kept, needs, "llvm")
        torch.library.opcheck(torch.ops.tritongru.gru_backward, arguments)


# What may be done in between


@pytest.mark.parametrize("memory", MEMORIES)
def test_outputs_may_be_changed_before_the_backward(memory):
    """As torch's may: in place, by an activation or a mask."""
    results = []
    for module in pair(layers=2, bidirectional=True, memory=memory):
        torch.manual_seed(1)
        x = torch.randn(5, 3, 3, dtype=torch.float64, requires_grad=True)
        y, hn = module(x)
        y[0].zero_()
        y.mul_(2).relu_()
        hn.add_(1).square_()
        results.append(torch.autograd.grad(y.sum() + hn.sum(), [x, *module.parameters()]))
    close(*results)


@pytest.mark.parametrize("memory", MEMORIES)
def test_what_arrives_may_be_changed_afterwards(memory):
    """The gradient of h_n is worked on in a copy."""
    gru, _ = pair(memory=memory)
    x = torch.randn(3, 2, 3, dtype=torch.float64)
    y, hn = gru(x)
    dy, dhn = torch.randn_like(y), torch.randn_like(hn)
    before = dy.clone(), dhn.clone()
    torch.autograd.grad((y, hn), list(gru.parameters()), (dy, dhn))
    assert torch.equal(dy, before[0])
    assert torch.equal(dhn, before[1])


@pytest.mark.parametrize("memory", MEMORIES)
def test_backward_twice(memory):
    gru, _ = pair(memory=memory, bidirectional=True)
    x = torch.randn(5, 3, 3, dtype=torch.float64, requires_grad=True)
    y, hn = gru(x)
    loss = y.sin().sum() + hn.sum()
    wanted = [x, *gru.parameters()]
    first = torch.autograd.grad(loss, wanted, retain_graph=True)
    with torch.no_grad():
        gru(torch.randn(9, 7, 3, dtype=torch.float64))  # other work in between
    second = torch.autograd.grad(loss, wanted)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, wanted)


@pytest.mark.parametrize("memory", MEMORIES)
def test_two_graphs_at_once(memory):
    """What a forward has kept belongs to it alone."""
    gru, theirs = pair(memory=memory)
    inputs = [torch.randn(4, 2, 3, dtype=torch.float64) for _ in range(3)]
    losses, expected = ([module(x)[0].sin().sum() for x in inputs] for module in (gru, theirs))
    for k in (1, 0, 2):
        close(
            torch.autograd.grad(losses[k], list(gru.parameters())),
            torch.autograd.grad(expected[k], list(theirs.parameters())),
        )


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("what", ["x", "weight"])
def test_operands_may_not_be_changed_before_the_backward(what, memory):
    gru, _ = pair(memory=memory)
    x = torch.randn(3, 2, 3, dtype=torch.float64)
    loss = gru(x)[0].sum()
    with torch.no_grad():
        (x if what == "x" else gru.weight_hh_l0).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0", "weight_hh_l1_reverse"])
def test_weights_changed_through_data_are_seen(name):
    """No version counter moves, so nothing may be kept of weights between calls, with or without gradients."""
    gru, theirs = pair(layers=2, bidirectional=True)
    x = torch.randn(4, 3, 3, dtype=torch.float64)
    with torch.no_grad():
        gru(x)
    gru(x)[0].sum().backward()
    for module in (gru, theirs):
        getattr(module, name).data.mul_(-2)
    gru.zero_grad()
    with torch.no_grad():
        close([gru(x)[0]], [theirs(x)[0]])
    close(
        torch.autograd.grad(gru(x)[0].sin().sum(), list(gru.parameters())),
        torch.autograd.grad(theirs(x)[0].sin().sum(), list(theirs.parameters())),
    )


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_training_step_learns_what_torchs_learns(memory):
    """Twenty steps of SGD with momentum; the losses of both stay together."""
    losses = []
    for module in pair(layers=2, memory=memory):
        module = copy.deepcopy(module)
        torch.manual_seed(1)
        x = torch.randn(8, 5, 3, dtype=torch.float64)
        optimizer, found = torch.optim.SGD(module.parameters(), lr=0.5, momentum=0.9), []
        for _ in range(20):
            optimizer.zero_grad()
            loss = (module(x)[0].mean(-1) - x.cumsum(0).mean(-1).tanh()).square().mean()
            loss.backward()
            optimizer.step()
            found.append(loss.detach())
        losses.append(found)
    assert losses[0][-1] < losses[0][0]
    close(*losses, rtol=1e-9, atol=1e-9)


def test_checkpointed_layers():
    gru, theirs = pair(layers=2)
    x = torch.randn(4, 3, 3, dtype=torch.float64, requires_grad=True)
    found = torch.autograd.grad(checkpoint(gru, x, use_reentrant=False)[0].sin().sum(), [x, *gru.parameters()])
    close(found, torch.autograd.grad(theirs(x)[0].sin().sum(), [x, *theirs.parameters()]))

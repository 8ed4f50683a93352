"""What lengths, resets and reset states mean, on every path that a call may take: eager and in a compiler's graph."""

import copy
import logging

import pytest
import torch
from cpu_loop import HAS_LOOP, forget
from layers import Case, build, by_oracle
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import tritongru
from tritongru import route

pytestmark = pytest.mark.usefixtures("ieee", "fresh_dynamo")

on_a_cpu = pytest.mark.skipif(not HAS_LOOP or torch.cuda.is_available(), reason="llvm runs on a CPU, with llvmlite")
LOOP = pytest.param("llvm", marks=on_a_cpu)
impls = pytest.mark.parametrize("impl", [LOOP, "torch", "triton"])
exact_impls = pytest.mark.parametrize("impl", [LOOP, "torch"])  # those that take float64
ways = pytest.mark.parametrize("way", ["eager", "compiled"])
PATHS = [pytest.param(impl, "eager", marks=on_a_cpu if impl == "llvm" else ()) for impl in ("llvm", "torch", "triton")]
PATHS += [pytest.param("llvm", "compiled", marks=on_a_cpu), ("torch", "compiled")]
paths = pytest.mark.parametrize("impl, way", [*PATHS, pytest.param("triton", "compiled", marks=pytest.mark.slow)])
T, B, I, H = 6, 5, 3, 7
LENGTHS = [4, 6, 0, 1, 5]  # not sorted, one of no step
ROUNDED = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(gru, way):
    if way == "eager":
        return gru
    return torch.compile(gru, fullgraph=True, backend="aot_eager", dynamic=True)


def layer(impl, device, layers=2, bidirectional=True, dtype=torch.float32, **options):
    """With its input and first states, which may all have gradients."""
    case = Case(T, B, I, H, layers, bidirectional, impl=impl, dtype=dtype)
    gru, x, hx = build(case, device, **options)
    return gru, x.requires_grad_(), hx.requires_grad_()


def lengths_of(device, dtype=torch.int64):
    return torch.tensor(LENGTHS, dtype=dtype, device=device)


def resets_of(device):
    """At first steps, at last ones, behind the end, in a row and nowhere."""
    rows = [[0, 0, 0, 1, 1], [1, 1, 0, 1, 0], [0, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 0, 0, 0, 1], [1, 1, 0, 1, 1]]
    return torch.tensor(rows, device=device).bool()


def states_of(gru, count, device):
    states = gru.num_layers * (1 + gru.bidirectional)
    return torch.randn(states, count, H, device=device, dtype=gru.weight_hh_l0.dtype).requires_grad_()


def results(call, gru, x, hx, **ragged):
    """y, h_n, and the gradients of input, states and weights."""
    leaves = [x, *(v for v in (hx, ragged.get("reset_state")) if v is not None), *gru.parameters()]
    y, h_n = call(x, hx, **ragged)
    torch.manual_seed(2)
    arriving = [torch.randn(v.shape).to(v.device, v.dtype) for v in (y, h_n)]
    return [y, h_n, *torch.autograd.grad((y, h_n), leaves, arriving)]


def close(found, expected, **rule):
    assert len(found) == len(expected)
    for k, (a, b) in enumerate(zip(found, expected, strict=True)):
        said = {"msg": lambda text, k=k: f"result {k}: {text}"}
        torch.testing.assert_close(a, b.to(a.dtype), **(ROUNDED if a.dtype == torch.float32 else {}) | rule, **said)


@pytest.mark.every(4, slow=4)
@pytest.mark.parametrize("states", [None, 1, B])
@paths
def test_it_is_the_oracle(impl, way, states, device):
    """Two layers in both directions, with every gradient, in float64 for the oracle."""
    gru, x, hx = layer(impl, device)
    ragged = {"lengths": lengths_of(device), "resets": resets_of(device)}
    state = None if states is None else states_of(gru, states, device)
    found = results(compiled(gru, way), gru, x, hx, **ragged, reset_state=state)
    exact = copy.deepcopy(gru).double()
    x, hx, state = (v if v is None else v.detach().double().requires_grad_() for v in (x, hx, state))
    given = {"reset_state": state} if state is not None else {}
    expected = results(lambda *a, **k: by_oracle(exact, *a, **k), exact, x, hx, **ragged, **given)
    close(found, expected)


@pytest.mark.every(3, slow=4)
@pytest.mark.parametrize("ragged", ["lengths", "resets"])
@ways
@exact_impls
def test_it_is_the_oracle_in_float64(impl, way, ragged, device):
    """Of lengths alone and of resets alone."""
    gru, x, hx = layer(impl, device, dtype=torch.float64)
    given = {"lengths": {"lengths": lengths_of(device)}, "resets": {"resets": resets_of(device)}}[ragged]
    found = results(compiled(gru, way), gru, x, hx, **given)
    expected = results(lambda *a, **k: by_oracle(gru, *a, **k), gru, x, hx, **given)
    close(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.every(5, slow=4)
@pytest.mark.parametrize("index", [torch.int64, torch.int32])
@pytest.mark.parametrize("batch_first", [True, False])
@paths
def test_lengths_are_a_packed_sequence(impl, way, batch_first, index, device):
    """That of torch.nn.GRU, with the gradients of everything."""
    gru, x, hx = layer(impl, device, batch_first=batch_first)
    kept = torch.tensor([0, 1, 3, 4])  # torch packs no empty sequence
    lengths = torch.tensor([4, 6, 1, 5])
    x, hx = x.detach()[:, kept].requires_grad_(), hx.detach()[:, kept].requires_grad_()

    def turned(value):
        return value.transpose(0, 1) if batch_first else value

    def ours(x, hx, **ragged):
        return compiled(gru, way)(turned(x), hx, **ragged)

    theirs = gru.to_torch()

    def packed(x, hx):
        rows = pack_padded_sequence(turned(x), lengths, batch_first=batch_first, enforce_sorted=False)
        output, h_n = theirs(rows, hx)
        return pad_packed_sequence(output, batch_first=batch_first)[0], h_n

    close(results(ours, gru, x, hx, lengths=lengths.to(device, index)), results(packed, theirs, x, hx))


@pytest.mark.every(2, slow=4)
@paths
def test_reverse_is_forward_on_the_flipped_rows(impl, way, device):
    """Each row turned round within its length; a cut between two steps stays between them."""
    both, x, hx = layer(impl, device, layers=1)
    lengths, resets = lengths_of(device), resets_of(device)
    state = states_of(both, B, device)
    back = tritongru.GRU(I, H, impl=impl).to(device)
    own = {n: p for n, p in both.state_dict().items() if n.endswith("_reverse")}
    back.load_state_dict({n.removesuffix("_reverse"): p for n, p in own.items()})

    def flipped(rows):
        found = torch.zeros_like(rows)
        for b, end in enumerate(LENGTHS):
            found[:end, b] = rows[:end, b].flip(0)
        return found

    turned = torch.zeros_like(resets)
    for b, end in enumerate(LENGTHS):
        for t in range(1, end):
            turned[end - t, b] = resets[t, b]
    y, h_n = compiled(both, way)(x, hx, lengths=lengths, resets=resets, reset_state=state)
    other, last = compiled(back, way)(flipped(x), hx[1:], lengths=lengths, resets=turned, reset_state=state[1:])
    close([flipped(other), last], [y[..., H:], h_n[1:]], atol=1e-6, rtol=0)


@pytest.mark.every(5, slow=4)
@pytest.mark.parametrize("cut", [1, 4])
@paths
def test_segments_with_carried_state_are_the_whole(impl, way, cut, device):
    gru, x, hx = layer(impl, device, bidirectional=False)
    lengths, resets, state = lengths_of(device), resets_of(device), states_of(gru, 1, device)
    call = compiled(gru, way)

    def whole(x, hx, reset_state):
        return call(x, hx, lengths=lengths, resets=resets, reset_state=reset_state)

    def parts(x, hx, reset_state):
        ends = [lengths.clamp(max=cut), (lengths - cut).clamp(min=0)]
        first, carried = call(x[:cut], hx, lengths=ends[0], resets=resets[:cut], reset_state=reset_state)
        second, last = call(x[cut:], carried, lengths=ends[1], resets=resets[cut:], reset_state=reset_state)
        return torch.cat((first, second)), last

    close(results(parts, gru, x, hx, reset_state=state), results(whole, gru, x, hx, reset_state=state))


@pytest.mark.every(2, slow=4)
@pytest.mark.parametrize("states", [None, 1, B])
@impls
def test_a_reset_is_the_end_of_a_sequence_and_the_beginning_of_another(impl, states, device):
    """In both directions: the second half of the rows does not know the first."""
    gru, x, hx = layer(impl, device, layers=1)
    state = None if states is None else states_of(gru, states, device)
    resets = torch.zeros(T, B, dtype=torch.bool, device=device)
    resets[2] = True
    fresh = torch.zeros_like(hx) if state is None else state.expand_as(hx)
    given = {} if state is None else {"reset_state": state}

    def cut(x, hx, **_):
        ahead, back = hx[:1], hx[1:]
        first, (_, ends) = gru(x[:2], torch.cat((ahead, fresh[1:])))
        second, (begins, _) = gru(x[2:], torch.cat((fresh[:1], back)))
        return torch.cat((first, second)), torch.stack((begins, ends))

    found = results(lambda *a, **k: gru(*a, resets=resets, **k), gru, x, hx, **given)
    close(found, results(cut, gru, x, hx, **given))


@pytest.mark.every(5, slow=4)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("resets", [False, True])
@paths
def test_what_lies_in_the_padding_changes_nothing(impl, way, resets, bad, device):
    """Not a bit, of any result; the output there is zero, and so is the gradient of the input."""
    gru, x, hx = layer(impl, device)
    lengths, call, found = lengths_of(device), compiled(gru, way), []
    padding = torch.arange(T, device=device)[:, None] >= lengths
    ragged = {"lengths": lengths} | ({"resets": resets_of(device)} if resets else {})
    for value in (0.0, bad):
        poisoned = torch.where(padding[..., None], value, x.detach()).requires_grad_()
        y, h_n = call(poisoned, hx, **ragged)
        leaves = [poisoned, hx, *gru.parameters()]
        arriving = torch.where(padding[..., None], value, torch.ones_like(y))
        grads = torch.autograd.grad((y, h_n), leaves, (arriving, torch.ones_like(h_n)))
        assert not y[padding].any()
        assert not grads[0][padding].any()
        found.append([y, h_n, *grads])
    for k, (clean, dirty) in enumerate(zip(*found, strict=True)):
        assert torch.equal(clean, dirty), k


@pytest.mark.every(5, slow=4)
@pytest.mark.parametrize("resets", [False, True])
@paths
def test_a_sequence_without_a_step_ends_where_it_begins(impl, way, resets, device):
    gru, x, hx = layer(impl, device)
    lengths = torch.zeros(B, dtype=torch.int64, device=device)
    ragged = {"lengths": lengths} | ({"resets": resets_of(device)} if resets else {})
    y, h_n = compiled(gru, way)(x, hx, **ragged)
    assert not y.any()
    assert torch.equal(h_n, hx)
    arriving = torch.randn_like(h_n)
    dx, dhx, *of_weights = torch.autograd.grad((y, h_n), [x, hx, *gru.parameters()], (torch.ones_like(y), arriving))
    assert torch.equal(dhx, arriving)
    assert not dx.any()
    assert not any(grad.any() for grad in of_weights)


@pytest.mark.every(5, slow=4)
@pytest.mark.parametrize("batch_first", [False, True])
@paths
def test_without_a_batch(impl, way, batch_first, device):
    """Lengths of no or of one dimension, resets of one, reset states of two: the row of the batch."""
    gru, x, hx = layer(impl, device, batch_first=batch_first)
    b, state = 4, states_of(gru, B, device)
    lengths, resets, call = lengths_of(device), resets_of(device), compiled(gru, way)
    own = slice(b, b + 1)
    given = x.transpose(0, 1) if batch_first else x
    among = given[own] if batch_first else given[:, own]
    rows = resets[:, own].t() if batch_first else resets[:, own]
    y, h_n = call(among, hx[:, own], lengths=lengths[own], resets=rows, reset_state=state[:, own])
    for length in (lengths[b], lengths[own], lengths[b].int()):
        found = gru(x[:, b], hx[:, b], lengths=length, resets=resets[:, b], reset_state=state[:, b])
        assert found[0].shape == (T, 2 * H)
        close(found, [y[0] if batch_first else y[:, 0], h_n[:, 0]], atol=1e-6, rtol=0)
    found = call(x[:, b], hx[:, b], lengths=lengths[b])
    close(found, gru(x[:, b], hx[:, b], lengths=lengths[own]), atol=1e-6, rtol=0)


@pytest.mark.every(3, slow=4)
@pytest.mark.parametrize("states", [1, 2])
@pytest.mark.parametrize("memory", ["save", "recompute"])
@exact_impls
def test_gradcheck(impl, memory, states):
    torch.manual_seed(0)
    gru = tritongru.GRU(2, 3, 2, bidirectional=True, impl=impl, memory=memory, dtype=torch.float64)
    names = [name for name, _ in gru.named_parameters()]
    resets = torch.tensor([[0, 1], [1, 0], [0, 1], [1, 1]]).bool()

    def run(x, hx, state, *weights):
        parameters = dict(zip(names, weights, strict=True))
        ragged = {"lengths": torch.tensor([4, 3]), "resets": resets, "reset_state": state}
        return torch.func.functional_call(gru, parameters, (x, hx), ragged)

    shapes = (4, 2, 2), (4, 2, 3), (4, states, 3)
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(run, (*leaves, *gru.parameters()), fast_mode=True)


@exact_impls
def test_second_derivatives(impl):
    """Of a gradient penalty: torch's operators have them, and the loop leaves them to torch's."""
    torch.manual_seed(0)
    gru = tritongru.GRU(2, 3, impl=impl, dtype=torch.float64)
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    state = torch.randn(1, 1, 3, dtype=torch.float64, requires_grad=True)
    resets = torch.tensor([[0, 1], [1, 0], [0, 1]]).bool()

    def run(x, state):
        return gru(x, lengths=torch.tensor([3, 2]), resets=resets, reset_state=state)

    assert torch.autograd.gradgradcheck(run, (x, state))


@pytest.mark.every(2, slow=4)
@paths
def test_dropout_between_layers(impl, way, device):
    """Drawn for the rows of the padded output, from torch's generator."""
    gru, x, hx = layer(impl, device, dropout=0.5)
    lengths, resets, state = lengths_of(device), resets_of(device), states_of(gru, 1, device)
    lower, upper = (tritongru.GRU(size, H, bidirectional=True, impl=impl).to(device) for size in (I, 2 * H))
    for one, name in ((lower, "l0"), (upper, "l1")):
        one.load_state_dict({n.replace(name, "l0"): p for n, p in gru.state_dict().items() if name in n})
    torch.manual_seed(3)
    found = compiled(gru, way)(x, hx, lengths=lengths, resets=resets, reset_state=state)
    torch.manual_seed(3)
    y, first = lower(x, hx[:2], lengths=lengths, resets=resets, reset_state=state[:2])
    y = torch.dropout(y, 0.5, True)
    y, second = upper(y, hx[2:], lengths=lengths, resets=resets, reset_state=state[2:])
    close(found, [y, torch.cat((first, second))])
    assert torch.equal(gru.eval()(x, lengths=lengths)[0], gru(x, lengths=lengths)[0])


@pytest.mark.parametrize("impl", [LOOP, "torch", pytest.param("triton", marks=pytest.mark.slow)])
def test_one_graph_serves_every_size(impl, device):
    gru, _, _ = layer(impl, device)
    counter = CompileCounterWithBackend("aot_eager")
    call = torch.compile(gru, backend=counter, fullgraph=True, dynamic=True)
    for time, batch in ((6, 5), (4, 3), (9, 2)):
        torch.manual_seed(time)
        x, resets = torch.randn(time, batch, I, device=device), torch.rand(time, batch, device=device) < 0.3
        ragged = {"lengths": torch.randint(0, time + 1, (batch,), device=device), "resets": resets}
        close(call(x, **ragged), gru(x, **ragged))
    assert sum(len(module.graph.nodes) > 0 for module in counter.graphs) == 1


@pytest.mark.parametrize("layer_impl", ["auto", "torch"])
def test_a_call_that_wants_results_alone_is_the_same(layer_impl, device):
    """As is one of the function, with batch_first and without biases."""
    gru, x, hx = layer(layer_impl, device, batch_first=True)
    x, resets = x.transpose(0, 1).contiguous(), resets_of(device).t()
    ragged = {"lengths": lengths_of(device), "resets": resets, "reset_state": states_of(gru, 1, device)}
    expected = gru(x, hx, **ragged)
    with torch.no_grad():
        close(gru(x, hx, **ragged), expected)
    options = {"num_layers": 2, "batch_first": True, "bidirectional": True, "impl": layer_impl}
    close(tritongru.gru(x, hx, list(gru.parameters()), **options, **ragged), expected)
    bare = tritongru.GRU(I, H, bias=False, impl=layer_impl).to(device)
    zeros = tritongru.GRU(I, H, impl=layer_impl).to(device)
    zeros.load_state_dict({n: bare.state_dict().get(n, torch.zeros(3 * H)) for n in zeros.state_dict()})
    x, resets = x.transpose(0, 1), resets.t()
    close(bare(x, lengths=lengths_of(device), resets=resets), zeros(x, lengths=lengths_of(device), resets=resets))


@pytest.mark.every(3, slow=4)
@pytest.mark.parametrize("impl", [LOOP, "triton", "torch", "auto"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="of CPU autocast")
@ways
def test_autocast(impl, way):
    """States and reset states may then have another dtype than the input; nothing but rounding differs."""
    cpu = torch.device("cpu")
    gru, x, hx = layer(impl, cpu)
    ragged = {"lengths": lengths_of(cpu), "resets": resets_of(cpu)}
    state = states_of(gru, 1, cpu)
    expected = by_oracle(gru, x, hx, **ragged, reset_state=state)
    with torch.autocast("cpu", torch.bfloat16):
        y, h_n = compiled(gru, way)(x, hx, **ragged, reset_state=state)
        same = gru(x.bfloat16() if impl in ("llvm", "triton") else x, hx, **ragged, reset_state=state)
    close([y.float(), h_n.float()], expected, rtol=0, atol=0.03)
    assert torch.equal(y, same[0])
    assert h_n.dtype == same[1].dtype
    assert not y[torch.arange(T)[:, None] >= ragged["lengths"]].any()


def test_steps_without_a_kernel_are_said_once(caplog, device):
    """Torch's GRU runs one step at a time between resets; lengths alone it can do."""
    gru, x, _ = layer("torch", device)
    forget()
    with caplog.at_level(logging.INFO, "tritongru"):
        gru(x, lengths=lengths_of(device))
        assert not caplog.records
        for _ in range(2):
            gru(x, resets=resets_of(device))
        torch.compile(gru, fullgraph=True, backend="aot_eager")(x, resets=resets_of(device))
    forget()
    assert [record.getMessage() for record in caplog.records] == [route.NO_RESETS]


def test_torch_and_ours_share_a_state_dict_and_nothing_else(device):
    """``to_torch`` and back keep what a ragged call computes."""
    gru, x, hx = layer("auto", device)
    again = tritongru.GRU.from_torch(gru.to_torch())
    assert isinstance(gru.to_torch(), nn.GRU)
    close(again(x, hx, lengths=lengths_of(device)), gru(x, hx, lengths=lengths_of(device)), rtol=0, atol=0)


@pytest.mark.parametrize("with_resets", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@paths
def test_a_nan_in_a_state_that_no_step_sees_has_no_gradient(impl, way, bidirectional, with_resets, device):
    """Of a sequence of length 0: h_n is that state, and nothing else knows of it."""
    gru, x, hx = layer(impl, device, layers=1, bidirectional=bidirectional)
    lengths, call = lengths_of(device), compiled(gru, way)
    ragged = {"lengths": lengths, "resets": resets_of(device) & (lengths > 0)} if with_resets else {"lengths": lengths}
    wanted = results(call, gru, x, hx, **ragged)
    odd = hx.detach().clone()
    odd[:, LENGTHS.index(0)] = float("nan")
    found = results(call, gru, x, odd.requires_grad_(), **ragged)
    assert found[1][:, LENGTHS.index(0)].isnan().all()
    for one, other in zip([found[0], *found[2:]], [wanted[0], *wanted[2:]], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


class NoGradient(torch.autograd.Function):
    forward = staticmethod(lambda ctx, y, h_n: y.sum() + h_n.sum())
    backward = staticmethod(lambda ctx, grad: (None, None))


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("impl", [LOOP, "torch", "triton", "auto"])
def test_results_without_gradients_pass_none_on(impl, again, device):
    gru, x, hx = layer(impl, device)
    loss = NoGradient.apply(*gru(x, hx, lengths=lengths_of(device)))
    for found in torch.autograd.grad(loss, [x, hx], create_graph=again, allow_unused=True):
        assert found is None or not found.any()

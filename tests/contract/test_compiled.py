"""The operator that compilers' graphs hold: one graph for all sizes, decisions inside, torch's GRU, also in cuDNN."""

import dataclasses

import pytest
import torch
from cpu_loop import HAS_LOOP, forget, needs_loop
from layers import Case, build, outputs_and_gradients
from tolerance import assert_same as assert_same_as_torchs
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import tritongru
from tritongru import functional, layer, route
from tritongru.interop import torch_layer
from tritongru.planning.cpu_plan import KEPT

on_a_cpu = pytest.mark.skipif(not HAS_LOOP or torch.cuda.is_available(), reason="llvm runs on a CPU, with llvmlite")
IMPLS = [pytest.param("llvm", marks=on_a_cpu), "torch", "triton"]
RAGGED = {"ragged": True, "D": 2, "states": 3}
OPTIONS = [{}, {"D": 2}, {"bias": False, "hx": False}, {"memory": "recompute"}, RAGGED, {"ragged": True, "states": 1}]


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def arguments(device, D=1, B=3, T=4, bias=True, hx=True, impl="torch", memory="auto", ragged=False, states=None):
    """Those of ``gru_routed_forward``: seven tensors that may need a gradient, lengths, resets, and the rest."""
    torch.manual_seed(0)
    I, H = 4, 5
    shapes = ((T * B, I), (D * 3 * H, I), (D, 3 * H, H), (D * 3 * H,), (D, 3 * H), (D, B, H))
    tensors = [torch.randn(shape, device=device) for shape in shapes]
    if not bias:
        tensors[3] = tensors[4] = None
    if not hx:
        tensors[5] = None
    tensors.append(torch.randn(D, states, H, device=device) if states else None)
    tensors += [torch.tensor([T, 1, T - 1]), torch.rand(T, B) < 0.4] if ragged else [None, None]
    return (*tensors, B, impl, memory, 1, None)


def graphs(counter):
    """Dynamo may start again on the way, and then leaves an empty graph behind."""
    return sum(len(module.graph.nodes) > 0 for module in counter.graphs)


def compile_counted(gru, **options):
    counter = CompileCounterWithBackend("aot_eager")
    return torch.compile(gru, backend=counter, fullgraph=True, **options), counter


def assert_same(found, expected):
    found = {name.removeprefix("_orig_mod."): value for name, value in found.items()}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.slow
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_opcheck(impl, options, device):
    given = arguments(device, impl=impl, **options)
    torch.library.opcheck(torch.ops.tritongru.gru_routed_forward, given)
    learns = [t.requires_grad_() if isinstance(t, torch.Tensor) else t for t in given[:7]] + [*given[7:]]
    torch.library.opcheck(torch.ops.tritongru.gru_routed_forward, learns)
    given = arguments(device, impl=impl, **options)
    *tensors, B, impl, _, _, cast = given
    y, hn, kept = torch.ops.tritongru.gru_routed_forward(*given)
    for needs in ([True] * 7, [False, True, False, True, False, True, False]):
        args = (torch.randn_like(y), torch.randn_like(hn), *tensors, B, impl, cast, y, kept, needs)
        torch.library.opcheck(torch.ops.tritongru.gru_routed_backward, args)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    "memory",
    [
        pytest.param("auto", marks=pytest.mark.slow),
        pytest.param("save", marks=pytest.mark.rare),
        pytest.param("recompute", marks=pytest.mark.slow),
    ],
)
def test_one_graph_for_all_sizes(impl, memory, device):
    gru = tritongru.GRU(3, 4, 2, bidirectional=True, impl=impl, memory=memory).to(device)
    compiled, counter = compile_counted(gru, dynamic=True)
    for T, B in ((5, 2), (6, 2), (4, 5), (9, 3)):
        x, hx = torch.randn(T, B, 3, device=device), torch.randn(4, B, 4, device=device)
        assert_same(outputs_and_gradients(compiled, x, hx), outputs_and_gradients(gru, x, hx))
    assert graphs(counter) == 1


@pytest.mark.slow
@pytest.mark.parametrize("impl", IMPLS)
def test_by_default_the_second_length_compiles_once_more(impl, device):
    gru = tritongru.GRU(3, 4, impl=impl).to(device)
    compiled, counter = compile_counted(gru)
    for T in range(4, 16):
        x = torch.randn(T, 2, 3, device=device)
        assert_same(outputs_and_gradients(compiled, x, None), outputs_and_gradients(gru, x, None))
    assert graphs(counter) == 2


def test_the_graph_does_not_grow_with_time():
    gru = tritongru.GRU(3, 4, 2)
    sizes = []
    for T in (4, 400):
        torch._dynamo.reset()
        compiled, counter = compile_counted(gru)
        compiled(torch.randn(T, 2, 3))
        sizes.append([len(module.graph.nodes) for module in counter.graphs])
    assert sizes[0] == sizes[1]


@pytest.fixture
def ran(monkeypatch):
    """The layers' paths in order: "kernel" and "torch" forwards, backwards by what they found."""
    found = []

    def note(room, name, what):
        plain = getattr(room, name)

        def noted(*args, **kwargs):
            found.append(what(args))
            return plain(*args, **kwargs)

        monkeypatch.setattr(room, name, noted)

    note(layer, "forward", lambda args: "kernel")
    note(torch_layer, "forward", lambda args: "torch")
    note(layer, "backward", lambda args: "kernel, saved" if args[2].gates.numel() else "kernel, rebuilt")
    note(torch_layer, "backward", lambda args: "torch, reserve" if args[3].numel() else "torch, again")
    return found


# As if the plan had said so: Triton's kernels up to a batch of 3 and from 4 steps on, the loop from 10 rows on.
LIMITS = {
    "triton": (
        route.Route("", "triton", "why", largest=3, shortest=4, device_bytes=1 << 30),
        ((5, 2, True), (5, 4, False), (3, 2, False), (4, 3, True)),
    ),
    "llvm": (
        route.Route("", "llvm", device_bytes=1 << 30, hidden=4, training=True),
        ((5, 2, True), (3, 3, False), (4, 3, True), (2, 4, False)),
    ),
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there the plan's own limits are asked")
@pytest.mark.parametrize("family", ["triton", pytest.param("llvm", marks=needs_loop)])
def test_the_plan_puts_no_condition_on_sizes(family, ran, monkeypatch):
    known, sizes = LIMITS[family]
    monkeypatch.setattr(route, "_route", lambda *asked: known)
    monkeypatch.setattr(functional, "asks_for_kernels", lambda impl, device: impl != "torch")
    monkeypatch.setattr(route, "refusal_by_size", lambda isa, H, learns, T, B, threads: "few" * (T * B < 10))
    gru = tritongru.GRU(3, 4)
    compiled, counter = compile_counted(gru, dynamic=True)
    for T, B, kernel in sizes:
        x = torch.randn(T, B, 3)
        ran.clear()
        found = outputs_and_gradients(compiled, x, None)
        assert ran == (["kernel", "kernel, saved"] if kernel else ["torch", "torch, again"])
        assert_same(found, outputs_and_gradients(tritongru.GRU.from_torch(gru.to_torch(), impl="torch"), x, None))
    assert graphs(counter) == 1


@needs_loop
def test_the_backward_follows_the_forward_whatever_the_threads(monkeypatch):
    """With another number of threads the plan may go another way."""
    asked = []
    monkeypatch.setattr(route, "refusal_by_size", lambda *size: "many threads" * (size[-1] > 2))
    compiled, _ = compile_counted(tritongru.GRU(3, 4))
    plain = tritongru.GRU.from_torch(compiled._orig_mod.to_torch(), impl="torch")
    for there, back in ((1, 5), (5, 1)):
        x = torch.ones(5, 2, 3, requires_grad=True)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "get_num_threads", lambda number=there: asked.append(0) or number)
            y, hn = compiled(x)
            patch.setattr(torch, "get_num_threads", lambda number=back: number)
            found = torch.autograd.grad((y, hn), (x, *compiled.parameters()), (torch.ones_like(y), torch.ones_like(hn)))
        again = torch.ones(5, 2, 3, requires_grad=True)
        y, hn = plain(again)
        exact = torch.autograd.grad((y, hn), (again, *plain.parameters()), (torch.ones_like(y), torch.ones_like(hn)))
        for one, other in zip(found, exact, strict=True):
            torch.testing.assert_close(one, other)
    assert asked


@pytest.fixture
def forgetful():
    """What is known of devices and routes is found out anew, and forgotten afterwards."""
    forget()
    yield
    forget()


@pytest.mark.every(3)
@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize("memory, small, saved", [("auto", False, True), ("auto", True, False), ("save", True, True)])
@pytest.mark.parametrize("impl, values", [pytest.param("llvm", KEPT, marks=on_a_cpu), ("triton", 4)])
def test_memory_is_decided_inside(impl, values, memory, small, saved, ran, monkeypatch, device):
    facts = route.device_facts
    shrink = {"memory_bytes": 8 * 4 * (5 * 3 * 4) * values * 2 - 1} if small else {}  # a byte less than T = 5 needs
    monkeypatch.setattr(route, "device_facts", lambda device: dataclasses.replace(facts(device), **shrink))
    gru = tritongru.GRU(3, 4, 2, impl=impl, memory=memory).to(device)
    compiled, _ = compile_counted(gru, dynamic=True)
    for T in (4, 5):
        ran.clear()
        outputs_and_gradients(compiled, torch.randn(T, 3, 3, device=device), None)
        kept = saved or T == 4
        assert ran == ["kernel"] * 2 + ["kernel, saved" if kept else "kernel, rebuilt"] * 2


@pytest.mark.parametrize("impl", IMPLS)
def test_without_gradients_nothing_is_kept(impl, device):
    *tensors, B, impl, memory, layers, cast = arguments(device, impl=impl, memory="none")
    *_, kept = torch.ops.tritongru.gru_routed_forward(*tensors, B, impl, memory, layers, cast)
    assert kept.untyped_storage().nbytes() == 0


def test_kept_gates_that_went_elsewhere_are_rebuilt(ran, device):
    *tensors, B, impl, memory, layers, cast = arguments(device, D=2, impl="triton", memory="save")
    leaves = [t.requires_grad_() for t in tensors[:6]]

    def gradients():
        y, hn, *_ = torch.ops.tritongru.gru_routed_forward(*leaves, *tensors[6:], B, impl, memory, layers, cast)
        return torch.autograd.grad(y.square().sum() + hn.sum(), leaves)

    expected = gradients()
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone):
        found = gradients()
    assert ran == ["kernel", "kernel, saved", "kernel", "kernel, rebuilt"]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_second_derivative_is_refused(impl, device):
    *tensors, B, impl, memory, layers, cast = arguments(device, impl=impl)
    x = tensors[0].requires_grad_()
    y = torch.ops.tritongru.gru_routed_forward(*tensors, B, impl, memory, layers, cast)[0]
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="to run double backwards, build the layer with impl='torch'"):
        torch.autograd.grad(grad.sum(), x)


@pytest.mark.every(2)
@pytest.mark.parametrize("impl", IMPLS)
def test_one_result_alone_and_an_empty_batch(impl, device):
    for case, which in ((Case(layers=2, bidirectional=True), 0), (Case(), 1), (Case(B=0), 0)):
        torch._dynamo.reset()
        gru, x, hx = build(case, device)
        gru.impl = impl
        compiled = torch.compile(gru, backend="aot_eager", fullgraph=True)
        leaves = [hx.requires_grad_(), *gru.parameters()]
        for found, expected in zip(
            torch.autograd.grad(compiled(x, hx)[which].sum(), leaves),
            torch.autograd.grad(gru(x, hx)[which].sum(), leaves),
            strict=True,
        ):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("which", ["input", "hx"])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_autocast_on_a_cpu_is_torchs(which, kind):
    """Values bit for bit. Gradients of a weight are added up over time in fp32, not rounded at every step."""
    gru = tritongru.GRU(3, 4, 2)
    compiled = torch.compile(gru, backend="aot_eager", fullgraph=True)
    x, hx = torch.randn(5, 2, 3).bfloat16().float(), torch.randn(2, 2, 4).bfloat16().float()
    given = (x.to(kind), None) if which == "input" else (x, hx.to(kind))
    with torch.autocast("cpu", torch.bfloat16):
        theirs = outputs_and_gradients(gru, *given)
        found = outputs_and_gradients(compiled, *given)
    exact = outputs_and_gradients(gru.to_torch(copy=True).double(), *(None if g is None else g.double() for g in given))
    found = {name.removeprefix("_orig_mod."): value for name, value in found.items()}
    assert found.keys() == theirs.keys()
    for name, value in theirs.items():
        assert found[name].dtype == value.dtype, name
        if name in ("output", "h_n"):
            torch.testing.assert_close(found[name], value, rtol=0, atol=0)
        error, allowed = ((v.double() - exact[name]).abs().max() for v in (found[name], value))
        assert error <= 2 * allowed + 8 * torch.finfo(torch.bfloat16).eps * exact[name].abs().max(), name


@pytest.mark.parametrize("impl", IMPLS)
def test_dropout_has_one_mask(impl, device):
    """The same in the backward, which runs the forward again on torch's path, as in the forward."""
    gru = tritongru.GRU(3, 4, 3, dropout=0.5, impl=impl).to(device)
    compiled = torch.compile(gru, backend="aot_eager", fullgraph=True)
    x = torch.randn(5, 2, 3, device=device)
    results = []
    for module in (gru, compiled):
        x.requires_grad_()
        torch.manual_seed(3)
        y, hn = module(x)
        results.append((y, hn, *torch.autograd.grad(y.square().sum() + hn.sum(), [x, *gru.parameters()])))
    assert not torch.equal(results[0][0], gru.eval()(x)[0])
    for found, expected in zip(*results[::-1], strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("impl", IMPLS)
def test_wrong_calls_fail_while_they_are_traced(impl, device):
    gru = tritongru.GRU(3, 4, impl=impl).to(device)
    compiled = torch.compile(gru, backend="aot_eager", fullgraph=True)
    with pytest.raises(Exception, match="Expected 3, got 5"):
        compiled(torch.randn(4, 2, 5, device=device))
    with pytest.raises(Exception, match="Expected hidden size"):
        compiled(torch.randn(4, 2, 3, device=device), torch.zeros(1, 3, 4, device=device))


def operators(model, x):
    """The names of the operators in the graphs that a compiler is given."""
    found = []

    def backend(graph, example):
        found.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    compiled = torch.compile(model, backend=backend, fullgraph=True)
    return compiled(x), found


@needs_loop
@pytest.mark.parametrize("impl", ["auto", "llvm"])
@pytest.mark.parametrize("grad", [False, True])
def test_a_compilers_graph_runs_ours(impl, grad):
    gru, x = tritongru.GRU(3, 4, 2, bidirectional=True, impl=impl), torch.randn(5, 2, 3)
    with torch.set_grad_enabled(grad):
        (output, h_n), found = operators(gru, x)
        assert sum("tritongru.gru_routed_forward" in name for name in found) == 2, found
        assert not any("aten.gru" in name or "torch.gru" in name for name in found)
        for compiled, eager in zip((output, h_n), gru(x), strict=True):
            assert torch.equal(compiled, eager)
    torch._dynamo.reset()
    compiled = torch.compile(gru, backend="aot_eager", fullgraph=True)
    found = outputs_and_gradients(compiled, x, None)
    found = {name.removeprefix("_orig_mod."): value for name, value in found.items()}
    for name, value in outputs_and_gradients(gru.to_torch(), x, None).items():
        assert_same_as_torchs(found[name], value, name)


# cuDNN, of which only the calls can be looked at here


@pytest.fixture
def cudnn(monkeypatch):
    """Stands in for cuDNN's operators: torch's GRU, and a reserve that must come back as it was."""
    reserve = torch.arange(77, dtype=torch.uint8)
    calls = []

    def check(mode, hidden, proj, layers, batch_first, dropout, train, batch_sizes, dropout_state):
        assert (mode, proj, layers, batch_first, dropout, train) == (3, 0, 1, False, 0.0, True)
        assert (len(batch_sizes), dropout_state) == (0, None)

    def flatten(weights, stride, inputs, mode, hidden, proj, layers, batch_first, bidirectional):
        assert len(weights) == stride * (1 + bidirectional)
        flat = torch.cat([w.reshape(-1) for w in weights])
        for w in weights:
            w.set_(flat.untyped_storage(), 0, w.shape)  # as torch's does: the caller's tensors lie elsewhere afterwards
        return flat

    def forward(input, weights, stride, flat, hx, cx, mode, hidden, *rest):
        proj, layers, batch_first, dropout, train, bidirectional, batch_sizes, dropout_state = rest
        check(mode, hidden, proj, layers, batch_first, dropout, train, batch_sizes, dropout_state)
        assert torch.equal(flat, torch.cat([w.reshape(-1) for w in weights]))
        assert hx.is_contiguous()
        assert cx is None
        calls.append("forward")
        y, hn = torch.gru(input, hx, weights, stride == 4, 1, 0.0, False, bidirectional, False)
        return y, hn, input.new_empty(0), reserve.clone(), flat

    def backward(input, weights, stride, flat, hx, cx, output, dy, dhn, dcx, mode, hidden, *rest):
        proj, layers, batch_first, dropout, train, bidirectional, batch_sizes, dropout_state, kept, mask = rest
        check(mode, hidden, proj, layers, batch_first, dropout, train, batch_sizes, dropout_state)
        assert torch.equal(kept, reserve)
        kept.zero_()  # cuDNN writes into it
        assert torch.equal(flat, torch.cat([w.reshape(-1) for w in weights]))
        calls.append("backward")
        leaves = [t.detach().requires_grad_() for t in (input, hx, *weights)]
        with torch.enable_grad(), torch_layer._autograd_looks():
            y, hn = torch.gru(*leaves[:2], leaves[2:], stride == 4, 1, 0.0, False, bidirectional, False)
            torch.testing.assert_close(y, output)
            results, grads = zip(*((r, g) for r, g in ((y, dy), (hn, dhn)) if g is not None), strict=True)
            dx, dhx, *dws = torch.autograd.grad(results, leaves, grads)
        assert dcx is None
        return (dx if mask[0] else None), (dhx if mask[1] else None), None, (dws if mask[3] else [])

    monkeypatch.setattr(torch_layer, "runs_cudnn", lambda x: True)
    monkeypatch.setattr(torch.ops.aten._cudnn_rnn, "default", forward)
    monkeypatch.setattr(torch.ops.aten._cudnn_rnn_backward, "default", backward)
    monkeypatch.setattr(torch.ops.aten._cudnn_rnn_flatten_weight, "default", flatten)
    return calls


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("hx", [False, True])
def test_cudnns_reserve_is_kept(bidirectional, bias, hx, cudnn):
    gru = tritongru.GRU(3, 4, 2, bias, bidirectional=bidirectional, impl="torch")
    before = [p.clone() for p in gru.parameters()]
    compiled = torch.compile(gru, backend="aot_eager", fullgraph=True)
    x, state = torch.randn(5, 2, 3), torch.randn(4 if bidirectional else 2, 2, 4) if hx else None
    expected = outputs_and_gradients(gru, x, state)
    assert cudnn == []
    for _ in range(2):
        assert_same(outputs_and_gradients(compiled, x, state), expected)
    assert cudnn == ["forward", "forward", "backward", "backward"] * 2
    assert all(torch.equal(p, q) for p, q in zip(before, gru.parameters(), strict=True))


def test_a_reserve_serves_two_backwards_and_partial_needs(cudnn):
    *tensors, B, impl, memory, layers, cast = arguments(torch.device("cpu"))
    y, hn, kept = torch.ops.tritongru.gru_routed_forward(*tensors, B, impl, memory, layers, cast)
    dy, dhn = torch.randn_like(y), torch.randn_like(hn)

    def backward(dy, dhn, needs):
        given = (dy, dhn, *tensors, B, impl, cast, y, kept, needs)
        return torch.ops.tritongru.gru_routed_backward(*given)

    every = [True] * 6 + [False]
    everything = backward(dy, dhn, every)
    for again, first in zip(backward(dy, dhn, every), everything, strict=True):
        assert torch.equal(again, first)
    for k in range(6):
        found = backward(dy, dhn, [i == k for i in range(7)])
        assert [grad.numel() > 0 for grad in found] == [i == k for i in range(7)]
        torch.testing.assert_close(found[k], everything[k])
    for given in ((dy, None), (None, dhn)):
        assert all(grad.numel() for grad in backward(*given, every)[:6])
    zeros = torch.ops.tritongru.gru_routed_backward(None, None, *tensors, B, impl, cast, y, kept, every)
    assert all(not grad.any() for grad in zeros)


def test_a_reserve_that_went_elsewhere_is_not_needed(cudnn, ran):
    *tensors, B, impl, memory, layers, cast = arguments(torch.device("cpu"))
    leaves = [t.requires_grad_() for t in tensors[:6]]
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone):
        y = torch.ops.tritongru.gru_routed_forward(*leaves, *tensors[6:], B, impl, memory, layers, cast)[0]
        found = torch.autograd.grad(y.sum(), leaves)
    assert ran == ["torch", "torch, again"]
    assert cudnn == ["forward"]
    theirs = nn.GRU(4, 5)
    assert len(found) == len(list(theirs.parameters())) + 2

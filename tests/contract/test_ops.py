"""The operators as torch sees them: opcheck, torch.compile, what is computed and what is not."""

import copy

import pytest
import torch
from cpu_loop import HAS_LOOP, needs_loop
from layers import Case, build, outputs_and_gradients
from torch.utils.checkpoint import checkpoint

import tritongru


def arguments(device, D=1, B=3, T=4, bias=True, hx=True, packed=False, ragged=False, states=None):
    """Those of ``LayerCall.of``."""
    torch.manual_seed(0)
    I, H = 4, 5
    offsets = torch.tensor([0, 3, 6, 8, 9], device=device) if packed else None
    N = 9 if packed else T * B
    shapes = ((N, I), (D * 3 * H, I), (D, 3 * H, H), (D * 3 * H,), (D, 3 * H), (D, B, H))
    tensors = [torch.randn(shape, device=device) for shape in shapes]
    if not bias:
        tensors[3] = tensors[4] = None
    if not hx:
        tensors[5] = None
    tensors.append(torch.randn(D, states, H, device=device) if states else None)
    lengths = torch.tensor([T, 1, T - 1], device=device) if ragged else None
    resets = torch.rand(T, B, device=device) < 0.4 if states else None
    return (*tensors, offsets, lengths, resets, B)


on_a_cpu = pytest.mark.skipif(not HAS_LOOP or torch.cuda.is_available(), reason="llvm runs on a CPU, with llvmlite")
families = pytest.mark.parametrize("family", ["triton", pytest.param("llvm", marks=on_a_cpu)])
CASES = [{}, {"D": 2, "packed": True}, {"bias": False, "hx": False}]
CASES += [{"D": 2, "ragged": True}, {"D": 2, "ragged": True, "states": 3}, {"states": 1, "hx": False}]
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
ALL, SOME = [True] * 7, [False, True, False, True, False, True, False]


@pytest.mark.parametrize("options", CASES, ids=str)
@pytest.mark.parametrize("save", [True, False])
@families
def test_opcheck_forward(options, save, family, device):
    """What is kept of padding is never read, and may be anything; so it is not compared with what a graph keeps."""
    tests = CHECKS[:-1] if save and options.get("ragged") else CHECKS
    given = *arguments(device, **options), save, family
    torch.library.opcheck(torch.ops.tritongru.gru_forward, given, test_utils=tests)


@pytest.mark.parametrize("options", CASES, ids=str)
@pytest.mark.parametrize("needs", [ALL, SOME], ids=["all", "some"])
@families
def test_opcheck_backward(options, needs, family, device):
    given = arguments(device, **options)
    y, hn, gates = torch.ops.tritongru.gru_forward(*given, True, family)
    args = (torch.randn_like(y), torch.randn_like(hn), *given, y, gates, needs, family)
    torch.library.opcheck(torch.ops.tritongru.gru_backward, args)


def weights_of(layers=1, bias=True):
    """In the order of ``gru``, of I = 3 and H = 4."""
    gru = torch.nn.GRU(3, 4, layers, bias=bias)
    return [weight.detach() for weight in gru.parameters()]


@needs_loop
@pytest.mark.parametrize("bias", [True, False])
def test_opcheck_of_calls_that_want_results_alone(bias):
    x, hx, weights = torch.randn(5, 2, 3), torch.randn(2, 2, 4), weights_of(2, bias)
    torch.library.opcheck(torch.ops.tritongru.gru_infer, (x, hx, weights, 2))
    step = *weights_of(bias=bias), *([] if bias else [None, None])
    torch.library.opcheck(torch.ops.tritongru.gru_cell_infer, (x[0], None, *step))


WRONG = {
    "no layers": (lambda x, w: (x, None, [], 0), "got 3 dimensions and 0 weights for 0 layers"),
    "a weight missing": (lambda x, w: (x, None, w[:3], 1), "got 3 dimensions and 3 weights for 1 layers"),
    "another width": (lambda x, w: (x[..., :2].contiguous(), None, w, 1), "weight 0 should be contiguous"),
    "strides": (lambda x, w: (x.transpose(0, 1), None, w, 1), "x should be contiguous"),
    "a state too few": (lambda x, w: (x, torch.zeros(1, 1, 4), w, 1), r"hx should be .* shape \(1, 2, 4\)"),
    "another dtype": (lambda x, w: (x, torch.zeros(1, 2, 4).double(), w, 1), "hx should be .* torch.float32, got"),
    "16 bit": (lambda x, w: (x.half(), None, w, 1), "the compiled loop cannot run this call"),
    "no steps": (lambda x, w: (x[:0], None, w, 1), "no size should be 0"),
    "a freed weight": (lambda x, w: (x, None, [freed(w[0]), *w[1:]], 1), "its storage, freed or shrunk, holds 0"),
}


def freed(tensor):
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(0)
    return tensor


@needs_loop
@pytest.mark.parametrize("what", WRONG)
def test_calls_that_want_results_alone_look_at_what_they_are_given(what):
    wrong, text = WRONG[what]
    with pytest.raises(RuntimeError, match=text):
        torch.ops.tritongru.gru_infer(*wrong(torch.randn(5, 2, 3), weights_of()))


@pytest.mark.parametrize("batch", [3, 0])
@families
def test_unneeded_gradients_are_not_computed(batch, family, device):
    given = arguments(device, B=batch, states=batch)
    y, hn, gates = torch.ops.tritongru.gru_forward(*given, True, family)
    for k in range(7):
        needs = [i == k for i in range(7)]
        grads = torch.ops.tritongru.gru_backward(
            torch.ones_like(y), torch.ones_like(hn), *given, y, gates, needs, family
        )
        for i, grad in enumerate(grads):
            assert grad.shape == (given[i].shape if i == k and given[i] is not None else (0,))


@pytest.mark.parametrize("leaf", ["input", "hx", "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"])
def test_partial_requires_grad(leaf, device):
    gru, x, hx = build(Case(), device)
    expected = outputs_and_gradients(gru, x, hx)[f"{leaf}.grad"]
    gru.requires_grad_(False)
    tensor = {"input": x, "hx": hx}.get(leaf, getattr(gru, leaf, None))
    tensor.requires_grad_()
    y, hn = gru(x, hx)
    torch.manual_seed(1)
    dy, dhn = (torch.randn(t.shape).to(device, torch.bfloat16).to(t.dtype) for t in (y, hn))
    (found,) = torch.autograd.grad((y, hn), (tensor,), (dy, dhn))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("which", ["output", "h_n"])
@pytest.mark.usefixtures("ieee")
def test_gradient_of_one_result_alone(which, device):
    gru, x, hx = build(Case(bidirectional=True), device)
    theirs = gru.to_torch()
    index = ("output", "h_n").index(which)
    for module_leaf, reference_leaf in zip(
        torch.autograd.grad(gru(x, hx)[index].sum(), list(gru.parameters())),
        torch.autograd.grad(theirs(x, hx)[index].sum(), list(theirs.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(module_leaf, reference_leaf, rtol=1e-5, atol=1e-5)


def test_backward_twice(device):
    gru, x, hx = build(Case(), device)
    loss = gru(x, hx)[0].square().sum()
    first = torch.autograd.grad(loss, list(gru.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(gru.parameters()))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(RuntimeError, match="Trying to backward through the graph a second time"):
        torch.autograd.grad(loss, list(gru.parameters()))


def test_double_backward_is_refused(device):
    gru, x, hx = build(Case(), device)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(gru(x, hx)[0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backwards, build the layer with impl='torch'"):
        torch.autograd.grad(grad.sum(), x)


@pytest.mark.parametrize("what", ["x", "weight"])
def test_a_change_in_place_before_backward_is_refused(what, device):
    gru, x, hx = build(Case(), device)
    loss = gru(x, hx)[0].sum()
    with torch.no_grad():
        (x if what == "x" else gru.weight_hh_l0).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients_nothing_is_saved(context, device, monkeypatch):
    gru, x, hx = build(Case(), device)
    expected = gru(x, hx)[0]
    saved = []
    operator = torch.ops.tritongru.gru_forward
    plain = operator.default
    monkeypatch.setattr(operator, "default", lambda *a: saved.append(a[-2]) or plain(*a))
    with context():
        output, h_n = gru(x, hx)
    assert saved == [False]
    assert not output.requires_grad
    assert not h_n.requires_grad
    torch.testing.assert_close(output, expected, rtol=0, atol=0)


def test_functional_call_and_grad_transform(device):
    gru, x, hx = build(Case(), device)
    parameters = {n: p.detach() for n, p in gru.named_parameters()}

    def loss(parameters):
        return torch.func.functional_call(gru, parameters, (x, hx))[0].sum()

    found = torch.func.grad(loss)(parameters)
    expected = torch.autograd.grad(gru(x, hx)[0].sum(), list(gru.parameters()))
    for a, b in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_fullgraph(dynamic, backend, device):
    torch._dynamo.reset()
    gru, x, hx = build(Case(layers=2, bidirectional=True), device)
    compiled = torch.compile(copy.deepcopy(gru), fullgraph=True, dynamic=dynamic, backend=backend)
    for T, B in ((5, 3), (6, 3), (4, 2)) if dynamic else ((5, 3),):
        x, hx = torch.randn(T, B, 4, device=device), torch.randn(4, B, 5, device=device)
        expected, found = outputs_and_gradients(gru, x, hx), outputs_and_gradients(compiled, x, hx)
        assert len(found) == len(expected) == 20
        found = {name.removeprefix("_orig_mod."): value for name, value in found.items()}
        for name, value in expected.items():
            other = found[name]
            torch.testing.assert_close(other, value, rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")


def test_compiled_dropout_drops(device):
    """Compilers decompose torch.gru into a loop that forgets the dropout between layers; the layer does not."""
    torch._dynamo.reset()
    gru = tritongru.GRU(4, 5, 2, dropout=1.0, impl="torch").to(device)
    x = torch.randn(3, 2, 4, device=device)
    compiled = torch.compile(gru, backend="aot_eager")
    top = torch.nn.GRU(5, 5, device=device)
    top.load_state_dict({n.replace("l1", "l0"): p for n, p in gru.state_dict().items() if "l1" in n})
    expected, _ = top(torch.zeros(3, 2, 5, device=device))
    torch.testing.assert_close(compiled(x)[0], expected)


def test_anomaly_checkpoint_and_hooks(device):
    gru, x, hx = build(Case(), device)
    x.requires_grad_()
    expected = torch.autograd.grad(gru(x, hx)[0].sum(), x)[0]
    found = torch.autograd.grad(checkpoint(gru, x, hx, use_reentrant=False)[0].sum(), x)
    torch.testing.assert_close(found[0], expected, rtol=0, atol=0)
    with torch.autograd.graph.save_on_cpu(), torch.autograd.detect_anomaly(check_nan=True):
        found = torch.autograd.grad(gru(x, hx)[0].sum(), x)
    torch.testing.assert_close(found[0], expected, rtol=0, atol=0)

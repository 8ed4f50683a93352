"""``GRU.step``: what a call with T = 1 computes, into whatever memory, and never by what was found out about others."""

import pytest
import torch
from cpu_loop import needs_loop
from modes import Operators
from processes import python
from tolerance import assert_close_to_float64, assert_same, failure
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.flop_counter import FlopCounterMode

import tritongru
from tritongru.interop import step_ops, stepping

I, H = 3, 5
NAN = float("nan")
LOOP = pytest.param("llvm", marks=needs_loop)
impls = pytest.mark.parametrize("impl", [LOOP, "torch", "auto"])
OPERATORS = torch.ops.tritongru.gru_step.default, torch.ops.tritongru.gru_step_out.default


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(step_ops, "_known", {})


def made(layers=1, B=3, impl="llvm", dtype=torch.float32, bias=True, **options):
    """A layer, inputs of four steps, and a state."""
    torch.manual_seed(0)
    gru = tritongru.GRU(I, H, layers, bias, impl=impl, dtype=dtype, **options)
    return gru, torch.randn(4, B, I).to(dtype), torch.randn(layers, B, H).to(dtype)


def empty(gru, x_t):
    """Tensors for the results of a step, NaN so far."""
    shape = (*x_t.shape[:-1], gru.hidden_size)
    return x_t.new_full(shape, NAN), x_t.new_full((gru.num_layers, *shape), NAN)


def expected(gru, x_t, state=None):
    """By torch.nn.GRU, with no code of ours."""
    theirs = gru.to_torch(copy=True).eval()
    theirs.batch_first = False
    with torch.no_grad():
        y, hn = theirs(x_t[None], state)
    return y[0], hn


def check(found, gru, x_t, state=None):
    for one, other in zip(found, expected(gru, x_t, state), strict=True):
        assert_same(one, other)


def stepped(gru, xs, state=None, **options):
    """The outputs of steps, and the last state."""
    ys = []
    for x_t in xs:
        y, state = gru.step(x_t, state, **options)
        ys.append(y)
    return torch.stack(ys), state


# What it computes


@needs_loop
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("B", [1, 2, 3, 20])
@pytest.mark.parametrize("layers", [1, 2, 3])
@torch.no_grad()
def test_the_loop_makes_the_same_bits_as_a_call(layers, B, bias, dtype):
    """Of one step, by both of its ways, and of a sequence; the second step is a remembered one."""
    gru, xs, state = made(layers, B, "llvm", dtype, bias)
    for begin in (state, None):
        whole = gru(xs, begin)
        if dtype != torch.bfloat16:  # a sequence carries its state in fp32
            for found, value in zip(stepped(gru, xs, begin), whole, strict=True):
                assert torch.equal(found, value)
        one = gru(xs[:1], begin)
        found = gru.step(xs[0], begin)
        out = gru.step(xs[0], begin, out=empty(gru, xs[0]))
        for value, *results in zip((one[0][0], one[1]), found, out, strict=True):
            assert all(torch.equal(result, value) for result in results)
    check(gru.step(xs[0], state), gru, xs[0], state)
    assert bool(step_ops._known) == (dtype != torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layers, B", [(1, 1), (2, 3), (3, 20)])
@impls
def test_steps_and_their_gradients_are_those_of_the_sequence(impl, layers, B, dtype):
    """Against torch.nn.GRU in float64; a step in the middle starts anew, to no gradient's harm."""
    gru, xs, state = made(layers, B, impl, dtype)
    theirs, exact = gru.to_torch(copy=True), gru.to_torch(copy=True).double()
    dy, dhn = torch.randn(4, B, H), torch.randn(layers, B, H)

    def results(run, module, dtype):
        leaves = [v.detach().to(dtype).requires_grad_() for v in (xs, state)]
        y, hn = run(*leaves)
        given = [v.to(torch.bfloat16).to(dtype) for v in (dy, dhn)]
        return [y, hn, *torch.autograd.grad((y, hn), [*leaves, *module.parameters()], given)]

    found = results(lambda x, h: stepped(gru, x, h), gru, dtype)
    same, truth = results(theirs, theirs, dtype), results(exact, exact, torch.float64)
    for k, values in enumerate(zip(found, truth, same, strict=True)):
        assert_close_to_float64(*values, f"result {k}")
    with torch.no_grad():
        for k, values in enumerate(zip(stepped(gru, xs, state), truth[:2], same[:2], strict=True)):
            assert_close_to_float64(*values, f"result {k} without gradients")


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("grad", [False, True])
@impls
def test_batch_first_changes_nothing_and_one_sequence_needs_no_batch(impl, grad, batch_first):
    gru, xs, state = made(2, 3, impl, batch_first=batch_first)
    with torch.set_grad_enabled(grad):
        check(gru.step(xs[0], state), gru, xs[0], state)
        y, hn = gru.step(xs[0, 1], state[:, 1])
        alone, new = gru.step(xs[0, 1:2], state[:, 1:2])
        assert torch.equal(y, alone[0])
        assert torch.equal(hn, new[:, 0])
        y, hn = gru.step(xs[0, 1])
        assert (y.shape, hn.shape) == ((H,), (2, H))
    with torch.no_grad():
        out = empty(gru, xs[0, 1])
        found = gru.step(xs[0, 1], state[:, 1], out=out)
        assert all(a is b for a, b in zip(found, out, strict=True))
        for one, other in zip(found, gru.step(xs[0, 1], state[:, 1]), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("B", [1, 2, 5])
@pytest.mark.parametrize("into", [False, True], ids=["", "out"])
@pytest.mark.parametrize("grad", [False, True])
@impls
def test_a_reset_state_counts_as_zero_whatever_it_holds(impl, grad, into, B):
    gru, xs, state = made(2, B, impl)
    reset = torch.arange(B) % 2 == 0
    clean = torch.where(reset[:, None], 0.0, state)
    state[:, reset] = NAN
    kept = state.clone()
    if grad:
        gru.requires_grad_(not into)
        state.requires_grad_(not into)
    with torch.set_grad_enabled(grad):
        for _ in range(2):
            found = gru.step(xs[0], state, reset=reset, **({"out": empty(gru, xs[0])} if into else {}))
            check(found, gru, xs[0], clean)
    assert torch.equal(state.detach().nan_to_num(9.0), kept.nan_to_num(9.0))
    if grad and not into:
        (gradient,) = torch.autograd.grad(found[0].sum(), state)
        assert torch.equal(gradient[:, reset], torch.zeros_like(gradient[:, reset]))
        assert gradient[:, ~reset].abs().sum() > 0 or bool(reset.all())


@impls
def test_a_reset_of_one_sequence_has_no_dimension(impl):
    gru, xs, state = made(2, 1, impl)
    with torch.no_grad():
        for value in (True, False):
            y, hn = gru.step(xs[0, 0], state[:, 0], reset=torch.tensor(value))
            check((y[None], hn[:, None]), gru, xs[0], torch.zeros_like(state) if value else state)


@needs_loop
@torch.no_grad()
def test_resets_in_inference_mode_leave_later_ones_as_they_were():
    gru, xs, state = made(2)
    reset = torch.tensor([True, False, True])
    with torch.inference_mode():
        first = gru.step(xs[0], state, reset=reset)
    weights = [*gru.parameters()]
    for one, other in zip(torch.ops.tritongru.gru_step(xs[0], state, reset, weights, 2), first, strict=True):
        assert torch.equal(one, other)


# Dropout, directions


def test_dropout_between_layers_is_drawn_although_a_step_without_it_is_known():
    gru, xs, state = made(2, dropout=0.5)
    with torch.no_grad():
        for _ in range(2):
            check(gru.eval().step(xs[0], state), gru, xs[0], state)
        gru.train()
        drawn = [gru.step(xs[0], state)[0] for _ in range(6)]
        assert any(not torch.equal(drawn[0], other) for other in drawn[1:])
        out = [gru.step(xs[0], state, out=empty(gru, xs[0]))[0] for _ in range(6)]
        assert any(not torch.equal(out[0], other) for other in out[1:])
        torch.manual_seed(5)
        found = gru.step(xs[0], state)
        torch.manual_seed(5)
        y, hn = gru(xs[:1], state)
        assert torch.equal(found[0], y[0])
        assert torch.equal(found[1], hn)
        check(gru.eval().step(xs[0], state), gru, xs[0], state)


@pytest.mark.parametrize("grad", [False, True])
@impls
def test_two_directions_have_no_step(impl, grad):
    gru, xs, _ = made(impl=impl, bidirectional=True)
    text = (
        "step needs a GRU of one direction, got bidirectional=True, whose other direction begins at the last time "
        "step; call the layer with whole sequences"
    )
    with torch.set_grad_enabled(grad), pytest.raises(RuntimeError) as found:
        gru.step(xs[0])
    assert str(found.value) == text


# Where results go


@pytest.mark.parametrize("dense", [True, False], ids=["dense", "strided"])
@pytest.mark.parametrize("B", [1, 3])
@impls
@torch.no_grad()
def test_out_is_returned_and_nothing_else_is_written(impl, B, dense):
    gru, xs, state = made(2, B, impl)
    width = H if dense else 2 * H
    around = xs.new_full((4 * B, width), NAN), xs.new_full((6, B, width), NAN)
    out = around[0][B : 2 * B, :: width // H], around[1][2:4, :, :: width // H]
    before = [v.clone() for v in (xs, state, *gru.parameters())]
    for _ in range(3):
        found = gru.step(xs[0], state, out=out)
        assert all(a is b for a, b in zip(found, out, strict=True))
        check(found, gru, xs[0], state)
        for whole, part in zip(around, out, strict=True):
            assert whole.isnan().sum() == whole.numel() - part.numel()
            part.fill_(NAN)
    assert all(torch.equal(a, b) for a, b in zip(before, (xs, state, *gru.parameters()), strict=True))


@pytest.mark.parametrize("known", [False, True])
@impls
@torch.no_grad()
def test_a_wrong_out_gets_a_sentence_and_is_not_written(impl, known):
    gru, xs, state = made(2, impl=impl)
    y, hn = empty(gru, xs[0])
    if known:
        gru.step(xs[0], state, out=empty(gru, xs[0]))
    shape, like = "should have the shape", "should be torch.float32 on cpu, like x_t, got"
    pair, apart = "out should be a tuple of two tensors, (y_t, state)", "in out should not share memory with"
    swap = "give another tensor, and swap the two states after each step"
    one = xs.new_full((1, 1, 1), NAN)
    wrong = {
        "one tensor": (y, TypeError, f"{pair}, got Tensor"),
        "one of two": ((y,), TypeError, f"{pair}, got Tensor"),
        "three": ((y, hn, y.clone()), TypeError, f"{pair}, got Tensor, Tensor, Tensor"),
        "none": ((y, None), TypeError, f"{pair}, got Tensor, NoneType"),
        "a list": ([y, hn], TypeError, f"{pair}, got list"),
        "a number": (3, TypeError, f"{pair}, got int"),
        "rows": ((y[:2], hn), RuntimeError, f"y_t in out {shape} (3, 5), got (2, 5)"),
        "layers": ((y, hn[:1]), RuntimeError, f"state in out {shape} (2, 3, 5), got (1, 3, 5)"),
        "dtype": ((y.double(), hn), RuntimeError, f"y_t in out {like} torch.float64 on cpu"),
        "dtype of the state": ((y, hn.double()), RuntimeError, f"state in out {like} torch.float64 on cpu"),
        "device": ((y, hn.to("meta")), RuntimeError, f"state in out {like} torch.float32 on meta"),
        "the state itself": ((y, state), ValueError, f"state {apart} state; {swap}"),
        "of the state": ((state[0], hn), ValueError, f"y_t {apart} state; {swap}"),
        "of each other": ((hn[0], hn), ValueError, "y_t and state in out should not share memory; give two tensors"),
        "one value": (
            *((y, one.expand(2, 3, 5)), RuntimeError),
            "state in out has elements that share memory; give a tensor that is not expanded",
        ),
    }
    before = state.clone()
    for what, (out, error, text) in wrong.items():
        with pytest.raises(error) as found:
            gru.step(xs[0], state, out=out)
        assert str(found.value) == text, what
        assert y.isnan().all(), what
        assert hn.isnan().all(), what
        assert torch.equal(state, before), what


@impls
def test_tensors_of_inference_are_written_within_it_alone(impl):
    gru, xs, state = made(impl=impl)
    with torch.inference_mode():
        y, hn = empty(gru, xs[0])
        check(gru.step(xs[0], state, out=(y, hn)), gru, xs[0], state)
    with torch.no_grad():
        for out in ((y, hn), (torch.empty(3, H), hn), (y, torch.empty(1, 3, H))):
            with pytest.raises(RuntimeError, match=r"^Inplace update to inference tensor outside InferenceMode is not"):
                gru.step(xs[0], state, out=out)


@pytest.mark.parametrize("impl", [LOOP, "auto"])
@pytest.mark.parametrize("with_reset", [False, True])
@torch.no_grad()
def test_a_step_of_a_longer_tensor_takes_the_shortest_way(with_reset, impl, monkeypatch):
    """As in the loop of a rollout, in which x_t begins in the middle of a storage."""
    gru, xs, state = made(2, impl=impl)
    resets = torch.tensor([[False, True, False]] * 4)
    if impl == "auto" and gru.step(xs[0], state) and not stepping.takes("auto", gru.weight_hh_l0, xs.dtype, 1, 3):
        pytest.skip("torch's GRU is faster here")
    for t in (3, 1, 2, 0):
        begin = torch.where(resets[t, :, None], 0.0, state) if with_reset else state
        wanted = expected(gru, xs[t], begin)
        with monkeypatch.context() as patched:
            patched.setattr(stepping, "_batched", None)
            for into in (False, True):
                more = {"reset": resets[t] if with_reset else None, "out": empty(gru, xs[t]) if into else None}
                for one, other in zip(gru.step(xs[t], state, **more), wanted, strict=True):
                    assert_same(one, other)


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"])
@pytest.mark.parametrize("B", [1, 3])
@impls
def test_a_weight_that_is_none_is_named(impl, B, name):
    gru, xs, state = made(B=B, impl=impl)
    setattr(gru, name, None)
    for grad in (False, True):
        for out in (None, empty(gru, xs[0])):
            with torch.set_grad_enabled(grad), pytest.raises(TypeError) as found:
                gru.step(xs[0], state, out=out)
            assert str(found.value) == f"{name} is None; assign a torch.nn.Parameter to it"


@impls
@torch.no_grad()
def test_strided_tensors_may_lie_between_each_other(impl):
    """Outputs side by side in one tensor, each the next input; states that take turns in another."""
    torch.manual_seed(0)
    gru, h = tritongru.GRU(5, 5, 2, impl=impl), torch.randn(2, 3, 5)
    ys, states = torch.randn(3, 4, 5), torch.stack((h, torch.full_like(h, NAN)), 2)
    for t in range(3):
        x, wanted = ys[:, t].clone(), expected(gru, ys[:, t], states[:, :, t % 2])
        gru.step(ys[:, t], states[:, :, t % 2], out=(ys[:, t + 1], states[:, :, 1 - t % 2]))
        assert torch.equal(ys[:, t], x)
        for one, other in zip((ys[:, t + 1], states[:, :, 1 - t % 2]), wanted, strict=True):
            assert_same(one, other)


@impls
@torch.no_grad()
def test_nested_tensors_are_refused(impl):
    """Also where a step like it is known."""
    gru, xs, state = made(2, 2, impl=impl)
    nested, out = torch.nested.nested_tensor([*xs[0]]), empty(gru, xs[0])
    odd = torch.nested.nested_tensor([*state])
    gru.step(xs[0], state)
    gru.step(xs[0], state, out=out)
    for given in ((nested, state, None), (xs[0], odd, None), (xs[0], state, (nested, odd))):
        assert failure(gru.step, *given[:2], out=given[2]) is not None


@impls
def test_an_out_that_needs_a_gradient_is_refused(impl):
    gru, xs, state = made(impl=impl)
    gru.requires_grad_(False)
    y, hn = empty(gru, xs[0])
    for out in ((y, hn.clone().requires_grad_()), (y, hn * torch.ones(1, requires_grad=True))):
        with pytest.raises(RuntimeError, match=r"out=\.\.\. arguments don't support automatic differentiation"):
            gru.step(xs[0], state, out=out)
    assert y.isnan().all()


@pytest.mark.parametrize("into", [False, True])
@impls
@torch.no_grad()
def test_a_storage_that_ends_within_a_view_is_refused(impl, into):
    """It has as many bytes as x_t, but x_t begins in its middle."""
    gru, xs, state = made(impl=impl)
    x = xs[1]
    xs.untyped_storage().resize_(x.nbytes)
    out = empty(gru, state[0, :, :I]) if into else None
    with pytest.raises(RuntimeError, match="storage"):
        gru.step(x, state, out=out)
    assert not into or out[0].isnan().all()


@needs_loop
@torch.no_grad()
def test_operators_refuse_what_is_none_or_of_another_shape():
    gru, xs, state = made()
    weights = [w.detach() for w in gru.parameters()]
    for k in range(4):
        given = [*weights[:k], None, *weights[k + 1 :]]
        with pytest.raises((TypeError, RuntimeError)):
            step_ops.gru_step(xs[1], state, None, given, 1)
    found = torch.ops.tritongru.gru_step(xs[1], state, None, weights, 1)
    check(found, gru, xs[1], state)
    for x, says in ((xs[1].double(), "torch.float64"), (xs[1].t().contiguous().t(), "x should be contiguous")):
        with pytest.raises(RuntimeError, match=says):
            torch.ops.tritongru.gru_step(x, state, None, weights, 1)


@pytest.mark.parametrize("with_reset", [False, True])
@impls
@torch.no_grad()
def test_a_compiled_step_writes_into_out(impl, with_reset):
    gru, xs, state = made(2, impl=impl)
    reset = torch.tensor([False, True, False]) if with_reset else None
    begin = state if reset is None else torch.where(reset[:, None], 0.0, state)
    compiled = torch.compile(
        lambda x, h, out: gru.step(x, h, reset=reset, out=out), backend="aot_eager", fullgraph=True
    )
    for x in xs:
        out = empty(gru, x)
        compiled(x, state, out)
        check(out, gru, x, begin)


class Streamed(nn.Module):
    def __init__(self, gru):
        super().__init__()
        self.gru = gru

    def forward(self, x, state, reset):
        return self.gru.step(x, state, reset=reset)


@impls
def test_fx_records_a_step_as_a_method_of_the_layer(impl):
    gru, xs, state = made(2, impl=impl)
    traced = torch.fx.symbolic_trace(Streamed(gru))
    (node,) = [node for node in traced.graph.nodes if node.op == "call_method"]
    assert (node.target, set(node.kwargs)) == ("step", {"reset"})
    reset = torch.tensor([False, True, False])
    for one, other in zip(traced(xs[0], state, reset), gru.step(xs[0], state, reset=reset), strict=True):
        assert torch.equal(one, other)


def overlaps():
    """Memory of x, the state, y and the new state, by name; x and the states are as wide."""

    def of(**which):
        flat = torch.empty(200)
        parts = {"x": flat[:15].view(3, 5), "state": flat[20:50].view(2, 3, 5)}
        parts |= {"y": flat[150:165].view(3, 5), "hn": flat[80:110].view(2, 3, 5)}
        for name, (start, wide) in which.items():
            shape = parts[name].shape
            last = 10 if wide else 5
            stride = (*((3 * last,) if len(shape) == 3 else ()), last, 2 if wide else 1)
            parts[name] = flat.as_strided(shape, stride, start)
        return parts

    return {
        "y is x": of(y=(0, False)),
        "y begins in x": of(y=(14, False)),
        "y is of the state": of(y=(35, False)),
        "y is of the new state": of(y=(95, False)),
        "the new state is the state": of(hn=(20, False)),
        "the new state ends in the state": of(hn=(49, False)),
        "the new state is of x": of(hn=(10, False)),
        "y is strided over the new state": of(y=(80, True)),
        "y is strided over the state": of(y=(20, True)),
        "the new state is strided over the state": of(hn=(20, True)),
        "the new state is strided over x": of(hn=(0, True)),
        "the new state is strided over y": of(hn=(120, True)),
    }


@pytest.mark.parametrize("with_reset", [False, True], ids=["", "reset"])
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("what", overlaps())
@impls
@torch.no_grad()
def test_memory_that_is_shared_is_refused_or_does_no_harm(impl, what, known, with_reset):
    torch.manual_seed(0)
    gru = tritongru.GRU(5, 5, 2, impl=impl)
    parts = overlaps()[what]
    for name in ("x", "state"):
        parts[name].copy_(torch.randn(parts[name].shape))
    x, state = parts["x"].clone(), parts["state"].clone()
    reset = torch.tensor([False, True, False]) if with_reset else None
    begin = state if reset is None else torch.where(reset[:, None], 0.0, state)
    if known:
        gru.step(x, state, out=(torch.empty(3, 5), torch.empty(2, 3, 5)))
    refused = failure(gru.step, parts["x"], parts["state"], reset=reset, out=(parts["y"], parts["hn"]))
    if refused is None:
        check((parts["y"], parts["hn"]), gru, x, begin)
    else:
        assert "share memory" in refused[1]
        assert torch.equal(parts["x"], x)
        assert torch.equal(parts["state"], state)


@pytest.mark.parametrize("leaf", ["x", "state", "weight"])
@impls
def test_out_and_gradients_exclude_each_other_as_in_torch(impl, leaf):
    gru, xs, state = made(impl=impl)
    gru.requires_grad_(leaf == "weight")
    x = xs[0].requires_grad_(leaf == "x")
    state.requires_grad_(leaf == "state")
    out = empty(gru, x.detach())
    with pytest.raises(RuntimeError) as theirs:
        torch.add(x if leaf == "x" else torch.ones(3, I, requires_grad=True), 1, out=torch.empty(3, I))
    with pytest.raises(RuntimeError) as ours:
        gru.step(x, state, out=out)
    assert str(theirs.value).removeprefix("add") == str(ours.value).removeprefix("step")
    assert out[0].isnan().all()
    with torch.no_grad():
        check(gru.step(x, state, out=out), gru, x, state)


@pytest.mark.parametrize("known", [False, True])
@impls
def test_a_gradient_that_needs_what_out_overwrote_is_refused(impl, known):
    """As by ``torch.add(out=)``: torch counts the writes to a tensor."""
    gru, xs, state = made(impl=impl)
    y, hn = empty(gru, xs[0])
    if known:
        with torch.no_grad():
            gru.step(xs[0], state, out=(y, hn))
    w = torch.ones(3, H, requires_grad=True)
    z = (y * w).sum() + (hn[0] * w).sum()
    with torch.no_grad():
        gru.step(xs[0], state, out=(y, hn))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.backward()


@needs_loop
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("B", [1, 3])
@torch.no_grad()
def test_with_out_nothing_is_allocated(B, known, monkeypatch):
    """By torch's own record of memory, which a profiler keeps of the operator, and, of the shorter ways that a step
    takes without a profiler, by what is called."""
    gru, xs, state = made(2, B)
    out = empty(gru, xs[0])
    reset = None if known else torch.zeros(B, dtype=torch.bool)
    for _ in range(3):
        gru.step(xs[0], state, reset=reset, out=out)
    with torch.profiler.profile(profile_memory=True) as profile:
        gru.step(xs[0], state, reset=reset, out=out)
    assert any(event.key == "tritongru::gru_step_out" for event in profile.key_averages())
    allocated = [event.name for event in profile.events() if event.name == "[memory]"]
    allocated += [e.name for e in profile.events() if "empty" in e.name or getattr(e, "cpu_memory_usage", 0) > 0]
    assert not allocated
    made_here = []
    for room, name in ((torch.Tensor, "new_empty"), (torch, "empty_like"), (torch, "empty"), (torch.Tensor, "clone")):
        own = getattr(room, name)
        monkeypatch.setattr(room, name, lambda *a, own=own, name=name, **k: made_here.append(name) or own(*a, **k))
    gru.step(xs[0], state, reset=reset, out=out)
    assert not made_here
    gru.step(xs[0], state, reset=reset)
    assert made_here, "what is patched is what allocates"


# Operators


@pytest.mark.parametrize("hx", [True, False])
@pytest.mark.parametrize("with_reset", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@needs_loop
@torch.no_grad()
def test_opcheck(bias, with_reset, hx):
    gru, xs, state = made(2, bias=bias)
    reset = torch.tensor([True, False, True]) if with_reset else None
    given = xs[0], state if hx else None, reset, [w.detach() for w in gru.parameters()], 2
    torch.library.opcheck(torch.ops.tritongru.gru_step, given)
    torch.library.opcheck(torch.ops.tritongru.gru_step_out, (*given, *empty(gru, xs[0])))


@needs_loop
@torch.no_grad()
def test_what_looks_at_operators_sees_one():
    gru, xs, state = made(2)
    for _ in range(2):
        with Operators() as found_by:
            found = gru.step(xs[0], state)
        assert OPERATORS[0] in found_by.seen
        check(found, gru, xs[0], state)
        with Operators() as found_by:
            gru.step(xs[0], state, out=empty(gru, xs[0]))
        assert OPERATORS[1] in found_by.seen
        gru.step(xs[0], state)
        gru.step(xs[0], state, out=empty(gru, xs[0]))  # both are known now
    with FlopCounterMode(display=False) as counter:
        gru.step(xs[0], state)
    assert counter.get_flop_counts()["Global"].keys() == {torch.ops.tritongru.gru_step}
    assert counter.get_total_flops() == 2 * 3 * 3 * H * (I + H + 2 * H)


@pytest.mark.parametrize("known", [False, True])
@torch.no_grad()
def test_fake_tensors_have_the_shapes_of_results(known):
    from torch._subclasses import FakeTensorMode

    gru, xs, state = made(2)
    if known:
        gru.step(xs[0], state)
    with FakeTensorMode(allow_non_fake_inputs=True):
        y, hn = gru.step(torch.empty(3, I), torch.empty(2, 3, H))
        assert type(y).__name__ == type(hn).__name__ == "FakeTensor"
        real, _ = gru.step(xs[0], state)
        assert type(real).__name__ == "FakeTensor"
    assert (y.shape, hn.shape) == ((3, H), (2, 3, H))


@pytest.mark.parametrize("known", [False, True])
@impls
def test_a_functional_transform_is_as_of_a_call(impl, known):
    """With its results, or refused in its words: torch has no rule for vmap of a GRU."""
    gru, xs, state = made(impl=impl)
    if known:
        with torch.no_grad():
            gru.step(xs[0], state)
    for transform, x in ((torch.func.grad, xs[0]), (torch.func.vmap, xs)):
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                step = transform(lambda x: gru.step(x, state)[0].sum())
                call = transform(lambda x: gru(x[None], state)[0].sum())
                refused = failure(call, x)
                assert failure(step, x) == refused
                if refused is None:
                    torch.testing.assert_close(step(x), call(x))


class Streaming(nn.Module):
    def __init__(self, gru):
        super().__init__()
        self.gru = gru

    def forward(self, x, state, reset=None):
        return self.gru.step(x, state, reset=reset)


@pytest.mark.parametrize("with_reset", [False, True], ids=["", "reset"])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("impl", [LOOP, "torch"])
def test_a_compiled_step_is_one_graph(impl, grad, with_reset):
    torch._dynamo.reset()
    gru, xs, state = made(2, impl=impl)
    reset = torch.tensor([True, False, False]) if with_reset else None
    model = torch.compile(Streaming(gru), fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(grad):
        found, eager = model(xs[0], state, reset), gru.step(xs[0], state, reset=reset)
        for one, other in zip(found, eager, strict=True):
            assert one.requires_grad == other.requires_grad == grad
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        if grad:
            gradients = (torch.autograd.grad(v[0].sum(), gru.parameters()) for v in (found, eager))
            for one, other in zip(*gradients, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    torch._dynamo.reset()


# A step like one before: whatever has changed since, the result is that of now, or a sentence


def other_shape(gru):
    gru.weight_hh_l0.data = torch.zeros(3 * H, H + 1)


def other_dtype(gru):
    gru.weight_hh_l1.data = gru.weight_hh_l1.data.double()


def transposed(gru):
    gru.weight_hh_l0.data = torch.randn(H, 3 * H).t()


def other_values(gru):
    gru.weight_ih_l1.data = torch.randn(3 * H, H)


def in_place(gru):
    gru.bias_hh_l1.add_(1)


def swapped(gru):
    gru.weight_hh_l1 = nn.Parameter(torch.randn(3 * H, H))


def first_swapped(gru):
    gru.weight_ih_l0 = nn.Parameter(torch.randn(3 * H, I))


def normed(gru):
    parametrizations.weight_norm(gru, "weight_hh_l0")
    gru.parametrizations.weight_hh_l0.original0.mul_(2)


def behind_others(gru):
    gru.weight_hh_l0.data = torch.randn(7 + 3 * H * H)[7:].view(3 * H, H)


def loaded(gru):
    gru.load_state_dict({name: torch.randn_like(value) for name, value in gru.state_dict().items()}, assign=True)


def negated(gru):
    gru.weight_hh_l0.data = torch._neg_view(torch.randn(3 * H, H))


CHANGES = {f.__name__: f for f in (transposed, other_values, in_place, swapped, first_swapped, behind_others, loaded)}
CHANGES |= {"normed": normed, "negated": negated}


@pytest.fixture(params=["guards", "no guards"])
def guards(request, monkeypatch):
    if request.param == "no guards":
        monkeypatch.setattr(step_ops, "_guards_of", lambda tensors: None)
    return request.param == "guards"


@pytest.mark.parametrize("into", [False, True], ids=["", "out"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@needs_loop
@torch.no_grad()
def test_weights_count_as_they_are_now(change, into, guards):
    gru, xs, state = made(2)
    given = {"out": empty(gru, xs[0])} if into else {}
    before = gru.step(xs[0], state, **given)[0].clone()
    gru.step(xs[0], state, **given)
    assert bool(step_ops._known) == guards
    change(gru)
    y, hn = gru(xs[:1], state)
    for _ in range(3):
        found = gru.step(xs[0], state, **given)
        assert not torch.equal(found[0], before)
        assert_same(found[0], y[0])
        assert_same(found[1], hn)


@pytest.mark.parametrize("change", [other_shape, other_dtype])
@impls
@torch.no_grad()
def test_a_weight_that_fits_no_more_gets_the_sentence_of_a_call(change, impl, guards):
    gru, xs, state = made(2, impl=impl)
    for _ in range(2):
        gru.step(xs[0], state)
    change(gru)
    with pytest.raises((RuntimeError, ValueError)) as expected:
        gru(xs[:1], state)
    with pytest.raises((RuntimeError, ValueError)) as found:
        gru.step(xs[0], state)
    assert str(found.value) == str(expected.value)


@needs_loop
@torch.no_grad()
def test_layers_that_share_their_first_weight_are_told_apart():
    gru, xs, state = made(2)
    others = [tritongru.GRU(I, H, 2, bias, impl="llvm") for bias in (False, True)]
    for other in others:
        other.weight_ih_l0 = gru.weight_ih_l0
    for _ in range(3):
        for one in (gru, *others):
            check(one.step(xs[0], state), one, xs[0], state)


@needs_loop
@torch.no_grad()
def test_other_sizes_dtypes_and_threads_after_a_known_step():
    gru, xs, state = made(2)
    check(gru.step(xs[0], state), gru, xs[0], state)
    for B in (1, 3, 40, 3):
        x, h = torch.randn(B, I), torch.randn(2, B, H)
        for _ in range(2):
            check(gru.step(x, h), gru, x, h)
            check(gru.step(x.t().contiguous().t(), h), gru, x, h)
            check(gru.step(x, h.transpose(0, 1).contiguous().transpose(0, 1)), gru, x, h)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        check(gru.step(x, h), gru, x, h)
    finally:
        torch.set_num_threads(before)
    gru.double()
    check(gru.step(x.double(), h.double()), gru, x.double(), h.double())
    assert len(step_ops._known) == 1


@needs_loop
@torch.no_grad()
def test_so_many_steps_are_remembered_and_no_more(monkeypatch):
    monkeypatch.setattr(step_ops, "MOST_KNOWN", 3)
    grus = [made(1)[0] for _ in range(7)]
    _, xs, state = made(1)
    for gru in grus:
        check(gru.step(xs[0], state), gru, xs[0], state)
        assert 1 <= len(step_ops._known) <= 3


@needs_loop
@pytest.mark.parametrize("known", [False, True])
@torch.no_grad()
def test_tensors_with_the_negative_bit_are_read_and_written_as_torch_does(known):
    """As imaginary parts of conjugates have it."""
    gru, xs, state = made(2)
    if known:
        gru.step(xs[0], state)
        gru.step(xs[0], state, out=empty(gru, xs[0]))
    check(gru.step(torch._neg_view(-xs[0]), state), gru, xs[0], state)
    check(gru.step(xs[0], torch._neg_view(-state)), gru, xs[0], state)
    y, hn = (torch._neg_view(v) for v in empty(gru, xs[0]))
    check(gru.step(xs[0], state, out=(y, hn)), gru, xs[0], state)


FATAL = """
import sys, torch, tritongru
torch.set_num_threads(1)


def freed(tensor, size=0):
    tensor.untyped_storage().resize_(size)


def steps(what, known):
    torch.manual_seed(0)
    gru, out = tritongru.GRU(3, 5, 2, impl="llvm"), (torch.empty(2, 5), torch.empty(2, 2, 5))
    given = {"x_t": torch.randn(2, 3), "state": torch.randn(2, 2, 5)}
    if known:
        for _ in range(2):
            gru.step(**given)
            gru.step(**given, out=out)
    if what == "weight":
        freed(gru.weight_hh_l1)
    elif what == "shrunk weight":
        freed(gru.weight_hh_l1, 64)
    elif what == "bias":
        freed(gru.bias_ih_l0)
    elif what in given:
        freed(given[what])
    elif what == "shrunk state":
        freed(given["state"], 8)
    elif what == "out":
        freed(out[1])
    elif what == "meta weights":
        gru = tritongru.GRU(3, 5, 2, impl="llvm", device="meta")
    elif what == "a meta weight":
        gru.weight_hh_l1 = torch.nn.Parameter(gru.weight_hh_l1.to("meta"))
    elif what == "meta state":
        given["state"] = given["state"].to("meta")
    for options in ({"out": out},) if what == "out" else ({}, {"out": out}):
        print(what, known, end=": ", flush=True)
        try:
            gru.step(**given, **options)
            print("accepted")
        except (RuntimeError, ValueError, NotImplementedError) as error:
            print("refused,", str(error).splitlines()[0])


with torch.no_grad():
    for what in sys.argv[1:]:
        for known in (True, False):
            steps(what, known)
"""


NOT_THERE = ["weight", "shrunk weight", "bias", "x_t", "state", "shrunk state"]
NOT_THERE += ["out", "meta weights", "a meta weight", "meta state"]


@needs_loop
def test_memory_that_is_not_there_is_refused():
    """In a process of its own, which may die of it; its last line then says of what."""
    done = python("-c", FATAL, *NOT_THERE)
    assert done.returncode == 0, f"{done.returncode}: {done.stdout} {done.stderr[-500:]}"
    lines = done.stdout.splitlines()
    assert len(lines) == 4 * len(NOT_THERE) - 2
    assert all(": refused, " in line for line in lines), lines


FAKE = """
import torch, tritongru
from torch._subclasses import FakeTensorMode

gru, x, state = tritongru.GRU(3, 5, 2, impl="llvm"), torch.randn(3, 3), torch.randn(2, 3, 5)
with torch.no_grad():
    y, hn = gru(x[None], state)
    with FakeTensorMode(allow_non_fake_inputs=True):
        gru.step(x, state)
    found = gru.step(x, state)
assert [type(v) for v in found] == [torch.Tensor] * 2
assert torch.equal(found[0], y[0]) and torch.equal(found[1], hn)
"""


@needs_loop
def test_a_step_within_a_fake_mode_leaves_later_ones_real():
    """In a process of its own, which may die of it."""
    done = python("-c", FAKE)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-500:]}"


# On a GPU, which is not here


class OnGpu(torch.Tensor):
    """A tensor that says that it is on a GPU."""

    @staticmethod
    def of(value):
        return value.as_subclass(OnGpu)

    is_cuda = True
    is_cpu = False


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_on_a_gpu_a_step_is_one_operator(bias, monkeypatch):
    gru, xs, state = made(2, impl="auto", bias=bias)
    monkeypatch.setattr(stepping, "route_of", lambda *given: "triton")
    calls = []

    def run(x, hx, reset, weights, layers):
        calls.append((x, hx, reset, weights, layers))
        return tuple(v.as_subclass(torch.Tensor) for v in step_ops.gru_step(*plain(x, hx, reset), weights, layers))

    def plain(*values):
        return [None if v is None else v.as_subclass(torch.Tensor) for v in values]

    monkeypatch.setattr(stepping, "run_step", run)
    x, h = OnGpu.of(xs[0]), OnGpu.of(state)
    check(gru.step(x, h), gru, xs[0], state)
    reset = torch.tensor([True, False, True])
    monkeypatch.setattr(stepping, "_check_reset", lambda *given: None)
    check(gru.step(x, h, reset=reset), gru, xs[0], torch.where(reset[:, None], 0.0, state))
    for call, given in zip(calls, (None, reset), strict=True):
        assert call[0] is x
        assert call[1] is h
        assert call[2] is given
        assert all(a is b for a, b in zip(call[3], gru.parameters(), strict=True))
        assert call[4] == 2
    with torch.enable_grad():
        assert not stepping.takes_kernel("auto", H, x, h, [*gru.parameters()])
        assert stepping.takes_kernel("auto", H, x, h, [w.detach() for w in gru.parameters()])
    assert not stepping.takes_kernel("torch", H, x, h, [])
    assert not stepping.takes_kernel("auto", H, OnGpu.of(xs[0].double()), h, [])


@needs_loop
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_the_kernel_runs_for_each_layer_with_its_own_operands(layers, bias, monkeypatch):
    """And passes on what the layer before it has written."""
    gru, xs, state = made(layers, bias=bias)
    reset, seen = torch.tensor([False, True, False]), []

    def kernel(x, h, reset, w_ih, w_hh, b_ih, b_hh, y, hn):
        seen.append((y is not None, reset))
        begin = torch.zeros(3, H) if h is None else h if reset is None else torch.where(reset[:, None], 0.0, h)
        hn.copy_(torch.gru_cell(x, begin, w_ih, w_hh, b_ih, b_hh))
        if y is not None:
            y.copy_(hn)

    monkeypatch.setattr(step_ops, "_kernel", lambda: kernel)
    weights = [w.detach() for w in gru.parameters()]
    for h, cut in ((state, None), (state, reset), (None, None)):
        y, hn = empty(gru, xs[0])
        monkeypatch.setattr(step_ops, "compiled_loop", lambda: pytest.fail("the loop for CPUs ran"))
        x = OnGpu.of(xs[0])
        step_ops._run(x, h, cut, weights, y, hn)
        begin = h if cut is None or h is None else torch.where(cut[:, None], 0.0, h)
        check((y, hn), gru, xs[0], begin)
    assert [last for last, _ in seen] == ([False] * (layers - 1) + [True]) * 3

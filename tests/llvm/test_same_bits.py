"""What may not change a single bit: the batch, the length, threads, chunks, what is kept, the direction, padding."""

import pytest
import torch

pytest.importorskip("llvmlite")

from compiled_loop import (
    Layer,
    chunks_of,
    given,
    ours,
    rows_alone,
    same,
    same_bits,
    stale,
    steps_of,
    threads_apart,
    threads_of,
)

import tritongru
from tritongru.arguments.records import Weights
from tritongru.llvm import launch
from tritongru.planning.instruction_sets import host_sets

every_set = pytest.mark.parametrize("isa", host_sets())
WEIGHTS = ("dw_ih", "dw_hh", "db_ih", "db_hh")


@every_set
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_alone_is_the_row_in_any_batch(dtype, isa):
    assert not rows_alone(Layer(T=3, B=20, I=5, H=19, D=2, dtype=dtype), isa, range(1, 21))


@every_set
@pytest.mark.parametrize("I, H", [(1, 1), (40, 8), (65, 64), (3, 100)])
def test_a_row_alone_at_other_sizes(I, H, isa):
    """Each leaves other widths of tiles over."""
    assert not rows_alone(Layer(T=2, B=11, I=I, H=H, D=2), isa, range(1, 12))


@every_set
def test_the_first_steps_alone_are_the_whole_up_to_there(isa):
    data = given(Layer(T=9, B=5, H=19))
    whole = ours(data, isa)["y"]
    for T in range(1, 9):
        found = ours(steps_of(data, slice(0, T)), isa)
        assert same(found["y"], whole[: T * 5]), T
        assert same(found["hn"][0], whole[(T - 1) * 5 : T * 5, 0]), T


@every_set
@pytest.mark.parametrize("cut", [1, 4, 8])
def test_segments_with_carried_state_are_the_whole(cut, isa):
    """Outputs and, with the gradient of the state carried back, the gradients of input and first state."""
    data = given(Layer(T=9, B=5, H=19))
    whole = ours(data, isa)
    first, second = steps_of(data, slice(0, cut)), steps_of(data, slice(cut, 9))
    state = ours(first, isa)["hn"]
    second = second._replace(call=second.call._replace(h0=state), grads=second.grads._replace(dhn=data.grads.dhn))
    behind = ours(second, isa)
    ahead = ours(first._replace(grads=first.grads._replace(dhn=behind["dh0"])), isa)
    for name in ("y", "dx"):
        assert same(torch.cat((ahead[name], behind[name])), whole[name]), name
    assert same(behind["hn"], whole["hn"])
    assert same(ahead["dh0"], whole["dh0"])


@every_set
@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("steps", [3, 100])
def test_threads_change_nothing(steps, keeps, isa):
    """Outputs and all gradients, those of the weights over several chunks among them."""
    with chunks_of(steps):
        assert not threads_apart(Layer(T=10, B=21, I=9, H=24, D=2), isa, (2, 3), keeps)


@every_set
def test_threads_change_nothing_of_the_plans_chunks(isa):
    """A forward's chunks grow with the threads, so they are others."""
    assert not threads_apart(Layer(T=150, B=40, I=8, H=64), isa, (2,))


@every_set
def test_threads_change_nothing_of_packed_rows(isa):
    layer = Layer(lengths=(9,) * 4 + (6,) * 5 + (2,) * 7 + (1,), I=9, H=24, D=2)
    with chunks_of(4):
        assert not threads_apart(layer, isa, (2, 3))


@every_set
def test_chunks_change_nothing(isa):
    """But the gradients of the weights, which are summed chunk by chunk."""
    data = given(Layer(T=9, B=5, I=7, H=19, D=2))
    expected = ours(data, isa)
    for steps in (1, 2, 4, 8):
        with chunks_of(steps):
            found = ours(data, isa)
        assert not same_bits(found, expected, "y", "hn", "dx", "dh0"), steps
        for name in WEIGHTS:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)


@every_set
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layer", [{}, {"lengths": (9, 9, 4, 1)}, {"bias": False, "h0": False}], ids=str)
def test_rebuilt_gates_are_those_that_are_kept(layer, dtype, isa):
    with chunks_of(4):
        data = given(Layer(**({"T": 9} | layer), I=7, H=19, D=2, dtype=dtype))
        assert not same_bits(ours(data, isa, keeps=False), ours(data, isa, keeps=True))


@every_set
def test_the_same_bits_every_time(isa):
    data = given(Layer(T=12, B=17, I=7, H=40, D=2))
    with threads_of(2):
        expected = ours(data, isa)
        for _ in range(5):
            assert not same_bits(ours(data, isa), expected)


@every_set
def test_changed_weights_are_seen_at_once(isa):
    assert not stale(isa)


@every_set
@pytest.mark.parametrize("lengths", [(6, 4, 3, 1), (7, 7, 7, 2, 2, 1, 1, 1, 1)], ids=str)
def test_packed_rows_are_rows_alone(lengths, isa):
    """Padding never leaks: a sequence has the bits that it has on its own."""
    layer = Layer(lengths=lengths, I=5, H=19, D=2)
    data, offsets = given(layer), layer.offsets
    together = ours(data, isa)
    for b, length in enumerate(lengths):
        rows = offsets[:length] + b
        (x, weights, h0, *_), (dy, dhn) = data
        own = given(Layer(T=length, B=1, I=5, H=19, D=2))
        call = own.call._replace(x=x[rows], weights=weights, h0=h0[:, b : b + 1].contiguous())
        grads = own.grads._replace(dy=dy[rows], dhn=dhn[:, b : b + 1].contiguous())
        alone = ours(own._replace(call=call, grads=grads), isa)
        for name in ("y", "dx"):
            assert same(alone[name], together[name][rows]), (name, b)
        for name in ("hn", "dh0"):
            assert same(alone[name], together[name][:, b : b + 1]), (name, b)


@every_set
def test_reverse_is_forward_on_the_flipped_input(isa):
    """Two directions are two layers of one; the gradient of the input is their sum."""
    T, B, H = 6, 5, 19
    data = given(Layer(T=T, B=B, H=H, D=2))
    both, (call, grads) = ours(data, isa), data
    alone = []
    for d in range(2):

        def flipped(rows, d=d):
            return rows.view(T, B, -1).flip(0).view(rows.shape) if d else rows

        own = slice(d * 3 * H, (d + 1) * 3 * H)
        w = call.weights
        weights = Weights(w.w_ih[own], w.w_hh[d : d + 1], w.b_ih[own], w.b_hh[d : d + 1])
        one = call._replace(x=flipped(call.x), weights=weights, h0=call.h0[d : d + 1])
        dy = flipped(grads.dy[:, d : d + 1].contiguous())
        found = ours(data._replace(call=one, grads=grads._replace(dy=dy, dhn=grads.dhn[d : d + 1])), isa)
        assert same(flipped(found["y"]), both["y"][:, d : d + 1])
        for name in ("hn", "dh0"):
            assert same(found[name], both[name][d : d + 1]), name
        for name, expected in (
            *(("dw_ih", both["dw_ih"][own]), ("db_ih", both["db_ih"][own])),
            *(("dw_hh", both["dw_hh"][d : d + 1]), ("db_hh", both["db_hh"][d : d + 1])),
        ):  # sums over the rows, which come in the other order
            torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-5 if d else 0)
        alone.append(flipped(found["dx"]))
    torch.testing.assert_close(both["dx"], alone[0] + alone[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("hx", [True, False])
@pytest.mark.parametrize("T, B, layers, bias", [(1, 1, 1, True), (1, 3, 2, False), (7, 5, 3, True)])
def test_without_gradients_it_is_the_same(T, B, layers, bias, hx, bidirectional, dtype):
    """A call that learns nothing may go another way."""
    torch.manual_seed(0)
    gru = tritongru.GRU(6, 19, layers, bias, bidirectional=bidirectional, impl="llvm").to(dtype)
    x = torch.randn(T, B, 6).to(dtype)
    state = torch.randn(layers * (2 if bidirectional else 1), B, 19).to(dtype) if hx else None
    y, hn = gru(x, state)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            found = gru(x, state)
        assert same(found[0], y)
        assert same(found[1], hn)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_layout_of_the_input_changes_nothing(dtype):
    """batch_first, strides, one sequence without a batch: through the module, gradients too."""
    torch.manual_seed(0)
    gru = tritongru.GRU(6, 19, 2, bidirectional=True, impl="llvm").to(dtype)
    first = tritongru.GRU(6, 19, 2, bidirectional=True, batch_first=True, impl="llvm").to(dtype)
    first.load_state_dict(gru.state_dict())
    x = torch.randn(7, 5, 6).to(dtype)
    wide = torch.randn(7, 5, 12).to(dtype)[..., ::2].copy_(x)
    y, hn = gru(x)
    dy = torch.randn_like(y)
    expected = torch.autograd.grad(y, list(gru.parameters()), dy, retain_graph=True)
    assert same(gru(wide)[0], y)
    assert same(first(x.transpose(0, 1))[0].transpose(0, 1), y)
    assert same(gru(x[:, 2])[0], y[:, 2])
    assert same(gru(x[:, 2])[1], hn[:, 2])
    strided = torch.randn(*dy.shape, 2).to(dtype)[..., 1].copy_(dy)
    for a, b in zip(torch.autograd.grad(y, list(gru.parameters()), strided), expected, strict=True):
        assert same(a, b)


@pytest.mark.parametrize("isa", host_sets())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("H, I", [(1, 1), (3, 5), (8, 8), (63, 65), (65, 130), (100, 200), (300, 129)])
def test_one_step_alone_is_the_first_of_a_sequence(isa, dtype, H, I):
    """It reads the weights as they lie, the sequence packed ones; with a state and without, with biases and without."""
    torch.manual_seed(0)
    gru = torch.nn.GRU(I, H, dtype=dtype)
    weights = [weight.detach() for weight in gru.parameters()]
    x, hx = torch.randn(3, 2, I, dtype=dtype), torch.randn(1, 2, H, dtype=dtype)
    for own in (weights, weights[:2]):
        for state in (hx, None):
            whole, _ = launch.infer(x, state, own, len(own), isa)
            alone, last = launch.infer(x[:1], state, own, len(own), isa)
            assert torch.equal(alone, whole[:1])
            assert torch.equal(last, alone)
            biases = own[2:] or [None, None]
            cell = launch.infer_step(x[0], None if state is None else state[0], [*own[:2], *biases], isa)
            assert torch.equal(cell, whole[0])

"""Packed rows whose offsets are wrong, as the host cannot see on a GPU: nothing outside the tensors is touched, and
steps whose offsets are right have the right values."""

import dataclasses
import functools
import itertools
import types

import pytest
import torch
import triton
import triton.language as tl
from loops import RESULTS, encoded, expected, layer_tensors, loop_backward, loop_forward, persistent_launch
from tolerance import assert_close_to_float64

from tritongru import layer
from tritongru.arguments.records import LayerCall, OutputGradients, Saved
from tritongru.kernels.batch_tile import tile_at
from tritongru.kernels.persistent import launch as persistent
from tritongru.kernels.resident import launch as resident
from tritongru.kernels.stepwise import launch as stepwise
from tritongru.planning.launches import Launch, StepwiseLaunch

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter's memory is looked at")

T, B, H = 3, 18, 20  # two tiles of rows
N = T * B
LEAST, MOST = -(2**63), 2**63 - 1
UNTOUCHED = 0x7FC01234  # a NaN that no operation makes


def persistent_pair(exchange):
    forward = persistent_launch(H, block_h=16, exchange=exchange)
    backward = persistent_launch(H, kernel="backward", block_h=16, exchange=exchange, pad=False)
    return persistent, *(dataclasses.replace(launch, groups=2) for launch in (forward, backward))


RESIDENT, STEPWISE = Launch((32,), 16, 4, 1, 0, "ieee"), StepwiseLaunch(16, 16, 32, 4, 2, 0, "ieee")
FORMS = {
    "resident": (resident, RESIDENT, RESIDENT),
    "counter": persistent_pair("counter"),
    "data": persistent_pair("data"),
    "stepwise": (stepwise, STEPWISE, STEPWISE),
}

# Offsets, and for each kernel the (direction, step) pairs whose values they do not reach.
HOSTILE = {
    "before the first row": ([-20, 18, 36, 54], {(1, 1), (1, 2)}, {(0, 2)}),
    "behind the last row": ([0, 18, 36, 70], {(0, 0), (0, 1)}, {(1, 0), (1, 1)}),
    "a step behind the last row": ([0, 18, 60, 70], {(0, 0), (0, 1)}, {(1, 0)}),
    "more rows than the batch": ([0, 40, 40, 54], set(), set()),
    "backwards": ([54, 36, 18, 0], set(), set()),
    "far away": ([2**40, -(2**40), 2**33, 2**32 + 1], set(), set()),
    "differences that wrap": ([MOST, LEAST, LEAST + 5, MOST - 3], set(), set()),
}
CASES = [(1, True, hostile) for hostile in HOSTILE] + [(2, False, hostile) for hostile in [*HOSTILE][:4]]


class Windows:
    """Tensors inside larger ones: what lies around them is NaN, and stays as it was."""

    def __init__(self):
        self.around = []

    def guarded(self, shape, dtype=torch.float32, word=UNTOUCHED):
        """A tensor full of ``word``, with as much on both sides."""
        edge = 32 * shape[-1] * shape[-2]
        size = torch.Size(shape).numel()
        buffer = torch.full((edge + size + edge,), word, dtype=torch.int32)
        self.around.append((buffer, edge, size, word))
        return buffer[edge : edge + size].view(dtype).view(shape)

    def copy(self, value):
        """Its neighbours are NaN, which shows in results if they are read."""
        return None if value is None else self.guarded(value.shape, word=0x7FC00000).copy_(value)

    def zeros(self, shape, dtype, device):
        return self.guarded(shape, dtype).zero_()

    def check(self):
        for buffer, edge, size, word in self.around:
            assert (buffer[:edge] == word).all()
            assert (buffer[edge + size :] == word).all()


def check_results(**results):
    """A value is as before or no NaN."""
    for name, value in results.items():
        strange = value.isnan() & (value.view(torch.int32) != UNTOUCHED)
        assert not strange.any(), f"{name}: values from outside the tensors, {strange.nonzero()[:3].tolist()}"


@functools.cache
def layer_of(D, use_h0):
    """Operands of equally long sequences, which as packed rows look alike, and what the oracle makes of them."""
    tensors = layer_tensors(T, B, H, D, use_h0=use_h0)
    found = [dict(zip(RESULTS, expected(tensors, B, dtype), strict=True)) for dtype in (torch.float64, torch.float32)]
    return tensors, *found


def check_steps(name, value, pairs, exact, same):
    for d, t in pairs:
        if d < value.shape[1]:
            some = [v[t * B : (t + 1) * B, d] for v in (value, exact[name], same[name])]
            assert_close_to_float64(*some, f"{name} of step {t}, direction {d}")


@pytest.mark.every(4, slow=3)
@pytest.mark.parametrize("D, use_h0, hostile", CASES)
@pytest.mark.parametrize("form", FORMS)
def test_forward(form, D, use_h0, hostile, monkeypatch):
    family, launch, _ = FORMS[form]
    values, right, _ = HOSTILE[hostile]
    tensors, exact, same = layer_of(D, use_h0)
    windows = Windows()
    if family is stepwise:
        monkeypatch.setattr(stepwise, "torch", types.SimpleNamespace(zeros=windows.zeros, float32=torch.float32))
    operands = [windows.copy(tensors[name]) for name in ("gx", "w_hh", "b_hh", "h0")]
    y, hn, gates = (windows.guarded(shape) for shape in ((N, D, H), (D, B, H), (N, D, H, 4)))
    loop_forward(family, *operands, y, hn, gates, torch.tensor(values), launch)
    windows.check()
    check_results(y=y, hn=hn, gates=gates)
    check_steps("y", y, right, exact, same)


@pytest.mark.every(4, slow=3)
@pytest.mark.parametrize("D, use_h0, hostile", CASES)
@pytest.mark.parametrize("form", FORMS)
def test_backward(form, D, use_h0, hostile):
    family, _, launch = FORMS[form]
    values, _, right = HOSTILE[hostile]
    tensors, exact, same = layer_of(D, use_h0)
    windows = Windows()
    saved = same["y"], encoded(same["gates"])
    operands = (tensors["dy"], tensors["dhn"], tensors["w_hh"], tensors["h0"], *saved)
    dy, dh, w_hh, h0, y, gates = (windows.copy(value) for value in operands)
    dgx, da = windows.guarded((N, D, 3 * H)), windows.guarded((N, D, H))
    loop_backward(family, dy, dh, w_hh, h0, y, gates, dgx, da, torch.tensor(values), launch)
    windows.check()
    check_results(dgx=dgx, da=da, dh=dh)
    check_steps("dgx", dgx, right, exact, same)
    check_steps("da", da, right, exact, same)


@triton.jit(do_not_specialize=["T", "B", "N"])
def tile_kernel(found, offsets, T, B, N, BB: tl.constexpr):
    for t in tl.range(-1, T + 1):
        for i_b in tl.range(0, 2):
            first, count = tile_at(t, i_b, T, B, N, offsets, BB, True)
            p = found + ((t + 1) * 2 + i_b) * 2
            tl.store(p, first)
            tl.store(p + 1, count)


@pytest.mark.parametrize("rows", [54, 2**31 - 1, 2**33])
def test_a_tile_lies_among_the_rows(rows):
    """Each pair of neighbouring offsets of a list in which all of these follow each other."""
    some = [0, 1, 19, rows - 5, rows, rows + 1, 2**32 + 7, MOST, -1, LEAST]
    values = [v for pair in itertools.product(some, repeat=2) for v in pair]
    steps = len(values) - 1
    found = torch.full((steps + 2, 2, 2), -1)
    tile_kernel[(1,)](found, torch.tensor(values), steps, B, rows, BB=16)
    counts = found[..., 1] + torch.arange(2) * 16
    firsts = found[..., 0] - torch.arange(2) * 16
    assert (firsts == firsts[:, :1]).all()
    assert (counts == counts[:, :1]).all()
    first, count = firsts[:, 0], counts[:, 0]
    assert count[0] == count[-1] == 0, "steps outside the sequence have no rows"
    assert first.min() >= 0
    assert first.max() <= rows
    assert count.min() >= 0
    assert count.max() == B
    assert (first + count <= rows).all()
    for (a, b), i, n in zip(itertools.pairwise(values), first[1:].tolist(), count[1:].tolist(), strict=False):
        if 0 <= a <= b <= rows and b - a <= B:
            assert (i, n) == (a, b - a)


@pytest.mark.parametrize("d", [0, 1])
def test_rows_before_are_those_of_the_neighbouring_step(d):
    counts = [4, 4, 3, 1, 1, 0]
    offsets = torch.tensor([0, *itertools.accumulate(counts)])
    step = -1 if d == 0 else 1
    right = []
    for t, count in enumerate(counts):
        beside = t + step
        there = counts[beside] if 0 <= beside < len(counts) else 0
        right += [int(offsets[beside]) + b if b < there else 13 + b for b in range(count)]
    assert layer._rows_before(13, offsets, 4, d).tolist() == right


@pytest.mark.parametrize("values", [values for values, _, _ in HOSTILE.values()] + [[MOST] * 4, [LEAST] * 4, [-1, 0]])
@pytest.mark.parametrize("d", [0, 1])
def test_rows_before_exist(d, values):
    found = layer._rows_before(N, torch.tensor(values), B, d)
    assert found.shape == (N,)
    assert found.min() >= 0
    assert found.max() < N + B


@pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")  # in rows that no step has
@pytest.mark.parametrize("hostile", ["behind the last row", "differences that wrap"])
def test_a_layer_with_rebuilt_gates(hostile):
    """Both passes of a whole layer end."""
    x, w_ih, w_hh = torch.randn(N, 4), torch.randn(6 * H, 4), torch.randn(2, 3 * H, H)
    offsets = torch.tensor(HOSTILE[hostile][0])
    call = LayerCall.of(x, w_ih, w_hh, None, None, None, None, offsets, None, None, B)
    y, hn, gates = layer.forward(call, False, RESIDENT)
    ones = OutputGradients(torch.ones_like(y), torch.ones_like(hn))
    grads = layer.backward(ones, call, Saved(y, gates), [True] * 7, RESIDENT)
    assert [g.shape for g in grads[:3]] == [x.shape, w_ih.shape, w_hh.shape]


@pytest.mark.parametrize("packed", [False, True])
def test_an_operator_takes_strided_tensors(packed):
    """What a kernel reads by address and shape alone is laid out for it."""
    torch.manual_seed(0)
    rows, batch = 6, 3
    x, w_ih, w_hh, h0 = (torch.randn(shape) / 4 for shape in ((rows, 4), (6 * H, 4), (2, 3 * H, H), (2, batch, H)))
    offsets = torch.tensor([0, 3, 6]) if packed else None

    def strided(value):
        if value is None:
            return None
        wide = torch.full((*value.shape, 2), -5, dtype=value.dtype)
        wide[..., 0] = value
        return wide[..., 0]

    def run(as_is):
        operands = [as_is(v) for v in (x, w_ih, w_hh)] + [
            None,
            None,
            as_is(h0),
            None,
            as_is(offsets),
            None,
            None,
            batch,
        ]
        y, hn, gates = torch.ops.tritongru.gru_forward(*operands, True, "triton")
        arriving = [as_is(torch.ones_like(v)) for v in (y, hn)]
        saved = as_is(y), as_is(gates)
        return [y, hn, *torch.ops.tritongru.gru_backward(*arriving, *operands, *saved, [True] * 7, "triton")]

    for dense, other in zip(run(lambda v: v), run(strided), strict=True):
        assert torch.equal(dense, other)

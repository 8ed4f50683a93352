"""The compiled loop for sequences that end early or begin anew: against the oracle, whose law it is, and bit for bit
against itself where the law says that nothing may change."""

import itertools

import pytest
import torch

pytest.importorskip("llvmlite")

from compiled_loop import (
    ALL,
    GRADIENTS,
    Given,
    Layer,
    chunks_of,
    given,
    ours,
    parity,
    rows_alone,
    same,
    same_bits,
    threads_apart,
    together,
)

from tritongru import reference
from tritongru.arguments.records import LayerCall, OutputGradients, Rows
from tritongru.llvm.segments import WORD, segments_of
from tritongru.planning.instruction_sets import host_sets

every_set = pytest.mark.parametrize("isa", host_sets())
both = pytest.mark.parametrize("D", [1, 2])
ENDS = (7, 0, 3, 9, -2, 1, 6, 4, 7)  # of seven steps
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
ROWS_OF_X, STATES, WEIGHTS = ("y", "dx"), ("hn", "dh0"), ("dw_ih", "dw_hh", "db_ih", "db_hh")
LAYERS = {
    "lengths": {"ends": ENDS},
    "lengths of 32 bits": {"ends": ENDS, "index": torch.int32},
    "resets": {"B": 9, "resets": 0.3},
    "resets to one state": {"B": 9, "resets": 0.3, "states": 1},
    "both": {"ends": ENDS, "resets": 0.3},
    "both, to one state": {"ends": ENDS, "resets": 0.3, "states": 1},
    "both, to a state of each": {"ends": ENDS, "resets": 0.3, "states": 9},
    "resets at every step": {"ends": ENDS, "resets": 1.0, "states": 9},
    "no sequence has a step": {"ends": (0, 0, -1), "resets": 0.5, "states": 3},
    "full lengths": {"ends": (7,) * 4},
    "one sequence": {"ends": (5,), "resets": 0.4, "states": 1},
}
cases = pytest.mark.parametrize("case", LAYERS)
BOTH = LAYERS["both, to a state of each"]


def layer_of(case, **others):
    return Layer(**{"T": 7, "I": 5, "H": 11, "D": 2, "dtype": torch.float64} | LAYERS[case] | others)


# Against the oracle


@pytest.mark.every(5, slow=6)
@every_set
@pytest.mark.parametrize("keeps", [True, False])
@cases
@both
def test_every_kind_of_rows(D, case, keeps, isa):
    """In fp64, so within rounding: with one direction and with two, which scatter to the same rows."""
    with chunks_of(2):
        assert not parity(layer_of(case, D=D), isa, keeps)


@pytest.mark.every(4, slow=6)
@every_set
@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 100])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_in_chunks(dtype, steps, keeps, isa):
    with chunks_of(steps):
        assert not parity(Layer(T=7, I=5, H=11, D=2, dtype=dtype, **BOTH), isa, keeps)


@pytest.mark.every(4, slow=6)
@every_set
@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("H, I", [(1, 1), (17, 3), (33, 40), (100, 7)])
def test_odd_sizes(H, I, dtype, keeps, isa):
    assert not parity(Layer(T=7, I=I, H=H, D=2, dtype=dtype, **BOTH), isa, keeps)


@pytest.mark.every(2, slow=6)
@every_set
@pytest.mark.parametrize("B", [1, 7, 8, 9, 16, 19])
def test_batches_around_eight(B, isa):
    """Resets are looked at eight at a time."""
    ends = tuple(k % 6 for k in range(5, 5 + B))
    assert not parity(layer_of("both", ends=ends, T=5, states=B, resets=0.2), isa)
    assert not parity(layer_of("both", ends=(), B=B, T=5, states=1, resets=0.05), isa)


@pytest.mark.every(2, slow=6)
@every_set
@pytest.mark.parametrize("bias, h0", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("keeps", [True, False])
def test_layers_without_biases_and_states(keeps, bias, h0, isa):
    with chunks_of(2):
        assert not parity(layer_of("both, to a state of each", bias=bias, h0=h0), isa, keeps)


@every_set
@pytest.mark.parametrize("T", [1, 2, 40])
def test_numbers_of_steps(T, isa):
    with chunks_of(7):
        assert not parity(layer_of("both", T=T, ends=(T, 0, T - 1, 1, T // 2)), isa)


@pytest.mark.slow
@every_set
def test_blocks_of_many_rows(isa):
    """Products are made in blocks of 64 rows and sums in blocks of 128, several of each."""
    ends = tuple(k % 12 for k in range(150))
    assert not parity(layer_of("both", T=11, ends=ends, resets=0.05, states=150, H=12), isa)
    assert not parity(layer_of("both", T=11, ends=ends, resets=0.05, H=12), isa, keeps=False)


@every_set
@pytest.mark.parametrize("which", ["dy", "dhn"])
def test_gradients_of_one_output_alone(which, isa):
    """None that arrives counts as zeros."""
    data = given(layer_of("both, to a state of each"))
    zeros = data.grads._replace(**{which: torch.zeros_like(getattr(data.grads, which))})
    none = data.grads._replace(**{which: None})
    assert not same_bits(ours(data._replace(grads=none), isa), ours(data._replace(grads=zeros), isa))


@every_set
@pytest.mark.parametrize("keeps", [True, False])
def test_every_choice_of_gradients(keeps, isa):
    data = given(layer_of("both, to one state"))
    with chunks_of(2):
        whole = ours(data, isa, keeps)
        for k in range(7):
            for needs in ([i == k for i in range(7)], [i != k for i in range(7)]):
                names = [name for name, need in zip(GRADIENTS, needs, strict=True) if need]
                assert not same_bits(ours(data, isa, keeps, needs), whole, "y", "hn", *names), needs


# Which segments there are


def by_hand(lengths, resets, T, B):
    """For each segment its rows, and what it begins with and ends in, in both directions: as the oracle's law says."""
    found = []
    for b in range(B):
        end = T if lengths is None else min(max(int(lengths[b]), 0), T)
        own = reference.Ragged(torch.tensor([end]), None if resets is None else resets[:, b : b + 1])
        like = torch.zeros(T, 1, 1)
        ahead, back = (own.fresh(like, reverse)[:, 0, 0].tolist() for reverse in (False, True))
        cuts = [0, *(t for t in range(1, end) if ahead[t]), end]
        for start, stop in itertools.pairwise(cuts):
            rows = [t * B + b for t in range(start, stop)]
            fresh = start < end and ahead[start], stop > 0 and back[stop - 1]
            source = [-1 - row if new else row for new, row in zip(fresh, (b, B + b), strict=True)]
            target = [b if stop == end else -1, B + b if start == 0 else -1]
            found.append((rows, source, target))
    return sorted(found)


@pytest.mark.every(5, slow=6)
@every_set
@pytest.mark.parametrize("B", [1, 5, 8, 13])
@pytest.mark.parametrize("rate", [None, 0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("ends", [False, True])
def test_the_segments_are_those_of_the_law(ends, rate, B, isa):
    T = 6
    torch.manual_seed(B)
    lengths = torch.randint(-2, T + 3, (B,)) if ends else None
    resets = None if rate is None else torch.rand(T, B) < rate
    found = segments_of(lengths, resets, T, B, isa)
    first = (found.memory.data_ptr(), found.memory.tolist())

    def values(address, count):
        start = (address - first[0]) // WORD
        return first[1][start : start + count]

    offsets = values(found.offsets, found.steps + 1)
    counts = [b - a for a, b in itertools.pairwise(offsets)]
    assert offsets[0] == 0
    assert counts == sorted(counts, reverse=True), "the longest first"
    places = values(found.places, offsets[-1])
    source, target = (values(address, 2 * found.number) for address in (found.source, found.target))
    segments = []
    for k in range(found.number):
        rows = [places[offsets[t] + k] for t in range(found.steps) if k < counts[t]]
        segments.append((rows, source[2 * k : 2 * k + 2], target[2 * k : 2 * k + 2]))
    expected = by_hand(lengths, resets, T, B)
    assert sorted(segments) == expected
    assert found.steps == max((len(rows) for rows, *_ in expected), default=0)


# Bit for bit


@pytest.mark.every(5, slow=6)
@every_set
@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("steps", [2, 100])
@pytest.mark.parametrize("case", ["lengths", "resets to one state", "both, to a state of each"])
def test_threads_change_nothing(case, steps, keeps, isa):
    ends = () if case.startswith("resets") else tuple(k % 11 for k in range(21))
    layer = layer_of(case, T=10, B=21, ends=ends, H=24, dtype=torch.float32)
    layer = layer if layer.states < 2 else layer_of(case, T=10, ends=ends, H=24, states=21)
    with chunks_of(steps):
        assert not threads_apart(layer, isa, (2, 3), keeps)


@pytest.mark.every(5, slow=6)
@every_set
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@cases
def test_chunks_and_what_is_kept_change_nothing(case, dtype, isa):
    """But the gradients of the weights, which are summed chunk by chunk."""
    data = given(layer_of(case, dtype=dtype))
    expected = together(data, isa)
    names = [name for name in expected if name not in WEIGHTS]
    for steps in (1, 2):
        with chunks_of(steps):
            assert not same_bits(together(data, isa), expected, *names), steps
            assert not same_bits(ours(data, isa, keeps=False), ours(data, isa)), steps


@pytest.mark.every(5, slow=6)
@every_set
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["lengths", "resets", "both, to one state", "both, to a state of each"])
def test_a_row_alone_is_the_row_in_any_batch(case, dtype, isa):
    assert not rows_alone(layer_of(case, dtype=dtype, H=19), isa, range(1, 10))


@pytest.mark.every(2, slow=6)
@every_set
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@both
def test_a_row_with_a_length_is_the_row_packed_and_the_row_alone(D, dtype, isa):
    """Whatever lies in the padding and in the rows beside: here NaN and infinities."""
    layer = layer_of("lengths", D=D, dtype=dtype, H=19)
    data = given(layer)
    (x, weights, h0, (B, _, lengths, _), _), (dy, dhn) = data
    found, ends = together(data, isa), lengths.clamp(0, layer.T).tolist()
    order = sorted((b for b in range(B) if ends[b]), key=lambda b: -ends[b])
    steps = [[t * B + b for b in order if ends[b] > t] for t in range(max(ends))]
    rows, offsets = torch.tensor([row for step in steps for row in step]), torch.tensor([0, *map(len, steps)]).cumsum(0)
    packed = LayerCall(x[rows], weights, h0[:, order].contiguous(), Rows(len(order), offsets))
    other = ours(Given(packed, OutputGradients(dy[rows], dhn[:, order].contiguous())), isa)
    for name in ROWS_OF_X:
        assert same(found[name][rows], other[name]), name
        padding = torch.ones(len(x), dtype=torch.bool).index_fill_(0, rows, False)
        assert not found[name][padding].any(), name
    for name in STATES:
        assert same(found[name][:, order], other[name]), name
    for b in range(B):
        if not ends[b]:
            assert same(found["hn"][:, b], h0[:, b])
            assert same(found["dh0"][:, b], dhn[:, b])
            continue
        own = torch.arange(ends[b]) * B + b
        alone = LayerCall(x[own], weights, h0[:, b : b + 1].contiguous(), Rows(1))
        other = ours(Given(alone, OutputGradients(dy[own], dhn[:, b : b + 1].contiguous())), isa)
        for name in ROWS_OF_X:
            assert same(found[name][own], other[name]), (name, b)
        for name in STATES:
            assert same(found[name][:, b : b + 1], other[name]), (name, b)


@pytest.mark.every(2, slow=6)
@every_set
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@both
def test_full_lengths_are_none(D, dtype, isa):
    layer = layer_of("full lengths", D=D, dtype=dtype)
    data = given(layer)
    plain = data._replace(call=data.call._replace(rows=Rows(4)))
    assert not same_bits(together(data, isa), together(plain, isa), "y", "dx", "hn", "dh0")


@pytest.mark.every(2, slow=6)
@every_set
@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@both
def test_segments_are_sequences_of_their_own(D, dtype, keeps, isa):
    """Cut at the resets, each with the state that it begins with: the same bits of y, dx, h_n and dh0; the gradients
    of the reset states are sums of theirs."""
    layer = layer_of("both, to a state of each", D=D, dtype=dtype, H=19)
    data = given(layer)
    (x, weights, h0, (B, _, lengths, resets), state), (dy, dhn) = data
    found = ours(data, isa, keeps)
    d_reset = torch.zeros_like(state)
    segments = by_hand(lengths, resets, layer.T, B)
    for rows, source, target in segments:
        b = (source[0] if source[0] >= 0 else -1 - source[0]) % B
        first = torch.stack([(h0 if source[d] >= 0 else state)[d, b] for d in range(D)])[:, None]
        arriving = torch.stack([dhn[d, b] if target[d] >= 0 else torch.zeros_like(dhn[d, b]) for d in range(D)])[
            :, None
        ]
        if not rows:  # a sequence without a step
            assert same(found["hn"][:, b], h0[:, b])
            assert same(found["dh0"][:, b], dhn[:, b])
            continue
        alone = ours(
            Given(LayerCall(x[rows], weights, first, Rows(1)), OutputGradients(dy[rows], arriving)), isa, keeps
        )
        for name in ROWS_OF_X:
            assert same(alone[name], found[name][rows]), (name, rows)
        for d in range(D):
            if target[d] >= 0:
                assert same(alone["hn"][d, 0], found["hn"][d, b])
            if source[d] >= 0:
                assert same(alone["dh0"][d, 0], found["dh0"][d, b])
            else:
                d_reset[d, b] += alone["dh0"][d, 0]
    most = {torch.float32: 1e-5, torch.float64: 1e-13}[dtype]
    torch.testing.assert_close(found["d_reset"], d_reset, rtol=most, atol=most)


@pytest.mark.every(2, slow=6)
@every_set
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cut", [1, 3, 6])
def test_parts_with_carried_state_are_the_whole(cut, dtype, isa):
    """Of one direction, with the gradient of the state carried back."""
    data = given(layer_of("both, to a state of each", D=1, dtype=dtype, H=19))
    whole, (call, grads) = ours(data, isa), data
    B = call.rows.batch

    def part(steps, begin, h0, dhn):
        own = slice(steps.start * B, steps.stop * B)
        rows = Rows(B, None, call.rows.lengths - begin, call.rows.resets[steps].contiguous())
        return Given(call._replace(x=call.x[own], h0=h0, rows=rows), OutputGradients(grads.dy[own], dhn))

    first = part(slice(0, cut), 0, call.h0, None)
    second = part(slice(cut, 7), cut, ours(first, isa)["hn"], grads.dhn)
    behind = ours(second, isa)
    ahead = ours(first._replace(grads=first.grads._replace(dhn=behind["dh0"])), isa)
    for name in ROWS_OF_X:
        assert same(torch.cat((ahead[name], behind[name])), whole[name]), name
    assert same(behind["hn"], whole["hn"])
    assert same(ahead["dh0"], whole["dh0"])


@pytest.mark.every(2, slow=6)
@every_set
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("keeps", [True, False])
def test_what_no_step_sees_changes_nothing(keeps, bad, isa):
    """NaN in padding, in h0 of a sequence that begins with a reset, in reset states that none begins with, and in a
    sequence beside; the gradients of the weights have no NaN but from the last."""
    layer = layer_of("both, to a state of each", D=1, ends=(7, 5, 0, 6), states=4)
    data = given(layer)
    (x, _, h0, rows, state), (dy, dhn) = data
    resets = torch.zeros_like(rows.resets)
    resets[[0, 3], 0] = True  # h0 of sequence 0 is replaced; only it and 3 ever begin anew
    resets[2, 3] = True
    clean = data._replace(call=data.call._replace(rows=rows._replace(resets=resets)))
    h0, state, dhn = h0.clone(), state.clone(), dhn.clone()
    h0[:, 0], state[:, 1:3] = bad, bad
    x, dy = (torch.where(value.isfinite(), value, bad) for value in (x, dy))
    dirty = Given(clean.call._replace(x=x, h0=h0, reset_state=state), OutputGradients(dy, dhn))
    expected, found = ours(clean, isa, keeps), ours(dirty, isa, keeps)
    assert not same_bits(found, expected)
    assert all(value.isfinite().all() for value in found.values())
    h0[:, 2] = dhn[:, 2] = bad  # of the sequence without a step: they go through, and nowhere else
    found = ours(dirty, isa, keeps)
    for name in STATES:
        assert same(found[name][:, 2], (h0 if name == "hn" else dhn)[:, 2])
        assert same(found[name][:, [0, 1, 3]], expected[name][:, [0, 1, 3]])
    assert not same_bits(found, expected, *(name for name in expected if name not in STATES))


@every_set
def test_lengths_and_resets_may_be_strided(isa):
    data = given(layer_of("both, to a state of each"))
    rows, state = data.call.rows, data.call.reset_state
    other = rows._replace(
        lengths=torch.stack((rows.lengths, rows.lengths + 1), 1)[:, 0], resets=rows.resets.t().contiguous().t()
    )
    strided = torch.stack((state, state + 1), -1)[..., 0]
    call = data.call._replace(rows=other, reset_state=strided)
    assert not same_bits(ours(data._replace(call=call), isa, needs=ALL), ours(data, isa, needs=ALL))

"""What may not be lengths, resets or a reset state, each refused in a sentence; and what tracers make of them."""

import copy

import pytest
import torch
from cpu_loop import HAS_LOOP
from layers import onnx_model
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import tritongru

T, B, I, H = 4, 3, 3, 5
on_a_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="of tensors on the CPU")
IMPLS = ["auto", "torch", "triton", *(["llvm"] if HAS_LOOP else [])]


def freed(tensor):
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(0)
    return tensor


def one_of(b, value):
    lengths = torch.full((B,), T)
    lengths[b] = value
    return lengths


NO_RESETS = torch.zeros(T, B, dtype=torch.bool)
STATE = torch.zeros(2, B, H)
MAKES = "torch.tensor makes one of it"
WRONG = {
    "a list": ({"lengths": [4, 2, 1]}, TypeError, "lengths should be a Tensor, got list; torch.tensor makes one of it"),
    "a number": ({"lengths": 4}, TypeError, "lengths should be a Tensor, got int; torch.tensor makes one of it"),
    "resets in a list": (
        {"resets": [[True]]},
        TypeError,
        "resets should be a Tensor, got list; torch.tensor makes one of it",
    ),
    "a text": (
        {"resets": NO_RESETS, "reset_state": "0"},
        TypeError,
        "reset_state should be a Tensor, got str; torch.tensor makes one of it",
    ),
    "float": (
        *({"lengths": torch.ones(B)}, RuntimeError),
        "lengths should be int32 or int64, got torch.float32; convert it with .long()",
    ),
    "16 bits": (
        *({"lengths": torch.ones(B, dtype=torch.int16)}, RuntimeError),
        "lengths should be int32 or int64, got torch.int16; convert it with .long()",
    ),
    "too few": (
        *({"lengths": torch.ones(2, dtype=torch.int64)}, RuntimeError),
        "lengths should have the shape (3,), one length for each sequence, got (2,)",
    ),
    "of two dimensions": (
        *({"lengths": torch.ones(1, B, dtype=torch.int64)}, RuntimeError),
        "lengths should have the shape (3,), one length for each sequence, got (1, 3)",
    ),
    "sparse": (
        *({"lengths": torch.ones(B, dtype=torch.int64).to_sparse()}, RuntimeError),
        "lengths should be dense, got torch.sparse_coo; convert it with .to_dense()",
    ),
    "meta": (
        *({"lengths": torch.ones(B, dtype=torch.int64, device="meta")}, RuntimeError),
        "lengths should be on the CPU or on the device of the input, cpu, got meta",
    ),
    "negative": (
        *({"lengths": one_of(1, -1)}, ValueError),
        "lengths should be between 0 and the 4 time steps of the input, got -1 for sequence 1",
    ),
    "too long": (
        *({"lengths": one_of(2, 5)}, ValueError),
        "lengths should be between 0 and the 4 time steps of the input, got 5 for sequence 2",
    ),
    "far too long": (
        *({"lengths": one_of(0, 2**62)}, ValueError),
        f"lengths should be between 0 and the 4 time steps of the input, got {2**62} for sequence 0",
    ),
    "freed": (
        *({"lengths": freed(torch.ones(B, dtype=torch.int64))}, RuntimeError),
        "lengths needs 24 bytes, but its storage, freed or shrunk, holds 0",
    ),
    "resets of numbers": (
        *({"resets": NO_RESETS.long()}, RuntimeError),
        "resets should be bool, got torch.int64; convert it with .bool()",
    ),
    "resets turned round": (
        *({"resets": NO_RESETS.t()}, RuntimeError),
        "resets should have the shape (4, 3), one value for each step of the input, got (3, 4)",
    ),
    "resets of one sequence": (
        *({"resets": NO_RESETS[:, 0]}, RuntimeError),
        "resets should have the shape (4, 3), one value for each step of the input, got (4,)",
    ),
    "sparse resets": (
        *({"resets": NO_RESETS.to_sparse()}, RuntimeError),
        "resets should be dense, got torch.sparse_coo; convert it with .to_dense()",
    ),
    "meta resets": (
        *({"resets": NO_RESETS.to("meta")}, RuntimeError),
        "resets should be on the device of the input, cpu, got meta",
    ),
    "a reset state alone": (
        *({"reset_state": STATE}, ValueError),
        "reset_state needs resets, which say where it is used",
    ),
    "a reset state with lengths": (
        *({"reset_state": STATE, "lengths": one_of(0, 1)}, ValueError),
        "reset_state needs resets, which say where it is used",
    ),
    "a reset state of one direction": (
        *({"resets": NO_RESETS, "reset_state": STATE[:1]}, RuntimeError),
        "reset_state should have the shape (2, 3, 5) or (2, 1, 5), got (1, 3, 5)",
    ),
    "two reset states for three": (
        *({"resets": NO_RESETS, "reset_state": STATE[:, :2]}, RuntimeError),
        "reset_state should have the shape (2, 3, 5) or (2, 1, 5), got (2, 2, 5)",
    ),
    "a reset state without a batch": (
        *({"resets": NO_RESETS, "reset_state": STATE[:, 0]}, RuntimeError),
        "reset_state should have the shape (2, 3, 5) or (2, 1, 5), got (2, 5)",
    ),
    "a meta reset state": (
        *({"resets": NO_RESETS, "reset_state": STATE.to("meta")}, RuntimeError),
        "reset_state should be on the device of the input, cpu, got meta",
    ),
    "a sparse reset state": (
        *({"resets": NO_RESETS, "reset_state": STATE.to_sparse()}, RuntimeError),
        "reset_state should be dense, got torch.sparse_coo; convert it with .to_dense()",
    ),
    "a reset state in float64": (
        *({"resets": NO_RESETS, "reset_state": STATE.double()}, RuntimeError),
        "reset_state should have the dtype torch.float32 of the states, got torch.float64",
    ),
}


@on_a_cpu
@pytest.mark.parametrize("options", [{"bidirectional": True}, {"num_layers": 2}], ids=str)
@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_a_sentence(what, options):
    """Of the function and of the module, whatever the path, with gradients and without."""
    given, error, says = WRONG[what]
    x = torch.randn(T, B, I)
    for impl in IMPLS:
        gru = tritongru.GRU(I, H, impl=impl, **options)
        weights = list(gru.parameters())
        calls = [
            lambda gru=gru: gru(x, **given),
            lambda impl=impl, w=weights: tritongru.gru(x, None, w, impl=impl, **options, **given),
        ]
        for call in calls:
            for grad in (True, False):
                with torch.set_grad_enabled(grad), pytest.raises(error) as refused:
                    call()
                assert str(refused.value) == says


PACKED = "cannot be given together with a PackedSequence; pad it with torch.nn.utils.rnn.pad_packed_sequence"


@pytest.mark.parametrize("name", ["lengths", "resets", "reset_state"])
def test_packed_sequences_have_neither(name):
    gru = tritongru.GRU(I, H)
    given = {name: {"lengths": one_of(0, 1), "resets": NO_RESETS, "reset_state": STATE[:1]}[name]}
    packed = pack_padded_sequence(torch.randn(T, B, I), torch.tensor([4, 2, 1]))
    assert isinstance(packed, PackedSequence)
    with pytest.raises(ValueError) as refused:
        gru(packed, **given)
    assert str(refused.value) == f"{name} {PACKED}"
    with pytest.raises(ValueError) as refused:
        tritongru.gru(packed.data, None, list(gru.parameters()), batch_sizes=packed.batch_sizes, **given)
    assert str(refused.value) == f"{name} {PACKED}"


@pytest.mark.parametrize("batch_first", [False, True])
def test_wrong_arguments_of_one_sequence(batch_first):
    """Without a batch the sentence names the shapes without one."""
    gru, x = tritongru.GRU(I, H, 2, batch_first=batch_first), torch.randn(T, I)
    resets, alone = torch.zeros(T).bool(), "for an unbatched input, got"
    for given, says in (
        ({"lengths": torch.tensor([1, 2])}, f"lengths should have the shape () {alone} (2,)"),
        ({"resets": torch.zeros(3).bool()}, f"resets should have the shape (4,) {alone} (3,)"),
        ({"resets": torch.zeros(2, 2, 1).bool()}, f"resets should have the shape (4,) {alone} (2, 2, 1)"),
        (
            {"resets": resets, "reset_state": torch.zeros(1, H)},
            f"reset_state should have the shape (2, 5) {alone} (1, 5)",
        ),
        (
            {"lengths": torch.tensor(5)},
            "lengths should be between 0 and the 4 time steps of the input, got 5 for sequence 0",
        ),
        ({"lengths": 3}, "lengths should be a Tensor, got int; torch.tensor makes one of it"),
    ):
        with pytest.raises((RuntimeError, ValueError, TypeError)) as refused:
            gru(x, **given)
        assert str(refused.value) == says
    state = torch.randn(2, H)
    one = gru(x, lengths=torch.tensor(3), resets=resets, reset_state=state)
    batched = {"lengths": torch.tensor([3]), "resets": resets[None] if batch_first else resets[:, None]}
    close(gru(x, **batched, reset_state=state[:, None]), one)


@pytest.mark.parametrize("impl", IMPLS)
def test_tensors_of_inference_serve_a_training_step(impl):
    """Autograd keeps none of these, so it gets a copy."""
    gru, x = tritongru.GRU(I, H, impl=impl), torch.randn(T, B, I)
    with torch.inference_mode():
        lengths, resets = one_of(1, 2), torch.rand(T, B) < 0.5
    same = {"lengths": lengths.clone(), "resets": resets.clone()}
    for given in ({"lengths": lengths}, {"resets": resets}, {"lengths": lengths, "resets": resets}):
        found, wanted = (gru(x, **kind)[0].sum() for kind in (given, {name: same[name] for name in given}))
        for one, other in zip(*(torch.autograd.grad(v, gru.parameters()) for v in (found, wanted)), strict=True):
            assert torch.equal(one, other)


@on_a_cpu
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "batch_first": True}], ids=str)
@pytest.mark.parametrize("impl", IMPLS)
def test_an_empty_batch_is_empty(impl, options, grad):
    """As without lengths and resets, and as in torch; no steps are refused, likewise."""
    gru = tritongru.GRU(I, H, impl=impl, **options)
    first = options.get("batch_first", False)

    def given(time, batch):
        resets = torch.zeros((batch, time) if first else (time, batch)).bool()
        asked = {"lengths": torch.zeros(batch, dtype=torch.int64), "resets": resets}
        x = torch.zeros((batch, time, I) if first else (time, batch, I))
        return x, ({"lengths": asked["lengths"]}, {"resets": resets}, asked)

    with torch.set_grad_enabled(grad):
        x, some = given(6, 0)
        plain = gru(x)
        for asked in some:
            assert [v.shape for v in gru(x, **asked)] == [v.shape for v in plain]
        x, some = given(0, 2)
        for asked in some:
            with pytest.raises(RuntimeError, match=r"^Expected sequence length to be larger than 0 in RNN$"):
                gru(x, **asked)


@on_a_cpu
def test_a_reset_state_has_the_dtype_of_hx():
    """Autocast alone makes all of one dtype."""
    gru, x = tritongru.GRU(I, H, bidirectional=True), torch.randn(T, B, I)
    given = {"resets": NO_RESETS, "reset_state": STATE.bfloat16()}
    with torch.autocast("cpu", torch.bfloat16):
        assert gru(x, **given)[0].shape == (T, B, 2 * H)
    with pytest.raises(RuntimeError, match=r"should have the dtype torch\.float32 of the states, got torch\.bfloat16"):
        gru(x, **given)


def test_positions_stay_torchs():
    """What is new has no position, so a third argument is none of it."""
    gru, x = tritongru.GRU(I, H), torch.randn(T, B, I)
    with pytest.raises(TypeError, match="positional arguments"):
        gru(x, None, one_of(0, 1))


@on_a_cpu
def test_values_in_a_graph_are_clamped():
    """A compiler does not see them: below 0 counts as 0, above T as T."""
    torch._dynamo.reset()
    for impl in IMPLS:
        gru, x = tritongru.GRU(I, H, bidirectional=True, impl=impl), torch.randn(T, B, I)
        call = torch.compile(gru, fullgraph=True, backend="aot_eager")
        found = call(x, lengths=torch.tensor([-(2**62), 9, 2]))
        for a, b in zip(found, gru(x, lengths=torch.tensor([0, T, 2])), strict=True):
            torch.testing.assert_close(a, b)


# The operators


def operands(**changes):
    """Of ``gru_forward``."""
    found = {"x": torch.randn(T * B, I), "w_ih": torch.randn(6 * H, I), "w_hh": torch.randn(2, 3 * H, H)}
    found |= dict.fromkeys(("b_ih", "b_hh", "h0", "reset_state", "offsets", "lengths", "resets"))
    return found | {"batch": B, "save_gates": True, "family": "llvm" if HAS_LOOP else "triton"} | changes


OF_OPERATORS = {
    "offsets": (
        {"lengths": one_of(0, 1), "offsets": torch.tensor([0, 3, 6, 9, 12])},
        "lengths and resets should not be given with offsets, which packed rows have instead",
    ),
    "no resets": ({"reset_state": STATE}, "reset_state needs resets, which say where it is used"),
    "float": (
        {"lengths": torch.ones(B)},
        "lengths should be int32 or int64, got torch.float32; convert it with .long()",
    ),
    "shape": ({"lengths": one_of(0, 1)[:2]}, "lengths should have the shape (3,), got (2,)"),
    "meta": ({"lengths": one_of(0, 1).to("meta")}, "lengths should be on the device of x, cpu, got meta"),
    "freed": ({"lengths": freed(one_of(0, 1))}, "lengths needs 24 bytes, but its storage, freed or shrunk, holds 0"),
    "numbers": ({"resets": NO_RESETS.byte()}, "resets should be bool, got torch.uint8; convert it with .bool()"),
    "shape of resets": ({"resets": NO_RESETS.t()}, "resets should have the shape (4, 3), got (3, 4)"),
    "state": (
        {"resets": NO_RESETS, "reset_state": STATE[:, :2]},
        "reset_state should have the shape (2, 3, 5), got (2, 2, 5)",
    ),
    "dtype": (
        {"resets": NO_RESETS, "reset_state": STATE.double()},
        "reset_state should have the dtype torch.float32 of x, got torch.float64",
    ),
}


@on_a_cpu
@pytest.mark.parametrize("what", OF_OPERATORS)
def test_operators_refuse_in_sentences_too(what):
    changes, says = OF_OPERATORS[what]
    given = operands(**changes)
    calls = [lambda: torch.ops.tritongru.gru_forward(*given.values())]
    if "offsets" not in changes:
        own = [value for name, value in given.items() if name not in ("offsets", "save_gates", "family")]
        calls.append(lambda: torch.ops.tritongru.gru_routed_forward(*own, "torch", "none", 1, None))
    for call in calls:
        with pytest.raises(RuntimeError) as refused:
            call()
        assert str(refused.value) == says


def test_needs_are_seven():
    given = list(operands().values())
    y, hn, gates = torch.ops.tritongru.gru_forward(*given)
    with pytest.raises(RuntimeError, match="needs should hold 7 values, got 6"):
        torch.ops.tritongru.gru_backward(y, hn, *given[:11], y, gates, [True] * 6, given[-1])


# Tracers and exporters


class Model(nn.Module):
    def __init__(self, **options) -> None:
        super().__init__()
        self.gru = tritongru.GRU(I, H, **options)

    def forward(self, x, lengths=None, resets=None, reset_state=None):
        return self.gru(x, lengths=lengths, resets=resets, reset_state=reset_state)


class OfLengths(nn.Module):
    def __init__(self, **options) -> None:
        super().__init__()
        self.gru = tritongru.GRU(I, H, **options)

    def forward(self, x, lengths):
        return self.gru(x, lengths=lengths)


def close(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_fx_keeps_them_by_name():
    model = Model(bidirectional=True)
    traced = torch.fx.symbolic_trace(model)
    (node,) = [node for node in traced.graph.nodes if node.op == "call_module"]
    assert set(node.kwargs) == {"lengths", "resets", "reset_state"}
    given = torch.randn(T, B, I), one_of(1, 2), NO_RESETS.clone(), torch.randn(2, 1, H)
    given[2][2] = True
    close(traced(*given), model(*given))
    some = torch.fx.symbolic_trace(OfLengths())
    (node,) = [node for node in some.graph.nodes if node.op == "call_module"]
    assert set(node.kwargs) == {"lengths"}


@pytest.mark.parametrize("ragged", ["lengths", "all"])
def test_a_trace_serves_other_sizes(ragged):
    """torch.jit.trace records torch's own operators: of lengths for any, of resets for as many steps."""
    model = (Model if ragged == "all" else OfLengths)(num_layers=2, bidirectional=True)

    def given(time, batch):
        lengths = torch.randint(0, time + 1, (batch,))
        more = (torch.rand(time, batch) < 0.3, torch.randn(4, 1, H)) if ragged == "all" else ()
        return torch.randn(time, batch, I), lengths, *more

    traced = torch.jit.trace(model, given(T, B), check_trace=False)
    for sizes in ((T, B), (T, 5), *([(7, 2)] if ragged == "lengths" else [])):
        some = given(*sizes)
        close(traced(*some), model(*some))
    if ragged == "all":
        for time in (T + 2, T - 1):
            with pytest.raises(RuntimeError, match=f"shape '\\[{T}, 2, 3\\]' is invalid for input of size {time * 6}"):
                traced(*given(time, 2))


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_program_has_them(strict):
    model, given = Model(bidirectional=True), (torch.randn(T, B, I), one_of(1, 2), torch.rand(T, B) < 0.4)
    program = torch.export.export(model, given, strict=strict)
    assert not any("tritongru" in str(node.target) for node in program.graph.nodes)
    close(program.module()(*given), model(*given))


@pytest.mark.every(4)
@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("impl", ["auto", "triton"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_onnx_has_lengths(impl, batch_first, dynamo):
    """As the ``sequence_lens`` of its GRU, for any batch and any number of steps."""
    model = OfLengths(num_layers=2, bidirectional=True, batch_first=batch_first, impl=impl).eval()

    def given(time, batch):
        x = torch.randn((batch, time, I) if batch_first else (time, batch, I))
        return x, torch.randint(1, time + 1, (batch,))

    axes = [("b", "t", "") if batch_first else ("t", "b", ""), ("b",)]
    _, run = onnx_model(model, given(T, B), dynamo, axes)
    for sizes in ((T, B), (7, 2)):
        some = given(*sizes)
        close(run(*some), model(*some))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
def test_onnx_has_no_resets(dynamo):
    pytest.importorskip("onnxscript", reason="the exporter needs onnxscript")

    class OfResets(OfLengths):
        def forward(self, x, resets):
            return self.gru(x, resets=resets)

    with pytest.raises(Exception, match="ONNX") as refused:
        onnx_model(OfResets().eval(), (torch.randn(T, B, I), NO_RESETS), dynamo, [("t", "b", ""), ("t", "b")])
    text = "ONNX's GRU has no resets; export the model without them, and cut the sequences before"
    errors, error = [], refused.value
    while error is not None:
        errors.append(str(error))
        error = error.__cause__ or error.__context__
    assert any(text in said for said in errors), errors


def test_a_copy_of_the_layer_knows_them_too():
    gru, x = tritongru.GRU(I, H), torch.randn(T, B, I)
    close(copy.deepcopy(gru)(x, lengths=one_of(0, 2)), gru(x, lengths=one_of(0, 2)))

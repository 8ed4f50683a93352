"""tritongru.GRU computes what torch.nn.GRU computes, and refuses what it refuses, in the same words."""

import copy
import itertools

import pytest
import torch
from tolerance import assert_close_to_float64, assert_same, assert_same_failure, failure, is_torchs
from torch import nn
from torch.func import functional_call, hessian, jacfwd, jacrev
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import tritongru

pytestmark = pytest.mark.usefixtures("ieee")

IMPLS = ("torch", "auto", "triton")
DEVICE = {"auto": "cpu", "torch": "cpu", "triton": "cuda" if torch.cuda.is_available() else "cpu"}
KINDS = ("batched", "unbatched", "packed", "packed unsorted")
LENGTHS = {"packed": [4, 2, 1], "packed unsorted": [2, 1, 4]}  # a permutation that is not its own inverse
T, B, I, H = 4, 3, 3, 5
f64, f32, bf16, f16 = torch.float64, torch.float32, torch.bfloat16, torch.float16

every_impl = pytest.mark.parametrize("impl", IMPLS)
on_the_cpu = pytest.mark.parametrize("impl", ["torch", "auto"])


def pair(*args, impl="auto", memory="save", seed=0, device=None, **kwargs):
    """torch.nn.GRU and tritongru.GRU with the same weights."""
    torch.manual_seed(seed)
    theirs = nn.GRU(*args, **kwargs, device=device or DEVICE[impl])
    ours = tritongru.GRU(*args, **kwargs, device=device or DEVICE[impl], impl=impl, memory=memory)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def values(*shape, seed=1, like=None):
    """Random values, drawn in float64 on the CPU so that a seed means the same in every dtype."""
    draw = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return draw.float() if like is None else draw.to(like)


def weighting(*outputs):
    """What the gradients of `outputs` shall be: multiples of 1/4, which every dtype holds exactly."""
    draw = torch.Generator().manual_seed(3)
    return [(torch.randint(-8, 9, v.shape, generator=draw) / 4).to(v) for v in outputs]


def gradients(outputs, leaves, grad_outputs=None):
    return torch.autograd.grad(outputs, leaves, grad_outputs or weighting(*outputs))


def results(module, x, hx=None, lengths=None, enforce_sorted=True):
    """The outputs, and the gradient of everything that the caller gave or the module owns."""
    x, hx = (None if v is None else v.detach().clone().requires_grad_() for v in (x, hx))
    input = x if lengths is None else pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted)
    output, h_n = module(input, hx)
    output = output if lengths is None else output.data
    leaves = {"input": x} | ({} if hx is None else {"hx": hx}) | dict(module.named_parameters())
    grads = gradients([output, h_n], list(leaves.values()))
    return {"output": output, "h_n": h_n, **{f"grad of {n}": g for n, g in zip(leaves, grads, strict=True)}}


def assert_same_results(ours, theirs, x, hx=None, impl="auto", compute=results, **kwargs):
    """Bit for bit where torch's own GRU runs; else within rounding on a CPU, and by the tolerance rule against torch in
    float64 where torch rounds at every step, or Triton runs."""
    actual, expected = compute(ours, x, hx, **kwargs), compute(theirs, x, hx, **kwargs)
    assert actual.keys() == expected.keys()
    if is_torchs(impl) or (impl == "auto" and theirs.weight_hh_l0.dtype in (f32, f64)):
        for what in expected:
            assert_same(actual[what], expected[what], what, impl)
        return
    expected64 = compute(copy.deepcopy(theirs).double(), x.double(), None if hx is None else hx.double(), **kwargs)
    for what in expected:
        assert_close_to_float64(actual[what], expected64[what], expected[what], what)


def test_the_tolerance_rule_itself():
    exact, torchs = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([1.0, -2.00001])
    assert_close_to_float64(torch.tensor([1.00002, -2.0]), exact, torchs, "twice torch's error")
    for wrong in ([1.00003, -2.0], [float("nan"), -2.0], [1.0, float("inf")], [1.0], [[1.0, -2.0]]):
        with pytest.raises(AssertionError, match=r"^wrong: "):
            assert_close_to_float64(torch.tensor(wrong), exact, torchs, "wrong")
    with pytest.raises(AssertionError, match=r"^wrong: torch\.float64"):
        assert_close_to_float64(exact, exact, torchs, "wrong")


# ---- every combination of options, forward and every gradient ----


def check_options(impl, layers, bidirectional, bias, batch_first, kind, with_hx, dtype, memory="save"):
    options = (layers, bias, batch_first, 0.0, bidirectional)
    theirs, ours = pair(I, H, *options, dtype=dtype, impl=impl, memory=memory, seed=layers)
    rows, packing = layers * (1 + bidirectional), {}
    shape, hx_shape = ((B, T, I) if batch_first else (T, B, I)), (rows, B, H)
    if kind == "unbatched":
        shape, hx_shape = (T, I), (rows, H)
    elif kind in LENGTHS:
        shape, packing = (T, B, I), {"lengths": LENGTHS[kind], "enforce_sorted": kind == "packed"}
    like = theirs.weight_hh_l0
    hx = values(*hx_shape, seed=2, like=like) if with_hx else None
    assert_same_results(ours, theirs, values(*shape, like=like), hx, impl=impl, **packing)


CPU_OPTIONS = [*itertools.product((1, 2, 3), (False, True), KINDS, (False, True), (f32, f64, bf16, f16))]
cpu_options = pytest.mark.parametrize("row", CPU_OPTIONS, ids=lambda row: "-".join(str(v) for v in row))


def check_options_on_the_cpu(impl, row, memory):
    layers, bidirectional, *rest = row
    for bias, batch_first in itertools.product([True, False], repeat=2):
        check_options(impl, layers, bidirectional, bias, batch_first, *rest, memory)


@pytest.mark.parametrize("memory", ["save", "recompute"])
@cpu_options
def test_options_on_the_cpu(row, memory):
    check_options_on_the_cpu("auto", row, memory)


@pytest.mark.every(7, slow=3)
@cpu_options
def test_impl_torch_is_torchs_own(row):
    check_options_on_the_cpu("torch", row, "recompute")


TRITON_OPTIONS = [(1, 2, 3), (False, True), (False, True), (False, True), KINDS, (False, True), (f32, bf16, f16)]
TRITON_OPTIONS += [("save", "recompute")]
TRITON_ROWS = [  # layers, bidirectional, bias, batch_first, kind, with_hx, dtype, memory
    (1, False, False, False, "packed", True, f16, "recompute"),
    (1, False, False, True, "batched", False, bf16, "save"),
    (1, False, True, True, "unbatched", True, bf16, "recompute"),
    (1, False, True, True, "packed unsorted", False, f32, "recompute"),
    (1, True, False, False, "packed unsorted", False, f16, "save"),
    (2, False, False, True, "packed", False, f32, "save"),
    (2, False, True, True, "packed unsorted", True, bf16, "save"),
    (2, True, True, False, "unbatched", False, f32, "recompute"),
    (2, True, True, True, "batched", True, f16, "recompute"),
    (3, False, False, False, "batched", True, f32, "recompute"),
    (3, False, False, False, "packed unsorted", False, bf16, "recompute"),
    (3, False, False, True, "unbatched", False, f16, "save"),
    (3, True, True, False, "packed", False, bf16, "recompute"),
]


@pytest.mark.every(3)
@pytest.mark.parametrize("row", TRITON_ROWS, ids=lambda row: "-".join(str(v) for v in row))
def test_options_on_triton(row):
    check_options("triton", *row)


def test_triton_rows_hold_every_pair_of_options():
    for (i, first), (j, second) in itertools.combinations(enumerate(TRITON_OPTIONS), 2):
        assert {(row[i], row[j]) for row in TRITON_ROWS} == set(itertools.product(first, second))


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (5, 2, 1, 9), (1, 3, 2, 4)], ids=str)
@every_impl
def test_odd_sizes(impl, sizes):
    time, batch, features, hidden = sizes
    theirs, ours = pair(features, hidden, impl=impl)
    like = theirs.weight_hh_l0
    x, hx = values(time, batch, features, like=like), values(1, batch, hidden, seed=2, like=like)
    assert_same_results(ours, theirs, x, hx, impl=impl)


def test_triton_does_not_take_float64():
    _, ours = pair(I, H, impl="triton", dtype=torch.float64)
    with pytest.raises(RuntimeError, match="float64"):
        ours(values(T, B, I, like=ours.weight_hh_l0))


def test_complex_weights_are_torchs_on_the_cpu():
    theirs, ours = pair(I, H, 2, bidirectional=True, dtype=torch.complex64)
    x = torch.complex(values(T, B, I), values(T, B, I, seed=2))
    for mine, torchs in zip(ours(x), theirs(x), strict=True):
        assert torch.equal(mine, torchs)


@every_impl
def test_arguments_by_keyword_and_a_plain_tuple_as_result(impl):
    _, ours = pair(I, H, impl=impl)
    like = ours.weight_hh_l0
    x, hx = values(2, 1, I, like=like), values(1, 1, H, seed=2, like=like)
    by_position, by_keyword = ours(x, hx), ours(hx=hx, input=x)
    assert type(by_position) is tuple
    assert len(by_position) == 2
    for one, other in zip(by_position, by_keyword, strict=True):
        assert torch.equal(one, other)


@every_impl
def test_last_outputs_are_h_n_bit_for_bit(impl):
    _, ours = pair(I, H, bidirectional=True, impl=impl)
    output, h_n = ours(values(T, B, I, like=ours.weight_hh_l0))
    assert torch.equal(output[-1, :, :H], h_n[-2])
    assert torch.equal(output[0, :, H:], h_n[-1])


# ---- which gradients are asked for ----


@pytest.mark.parametrize("wanted", ["input", "hx", "weight_ih_l0", "weight_hh_l0_reverse", "bias_hh_l0"])
@every_impl
def test_one_gradient_alone(impl, wanted):
    def compute(module, x, hx):
        leaves = {"input": x.detach().clone(), "hx": hx.detach().clone(), **dict(module.named_parameters())}
        for name, leaf in leaves.items():
            leaf.requires_grad_(name == wanted)
        return {"grad": gradients(module(leaves["input"], leaves["hx"]), [leaves[wanted]])[0]}

    theirs, ours = pair(I, H, bidirectional=True, impl=impl)
    like = theirs.weight_hh_l0
    assert_same_results(
        ours, theirs, values(2, B, I, like=like), values(2, B, H, seed=2, like=like), impl=impl, compute=compute
    )


@pytest.mark.parametrize("used", [0, 1], ids=["output", "h_n"])
@every_impl
def test_gradients_when_one_output_is_used(impl, used):
    def compute(module, x, hx):
        names, weights = zip(*module.named_parameters(), strict=True)
        return dict(zip(names, gradients([module(x, hx)[used]], weights), strict=True))

    theirs, ours = pair(I, H, bidirectional=True, impl=impl)
    assert_same_results(ours, theirs, values(2, B, I, like=theirs.weight_hh_l0), impl=impl, compute=compute)


@every_impl
def test_unused_upper_layer_has_zero_gradients_not_none(impl):
    _, ours = pair(I, H, 2, impl=impl)
    ours(values(2, B, I, like=ours.weight_hh_l0))[1][0].sum().backward()
    for name, weight in ours.named_parameters():
        assert weight.grad is not None, name
        assert bool(weight.grad.any()) == name.endswith("l0"), name


@every_impl
def test_no_graph_when_nothing_requires_grad(impl):
    _, ours = pair(I, H, impl=impl)
    x = values(2, 1, I, like=ours.weight_hh_l0)
    with torch.no_grad():
        assert not any(v.requires_grad for v in ours(x))
    with torch.inference_mode():
        assert all(v.is_inference() for v in ours(x))
    assert all(v.requires_grad for v in ours(x))
    assert not any(v.requires_grad for v in ours.requires_grad_(False)(x))


@every_impl
def test_backward_in_eval_mode(impl):
    theirs, ours = pair(I, H, 2, dropout=0.5, impl=impl)
    with torch.backends.cudnn.flags(enabled=False):  # cuDNN cannot
        assert_same_results(ours.eval(), theirs.eval(), values(2, B, I, like=theirs.weight_hh_l0), impl=impl)


@every_impl
def test_backward_twice(impl):
    _, ours = pair(I, H, impl=impl)
    loss = ours(values(2, B, I, like=ours.weight_hh_l0))[0].square().sum()
    weights = list(ours.parameters())
    first = torch.autograd.grad(loss, weights, retain_graph=True)
    second = torch.autograd.grad(loss, weights)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
    with pytest.raises(RuntimeError, match="Trying to backward through the graph a second time"):
        torch.autograd.grad(loss, weights)


@pytest.mark.parametrize("use_reentrant", [False, True], ids=["saved tensor hooks", "reentrant"])
@every_impl
def test_checkpointing(impl, use_reentrant):
    def compute(module, x, hx):
        x = x.detach().clone().requires_grad_()
        outputs = checkpoint(module, x, hx, use_reentrant=use_reentrant)
        torch.autograd.backward(outputs, weighting(*outputs))
        return {"output": outputs[0], "input": x.grad} | {n: w.grad for n, w in module.named_parameters()}

    theirs, ours = pair(I, H, 2, impl=impl)
    assert_same_results(ours, theirs, values(2, B, I, like=theirs.weight_hh_l0), impl=impl, compute=compute)


@on_the_cpu
def test_double_backward_on_the_cpu(impl):
    _, ours = pair(2, 3, 2, bidirectional=True, dtype=torch.float64, impl=impl)
    like = ours.weight_hh_l0
    names, weights = zip(*ours.named_parameters(), strict=True)
    inputs = [values(2, 2, 2, like=like), values(4, 2, 3, seed=2, like=like), *(w.detach() for w in weights)]

    def forward(x, hx, *weights):
        return functional_call(ours, dict(zip(names, weights, strict=True)), (x, hx))

    assert torch.autograd.gradgradcheck(forward, [v.requires_grad_() for v in inputs], fast_mode=True)


def test_triton_refuses_second_derivatives_and_forward_mode():
    _, ours = pair(I, H, impl="triton")
    x = values(2, 1, I, like=ours.weight_hh_l0).requires_grad_()
    (grad,) = torch.autograd.grad(ours(x)[0].square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"differentiate twice|[Dd]ouble back"):
        grad.sum().backward()
    with pytest.raises(RuntimeError, match=r"forward AD|jvp|forward.mode"):
        torch.func.jvp(ours, (x.detach(),), (torch.ones_like(x),))


def test_forward_mode_on_the_cpu():
    theirs, ours = pair(I, H, 2, dtype=torch.float64)
    like = theirs.weight_hh_l0
    x, hx = values(T, B, I, like=like), values(2, B, H, seed=2, like=like)
    tangents = values(T, B, I, seed=4, like=like), values(2, B, H, seed=5, like=like)
    mine, torchs = (torch.func.jvp(module, (x, hx), tangents)[1] for module in (ours, theirs))
    for one, other in zip(mine, torchs, strict=True):
        assert one.any()
        assert torch.equal(one, other)
    inputs = x.requires_grad_(), hx.requires_grad_()
    assert torch.autograd.gradcheck(ours, inputs, check_forward_ad=True, fast_mode=True)


@pytest.mark.parametrize("transform", [jacrev, jacfwd, hessian], ids=lambda f: f.__name__)
def test_jacobians_of_the_weights_on_the_cpu(transform):
    theirs, ours = pair(2, 2, dtype=torch.float64)
    x = values(2, 1, 2, like=theirs.weight_hh_l0)

    def derivative(module):
        weights = {name: weight.detach() for name, weight in module.named_parameters()}
        return transform(lambda weights: functional_call(module, weights, (x,))[1].sum((0, 1)))(weights)

    mine, torchs = tree_leaves(derivative(ours)), tree_leaves(derivative(theirs))
    assert len(mine) == len(torchs) >= 4
    for one, other in zip(mine, torchs, strict=True):
        assert torch.equal(one, other)


# ---- what may be changed between forward and backward ----


@pytest.mark.parametrize("changed", ["input", "hx", "weight_ih_l0", "weight_hh_l0"])
@every_impl
def test_changing_what_the_backward_needs_is_refused(impl, changed):
    _, ours = pair(I, H, impl=impl)
    like = ours.weight_hh_l0
    # leaves with a version that counts: results of an operation
    x, hx = values(2, B, I, like=like).requires_grad_() * 1, values(1, B, H, seed=2, like=like).requires_grad_() * 1
    output, h_n = ours(x, hx)
    with torch.no_grad():
        {"input": x, "hx": hx, **dict(ours.named_parameters())}[changed].add_(1)
    with pytest.raises(RuntimeError, match=r"modified.* in-?place"):
        (output.sum() + h_n.sum()).backward()


@pytest.mark.parametrize("memory", ["save", "recompute"])
@pytest.mark.parametrize("changed", [0, 1], ids=["output", "h_n"])
@on_the_cpu
def test_changing_an_output_is_allowed_on_the_cpu(impl, changed, memory):
    def compute(module, x, hx):
        outputs = module(x, hx)
        grads = weighting(*outputs)
        with torch.no_grad():
            outputs[changed].fill_(7)
        return {str(i): g for i, g in enumerate(gradients(outputs, list(module.parameters()), grads))}

    theirs, ours = pair(I, H, 2, impl=impl, memory=memory)
    assert_same_results(ours, theirs, values(T, B, I), impl=impl, compute=compute)
    untouched = gradients(ours(values(T, B, I)), list(ours.parameters()))
    for i, grad in compute(ours, values(T, B, I), None).items():
        assert torch.equal(grad, untouched[int(i)])


@pytest.mark.parametrize("changed", [0, 1], ids=["output", "h_n"])
def test_changing_an_output_is_refused_or_harmless_on_triton(changed):
    def compute(module, x, hx):
        outputs = module(x, hx)
        grads = weighting(*outputs)
        with torch.no_grad():
            outputs[changed].fill_(7)
        names, weights = zip(*module.named_parameters(), strict=True)
        return dict(zip(names, gradients(outputs, weights, grads), strict=True))

    theirs, ours = pair(I, H, 2, impl="triton")
    x = values(T, B, I, like=theirs.weight_hh_l0)
    refused = failure(lambda: compute(ours, x, None))
    if refused is None:
        with torch.backends.cudnn.flags(enabled=False):
            assert_same_results(ours, theirs, x, impl="triton", compute=compute)
    else:
        assert refused[0] is RuntimeError
        assert "has been modified by an inplace operation" in refused[1]


# ---- errors: the order of the checks, the types and the words ----


def tensors(shapes, device_and_dtype=(("cpu", f32), ("cpu", torch.float64), ("meta", f32))):
    return [torch.zeros(s, device=d, dtype=t) for s in shapes for d, t in device_and_dtype]


def spec(v):
    return f"{list(v.shape)}-{v.dtype}-{v.device}".replace("torch.", "") if isinstance(v, torch.Tensor) else str(v)


INPUTS = tensors(
    [(), (3,), (1, 1, 1, 3), (2, 3), (2, 2, 3), (2, 7), (2, 2, 7), (0, 3), (0, 2, 3), (2, 0, 3), (0, 0, 3)]
)
HIDDENS = [None, *tensors([(4,), (2, 4), (2, 5), (2, 2, 4), (2, 1, 4), (2, 3, 4), (2, 0, 4), (1, 2, 2, 4)])]
HIDDENS += tensors([(2, 2, 4), (2, 4)], [("cpu", torch.int64), ("cpu", bf16), ("meta", torch.float64)])


def in_triton_words(expected, x, hx):
    """torch on the CPU finds a wrong dtype of hx in a product, cuDNN by comparing; Triton words it as cuDNN does."""
    if "must have the same dtype" not in expected[1]:
        return expected
    spelled = [v.type().removeprefix("torch.").removesuffix("Tensor") for v in (x, hx)]
    words = "Input and hidden tensors are not the same dtype, found input tensor with {} and hidden tensor with {}"
    return RuntimeError, words.format(*spelled)


@pytest.mark.parametrize("x", INPUTS, ids=spec)
@every_impl
def test_refused_calls(impl, x):
    theirs, ours = pair(3, 4, 2, impl=impl, device="cpu")
    expected = {spec(hx): failure(theirs, x, hx) for hx in HIDDENS}
    if impl == "triton":
        expected = {spec(hx): expected[spec(hx)] and in_triton_words(expected[spec(hx)], x, hx) for hx in HIDDENS}
    assert any(expected.values())
    assert {spec(hx): failure(ours, x, hx) for hx in HIDDENS if expected[spec(hx)]} == {
        name: refusal for name, refusal in expected.items() if refusal
    }


REFUSED_ARGUMENTS = {
    "nothing": ((), {}),
    "list": (([1.0],), {}),
    "None": ((None,), {}),
    "str": (("x",), {}),
    "tuple of tensors": (((torch.zeros(2, 2, 3),),), {}),
    "ndarray": ((torch.zeros(2, 2, 3).numpy(),), {}),
    "integers": ((torch.ones(2, 2, 3, dtype=torch.int64),), {}),
    "hx tuple": ((torch.zeros(2, 2, 3), (torch.zeros(1, 2, 4),)), {}),
    "hx list": ((torch.zeros(2, 3), [0.0]), {}),
    "three": ((torch.zeros(2, 2, 3), None, None), {}),
    "keyword": ((torch.zeros(2, 2, 3),), {"h0": None}),
}


@pytest.mark.parametrize("what", REFUSED_ARGUMENTS)
@every_impl
def test_refused_arguments(impl, what):
    theirs, ours = pair(3, 4, impl=impl, device="cpu")
    args, kwargs = REFUSED_ARGUMENTS[what]
    assert_same_failure(ours, theirs, *args, **kwargs)


@pytest.mark.parametrize(
    "x, hx, error, text",
    [
        ((3,), None, ValueError, "GRU: Expected input to be 2D or 3D, got 1D instead"),
        ((2, 3), (2, 1, 4), RuntimeError, "For unbatched 2-D input, hx should also be 2-D but got 3-D tensor"),
        ((2, 2, 3), (2, 4), RuntimeError, "For batched 3-D input, hx should also be 3-D but got 2-D tensor"),
        ((2, 2, 7), None, RuntimeError, "input.size(-1) must be equal to input_size. Expected 3, got 7"),
        ((2, 2, 3), (2, 3, 4), RuntimeError, "Expected hidden size (2, 2, 4), got [2, 3, 4]"),
        ((2, 3), (3, 4), RuntimeError, "Expected hidden size (2, 1, 4), got [3, 1, 4]"),
        ((0, 2, 3), None, RuntimeError, "Expected sequence length to be larger than 0 in RNN"),
    ],
    ids=str,
)
@every_impl
def test_the_words_of_an_error(impl, x, hx, error, text):
    _, ours = pair(3, 4, 2, impl=impl, device="cpu")
    assert failure(ours, torch.zeros(x), None if hx is None else torch.zeros(hx)) == (error, text)


@every_impl
def test_the_words_of_a_wrong_dtype_and_a_wrong_device(impl):
    _, ours = pair(3, 4, impl=impl, device="cpu")
    x = torch.zeros(2, 2, 3)
    assert failure(ours, x.double()) == (
        ValueError,
        "RNN input dtype (torch.float64) does not match weight dtype (torch.float32). "
        "Convert input: input.to(torch.float32), or convert model: model.to(torch.float64)",
    )
    assert failure(ours, x.to("meta")) == (
        RuntimeError,
        "Input and parameter tensors are not at the same device, "
        "found input tensor at meta and parameter tensor at cpu",
    )


@every_impl
def test_batch_first_reads_the_batch_from_the_first_axis(impl):
    theirs, ours = pair(3, 4, batch_first=True, impl=impl, device="cpu")
    x, hx = torch.zeros(2, 5, 3), torch.zeros(1, 5, 4)
    assert_same_failure(ours, theirs, x, hx)
    assert failure(ours, x, hx) == (RuntimeError, "Expected hidden size (1, 2, 4), got [1, 5, 4]")


@every_impl
def test_meta_module_and_cpu_input(impl):
    theirs, ours = (module.to("meta") for module in pair(3, 4, impl=impl, device="cpu"))
    assert_same_failure(ours, theirs, torch.zeros(2, 2, 3))


@every_impl
def test_a_refused_call_leaves_the_module_as_it_was(impl):
    _, ours = pair(3, 4, impl=impl)
    x = values(2, 2, 3, like=ours.weight_hh_l0)
    before = ours(x)
    for bad in (x[..., :2], x[:0], x.double(), x[0, 0]):
        assert failure(ours, bad)
    for one, other in zip(before, ours(x), strict=True):
        assert torch.equal(one, other)


# ---- PackedSequence ----


def packed(lengths=(4, 2, 1), **changes):
    """A PackedSequence of three features; `changes` replaces its fields without any check."""
    sequences = [values(n, 3, seed=n) for n in lengths]
    p = pack_sequence(sequences, enforce_sorted=list(lengths) == sorted(lengths, reverse=True))
    return PackedSequence(*[changes.get(field, getattr(p, field)) for field in PackedSequence._fields])


def sizes(*numbers, dtype=torch.int64):
    return torch.tensor(numbers, dtype=dtype)


UNSORTED = (2, 1, 4)  # a permutation that is not its own inverse
REFUSED_PACKED = {
    "3-D data": (packed(data=torch.zeros(7, 1, 3)), None),
    "features": (packed(data=torch.zeros(7, 5)), None),
    "dtype": (packed(data=torch.zeros(7, 3).double()), None),
    "device": (packed(data=torch.zeros(7, 3, device="meta")), None),
    "hx device": (packed(), torch.zeros(2, 3, 4, device="meta")),
    "hx dtype": (packed(), torch.zeros(2, 3, 4).double()),
    "hx 2-D": (packed(), torch.zeros(2, 4)),
    "hx 2-D, unsorted": (packed(UNSORTED), torch.zeros(2, 4)),
    "hx list": (packed(), [0.0]),
    "hx list, unsorted": (packed(UNSORTED), [0.0]),
    "hx batch too small": (packed(), torch.zeros(2, 1, 4)),
    "hx batch too small, unsorted": (packed(UNSORTED), torch.zeros(2, 2, 4)),
    "hx batch too large": (packed(), torch.zeros(2, 4, 4)),
    "hx hidden size, unsorted": (packed(UNSORTED), torch.zeros(2, 3, 5)),
    "too little data": (packed(data=torch.zeros(6, 3)), None),
    "int32 batch sizes": (packed(batch_sizes=sizes(3, 2, 1, 1, dtype=torch.int32)), None),
    "no batch sizes": (packed(batch_sizes=sizes()), None),
    "growing batch": (packed(batch_sizes=sizes(2, 3, 2)), None),
    "features before hx": (packed(data=torch.zeros(7, 5)), torch.zeros(2, 4)),
    "data before hx": (packed(data=torch.zeros(6, 3)), torch.zeros(2, 1, 4)),
}
# Where torch on the CPU makes no check of its own for packed input and fails inside a product, or, of devices, may
# return what nobody has written: then its words for other input hold on both paths.
TRITON_WORDS = {
    "device": "^Input and parameter tensors are not at the same device, found input tensor at meta and parameter",
    "hx device": "^Input and hidden tensors are not at the same device, found input tensor at cpu and hidden tensor",
    "hx dtype": "^Input and hidden tensors are not the same dtype, found input tensor with Float and hidden tensor",
    "growing batch": "batch_sizes|must match",
}


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one_way", "both_ways"])
@pytest.mark.parametrize("what", REFUSED_PACKED)
@every_impl
def test_refused_packed_calls(impl, what, bidirectional):
    theirs, ours = pair(3, 4, 1 if bidirectional else 2, bidirectional=bidirectional, impl=impl, device="cpu")
    if what in TRITON_WORDS and (impl == "triton" or "device" in what):
        with pytest.raises(RuntimeError, match=TRITON_WORDS[what]):
            ours(*REFUSED_PACKED[what])
    else:
        assert_same_failure(ours, theirs, *REFUSED_PACKED[what])


@pytest.mark.parametrize("lengths", [(4, 2, 1), UNSORTED], ids=["sorted", "unsorted"])
@every_impl
def test_packed_result_carries_the_same_index_tensors(impl, lengths):
    _, ours = pair(3, 4, impl=impl)
    input = packed(lengths).to(ours.weight_hh_l0.device)
    output, _ = ours(input)
    assert type(output) is PackedSequence
    for field in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        assert getattr(output, field) is getattr(input, field), field


@every_impl
def test_packed_rows_keep_the_order_of_the_caller(impl):
    theirs, ours = pair(3, 4, bidirectional=True, impl=impl)
    like = theirs.weight_hh_l0
    hx, wide = values(2, 3, 4, seed=9, like=like), copy.deepcopy(theirs).double()
    output, h_n = ours(packed(UNSORTED).to(like.device), hx)
    output, lengths = pad_packed_sequence(output)
    assert lengths.tolist() == list(UNSORTED)
    for row, n in enumerate(UNSORTED):
        x = values(n, 3, seed=n, like=like)
        alone, alone64 = theirs(x, hx[:, row]), wide(x.double(), hx[:, row].double())
        assert_close_to_float64(output[:n, row], alone64[0], alone[0], f"output of row {row}")
        assert_close_to_float64(h_n[:, row], alone64[1], alone[1], f"h_n of row {row}")
        assert not output[n:, row].any()


PACKED_ODDITIES = {
    "hx batch too large, unsorted, is cut": (packed(UNSORTED), values(4, 5, 4)),
    "too much data is cut": (packed(data=values(9, 3)), None),
    "trailing empty steps": (packed(batch_sizes=sizes(3, 2, 1, 1, 0)), None),
    "one row": (packed((3,)), None),
    "equal lengths": (packed((2, 2, 2)), None),
    "non-contiguous data": (packed(data=values(3, 7).t()), None),
}


@pytest.mark.parametrize("what", PACKED_ODDITIES)
@every_impl
def test_packed_oddities_that_torch_accepts(impl, what):
    def compute(module, data, hx):
        output, h_n = module(input._replace(data=data), hx)
        grads = gradients([output.data, h_n], list(module.parameters()))
        return {"output": output.data, "h_n": h_n} | {str(i): g for i, g in enumerate(grads)}

    # from data that are too long, torch's reverse direction reads at the wrong end
    theirs, ours = pair(3, 4, 2, bidirectional=what != "too much data is cut", impl=impl)
    input, hx = (v if v is None else v.to(DEVICE[impl]) for v in PACKED_ODDITIES[what])
    assert_same_results(ours, theirs, input.data, hx, impl=impl, compute=compute)


# ---- layouts, aliases, empty batches, NaN ----


@pytest.mark.parametrize("kind", ["time major", "batch first", "unbatched", "packed"])
@every_impl
def test_strides_of_the_results(impl, kind):
    theirs, ours = pair(3, 4, 2, batch_first=kind == "batch first", bidirectional=True, impl=impl)
    x = torch.zeros((2, 3) if kind == "unbatched" else (2, 5, 3), device=DEVICE[impl])
    x = packed().to(x.device) if kind == "packed" else x
    for mine, torchs in zip(ours(x), theirs(x), strict=True):
        if kind == "packed" and isinstance(mine, PackedSequence):
            mine, torchs = mine.data, torchs.data
        assert mine.shape == torchs.shape
        assert mine.stride() == torchs.stride()
        assert mine.is_contiguous() == torchs.is_contiguous()


@pytest.mark.parametrize("batch_first", [False, True], ids=["time_major", "batch_first"])
@every_impl
def test_strided_inputs_weights_and_gradients(impl, batch_first):
    def compute(module, x, hx):
        x, hx = x[..., ::2].transpose(0, 1).detach().requires_grad_(), hx.detach().requires_grad_()
        output, h_n = module(x, hx.expand(2, 3, 4))
        grads = [torch.ones_like(output[..., :1]).expand_as(output), weighting(h_n.mT)[0].mT]
        leaves = {"x": x, "hx": hx} | dict(module.named_parameters())
        grads = gradients([output, h_n], list(leaves.values()), grads)
        return {"output": output, "h_n": h_n} | {f"grad of {n}": g for n, g in zip(leaves, grads, strict=True)}

    theirs, ours = pair(3, 4, bidirectional=True, batch_first=batch_first, impl=impl)
    with torch.no_grad():
        for module in (theirs, ours):
            module.weight_hh_l0.data = module.weight_hh_l0.t().contiguous().t()
            module.weight_ih_l0_reverse.data = module.weight_ih_l0_reverse.repeat_interleave(2, 1)[:, ::2]
            module.bias_hh_l0.data = module.bias_hh_l0.repeat_interleave(2)[::2]
    assert not ours.weight_hh_l0.is_contiguous()
    like = theirs.weight_hh_l0
    x = values(*((2, 3) if batch_first else (3, 2)), 5, like=like)
    with torch.backends.cudnn.flags(enabled=False):  # cuDNN wants a contiguous hx
        assert_same_results(ours, theirs, x, values(2, 1, 4, seed=2, like=like), impl=impl, compute=compute)


@pytest.mark.parametrize("layers", [1, 2])
@every_impl
def test_results_share_no_memory(impl, layers):
    _, ours = pair(3, 4, layers, impl=impl)
    like = ours.weight_hh_l0
    x, hx = values(1, 2, 3, like=like), values(layers, 2, 4, seed=2, like=like)
    output, h_n = ours(x, hx)
    results = [output, h_n, *ours(x, hx)]
    storages = {v.untyped_storage().data_ptr() for v in results}
    assert len(storages) == len(results)
    assert storages.isdisjoint(v.untyped_storage().data_ptr() for v in (x, hx, *ours.parameters()))


@pytest.mark.parametrize(
    "shape, batch_first", [((2, 0, 3), False), ((0, 2, 3), True)], ids=["time_major", "batch_first"]
)
@every_impl
def test_empty_batch(impl, shape, batch_first):
    theirs, ours = pair(3, 4, 2, batch_first=batch_first, bidirectional=True, impl=impl)
    x, hx = (torch.zeros(s, device=DEVICE[impl]) for s in (shape, (4, 0, 4)))
    for given in (None, hx):
        assert_same_results(ours, theirs, x, given, impl=impl)
    assert not any(grad.any() for name, grad in results(ours, x, hx).items() if "weight" in name or "bias" in name)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=str)
@every_impl
def test_nan_stays_in_its_row_and_after_its_step(impl, bad):
    _, ours = pair(I, H, 2, impl=impl)
    x = values(T, B, I, like=ours.weight_hh_l0)
    clean = ours(x)
    x[2, 1, 0] = bad
    output, h_n = ours(x)
    others = [0, 2]
    assert torch.equal(output[:, others], clean[0][:, others])
    assert torch.equal(h_n[:, others], clean[1][:, others])
    assert torch.equal(output[:2, 1], clean[0][:2, 1])
    if bad != bad:
        assert output[2:, 1].isnan().all()
        assert h_n[:, 1].isnan().all()
    else:
        assert not output.isnan().any()  # gates saturate


@every_impl
def test_huge_values_saturate_as_in_torch(impl):
    def compute(module, x, hx):
        """The slope of a gate there is zero, or on a CPU of the size of the smallest numbers, times such an x."""
        found = results(module, x, hx)
        return {name: value.where(value.abs() > 1e-30, torch.zeros_like(value)) for name, value in found.items()}

    theirs, ours = pair(I, H, impl=impl)
    x = 1e4 * values(T, B, I, like=theirs.weight_hh_l0)
    assert_same_results(ours, theirs, x, impl=impl, compute=compute)


# ---- dropout ----


def seeded(module, x, hx, seed=11):
    torch.manual_seed(seed)
    return results(module, x, hx)


def random_states():
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("p", [0.25, 0.5, 1, 1.0], ids=str)
@pytest.mark.parametrize("batch_first", [False, True], ids=["time_major", "batch_first"])
@pytest.mark.parametrize("layers, bidirectional", [(2, False), (3, True)])
@on_the_cpu
def test_dropout_draws_torchs_masks_on_the_cpu(impl, layers, bidirectional, batch_first, p):
    theirs, ours = pair(I, H, layers, True, batch_first, p, bidirectional, impl=impl)
    assert type(ours.dropout) is float
    assert_same_results(ours, theirs, values(B, T, I), impl=impl, compute=seeded)
    torch.manual_seed(11)
    mine, my_state = ours(packed(UNSORTED)), torch.get_rng_state()
    torch.manual_seed(11)
    torchs = theirs(packed(UNSORTED))
    assert_same(mine[0].data, torchs[0].data, "output", impl)
    assert_same(mine[1], torchs[1], "h_n", impl)
    assert torch.equal(my_state, torch.get_rng_state())


@every_impl
def test_dropout_by_hand(impl):
    theirs, ours = pair(I, H, 2, bidirectional=True, dropout=0.5, impl=impl)
    like = theirs.weight_hh_l0
    lower, upper = nn.GRU(I, H, bidirectional=True).to(like), nn.GRU(2 * H, H, bidirectional=True).to(like)
    lower.load_state_dict({n: w for n, w in theirs.state_dict().items() if "_l0" in n})
    upper.load_state_dict({n.replace("_l1", "_l0"): w for n, w in theirs.state_dict().items() if "_l1" in n})

    def by_hand(x):
        below, h_below = lower(x)
        output, h_n = upper(below * scaled_mask.to(x))
        return output, torch.cat([h_below, h_n])

    x = values(T, B, I, like=like)
    torch.manual_seed(5)
    actual = ours(x)
    torch.manual_seed(5)
    scaled_mask = torch.dropout(torch.ones(T, B, 2 * H, device=x.device), 0.5, True)
    expected = by_hand(x)
    lower, upper = lower.double(), upper.double()
    for mine, torchs, wide in zip(actual, expected, by_hand(x.double()), strict=True):
        assert_close_to_float64(mine, wide, torchs, "dropout by hand")
    assert not torch.equal(actual[0], ours(x)[0]), "a fresh mask for every call"


@every_impl
def test_dropout_of_one_feeds_zeros_upwards(impl):
    _, ours = pair(I, H, 2, dropout=1, impl=impl)
    like = ours.weight_hh_l0
    one, other = (ours(values(2, B, I, seed=seed, like=like)) for seed in (1, 2))
    assert one[0].isfinite().all()
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1][1], other[1][1])
    assert not torch.equal(one[1][0], other[1][0]), "h_n of the lower layer is not dropped"


@pytest.mark.parametrize("layers, p, training", [(2, 0.5, False), (2, 0.0, True), (1, 0.5, True)])
@pytest.mark.filterwarnings("ignore:dropout option adds dropout")
@every_impl
def test_no_random_numbers_without_dropout(impl, layers, p, training):
    theirs, ours = pair(I, H, layers, dropout=p, impl=impl)
    x = values(2, B, I, like=theirs.weight_hh_l0)
    before = random_states()
    dropped = ours.train(training)(x)
    assert all(torch.equal(a, b) for a, b in zip(before, random_states(), strict=True))
    ours.dropout = 0.0
    for one, other in zip(dropped, ours(x), strict=True):
        assert torch.equal(one, other)


@every_impl
def test_dropout_can_be_set_later(impl):
    _, ours = pair(I, H, 2, impl=impl)
    x = values(2, B, I, like=ours.weight_hh_l0)
    plain = ours(x)[0]
    ours.dropout = 0.5
    assert not torch.equal(ours(x)[0], plain)
    ours.eval()
    assert torch.equal(ours(x)[0], plain)


# ---- autocast on the CPU ----

LOW = pytest.mark.parametrize("low", [bf16, f16], ids=str)


@pytest.mark.parametrize("hx_dtype", [None, f32, "low", torch.float64], ids=str)
@pytest.mark.parametrize("x_dtype", [f32, "low", torch.float64], ids=str)
@pytest.mark.parametrize("weight_dtype", [f32, torch.float64], ids=str)
@LOW
def test_autocast_on_the_cpu(low, weight_dtype, x_dtype, hx_dtype):
    """Torch's own bit for bit, except in float64, which autocast leaves alone."""
    theirs, ours = pair(I, H, 2, bidirectional=True, dtype=weight_dtype)
    x = values(T, B, I).to(low if x_dtype == "low" else x_dtype)
    hx = None if hx_dtype is None else values(4, B, H, seed=2).to(low if hx_dtype == "low" else hx_dtype)
    with torch.autocast("cpu", dtype=low):
        refused = failure(theirs, x, hx)
        if refused:
            assert failure(ours, x, hx) == refused
        else:
            assert_same_results(ours, theirs, x, hx, impl="auto" if weight_dtype == x_dtype == f64 else "torch")


@pytest.mark.parametrize(
    "x_dtype, hx_dtype, out_dtype",
    [(f32, None, f32), (f32, f32, f32), (f32, "low", "low"), ("low", None, "low"), ("low", "low", "low")],
    ids=str,
)
@LOW
def test_dtype_of_the_result_under_autocast_on_the_cpu(low, x_dtype, hx_dtype, out_dtype):
    x_dtype, hx_dtype, out_dtype = (low if t == "low" else t for t in (x_dtype, hx_dtype, out_dtype))
    _, ours = pair(I, H, 2)
    with torch.autocast("cpu", dtype=low):
        output, h_n = ours(values(T, B, I).to(x_dtype), hx_dtype and values(2, B, H).to(hx_dtype))
    assert output.dtype == h_n.dtype == out_dtype
    (output.sum() + h_n.sum()).backward()
    assert all(weight.grad.dtype == f32 for weight in ours.parameters())


def test_autocast_switched_off_inside():
    theirs, ours = pair(I, H)
    with torch.autocast("cpu", dtype=bf16), torch.autocast("cpu", enabled=False):
        assert_same_results(ours, theirs, values(T, B, I))
        assert_same_failure(ours, theirs, values(T, B, I).to(bf16))

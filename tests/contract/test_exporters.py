"""What torch.jit, torch.fx, torch.export and the ONNX exporters make of models that hold the layer."""

import io

import pytest
import torch
from cpu_loop import HAS_LOOP
from layers import onnx_model
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import tritongru

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
IMPLS = ["auto", "triton"]


class Two(nn.Module):
    """Two of our layers, one after the other: each must be seen on its own."""

    def __init__(self, impl: str = "auto", **options) -> None:
        super().__init__()
        directions = 2 if options.get("bidirectional") else 1
        self.first = tritongru.GRU(3, 4, impl=impl, **options)
        self.second = tritongru.GRU(4 * directions, 5, impl=impl, **options)
        self.head = nn.Linear(5 * directions, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.first(x)
        return self.head(self.second(y)[0])


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# torch.jit


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("layers, bidirectional", [(1, False), (2, True)])
def test_a_trace_serves_other_batches_and_lengths(impl, grad, layers, bidirectional, device):
    gru = tritongru.GRU(3, 4, layers, bidirectional=bidirectional, impl=impl).to(device).eval()
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(gru, torch.randn(2, 2, 3, device=device))
        kinds = [node.kind() for node in traced.inlined_graph.nodes()]
        assert kinds.count("aten::gru") == 1
        assert not any("tritongru" in kind or "PythonOp" in kind for kind in kinds)
        x = torch.randn(5, 3, 3, device=device)
        for found, expected in zip(traced(x), gru(x), strict=True):
            close(found, expected)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_trace_of_packed_rows_and_of_hx(impl):
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = tritongru.GRU(3, 4, impl=impl)

        def forward(self, x, lengths, hx):
            packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
            output, h_n = self.gru(packed, hx)
            return pad_packed_sequence(output)[0], h_n

    model = Packed()
    first = torch.randn(5, 2, 3), torch.tensor([5, 3]), torch.randn(1, 2, 4)
    traced = torch.jit.trace(model, first)
    other = torch.randn(7, 3, 3), torch.tensor([2, 7, 4]), torch.randn(1, 3, 4)
    for found, expected in zip(traced(*other), model(*other), strict=True):
        close(found, expected)


def test_a_trace_of_two_layers_and_of_the_function():
    model, x = Two("triton").eval(), torch.randn(6, 4, 3)
    traced = torch.jit.trace(model, torch.randn(2, 2, 3))
    assert sum(node.kind() == "aten::gru" for node in traced.inlined_graph.nodes()) == 2
    close(traced(x), model(x))
    weights = [p.detach() for p in model.first.parameters()]
    function = torch.jit.trace(lambda x: tritongru.gru(x, None, weights, impl="triton")[1], torch.randn(2, 2, 3))
    close(function(x), model.first(x)[1])


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("as_torch_type", [False, True])
def test_a_model_is_scripted_with_torchs_gru(impl, as_torch_type):
    theirs = nn.GRU(3, 4, 2, bidirectional=True)
    theirs.register_forward_hook(lambda *_: None)
    theirs._forward_hooks.clear()
    model = nn.Sequential(tritongru.GRU.from_torch(theirs, impl=impl, as_torch_type=as_torch_type))
    x = torch.randn(5, 2, 3)
    expected = model(x)
    scripted = torch.jit.script(model)
    for found, value in zip(scripted(x), expected, strict=True):
        close(found, value)
    assert dict(scripted.named_parameters())["0.weight_hh_l0"].data_ptr() == theirs.weight_hh_l0.data_ptr()
    assert torch.jit.script(Two(impl).eval())(x).shape == (5, 2, 2)


def test_the_bare_layer_is_not_scripted():
    with pytest.raises(RuntimeError, match=r"only as part of a model, like torch\.nn\.GRU"):
        torch.jit.script(tritongru.GRU(3, 4))


# torch.fx


def test_fx_takes_each_layer_as_one_node():
    model, x = Two("triton", bidirectional=True).eval(), torch.randn(5, 2, 3)
    traced = torch.fx.symbolic_trace(model)
    calls = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert calls == ["first", "second", "head"]
    close(traced(x), model(x))


def test_fx_keeps_hx_by_position_or_name():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = tritongru.GRU(3, 4)

        def forward(self, x, hx):
            return self.gru(x, hx)[1] + self.gru(x, hx=hx)[1] + self.gru(x)[1] + self.gru(torch.zeros(1, 2, 3), hx)[1]

    model = Model()
    x, hx = torch.randn(5, 2, 3), torch.randn(1, 2, 4)
    close(torch.fx.symbolic_trace(model)(x, hx), model(x, hx))


def test_fx_of_the_layer_alone_gets_a_sentence():
    with pytest.raises(torch.fx.proxy.TraceError, match=r"put it into torch\.nn\.Sequential"):
        torch.fx.symbolic_trace(tritongru.GRU(3, 4))


def test_fx_quantisation_gets_a_sentence():
    quantize_fx = pytest.importorskip("torch.ao.quantization.quantize_fx", reason="torch has given up FX quantisation")
    from torch.ao.quantization import QConfigMapping, default_dynamic_qconfig

    asked = QConfigMapping().set_global(default_dynamic_qconfig)
    with pytest.raises(torch.fx.proxy.TraceError, match=r"replace each tritongru\.GRU by its to_torch\(\)"):
        quantize_fx.prepare_fx(Two().eval(), asked, (torch.randn(5, 2, 3),))


# torch.export


@pytest.mark.slow
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("memory", ["auto", "save", "recompute"])
@pytest.mark.parametrize("strict", [False, True])
def test_export_leaves_the_batch_open(impl, memory, strict, device):
    gru = tritongru.GRU(3, 4, 2, impl=impl, memory=memory).to(device).eval()
    shapes = ({1: torch.export.Dim("b")},)
    program = torch.export.export(gru, (torch.randn(5, 2, 3, device=device),), dynamic_shapes=shapes, strict=strict)
    x = torch.randn(5, 7, 3, device=device)
    for found, expected in zip(program.module()(x), gru(x), strict=True):
        close(found, expected)


on_a_cpu = pytest.mark.skipif(not HAS_LOOP or torch.cuda.is_available(), reason="llvm runs on a CPU, with llvmlite")


@pytest.mark.parametrize("impl", ["triton", pytest.param("llvm", marks=on_a_cpu)])
def test_export_of_the_kernels_leaves_the_time_open_and_can_be_trained(impl, device):
    gru = tritongru.GRU(3, 4, 2, bidirectional=True, impl=impl).to(device)
    shapes = ({0: torch.export.Dim("t"), 1: torch.export.Dim("b")},)
    program = torch.export.export(gru, (torch.randn(5, 2, 3, device=device),), dynamic_shapes=shapes)
    x = torch.randn(8, 3, 3, device=device)
    found = program.module()
    close(found(x)[0], gru(x)[0])
    found(x)[0].square().sum().backward()
    gru(x)[0].square().sum().backward()
    for name, parameter in gru.named_parameters():
        close(found.get_parameter(name).grad, parameter.grad)


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_model_of_auto_needs_torch_alone(strict):
    """On a CPU, whatever runs there before it is exported."""
    model, x = Two().eval(), torch.randn(5, 2, 3)
    program = torch.export.export(model, (x,), strict=strict)
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets.count("aten.gru.input") == 2
    assert not any("tritongru" in target for target in targets)
    close(program.module()(x), model(x))


# ONNX


def grus(model):
    nodes = [node for node in model.graph.node if node.op_type == "GRU"]
    assert not any(node.op_type in ("Loop", "Scan") for node in model.graph.node)
    return len(nodes)


@pytest.mark.every(24, slow=3)
@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
@pytest.mark.parametrize("hx", [False, True], ids=["no_hx", "hx"])
@pytest.mark.parametrize(
    "layers, bidirectional, bias, batch_first",
    [(1, False, True, False), (2, True, True, True), (1, True, False, False)],
)
@pytest.mark.parametrize("impl", IMPLS)
def test_onnx_has_one_node_a_layer_and_any_length(impl, layers, bidirectional, bias, batch_first, hx, dynamo):
    options = {"bias": bias, "batch_first": batch_first, "bidirectional": bidirectional}
    gru = tritongru.GRU(3, 4, layers, **options, impl=impl).eval()
    states = layers * (2 if bidirectional else 1)

    def arguments(T, B):
        x = torch.randn((B, T, 3) if batch_first else (T, B, 3))
        return (x, torch.randn(states, B, 4)) if hx else (x,)

    axes = [("b", "t", "") if batch_first else ("t", "b", ""), ("", "b", "")]
    model, run = onnx_model(gru, arguments(5, 2), dynamo, axes[: 1 + hx])
    assert grus(model) == layers
    for T, B in ((5, 2), (7, 3)):
        given = arguments(T, B)
        for found, expected in zip(run(*given), gru(*given), strict=True):
            close(found, expected)


@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
def test_onnx_of_two_layers_and_of_an_unbatched_input(dynamo):
    model = Two("triton").eval()
    found, run = onnx_model(model, (torch.randn(5, 2, 3),), dynamo, [("t", "b", "")])
    assert grus(found) == 2
    x = torch.randn(9, 4, 3)
    close(run(x)[0], model(x))
    found, run = onnx_model(model.first, (torch.randn(5, 3),), dynamo, [("t", "")])
    x = torch.randn(6, 3)
    close(run(x)[0], model.first(x)[0])


def test_a_program_of_kernels_is_refused_by_onnx(device):
    pytest.importorskip("onnxscript", reason="the exporter needs onnxscript")
    gru, x = tritongru.GRU(3, 4, impl="triton").to(device).eval(), torch.randn(5, 2, 3, device=device)
    program = torch.export.export(gru, (x,))
    with pytest.raises(Exception, match=r"that contains tritongru's kernels cannot be converted to ONNX") as caught:
        torch.onnx.export(program, (), io.BytesIO(), dynamo=True, verbose=False)
    assert "pass the module itself to torch.onnx.export" in str(caught.value)

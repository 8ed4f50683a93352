"""One layer run three ways on the same numbers: by the kernels, by torch in the same dtype, by torch in float64; and a
model as ONNX."""

import io
import warnings
from dataclasses import dataclass

import pytest
import torch
from tolerance import assert_close_to_float64
from torch import Tensor, nn

import tritongru
from tritongru import reference


@dataclass(frozen=True)
class Case:
    T: int = 5
    B: int = 3
    I: int = 4
    H: int = 5
    layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    hx: bool = True
    memory: str = "save"
    impl: str = "triton"
    dtype: torch.dtype = torch.float32
    scale: float = 1.0
    seed: int = 0

    @property
    def states(self) -> int:
        return self.layers * (2 if self.bidirectional else 1)


def build(case: Case, device: torch.device, **options) -> tuple[tritongru.GRU, Tensor, Tensor | None]:
    """The layer and its input, every value of them exact in the case's dtype."""
    torch.manual_seed(case.seed)
    ours = tritongru.GRU(
        case.I,
        case.H,
        case.layers,
        case.bias,
        bidirectional=case.bidirectional,
        impl=case.impl,
        memory=case.memory,
        **options,
    ).to(device, case.dtype)
    x = (case.scale * torch.randn(case.T, case.B, case.I)).to(device, case.dtype)
    hx = torch.randn(case.states, case.B, case.H).to(device, case.dtype) if case.hx else None
    return ours, x, hx


def outputs_and_gradients(gru: nn.Module, x: Tensor, hx: Tensor | None, seed: int = 1) -> dict[str, Tensor]:
    x = x.detach().requires_grad_()
    hx = None if hx is None else hx.detach().requires_grad_()
    gru.zero_grad()
    y, hn = gru(x, hx)
    torch.manual_seed(seed)
    dy, dhn = (torch.randn(t.shape).to(x.device, torch.bfloat16).to(t.dtype) for t in (y, hn))
    torch.autograd.backward((y, hn), (dy, dhn))
    found = {"output": y, "h_n": hn, "input.grad": x.grad}
    if hx is not None:
        found["hx.grad"] = hx.grad
    return found | {f"{name}.grad": p.grad for name, p in gru.named_parameters()}


def assert_parity(case: Case, device: torch.device) -> None:
    """Outputs, final states and every gradient keep the tolerance rule."""
    ours, x, hx = build(case, device)
    theirs, exact = ours.to_torch(copy=True), ours.to_torch(copy=True).double()
    found = outputs_and_gradients(ours, x, hx)
    same = outputs_and_gradients(theirs, x, hx)
    expected = outputs_and_gradients(exact, x.double(), None if hx is None else hx.double())
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert_close_to_float64(value, expected[name], same[name], f"{case} {name}")


def by_oracle(gru, x, hx, lengths=None, resets=None, reset_state=None):
    """All layers and directions by the reference, in the weights' dtype."""
    directions, states = 1 + gru.bidirectional, []
    each = len(gru._flat_weights) // (gru.num_layers * directions)
    for k in range(gru.num_layers):
        sides = []
        for d in range(directions):
            at = k * directions + d
            weights = gru._flat_weights[at * each : (at + 1) * each]
            state = None if reset_state is None else reset_state[at]
            y, h_n = reference.ReferenceGRU.apply(x, hx[at], *weights, d == 1, lengths, resets, state)
            sides.append(y)
            states.append(h_n)
        x = torch.cat(sides, dim=2)
    return x, torch.stack(states)


def onnx_model(model, example, dynamo, dynamic):
    """The ONNX model and a function that runs it."""
    onnx = pytest.importorskip("onnx", reason="the exporter needs onnx")
    pytest.importorskip("onnxscript", reason="the exporter needs onnxscript")
    runtime = pytest.importorskip("onnxruntime", reason="what runs the model")
    file = io.BytesIO()
    names = [f"in{k}" for k in range(len(example))]
    axes = [dict(enumerate(axes)) for axes in dynamic]
    if dynamo:
        shapes = tuple({k: torch.export.Dim.DYNAMIC for k in own if own[k]} for own in axes)
        options = {"dynamo": True, "dynamic_shapes": shapes}
    else:
        named = [{k: name for k, name in own.items() if name} for own in axes]
        options = {"dynamo": False, "dynamic_axes": dict(zip(names, named, strict=True))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, example, file, input_names=names, verbose=False, **options)
    found = onnx.load_from_string(file.getvalue())
    session = runtime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])

    def run(*tensors):
        given = {put.name: t.numpy() for put, t in zip(session.get_inputs(), tensors, strict=True)}
        return [torch.from_numpy(value) for value in session.run(None, given)]

    return found, run

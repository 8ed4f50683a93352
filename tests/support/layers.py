"""One layer run three ways on the same numbers: by the kernels, by torch in the same dtype, by torch in float64."""

from dataclasses import dataclass

import torch
from tolerance import assert_close_to_float64
from torch import Tensor, nn

import tritongru


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

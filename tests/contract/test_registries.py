"""torch's flop counter sees as many operations in our layer as in torch's, on every path."""

import itertools

import pytest
import torch
from cpu_loop import HAS_LOOP
from layers import Case, build
from processes import python
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

import tritongru

on_a_cpu = pytest.mark.skipif(not HAS_LOOP or torch.cuda.is_available(), reason="llvm runs on a CPU, with llvmlite")
IMPLS = ["torch", pytest.param("llvm", marks=on_a_cpu), "triton"]


def counts(gru, x, hx, backward=True, lengths=None):
    input = x if lengths is None else pack_padded_sequence(x, lengths)
    with FlopCounterMode(display=False) as counter:
        output, h_n = gru(input, hx)
        if backward:
            ((output if lengths is None else output.data).sum() + h_n.sum()).backward()
    return counter.get_total_flops()


NEEDS = list(itertools.product((False, True), (None, False, True)))  # of input and hx, if there is one


@pytest.mark.slow
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("layers, bidirectional, bias", [(1, False, True), (2, True, True), (2, False, False)])
@pytest.mark.skipif(torch.cuda.is_available(), reason="torch counts nothing in cuDNN")
def test_as_many_as_of_torch(layers, bidirectional, bias, packed, impl):
    ours = tritongru.GRU(3, 4, layers, bias, bidirectional=bidirectional, impl=impl)
    theirs = ours.to_torch()
    for need_x, need_hx in NEEDS:
        x = torch.randn(5, 3, 3, requires_grad=need_x)
        states = layers * (1 + bidirectional)
        hx = None if need_hx is None else torch.randn(states, 3, 4, requires_grad=need_hx)
        for backward in (False, True):
            rest = (x, hx, backward, [5, 4, 2] if packed else None)
            assert counts(ours, *rest) == counts(theirs, *rest) > 0, (need_x, need_hx)


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch counts nothing in cuDNN")
@pytest.mark.parametrize("impl", IMPLS)
def test_a_call_without_gradients_counts_too(impl):
    ours, x = tritongru.GRU(3, 4, 2, impl=impl), torch.randn(5, 3, 3)
    with torch.no_grad():
        assert counts(ours, x, None, False) == counts(ours.to_torch(), x, None, False) > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch counts nothing in cuDNN")
def test_a_cell_counts_as_torchs():
    theirs, x = torch.nn.GRUCell(3, 4), torch.randn(5, 3)
    found = []
    for cell in (tritongru.GRUCell.from_torch(theirs), theirs):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            cell(x)
        found.append(counter.get_total_flops())
    assert found[0] == found[1] == 2 * 5 * 12 * (3 + 4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch counts nothing in cuDNN")
@pytest.mark.parametrize("frozen", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0"])
def test_weights_that_need_no_gradient_cost_none(frozen):
    ours = tritongru.GRU(3, 4, impl="triton")
    ours.get_parameter(frozen).requires_grad_(False)
    x = torch.randn(5, 3, 3)
    assert counts(ours, x, None) == counts(ours.to_torch(), x, None)


@pytest.mark.parametrize("impl", IMPLS)
def test_the_operators_of_compilers_count_too(impl, device):
    ours, x, hx = build(Case(H=4), device)
    w_ih, w_hh, b_ih, b_hh = ours._flat_weights
    with FlopCounterMode(display=False) as counter:
        y, hn, *_ = torch.ops.tritongru.gru_routed_forward(
            *(x.view(-1, 4), w_ih, w_hh[None], b_ih, b_hh[None], hx, None, None, None),
            *(3, impl, "auto", 1, None),
        )
        (y.sum() + hn.sum()).backward()
    expected = counts(tritongru.GRU.from_torch(ours.to_torch().cpu()).cpu(), x.cpu(), hx.cpu())
    assert counter.get_total_flops() == expected


SCRIPT = """
import sys, torch, tritongru
gru, x = tritongru.GRU(3, 4, impl="triton"), torch.randn(5, 2, 3)
{first}
assert "torch.utils.flop_counter" not in sys.modules
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as counter:
    gru(x)
print(counter.get_total_flops())
"""


@pytest.mark.slow
@pytest.mark.parametrize("first", ["", "gru(x)"], ids=["before_a_call", "after_a_call"])
def test_a_counter_imported_after_the_layer_was_built(first):
    done = python("-c", SCRIPT.format(first=first), TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 2 * 10 * 12 * (3 + 4)


def test_a_counter_imported_before_the_package():
    code = "from torch.utils.flop_counter import flop_registry; import torch, tritongru\n"
    done = python("-c", code + "print(torch.ops.tritongru.gru_forward in flop_registry)")
    assert done.stdout.strip() == "True", done.stderr

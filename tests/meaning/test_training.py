"""A training step through the module, of sizes that the persistent and the stepwise kernels run, in the interpreter."""

import math

import pytest
import torch
from layers import Case, assert_parity, build, outputs_and_gradients
from tolerance import assert_close_to_float64
from torch.nn.utils.rnn import pack_sequence
from torch.utils._python_dispatch import TorchDispatchMode

import tritongru
from tritongru import layer
from tritongru.planning import memory
from tritongru.planning.plan import plan_on

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has tests/gpu/test_gpu_persistent.py")

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def families(case):
    directions = 2 if case.bidirectional else 1
    found = plan_on(CPU, case.H, case.dtype, batch=case.B, directions=directions, impl="triton")
    return found.forward.family, found.backward.family


@pytest.mark.every(3)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("H", [193, 200])
def test_odd_and_even_sizes(H, dtype):
    case = Case(T=3, B=2, H=H, dtype=dtype)
    assert families(case) == ("persistent", "persistent")
    assert_parity(case, CPU)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"B": 33}, {"bias": False, "hx": False}, {"T": 1, "B": 1}], ids=str)
def test_other_shapes(changes):
    assert_parity(Case(**{"T": 2, "B": 2, "H": 140} | changes), CPU)


@pytest.mark.slow
def test_layers_and_directions():
    assert_parity(Case(T=2, B=3, H=130, layers=2, bidirectional=True), CPU)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rebuilt_gates(dtype):
    assert_parity(Case(T=3, B=2, H=150, memory="recompute", dtype=dtype), CPU)


@pytest.mark.slow
def test_what_the_chip_cannot_hold():
    """One launch a step; two steps are enough to carry a gradient."""
    case = Case(T=2, B=1, H=1100, I=2, dtype=torch.float32)
    assert families(case) == ("stepwise", "stepwise")
    assert_parity(case, CPU)


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["save", "recompute"])
@pytest.mark.parametrize("H, bidirectional", [(20, False), (20, True), (140, False)])
def test_a_backward_in_parts(H, bidirectional, kept, monkeypatch):
    """Parts of two steps, the last of one; every gradient keeps the rule."""
    monkeypatch.setattr(layer, "part_steps", lambda *args: 2)
    assert_parity(Case(T=5, B=3, H=H, bidirectional=bidirectional, memory=kept), CPU)


def test_parts_are_what_memory_says(monkeypatch):
    launches = []
    rooms = layer._families()
    for room in rooms.values():
        real = room.backward
        monkeypatch.setattr(room, "backward", lambda *args, real=real: launches.append(args[-1]) or real(*args))
    monkeypatch.setattr(memory, "LEAST_STEPS", 2)
    ours, x, hx = build(Case(T=17, B=2, H=8, memory="recompute"), CPU)
    ours(x, hx)[0].sum().backward()
    assert memory.part_steps(17, 2, 8, 1, 4, False) == 3
    assert launches == [(0, 3), (3, 3), (6, 3), (9, 3), (12, 3), (15, 2)]


@pytest.mark.parametrize("saved", [False, True])
def test_a_part_keeps_its_bound(saved):
    values = memory.SAVED_VALUES if saved else memory.REBUILT_VALUES
    for time, batch, hidden in ((1, 1, 1), (512, 16, 1024), (2000, 192, 384), (65536, 64, 1024), (3, 100_000, 2048)):
        each = memory.part_steps(time, batch, hidden, 2, 2, saved)
        assert 1 <= each <= time
        assert each == 1 or each * values * batch * hidden * 2 * 2 <= memory.PART_BYTES
        if not saved and time >= memory.PARTS * memory.LEAST_STEPS:
            assert -(-time // each) >= memory.PARTS


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["save", "recompute"])
def test_packed_rows(kept):
    torch.manual_seed(0)
    ours = tritongru.GRU(4, 136, bidirectional=True, impl="triton", memory=kept)
    theirs, exact = ours.to_torch(copy=True), ours.to_torch(copy=True).double()
    xs = [torch.randn(length, 4) for length in (2, 4, 1)]
    found = {}
    for name, module in (("ours", ours), ("theirs", theirs), ("exact", exact)):
        own = [x.detach().to(next(module.parameters()).dtype).requires_grad_() for x in xs]
        output, h_n = module(pack_sequence(own, enforce_sorted=False))
        (output.data.sin().sum() + h_n.cos().sum()).backward()
        found[name] = [*(x.grad for x in own), *(p.grad for p in module.parameters())]
    for k, values in enumerate(zip(found["ours"], found["exact"], found["theirs"], strict=True)):
        assert_close_to_float64(*values, f"gradient {k}")


@pytest.mark.slow
def test_gradients_of_one_result_alone_and_of_some_inputs_alone():
    case = Case(T=3, B=2, H=140)
    ours, x, hx = build(case, CPU)
    theirs, exact = ours.to_torch(copy=True), ours.to_torch(copy=True).double()
    wanted = ("weight_hh_l0", "bias_ih_l0")
    for result in (0, 1):
        grads = []
        for module in (ours, exact, theirs):
            dtype = next(module.parameters()).dtype
            loss = module(x.to(dtype), hx.to(dtype))[result].square().sum()
            grads.append(torch.autograd.grad(loss, [getattr(module, name) for name in wanted]))
        for name, *values in zip(wanted, *grads, strict=True):
            assert_close_to_float64(*values, f"result {result} {name}")


@pytest.mark.slow
def test_backward_twice_expanded_and_strided_gradients():
    """What the backward reads it does not change; and a gradient may have any strides."""
    ours, x, hx = build(Case(T=3, B=4, H=140), CPU)
    x.requires_grad_()
    y, _ = ours(x, hx)
    one = torch.randn(3, 1, 1)
    strided = torch.randn(140, 4, 3).permute(2, 1, 0)
    for dy in (one.expand(3, 4, 140), strided):
        first = torch.autograd.grad(y, [x, *ours.parameters()], dy, retain_graph=True)
        again = torch.autograd.grad(y, [x, *ours.parameters()], dy.contiguous(), retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.slow
def test_two_training_steps_give_the_same_bits():
    found = []
    for _ in range(2):
        ours, x, hx = build(Case(T=3, B=17, H=140, memory="save"), CPU)
        found.append(outputs_and_gradients(ours, x, hx))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("rows", [1, 63, 4096, 4098, 4099])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_summed_in_groups_without_a_loss(rows, dtype):
    """torch's buffer on a GPU has 8 bytes for each value of a sum over the first axis."""
    values = torch.randn(rows, 2, 48).to(dtype)
    long = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket == torch.ops.aten.sum and args[1] == [0]:
                long.append(args[0].numel())
            return func(*args, **(kwargs or {}))

    with Watch():
        found = layer.sum_of_rows(values, torch.float32)
    torch.testing.assert_close(found.double(), values.double().sum(0), rtol=1e-5, atol=2e-5 * rows**0.5)
    assert long == [values.numel() // (math.gcd(rows, 64) if values.numel() >= 2**17 else 1)]

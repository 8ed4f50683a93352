"""Lengths, resets and single steps on a GPU: against float64, without a wait, and within CUDA graphs."""

import copy

import pytest
import torch
from layers import Case, build, by_oracle
from tolerance import assert_close_to_float64
from torch import nn

import tritongru
from tritongru.planning.plan import plan_on

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
FAMILIES = {"resident": 64, "persistent": 768, "stepwise": 4096}  # a hidden size of each


def ragged_of(case, device, count=1, index=torch.int64):
    """Lengths from 0 to T, resets, and one reset state for all or each sequence."""
    torch.manual_seed(3)
    lengths = torch.randint(0, case.T + 1, (case.B,))
    lengths[0], lengths[-1] = case.T, 0
    resets = torch.rand(case.T, case.B) < 0.2
    states = torch.randn(case.states, count, case.H).to(case.dtype)
    return {"lengths": lengths.to(device, index), "resets": resets.to(device), "reset_state": states.to(device)}


def results(call, gru, x, hx, dtype, ragged):
    """Outputs and the gradients of the input, states and weights."""
    given = {name: v.detach().to(dtype) if v.is_floating_point() else v for name, v in ragged.items()}
    x, hx = (v.detach().to(dtype).requires_grad_() for v in (x, hx))
    leaves = {"x": x, "hx": hx, **dict(gru.named_parameters())}
    if "reset_state" in given:
        leaves["reset_state"] = given["reset_state"].requires_grad_()
    y, hn = call(x, hx, **given)
    torch.manual_seed(2)
    arriving = [torch.randn(v.shape).to(v.device, torch.bfloat16).to(dtype) for v in (y, hn)]
    grads = torch.autograd.grad((y, hn), [*leaves.values()], arriving)
    return {"y": y, "hn": hn, **{f"grad of {name}": grad for name, grad in zip(leaves, grads, strict=True)}}


def assert_ragged_parity(case, device, ragged):
    ours, x, hx = build(case, device)
    same, exact = ours.to_torch(copy=True), ours.to_torch(copy=True).double()
    found = results(ours, ours, x, hx, case.dtype, ragged)
    rounded = results(lambda *a, **k: by_oracle(same, *a, **k), same, x, hx, case.dtype, ragged)
    expected = results(lambda *a, **k: by_oracle(exact, *a, **k), exact, x, hx, torch.float64, ragged)
    for name, value in found.items():
        assert_close_to_float64(value, expected[name], rounded[name], f"{case} {name}")


def skip_unless(family, case, device):
    plan = plan_on(
        device,
        case.H,
        case.dtype,
        batch=case.B,
        directions=case.states // case.layers,
        training=True,
        impl="triton",
        lengths=True,
    )
    if plan.forward is None or plan.forward.family != family:
        pytest.skip(f"this GPU runs it otherwise: {plan.reason}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_parity(family, bidirectional, dtype, device):
    case = Case(T=24, B=17, I=20, H=FAMILIES[family], bidirectional=bidirectional, dtype=dtype)
    skip_unless(family, case, device)
    assert_ragged_parity(case, device, ragged_of(case, device))


@pytest.mark.parametrize("memory", ["save", "recompute"])
@pytest.mark.parametrize("which", [("lengths",), ("resets",), ("resets", "reset_state")], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_parity_of_each_alone(family, which, memory, device):
    case = Case(T=24, B=17, I=20, H=FAMILIES[family], dtype=torch.bfloat16, memory=memory)
    skip_unless(family, case, device)
    ragged = ragged_of(case, device, count=case.B, index=torch.int32)
    assert_ragged_parity(case, device, {name: ragged[name] for name in which})


def test_parity_of_layers(device):
    case = Case(T=40, B=70, I=9, H=64, layers=3, bidirectional=True)
    assert_ragged_parity(case, device, ragged_of(case, device))


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_may_hold_nan(family, device):
    case = Case(T=24, B=17, I=20, H=FAMILIES[family], dtype=torch.bfloat16)
    ours, x, hx = build(case, device)
    lengths = ragged_of(case, device)["lengths"]
    clean = ours(x, hx, lengths=lengths)
    x[torch.arange(case.T, device=device)[:, None] >= lengths] = float("nan")
    for one, other in zip(ours(x, hx, lengths=lengths), clean, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("impl", ["triton", "torch"])
@pytest.mark.parametrize("H", FAMILIES.values())
def test_no_call_waits_for_the_gpu(H, impl, device):
    case = Case(T=12, B=17, I=20, H=H, dtype=torch.bfloat16, impl=impl)
    ours, x, hx = build(case, device)
    ragged = ragged_of(case, device)

    def run():
        y, hn = ours(x, hx, **ragged)
        (y.sum() + hn.sum()).backward()
        with torch.no_grad():
            ours(x, hx, lengths=ragged["lengths"])

    run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def captured(run):
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run()
    return graph, found


@pytest.mark.parametrize("H", FAMILIES.values())
def test_a_graph_follows_changed_lengths_and_resets(H, device):
    case = Case(T=12, B=17, I=20, H=H, dtype=torch.bfloat16)
    ours, x, hx = build(case, device)
    ragged = ragged_of(case, device)
    with torch.no_grad():
        graph, found = captured(lambda: ours(x, hx, **ragged))
        seen = []
        for _ in range(3):
            ragged["lengths"].copy_(torch.randint(0, case.T + 1, (case.B,)))
            ragged["resets"].copy_(torch.rand(case.T, case.B) < 0.3)
            graph.replay()
            for one, other in zip(found, ours(x, hx, **ragged), strict=True):
                assert torch.equal(one, other)
            seen.append(found[0].clone())
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("layers", [1, 3])
def test_a_graph_of_a_step_follows_its_inputs(layers, device):
    case = Case(T=1, B=17, I=20, H=64, layers=layers)
    ours, x, state = build(case, device)
    x_t, reset = x[0].clone(), torch.zeros(case.B, dtype=torch.bool, device=device)
    out = torch.empty(case.B, case.H, device=device), torch.empty_like(state)
    with torch.no_grad():
        graph, found = captured(lambda: ours.step(x_t, state, reset=reset, out=out))
        assert all(a is b for a, b in zip(found, out, strict=True))
        seen = []
        for _ in range(3):
            x_t.copy_(torch.randn_like(x_t))
            state.copy_(torch.randn_like(state))
            reset.copy_(torch.rand(case.B) < 0.5)
            graph.replay()
            for one, other in zip(out, ours.step(x_t, state, reset=reset), strict=True):
                assert torch.equal(one, other)
            seen.append(out[0].clone())
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("B", [1, 17, 300])
@pytest.mark.parametrize("layers, H", [(1, 64), (2, 100), (1, 1024)])
def test_steps_against_float64(layers, H, B, dtype, device):
    ours, x, state = build(Case(T=1, B=B, I=20, H=H, layers=layers, dtype=dtype), device)
    reset = torch.arange(B, device=device) % 3 == 0
    begin = torch.where(reset[:, None], 0.0, state)
    same, exact = ours.to_torch(copy=True), ours.to_torch(copy=True).double()
    with torch.no_grad():
        rounded, expected = same(x, begin), exact(x.double(), begin.double())
        state[:, reset] = float("nan")
        found = ours.step(x[0], state, reset=reset)
    for name, *values in zip(("y", "hn"), (found[0][None], found[1]), expected, rounded, strict=True):
        assert_close_to_float64(*values, name)


def test_a_step_allocates_nothing_and_does_not_wait(device):
    ours, x, state = build(Case(T=1, B=17, I=20, H=64, layers=2), device)
    out = torch.empty(17, 64, device=device), torch.empty_like(state)
    with torch.no_grad():
        ours.step(x[0], state, out=out)
        before = torch.cuda.memory_stats(device)["allocation.all.allocated"]
        torch.cuda.set_sync_debug_mode("error")
        try:
            ours.step(x[0], state, out=out)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.cuda.memory_stats(device)["allocation.all.allocated"] == before


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("which", [(), ("lengths",), ("lengths", "resets", "reset_state")], ids=str)
def test_gradients_by_cudnn_in_either_mode_and_of_a_strided_state(which, training, device):
    """cuDNN has gradients in training mode alone, and wants a dense hx."""
    case = Case(T=12, B=17, I=20, H=64, impl="torch")
    ours, x, hx = build(case, device)
    ours.train(training)
    strided = hx.transpose(0, 1).contiguous().transpose(0, 1).repeat_interleave(2, 2)[..., ::2]
    assert not strided.is_contiguous()
    ragged = {name: value for name, value in ragged_of(case, device).items() if name in which}
    if not which and not training:
        pytest.skip("as torch.nn.GRU, without lengths cuDNN refuses gradients in eval mode")
    same, exact = ours.to_torch(copy=True), ours.to_torch(copy=True).double()
    strided.requires_grad_()
    y, hn = ours(x, strided, **ragged)
    (y.sum() + hn.sum()).backward()
    grads = strided.grad, *(p.grad for p in ours.parameters())
    both = []
    for gru, dtype in ((exact, torch.float64), (same, torch.float32)):
        state = hx.to(dtype).requires_grad_()
        given = {name: v.to(dtype) if v.is_floating_point() else v for name, v in ragged.items()}
        y64, hn64 = by_oracle(gru, x.to(dtype), state, **given)
        both.append((y64, hn64, *torch.autograd.grad(y64.sum() + hn64.sum(), [state, *gru.parameters()])))
    for k, values in enumerate(zip((y, hn, *grads), *both, strict=True)):
        assert_close_to_float64(*values, f"result {k}")


@pytest.mark.parametrize("impl", ["triton", "torch"])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_lengths_on_the_cpu_are_those_on_the_gpu(index, impl, device):
    case = Case(T=12, B=17, I=20, H=64, impl=impl)
    ours, x, hx = build(case, device)
    lengths = ragged_of(case, device, index=index)["lengths"]
    for one, other in zip(ours(x, hx, lengths=lengths.cpu()), ours(x, hx, lengths=lengths), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_lengths_out_of_range_count_as_the_nearest(impl, device):
    """On the GPU, where the host does not read them; on the CPU they are refused."""
    case = Case(T=12, B=5, I=20, H=64, impl=impl)
    ours, x, hx = build(case, device)
    wrong = torch.tensor([-3, 0, 12, 13, 2**40], device=device)
    right = wrong.clamp(0, case.T)
    leaves = [*ours.parameters()]
    for one, other in zip(ours(x, hx, lengths=wrong), ours(x, hx, lengths=right), strict=True):
        assert torch.equal(one, other)
        grads = [torch.autograd.grad(v.sum(), leaves, retain_graph=True) for v in (one, other)]
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    with pytest.raises(ValueError, match="lengths should be between 0 and the 12 time steps"):
        ours(x, hx, lengths=wrong.cpu())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(), (1,), (33,)], ids=str)
def test_a_cell_by_the_kernel(batch, bias, dtype, device, monkeypatch):
    from tritongru.kernels.single_step import launch

    theirs = nn.GRUCell(20, 70, bias).to(device, dtype)
    ours = tritongru.GRUCell.from_torch(copy.deepcopy(theirs), impl="triton")
    x, hx = (torch.randn(*batch, width, device=device).to(dtype) for width in (20, 70))
    runs, own = [], launch.step
    monkeypatch.setattr("tritongru.interop.step_ops._kernel", lambda: lambda *given: runs.append(0) or own(*given))
    exact = copy.deepcopy(theirs).double()
    with torch.no_grad():
        for state in (None, hx):
            wide = None if state is None else state.double()
            assert_close_to_float64(
                ours(x, state), exact(x.double(), wide), theirs(x, state), f"hx {state is not None}"
            )
    assert len(runs) == 2

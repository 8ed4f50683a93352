"""The persistent kernels on a GPU: what the interpreter and the simulator cannot tell."""

import copy
import dataclasses
import math

import pytest
import torch
from layers import Case, assert_parity, build
from loops import expected as exact_loops
from loops import layer_tensors, loop_backward, loop_forward
from tolerance import assert_close_to_float64
from torch.nn.utils.rnn import pack_padded_sequence

import tritongru
from bench.commands.smoke import one_arrival_short
from bench.measure import pair
from bench.measure.cases import Case as Shape
from tritongru.planning.candidates import kind_of, persistent_options
from tritongru.planning.devices import device_facts
from tritongru.planning.plan import plan_on

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def assert_inference_parity(case, device):
    ours, x, hx = build(case, device)
    plan = plan_on(
        device, case.H, case.dtype, batch=case.B, directions=case.states // case.layers, training=False, impl="triton"
    )
    if plan.family != "persistent":
        pytest.skip(f"this GPU runs it as {plan.family}: {plan.reason}")
    exact = ours.to_torch(copy=True).double()
    with torch.inference_mode():
        found = ours(x, hx)
        same = ours.to_torch(copy=True)(x, hx)
        expected = exact(x.double(), None if hx is None else hx.double())
    for k, values in enumerate(zip(found, expected, same, strict=True)):
        assert_close_to_float64(*values, f"{case} result {k}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("H", [193, 200, 256, 384, 500, 512, 768, 1000, 1024])
def test_sizes(H, dtype, device):
    assert_inference_parity(Case(T=65, B=17, I=20, H=H, dtype=dtype), device)


@pytest.mark.parametrize("B", [1, 8, 16, 33, 64, 128, 300])
@pytest.mark.parametrize("H", [256, 768])
def test_batches(H, B, device):
    assert_inference_parity(Case(T=33, B=B, I=20, H=H, bidirectional=B < 64, dtype=torch.bfloat16), device)


@pytest.mark.parametrize("H", [256, 512])
@pytest.mark.usefixtures("ieee")
def test_ieee(H, device):
    assert_inference_parity(Case(T=65, B=17, I=20, H=H), device)


def assert_training_parity(case, device):
    plan = plan_on(
        device, case.H, case.dtype, batch=case.B, directions=case.states // case.layers, training=True, impl="triton"
    )
    if plan.backward is None or plan.backward.family != "persistent":
        pytest.skip(f"this GPU has no persistent backward for it: {plan.reason}")
    assert_parity(case, device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("H", [193, 200, 256, 384, 500, 512, 768, 1000, 1024])
def test_sizes_in_training(H, dtype, device):
    assert_training_parity(Case(T=65, B=17, I=20, H=H, dtype=dtype), device)


@pytest.mark.parametrize("memory", ["save", "recompute"])
@pytest.mark.parametrize("B", [1, 8, 16, 33, 64, 128, 300])
@pytest.mark.parametrize("H", [256, 768])
def test_batches_in_training(H, B, memory, device):
    case = Case(T=33, B=B, I=20, H=H, layers=2, bidirectional=B < 64, dtype=torch.bfloat16, memory=memory)
    assert_training_parity(case, device)


@pytest.mark.parametrize("H", [256, 512])
@pytest.mark.usefixtures("ieee")
def test_ieee_in_training(H, device):
    assert_training_parity(Case(T=65, B=17, I=20, H=H), device)


def test_a_long_sequence_of_a_large_layer(device):
    assert_inference_parity(Case(T=3000, B=16, I=8, H=1024, dtype=torch.bfloat16), device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("H", [256, 384, 768, 1024])
@pytest.mark.parametrize("B", [5, 70])
def test_every_configuration(B, H, dtype, device):
    """All that fit the GPU, not only the one that the plan picks, with gates saved and not."""
    from tritongru.kernels.persistent import launch as persistent

    T, D = 40, 1
    torch.manual_seed(0)
    exact = torch.nn.GRU(H, H).to(device, dtype).double()
    x, h0 = (torch.randn(*sizes).to(device, dtype) for sizes in ((T, B, H), (D, B, H)))
    theirs = copy.deepcopy(exact).to(dtype)
    w_ih, w_hh, b_ih, b_hh = (p.detach() for p in theirs.parameters())
    with torch.inference_mode():
        expected, same = exact(x.double(), h0.double()), theirs(x, h0)
    gx = torch.addmm(b_ih, x.view(T * B, H), w_ih.t())
    kind = kind_of(str(dtype).removeprefix("torch."), "tf32")
    options = persistent_options(device_facts(device), "forward", kind, H, B, D)
    assert options
    for _, launch in options:
        for save in (True, False):
            y, hn = torch.full((T * B, D, H), math.nan, device=device, dtype=dtype), torch.full_like(h0, math.nan)
            gates = y.new_full((T * B, D, H, 4) if save else (0,), math.nan)
            loop_forward(persistent, gx, w_hh[None], b_hh[None], h0, y, hn, gates, None, launch)
            torch.cuda.synchronize()
            for found, e, s in zip((y.view(T, B, H), hn), expected, same, strict=True):
                assert_close_to_float64(found, e, s, f"{launch.name} gates={save}")
            assert not gates.isnan().any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("H", [256, 384, 768, 1024])
@pytest.mark.parametrize("B", [5, 70])
def test_every_configuration_of_the_backward(B, H, dtype, device):
    """From the oracle's states and gates."""
    from tritongru.kernels.persistent import launch as persistent

    T = 40
    tensors = {name: v.to(device) for name, v in layer_tensors(T=T, B=B, H=H, dtype=dtype).items()}
    exact, same = exact_loops(tensors, B), exact_loops(tensors, B, dtype)
    same[-1] = same[-1].float()  # the kernel leaves dh in fp32
    y, gates = (exact[i].to(dtype) for i in (0, 2))
    kind = kind_of(str(dtype).removeprefix("torch."), "tf32")
    options = persistent_options(device_facts(device), "backward", kind, H, B, 1)
    if not options:
        pytest.skip("no configuration fits this GPU")
    for _, launch in options:
        dh = tensors["dhn"].to(torch.float32, copy=True)
        dgx, da = (torch.full((T * B, 1, n * H), math.nan, device=device, dtype=dtype) for n in (3, 1))
        operands = (tensors["dy"], dh, tensors["w_hh"], tensors["h0"], y, gates)
        loop_backward(persistent, *operands, dgx, da, None, launch)
        torch.cuda.synchronize()
        for name, *values in zip(("dgx", "da", "dh"), (dgx, da, dh), exact[3:], same[3:], strict=True):
            assert_close_to_float64(*values, f"{launch.name} {name}")


def test_packed_rows(device):
    ours, x, _ = build(Case(T=50, B=40, I=8, H=300, bidirectional=True, hx=False), device)
    lengths = torch.randint(1, 51, (40,))
    lengths[3] = 50
    exact = ours.to_torch(copy=True).double()
    results = []
    with torch.no_grad():
        for gru, input in ((ours, x), (exact, x.double()), (ours.to_torch(copy=True), x)):
            output, h_n = gru(pack_padded_sequence(input, lengths, enforce_sorted=False))
            results.append((output.data, h_n))
    for k, values in enumerate(zip(*results, strict=True)):
        assert_close_to_float64(*values, f"result {k}")


@pytest.fixture
def large(device):
    ours, x, hx = build(Case(T=200, B=64, I=16, H=768, dtype=torch.bfloat16), device)
    with torch.inference_mode():
        yield ours, x, hx, ours(x, hx)[0]


def test_the_same_bits_every_time(large):
    ours, x, hx, expected = large
    for _ in range(20):
        assert torch.equal(ours(x, hx)[0], expected)


@pytest.mark.alone
def test_two_streams_at_once_both_finish(large):
    """Together they are more programs than the GPU holds: one launch has to wait for the other as a whole."""
    ours, x, hx, expected = large
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(3)]
    outputs = []
    for stream in streams * 4:
        with torch.cuda.stream(stream):
            outputs.append(ours(x, hx)[0])
    torch.cuda.synchronize()
    for output in outputs:
        assert torch.equal(output, expected)


@pytest.mark.alone
def test_beside_other_work(large):
    """A stream full of matrix products competes for the multiprocessors."""
    ours, x, hx, expected = large
    other, a = torch.cuda.Stream(), torch.randn(4096, 4096, device=x.device)
    with torch.cuda.stream(other):
        for _ in range(50):
            a = a @ a / 100
    assert torch.equal(ours(x, hx)[0], expected)
    torch.cuda.synchronize()


def test_graph_replays_count_anew(large):
    ours, x, hx, expected = large
    static = x.clone()
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        ours(static, hx)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        output, _ = ours(static, hx)
    for _ in range(5):
        static.copy_(x)
        graph.replay()
        assert torch.equal(output, expected)
        static.copy_(torch.randn_like(x))
        graph.replay()
        assert torch.equal(output, ours(static, hx)[0])


def test_no_call_waits_for_the_gpu(large):
    ours, x, hx, _ = large
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours(x, hx)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_nothing_is_compiled_for_a_new_length_or_batch(large, device):
    from tritongru.kernels.persistent.launch import persistent_forward_kernel as kernel

    ours = large[0]
    counts = []
    for T, B in ((32, 64), (1, 49), (33, 50), (513, 64), (7, 63)):
        ours(torch.randn(T, B, 16, device=device, dtype=torch.bfloat16))
        counts.append(sum(len(cache[0]) for cache in kernel.device_caches.values()))
    assert counts == counts[:1] * 5, counts


@pytest.mark.parametrize("report", ["next launch", "synchronize"])
@pytest.mark.parametrize("exchange", ["counter", "data"])
def test_a_wait_in_vain_is_reported_and_survived(exchange, report, device):
    """A counter that begins one too low: it stays behind, as if a program were missing."""
    from tritongru.kernels.persistent import launch as persistent

    T, B, H = 50, 16, 768
    options = persistent_options(device_facts(device), "forward", "16-bit", H, B, 1)
    launch = next((launch for _, launch in options if launch.exchange == exchange), None)
    if launch is None:
        pytest.skip(f"no configuration exchanges by {exchange}")
    gx = torch.randn(T * B, 1, 3 * H, device=device, dtype=torch.bfloat16)
    w_hh = torch.randn(1, 3 * H, H, device=device, dtype=torch.bfloat16) / 30
    y, hn, none = gx.new_empty(T * B, 1, H), gx.new_empty(1, B, H), gx.new_empty(0)
    run = [gx, w_hh, None, None, y, hn, none, None, dataclasses.replace(launch, groups=1)]
    with one_arrival_short():
        loop_forward(persistent, *run, limit=1000)
    torch.cuda.synchronize()
    assert y.isnan().all()
    assert hn.isnan().all()
    with pytest.raises(RuntimeError, match="a persistent GRU kernel gave up at its time step 0: program"):
        loop_forward(persistent, *run) if report == "next launch" else tritongru.synchronize(device)
    tritongru.synchronize(device)
    loop_forward(persistent, *run)
    tritongru.synchronize(device)
    assert hn.isfinite().all()


def test_auto_runs_it_in_eval_and_in_training(device):
    ours = tritongru.GRU(8, 768).to(device, torch.bfloat16)
    x = torch.randn(200, 4, 8, device=device, dtype=torch.bfloat16)
    assert tritongru.explain(ours.eval(), batch=4, time=200).family == "persistent"
    with torch.no_grad():
        output, _ = ours(x)
    plan = tritongru.explain(ours.train(), batch=4, time=200)
    if device_facts(device).family == "sm_90":
        assert (plan.forward.family, plan.backward.family) == ("persistent", "persistent")
    again, _ = ours(x)
    again.sum().backward()
    assert ours.weight_hh_l0.grad.isfinite().all()
    assert output.isfinite().all()


OPTIMISERS = {
    "sgd": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9),
    "adam": lambda weights: torch.optim.Adam(weights, lr=0.01, capturable=True),
}


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("memory", ["save", "recompute"])
@pytest.mark.parametrize("H", [256, 768, 2048, 4096])  # from persistent in both passes to stepwise in both
def test_a_graph_of_a_training_step_replays_what_runs(H, memory, optimiser, device):
    """Forward, backward and the optimiser's step, captured once: the weights stay those of a layer that runs them."""
    T, B = 12, 16
    ours, x, hx = build(Case(T=T, B=B, I=16, H=H, dtype=torch.bfloat16, memory=memory), device)
    plan = plan_on(device, H, torch.bfloat16, batch=B, training=True, impl="triton")
    if plan.backward is None:
        pytest.skip(plan.reason)
    eager, dy = copy.deepcopy(ours), torch.randn(T, B, H, device=device, dtype=torch.bfloat16)
    optimisers = {gru: OPTIMISERS[optimiser](gru.parameters()) for gru in (ours, eager)}
    static = x.clone()

    def step(gru):
        optimisers[gru].zero_grad(set_to_none=True)
        output, _ = gru(static, hx)
        output.backward(dy)
        optimisers[gru].step()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(ours)
    torch.cuda.current_stream().wait_stream(side)
    for _ in range(3):
        step(eager)
    optimisers[ours].zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(ours)
    before = ours.weight_hh_l0.detach().clone()
    for _ in range(3):
        static.copy_(torch.randn_like(x))
        graph.replay()
        step(eager)
        for (name, weight), same in zip(ours.named_parameters(), eager.parameters(), strict=True):
            assert torch.equal(weight, same), name
    assert not torch.equal(ours.weight_hh_l0, before)


@pytest.mark.alone
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("H, B", [(256, 64), (768, 16), (1024, 64), (1024, 128)])
def test_the_peak_of_a_training_step(H, B, dtype, device):
    """Of nn.GRU's: with gates rebuilt no more, with gates saved at most 1.3 times as much."""
    assert_peak(Shape(H, B, 512, dtype, "train"), "persistent", device)


def assert_peak(shape, family, device):
    both = pair.build(shape, "triton", device)
    if both.plan.backward is None or both.plan.backward.family != family:
        pytest.skip(f"this GPU has no {family} backward for it: {both.plan.reason}")
    steps = pair.steps_of(both, shape, device)
    theirs = pair.peak_mib(steps[pair.THEIRS], device)
    for memory, most in (("recompute", 1.0), ("save", 1.3)):
        both.ours.memory = memory
        peak = pair.peak_mib(steps[pair.OURS], device)
        assert peak <= most * theirs, f"{memory}: {peak:.1f} MiB, nn.GRU's {theirs:.1f}"

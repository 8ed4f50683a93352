"""What only a GPU can tell. Each test has a time limit, so that a hang ends one test and not the run."""

import dataclasses
import functools
import gc
import warnings

import pytest
import torch
from layers import Case, assert_parity, build, outputs_and_gradients
from test_gpu_persistent import assert_peak
from tolerance import assert_close_to_float64
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import tritongru
from bench.calls import first_call, host
from bench.measure.cases import Case as Shape
from bench.measure.ceilings import COPY, KINDS, least, measure
from bench.measure.pair import OURS, THEIRS, check, take_time
from bench.measure.rows import RowFile, facts
from bench.measure.workloads import workload_cases
from bench.rivals import FLOOR, GRAPH, OURS_GRAPH, rivals_for

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("H", [16, 33, 64, 65, 96, 100, 112, 128])
def test_parity(H, dtype, device):
    assert_parity(Case(T=65, B=33, I=20, H=H, bidirectional=True, dtype=dtype), device)


@pytest.mark.parametrize("H", [144, 160, 176])
def test_parity_of_large_16_bit_layers(H, device):
    case = Case(T=33, B=17, I=20, H=H, dtype=torch.float16)
    if tritongru.explain(build(case, device)[0], batch=17).family == "torch":
        pytest.skip(f"H={H} does not fit this GPU's shared memory")
    assert_parity(case, device)


@pytest.mark.parametrize("memory", ["save", "recompute"])
@pytest.mark.parametrize("layers", [1, 3])
def test_parity_of_layers(layers, memory, device):
    assert_parity(Case(T=40, B=70, I=9, H=64, layers=layers, bidirectional=True, memory=memory), device)


@pytest.mark.parametrize("H", [33, 48, 64])
@pytest.mark.usefixtures("ieee")
def test_parity_in_ieee(H, device):
    assert_parity(Case(T=65, B=33, I=20, H=H, bidirectional=True), device)


def test_parity_of_a_long_sequence(device):
    assert_parity(Case(T=2048, B=16, I=8, H=64), device)


@pytest.mark.parametrize("memory", ["save", "recompute"])
def test_parity_of_packed_rows(memory, device):
    ours, x, _ = build(Case(T=50, B=40, I=8, H=65, bidirectional=True, hx=False, memory=memory), device)
    lengths = torch.randint(1, 51, (40,))
    lengths[3] = 50
    results = []
    for gru, input in ((ours, x), (ours.to_torch(copy=True), x), (ours.to_torch(copy=True).double(), x.double())):
        input = input.detach().requires_grad_()
        output, h_n = gru(pack_padded_sequence(input, lengths, enforce_sorted=False))
        leaves = (input, *gru.parameters())
        results.append((output.data, h_n, *torch.autograd.grad(output.data.sum() + h_n.sum(), leaves)))
    for k, (found, same, expected) in enumerate(zip(*results, strict=True)):
        assert_close_to_float64(found, expected, same, f"result {k}")


def test_the_same_bits_every_time(device):
    ours, x, hx = build(Case(T=100, B=64, I=32, H=128, bidirectional=True, dtype=torch.float16), device)
    runs = [outputs_and_gradients(ours, x, hx) for _ in range(3)]
    for other in runs[1:]:
        for name, value in runs[0].items():
            assert torch.equal(value, other[name]), name


def test_cuda_graph_replay_is_eager(device):
    ours, x, hx = build(Case(T=20, B=32, I=16, H=64), device)
    static, gradient = torch.zeros_like(x).requires_grad_(), torch.randn(20, 32, 64, device=device)

    def step():
        ours.zero_grad(set_to_none=False)
        ours(static, hx)[0].backward(gradient)

    ours(static, hx)[0].backward(gradient)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for _ in range(2):
        with torch.no_grad():
            static.copy_(torch.randn_like(x))
        graph.replay()
        replayed = [p.grad.clone() for p in ours.parameters()]
        step()
        for a, p in zip(replayed, ours.parameters(), strict=True):
            assert torch.equal(a, p.grad)


@pytest.mark.alone
def test_two_streams_at_once(device):
    ours, x, hx = build(Case(T=200, B=64, I=16, H=64), device)
    expected = ours(x, hx)[0]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(2)]
    outputs = []
    for stream in streams:
        with torch.cuda.stream(stream):
            outputs.append(ours(x, hx)[0])
    torch.cuda.synchronize()
    for output in outputs:
        assert torch.equal(output, expected)


def test_no_call_waits_for_the_gpu(device):
    ours, x, hx = build(Case(T=20, B=32, I=16, H=64, layers=2, bidirectional=True), device)
    packed = pack_padded_sequence(x, torch.arange(1, 21).repeat(2)[:32], enforce_sorted=False)
    outputs_and_gradients(ours, x, hx)
    ours(packed)[0].data.sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        y, hn = ours(x, hx)
        (y.sum() + hn.sum()).backward()
        ours(packed)[0].data.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_nothing_is_compiled_for_a_new_length_or_batch(device):
    from tritongru.kernels.resident import launch as resident

    ours, _, _ = build(Case(I=16, H=64), device)
    counts = []
    for T, B in ((32, 16), (1, 1), (33, 17), (512, 64), (7, 2)):
        ours(torch.randn(T, B, 16, device=device))[0].sum().backward()
        kernels = (resident.resident_forward_kernel, resident.resident_backward_kernel)
        counts.append(sum(len(cache[0]) for k in kernels for cache in k.device_caches.values()))
    assert counts == counts[:1] * 5, counts


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("hidden", [64, 1000])
def test_autocast_answers_the_dtype_asked_for(hidden, dtype, device):
    ours = tritongru.GRU(8, hidden).to(device)
    x = torch.randn(5, 3, 8, device=device)
    with torch.autocast("cuda", dtype):
        output, h_n = ours(x)
    assert output.dtype == h_n.dtype == dtype
    (output.sum() + h_n.sum()).backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in ours.parameters())


@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_dropout_takes_torchs_own_random_numbers(impl, device):
    ours = tritongru.GRU(8, 64, 2, dropout=0.5, impl=impl).to(device)
    x = torch.randn(5, 3, 8, device=device)
    lower, upper = tritongru.GRU(8, 64, impl=impl).to(device), tritongru.GRU(64, 64, impl=impl).to(device)
    state = ours.state_dict()
    lower.load_state_dict({n: p for n, p in state.items() if n.endswith("l0")})
    upper.load_state_dict({n.replace("l1", "l0"): p for n, p in state.items() if n.endswith("l1")})
    torch.manual_seed(3)
    output, _ = ours(x)
    torch.manual_seed(3)
    expected, _ = upper(torch.dropout(lower(x)[0], 0.5, True))
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    before = torch.cuda.get_rng_state()
    ours.eval()(x)
    assert torch.equal(torch.cuda.get_rng_state(), before)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_no_warning_about_weights_in_pieces(impl, dropout, device):
    ours = tritongru.GRU(8, 64, 2, dropout=dropout, bidirectional=True, impl=impl).to(device)
    x = torch.randn(5, 3, 8, device=device)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            ours(x)[0].sum().backward()
            ours.weight_hh_l1 = nn.Parameter(ours.weight_hh_l1.detach().clone())  # nn.GRU gathers them again, too
        ours.eval()(x)


def test_the_backward_works_in_eval_mode_and_with_an_expanded_state(device):
    """Two things that cuDNN refuses and torch's GRU does on a CPU."""
    ours, x, _ = build(Case(T=5, B=3, I=8, H=64, hx=False), device)
    hx = torch.randn(1, 1, 64, device=device, requires_grad=True)
    y, _ = ours.eval()(x, hx.expand(1, 3, 64))
    y.sum().backward()
    assert hx.grad.abs().sum() > 0


def test_another_device_than_the_current_one(device):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    ours, x, hx = build(Case(T=5, B=3, I=8, H=64), torch.device("cuda:1"))
    with torch.cuda.device(0):
        assert ours(x, hx)[0].device == torch.device("cuda:1")
        assert_parity(Case(T=5, B=3, I=8, H=64), torch.device("cuda:1"))


@pytest.mark.alone
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize(
    "family, H, B, T", [("resident", 64, 64, 512), ("resident", 128, 256, 256), ("stepwise", 4096, 16, 64)]
)
def test_the_peak_of_a_training_step(family, H, B, T, dtype, device):
    """Of nn.GRU's: with gates rebuilt no more, with gates saved at most 1.3 times as much."""
    assert_peak(Shape(H, B, T, dtype, "train"), family, device)


@pytest.mark.alone
def test_recomputing_holds_less_memory_between_the_passes(device):
    held = {}
    for memory in ("save", "recompute"):
        ours, x, _ = build(Case(T=256, B=64, I=32, H=128, layers=3, hx=False, memory=memory), device)
        ours(x)
        gc.collect()
        before = torch.cuda.memory_allocated()
        output, _ = ours(x)
        held[memory] = torch.cuda.memory_allocated() - before
        del output
    gates = 3 * 256 * 64 * 128 * 4 * 4  # layers x rows x hidden units x four gate values x bytes
    assert held["save"] - held["recompute"] >= 0.9 * gates


@pytest.mark.parametrize("case", workload_cases(), ids=lambda case: case.name)
def test_parity_of_the_layers_of_real_workloads(case, device):
    """At most a few steps of each: the gate and the run check them at their whole length."""
    found, _ = check(dataclasses.replace(case, time=min(case.time, 24)), "auto", device)
    assert found.green, found.worst
    assert found.repeatable


@pytest.mark.alone
def test_every_call_of_a_short_run_is_timed_and_has_its_floor(device):
    """The way that the rows of a run come from, on one case of each family."""
    limits = measure(device, limit_s=0.2)
    assert set(limits) == {COPY, *KINDS.values()}
    for hidden in (64, 512):
        case = Shape(hidden, 16, 64, "bf16", "train")
        names = functools.partial(rivals_for, names=(GRAPH, OURS_GRAPH, FLOOR))
        timed = take_time(case, "auto", device, rivals=names, rounds=3, limit_s=2.0)
        wanted = {OURS, THEIRS, GRAPH, OURS_GRAPH} | ({FLOOR} if hidden == 512 else set())
        assert wanted <= set(timed.times), timed.missing
        exchanges = {OURS: timed.times.get(FLOOR, {}).get("ms"), THEIRS: None}
        for name, exchange_ms in exchanges.items():
            assert timed.times[name]["ms"] >= least(case, limits, exchange_ms)[0]


@pytest.mark.alone
@pytest.mark.parametrize("module", [host, first_call])
def test_what_a_call_costs_is_measured_in_fresh_processes(module, tmp_path, device):
    found = module.on_gpu(RowFile(tmp_path / "rows.jsonl"), facts("the GPU"), 200.0)
    assert len(found) == 4
    assert min(found.values()) > 0

"""A warm-up compiles what calls need, no less, and leaves the module as it was."""

import contextlib
import copy
import json
import types

import pytest
import torch
from cpu_loop import llvmlite_of, needs_loop
from layers import Case, build
from processes import PATIENCE, python
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import tritongru
from bench.compile import compile_seconds as compile_times
from bench.pages import kernels
from tritongru import layer
from tritongru.planning import memory

FREE = ("T", "B", "N", "s", "start", "count", "tiles", "limit")  # what no kernel is compiled for
KERNELS = [
    *(f"{family}.{family}_{name}_kernel" for family in ("resident", "stepwise") for name in ("forward", "backward")),
    "rebuild.rebuild_kernel",
]


@pytest.fixture
def launched(monkeypatch):
    """What each launch would be compiled for, as Triton tells kernels apart; nothing runs."""
    from tritongru.kernels import rebuild
    from tritongru.kernels.persistent import launch as persistent
    from tritongru.kernels.resident import launch as resident
    from tritongru.kernels.stepwise import launch as stepwise

    rooms = {"persistent": persistent, "rebuild": rebuild, "resident": resident, "stepwise": stepwise}
    found = set()

    def record(name, *args, **kwargs):
        def kind(value):
            if isinstance(value, torch.Tensor):
                return value.dtype, value.data_ptr() % 16 == 0
            return value

        given = [kind(value) for value in args if not isinstance(value, int)]
        found.add((name, *given, *((key, kind(value)) for key, value in kwargs.items() if key not in FREE)))

    class Kernel:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            return lambda *args, **kwargs: record(self.name, *args, **kwargs)

    for name in KERNELS:
        room, kernel = name.split(".")
        monkeypatch.setattr(rooms[room], kernel, Kernel(kernel))

    def together(kernel, grid, like, *args, **kwargs):
        record(kernel.fn.__name__, *args, **kwargs)

    monkeypatch.setattr(persistent, "launch_cooperative", together)
    return found


def calls(gru, batch, times, packed, device, ragged=()):
    """With and without hx, of outputs and of final states alone, with and without gradients. ``ragged``: names of
    keywords."""
    D = 2 if gru.bidirectional else 1
    dtype = next(gru.parameters()).dtype
    for time in times:
        x = torch.randn(time, batch, gru.input_size, device=device).to(dtype)
        lengths = torch.randint(1, time + 1, (batch,))
        lengths[0] = time
        input = pack_padded_sequence(x, lengths, enforce_sorted=False) if packed else x
        resets = torch.rand(time, batch, device=device) < 0.3
        states = torch.randn(gru.num_layers * D, 1, gru.hidden_size, device=device).to(dtype)
        given = {"lengths": lengths, "resets": resets, "reset_state": states}
        given = {name: given[name] for name in ragged}
        for hx in (None, torch.randn(gru.num_layers * D, batch, gru.hidden_size, device=device).to(dtype)):
            with torch.no_grad():
                gru(input, hx, **given)
            if gru.training:
                for part in (0, 1):
                    result = gru(input, hx, **given)[part]
                    (result.data if isinstance(result, tuple) else result).sum().backward()


SHAPES = [
    Case(B=4, H=64),
    Case(B=4, H=64, layers=2, bidirectional=True, memory="recompute"),
    Case(B=3, H=33, layers=3, dtype=torch.float16),  # later layers' states begin anywhere
    Case(B=3, H=33, layers=2, bias=False, dtype=torch.float16),
    Case(B=20, H=256, dtype=torch.bfloat16),
    Case(B=20, H=256, layers=2, memory="recompute"),
    Case(B=2, H=1100),
    Case(B=2, H=1100, bidirectional=True, memory="recompute"),
]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("case", SHAPES, ids=str)
@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the kernels themselves are counted")
def test_calls_need_nothing_else(case, training, packed, launched, device):
    ours, _, _ = build(case, device)
    ours.train(training)
    result = ours.warmup(case.B, 7, packed=packed)
    warm = set(launched)
    assert len(warm) == len(result.kernels) == len({kernel[:3] for kernel in map(as_tuple, result.kernels)})
    launched.clear()
    calls(ours, case.B, (1, 2, 40), packed, device)
    assert launched
    assert launched <= warm


RAGGED = [("lengths",), ("resets",), ("lengths", "resets"), ("resets", "reset_state")]


@pytest.mark.every(3, slow=6)
@pytest.mark.parametrize("ragged", RAGGED, ids=str)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("case", SHAPES, ids=str)
@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the kernels themselves are counted")
def test_ragged_calls_need_nothing_else(case, training, ragged, launched, device):
    """Of one step and more; those without need other kernels."""
    ours, _, _ = build(case, device)
    ours.train(training)
    asked = {name: name in ragged for name in ("lengths", "resets")}
    result = ours.warmup(case.B, 7, **asked)
    assert all("ragged" in kernel.flags for kernel in result.kernels if kernel.family != "rebuild")
    assert not any("packed" in kernel.flags for kernel in result.kernels)
    warm = set(launched)
    assert len(warm) == len(result.kernels)
    launched.clear()
    calls(ours, case.B, (1, 2, 40), False, device, ragged)
    assert launched
    assert launched <= warm
    launched.clear()
    calls(ours, case.B, (2,), False, device)
    assert not {key for key in launched - warm if "rebuild" in key[0]}
    assert not {key for key in launched & warm if "rebuild" not in key[0]}


@pytest.mark.parametrize("asked", [{"lengths": True}, {"resets": True}, {"lengths": True, "resets": True}], ids=str)
def test_packed_rows_are_not_ragged(asked, ran, device):
    ours, _, _ = build(Case(B=16, H=64), device)
    with pytest.raises(ValueError) as found:
        ours.warmup(16, 7, packed=True, **asked)
    text = "a PackedSequence has neither lengths nor resets; warm up for each kind of call on its own"
    assert str(found.value) == text
    assert not ran


@needs_loop
@pytest.mark.parametrize("asked", ["lengths", "resets"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_on_a_cpu_ragged_calls_compile_the_search_for_segments(dtype, asked, ran, launched):
    ours = tritongru.GRU(2, 3, dtype=dtype)
    for learns, passes in ((True, ["forward", "backward", "segments"]), (False, ["forward", "segments"])):
        found = ours.train(learns).warmup(4, 5, **{asked: True})
        assert [(kernel.family, kernel.kernel) for kernel in found.kernels] == [("llvm", name) for name in passes]
    assert not ran
    assert not launched


@needs_loop
def test_with_resets_a_warm_up_is_never_left_to_torch(ran, monkeypatch):
    """A call with resets is not, however small."""
    monkeypatch.setattr("tritongru.warmup.takes", lambda *size: False)
    ours = tritongru.GRU(2, 3)
    assert not ours.warmup(16, 1).kernels
    assert not ours.warmup(16, 1, lengths=True).kernels
    found = ours.warmup(16, 1, resets=True).kernels
    assert [kernel.kernel for kernel in found] == ["forward", "backward", "segments"]
    assert not ran


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the kernels themselves are counted")
def test_autocast_has_kernels_of_its_own(launched, device):
    ours, _, _ = build(Case(B=4, H=64), device)
    with torch.autocast(device.type, torch.bfloat16):
        ours.warmup(4, 7)
        warm = set(launched)
        calls(ours, 4, (3,), False, device)
    assert launched == warm
    assert all(torch.bfloat16 in {kind[0] for kind in key if isinstance(kind, tuple)} for key in warm)


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the kernels themselves are counted")
def test_weights_that_begin_anywhere(launched, device):
    """As cuDNN's buffer has them, into which flatten_parameters packs a module's weights."""
    ours, _, _ = build(Case(B=4, H=64, layers=2), device)
    flat, first = torch.randn(1 + sum(p.numel() for p in ours.parameters()), device=device), 1
    for p in ours.parameters():
        p.data = flat[first : first + p.numel()].view_as(p)
        first += p.numel()
    assert any("unaligned" in kernel.flags for kernel in ours.warmup(4, 7).kernels)
    warm = set(launched)
    calls(ours, 4, (3,), False, device)
    assert launched == warm


def as_tuple(kernel):
    return kernel.family, kernel.kernel, kernel.flags


@pytest.fixture
def ran(monkeypatch):
    """The arguments of each forward and backward of a layer; nothing runs."""
    found = []
    monkeypatch.setattr(layer, "forward", lambda *args: found.append(("forward", *args)))
    monkeypatch.setattr(layer, "backward", lambda *args: found.append(("backward", *args)))
    return found


FORWARDS = {(), ("hx",)}
SAVING = {("gates",), ("hx", "gates")}
BACKWARDS = {(), ("dy",), ("hx",), ("hx", "dy")}


@pytest.mark.parametrize(
    "training, learns, mode, forwards, backwards",
    [
        (True, True, "save", FORWARDS | SAVING, BACKWARDS),
        (True, True, "auto", FORWARDS | SAVING, BACKWARDS),
        (True, True, "recompute", FORWARDS, BACKWARDS),
        (False, True, "save", FORWARDS, set()),
        (True, False, "save", FORWARDS, set()),
    ],
)
def test_what_it_compiles(training, learns, mode, forwards, backwards, ran, device):
    ours, _, _ = build(Case(B=16, H=64, layers=3, memory=mode), device)
    ours.train(training).requires_grad_(learns)
    kernels = ours.warmup(16, 7).kernels
    assert {kernel.flags for kernel in kernels if kernel.kernel == "forward"} == forwards
    assert {
        kernel.flags for kernel in kernels if kernel.kernel == "backward" and kernel.family != "rebuild"
    } == backwards
    assert any(kernel.family == "rebuild" for kernel in kernels) == (mode == "recompute")
    assert [name for name, *_ in ran].count("forward") == len(forwards)
    assert [name for name, *_ in ran].count("backward") == len(backwards)


def test_packed_kernels_are_named(ran, device):
    ours, _, _ = build(Case(B=16, H=64), device)
    assert all("packed" in kernel.flags for kernel in ours.warmup(16, 7, packed=True).kernels)
    assert len(ran) == 8


def test_gates_are_not_saved_where_calls_of_that_length_do_not(ran, monkeypatch, device):
    """ "auto" looks at the device's memory: of a long sequence it recomputes."""
    ours = tritongru.GRU(4, 64, impl="triton").to(device)
    monkeypatch.setattr(memory, "SHARE", 1 << 30)
    assert not any("gates" in kernel.flags for kernel in ours.warmup(16, 7).kernels)


def test_nothing_of_the_module_changes(device):
    ours, _, _ = build(Case(B=4, H=16, layers=2, memory="recompute"), device, dropout=0.5)
    ours.weight_hh_l1.requires_grad_(False)
    before = copy.deepcopy(ours.state_dict())
    held, random, mode = [*ours.__dict__.items()], torch.get_rng_state(), torch.is_grad_enabled()
    flat = [*ours._flat_weights]
    if device.type == "cuda":
        random_there = torch.cuda.get_rng_state()
    result = ours.warmup(4, 7)
    assert torch.equal(torch.get_rng_state(), random)
    if device.type == "cuda":
        assert torch.equal(torch.cuda.get_rng_state(), random_there)
    assert torch.is_grad_enabled() == mode
    assert [*ours.__dict__.items()] == held
    assert all(a is b for a, b in zip(ours._flat_weights, flat, strict=True))
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())
    assert all(p.grad is None for p in ours.parameters())
    assert [p.requires_grad for p in ours.parameters()] == [name != "weight_hh_l1" for name in before]
    assert ours.training
    assert result.kernels
    assert all(0 < kernel.seconds <= result.seconds for kernel in result.kernels)


def test_computed_weights_are_not_computed(ran, device):
    """A parametrization may draw random numbers or count its calls."""

    class Counted(nn.Module):
        calls = 0

        def forward(self, weight):
            self.calls += 1
            return weight

    ours, _, _ = build(Case(B=4, H=64), device)
    counted = Counted()
    nn.utils.parametrize.register_parametrization(ours, "weight_hh_l0", counted)
    before = counted.calls
    ours.warmup(4, 7)
    assert ran
    assert counted.calls == before


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, contextlib.nullcontext])
def test_it_serves_calls_of_another_mode(context, device):
    ours, x, hx = build(Case(T=3, B=4, H=16), device)
    with context():
        assert len(ours.warmup(4, 3).kernels) == 8
    y, _ = ours(x, hx)
    y.sum().backward()
    assert ours.weight_hh_l0.grad is not None


@pytest.mark.parametrize("sizes", [{"batch": 0, "time": 1}, {"batch": 3, "time": -2}])
def test_bad_sizes_are_refused_as_by_explain(sizes):
    ours = tritongru.GRU(2, 3)
    with pytest.raises(ValueError) as expected:
        tritongru.explain(ours, **sizes)
    with pytest.raises(ValueError) as found:
        ours.warmup(**sizes)
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("impl", ["torch", "auto"])
def test_where_torch_runs_nothing_is_compiled_or_called(impl, ran, monkeypatch):
    monkeypatch.setattr(tritongru.GRU, "forward", ran.append)
    with llvmlite_of():
        result = tritongru.GRU(2, 3, impl=impl).warmup(4, 5)
    assert result.kernels == ()
    assert result.seconds >= 0
    assert not ran


@needs_loop
@pytest.mark.parametrize("impl", ["auto", "llvm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_on_a_cpu_the_loop_is_compiled_and_no_kernel(impl, dtype, ran, launched):
    ours = tritongru.GRU(2, 3, dtype=dtype, impl=impl)
    for learns, passes in ((True, ["forward", "backward"]), (False, ["forward"])):
        found = ours.train(learns).warmup(4, 5)
        assert [(kernel.family, kernel.kernel) for kernel in found.kernels] == [("llvm", name) for name in passes]
        assert all(0 <= kernel.seconds <= found.seconds for kernel in found.kernels)
    assert not ran
    assert not launched


@needs_loop
def test_llvm_without_a_loop_for_the_dtype_raises_as_a_call_does():
    ours = tritongru.GRU(2, 3, impl="llvm", dtype=torch.complex64)
    with pytest.raises(RuntimeError, match="cannot run this layer: the compiled loop does not support complex64"):
        ours.warmup(4, 5)


def test_llvm_without_llvmlite_raises_as_a_call_does():
    with llvmlite_of(), pytest.raises(RuntimeError, match="the package llvmlite is not installed"):
        tritongru.GRU(2, 3, impl="llvm").warmup(4, 5)


@pytest.mark.parametrize("dtype, interprets", [(torch.float64, True), (torch.float32, False)])
def test_triton_without_a_kernel_raises_as_a_call_does(dtype, interprets, monkeypatch):
    if not interprets:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    ours = tritongru.GRU(2, 3, impl="triton", dtype=dtype)
    with pytest.raises(RuntimeError) as expected:
        ours(torch.zeros(5, 4, 2, dtype=dtype))
    with pytest.raises(RuntimeError) as found:
        ours.warmup(4, 5)
    assert str(found.value) == str(expected.value)


WITHOUT_GPU = """
import itertools, os, sys, threading, time
sys.path.insert(0, "tests/support")
import torch
import stand_in
import tritongru
from stand_in import forms
from tritongru import warmup


def slow(table):  # of two that threads make at once, the later one counts
    turns = itertools.count(1)
    return lambda: (time.sleep(next(turns) / 10), table())[1]


for kernel in stand_in.kernels():
    kernel.device_caches.default_factory = slow(kernel.device_caches.default_factory)
stand_in.install()
alone, meeting, os.cpu_count = warmup._seconds, threading.Barrier(7, timeout=float(sys.argv[1])), lambda: 7
warmup._seconds = lambda work: (meeting.wait(), alone(work))[1]  # none is compiled before all are under way

B, H = 16, 32
gru = tritongru.GRU(8, H, 2, impl="triton", memory="recompute").bfloat16()
warm = gru.warmup(B, 5)
assert forms() == len(warm.kernels) == 7, (forms(), warm)
for T in (3, 1, 20):
    x, hx = torch.zeros(T, B, 8, dtype=torch.bfloat16), torch.zeros(2, B, H, dtype=torch.bfloat16)
    for state in (None, hx):
        gru(x, state)[0].sum().backward()
        gru(x, state)[1].sum().backward()
        with torch.no_grad():
            gru(x, state)
assert forms() == 7, "a call compiled"
"""


@pytest.mark.slow
def test_threads_compile_all_that_calls_need_at_once(tmp_path):
    """With Triton's compiler and its tables of compiled forms, and a driver that has no GPU."""
    done = python("-c", WITHOUT_GPU, str(PATIENCE / 10), TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]


MEASURE = """
import pathlib, sys
from bench.compile import compile_seconds as compile_times
from bench.pages import kernels
compile_times.ROWS, compile_times.ROUNDS, compile_times.CASES = pathlib.Path(sys.argv[1]), 1, ((32, "bfloat16"),)
compile_times.measure()
print(kernels.compile_times(compile_times.read(compile_times.ROWS)))
"""


@pytest.mark.slow
def test_compile_times_are_measured_cold_and_from_disk(tmp_path):
    done = python("-c", MEASURE, str(tmp_path / "rows"), TRITON_CACHE_DIR=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = (tmp_path / "rows").iterdir()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["kernel"] for row in rows] == ["forward", "backward"]
    for row in rows:
        parts = [row[key] for key in ("python_s", "mlir_s", "llvm_s", "ptxas_s")]
        assert min(parts) > 0
        assert sum(parts) <= row["seconds"] + 0.01  # each is rounded; what else Triton does is in none of them
        assert row["cached_s"] > 0
    seconds = [row["seconds"] for row in rows]
    times = " | ".join(f"{each:.2f}" for each in (*seconds, sum(seconds)))
    assert done.stdout.splitlines()[-1].startswith(f"| 32 | bfloat16 | resident | {times} | ")


def test_of_compile_times_the_least_counts_and_parts_are_those_of_the_same_round(monkeypatch):
    from triton import knobs

    monkeypatch.setattr(compile_times, "ROUNDS", 2)
    slow = types.SimpleNamespace(
        total=9e6, ir_initialization=5e5, lowering_stages=[("ttir", 1e6), ("llir", 2e6), ("ptx", 3e6), ("cubin", 1e5)]
    )
    quick = types.SimpleNamespace(
        total=7e6, ir_initialization=6e5, lowering_stages=[("ttgir", 3e6), ("ptx", 2e6), ("cubin", 2e5), ("other", 1)]
    )
    found = [types.SimpleNamespace(total=us) for us in (2000, 3000)]
    given = iter([(False, slow), (True, found[0]), (False, quick), (True, found[1])])
    folders = []

    def compile_():
        folders.append(knobs.cache.dir)
        hit, times = next(given)
        knobs.compilation.listener(src=None, metadata={}, metadata_group={}, times=times, cache_hit=hit)

    assert compile_times.timed(compile_) == {
        "seconds": 7.0,
        "python_s": 0.6,
        "mlir_s": 3.0,
        "llvm_s": 2.0,
        "ptxas_s": 0.2,
        "cached_s": 0.002,
    }
    assert folders[0] == folders[1] != folders[2] == folders[3]
    given = iter([(False, slow)] * 4)
    with pytest.raises(RuntimeError, match="expected to compile and to load from disk in turn"):
        compile_times.timed(compile_)


def test_of_compile_times_the_last_row_of_the_newest_file_counts(tmp_path):
    assert kernels.compile_times(compile_times.read(tmp_path)) == "Not measured yet."
    for date, seconds in (("2026-01-02", (3, 4)), ("2026-01-01", (1, 2))):
        rows = [{"hidden": 8, "dtype": "float32", "kernel": "forward", "seconds": value} for value in seconds]
        (tmp_path / f"compile-{date}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [row["seconds"] for row in compile_times.read(tmp_path)] == [4]


def compiled():
    """How many kernels there are in memory, of each name."""
    from tritongru.kernels import rebuild
    from tritongru.kernels.persistent import launch as persistent
    from tritongru.kernels.resident import launch as resident
    from tritongru.kernels.stepwise import launch as stepwise

    rooms = (persistent, rebuild, resident, stepwise)
    kernels = {name: value for room in rooms for name, value in vars(room).items() if name.endswith("_kernel")}
    return {name: sum(len(cache[0]) for cache in kernel.device_caches.values()) for name, kernel in kernels.items()}


@pytest.mark.gpu
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "case",
    [
        Case(B=48, H=128, layers=2, bidirectional=True),
        Case(B=48, H=128, memory="recompute", dtype=torch.float16),
        Case(B=3, H=33, layers=3, dtype=torch.bfloat16),
        Case(B=16, H=768, dtype=torch.bfloat16),
        Case(B=16, H=512, layers=2, memory="recompute"),
        Case(B=16, H=3000, dtype=torch.float16),
    ],
    ids=str,
)
def test_after_it_nothing_is_compiled(case, packed, device):
    ours, _, _ = build(case, device)
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.01)
    assert ours.warmup(case.B, 32, packed=packed).kernels
    before = compiled()
    calls(ours, case.B, (32, 1, 77, 5), packed, device)
    optimizer.step()
    assert compiled() == before


@pytest.mark.gpu
def test_results_after_it_are_those_without(device):
    ours, x, hx = build(Case(T=20, B=16, H=256), device)
    again = copy.deepcopy(ours)
    expected = again(x, hx)
    ours.warmup(16, 20)
    for found, value in zip(ours(x, hx), expected, strict=True):
        assert torch.equal(found, value)

"""The plan has an answer for every shape, keeps to what the device has, and uses every row of its table."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tritongru
from tritongru.plan import BLOCK_B, CPU, DTYPES, GPUS, chunks_of, kind_of, launches, padded, plan, plan_on

devices = st.sampled_from(sorted(GPUS))
hiddens = st.integers(1, 4096)


@given(hiddens, st.sampled_from([*DTYPES, "float64", "complex64"]), devices, st.integers(0, 10**6), st.booleans())
@settings(max_examples=300, deadline=None)
def test_total_and_within_limits(hidden, dtype, gpu, batch, training):
    device = GPUS[gpu]
    answer = plan(hidden, dtype, device, batch=batch, training=training)
    assert answer.reason
    if answer.family == "torch":
        assert answer.forward is answer.backward is answer.programs is None
        return
    assert answer.family == "resident"
    assert dtype in DTYPES
    assert (answer.backward is not None) == training
    for launch in filter(None, (answer.forward, answer.backward)):
        assert launch.shared_bytes <= device.shared_bytes
        assert hidden <= sum(launch.chunks) < hidden + 64
    assert (answer.programs - 1) * BLOCK_B < max(batch, 1) <= max(answer.programs, 1) * BLOCK_B


@given(st.integers(1, 2000))
def test_padding_is_less_than_16_units_and_chunks_add_up(hidden):
    size = padded(hidden)
    assert size % 16 == 0
    assert size - hidden < 16 or size == 32
    if size <= 496:
        assert sum(chunks_of(size)) == size
        assert chunks_of(size).count(16) <= 1


def test_every_row_is_reachable():
    """Some device picks each configuration; one that none picks is dead weight."""
    shared = sorted({row.shared_bytes for rows in launches().values() for row in rows})
    chosen = set()
    for (backend, kernel, kind, size), limit in itertools.product(launches(), shared):
        like = next(gpu for gpu in GPUS.values() if gpu.backend == backend)
        device = dataclasses.replace(like, shared_bytes=limit)
        dtype, precision = ("float16", "tf32") if kind == "16-bit" else ("float32", kind)
        answer = plan(size, dtype, device, precision=precision, training=kernel == "backward")
        chosen |= {(backend, kernel, kind, size, getattr(answer, kernel))}
    for (backend, kernel, kind, size), rows in launches().items():
        for row in rows:
            if kernel == "forward" or launches().get((backend, "forward", kind, size)):
                assert (backend, kernel, kind, size, row) in chosen


def test_rows_are_sorted_and_fit_a_chip():
    for (backend, _, kind, size), rows in launches().items():
        largest = max(gpu.shared_bytes for gpu in GPUS.values() if gpu.backend == backend)
        sizes = [row.shared_bytes for row in rows]
        assert sizes == sorted(sizes, reverse=True), "a later row must need less"
        assert sizes[0] <= largest
        assert all(sum(row.chunks) == size and row.block_b == BLOCK_B for row in rows)
        assert kind in ("16-bit", "tf32", "ieee")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [64, 100, 128])
def test_resident_on_an_h200(hidden, dtype):
    for training in (False, True):
        assert plan(hidden, dtype, GPUS["h200"], batch=64, training=training).family == "resident"


def test_no_more_on_chip_than_the_size_needs():
    """H = 65 and H = 100 hold less on chip than H = 128 does, and cost fewer issue slots."""
    slots, shared = {}, {}
    for hidden in (65, 100, 128):
        launch = plan(hidden, "float16", GPUS["h200"]).forward
        slots[hidden] = launch.instructions * max(1, launch.num_warps / 4)
        shared[hidden] = launch.shared_bytes
    assert slots[65] < slots[100] < slots[128]
    assert shared[65] < shared[100] < shared[128]


@pytest.mark.parametrize(
    "hidden, dtype, device, reason",
    [
        (128, "float32", CPU, "the tensors are on the CPU, where torch's own GRU runs"),
        (128, "float64", GPUS["h200"], "no kernel computes in float64; convert to one of float32, float16, bfloat16"),
    ],
)
def test_reasons(hidden, dtype, device, reason):
    answer = plan(hidden, dtype, device)
    assert (answer.family, answer.reason) == ("torch", reason)


@pytest.mark.parametrize("gpu, arch", [("a100", "sm_75"), ("mi300x", "gfx1100")])
def test_a_chip_outside_the_compile_matrix_gets_torch(gpu, arch):
    device = dataclasses.replace(GPUS[gpu], arch=arch, name="Other")
    answer = plan(64, "float16", device)
    assert answer.family == "torch"
    assert answer.reason == (
        f"the kernels are made for NVIDIA chips from sm_80 on and AMD's gfx942 and gfx950, and Other is {arch}"
    )


def test_the_reason_names_the_size_and_the_limit():
    reason = plan(1000, "bfloat16", GPUS["h200"]).reason
    largest = max(
        size for backend, name, kind, size in launches() if (backend, name, kind) == ("cuda", "forward", "16-bit")
    )
    assert "1000" in reason
    assert f"goes up to {largest} on H200" in reason


def test_bidirectional_doubles_the_programs_and_waves_the_time():
    one, two = (plan(64, "float16", GPUS["h200"], batch=40, directions=d) for d in (1, 2))
    assert (one.programs, two.programs) == (3, 6)
    many = plan(64, "float16", GPUS["h200"], batch=16 * 133)
    assert many.us_per_step == pytest.approx(2 * one.us_per_step)


def test_precision_follows_torchs_switch(monkeypatch):
    rnn = torch.backends.cudnn.rnn
    before = rnn.fp32_precision
    try:
        for value, expected in (("tf32", "tf32"), ("ieee", "ieee")):
            rnn.fp32_precision = value
            answer = plan_on(GPUS["h200"], 64, torch.float32)
            assert answer.precision == expected
            assert answer.forward.dot_precision == {"tf32": "tf32", "ieee": "tf32x3"}[expected]
            assert kind_of("float16", expected) == "16-bit"
    finally:
        rnn.fp32_precision = before


def test_explain_a_module():
    gru = tritongru.GRU(8, 65, bidirectional=True)
    answer = tritongru.explain(gru, batch=20, time=10, device=GPUS["h200"])
    assert (answer.family, answer.programs, answer.block_b, answer.block_h, answer.time) == ("resident", 4, 16, 80, 10)
    assert answer.backward is not None
    assert tritongru.explain(gru.eval(), device=GPUS["h200"]).backward is None
    assert "a model, not a measurement" in str(answer)
    assert tritongru.explain(tritongru.GRU(8, 65, impl="torch"), device=GPUS["h200"]).family == "torch"
    assert tritongru.explain(tritongru.GRU(8, 65)).family == "torch", "on a CPU auto runs torch, interpreter or not"
    with pytest.raises(ValueError, match="batch should be at least 1, got 0"):
        tritongru.explain(gru, batch=0)


def test_triton_never_falls_back_and_auto_says_why_once(device, caplog):
    gru = tritongru.GRU(2, 2000, impl="triton").to(device)
    with pytest.raises(RuntimeError, match="impl='triton' cannot run this layer: hidden size 2000 in float32"):
        gru(torch.zeros(1, 1, 2, device=device))
    with pytest.raises(RuntimeError, match="no kernel computes in float64"):
        tritongru.GRU(2, 3, impl="triton").double().to(device)(torch.zeros(1, 1, 2, device=device).double())


def test_without_a_gpu_or_the_interpreter_triton_says_so(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match="the tensors are on the CPU; move module and input to a GPU, or set"):
        tritongru.GRU(2, 3, impl="triton")(torch.zeros(1, 1, 2))

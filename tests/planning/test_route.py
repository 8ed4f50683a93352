"""Why torch's GRU runs is said once, and where it is likely an oversight, as a warning."""

import logging

import pytest
import torch

import tritongru
from tritongru import route

pytestmark = pytest.mark.quick


@pytest.fixture
def told(caplog):
    """What has been logged since the test began, as (level, text)."""
    caplog.set_level(logging.INFO, "tritongru")
    route._log.cache_clear()
    route._route_under.cache_clear()
    route._installed.cache_clear()
    yield lambda: [(record.levelname, record.getMessage()) for record in caplog.records]
    route._log.cache_clear()
    route._route_under.cache_clear()
    route._installed.cache_clear()


ON_CPU = ("INFO", "torch's own GRU runs: the tensors are on the CPU, and the kernels need a GPU")


def test_on_a_cpu_it_is_said_once(told):
    x = torch.randn(5, 2, 3)
    for gru in (tritongru.GRU(3, 4), tritongru.GRU(3, 5, 2)):
        for _ in range(3):
            gru(x)
    assert told() == [ON_CPU]


def test_compilers_say_it_too(told):
    torch._dynamo.reset()
    torch.compile(tritongru.GRU(3, 4), backend="eager", fullgraph=True)(torch.randn(5, 2, 3))
    assert told() == [ON_CPU]


def test_who_asked_for_torch_is_told_nothing(told):
    tritongru.GRU(3, 4, impl="torch")(torch.randn(5, 2, 3))
    torch.jit.trace(tritongru.GRU(3, 4, impl="torch").eval(), torch.randn(5, 2, 3))
    assert told() == []


def test_traces_record_torchs(told):
    gru = tritongru.GRU(3, 4, impl="triton").eval()
    torch.jit.trace(gru, torch.randn(5, 2, 3))
    recorded = "torch.jit.trace, and the ONNX exporter that builds on it, record torch's own operator"
    assert told() == [("INFO", f"torch's own GRU runs: {recorded}")]


def asked(impl="auto", device="cuda", dtype=torch.float32):
    return route.route_of(impl, 8, dtype, torch.device(device), 1, False)


def test_a_missing_triton_is_a_warning_on_a_gpu(told, monkeypatch):
    monkeypatch.setattr(route, "_installed", lambda package: () if package == "triton" else (2, 0))
    for _ in range(2):
        assert asked() is None
    missing = "the package triton is not installed; install it with: pip install triton"
    assert told() == [("WARNING", f"torch's own GRU runs: {missing}")]
    with pytest.raises(RuntimeError, match=f"impl='triton' cannot run this layer: {missing}"):
        asked("triton")
    assert len(told()) == 1, "what is raised need not be logged"


def test_other_devices_and_dtypes_are_told(told, monkeypatch):
    assert not route.asks_for_kernels("auto", torch.device("meta"))
    assert not route.asks_for_kernels("auto", torch.device("meta"))
    monkeypatch.setattr(route, "device_facts", lambda device: tritongru.planning.devices.GPUS["h200"])
    assert asked(dtype=torch.float64) is None
    (other, kind) = told()
    assert other[0] == kind[0] == "INFO"
    assert "on the device meta, and the kernels run on CUDA and ROCm devices" in other[1]
    assert "no kernel computes in float64" in kind[1]


def test_numpy_too_new_for_the_interpreter(told, monkeypatch):
    monkeypatch.setattr(route, "_installed", lambda package: {"triton": (3, 6), "numpy": (2, 4)}[package])
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match=r"needs NumPy below 2\.4, got 2\.4; run: pip install 'numpy<2\.4'"):
        asked("triton", device="cpu")
    assert asked(device="cpu") is None
    ((level, text),) = told()
    assert level == "INFO"
    assert "needs NumPy below 2.4" in text


def test_large_batches_and_short_sequences_are_told_once_each(told):
    way = route.Route("", "why not", largest=32, shortest=8, device_bytes=1 << 30)
    for _ in range(2):
        assert not route.takes(way, "auto", 33, 8)
        assert not route.takes(way, "auto", 32, 7)
        assert route.takes(way, "auto", 32, 8)
        assert route.takes(way, "triton", 33, 7)
    assert [text for _, text in told()] == [
        "torch's own GRU runs: from a batch of 33 on: why not",
        "torch's own GRU runs: with fewer than 8 steps: launches around the time loop cost more than the loop saves",
    ]

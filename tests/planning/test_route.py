"""Why torch's GRU runs is said once, and where it is likely an oversight, as a warning."""

import logging

import pytest
import torch
from cpu_loop import forget, llvmlite_of, needs_loop, table_of

import tritongru
from tritongru import route
from tritongru.planning.devices import GPUS
from tritongru.planning.triton_versions import installed

pytestmark = pytest.mark.quick


@pytest.fixture
def told(caplog):
    """What has been logged since the test began, as (level, text)."""
    caplog.set_level(logging.INFO, "tritongru")
    forget()
    yield lambda: [(record.levelname, record.getMessage()) for record in caplog.records]
    forget()


def torchs(why):
    return "INFO", f"falling back to torch's own GRU: {why}"


X = torch.randn(5, 2, 3)
NO_LLVMLITE = torchs(
    "the package llvmlite is not installed; install it with: pip install 'tritongru[cpu]' (that usually makes the "
    "layer several times faster on this CPU)"
)


def calls_of_every_kind():
    for gru in (tritongru.GRU(3, 4), tritongru.GRU(3, 5, 2, bidirectional=True)):
        for _ in range(2):
            gru(X)[0].sum().backward()
            gru(torch.nn.utils.rnn.pack_sequence([X[:, 0], X[:2, 1]]))
            with torch.no_grad():
                gru(X)
                tritongru.GRUCell(3, 4)(X[0])


@needs_loop
def test_where_ours_runs_nothing_is_said(told):
    calls_of_every_kind()
    torch._dynamo.reset()
    torch.compile(tritongru.GRU(3, 4), backend="eager", fullgraph=True)(X)
    tritongru.GRU(3, 4).warmup(2, 5)
    assert told() == []


def test_without_llvmlite_it_is_said_once_how_to_get_it(told):
    with llvmlite_of():
        calls_of_every_kind()
        assert told() == [NO_LLVMLITE]


def test_compilers_say_it_too(told):
    torch._dynamo.reset()
    with llvmlite_of():
        torch.compile(tritongru.GRU(3, 4), backend="eager", fullgraph=True)(X)
        assert told() == [NO_LLVMLITE]


def test_an_old_llvmlite_is_named(told):
    with llvmlite_of(0, 44):
        tritongru.GRU(3, 4)(X)
        ((level, text),) = told()
        assert level == "INFO"
        assert "llvmlite 0.44 is older than 0.45; install a newer one with: pip install 'tritongru[cpu]'" in text


@needs_loop
def test_calls_too_small_to_gain_say_so_once(told):
    row = {"isa": route.host_sets()[0], "hidden": 64}
    with table_of(row | {"pass": "train", "least_rows": 11}, row | {"pass": "forward", "least_rows": 1}):
        for _ in range(2):
            tritongru.GRU(3, 4)(X)
            with torch.no_grad():
                tritongru.GRU(3, 4)(X)
            tritongru.GRU(3, 4, impl="llvm")(X)
            tritongru.GRU(3, 4)(torch.randn(11, 1, 3))
        few = "torch's GRU was measured to be faster for a training step with T * B < 11 (time steps times sequences)"
        assert told() == [torchs(few)]


def forward_mode(gru):
    with torch.autograd.forward_ad.dual_level():
        gru(torch.autograd.forward_ad.make_dual(X, X))


def autocast(gru):
    with torch.autocast("cpu", torch.bfloat16):
        gru(X)


ONLY_TORCH = {
    "CPU autocast keeps parts of the layer in the wider dtype, which only torch's GRU supports": autocast,
    "a forward-mode derivative was requested": forward_mode,
    "a torch.func transform is active": lambda gru: torch.func.grad(lambda x: gru(x)[0].sum())(X),
    "the kernels do not accept tensors of these shapes or dtypes": lambda gru: gru(
        torch.nn.utils.rnn.PackedSequence(torch.randn(9, 3), torch.tensor([3, 2, 1]))
    ),
}


@needs_loop
@pytest.mark.parametrize("why", ONLY_TORCH)
def test_what_only_torch_has_is_named_once(why, told):
    for gru in (tritongru.GRU(3, 4), tritongru.GRU(3, 5)):
        ONLY_TORCH[why](gru)
    assert told() == [torchs(why)]


def test_who_asked_for_torch_is_told_nothing(told):
    with llvmlite_of():
        tritongru.GRU(3, 4, impl="torch")(torch.randn(5, 2, 3))
    torch.jit.trace(tritongru.GRU(3, 4, impl="torch").eval(), torch.randn(5, 2, 3))
    assert told() == []


def test_traces_record_torchs(told):
    gru = tritongru.GRU(3, 4, impl="triton").eval()
    torch.jit.trace(gru, torch.randn(5, 2, 3))
    recorded = "torch.jit.trace, and the ONNX exporter based on it, record torch's own operator"
    assert told() == [("INFO", f"falling back to torch's own GRU: {recorded}")]


def asked(impl="auto", device="cuda", dtype=torch.float32):
    return route.route_of(impl, 8, dtype, torch.device(device), 1, False)


def test_a_missing_triton_is_a_warning_on_a_gpu(told, monkeypatch):
    monkeypatch.setattr(route, "_installed", lambda package: () if package == "triton" else (2, 0))
    for _ in range(2):
        assert asked() is None
    missing = "the package triton is not installed; install it with: pip install triton"
    assert told() == [("WARNING", f"falling back to torch's own GRU: {missing}")]
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
    assert "on the device meta, but the kernels run only on CUDA and ROCm devices" in other[1]
    assert "the kernels do not support float64" in kind[1]


def test_numpy_too_new_for_the_interpreter(told, monkeypatch):
    monkeypatch.setattr(route, "_installed", lambda package: {"triton": (3, 6), "numpy": (2, 4)}[package])
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match=r"needs NumPy below 2\.4, got 2\.4; run: pip install 'numpy<2\.4'"):
        asked("triton", device="cpu")
    assert told() == [], "what is raised need not be logged"


def test_large_batches_and_short_sequences_are_told_once_each(told):
    way = route.Route("", "triton", "why not", largest=32, shortest=8, device_bytes=1 << 30)
    for _ in range(2):
        assert not route.takes(way, "auto", 33, 8)
        assert not route.takes(way, "auto", 32, 7)
        assert route.takes(way, "auto", 32, 8)
        assert route.takes(way, "triton", 33, 7)
    assert [text for _, text in told()] == [
        "falling back to torch's own GRU: for batch sizes of 33 and more: why not",
        "falling back to torch's own GRU: with fewer than 8 time steps, launches around the loop cost more than the "
        "loop saves",
    ]


@pytest.mark.skipif(installed() is None, reason="needs Triton, which is not installed")
def test_a_size_without_a_ragged_kernel_is_torchs_for_ragged_calls(monkeypatch, told):
    """A few on AMD, whose ragged forms spill; the log and a forced path say why."""
    monkeypatch.setattr(route, "device_facts", lambda device: GPUS["mi300x"])
    where = 160, torch.bfloat16, torch.device("cuda"), 1, True
    why = "hidden size 160 in bfloat16 has no forward kernel for lengths and resets on MI300X, where the largest is"
    assert route.route_of("auto", *where) is not None
    assert told() == []
    assert route.route_of("auto", *where, ragged=True) is None
    ((level, text),) = told()
    assert (level, text[: len(torchs(why)[1])]) == torchs(why)
    with pytest.raises(RuntimeError) as refused:
        route.route_of("triton", *where, ragged=True)
    assert str(refused.value).startswith(f"impl='triton' cannot run this layer: {why}")

"""What a caller sees of programs that waited in vain, and of tensors that must be in host memory."""

import loops
import pytest
import torch
from layers import Case, build
from loops import persistent_launch
from test_persistent import layer_tensors
from test_persistent import run as run_forward
from test_persistent_backward import backward_for
from test_persistent_backward import run as run_backward
from torch._subclasses import FakeTensorMode
from torch.nn.utils.rnn import pack_padded_sequence

import tritongru
from bench.commands.smoke import one_arrival_short
from tritongru.arguments import checks
from tritongru.kernels.persistent import cooperative, watchdog

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has tests/gpu/test_gpu_persistent.py")
CPU = torch.device("cpu")


@pytest.mark.parametrize("exchange", ["counter", "data"])
@pytest.mark.parametrize("way", ["forward", "backward"])
def test_a_missing_arrival_leaves_nothing_but_nan_and_is_reported(way, exchange, monkeypatch):
    raised = []
    monkeypatch.setattr(cooperative, "raise_report", raised.append)
    with one_arrival_short():
        if way == "forward":
            y, hn, _ = run_forward(layer_tensors(H=32), persistent_launch(32, exchange=exchange), limit=20)
            found = (y, hn)
        else:
            found = run_backward(loops.layer_tensors(H=32), backward_for(32, exchange=exchange), limit=20)
    assert all(values.isnan().all() for values in found)
    with pytest.raises(RuntimeError, match="a persistent GRU kernel gave up at its time step 0: program"):
        tritongru.synchronize(CPU)
    tritongru.synchronize(CPU)


@pytest.mark.parametrize(
    "device, error, says",
    [
        ("cuda", RuntimeError, "device cuda is not available: this process sees 0 CUDA devices"),
        (7, RuntimeError, "device 7 is not available: this process sees 0 CUDA devices"),
        (10**20, RuntimeError, "device 100000000000000000000 is not available: this process sees 0 CUDA devices"),
        ("meta", ValueError, "device should be a CPU or a CUDA device, got meta"),
        (True, TypeError, "device should be a torch.device, a device name or an index, got bool"),
        (1.5, TypeError, "device should be a torch.device, a device name or an index, got float"),
    ],
)
def test_what_is_no_device_to_wait_for_is_refused_in_a_sentence(device, error, says):
    with pytest.raises(error) as found:
        tritongru.synchronize(device)
    assert str(found.value) == says


def test_where_no_kernel_ran_there_is_nothing_to_report():
    watchdog.report_of.cache_clear()
    watchdog.reports.clear()
    with FakeTensorMode():
        tritongru.synchronize()
    assert not watchdog.reports


@pytest.mark.parametrize("device", [None, "cpu", "cpu:0", CPU])
def test_synchronize_says_where_a_kernel_gave_up(device):
    watchdog.report_of(CPU).word.value = ((70 * 65536 + 3) * 32768 + 5) * 2 + 1 + 1
    with pytest.raises(RuntimeError, match="step 70: program 5 of batch tile 3, direction 1, waited too long"):
        tritongru.synchronize(device)
    tritongru.synchronize(device)


def results(gru, x, hx):
    y, hn = gru(x, hx)
    return y, hn, *torch.autograd.grad(y.sum() + hn.sum(), [*gru.parameters()])


LARGE = Case(H=130, T=2, layers=2, bidirectional=True, memory="recompute")
CASES = [
    pytest.param(Case(H=24, layers=2, bidirectional=True), marks=pytest.mark.slow, id="resident"),
    pytest.param(Case(H=130, T=2, memory="recompute"), marks=pytest.mark.slow, id="persistent"),
    pytest.param(LARGE, marks=pytest.mark.rare, id="persistent, layers and directions"),
]


@pytest.mark.parametrize("case", CASES)
def test_a_default_device_elsewhere_changes_nothing(case):
    """As under torch.set_default_device: on "meta" a tensor that was forgotten would have no memory."""
    watchdog.report_of.cache_clear()
    ours, x, hx = build(case, CPU)
    ours.impl = "triton"
    packed = pack_padded_sequence(x, torch.tensor([case.T] * case.B))
    with torch.device("meta"):
        ours.warmup(case.B, case.T, packed=True)
        found, of_packed = results(ours, x, hx), ours(packed, hx)
    for value, expected in zip(found, results(ours, x, hx), strict=True):
        assert torch.equal(value, expected)
    assert torch.equal(of_packed[0].data, ours(packed, hx)[0].data)
    assert watchdog.report_of(CPU).tensor.device == CPU


def test_packed_rows_are_not_captured(monkeypatch):
    with FakeTensorMode():
        data = torch.empty(3, 2, device="cuda")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    checks.check_not_captured(data)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    checks.check_not_captured(torch.empty(3, 2))
    with pytest.raises(RuntimeError, match="a PackedSequence cannot be captured into a CUDA graph"):
        checks.check_not_captured(data)


def test_a_packed_call_asks_whether_it_is_captured(monkeypatch):
    ours, x, _ = build(Case(T=2, B=3, H=24, hx=False), CPU)
    ours.impl, asked = "triton", []
    monkeypatch.setattr("tritongru.functional.check_not_captured", asked.append)
    ours(x)
    assert not asked
    ours(pack_padded_sequence(x, torch.tensor([2, 2, 1])))
    assert len(asked) == 1

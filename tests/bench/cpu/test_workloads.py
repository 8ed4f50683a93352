"""Real workloads on a CPU: which ones, what their rivals compute, and that no rival costs us a row."""

import dataclasses
import time

import numpy as np
import pytest
import torch
from torch import nn

from bench.analysis.cpu import report
from bench.analysis.cpu.known import Known
from bench.analysis.cpu.targets import Asked
from bench.calls.cpu import beside
from bench.calls.cpu import cell as calls
from bench.calls.cpu.beside import Beside
from bench.calls.cpu.cell import Found, Question
from bench.measure import rows
from bench.measure.cases import Case
from bench.measure.ceilings import operations
from bench.measure.children import Child, Failed, TimedOut
from bench.measure.cpu import cells, timing
from bench.measure.cpu.timing import Times
from bench.measure.pair import random
from bench.measure.parity import Parity, compare, truth
from bench.measure.workloads import CPU_WORKLOADS, WORKLOADS, workload_cases
from bench.rivals import on_cpu, onnx_gru, rival
from bench.session import loop
from bench.session.examine import Budget
from tritongru.planning.instruction_sets import host_sets, refusal

needs_loop = pytest.mark.skipif(bool(refusal()), reason=refusal())
FORWARD = cells.Cell(cells.WORKLOAD, Case(4, 2, 5, "fp32", "forward", inputs=3, label="small"))
TRAIN = dataclasses.replace(FORWARD, case=dataclasses.replace(FORWARD.case, mode="train"))
CPU_NAMES = (on_cpu.COMPILED_GRU, on_cpu.ONNX, on_cpu.COMPILED)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(timing, "BATCH_MS", 0.001)
    monkeypatch.setattr(timing, "FEWEST_ROUNDS", 2)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# Which


def test_a_cpu_has_the_workloads_that_it_runs_whole_and_its_own():
    found = {(cell.case.label, cell.case.mode): cell.case for cell in cells.workloads()}
    labels = {label for label, _ in found}
    assert {workload.label for workload in CPU_WORKLOADS} <= labels
    assert {"deepfilternet2", "pitch", "rsl-rl", "torchrl", "neuralforecast", "gtcrn", "streaming"} <= labels
    assert not labels & {"brain-to-text", "speech-decoder", "rnnoise", "wavernn", "medaka"}
    assert sorted(label for label in labels if label.startswith("zone")) == [f"zone-h{h}-b44" for h in (144, 160, 192)]
    assert max(operations(case) for (_, mode), case in found.items() if mode == "forward") <= cells.WHOLE
    assert {(case.dtype, case.tf32) for case in found.values()} == {("fp32", False)}
    alone = {label for label in labels if (label, "train") not in found}
    assert alone == {"rnnoise-frame", "rnnoise-10s", "medaka-inference"}
    sizes = [operations(cell.case) for cell in cells.workloads() if cell.case.mode == "forward"]
    assert sizes == sorted(sizes), "a stop loses the least"


def shape(label):
    (found,) = [workload for workload in (*CPU_WORKLOADS, *WORKLOADS) if workload.label == label]
    return found.hidden, found.batch, found.time, found.layers, found.directions


def test_what_cpus_are_used_for_has_its_shapes():
    bands = [shape(label) for label in ("gtcrn-frames", "ul-unas-t9", "ul-unas-t33")]
    assert all(H <= 16 and 1000 <= B <= 100_000 and 9 <= T <= 33 and D == 2 for H, B, T, _, D in bands)
    assert shape("medaka-inference") == (128, 1, 10_000, 2, 2)
    assert (shape("rnnoise-frame"), shape("rnnoise-10s")) == ((384, 1, 1, 3, 1), (384, 1, 1000, 3, 1))
    assert shape("deepfilternet3")[::2] == (256, 100, 1)
    assert [shape(label)[:3] for label in ("ppo", "rsl-rl")] == [(256, 64, 128), (256, 4096, 24)]
    assert shape("one-sequence") == (256, 1, 10_000, 1, 1)
    assert all("github.com/" in found.source or "choice" in found.source for found in CPU_WORKLOADS)


def test_the_workloads_of_gpus_are_not_touched_by_those_of_cpus():
    assert {case.label for case in workload_cases()} == {workload.label for workload in WORKLOADS}
    assert not {workload.label for workload in WORKLOADS} & {workload.label for workload in CPU_WORKLOADS}
    assert {workload.modes for workload in WORKLOADS} == {("forward", "train")}


def test_rivals_are_those_of_workloads_and_the_slow_to_compile_is_asked_alone():
    assert on_cpu.groups(FORWARD) == [(on_cpu.COMPILED_GRU, on_cpu.ONNX), (on_cpu.COMPILED,)]
    assert on_cpu.groups(TRAIN) == [(on_cpu.COMPILED_GRU,), (on_cpu.COMPILED,)]
    assert all(on_cpu.groups(cell) == [] for cell in cells.cells() if cell.part != cells.WORKLOAD)


# What they compute


def parity(case, layer_of):
    gru = nn.GRU(case.width, case.hidden, case.layers, bidirectional=case.directions == 2)
    data = random(case, calls.CPU)
    assert all(bias.abs().sum() > 0 for name, bias in gru.named_parameters() if "bias" in name)
    assert data.h0.abs().sum() > 0
    theirs = beside.seen(gru, case.mode, data)
    return compare(beside.seen(layer_of(gru), case.mode, data), theirs, truth(gru, case.mode, data), case.rounding)


@pytest.mark.parametrize("layers, directions", [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_the_graph_of_onnx_is_nn_gru(layers, directions):
    pytest.importorskip("onnxruntime")
    case = dataclasses.replace(FORWARD.case, layers=layers, directions=directions)
    found = parity(case, lambda gru: onnx_gru.OnnxGRU(gru, 1))
    assert found.green, found.worst


def test_swapped_gates_are_red(monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnx_gru, "gates_zrh", lambda weight: weight.detach())
    assert not parity(FORWARD.case, lambda gru: onnx_gru.OnnxGRU(gru, 1)).green


def test_onnxruntime_sees_the_tensors_and_copies_none(monkeypatch):
    pytest.importorskip("onnxruntime")
    layer, seen = onnx_gru.OnnxGRU(nn.GRU(3, 4), 1), {}

    class Session:
        def run(self, outputs, given):
            seen.update({name: array.ctypes.data for name, array in given.items()})
            return np.zeros((5, 2, 4), np.float32), np.zeros((1, 2, 4), np.float32)

    layer.session = Session()
    x, h0 = torch.randn(5, 2, 3), torch.randn(1, 2, 4)
    layer(x, h0)
    assert seen == {"x": x.data_ptr(), "h0": h0.data_ptr()}


@pytest.mark.slow
@pytest.mark.parametrize("cell", [FORWARD, TRAIN], ids=["forward", "train"])
def test_nn_gru_as_a_user_compiles_it_is_nn_gru(cell):
    found = parity(cell.case, lambda gru: on_cpu.compiled_gru_of(cell.case, gru, 1))
    assert found.green, found.worst


@pytest.mark.parametrize("mode", ["forward", "train"])
def test_the_loop_over_a_cell_is_nn_gru(monkeypatch, mode):
    """Uncompiled: what inductor makes of it takes long. Longer than a chunk, and no multiple of one."""
    whole = on_cpu.compiled_of
    monkeypatch.setattr(on_cpu, "compiled_of", lambda case, device: whole(case, device, "eager"))
    case = dataclasses.replace(FORWARD.case, mode=mode, time=11, layers=2, directions=2)
    found = parity(case, lambda gru: on_cpu.compiled_loop_of(case, gru, 1))
    assert found.green, found.worst


# What a child answers


def planted(monkeypatch, name, layer_of):
    one = on_cpu.OnCpu(name, None, "planted", layer_of)
    monkeypatch.setitem(on_cpu.REGISTRY, name, one)
    return name


def broken(case, gru, threads):
    raise RuntimeError("no such operator")


class Wrong(nn.GRU):
    """Its gates are swapped."""

    def forward(self, x, h0):
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(weight.roll(self.hidden_size, 0))
        return super().forward(x, h0)


def wrong(case, gru, threads):
    made = Wrong(gru.input_size, gru.hidden_size)
    made.load_state_dict(gru.state_dict())
    return made


@needs_loop
@pytest.mark.parametrize("cell", [FORWARD, TRAIN], ids=["forward", "train"])
def test_only_who_computes_the_same_is_timed_and_beside_ours(quick, monkeypatch, cell):
    names = [
        planted(monkeypatch, "right", lambda case, gru, threads: gru),
        planted(monkeypatch, "wrong", wrong),
        planted(monkeypatch, "broken", broken),
    ]
    best = host_sets()[0]
    found = beside.answer(Question(cell, (best,), (1, 2), 5, most=2, limit_s=0.0, rivals=tuple(names)))
    assert [one.threads for one in found] == [1, 2]
    for one in found:
        assert set(one.times) == set(one.over[best]) == {"right"}
        assert one.parities["right"] <= 1.0 < one.parities["wrong"]
        assert "error" in one.missing["wrong"]
        assert one.missing["broken"].startswith("RuntimeError: no such operator")
        assert set(one.hows) == set(names)


@needs_loop
def test_a_rival_whose_second_call_is_slow_has_no_time(quick, monkeypatch):
    monkeypatch.setattr(beside, "SLOWEST_S", -1.0)
    name = planted(monkeypatch, "slow", lambda case, gru, threads: gru)
    (found,) = beside.answer(Question(FORWARD, host_sets()[:1], (1,), 5, rivals=(name,)))
    assert found.times == {}
    assert found.missing[name].endswith("and no more than -1 s are spent on one")


@pytest.mark.parametrize("missing", onnx_gru.NEEDED)
def test_without_its_packages_onnxruntime_says_what_to_install(monkeypatch, missing):
    monkeypatch.setattr(onnx_gru, "installed", lambda package: None if package == missing else "1")
    with pytest.raises(rival.Unavailable, match=f"^{missing} is not installed; pip install {missing}$"):
        onnx_gru.OnnxGRU(nn.GRU(3, 4), 1)


def test_few_long_rounds_have_what_was_seen_as_their_interval(monkeypatch):
    now = [0.0]

    def call(seconds):
        def run():
            now[0] += seconds

        return timing.Entrant(run)

    monkeypatch.setattr(timing, "CLOCKS", {"wall": lambda: now[0]})
    samples = timing.rounds("wall", {"ours": call(0.2), "theirs": call(1.5)}, limit_s=0.0)
    assert {name: len(taken) for name, taken in samples.items()} == {"ours": 3, "theirs": 3}
    assert now[0] == pytest.approx(2 * 0.2 + 1.5 + 3 * (0.2 + 1.5)), "a long call is warmed up once"
    assert timing.over([6.0, 3.5, 4.0], [2.0, 1.0, 2.0]) == (3.5, 2.0, 3.5)
    assert timing.deciles([1.0, 2.0, 3.0, 4.0, 5.0]) == (1.4, 4.6)


# Rows


def ours_found(question):
    times = {name: Times(2.0, 1.0, 0.1, 5) for name in ("avx2", "nn.GRU", "nn.LSTM")}
    over = {"avx2": {"nn.GRU": (3.0, 2.0, 4.0), "nn.LSTM": (1.1, 0.9, 1.3)}}
    return [Found(n, 0.5, {"avx2": Parity(0.5, 0.3, "", True)}, times, over) for n in question.threads]


def rivals_found(question):
    done = {name: Times(4.0, 2.0, 0.1, 5) for name in question.rivals}
    over = {"avx2": dict.fromkeys(question.rivals, (2.0, 1.5, 2.5))}
    hows = dict.fromkeys(question.rivals, "planted")
    return [Beside(n, 0.5, hows, dict.fromkeys(done, 0.4), {}, done, over) for n in question.threads]


class FakeChild:
    """``failing``: what is raised instead of an answer about a rival."""

    def __init__(self, failing=()):
        self.failing, self.asked = dict(failing), []

    def ask(self, what, *given, limit_s, start_s):
        if what == "floors":
            return []
        self.asked.append((what, given[0].rivals))
        if what == "cell":
            return ours_found(given[0])
        for name in given[0].rivals:
            if name in self.failing:
                raise self.failing[name]
        return rivals_found(given[0])


@pytest.fixture
def session(tmp_path):
    where = dict.fromkeys(rows.WHERE_KEYS, "here") | {"seed": 3}
    file = rows.RowFile(tmp_path / "rows.jsonl")
    return loop.Session(Asked(("avx2",), 1), (1,), file, where, Budget(1000.0), say=lambda text: None)


def measured(session, child, cells=(FORWARD, TRAIN)):
    session.measure(session.open_questions(cells), child)
    return Known(rows.read(session.file.path))


def test_rows_have_ours_beside_everybody_and_are_asked_for_once(session):
    child = FakeChild()
    known = measured(session, child, [FORWARD])
    assert child.asked == [("cell", ()), *(("rivals", names) for names in on_cpu.groups(FORWARD))]
    assert set(known.row(FORWARD, "avx2", 1)["over"]) == {"nn.GRU", "nn.LSTM", *CPU_NAMES}
    assert known.over(FORWARD, "avx2", 1, on_cpu.ONNX) == 2.0
    assert known.over(FORWARD, "avx2", 1) == 3.0
    for name in CPU_NAMES:
        row = known.found[(FORWARD.row_name(1), name)]
        assert (row["least_ms"], row["parity"], row["how"], row["reason"]) == (2.0, 0.4, "planted", None)
    assert FORWARD.row_name(1) == "workload-small-fp32-forward-1-thread"
    assert session.open_questions([FORWARD]) == []
    assert session.red == session.left == []


def test_what_fails_leaves_a_row_with_the_reason_and_ours_its_time(session):
    child = FakeChild({on_cpu.ONNX: Failed("it broke"), on_cpu.COMPILED: TimedOut("no answer within 9 s, killed")})
    known = measured(session, child)
    assert known.over(FORWARD, "avx2", 1) == 3.0
    reasons = {name: known.found[(FORWARD.row_name(1), name)]["reason"] for name in CPU_NAMES}
    killed = "no answer within 9 s, killed"
    assert reasons == {on_cpu.COMPILED_GRU: "it broke", on_cpu.ONNX: "it broke", on_cpu.COMPILED: killed}
    again = known.found[(TRAIN.row_name(1), on_cpu.COMPILED)]["reason"]
    assert again == f"left out after {FORWARD.name}: {killed}", "who hung is not waited for again"
    assert known.over(TRAIN, "avx2", 1, on_cpu.COMPILED_GRU) == 2.0, "who failed is asked again"
    assert session.red == [], "no rival makes a run red"
    assert session.open_questions([FORWARD, TRAIN]) == []


def test_where_the_budget_ends_rivals_are_left_for_the_next_command(session, monkeypatch):
    child = FakeChild()
    monkeypatch.setattr(session.budget, "left", lambda: 0.0 if len(child.asked) > 0 else 1000.0)
    known = measured(session, child, [FORWARD])
    assert child.asked == [("cell", ())]
    assert known.over(FORWARD, "avx2", 1) == 3.0
    assert session.left == [FORWARD.name]
    assert len(session.open_questions([FORWARD])) == 1


def hanging(what, *given):
    """Answers in a process of its own: of the rivals one hangs."""
    if what == "floors":
        return []
    if what == "cell":
        return ours_found(given[0])
    time.sleep(600)
    return None


@pytest.mark.slow
def test_a_rival_that_hangs_is_killed_and_the_rows_of_ours_stay(session, monkeypatch):
    monkeypatch.setattr(loop, "RIVALS_S", 0.2)
    child = Child(hanging)
    try:
        known = measured(session, child, [TRAIN])
    finally:
        child.stop()
    assert known.over(TRAIN, "avx2", 1) == 3.0
    reasons = {known.found[(TRAIN.row_name(1), name)]["reason"] for name in on_cpu.names(TRAIN)}
    assert reasons == {"no answer within 0 s, killed"}


def test_the_table_says_about_1_and_between_what_a_ratio_lies(session, monkeypatch):
    monkeypatch.setattr(report, "workloads", lambda: [FORWARD, TRAIN])
    known = measured(session, FakeChild(), [FORWARD])
    lines = report.tables(known, ("avx2",), (1, 2))
    assert lines[0].startswith("avx2, 1 thread, workloads: ours in ms")
    assert lines[1].split() == ["workload", "mode", "ms", "nn.GRU", "nn.LSTM", *CPU_NAMES]
    ratios = ["3.00x", "(2.00-4.00)", "about", "1", "(0.90-1.30)", *["2.00x", "(1.50-2.50)"] * 3]
    assert lines[2].split() == ["small", "forward", "1", *ratios]
    assert len(lines) == 3, "nothing is said of what was not measured"

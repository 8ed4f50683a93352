"""The benchmarks: complete rows, times only for correct results, and a run that survives its cases."""

import argparse
import contextlib
import copy
import dataclasses
import functools
import itertools
import json
import math
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from processes import PATIENCE, ROOT, python
from torch import nn

from bench import rivals, suites
from bench.analysis import report, targets
from bench.arguments import folder
from bench.calls import host
from bench.commands import gate
from bench.measure import ceilings, children, pair, parity, rows, timing
from bench.measure.cases import HEADLINE, Case, wide_cases
from bench.measure.workloads import WORKLOADS, workload_cases
from bench.session import examine, warm
from bench.suites import CPU_CASES, gate_blocks, gate_cases
from tritongru.planning import cost_model
from tritongru.planning.devices import GPUS
from tritongru.planning.launches import PersistentLaunch, StepwiseLaunch
from tritongru.planning.memory import Memory
from tritongru.planning.plan import Pass, Plan

CPU = torch.device("cpu")
TRAIN = Case(8, 3, 5, "fp32", "train")
FORWARD = Case(8, 3, 5, "fp32", "forward")
WIDE = Case(256, 1, 2, "fp32", "forward")
WHERE = dict.fromkeys(rows.WHERE_KEYS, "here")
LAUNCH = PersistentLaunch("forward", 32, 256, (64, 64), 16, 128, 4, 2, True, "counter", 2, 0, "ieee")
BACK = dataclasses.replace(LAUNCH, kernel="backward", chunks=(128, 256), block_h=64, pad=False)
COST = cost_model.Cost(us=1.7, exchange=1.0, l2=0.1, tensor=0.0, shared=0.0, issue=0.4, barriers=0.0)
BACK_COST = dataclasses.replace(COST, us=2.6, exchange=1.2, l2=0.3)


class Spoilt(nn.GRU):
    """A GRU whose results go through `spoil` before anyone sees them."""

    def forward(self, x, h0):
        y, hn = super().forward(x, h0)
        return self.spoil(y), hn


def plan_of(family, mode="forward", **about):
    """The plan of a family; the persistent one with launches."""
    if family == "persistent":
        about = {"forward": Pass(family, LAUNCH, 2, 1, COST), "torch_us_per_step": 7.0} | about
        if mode == "train":
            memory = Memory("save", 0, 0, 0, 1)
            about = {"backward": Pass(family, BACK, 4, 1, BACK_COST), "memory": memory} | about
    return Plan(family, "", "", "", **about)


def build_with(spoil=lambda y: y, family="resident"):
    def build(case, impl, device):
        options = {"dtype": pair.DTYPES[case.dtype], "bidirectional": case.directions == 2}
        theirs = nn.GRU(case.hidden, case.hidden, case.layers, **options).train(case.mode == "train")
        ours = copy.deepcopy(theirs)
        ours.__class__, ours.spoil = Spoilt, spoil
        return pair.Pair(ours, theirs, plan_of(family, case.mode))

    return build


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y):
        return y.clone()

    @staticmethod
    def backward(ctx, dy):
        return dy * 1.001


def asker(build, asked=None):
    """Answers as the child process of a run does, but here and on the CPU."""

    def ask(what, result, limit_s):
        case = result.case
        if asked is not None:
            asked.append((what, case.name))
        if what == "parity":
            return pair.check(case, "auto", CPU, build)
        names = functools.partial(rivals.rivals_for, names=suites.gate_rivals(case))
        return pair.take_time(case, "auto", CPU, build, names, rounds=2, limit_s=0.2)

    return ask


def run(tmp_path, ask, cases=(TRAIN, FORWARD), seconds=1e6, impl="auto"):
    """Exit code, rows and printed lines of a run."""
    file, lines = rows.RowFile(tmp_path / "rows.jsonl"), []
    blocks, prepared = [[case] for case in cases], []
    code = gate.run(blocks, prepared.append, ask, file, WHERE, examine.Budget(seconds), impl, lines.append)
    assert prepared == (blocks if seconds > examine.RESERVE_S else [])
    return code, rows.read(file.path) if file.path.exists() else [], lines


# Rows


def test_a_row_has_exactly_the_promised_keys():
    numbers = {"parity": 0.5, "ms": 2.0, "spread": 0.01, "peak_mib": 3.0}
    made = rows.row(TRAIN, "tritongru", rows.facts(None), family="resident", **numbers)
    promised = (
        "case hidden inputs batch time layers directions dtype tf32 mode impl how family plan ms us_per_step "
        "predicted_us predicted_terms spread rounds peak_mib memory parity repeatable rate floor_ms bound reason isa "
        "threads clock load least_ms gflops of_peak over gpu arch driver cpu python torch triton cudnn llvmlite commit "
        "date command seed"
    )
    assert list(made) == promised.split()
    assert made["us_per_step"] == pytest.approx(1000 * 2.0 / 5)
    assert made["torch"] == torch.__version__
    assert made["gpu"] is made["driver"] is None


def test_what_is_not_finite_becomes_null(tmp_path):
    file = rows.RowFile(tmp_path / "rows.jsonl")
    file.append(rows.row(TRAIN, "tritongru", WHERE, family=None, parity=math.inf, ms=math.nan))
    (read,) = rows.read(file.path)
    assert read["parity"] is read["ms"] is read["us_per_step"] is None


@pytest.mark.parametrize("change", [{"extra": 1}, {"case": None}])
def test_a_row_with_other_keys_is_refused(tmp_path, change):
    made = rows.row(TRAIN, "tritongru", WHERE, family=None, parity=0.5)
    wrong = made | change if "extra" in change else {k: v for k, v in made.items() if k != "case"}
    file = rows.RowFile(tmp_path / "rows.jsonl")
    with pytest.raises(ValueError, match="exactly the keys"):
        file.append(wrong)
    assert not file.path.exists()


def test_rows_are_on_disk_one_by_one_and_a_kill_leaves_whole_ones(tmp_path):
    program = f"""if True:
        import sys; sys.path.insert(0, {str(ROOT)!r})
        from pathlib import Path
        from bench.suites import gate_cases
        from bench.measure.rows import WHERE_KEYS, RowFile, row
        file = RowFile(Path({str(tmp_path)!r}) / "rows.jsonl")
        while True:
            where = dict.fromkeys(WHERE_KEYS, "x" * 5000)
            file.append(row(gate_cases()[0], "tritongru", where, family="f", parity=0.5))
            print("row", flush=True)
    """
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        for _ in range(3):
            assert process.stdout.readline() == "row\n"
        process.kill()
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert len(lines) >= 3
    assert all(tuple(json.loads(line)) == rows.KEYS for line in lines)


def test_file_names_say_gpu_and_date():
    assert rows.file_name("gate", "NVIDIA H200", "2026-11-22") == "gate-nvidia-h200-2026-11-22.jsonl"
    assert rows.file_name("cpu", None, "2026-11-22") == "cpu-2026-11-22.jsonl"


def test_without_git_the_commit_is_unknown(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert rows.facts("some GPU")["commit"] == "unknown"
    assert rows.facts("some GPU")["driver"] is None


@pytest.mark.parametrize("path", sorted((ROOT / "bench" / "results").glob("*.jsonl")), ids=lambda path: path.name)
def test_committed_rows_can_be_read_whenever_they_were_written(path):
    read = rows.read(path)
    assert read
    assert all(set(row) == set(rows.KEYS) for row in read)
    assert all(row["case"] and row["impl"] and row["date"] for row in read)


def test_a_key_that_is_younger_than_a_row_reads_as_null(tmp_path):
    path = tmp_path / "old.jsonl"
    path.write_text('{"case": "h8-b3-t5-fp32-train", "ms": 2.0}\n')
    assert rows.read(path) == [dict.fromkeys(rows.KEYS) | {"case": "h8-b3-t5-fp32-train", "ms": 2.0}]


def test_case_names_are_unique_and_tell_the_case():
    names = [case.name for case in (*gate_cases(), *CPU_CASES)]
    assert len(set(names)) == len(names) == 180
    assert gate_cases()[0] == HEADLINE
    assert HEADLINE.name == "h768-b16-t1024-bf16-forward"
    assert Case(8, 2, 3, "fp32", "forward", True, 2, 2).name == "h8-b2-t3-l2-bi-fp32-tf32-forward"
    assert Case(8, 2, 3, "bf16", "train", inputs=5).name == "h8-b2-t3-i5-bf16-train"
    assert Case(8, 2, 3, "bf16", "train", inputs=5, label="demo").name == "demo-bf16-train"


def test_the_gate_measures_the_middle_first_and_the_whole_grid_in_the_end():
    blocks = gate_blocks()
    assert blocks[0][:2] == [HEADLINE, dataclasses.replace(HEADLINE, mode="train")]
    assert tuple(case.label for case in blocks[0][2:]) == suites.OPENING
    named = [case.label for case in (*blocks[0][2:], *blocks[1])]
    assert sorted(named) == sorted(workload.label for workload in WORKLOADS)
    assert {case.batch for case in blocks[2]} == {1, 16, 64}
    assert [case.dtype for case in blocks[2] if case.wide].count("fp32") == 6
    found = [
        (case.hidden, case.batch, case.dtype, case.mode)
        for case in gate_cases()
        if case.wide and case.time == 512 and not case.label
    ]
    sizes = (256, 384, 512, 768, 1024)
    grid = {(h, b, "bf16") for h in (*sizes, 2048) for b in (1, 16, 32, 64, 128)}
    grid |= {(h, b, "fp32") for h in sizes for b in (1, 16, 64, 128)}
    cells = {cell[:3] for cell in found}
    assert cells >= grid
    assert {cell[:2] for cell in cells - grid} == {(768, 16), (768, 64), (768, 1), (1024, 16), (1024, 64), (512, 16)}
    assert len(found) == 2 * len(cells) == len(set(found)), "each cell in both modes"
    assert all(a[:3] == b[:3] for a, b in zip(found[::2], found[1::2], strict=True)), "one after the other"
    assert all(case.tf32 == (case.dtype == "fp32") for case in gate_cases())
    assert sum(not case.wide and not case.label for case in gate_cases()) == 42


# Parity


MORE = [Case(8, 3, 5, "bf16", "train"), Case(8, 3, 5, "fp16", "train", layers=2, directions=2)]


@pytest.mark.parametrize("case", [TRAIN, FORWARD, *MORE])
def test_the_same_function_is_green(case):
    found, plan = pair.check(case, "auto", CPU, build_with())
    assert found.green
    assert found.ours == found.theirs <= 0.5
    assert found.repeatable
    assert plan.family == "resident"


LAST = tuple(map(torch.tensor, (4, 2, 7)))  # one element of the output (T, B, H)
SPOILS = {
    "one element": lambda y: y.index_put(LAST, torch.tensor(1e-4), accumulate=True),
    "one NaN": lambda y: y.index_put(LAST, torch.tensor(math.nan)),
    "shape": lambda y: y[:, :1].expand(-1, 2, -1),
    "dtype": lambda y: y.double(),
    "gradient only": WrongGradient.apply,
}


@pytest.mark.parametrize("kind", SPOILS)
def test_planted_faults_are_red(kind):
    case = TRAIN if kind == "gradient only" else FORWARD
    found, _ = pair.check(case, "auto", CPU, build_with(SPOILS[kind]))
    assert not found.green
    assert "error" in found.worst


def test_a_rival_that_is_nan_cannot_make_ours_green():
    y = torch.ones(2, dtype=torch.float64)
    found = parity.compare({"output": y}, {"output": y * math.nan}, {"output": y}, 1e-6)
    assert not found.green


def test_a_quantity_that_is_missing_is_red():
    y = torch.ones(2, dtype=torch.float64)
    found = parity.compare({"output": y}, {"output": y, "h_n": y}, {"output": y, "h_n": y}, 1e-6)
    assert not found.green
    assert "h_n" in found.worst


def test_an_error_that_moves_is_noticed():
    def noise(y):
        return y + 1e-8 * torch.rand_like(y)

    found, _ = pair.check(FORWARD, "auto", CPU, build_with(noise))
    assert found.green
    assert not found.repeatable


def test_both_tf32_switches_are_set_and_set_back():
    def switches():
        return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    before = switches()
    for on in (True, False):
        with parity.tf32(on):
            assert switches() == (on, on)
            assert (torch.backends.cudnn.rnn.fp32_precision == "tf32") is on
            assert (torch.backends.cuda.matmul.fp32_precision == "tf32") is on
        assert switches() == before


# Timing


def test_spread_and_geomean():
    assert timing.spread([float(value) for value in range(1, 102)]) == pytest.approx((91 - 11) / 51)
    assert timing.spread([2.0, 2.0, 2.0]) == 0
    assert timing.geomean([0.5, 2.0, 8.0]) == pytest.approx(2.0)


def test_calls_take_turns_in_batches_of_the_least_length():
    log = []

    class Fake:
        def ms(self, call, count):
            call()
            log.append((call.__name__, count))
            return 0.5 if call.__name__ == "a" else 20.0

    def a(): ...
    def b(): ...

    samples = timing.interleaved(Fake(), {"a": a, "b": b}, rounds=9, limit_s=5)
    assert {name: len(taken) for name, taken in samples.items()} == {"a": 9, "b": 9}
    assert log[-18:] == [("a", 10), ("b", 1)] * 9


@pytest.mark.parametrize("seconds, rounds", [(0.001, 50), (0.25, 20), (60.0, timing.FEWEST_ROUNDS)])
def test_a_slow_case_gets_fewer_rounds(monkeypatch, seconds, rounds):
    """Of a call that takes so long, by a clock that nothing else moves."""
    clock = [0.0]

    class Fake:
        def ms(self, call, count):
            clock[0] += seconds
            return 1000 * seconds

    monkeypatch.setattr(timing, "time", types.SimpleNamespace(perf_counter=lambda: clock[0]))
    samples = timing.interleaved(Fake(), {"a": None, "b": None}, rounds=50, limit_s=20.0)
    assert len(samples["a"]) == len(samples["b"]) == rounds


def test_the_cuda_timer_records_around_the_calls_and_waits_for_the_last(monkeypatch):
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("record")

        def synchronize(self):
            log.append("wait")

        def elapsed_time(self, end):
            assert end is not self
            return 12.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append("idle"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(L2_cache_size=100))
    timer = timing.CudaTimer(CPU)
    assert timer.scratch.numel() == 200
    assert timer.ms(lambda: log.append("call"), 3) == 4.0
    assert log == ["idle", "record", "call", "call", "call", "record", "wait"]
    assert not timer.scratch.any()


def test_peak_memory_is_that_of_a_second_call_over_what_was_there(monkeypatch):
    log = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append("idle"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: log.append("reset"))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 5 * 2**20)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: log.append("read") or 12 * 2**20)

    class Step:
        def __call__(self):
            log.append("call")

        def forget(self):
            log.append("forget")

    assert pair.peak_mib(Step(), types.SimpleNamespace(type="cuda")) == 7.0
    assert log == ["call", "forget", "idle", "reset", "call", "idle", "read", "forget"]


def test_the_peak_of_training_is_taken_with_gates_saved_and_rebuilt(monkeypatch):
    import tritongru

    ours = tritongru.GRU(8, 8)
    seen = []
    monkeypatch.setattr(pair, "peak_mib", lambda step, device: seen.append((step, ours.memory)) or 1.0 * len(seen))
    cuda = types.SimpleNamespace(type="cuda")
    for mode, found in (
        ("train", [(1, "auto"), (2, "auto"), (1, "recompute")]),
        ("forward", [(1, "auto"), (2, "auto")]),
    ):
        seen.clear()
        both = pair.Pair(ours, nn.GRU(8, 8), plan_of("persistent", mode))
        peaks = pair.peaks_of(both, {pair.OURS: 1, pair.THEIRS: 2}, cuda)
        assert seen == found
        assert list(peaks.values()) == [1.0, 2.0, 3.0][: len(found)]
        assert (pair.RECOMPUTED in peaks) is (mode == "train")
        assert ours.memory == "auto"


def test_a_peak_without_a_time_has_a_row(tmp_path):
    result = wide_result(dataclasses.replace(WIDE, mode="train"))
    result.times[pair.RECOMPUTED] = {"peak_mib": 2.0}
    (row,) = (row for row in examine.rows_of(result, "auto", WHERE) if row["impl"] == "tritongru[recompute]")
    assert tuple(row) == rows.KEYS
    assert (row["ms"], row["peak_mib"], row["parity"], row["plan"]) == (None, 2.0, None, BACK.name)


@pytest.mark.parametrize("case", [TRAIN, FORWARD])
def test_a_step_computes_fresh_gradients_on_rotating_inputs(case):
    steps = pair.steps_of(build_with()(case, "auto", CPU), case, CPU)
    step = steps[pair.OURS]
    step()
    first = [weight.grad for weight in step.weights]
    for _ in step.inputs:
        step()
    if case.mode == "forward":
        assert first == [None] * len(first)
        return
    for weight, before in zip(step.weights, first, strict=True):
        torch.testing.assert_close(weight.grad, before)  # the same input again, and nothing added up
    assert all(weight.grad is None for weight in steps[pair.THEIRS].weights)
    step.forget()
    assert all(leaf.grad is None for leaf in (*step.weights, *step.inputs))


# The run


def test_a_green_run_writes_a_row_per_case_and_implementation(tmp_path):
    asked = []
    code, read, lines = run(tmp_path, asker(build_with(family="resident"), asked))
    assert asked == [(what, case.name) for case in (TRAIN, FORWARD) for what in ("parity", "speed")]
    assert [(row["case"], row["impl"]) for row in read] == [
        (case.name, impl) for case in (TRAIN, FORWARD) for impl in ("tritongru", "nn.GRU")
    ]
    assert [row["family"] for row in read] == ["resident", "torch"] * 2
    for row in read:
        assert row["ms"] > 0
        assert row["us_per_step"] == pytest.approx(1000 * row["ms"] / 5, rel=1e-4)
        assert 0 < row["parity"] <= 0.5
        assert row["spread"] >= 0
        assert row["peak_mib"] is None
    slower = any(line.startswith("Slower than nn.GRU") for line in lines)
    assert code == int(slower)  # the same function twice: either may come out ahead
    assert "2 of 2 green and timed, 0 red" in lines[-1]


def test_a_red_case_is_not_timed_and_the_exit_code_says_so(tmp_path):
    asked = []
    code, read, lines = run(tmp_path, asker(build_with(SPOILS["one element"]), asked))
    assert code == 1
    assert [what for what, _ in asked] == ["parity", "parity"]
    assert len(read) == 4
    assert all(row["ms"] is row["us_per_step"] is row["spread"] is None for row in read)
    assert all((row["parity"] > 1) is (row["impl"] == "tritongru") for row in read)
    assert any(line.startswith(f"Red: {TRAIN.name}: ") for line in lines)
    assert "NOT passed" in lines[-1]


def fixed(ratio=2.0, family="resident"):
    """A run in which ours is `ratio` times faster."""
    times = {"tritongru": {"ms": 1.0, "spread": 0.0}, "nn.GRU": {"ms": ratio, "spread": 0.0}}

    def ask(what, result, limit_s):
        assert 0 < limit_s <= examine.limit_of(result.case)
        return (parity.Parity(0.4, 0.3, "", True), plan_of(family)) if what == "parity" else pair.Timed(times)

    return ask


@pytest.mark.parametrize(
    ("ratio", "family", "impl", "code"),
    [
        (2.0, "resident", "auto", 0),
        (0.999, "resident", "auto", 1),
        (0.99, "torch", "auto", 0),
        (0.97, "torch", "auto", 1),
        (0.5, "resident", "triton", 0),
    ],
)
def test_the_verdict_flags_a_slower_case(tmp_path, ratio, family, impl, code):
    found, read, lines = run(tmp_path, fixed(ratio, family), impl=impl)
    assert found == code
    least = 0.98 if family == "torch" else 1.0
    slower = [line for line in lines if line.startswith("Slower than nn.GRU: ")]
    each = f"{TRAIN.name} {ratio:.3f}x, {FORWARD.name} {ratio:.3f}x"
    assert slower == ([f"Slower than nn.GRU: {each}"] if ratio < least else [])
    assert read[0]["impl"] == ("tritongru" if impl == "auto" else "tritongru[triton]")


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("stage", ["parity", "speed"])
def test_a_case_without_an_answer_is_recorded_and_the_run_goes_on(tmp_path, stage, late):
    """One that crashes is red; one that its limit stops is cut off, and what was known of it stays."""
    why = "no answer within 30 s, killed" if late else "the child process ended with exit code -11"

    def ask(what, result, limit_s):
        if (what, result.case) == (stage, TRAIN):
            raise (children.TimedOut if late else children.Failed)(why)
        return fixed()(what, result, limit_s)

    code, read, lines = run(tmp_path, ask)
    assert code == 1
    kept = (0.4, 0.3) if late and stage == "speed" else (None, None)
    found = {row["impl"]: (row["ms"], row["parity"]) for row in read if row["case"] == TRAIN.name}
    assert found == {"tritongru": (None, kept[0]), "nn.GRU": (None, kept[1])}
    assert [row["ms"] for row in read if row["case"] == FORWARD.name] == [1.0, 2.0]
    (reason,) = (row["reason"] for row in read if (row["case"], row["impl"]) == (TRAIN.name, "tritongru"))
    assert reason == (f"{stage}: {why}" if late else why)
    cut = f"Cut off by their time limit, no verdict on the kernels: {TRAIN.name} ({stage})"
    assert (cut in lines) is late
    assert (f"Red: {TRAIN.name}: {why}" in lines) is not late
    assert f"{int(not late)} red, 0 slower, 0 left out" in lines[-1]
    assert (", 1 cut off" in lines[-1]) is late


def test_a_spent_budget_leaves_cases_out_by_name(tmp_path):
    code, read, lines = run(tmp_path, fixed(), seconds=examine.RESERVE_S / 2)
    assert (code, read) == (1, [])
    assert f"No time to check: {TRAIN.name}, {FORWARD.name}" in lines


def test_a_budget_that_ends_between_the_stages_keeps_the_parity(tmp_path, monkeypatch):
    left = itertools.chain([100.0] * 3, itertools.repeat(1.0))  # the block, then twice for a question
    monkeypatch.setattr(examine.Budget, "left", lambda self: next(left))
    code, read, lines = run(tmp_path, fixed(), cases=(TRAIN,))
    assert code == 1
    assert [(row["ms"], row["parity"]) for row in read] == [(None, 0.4), (None, 0.3)]
    assert f"No time to measure the speed of: {TRAIN.name}" in lines
    assert f"  {TRAIN.name}: parity 0.400, resident, not timed" in lines


def test_a_case_that_the_end_of_the_budget_stopped_is_not_called_red(tmp_path, monkeypatch):
    left = iter([100.0, 100.0, 100.0, 0.0])

    def ask(what, result, limit_s):
        raise children.TimedOut("no answer within 9 s, killed")

    monkeypatch.setattr(examine.Budget, "left", lambda self: next(left))
    code, read, lines = run(tmp_path, ask, cases=(TRAIN,))
    assert (code, read) == (1, [])
    assert "0 red" in lines[-1]


# Rivals of a wide layer


@pytest.mark.parametrize("mode", ["forward", "train"])
def test_a_wide_case_is_held_against_rivals_and_those_that_fail_are_missing_with_a_reason(tmp_path, mode):
    """Here a graph cannot be captured, and the kernels of the floor cannot be run for a family without an exchange."""
    case = dataclasses.replace(WIDE, mode=mode)
    _, read, lines = run(tmp_path, asker(build_with()), cases=(case,))
    assert [row["impl"] for row in read][:2] == ["tritongru", "nn.GRU"]
    assert {row["impl"] for row in read[2:]} == set(rivals.GRID_RIVALS)
    found = {row["impl"]: row for row in read}
    assert found["nn.LSTM"]["ms"] > 0
    assert found["nn.LSTM"]["parity"] is found["nn.LSTM"]["peak_mib"] is None
    assert found["nn.GRU[graph]"]["ms"] is found["floor"]["ms"] is None
    (line,) = (line for line in lines if line.startswith(f"  {case.name}: "))
    assert "nn.LSTM " in line
    assert line.endswith("; no time for floor, nn.GRU[graph]")
    assert "No time for floor: the resident family has no exchange (1 case)" in lines
    assert "No time for nn.GRU[graph]: a CUDA graph needs a GPU (1 case)" in lines
    assert found["floor"]["reason"] == "the resident family has no exchange"
    assert lines[-1].startswith("Verdict")


def test_the_gate_holds_named_and_wide_cases_against_others():
    assert suites.gate_rivals(FORWARD) == ()
    assert suites.gate_rivals(WIDE) == rivals.GRID_RIVALS
    assert suites.gate_rivals(dataclasses.replace(FORWARD, label="demo")) == rivals.GATE_RIVALS


def test_the_lstm_learns_as_the_gru_does():
    """Fresh gradients at each call, none of them the GRU's."""
    case = Case(8, 3, 5, "fp32", "train")
    step = pair.steps_of(build_with()(case, "auto", CPU), case, CPU)[pair.THEIRS]
    call = rivals.lstm_of(case, step)
    call()
    first = [weight.grad for weight in call.weights]
    assert all(grad is not None and grad.abs().sum() > 0 for grad in first)
    assert all(weight.grad is None for weight in step.weights)
    assert len({grad.shape for grad in first} & {(4 * 8, 8), (4 * 8,)}) == 2


def test_the_floor_of_a_persistent_launch_runs_its_grid(monkeypatch):
    ran = []
    monkeypatch.setattr("bench.measure.exchange_floor.floor", lambda *arguments: ran.append(arguments))
    both = build_with(family="persistent")(WIDE, "auto", CPU)
    like = torch.zeros(1)
    rivals.floor_of(Case(256, 17, 2, "fp32", "forward"), both, like)()
    assert ran == [(like, 2, 2, 1, 256, LAUNCH)]
    ran.clear()
    case = Case(256, 17, 2, "fp32", "train")
    both = build_with(family="persistent")(case, "auto", CPU)
    rivals.floor_of(case, both, like)()
    assert ran == [(like, 2, 2, 1, 256, LAUNCH), (like, 2, 2, 1, 256, BACK)]
    ran.clear()
    rivals.floor_of(dataclasses.replace(case, layers=2), both, like)()
    assert len(ran) == 4


def test_without_an_exchange_in_every_pass_there_is_no_floor():
    step = StepwiseLaunch(16, 32, 64, 8, 4, 0, "tf32")
    plan = plan_of("persistent", backward=Pass("stepwise", step, 8, 1, None))
    both = dataclasses.replace(build_with()(WIDE, "auto", CPU), plan=plan)
    assert rivals.exchanges(plan) == []
    with pytest.raises(LookupError, match="the stepwise family has no exchange"):
        rivals.floor_of(WIDE, both, torch.zeros(1))
    assert report.Result(TRAIN, plan).launch == "16x32x64-8w-4s-stepwise"
    assert examine.expected_floor(plan) is None


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="on a GPU the gate itself runs the floor")
def test_a_floor_that_gives_up_is_missing(monkeypatch):
    from tritongru.kernels.persistent import launch as persistent

    both = build_with(family="persistent")(WIDE, "auto", CPU)
    steps = pair.steps_of(both, WIDE, CPU)
    found = rivals.rivals_for(WIDE, both, steps, rivals.GRID_RIVALS, PATIENCE)
    assert list(found.calls) == ["floor", "nn.LSTM"], found.missing
    assert list(found.missing) == ["nn.GRU[graph]"]

    def without_arrivals(*arguments):
        counters, slots, state = persistent.workspace(*arguments)
        return counters - 1000, slots, state

    monkeypatch.setattr("bench.measure.exchange_floor.workspace", without_arrivals)
    monkeypatch.setattr("bench.measure.exchange_floor.LIMIT", 1)
    found = rivals.rivals_for(WIDE, both, steps, rivals.GRID_RIVALS, PATIENCE)
    assert list(found.calls) == ["nn.LSTM"]
    assert "gave up" in found.missing["floor"]


class FakeGraph:
    """Of torch.cuda what a capture touches; what is replayed is counted."""

    def __init__(self, monkeypatch, fails):
        self.log, self.fails = [], fails
        stream = types.SimpleNamespace(wait_stream=lambda other: None)
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
        monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: self.log.append(("set", stream)))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: types.SimpleNamespace(replay=self.replay))
        monkeypatch.setattr(torch.cuda, "graph", self.capture)

    def replay(self):
        self.log.append("replay")

    @contextlib.contextmanager
    def capture(self, graph):
        self.log.append("capture")
        yield
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing")


@pytest.mark.parametrize("fails", [False, True])
def test_a_graph_is_captured_once_and_a_failed_capture_gives_the_stream_back(monkeypatch, fails):
    fake = FakeGraph(monkeypatch, fails)
    before = types.SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: before)
    calls = []
    if fails:
        with pytest.raises(RuntimeError, match="capturing"):
            rivals.graph_of(lambda: calls.append(1), CPU)
        assert fake.log == ["capture", ("set", before)]
        return
    rivals.graph_of(lambda: calls.append(1), CPU)()
    assert fake.log == ["capture", ("set", before), "replay"]
    assert len(calls) == 4  # three to warm up, one captured


def test_rows_of_a_persistent_case_name_the_launch_and_what_was_expected():
    result = wide_result(WIDE, ours=0.004, theirs=0.016, floor=0.002)
    made = {row["impl"]: row for row in examine.rows_of(result, "auto", WHERE)}
    assert set(made) == {"tritongru", "nn.GRU", *rivals.GRID_RIVALS}
    assert {name: row["plan"] for name, row in made.items() if row["plan"]} == {
        "tritongru": LAUNCH.name,
        "floor": LAUNCH.name,
    }
    assert made["tritongru"]["predicted_us"] == 1.7
    assert made["nn.GRU"]["predicted_us"] == 7.0
    assert made["floor"]["predicted_us"] == pytest.approx(1.1 + cost_model.L2_LATENCY_US)
    assert made["floor"]["us_per_step"] == pytest.approx(1.0)
    assert made["nn.LSTM"]["ms"] is None
    assert all(tuple(row) == rows.KEYS for row in made.values())


def test_the_exchange_is_a_floor_of_ours_alone():
    limits = {ceilings.COPY: ceilings.Ceiling(1, 0, 1, 1e15), "fp32": ceilings.Ceiling(1, 0, 1, 1e15)}
    made = {row["impl"]: row for row in examine.rows_of(wide_result(WIDE, floor=0.75), "auto", WHERE, limits)}
    assert (made["tritongru"]["floor_ms"], made["tritongru"]["bound"]) == (0.75, "exchange")
    for name in ("nn.GRU", "nn.GRU[graph]"):
        assert made[name]["floor_ms"] < 1e-3
        assert made[name]["bound"] in ("bytes", "operations")


def test_rows_of_a_training_step_are_of_both_loops():
    result = wide_result(dataclasses.replace(WIDE, mode="train"), ours=0.008, theirs=0.028, floor=0.004)
    made = {row["impl"]: row for row in examine.rows_of(result, "auto", WHERE)}
    assert made["tritongru"]["plan"] == made["floor"]["plan"] == BACK.name != LAUNCH.name
    assert made["tritongru"]["predicted_us"] == pytest.approx(1.7 + 2.6)
    assert made["nn.GRU"]["predicted_us"] == 14.0
    assert made["floor"]["predicted_us"] == pytest.approx(1.1 + 1.5 + 2 * cost_model.L2_LATENCY_US)
    terms = {"exchange": 2.2, "l2": 0.4, "tensor": 0.0, "shared": 0.0, "issue": 0.8, "barriers": 0.0}
    assert made["tritongru"]["predicted_terms"] == pytest.approx(terms)
    text = "4.000 us per step (expected 4.30: exchange 2.20, l2 0.40, issue 0.80), nn.GRU 3.50x"
    assert text in report.line(result)


def test_a_row_holds_the_terms_of_ours_alone_and_none_where_a_pass_is_unknown():
    made = {row["impl"]: row for row in examine.rows_of(wide_result(WIDE), "auto", WHERE)}
    assert made["tritongru"]["predicted_terms"] == COST.terms
    assert {name for name, row in made.items() if row["predicted_terms"]} == {"tritongru"}
    result = wide_result(dataclasses.replace(WIDE, mode="train"))
    unknown = dataclasses.replace(result.plan, backward=dataclasses.replace(result.plan.backward, cost=None))
    result.plan = unknown
    assert result.expected_terms is None
    result.plan = plan_of("torch")
    assert result.expected_terms is None
    earlier = dataclasses.replace(result, earlier={"predicted_us": 3.0, "predicted_terms": {"issue": 1.0}})
    assert earlier.expected_terms == {"issue": 1.0}


@pytest.mark.parametrize(
    "turns, said", [((1, 1), ""), ((3, 1), "; 3 tiles in turn"), ((3, 2), "; 3 and 2 tiles in turn")]
)
def test_a_line_says_for_how_many_tiles_in_turn_the_terms_hold(turns, said):
    result = wide_result(dataclasses.replace(WIDE, mode="train"))
    passes = {
        name: dataclasses.replace(found, cost=dataclasses.replace(found.cost, turns=number))
        for name, found, number in zip(
            ("forward", "backward"), (result.plan.forward, result.plan.backward), turns, strict=True
        )
    }
    result.plan = dataclasses.replace(result.plan, **passes)
    assert result.expected_text == f"expected 4.30: exchange 2.20, l2 0.40, issue 0.80{said}"


def test_the_gate_keeps_what_it_expected_of_a_green_case(tmp_path, monkeypatch):
    monkeypatch.setattr(suites, "gate_rivals", lambda case: ())
    _, read, lines = run(tmp_path, asker(build_with(family="persistent")), cases=[WIDE])
    ours = next(row for row in read if row["impl"] == "tritongru")
    assert ours["predicted_us"] == COST.us
    assert ours["predicted_terms"] == COST.terms
    assert list(ours["predicted_terms"]) == ["exchange", "l2", "tensor", "shared", "issue", "barriers"]
    assert any("(expected 1.70: exchange 1.00, l2 0.10, issue 0.40)" in line for line in lines)


# The end of a run


def wide_result(case, ours=1.0, theirs=4.0, floor=0.75, peaks=(1.2, 0.9)):
    times = {
        "tritongru": {"ms": ours},
        "nn.GRU": {"ms": theirs},
        "nn.GRU[graph]": {"ms": theirs},
        "floor": {"ms": floor},
    }
    if case.mode == "train":
        times["nn.GRU"]["peak_mib"] = 100.0
        times["tritongru"]["peak_mib"] = 100 * peaks[0]
        times[pair.RECOMPUTED] = {"peak_mib": 100 * peaks[1]}
    timed = pair.Timed(times, {"nn.LSTM": "RuntimeError: no"})
    return report.Result(case, plan_of("persistent", case.mode), 0.4, 0.3, True, timed)


def ending(results, impl="auto"):
    passed, lines = report.ending(results, impl, targets.judge(results))
    return passed, lines


def test_the_last_page_shows_small_cases_grids_means_and_targets():
    small = [case for case in gate_cases() if not case.wide or case.label]
    results = [report.Result(case, plan_of("resident"), 0.4, 0.3, True) for case in small]
    for result in results:
        theirs = 8.0 if result.case.mode == "train" else 2.0
        result.timed = pair.Timed({"tritongru": {"ms": 1.0}, "nn.GRU": {"ms": theirs}, "gru-qat": {"ms": 3.0}})
    results += [wide_result(case) for case in gate_cases() if case.wide and not case.label]
    passed, lines = ending(results)
    assert passed
    assert lines[1].split() == ["brain-to-text-bf16-train", "1.000", "8.000", "8.00x", "gru-qat", "3.00x"]
    assert lines[1 + len(WORKLOADS) + 1].split() == [
        *("h128-b64-t512-bf16-train", "1.953", "15.625", "8.00x", "0.400", "resident")
    ]
    assert any("named fp32 train" in line and "gru-qat 3.00x (21)" in line for line in lines)
    for mode in ("forward", "train"):
        at = lines.index(f"bf16 {mode}, T=512: us per step, x nn.GRU, / floor")
        assert lines[at + 5] == "H=768   " + "1.95 4.00x /1.3".rjust(19) * 5
        assert any(f"wide bf16 {mode}" in line and "nn.GRU 4.00x (31 cases" in line for line in lines)
    assert any("floor 0.75x (31)" in line and "LSTM" not in line for line in lines)
    assert lines[-1] == (
        "Verdict: passed; 178 of 178 green and timed, 0 red, 0 slower, 0 left out, 0 of 17 targets missed; "
        "0 from earlier rows."
    )
    assert len("\n".join(lines)) < 12_000
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize(("theirs", "text"), [(1.09, "about 1"), (0.92, "about 1"), (1.12, "1.12x"), (0.9, "0.90x")])
def test_a_ratio_inside_its_spread_is_about_one_wherever_a_run_prints_it(theirs, text):
    small = Case(64, 16, 512, "bf16", "train")
    for case in (WIDE, small, workload_cases()[0]):
        result = wide_result(case, theirs=theirs)
        for own in result.times.values():
            own["spread"] = 0.1
        assert f", nn.GRU {text}, nn.GRU[graph] {text}" in report.line(result)
        _, lines = ending([result])
        page = lines[: lines.index("Geometric means of the others' times over ours:")]
        assert sum(text in line for line in page) == 1
        assert not any(f"{theirs:.2f}" in line for line in page if text not in line)
        assert any(f"nn.GRU {theirs:.2f}x (1 cases" in line for line in lines), "a mean stays a number"


def test_the_end_of_a_run_in_which_all_is_red_is_short():
    results = [report.Result(case, failure="RuntimeError: " + "because " * 99) for case in gate_cases()]
    passed, lines = ending(results)
    assert not passed
    assert len("\n".join(lines)) < 12_000
    assert sum(line.startswith("Red: ") for line in lines) == report.REASONS
    assert any(line.endswith(f"and {178 - report.REASONS - report.NAMES} more") for line in lines)
    assert sum(line.count(" RED") for line in lines) == 178
    assert lines[-1].startswith("Verdict: NOT passed; 0 of 178 green and timed, 178 red")


def test_a_rival_that_fails_at_length_leaves_a_line_that_can_be_read():
    result = wide_result(WIDE)
    result.timed = pair.Timed(result.times, dict.fromkeys(rivals.GRID_RIVALS, "RuntimeError: " + "because " * 99))
    assert max(map(len, [report.line(result), *report.reasons([result])])) < 300


# Targets


def test_targets_that_nothing_was_measured_for_miss_nothing():
    judged = targets.judge([report.Result(HEADLINE, left_out="parity")])
    assert [reached for reached, _ in judged] == [None] * 17
    assert all(sentence.endswith(": not measured") for _, sentence in judged)


@pytest.mark.parametrize(
    ("dtype", "mode", "count", "ratio", "reached"),
    [
        ("bf16", "forward", 20, 4.01, True),
        ("bf16", "forward", 20, 3.99, False),
        ("fp16", "forward", 6, 3.99, False),
        ("fp32", "forward", 15, 3.01, True),
        ("fp32", "forward", 15, 2.99, False),
        ("bf16", "train", 20, 3.01, True),
        ("bf16", "train", 20, 2.99, False),
        ("fp16", "train", 6, 2.99, False),
        ("fp32", "train", 15, 2.01, True),
        ("fp32", "train", 15, 1.99, False),
    ],
)
def test_a_target_is_a_geometric_mean_over_its_cells(dtype, mode, count, ratio, reached):
    """Half of the cells below, half above; cells outside the target's range and of the other mode do not count."""
    own = [case for case in wide_cases(dtype) if case.mode == mode]
    cells = [case for case in own if case.hidden <= 1024 and case.batch <= 64]
    assert len(cells) == count
    even = count - 2 + count % 2
    results = [wide_result(case, theirs=ratio * (2 if i % 2 else 0.5)) for i, case in enumerate(cells[:even])]
    results += [wide_result(case, theirs=0.1) for case in own if case.batch == 128]
    results += [wide_result(case, theirs=0.1) for case in wide_cases(dtype) if case.mode != mode]
    judged = [one for one in targets.judge(results) if one[1].startswith(f"{dtype} {mode}")]
    word = "reached" if reached else "NOT reached"
    least = targets.LEAST[mode][dtype]
    where = f"{dtype} {mode} at least {least:.0f}x nn.GRU over H 256-1024, B 1-64"
    assert judged == [(reached, f"{where}: {word}, {ratio:.2f}x over {even} of {count} cells")]


@pytest.mark.parametrize(
    ("mode", "us", "floors", "reached"),
    [
        ("forward", 2.0, 1.6, True),
        ("forward", 2.1, 1.61, False),
        ("train", 5.0, 2.5, True),
        ("train", 5.1, 2.51, False),
    ],
)
def test_the_headline_and_the_floor_are_targets(mode, us, floors, reached):
    headline, edge = (dataclasses.replace(case, mode=mode) for case in (HEADLINE, targets.EDGE))
    ms = us * 1.024
    results = [wide_result(headline, ours=ms, theirs=8 * ms), wide_result(edge, ours=floors - 0.001, floor=1.0)]
    found = {sentence.split(" in at most")[0]: one for one, sentence in targets.judge(results)}
    other = "train" if mode == "forward" else "forward"
    for where in ("H=768 B=16 T=1024 bf16", "H=1024 B=16 bf16"):
        assert found[f"{where} {mode}"] is reached
        assert found[f"{where} {other}"] is None


@pytest.mark.parametrize(("saved", "rebuilt"), [(1.3, 1.0), (1.31, 1.0), (1.3, 1.01)])
def test_the_memory_of_training_is_a_target_of_its_worst_case(saved, rebuilt):
    first, *others = [case for case in wide_cases("bf16") if case.mode == "train"]
    results = [wide_result(case) for case in others] + [wide_result(first, peaks=(saved, rebuilt))]
    results[0].plan = plan_of("persistent", "train", memory=Memory("recompute", 0, 0, 0, 1))  # "auto" may do that, too
    results[0].times["tritongru"]["peak_mib"] = 1000.0
    judged = [one for one in targets.judge(results) if one[1].startswith("training memory")]
    what = "training memory, gates {}, at most {}x nn.GRU's: {}, {:.2f}x ({}), {} cases"
    words = {True: "reached", False: "NOT reached"}
    assert judged == [
        (saved <= 1.3, what.format("saved", 1.3, words[saved <= 1.3], saved, first.name, len(others))),
        (rebuilt <= 1.0, what.format("rebuilt", 1.0, words[rebuilt <= 1.0], rebuilt, first.name, len(others) + 1)),
    ]


def test_a_missed_target_fails_the_run_and_a_red_case_says_nothing_of_a_target():
    slow = wide_result(HEADLINE, ours=3.0, theirs=30.0)
    passed, lines = ending([slow])
    assert not passed
    assert "  H=768 B=16 T=1024 bf16 forward in at most 2.00 us a step: NOT reached, 2.93 us" in lines
    assert "1 of 17 targets missed; " in lines[-1]
    slow.green, slow.failure = False, "wrong"
    assert all(reached is None for reached, _ in targets.judge([slow]))


def test_with_a_gpu_the_gate_compiles_asks_a_child_and_names_the_file(tmp_path, monkeypatch, capsys):
    stopped = []

    class FakeChild:
        def __init__(self, handler):
            assert handler is examine.answer

        def ask(self, question, *, limit_s, start_s):
            assert start_s > 0
            assert question.rivals == suites.gate_rivals(question.case)
            return fixed()(question.what, report.Result(question.case), limit_s)

        def stop(self):
            stopped.append(True)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA H200")
    monkeypatch.setattr(examine, "device_facts", lambda device: GPUS["h200"])
    monkeypatch.setattr(warm, "warm", lambda jobs, impl, limit_s: {f"{len(jobs)} jobs": "exit code 1"})
    monkeypatch.setattr(gate, "Child", FakeChild)
    assert gate.gate(1e6, tmp_path, "auto", "h64-b16-", "abc1234") == 0
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("gate-nvidia-h200-20")
    read = rows.read(path)
    assert len(read) == 8
    assert {(row["gpu"], row["arch"], row["commit"]) for row in read} == {("NVIDIA H200", "sm_90", "abc1234")}
    printed = capsys.readouterr().out
    assert "not compiled: 4 jobs: exit code 1" in printed
    assert stopped == [True]


# Child processes


@pytest.fixture
def handlers(tmp_path, monkeypatch):
    """A module that a child can import quickly."""
    (tmp_path / "quick_handlers.py").write_text(
        "import os, threading\n"
        "from bench.measure.children import Failed\n"
        "def handle(what, value=0):\n"
        "    if what == 'pid': return os.getpid()\n"
        "    if what == 'hang': threading.Event().wait()\n"
        "    if what == 'die': os._exit(3)\n"
        "    if what == 'fail': raise Failed('this one only')\n"
        "    raise ValueError(f'no {what}\\nsecond line')\n"
        "def job(code):\n"
        "    if code is None: threading.Event().wait()\n"
        "    raise SystemExit(code)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import quick_handlers

    yield quick_handlers
    sys.modules.pop("quick_handlers")


def test_a_child_that_hangs_dies_or_breaks_is_replaced(handlers):
    child = children.Child(handlers.handle)
    try:
        first = child.ask("pid", limit_s=PATIENCE)
        with pytest.raises(children.Failed, match=r"^this one only$"):
            child.ask("fail", limit_s=PATIENCE)
        assert child.ask("pid", limit_s=PATIENCE) == first
        with pytest.raises(children.TimedOut, match=r"no answer within 0 s, killed"):
            child.ask("hang", limit_s=0.3)
        second = child.ask("pid", limit_s=PATIENCE)
        with pytest.raises(children.Failed, match=r"ended with exit code 3"):
            child.ask("die", limit_s=PATIENCE)
        with pytest.raises(children.Failed, match=r"^ValueError: no luck \(quick_handlers.py:8\)$"):
            child.ask("luck", limit_s=PATIENCE)
        third = child.ask("pid", limit_s=PATIENCE)
        assert len({first, second, third}) == 3
    finally:
        child.stop()
    assert child.process is None


def test_parallel_jobs_report_what_failed_and_end_in_time(handlers, monkeypatch):
    jobs = [("good", (0,)), ("bad", (7,)), ("fine", (0,))]
    assert children.run_all(handlers.job, jobs, workers=2, limit_s=PATIENCE) == {"bad": "exit code 7"}
    clock = iter([100.0, 100.5, 100.9, 101.1])  # at the start, before and while waiting for the first, after that
    monkeypatch.setattr(children, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    jobs = [("hangs", (None,)), ("late", (0,))]
    assert children.run_all(handlers.job, jobs, workers=1, limit_s=1) == {
        "hangs": "not done after 1 s, killed",
        "late": "not started, no time left",
    }


# The command line


def bench(*arguments):
    return python("-m", "bench", *arguments)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["gate", "--budget", "soon"], "expected a positive number of seconds, got 'soon'"),
        (["gate", "--budget", "-1"], "expected a positive number of seconds, got '-1'"),
        (["gate", "--budget", "nan"], "expected a positive number of seconds, got 'nan'"),
        (["gate", "--out", "README.md/rows"], "cannot write rows to 'README.md/rows'"),
        (["gate", "--out", "lost"], "cannot write rows to 'lost': it is a link to 'absent/rows', which does not exist"),
        pytest.param(
            ["gate", "--out", "/proc"],
            "cannot write rows to '/proc'",
            marks=pytest.mark.skipif(not Path("/proc/self").exists(), reason="/proc is a folder that nobody can fill"),
        ),
        (["gate", "--fast"], "unrecognized arguments: --fast"),
        (["gate", "--impl", "cudnn"], "invalid choice: 'cudnn'"),
        ([], "the following arguments are required"),
    ],
)
def test_a_bad_value_gets_one_sentence(arguments, sentence, capsys, monkeypatch, tmp_path):
    from bench.__main__ import main

    (tmp_path / "README.md").write_text("")
    (tmp_path / "lost").symlink_to("absent/rows")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    text = capsys.readouterr()
    assert text.out == ""
    assert sentence in text.err
    assert text.err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--publish"],
        ["run", "--suite", "cpu", "--suite", "grids"],
        ["run", "--only", "no such"],
        ["study", "--only", "no such"],
        ["study", "--steps", "1"],
        ["tune", "--table"],
        ["tune", "--cpu-table"],
    ],
    ids=" ".join,
)
def test_a_rejected_command_leaves_no_folder(arguments, monkeypatch, tmp_path):
    from bench.__main__ import main

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    command, *others = arguments
    given = [command, "--out", str(tmp_path / "new" / "rows"), "--commit", "abc1234", *others]
    try:
        code = main(given)
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert not list(tmp_path.iterdir())


def test_a_folder_is_made_with_its_first_row(tmp_path):
    file = rows.RowFile(tmp_path / "new" / "rows" / "x.jsonl")
    assert not list(tmp_path.iterdir())
    file.append(dict.fromkeys(rows.KEYS))
    assert len(rows.read(file.path)) == 1


@pytest.mark.parametrize("name", ["README.md/rows", "lost/rows", "x" * 300, "open/" + "x" * 300])
def test_a_folder_that_cannot_be_made_is_rejected_at_once(name, monkeypatch, tmp_path):
    (tmp_path / "README.md").write_text("")
    (tmp_path / "lost").symlink_to("absent")
    (tmp_path / "open").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(argparse.ArgumentTypeError, match=r"^cannot write rows to '"):
        folder(name)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--only", "h7-"],
            "No call name contains 'h7-'; names look like grid-h64-b4-t100-fp32-forward, first-forward-cold and "
            "peak-h256-b64-t400-fp32-train.",
        ),
        (["--impl", "triton"], "--impl triton needs a GPU, and there is none here."),
    ],
)
def test_what_cannot_be_measured_is_said(arguments, sentence, capsys, monkeypatch, tmp_path):
    from bench.__main__ import main

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["gate", "--commit", "abc1234", "--out", str(tmp_path / "new"), *arguments]) == 2
    assert capsys.readouterr().out == sentence + "\n"
    assert not list(tmp_path.iterdir())


HOST = ("forward", "forward-whole", "backward", "backward-whole")


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="this is what happens without a GPU")
def test_without_a_gpu_the_gate_times_calls_and_imports(tmp_path):
    done = bench("gate", "--commit", "abc1234", "--budget", "1", "--out", str(tmp_path / "new"))
    assert done.returncode in (1, 2), done.stderr  # no time for the loop, or no loop
    assert done.stdout.startswith("There is no GPU here")
    assert " % (" in done.stdout
    (path,) = (tmp_path / "new").iterdir()
    assert path.name.startswith("gate-cpu-")
    read = rows.read(path)
    assert all(tuple(row) == rows.KEYS for row in read)
    assert [(row["case"], row["impl"], row["family"]) for row in read] == [
        *((case.name, impl, "torch") for case in CPU_CASES for impl in ("tritongru[torch]", "nn.GRU")),
        *((f"host-{family}-{name}", "tritongru", family) for family in host.HIDDEN for name in HOST),
        ("import", "tritongru", None),
    ]
    assert all(row["ms"] > 0 and row["gpu"] is None for row in read)
    assert all(row["parity"] <= 0.5 for row in read if row["family"] == "torch")
    for family in host.HIDDEN:
        for name, limit in host.LIMITS_US.items():
            lines = [line for line in done.stdout.splitlines() if line.startswith(f"Host, {family} {name}: ")]
            assert ["until the kernel starts" in line for line in lines] == [True, False]
            assert f"the limit of {limit:.0f} us" in lines[0]
            assert lines[1].endswith("until the call returns.")


WALK = """
import json, sys
import torch
from triton.runtime.interpreter import GridExecutor
from bench.calls import host


def counted(function):
    def call(*args, **kwargs):
        found["work"] += 1
        return function(*args, **kwargs)

    return call


def launch(*args, **kwargs):
    frame, rooms = sys._getframe(), []
    while frame := frame.f_back:
        rooms.append(frame.f_globals["__name__"])
    found["ways"].append(rooms)
    started()


def replace():
    found["before"] = found["work"]
    replaced()


found = {"work": 0, "before": None, "ways": [], "interpreted": 0}
of_torch, of_tensor = "mm bmm addmm baddbmm matmul zeros", "__matmul__ mm bmm matmul addmm_ baddbmm_ zero_ new_zeros"
for room, names in ((torch, of_torch), (torch.Tensor, of_tensor)):
    for name in names.split():
        setattr(room, name, counted(getattr(room, name)))
GridExecutor.__call__ = lambda *args, **kwargs: found.update(interpreted=1 + found["interpreted"])
started, host._no_launch = host._no_launch, launch
replaced, host.without_products_and_zeros = host.without_products_and_zeros, replace
host.ROUNDS, host.BLOCKS, host.PAUSE_S = 3, 2, 0.0
found["us"] = host.samples(host.HIDDEN[sys.argv[1]])
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize("family", host.HIDDEN)
def test_the_host_is_timed_without_the_devices_work_but_all_of_the_way_to_it(family):
    done = python("-c", WALK, family, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["interpreted"] == 0
    assert found["work"] == found["before"] > 0, "products and zeros of the first call, and of no other"
    calls = 2 * 3  # in two blocks of three
    assert len(found["ways"]) == 1 + calls + 2 * calls  # the first; a forward each, one behind backwards
    backward = {"tritongru.ops", "tritongru.layer", f"tritongru.kernels.{family}.launch"}
    forward = backward | {"tritongru.module", "tritongru.functional"}
    *_, a_forward, a_backward = map(set, found["ways"])
    assert forward <= a_forward
    assert backward <= a_backward
    assert tuple(found["us"]) == HOST
    for name in host.LIMITS_US:
        pairs = list(zip(found["us"][name], found["us"][f"{name}-whole"], strict=True))
        assert len(pairs) == 3
        assert all(0 < kernel < whole for kernel, whole in pairs)

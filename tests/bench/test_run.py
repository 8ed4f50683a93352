"""The run: jobs in order, ceilings and floors, rows on disk, a run that resumes; and two sets of rows compared."""

import dataclasses
import functools
import json
import types

import pytest
import torch
from processes import PATIENCE

from bench import rivals, suites
from bench.__main__ import SUITES, main
from bench.analysis import targets
from bench.analysis.report import Result
from bench.calls import first_call, host
from bench.commands import loop, plot
from bench.commands import run as room
from bench.measure import ceilings, children, pair, parity, rows
from bench.measure.cases import Case
from bench.measure.workloads import PRECISIONS, WORKLOADS, workload_cases
from bench.pages import evidence
from bench.session import examine
from tritongru.planning.devices import CPU, GPUS
from tritongru.planning.instruction_sets import refusal
from tritongru.planning.plan import Plan

WHERE = dict.fromkeys(rows.WHERE_KEYS, "here") | {"commit": "abc1234", "date": "2026-01-01", "seed": 7}
CASE = Case(8, 3, 5, "fp32", "train", inputs=4)
JOBS = [
    (Case(8, 2, 3, "fp32", mode, label=f"demo{n}"), ("nn.LSTM",)) for n in range(3) for mode in ("train", "forward")
]
LIMITS = {ceilings.COPY: ceilings.Ceiling(1.0, 0.1, 7, 1e9), "fp32": ceilings.Ceiling(2.0, 0.1, 7, 1e9)}


# What is measured


def test_the_command_line_names_every_suite():
    assert tuple(suites.SUITES) == SUITES


def test_every_workload_is_measured_in_every_precision_and_mode_once():
    own, others = ([case for case, _ in jobs()] for jobs in (suites.workloads, suites.precisions))
    assert [case.label for case in own[::2]] == [workload.label for workload in WORKLOADS]
    assert [case.mode for case in own[:2]] == ["train", "forward"]
    everything = [(case.label, case.dtype, case.tf32, case.mode) for case in (*own, *others)]
    assert len(set(everything)) == len(everything) == len(WORKLOADS) * len(PRECISIONS) * 2
    assert len({workload.label for workload in WORKLOADS}) == len(WORKLOADS)
    assert all(workload.source for workload in WORKLOADS)


@pytest.mark.parametrize(
    ("name", "least", "most"), [("time", 1, 65_536), ("batch", 1, 8192), ("hidden", 16, 4096), ("layers", 1, 8)]
)
def test_a_sweep_changes_one_size_over_its_whole_range(name, least, most):
    cases = suites.sweep(name)
    values = [getattr(case, name) for case in cases]
    assert (min(values), max(values)) == (least, most)
    others = [field.name for field in dataclasses.fields(Case) if field.name not in (name, "mode")]
    assert all(len({getattr(case, other) for case in cases}) == 1 for other in others)


def test_a_case_of_two_suites_is_one_job_with_the_rivals_of_both():
    jobs = room.jobs_of(("scaling", "grids"), True, "")
    assert len({case.name for case, _ in jobs}) == len(jobs)
    found = dict(jobs)
    shared = suites.SWEPT
    assert set(found[shared]) == {rivals.GRAPH, rivals.CUDNN_LSTM, rivals.FLOOR}
    assert [case.name for case, _ in room.jobs_of(SUITES, True, "gtcrn-bf16")] == [
        "gtcrn-bf16-train",
        "gtcrn-bf16-forward",
    ]


def test_a_cpu_is_asked_for_what_it_can_tell_only():
    jobs = room.jobs_of(SUITES, False, "")
    assert [case.label for case, _ in jobs[::2]] == ["streaming", "electricity", "gtcrn"], "the smallest first"
    assert [case.mode for case, _ in jobs] == ["train", "forward"] * 3
    assert {(case.dtype, case.tf32) for case, _ in jobs} == {("fp32", False)}


# The floor


def test_operations_and_bytes_are_counted_by_hand():
    layer = dataclasses.replace(CASE, mode="forward")
    weights = 3 * 8 * (4 + 8)
    assert ceilings.operations(layer) == 2 * weights * 15
    assert ceilings.operations(CASE) == 3 * 2 * weights * 15
    values = 15 * 4 + 15 * 8 + weights + 2 * 3 * 8 + 2 * 3 * 8  # x, y, weights, biases, h0 and h_n
    assert ceilings.moved(layer) == 4 * values
    assert ceilings.moved(CASE) == 4 * (2 * values - 2 * 3 * 8)
    assert ceilings.moved(dataclasses.replace(layer, dtype="bf16")) == 2 * values
    deep = dataclasses.replace(layer, layers=2, directions=2)
    weights = 2 * 3 * 8 * (4 + 8) + 2 * 3 * 8 * (16 + 8)
    assert ceilings.operations(deep) == 2 * weights * 15
    assert ceilings.moved(deep) == 4 * (15 * 4 + 15 * 16 + weights + 4 * 2 * 3 * 8 + 2 * 4 * 3 * 8)


@pytest.mark.parametrize(("term", "rate"), [("bytes", 1e6), ("operations", 1e12)])
def test_the_floor_is_its_largest_term(term, rate):
    limits = {ceilings.COPY: ceilings.Ceiling(1, 0, 1, rate), "fp32": ceilings.Ceiling(1, 0, 1, 1e9)}
    amount = {"bytes": ceilings.moved(CASE) / 1e6, "operations": ceilings.operations(CASE) / 1e9}[term]
    assert ceilings.least(CASE, limits, 0.0) == (pytest.approx(1000 * amount), term)
    assert ceilings.least(CASE, limits, 1e6) == (1e6, "exchange")
    assert ceilings.least(CASE, None, 1.0) == (None, None)
    assert ceilings.least(dataclasses.replace(CASE, dtype="bf16"), limits, 1.0) == (None, None)


def test_ceilings_are_measured_as_amount_over_time(monkeypatch):
    calls = []

    class Fake:
        def ms(self, call, count):
            calls.append(call())
            return 2.0

    monkeypatch.setattr(ceilings, "timer_for", lambda device: Fake())
    found = ceilings.measure(torch.device("cpu"), limit_s=0.1)
    assert found[ceilings.COPY].rate == pytest.approx(2 * 2**27 / 0.002)
    assert found["fp32"].rate == pytest.approx(2 * 1024**3 / 0.002)
    assert list(found) == [ceilings.COPY, "fp32"]
    a, b = calls[0], calls[-1]
    assert a.numel() == 2**25
    assert a.abs().sum() > 0, "random data: zeros are faster"
    assert b.shape == (1024, 1024)


# The run


class FakeChild:
    """Answers what a child would, ours `ratio` times faster; what is in `fails` raises."""

    def __init__(self, ratio=2.0, fails=()):
        self.asked, self.ratio, self.fails, self.stopped = [], ratio, fails, False

    def ask(self, question, *, limit_s, start_s):
        self.asked.append((question.what, question.case.name, question.rivals, question.seed))
        if question.what in self.fails or question.case.name in self.fails:
            raise children.Failed("it broke")
        if question.what == "ceilings":
            return LIMITS
        if question.what == "parity":
            return parity.Parity(0.4, 0.3, "", True), Plan("resident", "", "", "")
        times = {"ms": 1.0, "spread": 0.0, "rounds": 7}, {"ms": self.ratio, "spread": 0.0, "rounds": 7}
        named = dict(zip(("tritongru", "nn.GRU"), times, strict=True))
        if "nn.LSTM" in question.rivals:
            named["nn.LSTM"] = dict(times[1])
        return pair.Timed(named, {"haste": "not installed"}, {"nn.LSTM": None}, {"nn.LSTM": "called"})

    def stop(self):
        self.stopped = True


def hosts(file, where):
    file.append(rows.shapeless("host-resident-forward", pair.OURS, where, ms=0.05, rounds=9))
    print("About a call.")


@pytest.fixture
def measured(tmp_path, monkeypatch, capsys):
    """Runs a command with a fake child on a machine without a GPU; returns exit code, new rows, lines and the child."""
    monkeypatch.setattr(room, "introduced", lambda commit: (WHERE | {"gpu": None}, CPU))
    monkeypatch.setattr(room, "on_cpu", lambda suite: JOBS if suite == "workloads" else [])
    monkeypatch.setattr(room.cpu, "hosts", hosts)
    monkeypatch.setattr(room.cpu, "imports", lambda file, where, left: None)
    path = tmp_path / "run-cpu-2026-01-01.jsonl"

    def call(*arguments, child=None, budget="1000000"):
        child = child or FakeChild()
        monkeypatch.setattr(room, "Child", lambda handler: child)
        before = len(rows.read(path)) if path.exists() else 0
        code = main(["run", "--commit", "abc1234", "--out", str(tmp_path), "--budget", budget, *arguments])
        found = rows.read(path)[before:] if path.exists() else []
        return code, found, capsys.readouterr().out.splitlines(), child

    return call


def test_a_run_measures_ceilings_then_every_case_with_its_rivals(measured):
    code, found, lines, child = measured()
    assert code == 0
    assert child.stopped
    assert child.asked[0][:2] == ("ceilings", "h1-b1-t1-fp32-forward")
    names = [case.name for case, _ in JOBS]
    assert [asked[:2] for asked in child.asked[1:]] == [(what, name) for name in names for what in ("parity", "speed")]
    assert {asked[2:] for asked in child.asked[1:]} == {(("nn.LSTM",), 7)}
    assert [row["case"] for row in found[:2]] == ["ceiling-copy", "ceiling-fp32"]
    assert [row["rate"] for row in found[:2]] == [1e9, 1e9]
    for case, _ in JOBS:
        own = {row["impl"]: row for row in found if row["case"] == case.name}
        assert list(own) == ["tritongru", "nn.GRU", "nn.LSTM", "haste"]
        floor, bound = ceilings.least(case, LIMITS, None)
        assert all((row["floor_ms"], row["bound"]) == (pytest.approx(floor, rel=1e-5), bound) for row in own.values())
        assert own["haste"]["ms"] is None
        assert own["haste"]["reason"] == "not installed"
        assert own["nn.LSTM"]["how"] == "called"
        assert own["tritongru"]["rounds"] == 7
    assert "No time for haste: not installed (6 cases)" in lines
    assert "About a call." in lines
    assert any(line.startswith("Not measured yet: ") and "(suite `workloads`)" in line for line in lines)
    assert lines[-1] == "No case was red."


def test_the_same_command_goes_on_where_the_last_one_stopped(measured):
    first = JOBS[0][0].name
    measured("--only", "demo0-fp32-train")
    code, found, lines, child = measured()
    assert code == 0
    assert "About a call." in lines
    assert first not in {name for _, name, _, _ in child.asked}
    assert first not in {row["case"] for row in found}
    assert lines[0] == "To measure: 5 cases; already measured with commit abc1234: 1."
    _, found, lines, child = measured()
    assert child.asked == found == []
    assert "About a call." not in lines
    assert lines[0] == "To measure: 0 cases; already measured with commit abc1234: 6."


@pytest.mark.parametrize("key", ["commit", "torch", "cpu"])
def test_rows_of_another_machine_or_commit_answer_nothing(measured, monkeypatch, key):
    measured("--only", "demo0")
    monkeypatch.setattr(room, "introduced", lambda commit: (WHERE | {"gpu": None, key: "other"}, CPU))
    _, _, lines, _ = measured("--only", "demo0")
    assert lines[0].startswith("To measure: 2 cases; already measured")


def test_a_red_case_is_named_and_fails_the_run(measured):
    name = JOBS[2][0].name
    code, found, lines, _ = measured(child=FakeChild(fails=(name,)))
    assert code == 1
    assert lines[-1] == f"Red: {name}."
    (row,) = (row for row in found if row["case"] == name and row["impl"] == "tritongru")
    assert (row["ms"], row["reason"]) == (None, "it broke")
    assert (
        sum(row["impl"] == "tritongru" and row["floor_ms"] is not None and row["ms"] is not None for row in found) == 5
    )
    _, _, lines, _ = measured()
    assert lines[0].startswith("To measure: 1 cases"), "what has no time is asked again"


class Breaking(FakeChild):
    """Whose process ends whenever one of these is among the rivals."""

    def __init__(self, *names):
        super().__init__()
        self.names = names

    def ask(self, question, **limits):
        self.limit_s = limits["limit_s"]
        found = super().ask(question, **limits)
        if question.what == "speed" and set(question.rivals) & set(self.names):
            raise children.Failed("exit code 3")
        return dataclasses.replace(found, missing={}) if question.what == "speed" else found


def speeds(child):
    return [names for what, _, names, _ in child.asked if what == "speed"]


@pytest.fixture
def two_cases(measured, monkeypatch):
    """Of two cases, each with two packages and an LSTM beside them."""
    jobs = [(case, ("nn.LSTM", "haste", "TorchRL")) for case, _ in JOBS[2:4]]
    monkeypatch.setattr(room, "on_cpu", lambda suite: jobs if suite == "workloads" else [])

    def call(*names):
        code, found, _, child = measured(child=Breaking(*names))
        assert code == 0
        assert all(row["ms"] for row in found if row["impl"] == "tritongru" and row["case"].startswith("demo"))
        return {(row["case"], row["impl"]): row for row in found}, speeds(child)

    return call, [case.name for case, _ in jobs]


def test_a_package_that_breaks_is_found_and_left_out_of_the_rest(two_cases):
    call, (first, second) = two_cases
    found, asked = call("haste")
    everybody = ("nn.LSTM", "haste", "TorchRL")
    assert asked == [everybody, ("nn.LSTM",), ("haste",), ("TorchRL",), ("nn.LSTM", "TorchRL")]
    reason = f"left out from {first} on: exit code 3"
    assert found[first, "haste"]["reason"] == reason
    assert found[first, "nn.LSTM"]["ms"] == found[second, "nn.LSTM"]["ms"] == 2.0
    assert found[second, "haste"]["ms"] is None


def test_where_even_our_own_rivals_break_ours_is_timed_alone(two_cases):
    call, (first, _) = two_cases
    found, asked = call("nn.LSTM")
    everybody = ("nn.LSTM", "haste", "TorchRL")
    assert asked == [everybody, ("nn.LSTM",), (), ("haste",), ("TorchRL",)] * 2
    assert found[first, "nn.LSTM"]["reason"] == "all at once: exit code 3"


def test_who_compiles_for_long_gets_more_time(measured, monkeypatch):
    limits = []
    for (case, _), names in zip(JOBS, ((), ("nn.LSTM",), ("TorchRL",)), strict=False):
        jobs = [(case, names)]
        monkeypatch.setattr(room, "on_cpu", lambda suite, jobs=jobs: jobs if suite == "workloads" else [])
        child = Breaking()
        measured(child=child)
        limits.append(child.limit_s - examine.limit_of(case))
    assert limits == pytest.approx([0, 0, rivals.ALLOWANCES_S["TorchRL"]])


def test_without_ceilings_rows_have_no_floor(measured):
    code, found, lines, _ = measured(child=FakeChild(fails=("ceilings",)))
    assert code == 0
    assert "The ceilings were not measured: it broke" in lines
    assert all(row["floor_ms"] is None for row in found)


def test_a_spent_budget_leaves_cases_for_the_next_time(measured):
    code, found, lines, _ = measured(budget=str(examine.RESERVE_S / 2))
    assert code == 0
    assert not [row for row in found if row["case"].startswith("demo")]
    assert "No time for 6 cases; run the same command with the same commit to resume." in lines


def test_a_run_without_cases_says_so(measured):
    code, _, lines, _ = measured("--only", "no such")
    assert (code, lines) == (
        2,
        [f"No case of {', '.join(SUITES)} that a CPU can measure has a name that contains 'no such'."],
    )


def test_the_study_is_run_on_demand_and_missed_otherwise(measured, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(room.command, "study", lambda *given: asked.append(given) or 2)
    _, _, lines, _ = measured()
    assert asked == []
    assert "Not measured yet: GRU, LSTM and plain RNN on a GPU (`run --study`, or `study`)." in lines
    code, _, _, _ = measured("--study", "--commit", "abc")
    assert (code, asked) == (2, [(tmp_path / "study", "abc", "", None, None)])


@pytest.fixture
def documents(tmp_path, monkeypatch):
    """A document of the rows in a folder that stands for bench/results; returns what it says."""
    results, root = tmp_path / "results", tmp_path / "root"
    for folder in (results, root):
        folder.mkdir()
    page = plot.Page("page.md", "kind", results, evidence.read, {"count": lambda rows: f"{len(rows)} rows"}, {})
    (root / page.file).write_text("<!-- kind: count -->\n\nno rows\n\n<!-- end -->\n")
    for name, value in {"RESULTS": results, "ROOT": root, "PAGES": (page,)}.items():
        monkeypatch.setattr(plot, name, value)
    return results, lambda: (root / page.file).read_text().splitlines()[2]


HOW_TO_PUBLISH = "Documents were left alone; update them with `python -m bench plot`, or with --publish."


def test_documents_are_made_only_if_they_are_asked_for(measured, documents):
    pytest.importorskip("matplotlib")
    results, said = documents
    here = ("--out", str(results))
    code, _, lines, _ = measured(*here)
    assert (code, lines[-1], said()) == (0, HOW_TO_PUBLISH, "no rows")
    code, _, lines, _ = measured(*here, "--publish")
    found = rows.read(results / "run-cpu-2026-01-01.jsonl")
    assert (code, lines[-1], said()) == (0, "1 files regenerated: page.md.", f"{len(found)} rows")
    assert len(found) > len(JOBS)


def test_rows_elsewhere_are_not_published(measured, documents, capsys):
    _, said = documents
    _, _, lines, _ = measured("--only", "demo0")
    assert lines[-1] == "No case was red.", "of rows that no document is made of nothing is said"
    for suite in ((), ("--suite", "cpu")):
        with pytest.raises(SystemExit) as exit:
            measured("--publish", *suite)
        assert exit.value.code == 2
        assert "--publish makes the documents from the rows in bench/results" in capsys.readouterr().err
    assert said() == "no rows"


@pytest.mark.parametrize("publish", [False, True])
def test_the_suite_of_the_loop_publishes_on_demand_too(documents, monkeypatch, capsys, publish):
    pytest.importorskip("matplotlib")
    results, said = documents
    file = rows.RowFile(results / "x.jsonl")
    monkeypatch.setattr(loop, "chosen_cells", lambda only: [])
    monkeypatch.setattr(loop, "sets_here", lambda sets: ("avx2",))
    session = types.SimpleNamespace(
        known=None, asked=types.SimpleNamespace(sets=()), threads=(1,), file=file, left=[], red=[]
    )
    monkeypatch.setattr(loop, "measured", lambda *given: file.append(written_row()) or session)
    arguments = ["run", "--suite", "cpu", "--commit", "abc1234", "--out", str(results)]
    assert main([*arguments, "--publish"] if publish else arguments) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == ("1 files regenerated: page.md." if publish else HOW_TO_PUBLISH)
    assert said() == ("1 rows" if publish else "no rows")


def written_row():
    return rows.row(CASE, "tritongru", WHERE, family="f", parity=0.5)


def test_with_a_gpu_cases_are_compiled_first_and_calls_are_measured(tmp_path, monkeypatch, capsys):
    log = []
    where = WHERE | {"gpu": "GPU X"}
    monkeypatch.setattr(room, "introduced", lambda commit: (where, GPUS["h200"]))
    monkeypatch.setattr(room, "Child", lambda handler: FakeChild())
    monkeypatch.setattr(room, "compile_all", lambda jobs, impl, budget: log.append(len(jobs)))
    for measured in (host, first_call):
        call = functools.partial(lambda name, file, where, limit_s, known: log.append(name) or {}, measured.__name__)
        monkeypatch.setattr(measured, "on_gpu", call)
    assert main(["run", "--commit", "abc1234", "--out", str(tmp_path), "--suite", "scaling"]) == 0
    cases = len(suites.scaling())
    assert log == [16] * (cases // 16) + [cases % 16] * (cases % 16 > 0) + [
        "bench.calls.host",
        "bench.calls.first_call",
    ]
    (path,) = tmp_path.iterdir()
    assert path.name == "run-gpu-x-2026-01-01.jsonl"


def test_a_child_on_a_cpu_answers_with_times_and_ceilings(monkeypatch):
    monkeypatch.setattr(examine, "here", lambda: torch.device("cpu"))
    limits = {"rounds": 2, "limit_s": 0.1}
    monkeypatch.setattr(examine, "take_time", lambda *given: pair.take_time(*given, **limits))
    question = examine.Question("speed", CASE, "auto", None, (rivals.CUDNN_LSTM,), 3)
    timed = examine.answer(question)
    assert set(timed.times) == {"tritongru", "nn.GRU", "nn.LSTM"}
    assert all(own["ms"] > 0 and own["rounds"] == 2 for own in timed.times.values())
    assert "nn.LSTM" in timed.hows
    found, plan = examine.answer(dataclasses.replace(question, what="parity"))
    assert found.green
    assert plan.family == ("torch" if refusal() else "llvm")
    errors = [examine.answer(dataclasses.replace(question, what="parity", seed=seed))[0].ours for seed in (3, 3, 4)]
    assert errors[0] == errors[1] == found.ours != errors[2], "the seed decides weights and data"
    monkeypatch.setattr(examine, "measure", lambda device: f"ceilings of {device}")
    assert examine.answer(dataclasses.replace(question, what="ceilings")) == "ceilings of cpu"


# Calls


def test_a_fresh_process_answers_or_says_why_not():
    with pytest.raises(children.Failed, match=r"No module named bench\.no_such"):
        children.json_of("bench.no_such", limit_s=PATIENCE)
    assert children.json_of("tritongru", "env", "--json", limit_s=PATIENCE, FOR_IT="x")["torch"] == torch.__version__


def test_what_a_call_costs_a_gpu_machine_becomes_rows(tmp_path, monkeypatch):
    file = rows.RowFile(tmp_path / "rows.jsonl")

    def answer(module, *arguments, limit_s, **environment):
        if module == "bench.calls.host":
            assert arguments[1:] == ("--gpu",)
            return {"forward-whole": [50.0, 60.0, 70.0], "backward-whole": [90.0, 95.0]}
        if arguments[0] == "128":
            raise children.TimedOut("no answer within 5 s, killed")
        assert set(environment) == {"TRITON_CACHE_DIR"}
        return {"forward": 3.0, "backward": 4.0}

    for module in (host, first_call):
        monkeypatch.setattr(module, "json_of", answer)
    medians = host.on_gpu(file, WHERE, 5.0)
    assert medians["host-persistent-forward-whole"] == 60.0
    assert first_call.on_gpu(file, WHERE, 5.0) == {"first-forward-h768-bf16": 3.0, "first-backward-h768-bf16": 4.0}
    found = {row["case"]: row["ms"] for row in rows.read(file.path)}
    assert found["host-resident-forward-whole"] == 0.06
    assert found["first-backward-h768-bf16"] == 4000.0
    assert len(found) == 6


# Targets of the workloads


def workload_result(case, ours=1.0, theirs=3.0, family="resident", **others):
    times = {"tritongru": {"ms": ours}, "nn.GRU": {"ms": theirs}}
    times |= {name.replace("_", "-"): {"ms": ms} for name, ms in others.items()}
    return Result(case, Plan(family, "", "", ""), 0.4, 0.3, True, pair.Timed(times))


def judged(results, calls=None):
    return {sentence.partition(":")[0]: (reached, sentence) for reached, sentence in targets.judge(results, calls)}


MEAN = "workloads, training, at least 2.5x nn.GRU in the mean"
NONE_SLOWER, AHEAD = "workloads, training, none slower than nn.GRU", "workloads, training, faster than every rival"
TRAINING = [case for case in workload_cases() if case.mode == "train"]


@pytest.mark.parametrize(("ratio", "reached"), [(2.51, True), (2.49, False)])
def test_the_mean_of_the_workloads_is_a_target(ratio, reached):
    results = [workload_result(case, theirs=ratio) for case in TRAINING]
    results += [workload_result(case, theirs=0.1) for case in workload_cases() if case.mode == "forward"]
    found, sentence = judged(results)[MEAN]
    assert found is reached
    assert f"{ratio:.2f}x over 22 of 22 workloads" in sentence


@pytest.mark.parametrize(
    ("theirs", "family", "reached"),
    [(1.0, "resident", True), (0.99, "resident", False), (0.99, "torch", True), (0.97, "torch", False)],
)
def test_no_workload_may_be_slower(theirs, family, reached):
    results = [workload_result(case) for case in TRAINING[1:]] + [workload_result(TRAINING[0], 1.0, theirs, family)]
    found, sentence = judged(results)[NONE_SLOWER]
    assert found is reached
    assert f"least {theirs:.2f}x (brain-to-text)" in sentence


def test_every_rival_counts_and_bounds_do_not():
    results = [workload_result(case, gru_qat=1.2, floor=0.5, **{"nn.LSTM": 0.6}) for case in TRAINING]
    assert judged(results)[AHEAD] == (True, f"{AHEAD}: reached, least 1.20x (brain-to-text gru-qat), 0 of 22 below")
    results[3].times["gru-qat"]["ms"] = 0.9
    assert judged(results)[AHEAD] == (False, f"{AHEAD}: NOT reached, least 0.90x (wavernn gru-qat), 1 of 22 below")


@pytest.mark.parametrize(("us", "seconds", "reached"), [(60.0, 10.0, True), (60.1, 10.1, False)])
def test_calls_have_targets(us, seconds, reached):
    calls = targets.Calls(
        {"host-resident-forward-whole": us, "host-resident-backward-whole": 900.0}, {"first-forward-h128-fp32": seconds}
    )
    found = judged([], calls)
    assert found["host time of a forward call, at most 60 us"][0] is reached
    assert found["first call, kernels compiled, at most 10 s"][0] is reached
    assert judged([])["first call, kernels compiled, at most 10 s"][0] is None


# Two sets of rows


def written(path, commit="abc1234", **changes):
    file = rows.RowFile(path)
    for impl, ms in {"tritongru": 1.0, "nn.GRU": 3.0, "gone": 1.0}.items():
        made = rows.row(CASE, impl, WHERE | {"commit": commit}, family="f", parity=0.5, ms=ms, spread=0.05)
        file.append(made | changes.get(impl, {}))
    return str(path)


@pytest.mark.parametrize(
    ("ms", "word", "code"), [(1.04, "same", 0), (1.06, "SLOWER", 1), (0.94, "faster", 0), (0.96, "same", 0)]
)
def test_a_change_has_to_exceed_the_spread(tmp_path, capsys, ms, word, code):
    before = written(tmp_path / "a.jsonl")
    after = written(tmp_path / "b.jsonl", tritongru={"ms": ms})
    assert main(["compare", before, after]) == code
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == [CASE.name, "tritongru", "1000.00", f"{1000 * ms:.2f}", f"{1 / ms:.3f}x", word]
    assert lines[2].endswith("same")


def test_a_slower_rival_fails_nothing_and_other_machines_are_noted(tmp_path, capsys):
    before = written(tmp_path / "a.jsonl")
    after = written(tmp_path / "b.jsonl", **{"nn.GRU": {"ms": 9.0, "gpu": "GPU Y"}})
    assert main(["compare", before, after]) == 0
    text = capsys.readouterr().out
    assert "Note: gpu is here in the first and GPU Y, here in the second." in text
    assert "nn.GRU: 0.333x, the geometric mean of 1; 0 faster, 0 same, 1 SLOWER." in text


def test_commits_are_looked_for_in_the_folder(tmp_path, capsys):
    written(tmp_path / "a.jsonl", "abc1234")
    written(tmp_path / "b.jsonl", "def5678", tritongru={"ms": 0.5})
    assert main(["compare", "abc1", "def5678", "--rows", str(tmp_path)]) == 0
    assert "2.000x  faster" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("second", "sentence"),
    [
        ("nowhere.jsonl", "'nowhere.jsonl' is neither a row file nor a commit"),
        ("fedcba98", "'fedcba98' has no rows with a time in "),
        ("bad.jsonl", "'bad.jsonl' is not a row file: "),
        ("other.jsonl", "have no case and implementation in common."),
    ],
)
def test_what_cannot_be_compared_gets_one_sentence(tmp_path, capsys, monkeypatch, second, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jsonl").write_text("[1, 2]\n")
    (tmp_path / "other.jsonl").write_text(json.dumps(dict.fromkeys(rows.KEYS) | {"case": "x", "impl": "y", "ms": 1.0}))
    first = written(tmp_path / "a.jsonl")
    assert main(["compare", first, second, "--rows", str(tmp_path / "none")]) == 2
    text = capsys.readouterr().out
    assert sentence in text
    assert text.count("\n") == 1


def test_a_folder_with_a_file_that_is_not_of_rows_and_a_name_that_no_file_can_have(tmp_path, capsys):
    first = written(tmp_path / "a.jsonl")
    (tmp_path / "bad").mkdir()
    for text in ("no rows\n", "[1, 2]\n", "7\n", '{"commit": 7, "date": "2026"}\n'):
        (tmp_path / "bad" / "b.jsonl").write_text(text)
        assert main(["compare", first, "abcdef", "--rows", str(tmp_path / "bad")]) == 2
        text = capsys.readouterr().out
        assert f"{str(tmp_path / 'bad')!r} has a file that is not a row file: " in text
        assert text.count("\n") == 1
    assert main(["compare", first, "z" * 300]) == 2
    assert "is neither a row file nor a commit" in capsys.readouterr().out

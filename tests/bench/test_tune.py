"""Tuning: launches in the model's order, correctness first, rows on disk, and a table that the plan obeys."""

import dataclasses
import json
import os

import pytest
import torch

from bench.analysis import measured
from bench.analysis.report import Result
from bench.commands import tune
from bench.measure import pair, parity, rows
from bench.measure.cases import Case
from bench.measure.children import Failed, TimedOut
from bench.measure.workloads import WORKLOADS
from bench.rivals.forced import builder, plans
from bench.session import examine, warm
from bench.suites import tune_cases
from tritongru.arguments.records import GateGradients, Outputs
from tritongru.planning import candidates, launches
from tritongru.planning import plan as planning
from tritongru.planning.devices import GPUS
from tritongru.planning.launches import PersistentLaunch, StepwiseLaunch
from tritongru.planning.launches import measured as measured_table
from tritongru.planning.plan import Pass, Plan

H200 = GPUS["h200"]
BASE = PersistentLaunch(
    "forward",
    16,
    512,
    (64,),
    16,
    8,
    8,
    8,
    True,
    "counter",
    2,
    40_000,
    "tf32",
    registers=100,
    instructions=300,
    barriers=6,
)
# The wider a program's block and the more it issues, the dearer: 16x8, then 16x16, then the exchange with many words.
TABLE = (
    dataclasses.replace(BASE, block_h=16, instructions=1500),
    BASE,
    dataclasses.replace(BASE, instructions=100),  # the same name as the one before
    dataclasses.replace(BASE, exchange="data", slots=32, instructions=4000),
)
NAMES = [TABLE[i].name for i in (1, 0, 3)]
# As many to train, in another order.
BACK = tuple(
    dataclasses.replace(TABLE[i], kernel="backward", pad=False, chunks=(192,), block_h=block_h, num_warps=16)
    for i, block_h in ((1, 32), (0, 16), (3, 16))
)
BACK_NAMES = [launch.name for launch in BACK]
CASES = [Case(512, 16, 512, "bf16", "forward"), Case(512, 64, 512, "bf16", "forward")]
TRAINED = [dataclasses.replace(case, mode="train") for case in CASES]
WHERE = dict.fromkeys(rows.WHERE_KEYS, "here") | {
    "gpu": "NVIDIA H200",
    "arch": "sm_90",
    "commit": "abc",
    "date": "2026-11-22",
}


FOUND = {("cuda", "forward", "16-bit", 512): TABLE, ("cuda", "backward", "16-bit", 512): BACK}


def plans_with(monkeypatch, table):
    """These launches and no stepwise ones."""
    monkeypatch.setattr(candidates, "persistent_launches", table)
    monkeypatch.setattr(candidates, "stepwise_launches", dict)


@pytest.fixture
def table(monkeypatch):
    """A table of launches for one size in 16 bit."""
    plans_with(monkeypatch, lambda: FOUND)
    for cached in (planning.plan, planning.limits):
        cached.cache_clear()
    yield
    for cached in (planning.plan, planning.limits):
        cached.cache_clear()


def us_of(ours, theirs=8.0, steps=512):
    """What a child answers for speed."""
    ms = {"tritongru": ours * steps / 1000, "nn.GRU": theirs * steps / 1000}
    return pair.Timed({name: {"ms": value, "spread": 0.01} for name, value in ms.items()})


def asker(us, asked=None):
    """A child that finds every launch right, and takes `us[case, launch]` a step; an exception there is raised."""

    def ask(what, result, limit_s):
        if asked is not None:
            asked.append((what, result.case.name, result.launch))
        value = us[result.case.name, result.launch]
        if isinstance(value, Exception):
            raise value
        if what == "parity":
            return parity.Parity(0.4, 0.3, "output: error 1", True), result.plan
        return us_of(value)

    return ask


def run(tmp_path, ask, known=(), seconds=1e6, cases=CASES):
    file, lines, prepared = rows.RowFile(tmp_path / "tune.jsonl"), [], []
    todo = tune.waves(cases, H200, known)
    code = tune.run(todo, prepared.append, ask, file, WHERE, examine.Budget(seconds), known, lines.append)
    return code, rows.read(file.path) if file.path.exists() else [], lines


TIMES = {(case.name, name): 2.0 + i + j / 10 for i, case in enumerate(CASES) for j, name in enumerate(NAMES)}


# What is tried


@pytest.mark.usefixtures("table")
def test_launches_are_ranked_by_the_model_and_each_name_stands_for_one():
    found = plans(CASES[0], H200)
    assert [plan.forward.launch.name for plan in found] == NAMES
    assert [plan.us_per_step for plan in found] == sorted(plan.us_per_step for plan in found)
    assert found[0].forward.launch == dataclasses.replace(BASE, groups=1)  # the plan takes the first of a name as well
    assert plans(CASES[1], H200)[0].forward.launch.groups == 4
    assert all(plan.backward is None for plan in found)


@pytest.mark.usefixtures("table")
def test_to_train_the_backward_is_what_is_tried():
    """Behind the forward that the plan takes, and the plan's own is among them."""
    found = plans(TRAINED[0], H200)
    assert {plan.backward.launch.name for plan in found} == set(BACK_NAMES)
    assert [plan.us_per_step for plan in found] == sorted(plan.us_per_step for plan in found)
    assert {plan.forward.launch.name for plan in found} == {NAMES[0]}
    best = planning.plan(512, "bfloat16", H200, batch=16, impl="triton")
    assert (found[0].forward, found[0].backward) == (best.forward, best.backward)
    assert found[0].us_per_step == pytest.approx(best.forward.us_per_step + best.backward.us_per_step)


@pytest.mark.parametrize("mode", ["forward", "train"])
def test_where_nothing_stays_on_chip_the_plans_own_launch_is_tried(mode, monkeypatch):
    launch = StepwiseLaunch(16, 32, 64, 8, 4, 1000, "tf32")
    other = dataclasses.replace(launch, block_b=64)  # wastes rows of a batch of 16
    table = {("cuda", kernel, "16-bit"): (other, launch) for kernel in ("forward", "backward")}
    monkeypatch.setattr(candidates, "persistent_launches", dict)
    monkeypatch.setattr(candidates, "stepwise_launches", lambda: table)
    planning.plan.cache_clear()
    (plan,) = plans(Case(4000, 16, 8, "bf16", mode), H200)
    best = planning.plan(4000, "bfloat16", H200, batch=16, training=mode == "train", impl="triton")
    planning.plan.cache_clear()
    assert (plan.forward, plan.backward) == (best.forward, best.backward)
    assert (plan.forward.launch, plan.family) == (launch, "stepwise")
    assert Result(Case(4000, 16, 8, "bf16", mode), plan).launch == "16x32x64-8w-4s-stepwise"


@pytest.mark.usefixtures("table")
def test_the_best_launch_of_every_shape_comes_before_any_second_best():
    asked = [[(result.case, result.launch) for result in wave] for wave in tune.waves(CASES, H200, [])]
    assert asked == [[(case, name) for case in CASES] for name in NAMES]


def test_a_shape_of_the_grid_is_tuned_once():
    cases = tune_cases()
    assert len(set(cases)) == len(cases) == 106
    assert sorted(case.mode for case in cases) == ["forward"] * 53 + ["train"] * 53
    shapes = {(case.mode, case.hidden, -(-case.batch // 16), case.dtype, case.tf32, case.directions) for case in cases}
    assert len(shapes) == len(cases)
    assert all(case.time > 1 and case.layers == 1 and not case.label for case in cases)
    layers = {(w.hidden, -(-w.batch // 16), w.directions) for w in WORKLOADS if w.hidden >= 192}
    assert layers <= {(case.hidden, -(-case.batch // 16), case.directions) for case in cases}


def tiny_launch(**changes):
    """For H = 32 in fp32: two programs of 16 units."""
    fields = {"kernel": "forward", "bits": 32, "units": 32, "chunks": (16,), "block_b": 16, "block_h": 16}
    fields |= {"num_warps": 4, "k_split": 2, "pad": True, "exchange": "counter", "slots": 2, "shared_bytes": 0}
    return PersistentLaunch(**fields | {"dot_precision": "ieee"} | changes)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="on a GPU the tune itself checks its launches")
@pytest.mark.parametrize("mode", ["forward", "train"])
@pytest.mark.parametrize(("wrong", "directions"), [(False, 1), (True, 1), (False, 2)])
def test_a_given_launch_runs_and_is_compared_with_torch(wrong, directions, mode, monkeypatch):
    from tritongru.kernels.persistent import launch as persistent

    case = Case(32, 3, 4, "fp32", mode, directions=directions)
    plan = Plan("persistent", "", "", "fp32", forward=Pass("persistent", tiny_launch(), 2, 1, None))
    back = tiny_launch(kernel="backward", chunks=(32, 16), pad=False)
    if mode == "train":
        plan = dataclasses.replace(plan, backward=Pass("persistent", back, 2, 1, None))
    ran = []

    def watched(which, run):
        def call(*arguments):
            ran.append(next(one for one in arguments if isinstance(one, PersistentLaunch)))
            run(*arguments)
            if wrong and which == mode:  # of forward the states, of training a gate's gradient
                written = next(one for one in arguments if isinstance(one, Outputs | GateGradients))
                written[0].mul_(1.001)

        return call

    monkeypatch.setattr(persistent, "forward", watched("forward", persistent.forward))
    monkeypatch.setattr(persistent, "backward", watched("train", persistent.backward))
    found, made = pair.check(case, "tune", torch.device("cpu"), builder(plan))
    assert made is plan
    assert found.green is not wrong
    assert found.repeatable
    assert ran == ([tiny_launch()] if mode == "forward" else [tiny_launch(), back]) * 2


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="on a GPU the tune itself times its launches")
def test_a_forced_training_step_is_timed_on_gradients_of_its_own():
    case = Case(32, 3, 4, "fp32", "train")
    back = tiny_launch(kernel="backward", chunks=(32, 16), pad=False)
    passes = {"forward": tiny_launch(), "backward": back}
    plan = Plan("persistent", "", "", "fp32", **{k: Pass("persistent", v, 2, 1, None) for k, v in passes.items()})
    both = builder(plan)(case, "tune", torch.device("cpu"))
    steps = pair.steps_of(both, case, torch.device("cpu"))
    steps[pair.OURS]()
    assert all(weight.grad is not None for weight in both.ours.parameters())
    assert all(weight.grad is None for weight in both.theirs.parameters())
    assert [name for name, _ in both.ours.named_parameters()] == [name for name, _ in both.theirs.named_parameters()]


# The run


@pytest.mark.usefixtures("table")
def test_each_launch_is_checked_then_timed_and_has_its_rows_at_once(tmp_path):
    asked = []
    code, read, lines = run(tmp_path, asker(TIMES, asked))
    assert code == 0
    assert asked == [(what, case.name, name) for name in NAMES for case in CASES for what in ("parity", "speed")]
    assert [(row["impl"], row["plan"]) for row in read] == [
        pair for name in NAMES for _ in CASES for pair in (("tritongru[tune]", name), ("nn.GRU", None))
    ]
    ours = [row for row in read if row["impl"] == "tritongru[tune]"]
    assert {(row["case"], row["plan"]): row["us_per_step"] for row in ours} == pytest.approx(TIMES)
    expected = {(case.name, plan.forward.launch.name): plan.us_per_step for case in CASES for plan in plans(case, H200)}
    found = {(row["case"], row["plan"]): row["predicted_us"] for row in ours}
    assert found == pytest.approx(expected, rel=1e-5)
    assert lines[-1] == "No launch was red."
    last = [line.split() for line in lines if line.startswith(CASES[0].name)]
    assert last == [
        [CASES[0].name, NAMES[0], "2.000", f"{expected[CASES[0].name, NAMES[0]]:.3f}", "8.000", "4.00x", "3"]
    ]


@pytest.mark.usefixtures("table")
def test_rows_of_training_name_the_backward_and_become_the_plans(tmp_path):
    times = {(case.name, name): 5.0 + i + j / 10 for i, case in enumerate(TRAINED) for j, name in enumerate(BACK_NAMES)}
    code, read, _ = run(tmp_path, asker(times), cases=TRAINED)
    assert code == 0
    ours = [row for row in read if row["impl"] == "tritongru[tune]"]
    assert {(row["case"], row["plan"]): row["us_per_step"] for row in ours} == pytest.approx(times)
    assert {row["mode"] for row in read} == {"train"}
    expected = {
        (case.name, plan.backward.launch.name): plan.us_per_step for case in TRAINED for plan in plans(case, H200)
    }
    assert {(row["case"], row["plan"]): row["predicted_us"] for row in ours} == pytest.approx(expected, rel=1e-5)
    found = [(one["mode"], one["tiles"], one["us"], one["launch"]) for one in measured.measured(read)]
    assert found == [("train", 1, 5.0, BACK_NAMES[0]), ("train", 4, 6.0, BACK_NAMES[0])]


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(
    "failure", [Failed("the child process ended with exit code -11"), TimedOut("no answer within 30 s, killed")]
)
def test_a_hang_or_a_crash_costs_one_launch_and_is_not_tried_again(tmp_path, failure):
    bad = CASES[0].name, NAMES[0]
    code, read, lines = run(tmp_path, asker(TIMES | {bad: failure}))
    assert code == 1
    late = isinstance(failure, TimedOut)
    assert lines[-1] == ("No launch was red. 1 cut off by the limit." if late else "1 launches red.")
    assert f"  {bad[0]}: {'cut off, parity: ' if late else 'RED, '}{failure} ({bad[1]})" in lines
    (row,) = (row for row in read if (row["case"], row["plan"]) == bad)
    assert row["ms"] is row["parity"] is None
    assert sum(row["ms"] is not None for row in read) == 2 * (len(TIMES) - 1)
    assert [line.split()[1] for line in lines if line.startswith(CASES[0].name)] == [NAMES[1]]
    again = [row for row in read if row["impl"] == measured.TUNED]
    assert tune.waves(CASES, H200, again) == []


@pytest.mark.usefixtures("table")
def test_a_wrong_launch_is_not_timed(tmp_path):
    def ask(what, result, limit_s):
        assert what == "parity"
        return parity.Parity(3.0, 0.3, "output: error 1", True), result.plan

    code, read, lines = run(tmp_path, ask)
    assert code == 1
    assert all(row["ms"] is None for row in read)
    assert f"{CASES[0].name:<34} no launch was green" in lines


@pytest.mark.usefixtures("table")
def test_a_run_that_stopped_goes_on_and_shows_all(tmp_path, monkeypatch):
    left = iter([100.0] * 5)  # the wave, and two questions, asked twice each
    monkeypatch.setattr(examine.Budget, "left", lambda self: next(left, 1.0))
    code, read, lines = run(tmp_path, asker(TIMES))
    assert code == 0
    assert {(row["case"], row["plan"]) for row in read if row["plan"]} == {(CASES[0].name, NAMES[0])}
    assert "No time for 5 launches; run the same command with the same commit to resume." in lines
    monkeypatch.undo()
    plans_with(monkeypatch, lambda: FOUND)
    asked = []
    _, more, lines = run(tmp_path, asker(TIMES, asked), known=read)
    assert ("parity", CASES[0].name, NAMES[0]) not in asked
    assert len(asked) == 2 * (len(TIMES) - 1)
    assert len(more) == 2 * len(TIMES)
    assert [line.split()[-1] for line in lines if line.startswith("h512")] == ["3", "3"]


@pytest.mark.usefixtures("table")
def test_with_a_gpu_rows_of_the_same_commit_and_gpu_are_skipped(tmp_path, monkeypatch, capsys):
    log = []

    class FakeChild:
        def __init__(self, handler):
            assert handler is examine.answer

        def ask(self, question, *, limit_s, start_s):
            assert question.impl == "tune"
            log.append((question.what, question.case.name, question.plan.forward.launch.name))
            return asker(TIMES)(question.what, Result(question.case, question.plan), limit_s)

        def stop(self):
            log.append("stop")

    def fake_warm(jobs, impl, limit_s):
        log.append(("compile", [(case.name, make.args[0].forward.launch.name) for case, make in jobs]))
        return {}

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA H200")
    monkeypatch.setattr(examine, "device_facts", lambda device: H200)
    monkeypatch.setattr(warm, "warm", fake_warm)
    monkeypatch.setattr(tune, "Child", FakeChild)
    assert tune.tune(60.0, tmp_path, "h512-b16-t512-bf16-forward", "abc") == 0
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("tune-nvidia-h200-20")
    one = CASES[0].name
    assert log == [
        entry for name in NAMES for entry in (("compile", [(one, name)]), ("parity", one, name), ("speed", one, name))
    ] + ["stop"]
    assert "3 launches to try, 0 already tried with commit abc." in capsys.readouterr().out
    before, log[:] = path.read_bytes(), []
    assert tune.tune(60.0, tmp_path, "h512-b16-t512-bf16-forward", "abc") == 0
    assert log == ["stop"]
    assert path.read_bytes() == before
    text = capsys.readouterr().out
    assert "0 launches to try, 3 already tried with commit abc." in text
    assert f"{one:<34} {NAMES[0]}" in text
    assert tune.tune(60.0, tmp_path, "h512-b16-t512-bf16-forward", "def") == 0
    assert len(log) == 1 + 3 * len(NAMES) + 1


def test_an_empty_table_is_said(tmp_path, monkeypatch, capsys):
    plans_with(monkeypatch, dict)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA H200")
    monkeypatch.setattr(examine, "device_facts", lambda device: H200)
    assert tune.tune(60.0, tmp_path, "", "abc") == 2
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == "planning/tables/persistent.json has no launch that H200 can run; there is nothing to tune."
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "There is no GPU here, and timing launches needs one; --table and --cpu-table need none."),
        (["--only", "h7-"], "No case name contains 'h7-'; names look like h768-b64-t400-bf16-train."),
    ],
)
def test_what_cannot_be_tuned_is_said(arguments, sentence, capsys, monkeypatch, tmp_path):
    from bench.__main__ import main

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["tune", "--commit", "abc", "--out", str(tmp_path / "new"), *arguments]) == 2
    assert capsys.readouterr().out == sentence + "\n"
    assert not list(tmp_path.iterdir())


# The table that the plan reads


def row(case, us, launch=None, **changes):
    """A row of the tune, or torch's if no launch is given."""
    impl = "nn.GRU" if launch is None else measured.TUNED
    made = rows.row(case, impl, WHERE, family="persistent", parity=0.4, plan=launch, ms=us * case.time / 1000)
    return made | changes


B16 = CASES[0]
B1 = dataclasses.replace(B16, batch=1)
TRAIN = TRAINED[0]
SHAPE = {"mode": "forward", "arch": "sm_90", "kind": "16-bit", "hidden": 512, "tiles": 1, "directions": 1}


def test_the_best_launch_and_torchs_time_of_a_shape():
    found = measured.measured([row(B16, 2.5, "a"), row(B16, 7.5), row(B16, 2.0, "b"), row(B16, 7.0)])
    assert found == [SHAPE | {"us": 2.0, "torch_us": 7.0, "launch": "b"}]
    assert list(found[0]) == ["mode", "arch", "kind", "hidden", "tiles", "directions", "us", "torch_us", "launch"]


def test_cases_of_the_same_shape_count_by_our_slowest_and_torchs_fastest():
    some = [row(B16, 2.0, "a"), row(B16, 7.0), row(B1, 1.0, "a"), row(B1, 5.0), row(B16, 1.5, "b"), row(B1, 1.6, "b")]
    assert measured.measured(some) == [SHAPE | {"us": 1.6, "torch_us": 5.0, "launch": "b"}]


def test_forward_and_training_are_measured_apart():
    some = [row(B16, 2.0, "a"), row(B16, 7.0), row(TRAIN, 5.0, "c"), row(TRAIN, 4.0, "d"), row(TRAIN, 14.0)]
    found = measured.measured(some)
    assert found == [
        SHAPE | {"us": 2.0, "torch_us": 7.0, "launch": "a"},
        SHAPE | {"mode": "train", "us": 4.0, "torch_us": 14.0, "launch": "d"},
    ]
    assert measured.measured([row(TRAIN, 5.0, "c"), row(B16, 7.0)]) == []  # of torch's training nothing is known


def test_a_launch_that_was_measured_in_fewer_cases_does_not_win():
    some = [row(B16, 2.0, "a"), row(B1, 2.0, "a"), row(B16, 1.0, "b"), row(B16, 7.0)]
    assert measured.measured(some)[0]["launch"] == "a"


@pytest.mark.parametrize(
    "change", [{"ms": None}, {"parity": None}, {"parity": 1.5}, {"arch": None}, {"impl": "tritongru"}]
)
def test_rows_that_are_red_or_not_of_the_tune_do_not_count(change):
    assert measured.measured([row(B16, 2.0, "a", **change), row(B16, 7.0)]) == []


def test_the_commit_that_measured_a_shape_last_is_believed(tmp_path):
    other = dataclasses.replace(B16, hidden=768)
    new = [row(B16, 3.0, "b", commit="new", date="2026-12-01"), row(B16, 7.0, commit="new", date="2026-12-01")]
    old = [row(B16, 2.0, "a"), row(B16, 6.0), row(other, 2.0, "a"), row(other, 6.0)]
    for name, some in (("a", new), ("z", old)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in some))
    found = measured.measured(measured.rows_in(tmp_path))
    assert [(one["hidden"], one["us"], one["launch"]) for one in found] == [(512, 3.0, "b"), (768, 2.0, "a")]


def test_the_table_is_the_same_every_time_one_row_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measured, "MEASURED", tmp_path / "measured.json")
    fp32 = Case(256, 16, 512, "fp32", "forward", tf32=True)
    some = [row(case, us, "a") for case, us in ((B16, 2.0), (fp32, 3.0), (CASES[1], 4.0))]
    some += [row(case, 9.0) for case in (fp32, B16, CASES[1])]
    texts = []
    for order in (some, some[::-1]):
        (tmp_path / "tune.jsonl").write_text("".join(json.dumps(one) + "\n" for one in order))
        assert measured.write(tmp_path) == 0
        texts.append((tmp_path / "measured.json").read_text())
    assert texts[0] == texts[1]
    lines = texts[0].splitlines()
    assert (lines[0], lines[-1]) == ("[", "]")
    found = [json.loads(line.rstrip(",")) for line in lines[1:-1]]
    assert [(one["kind"], one["hidden"], one["tiles"]) for one in found] == [
        ("16-bit", 512, 1),
        ("16-bit", 512, 4),
        ("tf32", 256, 1),
    ]
    assert json.loads(texts[0]) == found
    assert "3 shapes from 3 rows of `tune`" in capsys.readouterr().out


def test_where_no_launch_was_green_the_table_is_empty(tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "MEASURED", tmp_path / "measured.json")
    some = [row(B16, 2.0, "a") | {"parity": 3.0}, row(B16, 9.0)]
    (tmp_path / "tune.jsonl").write_text("".join(json.dumps(one) + "\n" for one in some))
    assert measured.write(tmp_path) == 0
    assert (tmp_path / "measured.json").read_text() == "[]\n"


def test_the_committed_table_is_made_from_the_committed_rows():
    results = measured.MEASURED.parents[2] / "bench" / "results"
    assert measured.MEASURED.read_text() == measured.text_of(measured.measured(measured.rows_in(results)))


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(("ours", "theirs", "family"), [(2.0, 7.0, "persistent"), (9.0, 7.0, "torch")])
@pytest.mark.parametrize("mode", ["forward", "train"])
def test_the_plan_takes_the_measured_launch_or_torch_where_that_was_faster(monkeypatch, mode, ours, theirs, family):
    """The model likes another launch, and expects torch to need more than seven microseconds in any case."""

    def ask(batch):
        return planning.plan(512, "bfloat16", H200, batch=batch, time=512, training=mode == "train")

    def launch_of(answer):
        return (answer.backward if mode == "train" else answer.forward).launch.name

    case = dataclasses.replace(B16, mode=mode)
    named = [launch_of(plan) for plan in plans(case, H200)]
    liked, best = named[0], named[-1]
    before = ask(16)
    assert (before.family, launch_of(before)) == ("persistent", liked)
    some = [row(case, ours, best), row(case, ours + 1, liked), row(case, theirs)]
    monkeypatch.setattr(launches, "rows_of", lambda name: measured.measured(some))
    monkeypatch.setattr(planning, "measured", measured_table.__wrapped__)
    planning.plan.cache_clear()
    for batch in (1, 16):
        after = ask(batch)
        assert after.family == family
        if family == "torch":
            step = "per step" if mode == "forward" else "per step of forward and backward"
            assert after.reason == f"torch's GRU was measured at 7.00 us {step} on H200, the kernel at 9.00 us"
        else:
            assert launch_of(after) == best != liked
    assert launch_of(ask(17)) == liked
    other = planning.plan(512, "bfloat16", H200, batch=16, time=512, training=mode == "forward")
    assert other.family == "persistent"  # of the other mode nothing was measured

"""The suite `models`: a converted model is timed beside what it was, its rows and its page; no package is needed."""

import dataclasses

import pytest
import torch
from torch import nn
from toy_model import TOY

import tritongru
from bench.__main__ import MODELS as SUITE
from bench.__main__ import main
from bench.measure import rows
from bench.measure.children import Failed
from bench.measure.cpu.timing import Times
from bench.measure.pair import OURS, THEIRS
from bench.models import check as checking
from bench.models import examine, suite
from bench.models.examine import FORWARD, TRAIN, Found
from bench.pages import models as pages

OTHER = dataclasses.replace(TOY, name="other", package="package-that-is-absent")
BROKEN = dataclasses.replace(TOY, name="broken", module="module_that_is_absent")
CATALOGUE = (TOY, OTHER)


@pytest.fixture(autouse=True)
def catalogue(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(examine, "BY_NAME", {model.name: model for model in (*CATALOGUE, BROKEN)})
    for place in (suite, pages):
        monkeypatch.setattr(place, "MODELS", CATALOGUE)
    yield
    torch.set_num_threads(before)


def answer(model, threads=(1,)):
    return examine.answer(examine.Question(model.name, threads, 5, 2, 0.01))


def test_training_and_inference_are_timed_before_and_after():
    found = answer(TOY)
    assert [(one.mode, one.threads) for one in found] == [(TRAIN, 1), (FORWARD, 1)]
    for one in found:
        assert 0 <= one.parity <= 1
        assert one.times.keys() == {OURS, THEIRS}
        ratio, low, high = one.over
        assert low <= ratio <= high
        assert one.reason is None


def test_the_time_before_is_divided_by_the_time_after(monkeypatch):
    timed = []
    own = examine.entrants

    def spied(model, pair, mode):
        timed.append([type(layer) for module in (pair.theirs, pair.ours) for layer in (module.rnn, module.cell)])
        return own(model, pair, mode)

    monkeypatch.setattr(examine, "entrants", spied)
    monkeypatch.setattr(examine, "rounds", lambda clock, entrants, *limits: {OURS: [1.0, 1.1], THEIRS: [3.0, 3.3]})
    for one in answer(TOY):
        assert one.over[0] == pytest.approx(3)
        assert (one.times[OURS].least_ms, one.times[THEIRS].least_ms) == (1.0, 3.0)
    assert timed == [[nn.GRU, nn.GRUCell, tritongru.GRU, tritongru.GRUCell]] * 2


def test_what_is_timed_is_a_whole_step_of_each_model():
    """With its own parameters and optimizer, in the mode that it is named after."""
    pair = checking.twins(TOY, 0)
    checking.converted(TOY, pair.ours)
    start = {module: [p.detach().clone() for p in module.parameters()] for module in (pair.ours, pair.theirs)}
    for mode in (TRAIN, FORWARD):
        entrants = examine.entrants(TOY, pair, mode)
        for name, module in ((OURS, pair.ours), (THEIRS, pair.theirs)):
            with entrants[name].around():
                entrants[name].call()
                entrants[name].call()
            assert module.training == (mode == TRAIN)
            moved = [
                float((p.detach() - old).abs().max()) for p, old in zip(module.parameters(), start[module], strict=True)
            ]
            assert 0 < max(moved) < 1e-4
    assert examine.entrants(TOY, pair, FORWARD)[OURS].around is torch.no_grad


def test_a_model_that_changed_is_red_and_not_timed(monkeypatch):
    monkeypatch.setattr(checking, "VALUES", -1.0)
    for one in answer(TOY):
        assert one.reason.startswith("outputs, y: error")
        assert (one.times, one.over, one.absent) == ({}, None, False)


def test_what_cannot_be_imported_is_absent_and_what_breaks_a_sentence(monkeypatch):
    for one in answer(BROKEN):
        assert one.absent
        assert "No module named 'module_that_is_absent'" in one.reason
    monkeypatch.setattr(examine, "twins", lambda *given: 1 / 0)
    with pytest.raises(Failed, match="ZeroDivisionError"):
        answer(TOY)


# The command


class FakeChild:
    def __init__(self, reason=None, absent=False, fails=False):
        self.asked, self.stopped = [], False
        self.about, self.fails = {"reason": reason, "absent": absent}, fails

    def ask(self, question, *, limit_s, start_s):
        assert limit_s > 0
        self.asked.append((question.name, question.threads))
        if self.fails:
            raise Failed("it broke")
        return [self.found(mode, threads) for threads in question.threads for mode in (TRAIN, FORWARD)]

    def found(self, mode, threads):
        if self.about["reason"]:
            return Found(mode, threads, 0.5, **self.about)
        times = {OURS: Times(1.1, 1.0, 0.05, 9), THEIRS: Times(2.2, 2.0, 0.05, 9)}
        return Found(mode, threads, 0.5, 0.25, times, (2.0, 1.9, 2.1))

    def stop(self):
        self.stopped = True


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Types a command; returns exit code, lines, what was asked and the new rows."""
    where = dict.fromkeys(rows.WHERE_KEYS) | {"cpu": "CPU X (llvm)", "torch": "2", "date": "2026-01-01", "seed": 7}
    monkeypatch.setattr(suite, "facts_here", lambda commit: where | {"commit": commit})
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)

    def call(*arguments, child=None, commit="abc1234"):
        child = child or FakeChild()
        monkeypatch.setattr(suite, "Child", lambda handler: child)
        before = len(suite.rows_in(tmp_path))
        code = main(["run", "--suite", SUITE, *arguments, "--commit", commit, "--out", str(tmp_path)])
        assert child.stopped or not child.asked
        return code, capsys.readouterr().out.splitlines(), child.asked, suite.rows_in(tmp_path)[before:]

    return call


def test_rows_have_their_keys_and_a_command_resumes(command, tmp_path, monkeypatch):
    code, lines, asked, found = command("--threads", "1")
    assert (code, asked) == (0, [("toy", (1,))])
    assert all(tuple(row) == rows.KEYS for row in found)
    assert [(row["case"], row["mode"], row["impl"]) for row in found] == [
        (f"models-toy-{mode}-1-thread", mode, impl) for mode in (TRAIN, FORWARD) for impl in (OURS, THEIRS)
    ]
    ours, theirs = found[:2]
    assert (ours["ms"], ours["least_ms"], ours["parity"], ours["over"]) == (1.1, 1.0, 0.25, None)
    assert (theirs["over"], theirs["clock"], theirs["threads"]) == ({OURS: [2.0, 1.9, 2.1]}, "thread", 1)
    assert ours["how"] == theirs["how"] == f"torch {TOY.version}"
    assert [path.parent.name for path in tmp_path.rglob("*.jsonl")] == [suite.FOLDER]
    missing = "package-that-is-absent is not installed; pip install package-that-is-absent"
    assert lines[-2:] == [f"Left out: other ({missing}).", "No model was red."]
    assert command()[2] == [("toy", (2,))]
    code, lines, asked, found = command()
    assert (code, asked, found) == (0, [], [])
    assert lines[0] == "CPU X (llvm); torch 2. To measure: 0 of 2 models."
    assert command(commit="def5678")[2] == [("toy", (1, 2))]
    monkeypatch.setattr("bench.models.model.version_of", {"torch": "another"}.get)
    assert command()[2] == [("toy", (1, 2))], "a package of another version is measured again"


def test_red_and_unanswered_models_are_named_and_the_latter_asked_again(command):
    code, lines, _, found = command(child=FakeChild(reason="outputs, y: error 1"))
    assert (code, lines[-1]) == (1, "Red: toy (outputs, y: error 1).")
    assert [(row["ms"], row["reason"]) for row in found] == [(None, "outputs, y: error 1")] * 4
    code, lines, asked, found = command(child=FakeChild(fails=True), commit="def5678")
    assert (code, lines[-1], found) == (1, "Red: toy (it broke).", [])
    assert command(commit="def5678")[2] == asked


def test_a_package_that_cannot_be_imported_is_left_out(command):
    code, lines, _, found = command(child=FakeChild(reason="torch 2 cannot be imported: no library", absent=True))
    assert (code, found) == (0, [])
    assert "Left out: toy (torch 2 cannot be imported: no library)." in lines


def test_a_spent_budget_leaves_models_for_the_next_time(command):
    code, lines, asked, _ = command("--budget", "1")
    assert (code, asked) == (0, [])
    assert "No time for 1 models; run the same command with the same commit to resume." in lines


def test_a_name_without_a_model_is_an_error(command):
    assert command("--only", "nothing")[:2] == (2, ["No model has a name that contains 'nothing'."])


@pytest.mark.parametrize(
    "arguments, says",
    [
        (("--suite", "cpu"), "the suite models runs on its own; leave out the other suites"),
        (("--suite", "step"), "the suite models runs on its own; leave out the other suites"),
        (("--study",), "--study, --publish and --isa are not for the suite models"),
    ],
)
def test_what_does_not_go_together_gets_a_sentence(arguments, says, capsys, tmp_path):
    with pytest.raises(SystemExit) as left:
        main(["run", "--suite", SUITE, *arguments, "--out", str(tmp_path)])
    assert left.value.code == 2
    assert says in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


# The page


def rows_for(mode=TRAIN, ratio=2.5, threads=1, ours_ms=1.5, low=2.0, high=3.0, **where):
    own = dict.fromkeys(rows.WHERE_KEYS) | {"cpu": "CPU X", "torch": "2", "commit": "abc", "date": "2026-01-01"} | where
    times = {OURS: Times(9.0, ours_ms, 0.1, 5), THEIRS: Times(9.0, 8.25, 0.1, 5)}
    return suite.rows_of(TOY, Found(mode, threads, 0.1, 0.2, times, (ratio, low, high)), own)


def test_the_page_without_rows_says_so():
    assert pages.converted([]) == "Not measured yet."
    assert "`Toy`" in pages.sizes([])


def test_the_table_shows_the_numbers_of_the_rows():
    text = pages.converted([*rows_for(), *rows_for(FORWARD, 1.01, ours_ms=0.0123, low=0.9, high=1.1)])
    assert f"| torch {TOY.version} | tests | `Toy` | 8.25 | 1.5 | 2.50x | 8.25 | 0.0123 | about 1 |" in text
    assert "<summary>CPU X, 1 thread; torch 2, llvmlite None; commit abc; 2026-01-01</summary>" in text
    assert "other" not in text


def test_a_mode_that_is_missing_or_red_has_no_times():
    assert "| `Toy` | 8.25 | 1.5 | 2.50x |  |  |  |" in pages.converted(rows_for())
    own = dict.fromkeys(rows.WHERE_KEYS) | {"cpu": "CPU X"}
    red = suite.rows_of(TOY, Found(TRAIN, 1, 0.1, reason="outputs"), own)
    assert "| `Toy` |  |  | red |  |  |  |" in pages.converted([*rows_for(), *red]), "the later row counts"
    assert "| `Toy` | 8.25 | 1.5 | 2.50x |" in pages.converted([*red, *rows_for()])


def test_the_last_machine_with_all_its_threads_is_open():
    text = pages.converted([*rows_for(cpu="CPU A"), *rows_for(threads=1), *rows_for(threads=4)])
    places = [text.index(f"<summary>{name}") for name in ("CPU X, 4 threads", "CPU X, 1 thread", "CPU A, 1 thread")]
    assert places == sorted(places)
    assert text.count("<details markdown open>") == 1
    assert text.startswith("<details markdown open>")

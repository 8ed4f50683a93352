"""`run --suite cpu` and the gate without a GPU: rows on disk, a command that resumes, one verdict."""

import pytest
import torch

from bench.__main__ import main
from bench.calls.cpu import fresh
from bench.calls.cpu.cell import Found
from bench.commands import cpu, loop
from bench.measure import children, rows
from bench.measure.cases import Case
from bench.measure.cpu.cells import Cell, cells
from bench.measure.cpu.timing import Times
from bench.measure.parity import Parity
from bench.session import examine
from bench.session.loop import Session

STEP = Cell("step", Case(64, 1, 1, "fp32", "forward"))
CELLS = [STEP, Cell("grid", Case(64, 4, 100, "fp32", "train")), Cell("tiny", Case(16, 2, 1, "fp32", "train"))]
NAMES = [cell.name for cell in CELLS]


class Floor:
    def __init__(self, name, isa, threads, rate):
        self.name, self.isa, self.threads, self.rate = name, isa, threads, rate


class FakeChild:
    """Answers what a child would; of the cells in ``red`` that parity is red, of those in ``fails`` nothing."""

    def __init__(self, red=(), fails=(), late=()):
        self.asked, self.red, self.fails, self.late, self.stopped = [], red, fails, late, False

    def ask(self, what, *given, limit_s, start_s):
        if what == "floors":
            self.asked.append((what, *given))
            if "floors" in self.fails:
                raise children.Failed("no floor")
            return [Floor("fma", isa, threads, 1e11) for isa in given[0] for threads in given[1]]
        (question,) = given
        name = question.cell.name
        self.asked.append((name, question.sets, question.threads))
        if name in self.fails:
            raise children.Failed("it broke")
        if name in self.late:
            raise children.TimedOut("no answer within 9 s, killed")
        return [self.found(question, threads) for threads in question.threads]

    def found(self, question, threads):
        if question.cell.name in self.red:
            return Found(threads, 0.5, {isa: Parity(1.5, 0.3, "output: error 1", True) for isa in question.sets})
        times = {isa: Times(1.1, 1.0, 0.05, 9) for isa in question.sets} | {"nn.GRU": Times(22.0, 20.0, 0.05, 9)}
        over = {isa: {"nn.GRU": (20.0, 19.0, 21.0), "nn.LSTM": (2.0, 1.9, 2.1)} for isa in question.sets}
        return Found(threads, 0.5, {isa: Parity(0.5, 0.3, "", True) for isa in question.sets}, times, over)

    def stop(self):
        self.stopped = True


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Types a command on a machine of two threads with AVX-512; returns exit code, lines, what was asked of the child
    and of fresh processes, and the new rows."""
    where = {"cpu": "CPU X", "torch": "2", "llvmlite": "0.50.0"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    monkeypatch.setattr(loop, "cells", lambda: CELLS)
    monkeypatch.setattr(loop, "refusal", lambda: "")
    monkeypatch.setattr(loop, "sets_of", lambda asked: tuple(asked) or ("avx512", "avx2"))
    monkeypatch.setattr(loop, "facts", lambda gpu, commit, arch, seed: facts(commit, seed))
    monkeypatch.setattr(cpu, "introduced", lambda commit: (facts(commit, 7), None))
    monkeypatch.setattr(loop, "of_this_cpu", lambda where: where | {"cpu": "CPU X (llvm)"})

    def facts(commit, seed):
        return dict.fromkeys(rows.WHERE_KEYS) | where | {"commit": commit, "date": "2026-01-01", "seed": seed}

    def json_of(module, *arguments, **limits):
        processes.append(arguments)
        return {"forward": 0.05, "backward": 0.04} if arguments == ("first",) else 100.0

    processes = []
    monkeypatch.setattr(fresh, "json_of", json_of)

    def call(*arguments, child=None, commit="abc1234"):
        child = child or FakeChild()
        monkeypatch.setattr(loop, "Child", lambda handler: child)
        processes.clear()
        before = len(written(tmp_path))
        code = main([*arguments, "--commit", commit, "--out", str(tmp_path)])
        assert child.stopped or not child.asked
        return code, capsys.readouterr().out.splitlines(), child.asked, list(processes), written(tmp_path)[before:]

    return call


def written(folder):
    return [row for path in sorted(folder.glob("run-cpu-*.jsonl")) for row in rows.read(path)]


SUITE = ("run", "--suite", "cpu")
FRESH = [("first",), ("first",), ("peak", "tritongru"), ("peak", "nn.GRU")]
BOTH = (("avx512", "avx2"), (1, 2))


def test_the_suite_measures_everything_and_ends_in_tables(command, tmp_path):
    code, lines, asked, processes, found = command(*SUITE)
    assert code == 0
    assert asked == [("floors", *BOTH), *((name, *BOTH) for name in NAMES)]
    assert processes == FRESH
    assert [path.name for path in tmp_path.iterdir()] == ["run-cpu-cpu-x-llvm-2026-01-01.jsonl"]
    assert all(tuple(row) == rows.KEYS for row in found)
    timed = [row for row in found if row["case"].startswith("grid")]
    assert [(row["case"], row["impl"], row["isa"], row["threads"], row["clock"]) for row in timed] == [
        (f"{NAMES[1]}-{name}", impl, isa, threads, clock)
        for threads, name, clock in ((1, "1-thread", "thread"), (2, "2-threads", "wall"))
        for impl, isa in (("tritongru[llvm-avx512]", "avx512"), ("tritongru[llvm-avx2]", "avx2"), ("nn.GRU", None))
    ]
    assert all(row["of_peak"] == pytest.approx(row["gflops"] / 100, rel=1e-4) for row in timed if row["isa"])
    assert [row["case"] for row in found[:4]] == [
        f"ceiling-fma-{isa}-{threads}" for isa in BOTH[0] for threads in ("1-thread", "2-threads")
    ]
    assert {row["cpu"] for row in found} == {"CPU X (llvm)"}
    assert "avx512, 1 thread, train: times nn.GRU's speed (nn.LSTM's)" in lines
    assert "avx2, 2 threads, step: H64 B1 T1 20.00 (2.00)" in lines
    assert lines[-1] == "Nothing was red."


def test_the_same_command_goes_on_where_the_last_one_stopped(command):
    command(*SUITE, "--only", "tiny", "--threads", "1", "--isa", "avx512")
    code, lines, asked, processes, _ = command(*SUITE)
    assert code == 0
    assert asked[1:] == [(name, *BOTH) for name in NAMES], "of what is known in part the rest is asked"
    assert processes == FRESH
    code, lines, asked, processes, found = command(*SUITE)
    assert (code, asked, processes, found) == (0, [], [], [])
    assert "To measure: 0 of 3 calls; the others have rows with commit abc1234." in lines
    assert command(*SUITE, commit="def5678")[2][1:] == [(name, *BOTH) for name in NAMES]


@pytest.mark.parametrize(
    ("arguments", "sets", "threads"),
    [
        (("--threads", "1"), BOTH[0], (1,)),
        (("--threads", "all", "--isa", "avx2"), ("avx2",), (2,)),
        (("--isa", "avx512", "--isa", "sse2"), ("avx512", "sse2"), (1, 2)),
    ],
)
def test_threads_and_sets_can_be_chosen(command, arguments, sets, threads):
    asked = command(*SUITE, "--only", "tiny", *arguments)[2]
    assert asked == [("floors", sets, threads), (NAMES[2], sets, threads)]


def test_a_part_can_be_chosen(command):
    assert command(*SUITE, "--only", "first")[2:4] == ([], FRESH[:2])
    assert command(*SUITE, "--only", "peak")[2:4] == ([], FRESH[2:])
    assert command(*SUITE, "--only", "grid")[2][1:] == [(NAMES[1], *BOTH)]
    code, lines, asked, _, _ = command(*SUITE, "--only", "no such")
    assert (code, asked) == (2, [])
    assert lines[0].startswith("No call name contains 'no such'; names look like grid-h64")


def test_a_red_call_has_rows_without_times_and_is_asked_again(command):
    code, lines, _, _, found = command(*SUITE, child=FakeChild(red=(NAMES[1],)))
    assert code == 1
    assert lines[-1] == f"Red or unanswered: {NAMES[1]}-1-thread, {NAMES[1]}-2-threads."
    own = [row for row in found if row["case"].startswith(NAMES[1])]
    assert len(own) == 4
    assert all((row["ms"], row["over"], row["reason"]) == (None, None, "output: error 1") for row in own)
    code, _, asked, _, _ = command(*SUITE)
    assert (code, asked[1:]) == (0, [(NAMES[1], *BOTH)])


@pytest.mark.parametrize("how", ["fails", "late"])
def test_a_call_without_an_answer_costs_no_other(command, how):
    code, lines, asked, _, found = command(*SUITE, child=FakeChild(**{how: (NAMES[0],)}))
    assert code == 1
    assert len(asked) == 4
    reasons = {row["reason"] for row in found if row["case"].startswith(NAMES[0])}
    assert reasons == {"it broke" if how == "fails" else "no answer within 9 s, killed"}
    assert lines[-1] == f"Red or unanswered: {NAMES[0]}."


def test_without_the_peak_rows_have_no_share_of_it(command):
    code, lines, _, _, found = command(*SUITE, child=FakeChild(fails=("floors",)))
    assert code == 0
    assert "The CPU's peak rates were not measured: no floor" in lines
    assert all(row["of_peak"] is None for row in found)


def test_a_spent_budget_leaves_calls_for_the_next_time(command):
    code, lines, asked, processes, found = command(*SUITE, "--budget", str(examine.RESERVE_S / 2))
    assert (code, asked, processes, found) == (0, [], [], [])
    assert "No time for 3 calls; run the same command with the same commit to resume." in lines


def test_the_study_comes_after_the_calls(command, monkeypatch, tmp_path):
    studied = []
    monkeypatch.setattr(loop, "beside", lambda out, commit: studied.append((out, commit)) or 2)
    assert command(*SUITE)[0] == 0
    assert not studied
    assert command(*SUITE, "--study")[0] == 2
    assert studied == [(tmp_path, "abc1234")]


def test_a_set_that_is_not_there_and_other_suites_are_refused(command, monkeypatch, capsys):
    monkeypatch.setattr(loop, "sets_of", lambda asked: 1 / 0)
    monkeypatch.setattr(loop, "refusal", lambda: "the package llvmlite is not installed")
    code, lines, _, _, _ = command(*SUITE)
    assert (code, lines) == (2, ["The CPU loop cannot be measured: the package llvmlite is not installed."])
    with pytest.raises(SystemExit, match=r"^2$"):
        command(*SUITE, "--suite", "grids")
    assert "the suite cpu runs on its own; leave out the other suites" in capsys.readouterr().err


# The gate


@pytest.fixture
def about_calls(monkeypatch):
    """What is measured besides the loop."""
    log = []
    for name in ("calls", "hosts", "imports"):
        monkeypatch.setattr(cpu, name, lambda *given, name=name: log.append(name))
    return log


def test_the_gate_measures_the_suite_and_says_what_is_missed(command, about_calls):
    code, lines, asked, processes, _ = command("gate")
    assert about_calls == ["calls", "hosts", "imports"]
    assert asked[1:] == [(name, *BOTH) for name in NAMES]
    assert processes == FRESH
    assert "  a single step, B = 1, H = 64, at least 3x nn.GRU: reached, 20.00x" in lines
    assert "  first call of a process, cold, at most 1 s: reached, 0.05 s" in lines
    assert "  training memory, at most 1x nn.GRU's: reached, 1.00x" in lines
    assert lines[-1].startswith("Verdict: passed; 0 of 30 targets missed, ")
    assert code == 0
    code, _, asked, processes, found = command("gate")
    assert (code, asked, processes, found) == (0, [], [], []), "what rows know counts and is not measured again"


def test_the_gate_leaves_workloads_out(command, about_calls, monkeypatch):
    workload = Cell("workload", Case(64, 4, 100, "fp32", "train", label="demo"))
    monkeypatch.setattr(loop, "cells", lambda: [*CELLS, workload])
    code, _, asked, _, _ = command("gate")
    assert (code, [name for name, *_ in asked[1:]]) == (0, NAMES)


def test_the_gate_reads_what_the_suite_has_measured(command, about_calls):
    command(*SUITE)
    assert command("gate")[:3:2] == (0, [])


@pytest.mark.parametrize("child", [FakeChild(red=(NAMES[0],)), FakeChild(fails=(NAMES[0],))], ids=["red", "fails"])
def test_a_red_call_fails_the_gate(command, about_calls, child):
    code, lines, _, _, _ = command("gate", child=child)
    assert code == 1
    assert lines[-1].startswith("Verdict: NOT passed; 0 of 30")


def test_a_missed_target_and_what_was_left_out_fail_the_gate(command, about_calls, monkeypatch):
    monkeypatch.setattr(fresh, "json_of", lambda *given, **limits: {"forward": 1.5, "backward": 0.1})
    assert command("gate", "--only", "first")[0] == 1
    code, lines, _, _, _ = command("gate", "--budget", "1", commit="def5678")
    assert code == 1
    assert f"No time for: {', '.join([*NAMES, *fresh.FIRST_NAMES, fresh.PEAK_NAME])}" in lines


def test_a_part_of_the_gate_asks_nothing_about_calls(command, about_calls):
    code, lines, asked, processes, _ = command("gate", "--only", "step")
    assert about_calls == []
    assert (code, len(asked), processes) == (0, 2, [])
    assert lines[-1].endswith("29 not measured; 0 red, 0 left out.")


def test_where_no_loop_can_be_compiled_there_is_no_verdict(command, about_calls, monkeypatch):
    monkeypatch.setattr(loop, "refusal", lambda: "no such thing")
    code, lines, asked, _, _ = command("gate")
    assert about_calls == ["calls", "hosts", "imports"]
    assert (code, asked, lines[-1]) == (2, [], "No verdict on the CPU loop: no such thing.")


def test_open_questions_name_what_is_not_settled():
    where = dict.fromkeys(rows.WHERE_KEYS) | {"seed": 3}
    session = Session(loop.Asked(("avx512", "avx2"), 2), (1, 2), None, where, examine.Budget(1.0))
    (question,) = session.open_questions([STEP])
    assert (question.sets, question.threads, question.seed) == (("avx512", "avx2"), (1, 2), 3)
    assert len(session.open_questions(cells())) == 191

"""The suites `lengths`, `resets` and `step`: every way computes what it is compared as, and pages show the rows."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from bench.__main__ import SEQUENCES, main
from bench.measure import rows
from bench.measure.children import Failed
from bench.measure.cpu.timing import Times
from bench.measure.pair import OURS, THEIRS
from bench.pages import sequences as pages
from bench.rivals.on_cpu import ONNX
from bench.sequences import cells, examine, suite, ways
from bench.sequences.cells import LENGTHS, RESETS, STEP
from bench.sequences.examine import ALIKE, CELL, OUT, PACKED, SPLIT, TORCHRL, WHOLE
from tritongru import reference

H, B, T = 6, 3, 9
on_a_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="the ways of a CPU")
pytestmark = on_a_cpu


@pytest.fixture(autouse=True)
def same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def cell_of(name, mode="forward", layers=1, time=T):
    return cells._cell(name, H, B, 1 if name == STEP else time, mode, "fp32", layers)


def answer(cell, threads=(1,)):
    return examine.answer(examine.Question(cell, threads, "cpu", 5, 2, 0.05))


CELLS = [(name, mode, 1) for name in (LENGTHS, RESETS) for mode in ("forward", "train")] + [(STEP, "forward", 2)]


@pytest.mark.parametrize("name, mode, layers", CELLS)
def test_every_way_computes_the_law_and_is_timed(name, mode, layers):
    cell = cell_of(name, mode, layers)
    (found,) = answer(cell)
    given = examine.given_of(cell.case, torch.device("cpu"), 1)
    known = examine.entrants(name, given, torch.device("cpu"))
    packaged = {ONNX, *TORCHRL.values()}
    assert found.missing.keys() <= packaged
    assert found.times.keys() == known.keys() - found.missing.keys()
    assert found.over.keys() == found.times.keys() - {OURS}
    alike = {way for way, (_, _, same) in known.items() if same} - found.missing.keys()
    assert found.parities.keys() == alike
    assert all(0 <= parity <= 1 for parity in found.parities.values()), found.parities
    assert all(times.least_ms > 0 for times in found.times.values())
    assert all(low <= ratio <= high for ratio, low, high in found.over.values())


def off(results):
    y, hn = results
    return y + 1e-3, hn


@pytest.mark.parametrize(
    "name, way, attribute", [(LENGTHS, OURS, "with_lengths"), (STEP, CELL, "cells_of"), (STEP, OUT, "step_out")]
)
def test_a_wrong_way_is_red_and_not_timed(name, way, attribute, monkeypatch):
    own = getattr(ways, attribute)

    def wrong(given):
        run = own(given)
        return lambda x, h0: off(run(x, h0))

    monkeypatch.setattr(ways, attribute, wrong)
    (found,) = answer(cell_of(name))
    assert found.parities[way] > 1
    assert "error" in found.missing[way]
    assert way not in found.times
    assert (OURS in found.times) == (way != OURS)
    assert bool(found.times) == (way != OURS), "without a right result of ours nothing is timed"


def test_wrong_gradients_are_red(monkeypatch):
    own = ways.with_lengths

    def wrong(given):
        run = own(given)
        return lambda x, h0: run(x, h0.detach() + 0 * h0)

    monkeypatch.setattr(ways, "with_lengths", wrong)
    (found,) = answer(cell_of(LENGTHS, "train"))
    assert "d h_0" in found.missing[OURS]
    assert not found.times


def test_a_missing_package_is_a_reason(monkeypatch):
    monkeypatch.setattr(ways, "installed", lambda package: None)
    (found,) = answer(cell_of(RESETS))
    for backend in ("scan", "pad"):
        assert found.missing[TORCHRL[backend]] == "torchrl is not installed; pip install torchrl"
    assert {OURS, SPLIT, WHOLE, THEIRS} == found.times.keys()


def test_what_breaks_is_a_sentence(monkeypatch):
    monkeypatch.setattr(ways, "cells_of", lambda given: 1 / 0)
    (found,) = answer(cell_of(STEP))
    assert found.missing[CELL].startswith("ZeroDivisionError: division by zero (test_sequences.py:")
    monkeypatch.setattr(examine, "given_of", lambda *given: 1 / 0)
    with pytest.raises(Failed, match="ZeroDivisionError"):
        answer(cell_of(STEP))


RESET_ROWS = {
    "none": [],
    "at step 0": [(0, 0), (0, 2)],
    "adjacent": [(3, 1), (4, 1), (5, 1)],
    "at the last step": [(T - 1, 0), (T - 1, 1)],
    "all": [(t, b) for t in range(T) for b in range(B)],
    "mixed": [(0, 0), (1, 0), (4, 2), (T - 1, 2)],
}


@pytest.mark.parametrize("where", RESET_ROWS)
def test_split_and_packed_is_the_oracle(where):
    torch.manual_seed(0)
    resets = torch.zeros(T, B, dtype=torch.bool)
    for place in RESET_ROWS[where]:
        resets[place] = True
    gru = nn.GRU(4, H).double()
    x, h0 = torch.randn(T, B, 4).double(), torch.randn(1, B, H).double()
    given = ways.Given(None, gru, torch.full((B,), T), resets, 1)
    with torch.no_grad():
        y, hn = ways.split_and_packed(gru, given)(x, h0)
        ragged = reference.Ragged(None, resets)
        expected, last, _ = reference.forward(x, h0[0], *gru.parameters(), False, ragged)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(hn[0], last, rtol=0, atol=1e-12)


# The command


class FakeChild:
    """Answers for every way that is known; ``red``: cases of which ours is wrong, ``fails``: without an answer."""

    def __init__(self, red=(), fails=()):
        self.asked, self.red, self.fails, self.stopped = [], red, fails, False

    def ask(self, question, *, limit_s, start_s):
        assert limit_s > 0
        self.asked.append((question.cell.name, question.threads))
        if question.cell.name in self.fails:
            raise Failed("it broke")
        return [self.found(question.cell, threads) for threads in question.threads]

    def found(self, cell, threads):
        if cell.name in self.red:
            return examine.Found(threads, 0.5, {OURS: 1.5}, missing={OURS: "output: error 1"})
        times = {OURS: Times(1.1, 1.0, 0.05, 9), THEIRS: Times(2.2, 2.0, 0.05, 9)}
        missing = {ONNX: "onnxruntime is not installed"}
        return examine.Found(threads, 0.5, {OURS: 0.25, THEIRS: 0.5}, times, {THEIRS: (2.0, 1.9, 2.1)}, missing)

    def stop(self):
        self.stopped = True


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Types a command; returns exit code, lines, what was asked and the new rows."""
    where = dict.fromkeys(rows.WHERE_KEYS) | {"cpu": "CPU X (llvm)", "torch": "2", "date": "2026-01-01", "seed": 7}
    monkeypatch.setattr(suite, "facts_here", lambda on_gpu, commit: where | {"commit": commit})
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)

    def call(*arguments, child=None, commit="abc1234"):
        child = child or FakeChild()
        monkeypatch.setattr(suite, "Child", lambda handler: child)
        before = len(suite.rows_in(tmp_path))
        code = main(["run", *arguments, "--commit", commit, "--out", str(tmp_path)])
        assert child.stopped or not child.asked
        return code, capsys.readouterr().out.splitlines(), child.asked, suite.rows_in(tmp_path)[before:]

    return call


def test_the_command_line_names_every_suite():
    assert cells.SUITES == SEQUENCES


STEPS = [cell.name for cell in cells.cells(STEP, False)]


def test_rows_have_their_keys_and_a_command_resumes(command, tmp_path):
    code, lines, asked, found = command("--suite", STEP, "--only", STEPS[0])
    assert (code, asked) == (0, [(STEPS[0], (1, 2))])
    assert all(tuple(row) == rows.KEYS for row in found)
    assert [(row["case"], row["impl"]) for row in found] == [
        (f"{STEPS[0]}-{count}", impl) for count in ("1-thread", "2-threads") for impl in (OURS, THEIRS, ONNX)
    ]
    ours, theirs, onnx = found[:3]
    assert (ours["ms"], ours["least_ms"], ours["parity"], ours["over"]) == (1.1, 1.0, 0.25, None)
    assert (theirs["over"], theirs["clock"], theirs["threads"]) == ({OURS: [2.0, 1.9, 2.1]}, "thread", 1)
    assert (onnx["ms"], onnx["reason"]) == (None, "onnxruntime is not installed")
    assert found[3]["clock"] == "wall"
    assert [path.parent.name for path in tmp_path.rglob("*.jsonl")] == [suite.FOLDER]
    assert lines[-1] == "No case was red."
    assert [name for name, _ in command("--suite", STEP)[2]] == STEPS[1:]
    code, lines, asked, found = command("--suite", STEP)
    assert (code, asked, found) == (0, [], [])
    assert lines[0] == f"CPU X (llvm); torch 2. To measure: 0 of {len(STEPS)} cases."
    assert [name for name, _ in command("--suite", STEP, commit="def5678")[2]] == STEPS


def test_threads_are_as_asked_and_the_rest_is_open(command):
    assert command("--suite", STEP, "--only", STEPS[0], "--threads", "1")[2] == [(STEPS[0], (1,))]
    assert command("--suite", STEP, "--only", STEPS[0], "--threads", "all")[2] == [(STEPS[0], (2,))]
    assert command("--suite", STEP, "--only", STEPS[0])[2] == []
    assert command("--suite", STEP, "--only", STEPS[1], "--threads", "all")[2] == [(STEPS[1], (2,))]
    assert command("--suite", STEP, "--only", STEPS[1])[2] == [(STEPS[1], (1,))]


def test_a_gpu_is_measured_once_whatever_the_threads(command, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    where = dict.fromkeys(rows.WHERE_KEYS) | {"gpu": "GPU Y", "torch": "2", "date": "2026-01-01", "seed": 7}
    monkeypatch.setattr(suite, "facts_here", lambda on_gpu, commit: where | {"commit": commit})
    name = cells.cells(STEP, True)[0].name
    code, _, asked, found = command("--suite", STEP, "--only", name)
    assert (code, asked) == (0, [(name, (2,))])
    assert {(row["case"], row["impl"]) for row in found} == {(name, impl) for impl in (OURS, THEIRS, ONNX)}


def test_red_and_unanswered_cases_are_named_and_asked_again(command):
    child = FakeChild(red=STEPS[:1], fails=STEPS[1:2])
    code, lines, asked, found = command("--suite", STEP, child=child)
    assert code == 1
    assert len(asked) == len(STEPS)
    assert lines[-1] == f"Red: {'; '.join([f'{STEPS[0]} (output: error 1)'] * 2)}; {STEPS[1]} (it broke)."
    assert {row["case"].rpartition("-")[0].removesuffix("-1").removesuffix("-2") for row in found} >= {*STEPS[2:]}
    own = [row for row in found if row["case"].startswith(f"{STEPS[0]}-")]
    assert all((row["ms"], row["parity"], row["reason"]) == (None, 1.5, "output: error 1") for row in own)
    assert [name for name, _ in command("--suite", STEP)[2]][-1:] == STEPS[1:2]


def test_a_spent_budget_leaves_cases_for_the_next_time(command):
    code, lines, asked, _ = command("--suite", STEP, "--budget", "1")
    assert (code, asked) == (0, [])
    assert f"No time for {len(STEPS)} cases; run the same command with the same commit to resume." in lines


def test_a_name_without_a_case_is_an_error(command):
    code, lines, asked, _ = command("--suite", STEP, "--suite", RESETS, "--only", "nothing")
    assert (code, asked) == (2, [])
    assert lines == ["No case of step, resets has a name that contains 'nothing'."]


@pytest.mark.parametrize(
    "arguments, says",
    [
        (("--suite", "lengths", "--suite", "cpu"), "the suites lengths, resets, step run without others; leave these"),
        (("--suite", "grids", "--suite", "step"), "the suites lengths, resets, step run without others; leave these"),
        (("--suite", "resets", "--study"), "--study, --publish and --isa are not for the suites lengths, resets, step"),
        (("--suite", "step", "--isa", "avx2"), "--study, --publish and --isa are not for the suites"),
        (("--suite", "steps"), "invalid choice: 'steps'"),
        (("--suite", "step", "--threads", "3"), "invalid choice: '3'"),
    ],
)
def test_suites_that_do_not_go_together_get_a_sentence(arguments, says, capsys, tmp_path):
    with pytest.raises(SystemExit) as left:
        main(["run", *arguments, "--out", str(tmp_path)])
    assert left.value.code == 2
    assert says in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


# Pages


def rows_for(name, ratios, threads=1, ours_ms=1.5, **where):
    """Rows of a cell of a suite: by way, its time over ours."""
    cell = dataclasses.replace(cell_of(name, "train" if name != STEP else "forward"))
    own = dict.fromkeys(rows.WHERE_KEYS) | {"cpu": "CPU X", "torch": "2", "commit": "abc", "date": "2026-01-01"} | where
    times = {OURS: Times(ours_ms + 1, ours_ms, 0.1, 5)}
    times |= {way: Times(9.0, 8.0, 0.1, 5) for way in ratios}
    over = {way: (ratio, ratio / 2, ratio * 2) for way, ratio in ratios.items()}
    return suite.rows_of(cell, examine.Found(threads, 0.1, {}, times, over), own, False)


def test_pages_without_rows_say_so():
    for part in (*pages.PARTS.values(), *pages.SUMMARY.values()):
        assert part([]) == "Not measured yet."
    red = rows_for(STEP, {})
    red[0]["ms"] = None
    assert pages.costs(red) == pages.summary(red) == "Not measured yet."


def test_tables_show_the_numbers_of_the_rows():
    text = pages.costs(
        [
            *rows_for(LENGTHS, {ALIKE: 1.23, PACKED: 4.56}),
            *rows_for(RESETS, {SPLIT: 7.89}),
            *rows_for(STEP, {THEIRS: 3.21}, ours_ms=0.0123),
        ]
    )
    for shown in ("1.23 (0.61 to 2.46)", "4.56 (2.28 to 9.12)", "7.89 (3.94 to 15.78)", "3.21 (1.60 to 6.42)"):
        assert shown in text
    assert "0.0123" in text
    for title in ("ours, all steps", "nn.GRU, packed", "nn.GRU, split and packed", "nn.GRU, T = 1"):
        assert title in text
    for title in ("onnxruntime", "TorchRL, scan", "nn.GRUCell"):
        assert title not in text, "what has no times has no column"
    assert f"H = {H}, B = {B}, T = {T}" in text
    assert "CPU X, 1 thread; torch 2" in text


def test_a_later_row_replaces_an_earlier_one():
    text = pages.costs(rows_for(LENGTHS, {ALIKE: 7.77}) + rows_for(LENGTHS, {ALIKE: 2.22}))
    assert "2.22" in text
    assert "7.77" not in text


def test_the_summary_is_the_geometric_mean_of_all_sizes():
    one, two = rows_for(LENGTHS, {PACKED: 1.5}), rows_for(LENGTHS, {PACKED: 6.0})
    for row in two:
        row["case"] += "-other"
    text = pages.summary(one + two)
    assert f"| {math.sqrt(1.5 * 6):.2f}x (1.50x to 6.00x) |" in text
    assert "CPU X, 1 thread; torch 2, llvmlite None" in text
    gpu = rows_for(LENGTHS, {PACKED: 2.5}, 0, gpu="GPU Y", triton="3")
    both = pages.summary(gpu + one + two)
    assert "|  | without tritongru | GPU Y | CPU X, 1 thread |" in both
    assert "| 2.50x (2.50x to 2.50x) | 3.00x (1.50x to 6.00x) |" in both
    assert "GPU Y; torch 2, Triton 3" in both

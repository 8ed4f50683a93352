"""Rows of the CPU loop: their targets, how they are printed, and the table made from them."""

import dataclasses
import json

import pytest
from cpu_loop import table_of

from bench.__main__ import main
from bench.analysis.cpu import known, report, table, targets
from bench.analysis.cpu.known import Known
from bench.calls.cpu import fresh
from bench.measure import rows
from bench.measure.cases import Case
from bench.measure.cpu.cells import TINY, Cell, cells, grid, tiny
from bench.measure.cpu.rows import ours, ours_row, timed_row
from bench.measure.cpu.timing import Times
from bench.pages import evidence

WHERE = dict.fromkeys(rows.WHERE_KEYS, "here") | {"commit": "abc1234", "date": "2026-01-01"}
ASKED = targets.Asked(("avx512", "avx2"), 2)
TIMES = Times(1.1, 1.0, 0.05, 9)


def row_of(cell, isa="avx512", threads=1, gru=20.0, lstm=2.0, parity=0.5, where=WHERE):
    made = timed_row(cell, ours(isa), threads, 0.5, where, TIMES, {"family": "llvm", "parity": parity})
    over = {"nn.GRU": (gru, 0.9 * gru, 1.1 * gru), "nn.LSTM": (lstm, lstm, lstm)}
    return ours_row(made, cell, isa, 1e11, over)


def fresh_rows(cold=0.9, cached=0.09, own=90.0, theirs=100.0):
    name = ours(ASKED.sets[0])
    seconds = {"first-forward-cold": cold, "first-forward-cached": cached}
    found = [rows.row(fresh.FIRST, name, WHERE, family="llvm", parity=None, ms=1000 * s) for s in seconds.values()]
    found = [row | {"case": case, "threads": 2} for case, row in zip(seconds, found, strict=True)]
    peaks = {name: own, "nn.GRU": theirs}
    return found + [
        rows.row(fresh.PEAK, impl, WHERE, family=None, parity=None, peak_mib=mib) | {"case": fresh.PEAK_NAME}
        for impl, mib in peaks.items()
    ]


def everything():
    """Rows with which every target is reached."""
    grids = [row_of(cell, isa, threads) for cell in grid() for isa in ASKED.sets for threads in (1, 2)]
    return [*grids, row_of(Cell("step", Case(64, 1, 1, "fp32", "forward"))), *fresh_rows()]


def judged(found):
    return {text.partition(": reached")[0].partition(": NOT")[0]: reached for reached, text in judge(found)}


def judge(found):
    return targets.judge(Known(found), ASKED)


def test_all_that_is_reached_is_said_so():
    found = judge(everything())
    assert all(reached is True for reached, _ in found)
    assert len(found) == len({text for _, text in found}) == 12 + 10 + 2 + 2 + 1 + 2 + 1
    passed, lines = report.verdict(found, [], [])
    assert passed
    assert lines[-1] == "Verdict: passed; 0 of 30 targets missed, 0 not measured; 0 red, 0 left out."


def test_without_rows_nothing_is_said_of_a_target():
    found = judge([])
    assert len(found) == 30
    assert all(reached is None and text.endswith("not measured") for reached, text in found)


LOWER = [  # instruction set; what its rows of a mode have; how the sentence begins that this misses; the mode
    ("avx512", {"threads": 1, "gru": 11.9}, "avx512, forward: H <= 64, B <= 16, at least 12x", "forward"),
    ("avx512", {"threads": 1, "gru": 12.9}, "avx512, train: H <= 64, B <= 16, at least 13x", "train"),
    ("avx512", {"threads": 1, "gru": 3.09}, "avx512, forward: H 64-128, B 64-256, at least 3.1x", "forward"),
    ("avx512", {"threads": 1, "gru": 3.19}, "avx512, train: H 64-128, B 64-256, at least 3.2x", "train"),
    ("avx512", {"threads": 1, "gru": 4.09}, "avx512, forward: H 128-256, B 1-16, at least 4.1x", "forward"),
    ("avx512", {"threads": 1, "gru": 5.49}, "avx512, train: H 128-256, B 1-16, at least 5.5x", "train"),
    ("avx512", {"threads": 1, "gru": 2.59}, "avx512, forward: H >= 256, B >= 16, at least 2.6x", "forward"),
    ("avx512", {"threads": 1, "gru": 2.39}, "avx512, train: H >= 256, B >= 16, at least 2.4x", "train"),
    ("avx512", {"threads": 1, "gru": 4.59}, "avx512, forward: all 25 cells, at least 4.6x", "forward"),
    ("avx512", {"threads": 1, "gru": 5.09}, "avx512, train: all 25 cells, at least 5.1x", "train"),
    ("avx2", {"threads": 1, "gru": 5.9}, "avx2, forward: H <= 64, B <= 16, at least 6x", "forward"),
    ("avx2", {"threads": 1, "gru": 6.9}, "avx2, train: H <= 64, B <= 16, at least 7x", "train"),
    ("avx2", {"threads": 1, "gru": 1.69}, "avx2, forward: H 64-128, B 64-256, at least 1.7x", "forward"),
    ("avx2", {"threads": 1, "gru": 1.69}, "avx2, train: H 64-128, B 64-256, at least 1.7x", "train"),
    ("avx2", {"threads": 1, "gru": 1.99}, "avx2, forward: H 128-256, B 1-16, at least 2x", "forward"),
    ("avx2", {"threads": 1, "gru": 2.49}, "avx2, train: H 128-256, B 1-16, at least 2.5x", "train"),
    ("avx2", {"threads": 1, "gru": 1.29}, "avx2, forward: H >= 256, B >= 16, at least 1.3x", "forward"),
    ("avx2", {"threads": 1, "gru": 1.19}, "avx2, train: H >= 256, B >= 16, at least 1.2x", "train"),
]


@pytest.mark.parametrize(("isa", "about", "start", "mode"), LOWER, ids=lambda value: str(value)[:40])
def test_each_class_has_its_mean_to_reach(isa, about, start, mode):
    lower = [row_of(cell, isa, **about) for cell in grid() if cell.case.mode == mode]
    (missed,) = [text for reached, text in judge([*everything(), *lower]) if text.startswith(start)]
    assert f": NOT reached, {about['gru']:.2f}x over" in missed
    one = next(cell for cell in grid() if cell.case.mode == mode)
    rest = [row for row in everything() if row["case"] != one.row_name(1)]
    parts = [reached for reached, text in judge(rest) if text.startswith(f"{isa}, {mode}: all 25")]
    assert parts in ([None], []), "of a part of a class there is no mean"


@pytest.mark.parametrize(
    ("isa", "gru", "lstm", "start", "reached"),
    [
        ("avx512", 1.49, 2.0, "avx512, forward: nn.GRU's time over ours, in each cell at least 1.5x", False),
        ("avx512", 1.50, 2.0, "avx512, forward: nn.GRU's time over ours, in each cell at least 1.5x", True),
        ("avx2", 0.99, 2.0, "avx2, forward: nn.GRU's time over ours, in each cell at least 1x", False),
        ("avx2", 1.00, 2.0, "avx2, forward: nn.GRU's time over ours, in each cell at least 1x", True),
        ("avx512", 20.0, 1.29, "avx512, forward: nn.LSTM's time over ours, in each cell at least 1.3x", False),
        ("avx512", 20.0, 1.30, "avx512, forward: nn.LSTM's time over ours, in each cell at least 1.3x", True),
        ("avx2", 20.0, 0.50, "avx512, forward: nn.LSTM's time over ours, in each cell at least 1.3x", True),
    ],
)
def test_no_cell_may_be_below(isa, gru, lstm, start, reached):
    one = grid()[6]
    assert one.case.mode == "forward"
    found = judge([*everything(), row_of(one, isa, 1, gru, lstm)])
    ((answer, text),) = [(reached, text) for reached, text in found if text.startswith(start)]
    assert answer is reached
    assert answer or f"({one.name}), 1 of 25 below" in text


def test_a_training_step_is_held_against_the_lstm_too():
    one = grid()[7]
    found = judge([*everything(), row_of(one, lstm=1.14)])
    missed = next(text for reached, text in found if reached is False)
    start = "avx512, train: nn.LSTM's time over ours, in each cell at least 1.15x"
    assert missed.startswith(f"{start}: NOT reached, least 1.14x")


@pytest.mark.parametrize(("many", "reached"), [(16.01, True), (15.9, False)])
def test_threads_may_cost_a_fifth_of_the_ratio(many, reached):
    found = judge([*everything(), row_of(grid()[0], "avx2", 2, many)])
    ((answer, text),) = [(r, text) for r, text in found if text.startswith("avx2: ratio with 2 threads, at least 0.8")]
    assert answer is reached
    assert f"least {many / 20:.2f} ({grid()[0].name})" in text
    alone = targets.judge(Known(everything()), dataclasses.replace(ASKED, threads=1))
    assert not [text for _, text in alone if "threads" in text], "where there is one thread nothing is compared"


@pytest.mark.parametrize(
    ("limits", "start", "reached"),
    [
        ({"own": 100.0}, "training memory, at most 1x nn.GRU's", True),
        ({"own": 100.1}, "training memory, at most 1x nn.GRU's", False),
        ({"cold": 1.0}, "first call of a process, cold, at most 1 s", True),
        ({"cold": 1.01}, "first call of a process, cold, at most 1 s", False),
        ({"cached": 0.1}, "first call of a process, cached, at most 0.1 s", True),
        ({"cached": 0.11}, "first call of a process, cached, at most 0.1 s", False),
    ],
)
def test_memory_and_first_calls_have_limits(limits, start, reached):
    found = judge([*everything(), *fresh_rows(**limits)])
    assert [answer for answer, text in found if text.startswith(start)] == [reached]


@pytest.mark.parametrize(("ratio", "reached"), [(3.0, True), (2.99, False)])
def test_a_single_step_takes_a_third(ratio, reached):
    found = judge([*everything(), row_of(Cell("step", Case(64, 1, 1, "fp32", "forward")), gru=ratio)])
    assert found[-1] == (reached, found[-1][1])
    assert found[-1][1].startswith("a single step, B = 1, H = 64, at least 3x nn.GRU: ")


def test_other_instruction_sets_are_held_to_what_avx2_has_to_reach():
    found = targets.judge(Known([row_of(cell, "neon", gru=6.5) for cell in grid()]), targets.Asked(("neon",), 1))
    (small,) = [(reached, text) for reached, text in found if text.startswith("neon, forward: H <= 64")]
    assert small[0] is True
    assert "at least 6x nn.GRU in the mean (held to the targets of avx2)" in small[1]


def test_a_red_row_has_no_ratio_and_a_later_row_replaces_an_earlier():
    cell = grid()[0]
    assert Known([row_of(cell)]).over(cell, "avx512", 1) == 20.0
    red = Known([row_of(cell), row_of(cell, parity=1.1)])
    assert red.over(cell, "avx512", 1) is None
    assert not red.settled(cell, "avx512", 1)
    assert report.cell_of(red, cell, "avx512", 1) == "RED"
    assert Known([row_of(cell, parity=1.1), row_of(cell, gru=3.0)]).over(cell, "avx512", 1) == 3.0


def test_what_is_red_or_left_out_fails_the_verdict():
    for red, left in ((["a"], []), ([], ["b"])):
        passed, lines = report.verdict([(True, "fine")], red, left)
        assert not passed
        assert lines[2] in ("Red or unanswered: a", "No time for: b")
        assert lines[-1].startswith("Verdict: NOT passed; 0 of 1 targets missed")
    assert not report.verdict([(False, "bad")], [], [])[0]


def test_the_table_has_ratios_means_and_the_least():
    slow = next(c for c in grid() if (c.case.hidden, c.case.batch, c.case.mode) == (512, 1, "forward"))
    lines = report.tables(Known([*everything(), row_of(slow, gru=1.5, lstm=1.25)]), ("avx512",), (1,))
    assert lines[0] == "avx512, 1 thread, forward: times nn.GRU's speed (nn.LSTM's)"
    assert lines[6].split() == ["H=512", "1.50", "(1.25)", *["20.00", "(2.00)"] * 4]
    assert "  H <= 64, B <= 16      20.00x geometric mean of 6 of 6" in lines
    assert f"  all 25 cells          {20 * (1.5 / 20) ** (1 / 25):.2f}x geometric mean of 25 of 25" in lines
    assert f"  lowest against nn.GRU: 1.50x ({slow.name})" in lines
    assert f"  lowest against nn.LSTM: 1.25x ({slow.name})" in lines
    assert lines[-1] == "avx512, 1 thread, step: H64 B1 T1 20.00 (2.00)"
    assert report.tables(Known([]), ("avx512",), (1, 2)) == []


@pytest.mark.parametrize(
    ("title", "count"), [("H <= 64, B <= 16", 6), ("H 64-128, B 64-256", 4), ("H 128-256, B 1-16", 6)]
)
def test_classes_are_what_they_are_called(title, count):
    (group,) = [group for group in known.CLASSES if group.title == title]
    assert len(group.cells("train")) == count
    assert len(known.ALL.cells("train")) == 25


# Rows


def test_a_row_says_what_its_time_is_held_against():
    cell = cells()[0]
    row = row_of(cell)
    assert tuple(row) == rows.KEYS
    flops = 2 * 3 * 64 * (64 + 64)
    assert (row["isa"], row["threads"], row["clock"], row["load"]) == ("avx512", 1, "thread", 0.5)
    assert (row["ms"], row["least_ms"]) == (1.1, 1.0)
    assert row["gflops"] == pytest.approx(flops / 1e-3 / 1e9, rel=1e-5)
    assert row["of_peak"] == pytest.approx(row["gflops"] / 100, rel=1e-5)
    assert row["over"] == {"nn.GRU": [20.0, 18.0, 22.0], "nn.LSTM": [2.0, 2.0, 2.0]}
    train = ours_row(
        timed_row(grid()[1], "x", 2, None, WHERE, TIMES, {"family": "llvm", "parity": 0.1}), grid()[1], "avx2", None, {}
    )
    assert train["gflops"] == pytest.approx(3 * 2 * 100 * 4 * 3 * 64 * 128 / 1e-3 / 1e9)
    assert (train["clock"], train["of_peak"]) == ("wall", None)
    json.dumps(train, allow_nan=False)


def test_the_page_of_results_speaks_of_other_rows(tmp_path):
    file = rows.RowFile(tmp_path / "run-cpu-x.jsonl")
    file.append(row_of(cells()[0]))
    file.append(rows.row(Case(8, 2, 3, "fp32", "forward"), "tritongru", WHERE, family="torch", parity=0.1))
    assert [row["impl"] for row in evidence.read(tmp_path)] == ["tritongru"]


# The table of the plan


def tiny_rows(losing=(), hidden=64, isa="avx2", **about):
    """``losing``: numbers of rows T * B at which nn.GRU is faster."""
    found = []
    for cell in tiny():
        number = cell.case.time
        if cell.case.hidden == hidden and cell.case.batch == 1:
            found.append(row_of(cell, isa, gru=0.9 if number in losing else 1.0, **about))
    return found


@pytest.mark.parametrize(("losing", "least"), [((), 1), ((1,), 2), ((1, 2, 8), 16), ((32,), 33), (TINY, 33)], ids=str)
def test_from_the_least_rows_on_the_loop_wins(losing, least):
    line = {"isa": "avx2", "pass": "train", "hidden": 64, "least_rows": least, "least_steps": least}
    assert table.table(tiny_rows(losing)) == [line]


def test_of_threads_and_cpus_the_worst_counts_and_of_each_case_the_last():
    later = WHERE | {"commit": "def5678"}
    found = [*tiny_rows((1, 2)), *tiny_rows((1,), where=later), *tiny_rows((1, 2, 4), where=later, threads=2)]
    assert [line["least_rows"] for line in table.table(found)] == [8]
    found += tiny_rows((8,), where=WHERE | {"cpu": "another"})
    assert [line["least_rows"] for line in table.table(found)] == [16]
    found += tiny_rows((), 512, "avx512")
    assert [(line["isa"], line["hidden"]) for line in table.table(found)] == [("avx2", 64), ("avx512", 512)]


def test_the_grid_is_told_cell_by_cell_and_what_is_red_or_narrow_is_not():
    large = next(c for c in grid() if (c.case.hidden, c.case.batch, c.case.mode) == (64, 4, "train"))
    assert table.table([*tiny_rows(), row_of(large, "avx2", gru=0.9)]) == table.table(tiny_rows())
    line = {"isa": "avx2", "threads": 1, "pass": "train", "hidden": 64, "batch": 4, "over": 0.9}
    rows_ = [row_of(large, "avx2", gru=0.9), row_of(large, "avx2", gru=1.5, threads=8), *tiny_rows()]
    found = table.cells(rows_)
    assert [{key: one[key] for key in line} for one in found] == [line, line | {"threads": 8, "over": 1.5}]
    assert [one["high"] for one in found] == [round(row["over"]["nn.GRU"][2], 2) for row in rows_[:2]]
    other = row_of(large, "avx2", gru=0.7, where=WHERE | {"cpu": "another"})
    assert table.cells([other, *rows_])[0]["over"] == 0.7
    assert table.cells([*rows_, row_of(large, "avx2", gru=1.2)])[0]["over"] == 1.2
    narrow = Cell("odd", Case(64, 64, 10, "fp32", "train", inputs=8))
    red = row_of(large, "avx2", gru=0.9, parity=2.0)
    others = [row_of(narrow, "avx2", gru=0.1), red, *fresh_rows()]
    assert table.table([*tiny_rows(), *others]) == table.table(tiny_rows())
    assert table.cells([*tiny_rows(), *others]) == []


def test_what_a_cpu_would_not_run_tells_nothing():
    large = next(c for c in grid() if (c.case.hidden, c.case.batch, c.case.mode) == (64, 4, "train"))
    both = [row_of(large, "avx2", gru=0.5), row_of(large, "avx512", gru=1.5)]
    assert [(line["isa"], line["over"]) for line in table.cells(both)] == [("avx512", 1.5)]


@pytest.mark.parametrize("stack", [{"layers": 2}, {"directions": 2}], ids=["layers", "directions"])
def test_stacks_tell_nothing_of_a_layer_and_workloads_nothing_of_targets(stack):
    workload = Cell("workload", Case(64, 4, 100, "fp32", "train", label="demo", **stack))
    slow = row_of(workload, "avx2", gru=0.1)
    assert table.table([*tiny_rows(), slow]) == table.table(tiny_rows())
    assert judge([*everything(), slow, row_of(workload, gru=0.1)]) == judge(everything())
    plain = Cell("workload", Case(64, 4, 100, "fp32", "train", label="demo"))
    assert table.table([*tiny_rows(), row_of(plain, "avx2", gru=0.9)]) == table.table(tiny_rows())
    assert table.cells([*tiny_rows(), slow, row_of(plain, "avx2", gru=0.9)]) == []


def test_one_step_of_several_rows_is_told_by_steps_and_each_pass_by_its_own():
    once, train = (Cell("tiny", Case(64, 64, 1, "fp32", mode)) for mode in ("forward", "train"))
    large = next(c for c in grid() if (c.case.hidden, c.case.batch, c.case.mode) == (64, 4, "forward"))
    long = Cell("long", Case(64, 1, 1000, "fp32", "forward"))
    rows_ = [row_of(large, "avx2"), row_of(long, "avx2"), row_of(once, "avx2"), row_of(train, "avx2", gru=0.9)]
    assert [
        (line["pass"], line["least_rows"], line["least_steps"]) for line in table.table([*tiny_rows(), *rows_])
    ] == [
        ("forward", 1000, 1000),
        ("train", 1, 2),
    ]


@pytest.mark.parametrize(("ratio", "least"), [(1.1, 1), (0.9, 2)])
def test_a_cell_is_told_by_rows_beside_torchs_cell(ratio, least):
    row = row_of(Cell("cell", Case(64, 1, 1, "fp32", "forward")), "avx2", gru=ratio)
    line = {"isa": "avx2", "pass": "cell", "hidden": 64, "least_rows": least, "least_steps": least}
    assert table.table([row]) == [line]


def test_the_command_makes_the_table_that_the_plan_reads(tmp_path, monkeypatch, capsys):
    from tritongru.planning import cpu_plan

    monkeypatch.setattr(table, "TABLE", tmp_path / "cpu.json")
    table.TABLE.write_text("as before")
    assert main(["tune", "--cpu-table", "--out", str(tmp_path)]) == 2
    assert table.TABLE.read_text() == "as before"
    file = rows.RowFile(tmp_path / "run-cpu-x.jsonl")
    for row in tiny_rows((1,)):
        file.append(row)
    assert main(["tune", "--cpu-table", "--out", str(tmp_path)]) == 0
    assert "1 entries for small calls" in capsys.readouterr().out
    made = json.loads(table.TABLE.read_text())
    line = {"isa": "avx2", "pass": "train", "hidden": 64, "least_rows": 2, "least_steps": 2}
    assert made == {"rows": [line], "cells": []}
    with table_of(*made["rows"], cells=made["cells"]):
        assert cpu_plan.least_rows("avx2", 64, True) == 2

"""The CPU loop beside torch's: which calls, how they are timed, for which instruction set, what a child answers."""

import json

import pytest
import torch
from processes import python

from bench.calls.cpu import cell as calls
from bench.calls.cpu import fresh
from bench.measure import children, rows
from bench.measure.cases import Case
from bench.measure.cpu import cells, timing
from bench.measure.pair import random
from bench.measure.parity import Parity
from bench.rivals import instruction_sets
from tritongru.planning.instruction_sets import SETS, host_sets, refusal

WHERE = dict.fromkeys(rows.WHERE_KEYS, "here")
needs_loop = pytest.mark.skipif(bool(refusal()), reason=refusal())
SMALL = cells.Cell(cells.ODD_PART, Case(3, 2, 4, "fp32", "train", inputs=5))


# Which calls


def test_the_grid_has_every_size_once_in_both_modes_and_the_middle_first():
    grid = cells.grid()
    sizes = [(cell.case.hidden, cell.case.batch) for cell in grid[::2]]
    assert sorted(sizes) == sorted((H, B) for H in (16, 64, 128, 256, 512) for B in (1, 4, 16, 64, 256))
    assert sizes[0] == (64, 4)
    assert {cell.case.mode for cell in grid} == {"forward", "train"}
    assert all(cell.case.width == cell.case.hidden for cell in grid)
    few = {(cell.case.hidden, cell.case.batch) for cell in grid if cell.case.time == 20}
    assert few == {(256, 256), (512, 256)}
    assert {cell.case.time for cell in grid} == {20, 100}


def test_every_call_has_a_name_of_its_own_that_tells_part_and_threads():
    everything = cells.cells()
    names = [cell.name for cell in everything]
    assert len(set(names)) == len(names) == 191
    assert {cell.part for cell in everything} == set(cells.PARTS)
    assert everything[0].row_name(1) == "step-h64-b1-t1-fp32-forward-1-thread"
    assert everything[0].row_name(2) == "step-h64-b1-t1-fp32-forward-2-threads"
    long = [cell.case for cell in everything if cell.part == "long"]
    assert {(case.batch, case.time) for case in long} == {(1, 1000)}
    odd = [cell.case for cell in everything if cell.part == "odd"]
    assert {case.hidden for case in odd} == {1, 3, 63, 65, 100, 200}
    assert all(case.width != case.hidden for case in odd)


def test_few_rows_are_trained_as_one_row_and_as_one_step():
    found = [(cell.case.time, cell.case.batch) for cell in cells.tiny() if cell.case.hidden == 512]
    once = [(1, B) for B in (4, 16, 64, 256)]
    assert sorted(found) == sorted([*((T, 1) for T in (1, 2, 4, 8, 16, 32)), *once, *once])
    assert {cell.case.batch > 1 for cell in cells.tiny() if cell.case.mode == "forward"} == {True}


# How they are timed


@pytest.fixture
def clock(monkeypatch):
    """A clock that only calls move; returns what makes an entrant, and the log of samples."""
    now, log = [0.0], []

    def entrant(name, ms):
        def call():
            now[0] += ms / 1000

        def around():
            log.append(name)
            return timing.nullcontext()

        return timing.Entrant(call, around)

    monkeypatch.setattr(timing, "CLOCKS", {"thread": lambda: now[0]})
    return entrant, log


def test_everybody_is_timed_in_turn_in_batches_of_a_few_milliseconds(clock):
    entrant, log = clock
    samples = timing.rounds("thread", {"a": entrant("a", 0.5), "b": entrant("b", 10.0)}, most=6)
    assert samples == {"a": pytest.approx([0.5] * 6), "b": pytest.approx([10.0] * 6)}
    assert log[-12:] == ["a", "b", "b", "a"] * 3


def test_rounds_end_when_time_is_up_but_not_before_there_are_some(clock):
    entrant, _ = clock
    assert len(timing.rounds("thread", {"a": entrant("a", 5.0)}, limit_s=0.0)["a"]) == timing.FEWEST_ROUNDS
    assert len(timing.rounds("thread", {"a": entrant("a", 5.0)}, limit_s=1e9)["a"]) == timing.ROUNDS


def test_the_ratio_is_that_of_the_least_and_lies_in_its_interval():
    ours, theirs = [2.0, 1.0, 1.5, 1.1, 1.2], [6.0, 3.5, 3.0, 3.3, 3.1]
    ratio, low, high = timing.over(theirs, ours)
    assert ratio == 3.0
    assert 2.0 <= low < 3.0 <= high <= 3.5
    assert timing.over([4.0] * 5, [2.0] * 5) == (2.0, 2.0, 2.0)
    found = timing.times_of(ours)
    assert (found.ms, found.least_ms, found.rounds) == (1.2, 1.0, 5)
    assert found.spread == pytest.approx((1.8 - 1.04) / 1.2)


def test_one_thread_is_timed_by_its_own_clock_and_several_by_the_walls():
    assert [timing.clock_of(threads) for threads in (1, 2, 64)] == ["thread", "wall", "wall"]
    before = timing.CLOCKS["thread"]()
    timing.time.sleep(0.05)
    assert timing.CLOCKS["thread"]() - before < 0.04, "a thread that sleeps has no core"


# In what instruction set


@needs_loop
@pytest.mark.parametrize("isa", host_sets())
@pytest.mark.parametrize(("part", "mode"), [("grid", "train"), ("grid", "forward"), ("cell", "forward")])
def test_inside_the_loop_is_that_of_the_set_that_is_asked_for(monkeypatch, isa, part, mode):
    """The way of each kind of call: with gradients, without, and of a cell."""
    from tritongru.llvm import launch

    seen, whole = [], launch._pass

    def found(kernel, set_of, *given):
        seen.append((kernel, set_of))
        return whole(kernel, set_of, *given)

    monkeypatch.setattr(launch, "_pass", found)
    cell = cells.Cell(part, Case(4, 2, 1, "fp32", mode))
    layer, data = calls.layers_of(cell).ours, random(cell.case, calls.CPU)
    call = calls.call_of(cell, layer, [data.x] * 3, data)
    kernels = ["forward", "backward"] if mode == "train" else ["step"]
    around = calls.with_gradients if mode == "train" else calls.no_gradients
    with around(isa):
        call()
    assert seen == [(kernel, isa) for kernel in kernels]
    seen.clear()
    with around(None):
        call()
    assert seen == [(kernel, host_sets()[0]) for kernel in kernels]


@pytest.mark.parametrize(
    ("host", "asked", "found"),
    [
        (("avx512", "avx2", "sse2"), (), ("avx512", "avx2")),
        (("avx2", "sse2"), (), ("avx2",)),
        (("neon",), (), ("neon",)),
        (("avx512", "avx2", "sse2"), ("native",), ("avx512",)),
        (("avx512", "avx2", "sse2"), ("sse2", "native"), ("avx512", "sse2")),
    ],
)
def test_the_best_set_is_measured_and_what_many_have(monkeypatch, host, asked, found):
    monkeypatch.setattr(instruction_sets, "host_sets", lambda: host)
    assert instruction_sets.sets_of(asked) == found
    with pytest.raises(ValueError, match=r"^this CPU has no .*; it has " + ", ".join(host)):
        instruction_sets.sets_of(("neon", "avx512", "sse2"))


# What a child answers


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(timing, "BATCH_MS", 0.001)
    monkeypatch.setattr(timing, "FEWEST_ROUNDS", 2)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@needs_loop
@pytest.mark.parametrize(
    ("part", "case", "names"),
    [
        ("odd", SMALL.case, {"nn.GRU", "nn.LSTM"}),
        ("grid", Case(4, 2, 3, "fp32", "forward"), {"nn.GRU", "nn.LSTM"}),
        ("tiny", Case(4, 1, 2, "fp32", "train"), {"nn.GRU"}),
        ("cell", Case(4, 1, 1, "fp32", "forward"), {"nn.GRU"}),
    ],
)
def test_a_child_answers_with_parity_and_times_of_all(quick, part, case, names):
    best = host_sets()[0]
    question = calls.Question(cells.Cell(part, case), (best,), (1, 2), 5, most=2, limit_s=0.0)
    one, two = calls.answer(question)
    assert (one.threads, two.threads) == (1, 2)
    for found in (one, two):
        assert found.parities[best].green
        assert found.parities[best].repeatable
        assert set(found.times) == {best, *names}
        assert set(found.over[best]) == names
        assert all(times.least_ms > 0 and times.rounds == 2 for times in found.times.values())
    again = calls.answer(question)
    assert again[0].parities[best].ours == one.parities[best].ours, "the seed decides weights and data"


@needs_loop
def test_where_parity_is_red_no_time_is_taken(quick, monkeypatch):
    monkeypatch.setattr(calls, "compare", lambda *given: Parity(1.5, 0.4, "output: error 1", True))
    monkeypatch.setattr(calls, "rounds", lambda *given: pytest.fail("timed"))
    (found,) = calls.answer(calls.Question(SMALL, host_sets()[:1], (1,), 5))
    assert found.times == found.over == {}
    assert found.parities[host_sets()[0]].worst == "output: error 1"


def test_an_error_is_an_answer(monkeypatch):
    monkeypatch.setattr(calls, "layers_of", lambda cell: 1 / 0)
    with pytest.raises(children.Failed, match="ZeroDivisionError"):
        calls.answer(calls.Question(SMALL, ("avx2",), (1,)))


# What the CPU can do


@needs_loop
def test_multiply_adds_and_reads_do_what_is_counted():
    from bench.measure.cpu import floors

    isa = host_sets()[0]
    lanes, sums = SETS[isa].bytes // 4, 3 * SETS[isa].rows
    engine, function, amount = floors.compiled(isa, floors.write_multiply_adds, floors.PEAK, 2)
    assert amount == 2 * sums * lanes
    place = torch.full((2 * lanes,), 0.5)
    function(place.data_ptr(), 2)
    expected = sum((k * 0.5 + 0.5) * 0.5 + 0.5 for k in range(sums))
    torch.testing.assert_close(place[:lanes], torch.full((lanes,), expected))
    engine, function, block = floors.compiled(isa, floors.write_reads, "read", 4)
    assert block == 4 * floors.SUMS * lanes
    data, out = torch.arange(block // 4 * 3, dtype=torch.float32), torch.empty(lanes)
    function(data.data_ptr(), 3, 2, out.data_ptr())
    torch.testing.assert_close(out, 2 * data.view(-1, lanes).sum(0))
    del engine


@needs_loop
def test_floors_are_amounts_over_the_least_time(monkeypatch):
    from bench.measure.cpu import floors

    monkeypatch.setattr(floors, "least_s", lambda threads, calls: 0.5 * len(calls) / threads)
    isa = host_sets()[0]
    assert floors.multiply_adds(isa, 2, flops=1e6).rate == pytest.approx(2 * 1e6 / 0.5, rel=0.01)
    assert floors.reads(isa, 1, "l1", 2**14, 2.0**20) == floors.Floor("l1", isa, 1, 2**20 / 0.5)
    monkeypatch.setattr(floors, "multiply_adds", lambda isa, threads: ("fma", isa, threads))
    monkeypatch.setattr(floors, "reads", lambda isa, threads, name, size: (name, isa, threads))
    assert set(floors.cache_sizes()) == {"l1", "l2", "l3"}
    names = ("l1", "l2", "l3", "memory")
    assert floors.measure(("a", "b"), (1, 2)) == [
        *(("fma", isa, threads) for isa in "ab" for threads in (1, 2)),
        *((name, "a", threads) for name in names for threads in (1, 2)),
    ]


# Fresh processes


def test_first_calls_and_memory_become_rows(monkeypatch, tmp_path):
    asked = []

    def json_of(module, *arguments, limit_s, **environment):
        asked.append((arguments, environment.get("XDG_CACHE_HOME")))
        if arguments[0] == "first":
            return {"forward": 0.5, "backward": 0.25}
        return {"tritongru": 200.0, "nn.GRU": 300.0}[arguments[1]]

    monkeypatch.setattr(fresh, "json_of", json_of)
    file = rows.RowFile(tmp_path / "rows.jsonl")
    fresh.measured_first(file.append, WHERE, "avx2", 2)
    fresh.measured_peaks(file.append, WHERE, "avx2", 2)
    found = rows.read(file.path)
    assert [(row["case"], row["impl"], row["ms"], row["peak_mib"]) for row in found] == [
        ("first-forward-cold", "tritongru[llvm-avx2]", 500.0, None),
        ("first-backward-cold", "tritongru[llvm-avx2]", 250.0, None),
        ("first-forward-cached", "tritongru[llvm-avx2]", 500.0, None),
        ("first-backward-cached", "tritongru[llvm-avx2]", 250.0, None),
        (fresh.PEAK_NAME, "tritongru[llvm-avx2]", None, 200.0),
        (fresh.PEAK_NAME, "nn.GRU", None, 300.0),
    ]
    assert [row["case"] for row in found[:4]] == fresh.FIRST_NAMES
    assert {(row["threads"], row["isa"]) for row in found} == {(2, "avx2"), (2, None)}
    folders = [folder for arguments, folder in asked if arguments[0] == "first"]
    assert folders[0] == folders[1] is not None, "the second finds what the first left"


def test_a_process_that_fails_leaves_no_row(monkeypatch, capsys):
    def json_of(*given, **limits):
        raise children.Failed("it broke")

    monkeypatch.setattr(fresh, "json_of", json_of)
    for measure in (fresh.measured_first, fresh.measured_peaks):
        measure(lambda row: pytest.fail("a row"), WHERE, "avx2", 2)
    assert capsys.readouterr().out == "First call, cold: it broke\nMemory of a training step, tritongru: it broke\n"


@needs_loop
@pytest.mark.slow
def test_a_fresh_process_tells_its_first_call_and_its_memory(tmp_path):
    done = python("-m", "bench.calls.cpu.fresh", "first", XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {"forward", "backward"}
    assert all(seconds > 0 for seconds in found.values())
    assert any(tmp_path.rglob("*")), "compiled code was kept there"
    done = python("-m", "bench.calls.cpu.fresh", "peak", "nn.GRU")
    assert done.returncode == 0, done.stderr
    case = fresh.PEAK
    outputs = case.time * case.batch * case.hidden * 4 / 2**20
    assert json.loads(done.stdout) > 2 * outputs, "outputs and the gradient of the input, at least"

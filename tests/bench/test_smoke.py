"""`bench smoke` in the interpreter: it finds what is wrong, continues after it, and ends in time."""

import contextlib
import math
import os
import re
import shlex
import types
from dataclasses import replace

import conftest
import pytest
import torch
from processes import PATIENCE, ROOT

from bench.__main__ import main
from bench.commands import smoke
from bench.measure.cases import Case
from bench.measure.children import STOP_S, TimedOut
from tritongru import layer
from tritongru.planning.devices import GPUS

in_the_interpreter = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the command itself is run")
TINY = Case(17, 2, 3, "fp32", "train", inputs=16)


@pytest.mark.slow
@in_the_interpreter
def test_the_command_runs_every_step_that_needs_no_gpu(capsys, monkeypatch):
    monkeypatch.setattr(smoke, "TOTAL_S", PATIENCE)
    assert main(["smoke", "--only", "fp32"]) == 0
    head, left_out, *lines, last = capsys.readouterr().out.splitlines()
    assert head.startswith("Triton's interpreter (as an H200), torch ")
    assert left_out == (
        "Left out because they need a GPU: persistent by counter, large, fp32; persistent by data, large, fp32; "
        "graph capture fp32; three streams fp32."
    )
    names = ["resident", "persistent by counter, small,", "persistent by data, small,", "stepwise", "a stalled wait"]
    for found, name, form in zip(lines, names, ("16 rows", "-counter", "-data", "-stepwise", "-counter"), strict=True):
        assert found.startswith(f"ok     {name} fp32, H=")
        assert found.count(form) == 2
        assert 0 < float(found.split("error ")[1].split(" of the allowed error")[0]) <= 1
    assert last.startswith("5 of 5 steps are ok. ")


def off(change):
    """The layer's forward with its output changed."""
    sound = layer.forward

    def forward(*args, **options):
        y, hn, gates = sound(*args, **options)
        return change(y), hn, gates

    return forward


def at_step(y):
    return (torch.arange(y.shape[0]) == 3)[:, None, None]


@in_the_interpreter
def test_a_wrong_gradient_is_seen(monkeypatch):
    sound = layer.backward
    monkeypatch.setattr(layer, "backward", lambda *args: (sound(*args)[0].roll(1, dims=1), *sound(*args)[1:]))
    found = smoke.answer(smoke.Step("step", smoke.resident, TINY))
    assert found.error > 100
    assert found.fault.startswith("d input: error ")


@in_the_interpreter
def test_a_wait_in_vain_that_nobody_reports_is_seen(monkeypatch):
    monkeypatch.setattr("tritongru.kernels.persistent.cooperative.raise_report", lambda report: report.tensor.zero_())
    found = smoke.in_vain(TINY)
    assert found.fault == "a stalled wait was not reported"


@in_the_interpreter
def test_bits_that_move_are_seen(monkeypatch):
    factors = iter((1, 1 + torch.finfo(torch.float32).eps))
    monkeypatch.setattr(layer, "forward", off(lambda y: y * next(factors)))
    found = smoke.answer(smoke.Step("step", smoke.stepwise, TINY))
    assert found.error <= 1
    assert found.fault == "a second run gave different bits"


@in_the_interpreter
def test_a_form_that_the_device_does_not_have_is_no_failure():
    found = smoke.answer(smoke.Step("step", smoke.by_data, replace(TINY, hidden=5000)))
    assert found.absent
    assert smoke.line(smoke.Step("step", smoke.by_data, TINY), found, 0.5) == (
        "absent step, H=17 B=2 T=3; Triton's interpreter (as an H200) has no persistent forward that exchanges by "
        "data for H=5000, B=2 in ieee arithmetic; 0.5 s"
    )


@pytest.fixture
def stand_in(monkeypatch):
    """CUDA's streams and graphs of a machine that has none: a replay runs once more what was captured."""
    sound, asked_for = smoke.quantities, []

    def quantities(*asked):
        asked_for.append((asked, sound(*asked)))
        return asked_for[-1][1]

    class Graph:
        def replay(self):
            asked, found = asked_for[-1]
            for name, value in sound(*asked).items():
                found[name].copy_(value)

    one = types.SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(smoke, "quantities", quantities)
    for name in ("graph", "stream"):
        monkeypatch.setattr(torch.cuda, name, lambda which: contextlib.nullcontext())
    for name in ("Stream", "current_stream", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda: one)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    return asked_for, Graph


@pytest.mark.slow
@in_the_interpreter
def test_graphs_and_streams_are_compared_too(stand_in, monkeypatch):
    asked_for, graph = stand_in
    found = smoke.answer(smoke.Step("step", smoke.graph, TINY))
    assert (found.form.count("-counter"), found.fault) == (2, "")
    assert 0 < found.error <= 1
    assert len(asked_for) == 3  # torch's, the call that compiles, and the captured one
    monkeypatch.setattr(graph, "replay", lambda self: None)
    assert smoke.answer(smoke.Step("step", smoke.graph, TINY)).error == math.inf
    asked_for.clear()
    monkeypatch.setattr(layer, "forward", off(lambda y: y + 1e-4 * at_step(y) * (len(asked_for) == 9)))
    found = smoke.answer(smoke.Step("step", smoke.streams, TINY))
    assert 10 < found.error < 1000  # what was planted in one of the nine, and nothing else
    assert len(asked_for) == 11  # torch's, the call that compiles, and three on each of three streams


def wrong(case):
    layer.forward = off(lambda y: y + 1e-4 * at_step(y))  # in a process that ends after it
    return smoke.resident(case)


def raises(case):
    raise ValueError("planted\nand a second line")


def dies(case):
    os._exit(3)


def hangs(case):
    raise AssertionError("its time is over before it starts")


FAULTS = {
    wrong: "16 rows, 4w + 16 rows, 4w; error ",
    raises: "ValueError: planted (test_smoke.py:",
    dies: "the child process ended with exit code 3",
    hangs: "no answer within 0 s",
}


@pytest.mark.slow
@in_the_interpreter
def test_it_goes_on_after_every_kind_of_failure(capsys, monkeypatch):
    sound = smoke.ask
    monkeypatch.setattr(smoke, "ask", lambda step, limit_s: sound(step, 0.01 if step.run is hangs else limit_s))
    steps = [smoke.Step(run.__name__, run, TINY) for run in FAULTS]
    steps.append(smoke.Step("good", smoke.by_counter, replace(TINY, dtype="bf16")))
    assert smoke.run_steps(steps, 2, PATIENCE) == 1
    *lines, last = capsys.readouterr().out.splitlines()
    for run, found in zip(FAULTS, lines, strict=False):
        assert found.startswith(f"FAILED {run.__name__}, H=17 B=2 T=3; ")
        assert FAULTS[run] in found
    assert lines[-1].startswith("ok     good, H=17 B=2 T=3; ")
    assert last.startswith("1 of 5 steps are ok. FAILED: wrong; raises; dies; hangs. ")


@pytest.fixture
def answers(monkeypatch):
    """Steps are answered by what they are made to find; no process starts."""
    monkeypatch.setattr(smoke, "ask", lambda step, limit_s: (step, step.run(step.case), 1.0))

    def run(*found):
        return smoke.run_steps([smoke.Step("step", lambda case, one=one: one, TINY) for one in found], 2, PATIENCE)

    return run


GOOD, BAD, NONE = smoke.Found("a form", 0.5), smoke.Found("a form", 2.0, "wrong"), smoke.Found("none", absent=True)


@pytest.mark.parametrize(
    "found, code", [((GOOD, GOOD), 0), ((GOOD, NONE), 0), ((GOOD, BAD), 1), ((NONE, BAD), 1), ((NONE, NONE), 1)]
)
def test_the_exit_code(found, code, answers):
    assert answers(*found) == code


@pytest.mark.parametrize(
    "ours, repeatable, fault", [(0.9, True, ""), (0.9, False, "different bits"), (1.1, True, "worst")]
)
@pytest.mark.parametrize("bad", [math.nan, math.inf, None])
def test_what_a_step_finds_is_judged(ours, repeatable, fault, bad):
    launches = [smoke.forms(TINY, GPUS["h200"], "stepwise")[0]] * 2
    found = smoke.judged(launches, smoke.Parity(bad or ours, 0.5, "worst", repeatable))
    assert (fault if bad is None else "worst") in found.fault
    assert bool(found.fault) == (bad is not None or bool(fault))


@in_the_interpreter
def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    assert main(["smoke"]) == 2
    said = capsys.readouterr().out
    assert said.startswith("There is no GPU here; ")
    assert said.count("\n") == 1


@in_the_interpreter
def test_a_name_that_no_step_has(capsys):
    assert main(["smoke", "--only", "lstm"]) == 2
    assert capsys.readouterr().out.splitlines()[1:] == ["No step that can run here has a name that contains 'lstm'."]


@in_the_interpreter
def test_a_name_in_capitals_is_found(monkeypatch):
    monkeypatch.setattr(smoke, "run_steps", lambda steps, workers, total_s: [step.name for step in steps])
    assert smoke.smoke("STEPWISE") == ["stepwise fp32", "stepwise bf16"]


@pytest.mark.parametrize("kind", smoke.WORKERS)
def test_all_limits_together_are_under_two_minutes(kind):
    """Whatever hangs: so many rounds of the workers, each of a limit and of what the end of a child may take."""
    workers = smoke.WORKERS[kind]
    steps = [step for step in smoke.steps_on(kind) if kind == "cuda" or not step.needs_gpu]
    for count in range(1, len(steps) + 3):  # two more are to come
        limit_s = smoke.limit_of(count, workers, smoke.TOTAL_S)
        assert math.ceil(count / workers) * (limit_s + STOP_S) <= smoke.TOTAL_S <= 105
        assert limit_s >= 25  # a child's start, CUDA's, and two kernels' compilation


def test_a_step_has_what_the_start_of_its_child_leaves(monkeypatch):
    clock, asked = [100.0], []

    class Child:
        def __init__(self, handler):
            assert handler is smoke.answer

        def start(self, start_s):
            asked.append(start_s)
            clock[0] += 7

        def ask(self, step, limit_s):
            asked.append(limit_s)
            clock[0] += limit_s
            raise TimedOut("no answer within 23 s, killed")

        def stop(self):
            asked.append("stopped")

    monkeypatch.setattr(smoke, "Child", Child)
    monkeypatch.setattr(smoke, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    _, found, seconds = smoke.ask(smoke.Step("step", hangs, TINY), 30.0)
    assert asked == [30.0, 23.0, "stopped"]
    assert (found.fault, seconds) == ("no answer within 30 s", 30.0)


def test_every_step_has_a_form_on_the_gpus_it_is_for():
    for step in smoke.steps_on("cuda"):
        first = step.name.split()[0]
        family = first if first in ("resident", "stepwise") else "persistent"
        exchange = "" if family != "persistent" else "data" if "by data" in step.name else "counter"
        for name in ("h100", "h200"):
            forward, backward = smoke.forms(step.case, GPUS[name], family, exchange)
            assert type(forward) is type(backward)
            if exchange:
                assert forward.exchange == backward.exchange == exchange


def test_three_commands_run_every_gpu_test():
    """Of the page that says how to begin: the parallel ones together, and the one for tests that need the GPU alone."""
    page = (ROOT / "docs" / "lab.md").read_text()
    parallel, alone = [], []
    for command in re.findall(r"^\| `timeout 540 \.venv/bin/python -m pytest (.+?)` \|", page, re.MULTILINE):
        marker, expression, *options = shlex.split(command)
        assert marker == "-m"
        where = {"gpu and not alone": parallel, "gpu and alone": alone}[expression]
        where += [option for option in options if option.startswith("tests/")]
        assert options[:2] == ["-n", "0" if where is alone else "10"]
    files = {str(path.relative_to(ROOT)): path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    on_gpu = {
        name for name, text in files.items() if re.search(r"^(pytestmark = |@)pytest\.mark\.gpu$", text, re.MULTILINE)
    }
    assert sorted(parallel) == sorted(on_gpu)
    assert sorted(alone) == [name for name in sorted(on_gpu) if "@pytest.mark.alone" in files[name]]


def test_gpu_tests_of_the_same_sizes_follow_each_other(monkeypatch):
    monkeypatch.setattr(conftest, "HAS_GPU", True)

    class Item:
        def __init__(self, *marks, **params):
            self.keywords, self.added = marks, []
            if params:
                self.callspec = types.SimpleNamespace(params=params)

        def add_marker(self, mark):
            self.added.append(mark.name)

        def get_closest_marker(self, name):
            return None

    cpu, plain = Item(H=8), Item("gpu")
    sizes = [Item("gpu", H=H, dtype=dtype) for H in (64, 256) for dtype in (torch.float32, torch.float16)]
    again = [Item("gpu", H=H, dtype=torch.float16, B=5) for H in (64, 256)]
    items = [*sizes, cpu, *again, plain]
    conftest.pytest_collection_modifyitems(items)
    assert items == [cpu, plain, sizes[3], again[1], sizes[2], sizes[1], again[0], sizes[0]]
    assert [item.added for item in items] == [[], *[["timeout"]] * 7]

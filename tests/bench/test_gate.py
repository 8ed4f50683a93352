"""The gate with a GPU: limits that fit, a command that resumes a stopped one, rows of known code."""

import types

import pytest
import torch

from bench import rivals, suites
from bench.__main__ import main, parser
from bench.calls import first_call, host
from bench.commands import gate
from bench.measure import children, pair, parity, rows
from bench.measure.cases import Case
from bench.session import examine, known, warm
from tritongru.planning.devices import GPUS
from tritongru.planning.memory import Memory
from tritongru.planning.plan import Plan

NAMED = Case(8, 3, 5, "fp32", "train", label="demo")
WIDE = Case(256, 1, 2, "bf16", "train")
SMALL = Case(8, 3, 5, "fp32", "forward")
HOST = {f"{direction}-whole": [50.0, 60.0, 70.0] for direction in host.LIMITS_US}
FIRST = {"forward": 3.0, "backward": 4.0}


class FakeChild:
    """Answers what a child would; ``red`` and ``late`` are names of cases."""

    def __init__(self, red=(), late=(), moving=()):
        self.asked, self.red, self.late, self.moving = [], red, late, moving

    def ask(self, question, *, limit_s, start_s):
        case = question.case
        self.asked.append((question.what, case.name))
        if case.name in self.late:
            raise children.TimedOut("no answer within 9 s, killed")
        memory = Memory("save", 0, 0, 0, 1) if case.mode == "train" else None
        if question.what == "parity":
            error = 3.0 if case.name in self.red else 0.4
            found = parity.Parity(error, 0.3, "output: error 1", case.name not in self.moving)
            return found, Plan("resident", "", "", "", memory=memory)
        times = {pair.OURS: {"ms": 2.0}, pair.THEIRS: {"ms": 5.0}}
        times |= {name: {"ms": 3.0} for name in question.rivals if name != rivals.GRU_QAT}
        for own in times.values():
            own |= {"spread": 0.01, "rounds": 7}
        if case.mode == "train":
            times |= {pair.RECOMPUTED: {"peak_mib": 90.0}}
            times[pair.OURS]["peak_mib"], times[pair.THEIRS]["peak_mib"] = 120.0, 100.0
        missing = {rivals.GRU_QAT: "no such package"} if rivals.GRU_QAT in question.rivals else {}
        return pair.Timed(times, missing, {rivals.GRAPH: 0.2}, {rivals.GRAPH: "a graph"})

    def stop(self):
        pass


@pytest.fixture
def machine(monkeypatch):
    """A machine with a GPU, as far as the gate looks."""
    log = []

    def json_of(module, *arguments, limit_s, **environment):
        log.append((module, *arguments))
        return HOST if module == "bench.calls.host" else FIRST

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "GPU X")
    monkeypatch.setattr(examine, "device_facts", lambda device: GPUS["h200"])
    monkeypatch.setattr(warm, "warm", lambda jobs, impl, limit_s: log.append(len(jobs)) or {})
    for module in (host, first_call):
        monkeypatch.setattr(module, "json_of", json_of)
    return log


@pytest.fixture
def command(tmp_path, monkeypatch, capsys, machine):
    """Types a gate over three cases; returns exit code, the lines, what was asked of the child, and of the rest."""
    monkeypatch.setattr(gate, "gate_blocks", lambda: [[NAMED], [WIDE, SMALL]])
    monkeypatch.setattr(gate, "gate_cases", lambda: [NAMED, WIDE, SMALL])

    def call(*arguments, child=None, commit="abc1234"):
        child = child or FakeChild()
        monkeypatch.setattr(gate, "Child", lambda handler: child)
        machine.clear()
        code = main(["gate", "--out", str(tmp_path), "--commit", commit, "--budget", "1000000", *arguments])
        return code, capsys.readouterr().out.splitlines(), [name for _, name in child.asked[::2]], list(machine)

    return call


ALL = [NAMED.name, WIDE.name, SMALL.name]
CALLS = [
    *(("bench.calls.host", str(hidden), "--gpu") for hidden in host.HIDDEN.values()),
    *(("bench.calls.first_call", str(case.hidden), case.dtype) for case in first_call.CASES),
]


def page(lines):
    """The last page, without how much of it comes from earlier rows."""
    at = next(i for i, line in enumerate(lines) if line.startswith("Rows: "))
    return [
        *(line for line in lines[:at] if line.startswith("No time for")),
        *lines[at:-1],
        lines[-1].rpartition("; ")[0],
    ]


# Limits


def default_budget():
    return parser().parse_args(["gate"]).budget


def test_the_first_block_and_the_calls_fit_in_the_default_budget():
    first, second, *_ = suites.gate_blocks()
    own = gate.OPENING_S + gate.CALLS_S
    assert own + gate.block_limit_s(first) <= default_budget()
    least = min([*second, *suites.gate_cases()], key=lambda case: gate.case_limit_s(case, suites.gate_rivals(case)))
    assert own + gate.block_limit_s([*first, least]) > default_budget(), "there is room for one more"


@pytest.fixture
def clock(monkeypatch, machine):
    """Time passes only where somebody waits: compilation, the calls and the child take as long as they may."""
    now = [0.0]
    time = types.SimpleNamespace(monotonic=lambda: now[0])
    for module in (examine, host, first_call):
        monkeypatch.setattr(module, "time", time)

    def hang(limit_s):
        now[0] += limit_s + children.STOP_S
        raise children.TimedOut(f"no answer within {limit_s:.0f} s, killed")

    def compiled(jobs, impl, limit_s):
        now[0] += limit_s + children.STOP_S
        return {}

    monkeypatch.setattr(warm, "warm", compiled)
    for module in (host, first_call):
        monkeypatch.setattr(module, "json_of", lambda *command, limit_s, **environment: hang(limit_s))
    return types.SimpleNamespace(now=now, hang=hang)


@pytest.mark.parametrize("stage", ["parity", "speed"])
def test_whatever_hangs_each_case_of_the_first_block_has_its_time(tmp_path, monkeypatch, capsys, clock, stage):
    first = [case.name for case in suites.gate_blocks()[0]]
    begun, ended = {}, {}

    class Hanging(FakeChild):
        def ask(self, question, *, limit_s, start_s):
            name = question.case.name
            begun.setdefault(name, clock.now[0])
            if question.what != stage:
                clock.now[0] += 5.0
                return super().ask(question, limit_s=limit_s, start_s=start_s)
            try:
                clock.hang(max(limit_s, start_s))  # a process that starts may take as long
            finally:
                ended[name] = clock.now[0]

    monkeypatch.setattr(gate, "Child", lambda handler: Hanging())
    assert gate.gate(default_budget() - gate.OPENING_S, tmp_path, "auto", "", "abc1234") == 1
    lines = capsys.readouterr().out.splitlines()
    for case in suites.gate_blocks()[0]:
        limit = gate.case_limit_s(case, suites.gate_rivals(case))
        spent = ended[case.name] - begun[case.name]
        assert limit - examine.RESERVE_S < spent < limit + children.STOP_S + 0.001
    assert max(ended[name] for name in first) <= default_budget() - gate.OPENING_S
    (cut,) = (line for line in lines if line.startswith("Cut off by their time limit, no verdict on the kernels: "))
    assert all(f"{name} ({stage})" in cut for name in first)
    missing = sorted([*host.NAMES, *first_call.NAMES])
    assert f"No answer in time for: {', '.join(missing)}" in lines
    assert "0 red" in lines[-1]
    assert f"{len(missing)} rows about calls missing" in lines[-1]
    assert lines[-1].startswith("Verdict: NOT passed")


def test_where_other_peoples_code_hangs_there_is_time_for_ours(tmp_path, monkeypatch, clock):
    asked = []

    class Hanging(FakeChild):
        def ask(self, question, *, limit_s, start_s):
            if question.what == "speed":
                asked.append(rivals.GRU_QAT in question.rivals)
                if asked[-1]:
                    clock.hang(max(limit_s, start_s))
            clock.now[0] += 9.0
            return super().ask(question, limit_s=limit_s, start_s=start_s)

    monkeypatch.setattr(gate, "Child", lambda handler: Hanging())
    case = suites.gate_blocks()[0][2]
    gate.gate(1e6, tmp_path, "auto", case.name, "abc1234")
    assert asked == [True, False, True]
    (path,) = tmp_path.iterdir()
    found = {row["impl"]: row for row in rows.read(path)}
    assert found[pair.OURS]["ms"] == 2.0
    assert found[rivals.GRU_QAT]["reason"].startswith(f"left out from {case.name} on: no answer within ")


def test_a_start_and_an_answer_share_the_time(monkeypatch):
    now, child = [0.0], children.Child(None)
    monkeypatch.setattr(children, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    limits = []

    def start(start_s):
        now[0] += 10.0
        return types.SimpleNamespace(send=lambda question: None)

    monkeypatch.setattr(child, "start", start)
    monkeypatch.setattr(child, "receive", lambda pipe, limit_s: limits.append(limit_s))
    child.ask("a", limit_s=15.0, start_s=12.0)
    child.ask("a", limit_s=15.0, start_s=60.0)
    assert limits == [5.0, 15.0]


# The same command again


def test_the_same_command_asks_nothing_twice_and_says_the_same(command):
    child = FakeChild(moving=(SMALL.name,))
    code, lines, asked, rest = command(child=child)
    assert (asked, rest) == (ALL, [*CALLS, 1, 2])
    assert lines[-1].endswith("; 0 from earlier rows.")
    again = command()
    assert again[0] == code == 0
    assert again[2] == again[3] == []
    assert f"Two runs on the same input differ: {SMALL.name}" in lines
    assert page(again[1]) == page(lines)
    assert any("gates saved, at most 1.3x nn.GRU's: reached, 1.20x" in line for line in lines)
    assert again[1][-1].endswith(f"; {3 + len(host.NAMES) + len(first_call.NAMES)} from earlier rows.")


def test_a_part_that_is_known_is_neither_compiled_nor_asked(command):
    command("--only", WIDE.name)
    _, lines, asked, rest = command()
    assert (asked, rest) == ([NAMED.name, SMALL.name], [*CALLS, 1, 1])
    assert "Already measured with commit abc1234: 1 of 3 cases." in lines
    assert "3 of 3 green and timed, 0 red" in lines[-1]
    assert lines[-1].endswith("; 1 from earlier rows.")


@pytest.mark.parametrize("other", ["commit", "arch", "driver", "torch"])
def test_rows_of_another_machine_or_commit_are_asked_again(command, monkeypatch, other):
    command()
    facts = rows.facts
    monkeypatch.setattr(examine, "facts", lambda *about: facts(*about) | {other: "another"})
    _, lines, asked, rest = command()
    assert (asked, rest) == (ALL, [*CALLS, 1, 2])
    assert lines[-1].endswith("; 0 from earlier rows.")


@pytest.mark.parametrize("kind", ["red", "late"])
def test_what_was_red_or_cut_off_is_asked_again_and_what_was_made_good_is_not(command, kind):
    code, lines, _, _ = command(child=FakeChild(**{kind: (SMALL.name,)}))
    assert code == 1
    assert ("1 red" if kind == "red" else "1 cut off") in lines[-1]
    code, lines, asked, _ = command()
    assert (code, asked) == (0, [SMALL.name])
    assert command()[2] == []


def test_a_case_that_turned_red_is_not_taken_from_the_rows_before(command, tmp_path):
    command()
    (path,) = tmp_path.iterdir()
    file = rows.RowFile(path)
    for row in rows.read(path):
        if row["case"] == SMALL.name:
            file.append(
                row | {"seed": 1, "parity": 3.0 if row["impl"] == pair.OURS else 0.3, "ms": None, "rounds": None}
            )
    assert command()[2] == [SMALL.name]


def test_a_forced_path_and_the_shipped_one_do_not_answer_for_each_other(command):
    command()
    assert command("--impl", "triton")[2] == ALL
    assert command("--impl", "triton")[2] == []
    assert command()[2] == []


def test_rows_answer_only_those_who_ask_for_no_other_rival(command, tmp_path):
    command()
    (path,) = tmp_path.iterdir()
    where = rows.read(path)[0]
    found = known.known_in(tmp_path, where)
    for names, answered in ((suites.gate_rivals(NAMED), True), (rivals.ALL_RIVALS, False)):
        assert (NAMED.name in known.results_of(found, [(NAMED, names)], "auto")) is answered


def test_only_the_calls_without_rows_are_measured_again(command, monkeypatch, machine):
    whole = host.json_of

    def broken(module, *arguments, **about):
        if arguments[0] == str(host.HIDDEN["resident"]):
            raise children.Failed("it broke")
        return whole(module, *arguments, **about)

    monkeypatch.setattr(host, "json_of", broken)
    code, lines, _, _ = command()
    assert code == 1
    assert f"No answer in time for: {', '.join(sorted(host.names_of('resident')))}" in lines
    monkeypatch.setattr(host, "json_of", whole)
    code, lines, asked, rest = command()
    assert (code, asked, rest) == (0, [], [CALLS[0]])
    assert any(line.strip().startswith("host time of a forward call, at most 60 us: reached, 60.0") for line in lines)


# Of which code


@pytest.mark.parametrize("name", ["run", "gate", "tune", "characters", "numerics", "study"])
def test_without_git_a_command_asks_for_a_commit(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit) as stop:
        main([name, "--out", str(tmp_path)])
    assert stop.value.code == 2
    text = capsys.readouterr()
    assert text.out == ""
    assert "pass --commit NAME" in text.err
    assert text.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_commit_that_is_given_is_used_as_it_is(command, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    command(commit="my tree, 3rd try")
    (path,) = tmp_path.iterdir()
    assert {row["commit"] for row in rows.read(path)} == {"my tree, 3rd try"}


def test_a_blank_commit_is_refused(capsys, tmp_path):
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["run", "--commit", " ", "--out", str(tmp_path)])
    assert "expected a name for the code version, got ' '" in capsys.readouterr().err


def test_the_table_of_the_tune_needs_no_commit_and_stays_where_nothing_was_tuned(tmp_path, monkeypatch, capsys):
    from bench.analysis import measured

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(measured, "MEASURED", tmp_path / "measured.json")
    measured.MEASURED.write_text("as before")
    assert main(["tune", "--table", "--out", str(tmp_path)]) == 2
    assert "measured.json is left unchanged" in capsys.readouterr().out
    assert measured.MEASURED.read_text() == "as before"


@pytest.mark.parametrize("line", ['{"case": "h8-b3', "7", "null"])
def test_a_line_that_is_no_row_is_named(tmp_path, capsys, line):
    path = tmp_path / "gate-2026-01-01.jsonl"
    path.write_text(f'{{"case": "h8-b3-t5-fp32-train", "date": "2026-01-01"}}\n{line}\n')
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["tune", "--table", "--out", str(tmp_path)])
    assert capsys.readouterr().err == (
        f"python -m bench: line 2 of {str(path)!r} is not a JSON row; fix or remove it.\n"
    )


def test_a_rebuilt_result_has_the_family_and_the_memory_of_its_row():
    where = dict.fromkeys(rows.WHERE_KEYS, "here") | {"seed": 1, "commit": "abc"}
    ours = rows.row(
        WIDE, pair.OURS, where, family="persistent", parity=0.5, ms=1.0, rounds=7, memory="recompute", plan="a launch"
    )
    theirs = rows.row(WIDE, pair.THEIRS, where, family="torch", parity=0.2, ms=3.0, rounds=7, peak_mib=7.0)
    result = known.results_of([ours | {"predicted_us": 2.0}, theirs], [(WIDE, ())], "auto")[WIDE.name]
    assert (result.family, result.launch) == ("persistent", "a launch")
    assert (result.memory, result.expected_us) == ("recompute", 2.0)
    assert (result.parity, result.their_parity, result.ratio) == (0.5, 0.2, 3.0)

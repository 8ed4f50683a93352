"""Lists of cases, the command that runs them, and the committed table of what it found."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sweep
from ptxmachine.runs import case_lists, cases
from ptxmachine.runs.case_lists import LISTS, offered
from ptxmachine.runs.cases import Case, Result, forms
from ptxmachine.runs.results import FILES, FOLDER, Row, Setting, Table, is_clean, key_of, place_of, row_of
from ptxmachine.runs.session import code_of

from tritongru.planning import candidates
from tritongru.planning.devices import GPUS
from tritongru.planning.launches import FAMILIES, AnyLaunch, PersistentLaunch

# (Triton, chip, list): each of its cases that the plan may run there has a row in the table.
WHOLE = tuple((triton, "sm_90", name) for triton in ("3.6.0", "3.7.1") for name in LISTS if name != "ragged")
WHOLE += (("3.7.1", "sm_90", "ragged"), ("3.9.0", "sm_90", "single"))
SETTING = Setting("3.7.1", "sm_90")
CLEAN = Result({"y": 0.25}, counts={"barriers": 4})
BAD = Result({"y": 1.5})
ALL_CASES = [case for cases_of in LISTS.values() for case in cases_of()]


@dataclasses.dataclass
class FakeRunner:
    """Finds of each case what a test wants, and notes which cases were run."""

    find: Callable[[Case], Result] = lambda case: CLEAN
    code: str = "a"
    triton: str = SETTING.triton
    ran: list[Case] = dataclasses.field(default_factory=list)

    def digest(self, case: Case) -> str:
        return self.code

    def run(self, case: Case, setting: Setting) -> Result:
        self.ran.append(case)
        return self.find(case)


def run(folder: Path, runner: FakeRunner, *more: str) -> tuple[int, int]:
    """The exit code of a sweep over the smallest stepwise cases, and how many were run."""
    before = len(runner.ran)
    asked = ("--list", "stepwise", "--largest", "137", "--results", str(folder), *more)
    code = sweep.main(list(asked), lambda device: runner)
    return code, len(runner.ran) - before


def test_a_case_survives_as_json() -> None:
    for case in ALL_CASES:
        assert Case.from_json(json.loads(json.dumps(case.to_json()))) == case


@pytest.mark.parametrize("name", LISTS)
def test_a_list_is_the_same_each_time_and_repeats_nothing(name: str) -> None:
    found = list(LISTS[name]())
    assert found == list(LISTS[name]())
    assert len(set(found)) == len(found) > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_less_changes_no_other_case(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = list(LISTS[family]())
    less = {key: dict(list(rows.items())[1:]) for key, rows in forms(family).items()}
    monkeypatch.setattr(case_lists, "forms", lambda family: less)
    left = list(LISTS[family]())
    assert 0 < len(left) < len(before)
    assert set(left) < set(before)


def without_groups(launch: AnyLaunch) -> AnyLaunch:
    return dataclasses.replace(launch, groups=1) if isinstance(launch, PersistentLaunch) else launch


@pytest.mark.parametrize("family", FAMILIES)
def test_every_form_that_an_h100_may_get_has_a_case(family: str) -> None:
    table: dict[Any, Any] = cases.TABLES[family]()  # type: ignore[assignment]
    rows = {
        (key[1:], row)
        for key, rows in table.items()
        for row in rows
        if key[0] == "cuda" and candidates.fits(row, GPUS["h100"])
    }
    found = {
        ((case.kernel, case.kind, *([case.size] if case.size else [])), without_groups(case.launch()))
        for case in offered(family, GPUS["h100"])
    }
    assert found == rows


def test_every_ragged_form_that_an_h100_may_get_has_a_case() -> None:
    """Of those that are small enough."""
    found = {(case.family, case.kernel, case.kind, case.size, case.form) for case in offered("ragged", GPUS["h100"])}
    rows = {
        (family, *key, form)
        for family in FAMILIES
        for key, rows in forms(family, ragged=True).items()
        for form, row in rows.items()
        if candidates.fits(row, GPUS["h100"]) and (family != "persistent" or key[2] <= case_lists.LARGEST_OTHER)
    }
    assert found == rows


def test_ragged_cases_are_of_many_kinds() -> None:
    some = list(LISTS["ragged"]())
    assert {case.D for case in some} == {2}
    assert {case.ragged[0] - case.T for case in some} == {0, -1}
    for family in FAMILIES:
        own = [case for case in some if case.family == family]
        assert {case.ragged[1] == 1 for case in own} == {case.h0 for case in own} == {False, True}
        assert {case.parts is None for case in own if case.kernel == "backward"} == {False, True}


def test_every_form_of_the_single_step_has_cases() -> None:
    found = {(case.kind, case.form) for case in LISTS["single"]()}
    assert found == {(kind, name) for kind, rows in cases.single_forms().items() for name in rows}
    case = dataclasses.replace(next(LISTS["single"]()), form="gone")
    with pytest.raises(LookupError, match="no form gone"):
        case.single()


def test_each_16_bit_form_is_run_in_both_types() -> None:
    for name in ("resident", "stepwise"):
        types: dict[tuple[str, int | None, str], set[str]] = {}
        for case in LISTS[name]():
            if case.kind == "16-bit":
                types.setdefault((case.kernel, case.size, case.form), set()).add(case.dtype)
        assert set(map(frozenset, types.values())) == {frozenset({"bf16", "fp16"})}


def test_a_form_that_has_left_the_table_is_named() -> None:
    case = dataclasses.replace(ALL_CASES[0], form="7-4w-1s")
    with pytest.raises(LookupError, match="no resident form 7-4w-1s"):
        case.launch()


def test_a_second_run_has_nothing_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runner = FakeRunner()
    code, ran = run(tmp_path, runner)
    assert code == 0
    assert ran > 1
    rows = Table(tmp_path).rows("stepwise")
    assert len(rows) == ran
    assert rows[0]["parity"] == CLEAN.parity
    assert run(tmp_path, runner) == (0, 0)
    assert f"{ran} clean before" in capsys.readouterr().out
    assert Table(tmp_path).rows("stepwise") == rows


def test_other_code_or_another_setting_runs_again(tmp_path: Path) -> None:
    runner = FakeRunner()
    _, all_of_them = run(tmp_path, runner)
    runner.code = "b"
    assert run(tmp_path, runner) == (0, all_of_them)
    assert len(Table(tmp_path).rows("stepwise")) == all_of_them
    assert run(tmp_path, runner, "--seed", "1") == (0, all_of_them)
    assert run(tmp_path, runner, "--warps") == (0, all_of_them)
    assert run(tmp_path, runner, "--no-table") == (0, all_of_them)
    runner.triton = "3.8.0"
    assert run(tmp_path, runner) == (0, all_of_them)
    assert len(Table(tmp_path).rows("stepwise")) == 4 * all_of_them
    runner.triton = SETTING.triton
    assert run(tmp_path, runner) == run(tmp_path, runner, "--seed", "1") == (0, 0)


def fail(case: Case) -> Result:
    raise RuntimeError("planted")


@pytest.mark.parametrize(
    "find, words",
    [
        (lambda case: BAD, "1.50"),
        (lambda case: Result({"y": 0.1}, {"deadlock": 1}, lines=["where it was"]), "where it was"),
        (lambda case: Result({"y": float("inf")}), "inf"),
        (lambda case: Result({}), "inf"),
        (fail, "RuntimeError: planted"),
    ],
)
def test_a_bad_case_is_recorded_and_run_again(
    find: Callable[[Case], Result], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runner = FakeRunner()
    _, ran = run(tmp_path, runner)
    bad = runner.ran[0]
    runner.code, runner.find = "b", lambda case: find(case) if case == bad else CLEAN
    assert run(tmp_path, runner) == (1, ran)
    out = capsys.readouterr().out
    assert words in out
    assert f"{ran - 1} ok, 1 bad" in out
    rows = Table(tmp_path).rows("stepwise")
    assert [Case.from_json(row["case"]) for row in rows if not is_clean(row)] == [bad]
    assert run(tmp_path, runner) == (1, 1)
    runner.find = lambda case: CLEAN
    assert run(tmp_path, runner) == (0, 1)
    assert all(map(is_clean, Table(tmp_path).rows("stepwise")))


def test_parts_make_up_the_whole(tmp_path: Path) -> None:
    whole, parts = FakeRunner(), FakeRunner()
    run(tmp_path / "whole", whole)
    for i in range(3):
        run(tmp_path / "parts", parts, "--part", f"{i}/3")
    assert sorted(map(repr, parts.ran)) == sorted(map(repr, whole.ran))
    assert (tmp_path / "parts" / "stepwise.jsonl").read_bytes() == (tmp_path / "whole" / "stepwise.jsonl").read_bytes()


def test_a_spent_budget_stops_cleanly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runner = FakeRunner()
    assert run(tmp_path, runner, "--budget", "-1") == (0, 0)
    assert "left when the time was up" in capsys.readouterr().out


def test_only_what_contains_the_text(tmp_path: Path) -> None:
    runner = FakeRunner()
    run(tmp_path, runner, "--only", '"kernel": "backward"')
    assert {case.kernel for case in runner.ran} == {"backward"}


def test_rows_of_cases_in_no_list_can_be_dropped(tmp_path: Path) -> None:
    runner = FakeRunner()
    _, ran = run(tmp_path, runner)
    gone = dataclasses.replace(runner.ran[0], form="gone")
    Table(tmp_path).put(row_of(gone, SETTING, "a", CLEAN))
    assert len(Table(tmp_path).rows("stepwise")) == ran + 1
    assert run(tmp_path, runner, "--prune") == (0, 0)
    assert len(Table(tmp_path).rows("stepwise")) == ran


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    some = ALL_CASES[:40]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda case: Table(tmp_path).put(row_of(case, SETTING, "a", CLEAN)), some))
    rows = Table(tmp_path).rows("resident")
    assert {Case.from_json(row["case"]) for row in rows} == set(some)
    assert [path.name for path in tmp_path.iterdir()] == ["resident.jsonl"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "give a --list"),
        (["--list", "none"], "invalid choice"),
        (["--list", "extra", "--part", "2/2"], "should be I/N"),
        (["--list", "extra", "--seed", "-1"], "whole number"),
        (["--list", "extra", "--arch", "sm_75"], "invalid choice"),
        (["--list", "extra", "--results", __file__], "is not a folder"),
        (["--list", "extra", "--results", __file__ + "/below"], "is not a folder"),
    ],
)
def test_wrong_arguments_get_a_sentence(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        sweep.main(arguments)
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def test_a_choice_of_nothing_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, FakeRunner(), "--only", "nothing like it") == (2, 0)
    assert "no case" in capsys.readouterr().err


def test_a_damaged_table_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "resident.jsonl").write_text("<<<<<<< HEAD\n")
    with pytest.raises(SystemExit):
        sweep.main(["--list", "extra", "--results", str(tmp_path)])
    assert "line 1 of" in capsys.readouterr().err


PTX = """.version 8.7
.visible .entry kernel()
{
	.loc	1 {line} 0                          // kernel.py:{line}:0
$L__func_begin0:
	mov.u32 	%r1, {value};
$L__tmp0:
	bra $L__BB0_2;
$L__BB0_2:                              // %loop
	ret;
}
	.file	1 "{folder}/kernel.py"
	.section	.debug_abbrev
	{
.b8 {line}
	}
"""


def test_the_hash_is_of_the_code_alone() -> None:
    def text(**values: object) -> str:
        found = PTX
        for name, value in {"line": 7, "value": 1, "folder": "/a", **values}.items():
            found = found.replace(f"{{{name}}}", str(value))
        return code_of(found)

    assert text(line=8, folder="/b") == text()
    assert text(value=2) != text()
    assert "$L__BB0_2:" in text()


def committed() -> Iterator[tuple[str, list[Row]]]:
    return ((family, Table(FOLDER).rows(family)) for family in FILES)


def test_the_committed_table_is_clean_and_in_order() -> None:
    for family, rows in committed():
        for row in rows:
            assert is_clean(row), row
            assert row["case"]["family"] == family
        assert rows == sorted(rows, key=place_of)
        assert len(set(map(key_of, rows))) == len(rows)


def test_the_committed_table_has_no_forgotten_case() -> None:
    """``python tests/ptx/sweep.py --prune`` drops those."""
    known = set(ALL_CASES)
    for _, rows in committed():
        assert {Case.from_json(row["case"]) for row in rows} <= known


def test_the_committed_table_is_whole() -> None:
    for triton, arch, name in WHOLE:
        setting = Setting(triton, arch).to_json()
        asked = {key_of({"case": case.to_json(), **setting}) for case in offered(name, sweep.DEVICES[arch], triton)}
        assert asked <= {key_of(row) for _, rows in committed() for row in rows}, (triton, arch, name)

"""Wavefronts in the launch tables: what is asked of the script that counts, what is written, what the tables do with
it."""

import copy
import dataclasses
import json
import sys

import pytest

from bench.compile import __main__ as command
from bench.compile import persistent, readings, resident, tables, wavefronts
from bench.compile.machine_code import Facts
from tritongru.planning import triton_versions
from tritongru.planning.launches import BLOCK_B, Launch, launch_of, rows_of

# Answers like tests/ptx/sweep.py, each line with what its launch would have; ends where it should count 13 warps.
SCRIPT = """
import json, sys
assert sys.argv[1:] == ["--count", "--arch", "sm_90"], sys.argv
for line in sys.stdin:
    asked = json.loads(line)
    assert set(asked) == {"family", "kernel", "kind", "size", "launch"}
    launch = asked["launch"]
    if launch["num_warps"] == 13:
        sys.exit("no such launch")
    if launch["num_warps"] == 17:
        print(json.dumps({"error": "ValueError: too many warps"}), flush=True)
        continue
    count = asked["size"] + 100000 * launch["num_warps"] + 1000 * launch.get("stages", 0)
    print(json.dumps({"wavefronts": count, "least": 7, "barriers": 5}), flush=True)
"""


@pytest.fixture(autouse=True)
def script(tmp_path, monkeypatch):
    path = tmp_path / "sweep.py"
    path.write_text(SCRIPT)
    monkeypatch.setattr(wavefronts, "SCRIPT", path)


def expected(launch, size):
    return size + 100000 * launch.num_warps + 1000 * getattr(launch, "stages", 0)


VERSION = "3.9.0"
READING = {"shared_bytes": 9, "registers": 40, "instructions": 300, "barriers": 4, "tensor_core": 6, "loads": 3}


def row_of(**about):
    row = {"backend": "cuda", "kernel": "forward", "kind": "tf32", "hidden": 64, "chunks": [64], "num_warps": 4}
    reading = READING | {"stack": {"sm_90": 0}, "faults": []}
    versions = about.pop("readings", (VERSION,))
    return row | {"stages": 2} | about | {"readings": {version: copy.deepcopy(reading) for version in versions}}


@pytest.fixture
def table(monkeypatch):
    """Rows in the place of the resident table; `written` are its states on disk, one after the other."""
    rows = [row_of(num_warps=4 * (i % 4 + 1), hidden=32 + i) for i in range(5)]
    rows += [row_of(backend="hip", readings=())]
    written = []
    monkeypatch.setattr(wavefronts, "rows_of", lambda family: copy.deepcopy(rows))
    monkeypatch.setattr(wavefronts, "write", lambda family, found: written.append((family, copy.deepcopy(found))))
    monkeypatch.setattr(triton_versions, "installed", lambda: VERSION)
    return rows, written


@pytest.mark.parametrize("jobs", [1, 2, 3, 9])
def test_each_row_is_counted_once_and_written_as_it_comes(table, jobs, capsys):
    rows, written = table
    wavefronts.record(["resident"], jobs)
    assert [family for family, _ in written] == ["resident"] * 5
    for i, (_, found) in enumerate(written):
        counts = [row["readings"].get(VERSION, {}).get("wavefronts") for row in found]
        assert sum(count is not None for count in counts) == i + 1
        for row, count in zip(found, counts, strict=True):
            assert count in (None, row["hidden"] + 100000 * row["num_warps"] + 2000)
    last = written[-1][1]
    assert last[-1] == rows[-1], "AMD's have none"
    for row, before in zip(last, rows, strict=True):
        row["readings"].get(VERSION, {}).pop("wavefronts", None)
        assert row == before
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "Triton 3.9.0, resident: 5 of 5 rows to count"
    assert "  forward tf32 32, 4 warps: 402032 wavefronts, at least 7" in said


def test_the_same_command_continues_where_it_stopped(table, capfd):
    rows, written = table
    rows[3]["num_warps"] = 13
    with pytest.raises(SystemExit, match=r"^sweep.py ended before it had counted 2 of 5 launches$"):
        wavefronts.record(["resident"], 1)
    assert "no such launch" in capfd.readouterr().err
    assert len(written) == 3
    rows[:] = written[-1][1]
    rows[3]["num_warps"] = 8
    wavefronts.record(["resident"], 1)
    assert len(written) == 5
    wavefronts.record(["resident"], 1, again=True)
    assert len(written) == 10


def test_an_early_end_of_one_process_keeps_what_the_others_count(table):
    rows, written = table
    rows[0]["num_warps"] = 13
    with pytest.raises(SystemExit, match=r"counted 3 of 5 launches$"):
        wavefronts.record(["resident"], 2)
    assert len(written) == 2


def test_a_row_without_a_reading_is_refused(table):
    rows, written = table
    del rows[1]["readings"][VERSION]
    with pytest.raises(SystemExit, match=r"^1 rows of resident have no reading with Triton 3.9.0; read sm_90 first$"):
        wavefronts.record(["resident"], 1)
    assert written == []


@pytest.mark.parametrize("family", wavefronts.SIZES)
def test_a_line_says_all_that_a_launch_is_compiled_for(family):
    for row in rows_of(family)[::9]:
        if row["backend"] != "cuda":
            continue
        asked = json.loads(wavefronts.item_of(family, row).line)
        launch = asked.pop("launch")
        assert asked == {
            "family": family,
            "kernel": row["kernel"],
            "kind": row["kind"],
            "size": row["hidden" if family == "resident" else "units"],
        }
        made = type(launch_of(family, row))(
            **launch | {"chunks": tuple(launch["chunks"]), "spills_on": (), "faults": ()}
        )
        assert made == launch_of(family, row)


def test_counts_come_in_the_order_of_the_items():
    items = [wavefronts.item_of("resident", row) for row in rows_of("resident") if row["backend"] == "cuda"]
    assert wavefronts.counted(items, 3) == [expected(item.launch, item.size) for item in items]
    assert wavefronts.counted([]) == []


def test_a_new_reading_of_the_counted_chip_drops_the_wavefronts_and_other_chips_keep_them():
    before = row_of()["readings"][VERSION] | {"wavefronts": 9}
    found = {"plain": Facts(9, 0)}
    assert readings.reading_of(found, "sm_80", before)["wavefronts"] == 9
    assert "wavefronts" not in readings.reading_of(found, tables.HOME, before)


def test_wavefronts_belong_to_a_reading_not_to_a_row():
    assert tables.unread({"hidden": 64, "wavefronts": 3}) == {"hidden": 64, "readings": {}}


@pytest.mark.parametrize(
    "counted, version, stands",
    [
        ({}, "3.7.1", None),
        ({"3.7.1": 5}, "3.7.1", 5),
        ({"3.6.0": 4, "3.9.0": 7}, "3.7.1", 4),
        ({"3.6.0": 4, "3.9.0": 7}, "3.10.0", 7),
        ({"3.8.0": 6, "3.9.0": 7}, "3.7.1", 6),
    ],
)
def test_another_version_stands_in_where_one_has_no_wavefronts(counted, version, stands):
    row = row_of(readings=("3.6.0", "3.7.1", "3.8.0", "3.9.0"))
    for name, count in counted.items():
        row["readings"][name]["wavefronts"] = count
    assert launch_of("resident", row, version).wavefronts == stands


def test_a_launch_that_cannot_be_counted_ends_with_its_reason(table):
    rows, written = table
    rows[2]["num_warps"] = 17
    with pytest.raises(SystemExit, match=r'could not count .*"num_warps": 17.*: ValueError: too many warps$'):
        wavefronts.record(["resident"], 1)
    assert len(written) == 2, "those before it are kept"


# Rebuilt tables


def test_the_resident_table_puts_the_form_with_fewer_wavefronts_first(monkeypatch):
    """Without them, the form with fewer instructions."""
    facts = {1: Facts(9000, 0, 90, 300, 4, 6), 2: Facts(10000, 0, 90, 299, 4, 6)}

    def compile_kernel(kernel, hidden, dtype, launch, arch, **options):
        return facts.get(launch.stages, Facts(1 << 30, 0))

    monkeypatch.setattr(resident, "compile_kernel", compile_kernel)
    key = ("cuda", "forward", "16-bit", 96)
    good = resident.compiled(key)
    assert [launch.stages for launch, _ in good] == [2, 1]
    assert all((launch.instructions, launch.barriers) == (facts[launch.stages].instructions, 4) for launch, _ in good)
    assert [row["stages"] for row in resident.rows_for(key, good)] == [2, 1]
    found = resident.with_wavefronts({key: good, ("hip", *key[1:]): good})
    assert [launch.wavefronts for launch, _ in found["hip", *key[1:]]] == [None, None]
    assert [launch.wavefronts for launch, _ in found[key]] == [402096, 401096]
    rows = resident.rows_for(key, found[key])
    assert [(row["stages"], row["wavefronts"]) for row in rows] == [(1, 401096)], "the other needs more memory as well"


def test_a_launch_without_counts_is_placed_by_how_far_ahead_it_loads():
    near, far = (Launch((64,), BLOCK_B, 4, stages, 0, "ieee") for stages in (1, 2))
    assert resident.price(far) < resident.price(near)


def test_the_persistent_table_counts_its_candidates():
    launches = {units: [*persistent.candidates("forward", "tf32", units)][:3] for units in (256, 512)}
    good = {("forward", "tf32", units): tuple(own) for units, own in launches.items()}
    for (_, _, units), rows in persistent.with_wavefronts(good).items():
        for row, before in zip(rows, launches[units], strict=True):
            assert row == dataclasses.replace(before, wavefronts=expected(before, units))


# The command


@pytest.mark.parametrize(
    "arguments, asked",
    [
        ((), (["resident", "persistent"], 2, False)),
        (("--family", "persistent", "--jobs", "5"), (["persistent"], 5, False)),
        (("--again",), (["resident", "persistent"], 2, True)),
    ],
)
def test_the_command(arguments, asked, monkeypatch):
    calls = []
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(wavefronts, "record", lambda *given: calls.append(given))
    monkeypatch.setattr(sys, "argv", ["compile", "wavefronts", *arguments])
    assert command.main() == 0
    assert calls == [asked]


@pytest.mark.parametrize("family, counts", [("resident", 1), ("stepwise", 0)])
def test_a_table_made_anew_is_counted_as_well(family, counts, monkeypatch):
    calls = []
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setitem(
        command.FAMILIES, family, type("Family", (), {"make": staticmethod(lambda: calls.append("make"))})
    )
    monkeypatch.setattr(readings, "record", lambda *given: calls.append("read"))
    monkeypatch.setattr(wavefronts, "record", lambda *given: calls.append("count"))
    monkeypatch.setattr(sys, "argv", ["compile", "table", family])
    assert command.main() == 0
    assert calls == ["make", "read", "count"][: 2 + counts]

"""Whose readings of the tables count, and what the plan offers by them."""

import logging

import pytest

from bench.compile.machine_code import Facts
from bench.compile.readings import CHIPS, HOME, RAGGED, reading_of
from bench.compile.tables import as_read_with
from tritongru.planning import candidates, triton_versions
from tritongru.planning.devices import GPUS
from tritongru.planning.launches import FAMILIES, SPARED, launch_of, read_with, rows_of, tritons_read
from tritongru.planning.plan import plan

pytestmark = pytest.mark.quick

KNOWN = ("3.6.0", "3.7.1", "3.9.0")


@pytest.mark.parametrize(
    "version, stands",
    [
        (None, "3.9.0"),
        ("3.6.0", "3.6.0"),
        ("3.7.0", "3.7.1"),
        ("3.7.1+git8a2b", "3.7.1"),
        ("3.8.0", "3.7.1"),
        ("3.10.2", "3.9.0"),
        ("4.0.0", "3.9.0"),
        ("3.5.1", "3.6.0"),
        ("3.8rc1", "3.7.1"),
        ("", "3.9.0"),
        ("unknown", "3.9.0"),
    ],
)
def test_the_newest_reading_that_is_not_newer_stands(version, stands):
    assert triton_versions.nearest(version, KNOWN) == stands
    assert triton_versions.nearest(version, KNOWN[::-1]) == stands


def test_of_one_minor_version_the_very_one_or_the_newest_stands():
    known = ("3.7.2", "3.7.1", "3.7.10")
    assert [triton_versions.nearest(version, known) for version in ("3.7.1", "3.7.2", "3.7.3")] == [
        "3.7.1",
        "3.7.2",
        "3.7.10",
    ]


@pytest.mark.parametrize("version, notes", [("3.10.2", 1), ("3.8.0", 1), ("3.7.0", 0), (None, 0)])
def test_another_triton_is_a_note_in_the_log(version, notes, monkeypatch, caplog):
    monkeypatch.setattr(triton_versions, "installed", lambda: version)
    with caplog.at_level(logging.INFO, "tritongru"):
        triton_versions.read_with(KNOWN)
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == notes
    assert all(version in text and "using those for Triton 3" in text for text in texts)
    assert all(record.levelno == logging.INFO for record in caplog.records)


def test_the_installed_triton_is_found_under_any_name(monkeypatch):
    import importlib.metadata

    def version(name):
        if name != "pytorch-triton-rocm":
            raise importlib.metadata.PackageNotFoundError(name)
        return "3.7.1"

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert triton_versions.installed.__wrapped__() == "3.7.1"
    monkeypatch.setattr("tritongru.planning.triton_versions.DISTRIBUTIONS", ("triton",))
    assert triton_versions.installed.__wrapped__() is None


@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_has_readings_of_every_triton_for_the_chip_that_is_counted(family):
    minors = {triton_versions.minor_of(version) for version in tritons_read()}
    assert {(3, 6), (3, 7), (3, 9)} <= minors
    assert len(minors) == len(tritons_read()), "one reading for each minor version"
    assert read_with() in tritons_read()
    for row in rows_of(family):
        if row["backend"] == "cuda":
            assert tuple(row["readings"]) == tritons_read(), "in order, none missing"
        assert row["readings"]
        for reading in row["readings"].values():
            chips = CHIPS[row["backend"]]
            assert set(reading["stack"]) <= set(chips)
            assert min(reading["stack"].values(), default=0) >= 0
            if HOME in chips:
                assert reading["stack"][HOME] % 8 == 0
                assert min(reading[name] for name in ("registers", "instructions", "barriers", "tensor_core")) > 0
                assert_one_of_ragged_rows(reading[RAGGED])
            if "wavefronts" in reading:
                assert (family, row["backend"]) in (("resident", "cuda"), ("persistent", "cuda"))
                assert reading["wavefronts"] > 0
        for chip in {*CHIPS[row["backend"]]} - {chip for r in row["readings"].values() for chip in r["stack"]}:
            most = max(gpu.shared_bytes for gpu in GPUS.values() if gpu.family == chip)
            assert all(reading["shared_bytes"] > most for reading in row["readings"].values()), (chip, row)


def assert_one_of_ragged_rows(reading):
    assert set(reading) == {"shared_bytes", "registers", "faults", "stack"}
    assert reading["shared_bytes"] > 0
    assert 0 < reading["registers"] <= 255
    assert all(stack >= 0 == stack % 8 for stack in reading["stack"].values())
    assert HOME in reading["stack"]


def test_readings_of_ragged_forms_leave_the_others_alone():
    before = {"shared_bytes": 9, "registers": 90, "stack": {HOME: 0, "sm_80": 8}, "faults": [], "wavefronts": 7}
    first = {"ragged": Facts(10, 0, 200), "ragged-aligned": Facts(12, 8, 190, faults=("fence",))}
    found = reading_of(first, HOME, before)
    read = {"shared_bytes": 12, "registers": 200, "faults": ["fence"], "stack": {HOME: 8}}
    assert found == {**before, RAGGED: read}
    found = reading_of({"ragged": Facts(14, 16, 255)}, "sm_80", found)
    assert found == {**before, RAGGED: {**read, "shared_bytes": 14, "stack": {HOME: 8, "sm_80": 16}}}
    again = reading_of({"ragged": Facts(10, 0, 200)}, HOME, found)
    assert again[RAGGED] == {"shared_bytes": 10, "registers": 200, "faults": [], "stack": {HOME: 0}}
    whole = reading_of({"plain": Facts(5, 0, 50, 6, 7, 8, 9), **first}, HOME, found)
    assert "wavefronts" not in whole
    assert (whole["registers"], whole["stack"], whole[RAGGED]) == (50, {HOME: 0}, read)


@pytest.mark.parametrize("version", tritons_read())
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_for_ragged_rows_has_the_readings_of_its_ragged_form(family, version):
    """On a chip that has none the other form's stand."""
    differ = 0
    for row in (row for row in rows_of(family) if row["backend"] == "cuda"):
        reading = row["readings"][version]
        plain, ragged = (launch_of(family, row, version, ragged=ragged) for ragged in (False, True))
        differ += plain != ragged
        assert ragged.shared_bytes == reading[RAGGED]["shared_bytes"]
        assert ragged.faults == tuple(reading[RAGGED]["faults"])
        assert getattr(ragged, "registers", None) in (None, reading[RAGGED]["registers"])
        for chip, stack in reading[RAGGED]["stack"].items():
            assert (chip in ragged.spills_on) == (stack > SPARED), (chip, row)
        unread = set(CHIPS["cuda"]) - {chip for one in row["readings"].values() for chip in one[RAGGED]["stack"]}
        assert set(plain.spills_on) & unread == set(ragged.spills_on) & unread
    assert differ > 0


def test_a_ragged_form_may_keep_a_few_registers_on_the_stack():
    """By its own readings, and where it has none by the other form's, of which none may be there."""
    row = next(row for row in rows_of("stepwise") if row["backend"] == "cuda")
    for stack, of_others, spills in ((0, 0, False), (SPARED, 0, False), (SPARED + 8, 0, True), (SPARED, 8, False)):
        reading = row["readings"]["3.7.1"] | {"stack": {HOME: of_others}}
        reading[RAGGED] = reading[RAGGED] | {"stack": {HOME: stack}}
        odd = row | {"readings": {"3.7.1": reading}}
        assert (HOME in launch_of("stepwise", odd, "3.7.1", ragged=True).spills_on) == spills
        assert (HOME in launch_of("stepwise", odd, "3.7.1").spills_on) == (of_others > 0)
    reading = row["readings"]["3.7.1"] | {"stack": {HOME: 0, "sm_86": 8}}
    odd = row | {"readings": {"3.7.1": reading}}
    assert launch_of("stepwise", odd, "3.7.1", ragged=True).spills_on == ("sm_86",)


@pytest.mark.parametrize("version", tritons_read())
@pytest.mark.parametrize("family", FAMILIES)
def test_no_form_that_spills_or_is_faulty_is_offered(family, version):
    """By the readings of each Triton, whichever is installed."""
    device, refused = GPUS["h200"], 0
    for row in rows_of(family):
        if row["backend"] == "cuda":
            reading = row["readings"][version]
            sound = not reading["stack"][HOME] and not reading["faults"]
            room = reading["shared_bytes"] <= device.shared_bytes
            assert candidates.fits(launch_of(family, row, version), device) == (sound and room)
            refused += not sound
    if version.startswith("3.6") and family == "stepwise":
        wide = [row for row in rows_of(family) if row["block_b"] >= 64 and row["kind"] != "ieee"]
        assert all(row["readings"][version]["faults"] == ["fence"] for row in wide)
        assert refused == len(wide) > 0


@pytest.mark.parametrize("version", tritons_read())
def test_the_plan_takes_what_its_triton_compiles_well(version):
    """Shapes whose best form under one Triton spills or is faulty under another get another form there."""
    shapes = ((64, "float16", 16), (768, "bfloat16", 300), (1024, "float32", 64), (4096, "bfloat16", 64))
    with as_read_with(version):
        for hidden, dtype, batch in shapes:
            answer = plan(hidden, dtype, GPUS["h200"], batch=batch, impl="triton")
            for found in (answer.forward, answer.backward):
                assert found is not None, answer.reason
                assert HOME not in found.launch.spills_on
                assert not found.launch.faults

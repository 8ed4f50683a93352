"""The performance page: it says what the rows say, and where there is none that there is none."""

import re
from pathlib import Path

import pytest

from bench.measure import ceilings, rows
from bench.measure.cases import Case
from bench.measure.workloads import WORKLOADS, workload_cases
from bench.pages import evidence, marks, performance, performance_figures, without_gpu
from bench.suites import SUITES, sweep

ROOT = Path(__file__).parents[2]
PARTS = performance.PARTS | without_gpu.PARTS
WHERE = dict.fromkeys(rows.WHERE_KEYS, "here") | {"gpu": "GPU X", "commit": "abc", "date": "2026-01-01", "seed": 1}
LIMITS = {
    name: ceilings.Ceiling(1.0, 0.0, 7, rate)
    for name, rate in ((ceilings.COPY, 4e12), *((kind, 5e14) for kind in ceilings.KINDS.values()))
}
# A number with the unit of a measurement.
MEASURED = re.compile(r"\d[\d.,]*(?: ?(?:x\b|us\b|µs|ms\b|[GT]B/s|TFLOP|%|MiB)| (?:s|seconds|times faster)\b)")


def rows_of(case, ours, theirs, family="persistent", where=WHERE, **others):
    """As a run writes them."""
    floor_ms, bound = ceilings.least(case, LIMITS, None)
    about = {"floor_ms": floor_ms, "bound": bound, "spread": 0.01, "rounds": 7}
    made = [
        rows.row(case, "tritongru", where, family=family, parity=0.5, ms=ours, peak_mib=50.0, **about),
        rows.row(case, "nn.GRU", where, family="torch", parity=0.5, ms=theirs, peak_mib=100.0, **about),
    ]
    for name, ms in others.items():
        name = name.replace("_", "-")
        if isinstance(ms, str):
            made.append(rows.row(case, name, where, family="torch", parity=None, reason=ms, how="asked nicely"))
        else:
            made.append(rows.row(case, name, where, family="torch", parity=None, ms=ms, how="asked nicely", **about))
    return made


@pytest.fixture(scope="module")
def whole():
    """Rows of everything, ours three times faster but in one case."""
    cases = dict.fromkeys(case for jobs in SUITES.values() for case, _ in jobs())
    made = [ceilings.row_of(name, found, WHERE) for name, found in LIMITS.items()]
    for case in cases:
        made += rows_of(case, 2.0, 6.0, gru_qat=4.0, TorchRL=5.0, haste="not installed", floor=0.5)
    made += rows_of(SLOW, 8.0, 6.0)
    made.append(rows.row(LEFT, "tritongru[triton]", WHERE, family="persistent", parity=0.5, ms=12.0))
    made += rows_of(LEFT, 6.0, 6.0, family="torch")
    for name in ("host-persistent-forward-whole", "first-forward-h128-fp32"):
        made.append(rows.shapeless(name, "tritongru", WHERE, ms=0.055, spread=0.1, rounds=9))
    return made


SLOW = workload_cases()[0]
LEFT = Case(2048, 128, 512, "bf16", "train")


def test_without_rows_every_part_says_so():
    for name, part in PARTS.items():
        text = part([])
        if name in ("cases", "given_to_torch"):
            continue
        assert re.search(r"No row( of a GPU)? exists yet", text), name
        assert not MEASURED.search(text)
    assert "no speed-up is claimed" in performance.headline([])
    assert all(draw([]) is None for draw in performance_figures.FIGURES.values())


def test_rows_of_a_cpu_are_no_evidence_of_a_gpu():
    case = next(w for w in WORKLOADS if w.label == "electricity").case("forward", "fp32")
    made = rows_of(case, 2.0, 2.1, "torch", WHERE | {"gpu": None, "cpu": "CPU Y"})
    assert "No row of a GPU exists yet" in performance.workloads(made)
    assert "One thread of the CPU CPU Y" in without_gpu.cpu(made)
    assert "| electricity, forward | torch | 2 | 0.01 | 1.05x |" in without_gpu.cpu(made)
    assert "no speed-up is claimed" in performance.headline(made)
    assert performance.unknown(made) == performance.unknown([])
    assert "No row exists yet" in without_gpu.cpu(rows_of(case, 2.0, 2.1)), "that GPU's machine has a CPU, too"


def test_what_is_unknown_is_counted(whole):
    assert performance.unknown(whole) == []
    lacking = performance.unknown([])
    counts = {suite: len(jobs()) for suite, jobs in SUITES.items()}
    for suite, number in counts.items():
        assert any(f"0 of {number} cases measured on a GPU (suite `{suite}`)" in line for line in lacking)
    some = [row for row in whole if row["case"] != SLOW.name]
    assert performance.unknown(some) == [
        f"{performance.ASKED['workloads']}: {counts['workloads'] - 1} of {counts['workloads']} cases measured on a GPU "
        "(suite `workloads`)"
    ]


def test_the_tables_hold_ratios_floors_rivals_and_reasons(whole):
    text = performance.workloads(whole)
    assert f"brain-to-text decoder, {evidence.MODES['train']} | bf16 | persistent | 8 | 6 | 0.75x |" in text
    other = workload_cases()[2]
    floors = 2.0 / ceilings.least(other, LIMITS, None)[0]
    assert f"| 2 | 6 | 3.00x | gru-qat 2.00x | {floors:.1f} | operations | 0.50x |" in text
    mean = (3.0 ** (len(WORKLOADS) - 1) * 0.75) ** (1 / len(WORKLOADS))
    assert f"{mean:.2f}x nn.GRU's speed in the geometric mean of {len(WORKLOADS)}, 0.75x in the worst" in text
    assert "GPU X, driver here, torch here, Triton here, cuDNN here; commit abc; 2026-01-01" in text
    others = performance.rivals(whole)
    assert "| wavernn | 2.00x | 2.50x | - |" in others
    assert "- gru-qat: asked nicely" in others
    assert "- no time: haste: not installed (brain-to-text, speech-decoder" in others
    assert "| RNNoise, forward | 3.00x | 3.00x | 3.00x | 3.00x |" in performance.precisions(whole)
    assert "| copy | 4,000 | 10^9 bytes a second, read and written |" in performance.floor(whole)
    assert "| host-persistent-forward-whole | 55.0 | 0.10 |" in without_gpu.calls(whole)
    assert f"{mean:.2f}x as long as ours" in performance.headline(whole)


def test_every_case_below_one_is_listed_with_what_auto_does(whole):
    text = performance.slower(whole)
    assert f"| {SLOW.name} | 0.75x | runs persistent |" in text
    assert f"| {LEFT.name} | 0.50x | runs torch |" in text
    assert text.count("0.75x") == text.count("0.50x") == 1
    faster = [row for row in whole if row["case"] not in (SLOW.name, LEFT.name)]
    assert "in none of" in performance.slower(faster)


def spread_of(rows, *spreads):
    return [row | {"spread": spread} for row, spread in zip(rows, spreads, strict=True)]


@pytest.mark.parametrize(
    ("theirs", "spreads", "text"),
    [
        (6.0, (0.1, 0.1), "3.00x"),
        (2.18, (0.1, 0.1), "about 1"),
        (2.22, (0.1, 0.1), "1.11x"),
        (1.82, (0.0, 0.2), "about 1"),
        (1.8, (0.2, 0.0), "0.90x"),
        (2.18, (None, 0.1), "1.09x"),
    ],
)
def test_a_ratio_inside_its_spread_is_about_one(theirs, spreads, text):
    """Half of each spread is what a median may be off."""
    case = next(case for case in workload_cases("fp32-tf32") if case.label == "rnnoise" and case.mode == "train")
    made = spread_of(rows_of(case, 2.0, theirs), *spreads)
    assert f"| {text} |" in performance.workloads(made)
    assert f"| RNNoise, training step | - | {text} |" in performance.precisions(made)
    assert f", in the worst {text} (rnnoise)" in performance.headline(made)
    on_cpu = [row | {"case": "gtcrn-fp32-train", "gpu": None, "cpu": "CPU Y"} for row in made]
    assert f"| {text} |" in without_gpu.cpu(on_cpu)
    below = performance.slower(made)
    assert (f"| {case.name} | {text} |" in below) is (theirs < 2.0)
    mean = re.search(r"training step takes nn.GRU ([\d.]+)x as long", performance.headline(made))
    assert float(mean[1]) == pytest.approx(theirs / 2.0, abs=0.005), "a mean stays a number"


def test_numbers_are_never_written_with_exponents():
    found = [evidence.number(value) for value in (None, 0.0123, 12.3, 999.4, 1234.5, 45_406.3)]
    assert found == ["-", "0.0123", "12.3", "999", "1,234", "45,406"]


def test_the_growth_is_the_power_between_the_last_two_points():
    assert evidence.exponent([(1, 5.0), (4, 1.0), (16, 16.0)]) == pytest.approx(2.0)
    assert evidence.exponent([(1, 5.0)]) is None
    made = []
    for case in sweep("time"):
        made += rows_of(case, 2.0 * case.time, 3.0)
    text = performance.scaling(made)
    assert f"| time, {evidence.MODES['train']} | 65,536 | 1.00 | 0.00 |" in text
    assert "| hidden" not in text


def test_a_later_row_counts_and_each_gpu_has_its_own_table(whole):
    case = workload_cases()[2]
    later = rows_of(case, 1.0, 6.0, where=WHERE | {"commit": "def"})
    assert "| 1 | 6 | 6.00x |" in performance.workloads([*whole, *later])
    assert "commit def; " in performance.workloads([*rows_of(case, 2.0, 6.0), *later]), "of what is shown alone"
    other = rows_of(case, 1.0, 6.0, where=WHERE | {"gpu": "GPU Z"})
    text = performance.workloads([*whole, *other])
    assert text.count("GPU X, driver") == text.count("GPU Z, driver") == 1


def test_what_the_plan_gives_to_torch_has_no_number_of_time():
    text = without_gpu.given_to_torch([])
    assert "`h2048-b128-t512-bf16-train`" in text
    assert not MEASURED.search(text)


@pytest.mark.slow
def test_figures_are_drawn_from_the_rows_of_one_machine(whole):
    pytest.importorskip("matplotlib")
    for draw in performance_figures.FIGURES.values():
        made = draw(whole)
        assert b"GPU X" in made
        assert draw(whole) == made
    changed = [row | {"ms": 1.5} if row["case"] == SLOW.name else row for row in whole]
    assert performance_figures.headline(changed) != performance_figures.headline(whole)


SETTINGS = {"95 %", "10 %", "90 %"}  # of an interval, and of what is held out: nothing that was measured
PAGES = ["README.md", *sorted(f"docs/{name}.md" for name in ("index", "performance", "models", "rivals"))]


@pytest.mark.parametrize("page", PAGES)
def test_no_measured_number_is_typed_by_hand(page):
    path = ROOT / page
    found = [match[0] for match in MEASURED.finditer(marks.outside(path.read_text()))]
    assert not set(found) - SETTINGS, "a number with a unit belongs between marks, where `bench plot` puts it"


@pytest.mark.parametrize("text", ["it is 2.5x faster", "takes 12 us", "in 3 seconds", "99.5 % of it", "4,000 GB/s"])
def test_such_a_number_would_be_found(text):
    assert MEASURED.search(text)
    assert not MEASURED.search("H = 1,024, B = 64 and 2 directions on an H200 in 16 bit")

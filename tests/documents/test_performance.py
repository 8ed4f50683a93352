"""The performance pages: they say what the rows say, and without rows that nothing was measured."""

import re
from pathlib import Path

import pytest

from bench.analysis import reasons
from bench.measure import ceilings, rows
from bench.measure.cases import Case
from bench.measure.workloads import CPU_WORKLOADS, WORKLOADS, workload_cases
from bench.pages import evidence, marks, performance, performance_figures, readme
from bench.pages.cpu import older
from bench.pages.gpu import listed, page
from bench.suites import SUITES, sweep

ROOT = Path(__file__).parents[2]
PARTS = performance.PARTS | page.PARTS | listed.PARTS | older.PARTS
NOT_MEASURED = {"cases", "given_to_torch", "missing"}  # parts that say something without rows
WHERE = dict.fromkeys(rows.WHERE_KEYS, "here") | {"gpu": "GPU X", "commit": "abc", "date": "2026-01-01", "seed": 1}
LIMITS = {
    name: ceilings.Ceiling(1.0, 0.0, 7, rate)
    for name, rate in ((ceilings.COPY, 4e12), *((kind, 5e14) for kind in ceilings.KINDS.values()))
}
# A number with the unit of a measurement.
MEASURED = re.compile(
    r"\d[\d.,]*(?: ?(?:x\b|us\b|µs|ms\b|[GT]B/s|TFLOP|%|MiB)| (?:s|seconds|milliseconds|microseconds|times faster)\b)"
)


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


def test_no_page_speaks_of_the_rows_of_tune(tmp_path):
    """Its rows of nn.GRU are of cases that pages show."""
    tuned = WHERE | {"command": "python3 -m bench tune --budget 9"}
    file = rows.RowFile(tmp_path / "tune-gpu-x-2026-01-01.jsonl")
    for row in (*rows_of(next(iter(sweep("time"))), 2.0, 6.0, where=tuned), *rows_of(SLOW, 2.0, 6.0)):
        file.append(row)
    assert {row["case"] for row in evidence.everything(tmp_path)} == {SLOW.name}


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
        assert name == "cases" or not MEASURED.search(text), name
        if name not in NOT_MEASURED:
            assert re.fullmatch(
                r"(No CPU measurements yet\.|No GPU measurements yet\.|Not measured yet\.|\n\n)+", text
            ), name
    assert "- Any GPU." in performance.missing([])
    assert all(draw([]) is None for draw in performance_figures.FIGURES.values())


def test_rows_of_a_cpu_are_no_evidence_of_a_gpu():
    case = next(w for w in WORKLOADS if w.label == "electricity").case("forward", "fp32")
    made = rows_of(case, 2.0, 2.1, "torch", WHERE | {"gpu": None, "cpu": "CPU Y"})
    assert page.workloads(made) == "Not measured yet."
    assert performance.on_gpu(made) == "No GPU measurements yet."
    assert "One thread of the CPU CPU Y" in older.torch_path(made)
    assert "| electricity demand, fp32, forward | torch | 2 | 0.01 | 1.05x |" in older.torch_path(made)
    assert performance.unknown(made) == performance.unknown([])
    assert older.torch_path(rows_of(case, 2.0, 2.1)) == "Not measured yet.", "that GPU's machine has a CPU, too"


def test_what_is_unknown_is_counted(whole):
    assert performance.unknown(whole) == []
    lacking = performance.unknown([])
    counts = {suite: len(jobs()) for suite, jobs in SUITES.items()}
    for suite, number in counts.items():
        assert any(f"{number} of {number} {performance.ASKED[suite]} (suite `{suite}`)" in line for line in lacking)
    some = [row for row in whole if row["case"] != SLOW.name]
    line = f"on a GPU: 1 of {counts['workloads']} {performance.ASKED['workloads']} (suite `workloads`)"
    assert performance.unknown(some) == [line]
    listed = performance.missing(some).splitlines()
    assert listed[-2:] == ["- GPUs other than GPU X.", f"- {line[0].upper()}{line[1:]}."]


def test_the_tables_hold_ratios_floors_rivals_and_reasons(whole):
    text, bounds = page.workloads(whole), page.bounds(whole)
    training, forward = text.split("**Forward passes**")
    assert "| brain-to-text decoder | 8 | 6 | 0.75x | gru-qat 0.50x |" in training
    assert "| brain-to-text decoder | 2 | 6 | 3.00x | gru-qat 2.00x |" in forward
    assert "| brain-to-text decoder, training step | bf16 | persistent |" in bounds
    other = workload_cases()[2]
    floors = 2.0 / ceilings.least(other, LIMITS, None)[0]
    assert (
        f"| neural speech decoder, training step | fp32-tf32 | persistent | {floors:.1f} | operations | 0.50x |"
        in bounds
    )
    mean = (3.0 ** (len(WORKLOADS) - 1) * 0.75) ** (1 / len(WORKLOADS))
    assert f"**Training steps**: {mean:.2f}x in the geometric mean of {len(WORKLOADS)} workloads" in training
    assert f"**Forward passes**: 3.00x in the geometric mean of {len(WORKLOADS)} workloads" in text
    summary = performance.on_gpu(whole)
    assert f"| GPU X | {len(WORKLOADS)} | {mean:.2f}x | 0.75x (brain-to-text decoder) | 3.00x (" in summary
    for one in (text, summary):
        assert "GPU X, driver here, torch here, Triton here, cuDNN here; commit abc; 2026-01-01" in one
    others = page.rivals(whole)
    assert "| workload | gru-qat | TorchRL |" in others, "haste has no time"
    assert "| WaveRNN | 2.00x | 2.50x |" in others
    assert "- gru-qat: asked nicely." in others
    assert "- Not installed: haste." in others
    assert "| RNNoise, forward | 3.00x | 3.00x | 3.00x | 3.00x |" in page.precisions(whole)
    assert "| large copy | 4,000 | 10^9 bytes/s, read and written |" in page.floor(whole)
    calls = listed.calls(whole)
    assert "| persistent kernels, forward, until the call returns | 55.0 | 0.10 |" in calls
    assert "| first call of a process, forward, H = 128, fp32 | 55.0 | 0.10 |" in calls


def test_the_readme_claims_what_rows_allow(whole):
    on_a_cpu = rows_of(SLOW, 2.0, 2.1, "torch", WHERE | {"gpu": None, "cpu": "CPU Y"})
    for none in (readme.measured([]), readme.measured(on_a_cpu)):
        assert "| NVIDIA GPU, AMD GPU | the same kernels | not measured yet |" in none.replace(OTHER_CPUS, "")
        assert not MEASURED.search(none)
    counts = {mode: len([case for case in workload_cases() if case.mode == mode]) for mode in ("forward", "train")}
    slow = (3.0 ** (counts["train"] - 1) * 0.75) ** (1 / counts["train"])
    forward, train = (f"{counts[mode]} workloads)" for mode in ("forward", "train"))
    cells = f"3.00x (3.00x to 3.00x, {forward} | {slow:.2f}x (0.75x to 3.00x, {train}"
    assert f"| NVIDIA GPU | one Triton kernel | GPU X | {cells} |" in readme.measured(whole)
    unsure = readme.measured(spread_of(rows_of(SLOW, 2.0, 2.18), 0.1, 0.1))
    assert "| GPU X | - | 1.09x (about 1 to about 1, 1 workload) |" in unsure, "a mean stays a number"


OTHER_CPUS = "x86-64 CPU with AVX-512, x86-64 CPU with AVX2, x86-64 CPU with SSE2, Arm CPU with NEON, "


def test_in_its_own_precision_alone_a_workload_has_no_second_table():
    own = workload_cases()[0]
    assert page.precisions(rows_of(own, 2.0, 6.0)) == "Not measured yet."
    other = WORKLOADS[0].case("train", "fp16")
    text = page.precisions([*rows_of(own, 2.0, 6.0), *rows_of(other, 2.0, 5.0)])
    assert "| workload | fp16 | bf16 |" in text
    assert text.endswith("| brain-to-text decoder, training step | 2.50x | 3.00x |")


def test_every_case_below_one_is_listed_with_what_auto_does(whole):
    text = performance.slower(whole)
    assert "| brain-to-text decoder, training step | 0.75x | tritongru's persistent kernels |" in text
    assert "| H = 2,048, B = 128, T = 512, bf16, training step | 0.50x | torch's GRU |" in text
    assert text.count("0.75x") == text.count("0.50x") == 1
    every = len({row["case"] for row in whole if row["hidden"] is not None})
    assert f"**GPU X**: 2 of {every} calls." in text
    faster = [row for row in whole if row["case"] not in (SLOW.name, LEFT.name)]
    assert performance.slower(faster).endswith(f"**GPU X**: none of {every - 2} calls.")


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
    assert f"| RNNoise | 2 | {evidence.number(theirs)} | {text} | - |" in page.workloads(made)
    assert f"| {text} (RNNoise) | {text} (RNNoise) |" in performance.on_gpu(made)
    on_cpu = [row | {"case": "gtcrn-fp32-train", "gpu": None, "cpu": "CPU Y"} for row in made]
    assert f"| {text} |" in older.torch_path(on_cpu)
    below = performance.slower(made)
    assert (f"| RNNoise, training step | {text} |" in below) is (theirs < 2.0 and text != "about 1")
    unsure = 'none of 1 calls, and 1 more within the noise ("about 1").'
    assert below.endswith(unsure) is (theirs < 2.0 and text == "about 1")
    mean = re.search(r"\| GPU X \| 1 \| ([\d.]+)x \|", performance.on_gpu(made))
    assert float(mean[1]) == pytest.approx(theirs / 2.0, abs=0.005), "a mean stays a number"


# Reasons


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("gru-qat is not installed; pip install gru-qat", reasons.NOT_INSTALLED),
        ("the kernels of torchrl need a GPU", "needs a GPU"),
        ("no time to ask for it alone after: no answer within 2 s, killed", "not timed, because the time budget"),
        ("left out from gtcrn-fp32-train on: no answer within 11 s, killed", "no answer within the time limit"),
        ("one call takes 6.8 s, and no more than 3 s are spent on one", "one call takes longer than 3 s"),
        ("a graph of about 240,000 launches is left out; 100,000 are the most", "more than 100,000 launches"),
        ("d h_0: error 4.03e-06, torch's 4.29e-07, allowed 4.02e-06", "the error exceeds the limit"),
        ("something else: it broke", "something else: it broke"),
    ],
)
def test_reasons_are_in_plain_words_and_what_is_unknown_stays(reason, words):
    assert words in reasons.plain(reason)


def test_a_reason_is_one_line_for_all_that_have_it():
    late, gone = "no time to ask for it alone after: no answer within {} s, killed", "{} is not installed; install it"
    untimed = [(name, case, gone.format(name)) for name in ("a", "b") for case in ("one", "two")]
    untimed += [(name, "three", late.format(7)) for name in ("a", "c")]
    untimed += [("c", case, "broke") for case in ("one", "two", "three", "four", "five")]
    untimed += [("d", case, "broke") for case in ("one", "two", "three", "four", "five", "six")]
    assert reasons.condensed(untimed, 6) == [
        "- Not installed on this machine: a, b.",
        "- Not timed, because the time budget of the run had ended: c (three).",
        "- Broke: c (5 of 6); d.",
    ]


def test_how_something_was_called_is_said_once_with_all_versions():
    said = [("x", "x 1: as it is"), ("x", "x 2: as it is"), ("y", "plainly")]
    assert reasons.hows(said) == ["- x: as it is (x 1; x 2).", "- y: plainly."]


def test_workloads_of_one_source_are_one_line():
    text = listed.cases([])
    sources = {workload.source for workload in (*WORKLOADS, *CPU_WORKLOADS)}
    assert all(text.count(f": {source}.") == 1 for source in sources)
    assert text.count("\n- **") == len(sources)
    zone = "- **H = 144, B = 44 to H = 192, B = 128 (9 sizes)** (I = H = 144, 160 or 192, B = 44, 64 or 128, T = 512, "
    assert zone in text


def test_numbers_are_never_written_with_exponents():
    found = [evidence.number(value) for value in (None, 0.0123, 12.3, 999.4, 1234.5, 45_406.3)]
    assert found == ["-", "0.0123", "12.3", "999", "1,234", "45,406"]


def test_the_growth_is_the_power_between_the_last_two_points():
    assert evidence.exponent([(1, 5.0), (4, 1.0), (16, 16.0)]) == pytest.approx(2.0)
    assert evidence.exponent([(1, 5.0)]) is None
    made = []
    for case in sweep("time"):
        made += rows_of(case, 2.0 * case.time, 3.0)
    text = page.scaling(made)
    assert f"| time, {evidence.MODES['train']} | 65,536 | 1.00 | 0.00 |" in text
    assert "| hidden" not in text


def test_a_later_row_counts_and_each_gpu_has_its_own_table(whole):
    case = workload_cases()[2]
    later = rows_of(case, 1.0, 6.0, where=WHERE | {"commit": "def"})
    assert "| neural speech decoder | 1 | 6 | 6.00x |" in page.workloads([*whole, *later])
    assert "| 6.00x (neural speech decoder) |" in performance.on_gpu([*whole, *later])
    for text in (page.workloads([*rows_of(case, 2.0, 6.0), *later]), performance.on_gpu([*whole, *later])):
        assert "def; " in text
    assert "commit def; " in page.workloads([*rows_of(case, 2.0, 6.0), *later]), "of what is shown alone"
    other = rows_of(case, 1.0, 6.0, where=WHERE | {"gpu": "GPU Z"})
    for text in (page.workloads([*whole, *other]), performance.on_gpu([*whole, *other])):
        assert text.count("GPU X, driver") == text.count("GPU Z, driver") == 1


def test_what_the_plan_gives_to_torch_has_no_number_of_time():
    text = listed.given_to_torch([])
    assert "- H = 2,048, B = 128, T = 512, bf16, training step" in text
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


SETTINGS = {"95 %", "10 %", "80 %", "90 %", "2 MiB", "32 MiB"}  # of an interval, what is held out, pages of memory
QUOTES = "guides/troubleshooting"  # of messages, which test_snippets.py holds against the sources
GUIDES = {f"{path.parent.name}/{path.stem}" for path in (ROOT / "docs").glob("[gs]*/*.md")} - {QUOTES}
NAMES = ("index", "performance", "models", "rivals", "data/cpu", "data/gpu", "data/launches", "data/study", *GUIDES)
PAGES = ["README.md", *sorted(f"docs/{name}.md" for name in NAMES)]


@pytest.mark.parametrize("page", PAGES)
def test_no_measured_number_is_typed_by_hand(page):
    path = ROOT / page
    found = [match[0] for match in MEASURED.finditer(marks.outside(path.read_text()))]
    assert not set(found) - SETTINGS, "a number with a unit belongs between marks, where `bench plot` puts it"


@pytest.mark.parametrize("text", ["it is 2.5x faster", "takes 12 us", "in 3 seconds", "99.5 % of it", "4,000 GB/s"])
def test_such_a_number_would_be_found(text):
    assert MEASURED.search(text)
    assert not MEASURED.search("H = 1,024, B = 64 and 2 directions on an H200 in 16 bit")

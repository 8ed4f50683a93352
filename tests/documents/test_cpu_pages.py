"""The loop for CPUs in the documents: every ratio in its place, with the machine that it was measured on."""

import re
import statistics

import pytest

from bench.commands import plot
from bench.measure import rows
from bench.measure.cpu.cells import BATCHES, HIDDEN, grid, workloads
from bench.measure.cpu.rows import ours, ours_row, timed_row
from bench.measure.cpu.timing import Times
from bench.pages import figures, performance, readme
from bench.pages.cpu import figures as drawing
from bench.pages.cpu import hosts, page

WHERE = dict.fromkeys(rows.WHERE_KEYS, "here") | {"gpu": None, "cpu": "CPU X (kind)", "torch": "2.99"}
WHERE |= {"llvmlite": "0.49", "commit": "abc1234", "date": "2026-01-01"}
THREADS = (1, 8)


def row_of(cell, threads, gru, lstm=2.0, ms=1.0, isa="avx2", where=WHERE, spread=0.01, parity=0.5, **more):
    """Of ours, as a run writes it."""
    times = Times(1.1 * ms, ms, 0.05, 9) if parity <= 1 else None
    about = {"family": "llvm", "parity": parity, "reason": None if parity <= 1 else "output: error 1"}
    made = timed_row(cell, ours(isa), threads, 0.5, where, times, about)
    ratios = {"nn.GRU": gru, "nn.LSTM": lstm} | {name.replace("_", "-"): ratio for name, ratio in more.items()}
    over = {name: (r, r * (1 - spread), r * (1 + spread)) for name, r in ratios.items() if r is not None}
    return ours_row(made, cell, isa, None, over)


def ratio_of(cell, threads):
    """Another of every cell, mode and number of threads."""
    place = HIDDEN.index(cell.case.hidden) * len(BATCHES) + BATCHES.index(cell.case.batch)
    return 1.5 + place / 10 + 3 * (cell.case.mode == "train") + 6 * (threads > 1)


def grid_rows(factor=1.0, **about):
    return [row_of(cell, threads, factor * ratio_of(cell, threads), **about) for threads in THREADS for cell in grid()]


@pytest.fixture(scope="module")
def whole():
    return grid_rows()


def replaced(made, cell, threads, **about):
    name = cell.row_name(threads)
    return [row_of(cell, threads, **about) if row["case"] == name else row for row in made]


def draw(made, threads):
    pytest.importorskip("matplotlib")
    (name,) = [name for name in drawing.of_rows(made) if name.endswith(f"-{threads}-thread{'s' * (threads > 1)}.svg")]
    return drawing.of_rows(made)[name](made)


@pytest.fixture(scope="module")
def pictures(whole):
    return {threads: draw(whole, threads) for threads in THREADS}


def panels(svg):
    """Of each panel, from above, the texts of its cells: a line for each H from below, a column for each B."""
    texts = re.findall(
        r'<text style="[^"]*" x="([\d.]+)" y="([\d.]+)"[^>]*>(\d+\.\d+x|about 1|red|-)</text>', svg.decode()
    )
    assert len(texts) == 50
    columns, lines = (apart([float(text[k]) for text in texts]) for k in (0, 1))
    assert (len(columns), len(lines)) == (5, 10)
    at = {(nearest(lines, float(y)), nearest(columns, float(x))): text for x, y, text in texts}
    assert len(at) == 50
    return [[[at[5 * panel + 4 - line, column] for column in range(5)] for line in range(5)] for panel in range(2)]


def apart(values):
    """One of each group of values that lie within a few points."""
    found = []
    for value in sorted(values):
        if not found or value - found[-1] > 8:
            found.append(value)
    return found


def nearest(places, value):
    return min(range(len(places)), key=lambda k: abs(places[k] - value))


def expected(threads):
    by = {(c.case.mode, c.case.hidden, c.case.batch): f"{ratio_of(c, threads):.2f}x" for c in grid()}
    return [[[by[mode, H, B] for B in BATCHES] for H in HIDDEN] for mode in ("forward", "train")]


# The figure


@pytest.mark.parametrize("threads", THREADS)
def test_every_ratio_stands_in_its_cell(pictures, threads):
    """Of its threads, forward above training."""
    svg = pictures[threads]
    assert panels(svg) == expected(threads)
    assert svg.index(b">forward<") < svg.index(b">training step<")
    assert f"CPU X (kind), AVX2, {threads} thread".encode() in svg
    assert b"<image" not in svg, "a picture of pixels would be blurred, and other bytes elsewhere"
    ground = re.search(rb'<g id="patch_1">\s*<path d="[^"]*" style="([^"]*)"', svg)
    assert ground[1] == b"fill: #ffffff", "what is dark around it must not shine through"


def test_the_colour_is_that_of_the_ratio_in_the_cell(whole):
    (cell,) = (c for c in grid() if (c.case.hidden, c.case.batch, c.case.mode) == (16, 256, "train"))
    svg = draw(replaced(whole, cell, 8, gru=0.05), 8).decode()
    x, y = map(float, re.search(r'x="([\d.]+)" y="([\d.]+)"[^>]*>0\.05x<', svg).groups())
    boxes = []
    for points in re.findall(rf'<path d="([^"]*)"[^>]*style="fill: {drawing.BETWEEN[0]}', svg):
        xs, ys = ([float(value) for value in re.findall(r"-?[\d.]+", points)[k::2]] for k in (0, 1))
        boxes.append(min(xs) < x < max(xs) and min(ys) < y < max(ys))
    assert sum(boxes) == 1
    assert len(boxes) == 2, "that cell, and the end of the scale"


def test_a_changed_row_changes_the_figure_of_its_threads_alone(whole, pictures):
    cell = grid()[7]
    changed = replaced(whole, cell, 8, gru=ratio_of(cell, 8) + 0.5)
    assert figures.same(draw(changed, 1), pictures[1])
    after = draw(changed, 8)
    assert figures.origin(after)[0] != figures.origin(pictures[8])[0]
    assert panels(after) != expected(8)


def test_what_is_red_or_missing_has_no_ratio(whole):
    cell, other = grid()[0], grid()[2]
    made = replaced(whole, cell, 8, gru=99.0, parity=1.5)
    made = [row for row in made if row["case"] != other.row_name(8)]
    svg = draw(made, 8)
    texts = [text for panel in panels(svg) for line in panel for text in line]
    assert (texts.count("red"), texts.count("-")) == (1, 1)
    assert b"99.00x" not in svg
    (view,) = [view for view in hosts.views(made) if view.threads == 8]
    assert "in the geometric mean of 23 of 25 sizes" in page.summary(view)
    assert "99.00x" not in readme.headline(made) + readme.measured(made)


@pytest.mark.parametrize(
    ("ratio", "spread", "text"), [(1.05, 0.04, "1.05x"), (1.05, 0.06, "about 1"), (0.9, 0.2, "about 1")]
)
def test_a_ratio_inside_its_interval_is_about_one(whole, ratio, spread, text):
    cell = grid()[-1]
    made = replaced(whole, cell, 8, gru=ratio, spread=spread)
    assert text in panels(draw(made, 8))[1][HIDDEN.index(cell.case.hidden)]
    assert f"({text} to " in readme.measured(made)


def test_the_caption_names_machine_versions_date_and_commit(whole):
    text = readme.headline(whole)
    assert "CPU X (kind), AVX2, 8 threads, torch 2.99, llvmlite 0.49; commit abc1234; 2026-01-01." in text
    assert "](docs/figures/loop-cpu-x-kind-avx2-8-threads.svg)" in text
    assert "1-thread.svg" not in text
    ratios = {mode: [ratio_of(c, 8) for c in grid() if c.case.mode == mode] for mode in ("forward", "train")}
    means = {mode: f"{statistics.geometric_mean(own):.2f}x" for mode, own in ratios.items()}
    assert f"geometric mean: forward {means['forward']}, training step {means['train']}. " in text
    ends = {mode: f"({min(own):.2f}x to {max(own):.2f}x, 25 sizes)" for mode, own in ratios.items()}
    cells = " | ".join(f"{means[mode]} {ends[mode]}" for mode in ratios)
    line = f"| x86-64 CPU with AVX2 | the loop, compiled by LLVM | CPU X (kind), 8 threads | {cells} |"
    told = readme.measured(whole)
    assert told.startswith("| you run on | what runs | measured on | forward | training step |\n")
    assert line in told
    rest = "x86-64 CPU with AVX-512, x86-64 CPU with SSE2, Arm CPU with NEON, NVIDIA GPU, AMD GPU"
    assert f"| {rest} | the same kernels | not measured yet |  |  |\n" in told
    assert "\n\nSpeedup over `nn.GRU`: the geometric mean and, in brackets, the range." in told
    assert "\n\nSpeedup over `nn.GRU` (its time divided by ours), geometric mean: " in text
    least, most = (f"{end(ratios['train']):.2f}x" for end in (min, max))
    everything = page.grids(whole)
    assert everything.index("8-threads.svg") < everything.index("1-thread.svg")
    assert "AVX2, 1 thread, torch" in everything
    assert f"from {least} (H = 16, B = 1) to {most} (H = 512, B = 256)." in everything


def test_the_summary_has_a_line_for_each_number_of_threads(whole):
    text = performance.on_cpu(whole)
    assert text.startswith(
        "| CPU | forward: mean (lowest to highest) | training step: mean (lowest to highest) | sizes |"
    )
    assert [line[0] for line in lines_of(text)[2:]] == ["CPU X (kind), AVX2, 8 threads", "CPU X (kind), AVX2, 1 thread"]
    for line, threads in zip(lines_of(text)[2:], (8, 1), strict=True):
        for cell, mode in zip(line[1:3], ("forward", "train"), strict=True):
            ratios = [ratio_of(c, threads) for c in grid() if c.case.mode == mode]
            assert cell == f"{statistics.geometric_mean(ratios):.2f}x ({min(ratios):.2f}x to {max(ratios):.2f}x)"
        assert line[3] == "25 of 25"
    assert "](figures/loop-cpu-x-kind-avx2-8-threads.svg)" in text
    assert "1-thread.svg" not in text
    assert "CPU X (kind), AVX2, 8 threads, torch 2.99, llvmlite 0.49; commit abc1234; 2026-01-01." in text
    cell = grid()[0]
    some = replaced(whole, cell, 8, gru=1.02, spread=0.1)
    some = [row for row in some if row["case"] != grid()[2].row_name(8)]
    (first, *_) = lines_of(performance.on_cpu(some))[2:]
    assert "(about 1 to " in first[1]
    assert first[3] == "24 of 25, 25 of 25"


def test_what_is_slower_is_listed_with_what_auto_runs(whole, monkeypatch):
    assert performance.slower(whole).startswith("**CPU X (kind), AVX2, 8 threads**: none of 50 calls.")
    large = next(c for c in grid() if (c.case.hidden, c.case.batch, c.case.mode) == (512, 4, "forward"))
    tiny = next(c for c in workloads() if (c.case.label, c.case.mode) == ("streaming", "train"))
    made = [*replaced(whole, large, 8, gru=0.5), row_of(tiny, 8, 0.25)]
    made = replaced(made, grid()[0], 8, gru=0.95, spread=0.1)
    made = replaced(made, large, 1, gru=0.4)
    asked = []
    monkeypatch.setattr(performance, "refusal_by_size", lambda *size: asked.append(size) or "x" * (size[1] == 256))
    text = performance.slower(made)
    assert text.startswith('**CPU X (kind), AVX2, 8 threads**: 2 of 51 calls, and 1 more within the noise ("about 1").')
    assert lines_of(text)[2:] == [
        ["streaming, one step, training step", "0.25x", "torch's GRU"],
        ["H = 512, B = 4, forward", "0.50x", "tritongru's loop"],
    ]
    assert ("avx2", 256, True, 1, 1, 8) in asked
    assert ("avx2", 512, False, 100, 4, 8) in asked
    assert "0.40x" not in text, "of all threads alone"


def test_what_no_row_tells_is_counted(whole):
    made = [row for row in whole if row["case"] != grid()[0].row_name(1)]
    lines = performance.missing(made).splitlines()
    n = len(workloads())
    assert f"- CPU X (kind), AVX2, 8 threads: {n} of {n} calls of real workloads." in lines
    assert f"- CPU X (kind), AVX2, 1 thread: 1 of 50 calls of the grid and {n} of {n} calls of real workloads." in lines
    assert "- CPUs with AVX-512 or SSE2 or NEON." in lines
    assert f"- CPU X (kind), AVX2, 1 and 8 threads: {n} of {n} calls of real workloads." in performance.missing(whole)


# Several machines


def test_the_readme_shows_a_cpu_that_no_ratio_chooses(whole):
    few = [row for row in grid_rows(9.0, where=WHERE | {"cpu": "A few"}) if "h512" not in row["case"]]
    wide = {"isa": "avx512", "where": WHERE | {"cpu": "Wide"}}
    beside = grid_rows(9.0, where=WHERE | {"cpu": "Wide"})  # the same CPU, compiled for AVX2

    def shown(made):
        return page.chosen(hosts.views(made), grid()).name

    assert shown([*few, *whole]) == "CPU X (kind), AVX2, 8 threads", "the most cells"
    assert shown([*whole, *beside, *grid_rows(0.5, **wide)]) == "Wide, AVX-512, 8 threads", "then the best set"
    more = [row | {"threads": 16, "case": row["case"].replace("8-threads", "16-threads")} for row in whole]
    more = [row | {"cpu": "Z"} for row in more]
    assert shown([*whole, *more]) == "Z, AVX2, 16 threads", "then the most threads"
    assert shown([*whole, *grid_rows(where=WHERE | {"cpu": "Another"})]) == "Another, AVX2, 8 threads", "then by name"
    text = page.grids([*whole, *beside, *grid_rows(0.5, **wide)])
    names = re.findall(r"figures/loop-([\w-]+)\.svg", text)
    assert names == [
        *("wide-avx512-8-threads", "wide-avx512-1-thread", "wide-avx2-8-threads", "wide-avx2-1-thread"),
        *("cpu-x-kind-avx2-8-threads", "cpu-x-kind-avx2-1-thread"),
    ]
    assert {f"loop-{name}.svg" for name in names} == {*drawing.of_rows([*whole, *beside, *grid_rows(0.5, **wide)])}


def test_a_later_row_counts(whole):
    later = grid_rows(2.0, where=WHERE | {"commit": "def5678", "date": "2026-01-02"})
    assert "commit def5678; 2026-01-02." in readme.headline([*whole, *later])
    assert draw([*whole, *later], 8) == draw(later, 8)


# Workloads


def test_the_five_are_of_five_fields_and_both_modes():
    cells = page.five().values()
    assert len({cell.case.label for cell in cells}) == len(page.FIVE) == 5
    assert {cell.case.mode for cell in cells} == {"forward", "train"}


def test_without_rows_there_is_one_sentence_for_each(whole):
    assert page.grids([]) == page.workloads([]) == page.workloads(whole) == "Not measured yet."
    assert performance.on_cpu([]) == "No CPU measurements yet."
    assert readme.headline([]) == "No measurements yet."
    assert performance.five([]) == performance.five(whole) == "Not measured yet."


def lines_of(text):
    return [[part.strip() for part in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


def test_the_table_of_five_has_times_and_ratios_in_their_columns(whole):
    cells = list(page.five().values())
    made = [row_of(cells[0], t, 3.0 + t, lstm=1.5 + t, ms=12.0 / t) for t in THREADS]
    made += [row_of(cells[1], 8, 1.02, lstm=0.8, ms=7.0, spread=0.05)]
    made += [row_of(cells[2], 1, 99.0) | {"parity": 1.5}, row_of(cells[2], 8, 4.0, ms=5.0)]
    head, _, *lines = lines_of(performance.five([*whole, *made]))
    assert head[1:] == [
        *("1 thread: tritongru, ms", "nn.GRU", "nn.LSTM"),
        *("8 threads: tritongru, ms", "nn.GRU", "nn.LSTM"),
    ]
    assert [line[0].split(": ")[0] for line in lines] == [*page.FIVE]
    assert lines[0][1:] == ["12", "4.00x", "2.50x", "1.5", "11.00x", "9.50x"]
    assert lines[1][1:] == ["-", "-", "-", "7", "about 1", "0.80x"]
    assert lines[2][1:] == ["-", "red", "red", "5", "4.00x", "2.00x"]
    assert lines[3][1:] == lines[4][1:] == ["-"] * 6
    assert "CPU X (kind), AVX2, fp32; torch 2.99, llvmlite 0.49; commit abc1234; 2026-01-01." in performance.five(made)


def test_all_workloads_stand_in_a_table_for_each_number_of_threads(whole):
    first, second, third, *others = workloads()
    onnx = timed_row(first, "onnxruntime", 8, 0.5, WHERE, None, {"family": "torch", "parity": None, "how": "as it is"})
    made = [
        *(row_of(first, t, 2.0 + t, lstm=1.5, ms=3.0 / t) for t in THREADS),
        row_of(second, 8, 5.0, torch_compile=1.25)
        | {"over": {"nn.GRU": [5.0, 4.0, 6.0], "torch.compile": [0.9, 0.8, 1.2]}},
        row_of(third, 8, 7.0, parity=1.5),
        onnx | {"reason": "not installed"},
    ]
    all_threads, one, how = page.workloads([*whole, *made]).split("</details>")[:3]
    every = 3 + len(others)
    assert f"<details markdown open>\n<summary>CPU X (kind), AVX2, 8 threads: 3 of {every} calls<" in all_threads
    assert f"<details markdown>\n<summary>CPU X (kind), AVX2, 1 thread: 1 of {every} calls<" in one
    assert "CPU X (kind), AVX2, 8 threads, torch 2.99" in all_threads
    assert lines_of(one)[0] == ["workload", "tritongru, ms", "nn.GRU", "nn.LSTM"]
    assert [line[1:] for line in lines_of(one)[2:]] == [["3", "3.00x", "1.50x"]]
    head, _, *lines = lines_of(all_threads)
    assert head[2:] == ["nn.GRU", "nn.LSTM", "onnxruntime", "torch.compile"]
    assert [line[0] for line in lines] == [page.title_of(cell) for cell in (first, second, third)]
    assert [line[1:] for line in lines] == [
        ["0.375", "10.00x", "1.50x", "-", "-"],
        ["1", "5.00x", "-", "-", "about 1"],
        ["-", *["red"] * 4],
    ]
    assert "- onnxruntime: as it is." in how
    assert f"- Not installed: onnxruntime ({page.title_of(first)})." in all_threads
    assert f"- Output: error 1: ours ({page.title_of(third)})." in all_threads


# Which rows are read


def test_rows_of_other_runs_are_no_rows_of_the_loop(whole, tmp_path):
    file = rows.RowFile(tmp_path / "run-cpu-x.jsonl")
    case = grid()[0].case
    file.append(rows.row(case, "tritongru", WHERE, family="torch", parity=0.1))
    file.append(whole[0])
    assert hosts.read(tmp_path) == [whole[0]]
    kinds = {page.kind: page for page in plot.PAGES}
    counts = {kind: len(kinds[kind].read(tmp_path)) for kind in ("loop", "older", "gpu", "performance", "headline")}
    assert counts == {"loop": 1, "older": 1, "gpu": 1, "performance": 2, "headline": 2}

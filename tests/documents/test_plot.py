"""Documents hold what their rows give, and nothing that no row supports."""

import dataclasses
import sys
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.commands import plot
from bench.compile.tables import PAGE
from bench.pages import figures, kernels, marks
from tritongru.planning import candidates
from tritongru.planning.devices import GPUS
from tritongru.planning.launches import launch_of, rows_of

ROOT = Path(__file__).parents[2]
ROWS = [{"x": 1, "y": 2.0}, {"x": 2, "y": 3.0}]


def draw(rows):
    """A figure of a line, or none without rows."""
    if not rows:
        return None
    with figures.canvas(2, 2) as figure:
        axes = figure.subplots()
        axes.plot([row["x"] for row in rows], [row["y"] for row in rows])
        figures.plain(axes)
        return figures.svg(figure, "A line", figures.digest(rows, ("x", "y")))


def page_of(rows):
    parts = {"count": lambda rows: f"{len(rows)} rows"}
    return plot.Page("page.md", "kind", Path("rows"), lambda folder: rows, parts, {"line.svg": draw})


@pytest.fixture
def root(tmp_path):
    (tmp_path / "page.md").write_text("# Title\n\n<!-- kind: count -->\n\n7 rows\n\n<!-- end -->\n\nBy hand\n")
    return tmp_path


@pytest.mark.parametrize("page", plot.PAGES, ids=lambda page: page.kind)
def test_committed_documents_are_what_their_rows_give(page):
    pytest.importorskip("matplotlib")
    stale = [path.name for path, content in plot.made(page) if plot.differs(path, content)]
    assert not stale, "`python -m bench plot` regenerates them"


def predictions(text):
    """Family -> lines of the generated tables, their figures as numbers."""
    found = {}
    for line in text.splitlines():
        if line.startswith("<summary>"):
            lines = found.setdefault(line.removeprefix("<summary>").split()[0].lower(), [])
        elif line.startswith("| ") and not line.startswith(("| kernel", "| ---")):
            cells = line.strip("| ").split(" | ")
            lines.append((*cells[:4], *map(float, cells[4:])))
    return found


def test_predicted_times_are_what_the_page_says_of_their_terms():
    text = kernels.predicted([])
    found = predictions(text)
    assert [*found] == ["resident", "persistent", "stepwise"]
    for family, lines in found.items():
        assert f"{family.capitalize()} family: {len(lines)} forms" in text
        assert lines
        for *_, us, exchange, l2, tensor, shared, issue, barriers in lines:
            if family == "resident":
                expected = max(shared, issue) + barriers
            elif family == "persistent":
                assert min(exchange, l2, tensor, shared, issue, barriers) > 0
                expected = exchange + 0.2 + l2 + max(tensor, shared, issue) + barriers
            else:
                expected = max(l2, tensor, 15)
            assert us == pytest.approx(expected, abs=0.003)


def test_every_launch_that_an_h100_may_use_has_a_predicted_time():
    found = predictions(kernels.predicted([]))
    device = GPUS["h100"]
    for family, lines in found.items():
        offered = [launch_of(family, row, PAGE) for row in rows_of(family) if row["backend"] == "cuda"]
        assert len(lines) == len({line[:4] for line in lines})
        assert len(lines) == sum(candidates.fits(launch, device) for launch in offered)


def test_wavefronts_are_shown_and_priced_where_they_were_counted(monkeypatch):
    row = next(row for row in rows_of("resident") if row["backend"] == "cuda")
    monkeypatch.setattr(kernels, "rows_of", lambda family: [row] if family == "resident" else [])
    for reading in row["readings"].values():
        reading.pop("wavefronts", None)
    assert kernels.launches([], "resident").splitlines()[-3].endswith(" | - |")
    row["readings"]["3.9.0"]["wavefronts"] = 19800
    assert kernels.launches([], "resident").splitlines()[-3].endswith(" | 19800 |")
    (line,) = predictions(kernels.predicted([]))["resident"]
    assert line[8] == 10.0, "a clock each, at 1980 MHz"
    assert line[4] == pytest.approx(10.0 + line[-1])


def test_every_figure_belongs_to_a_page():
    named = {name for page in plot.PAGES for name in page.drawings(page.read(page.folder))}
    assert {path.name for path in (ROOT / plot.FIGURES).iterdir()} <= named


def test_pages_and_figures_follow_their_rows(root, capsys):
    pytest.importorskip("matplotlib")
    figure = root / plot.FIGURES / "line.svg"
    assert plot.plot(True, root, [page_of(ROWS)]) == 1
    assert not figure.exists()
    assert capsys.readouterr().out == ("2 files do not match the rows: page.md, docs/figures/line.svg.\n")
    assert plot.plot(False, root, [page_of(ROWS)]) == 0
    assert (root / "page.md").read_text() == ("# Title\n\n<!-- kind: count -->\n\n2 rows\n\n<!-- end -->\n\nBy hand\n")
    assert plot.plot(True, root, [page_of(ROWS)]) == 0
    assert plot.plot(True, root, [page_of([ROWS[0], ROWS[1] | {"y": 3.1}])]) == 1
    assert plot.plot(False, root, [page_of([])]) == 0
    assert not figure.exists(), "a figure that no row supports any more"


def test_figures_that_rows_name_come_and_go_with_them(root, capsys):
    pytest.importorskip("matplotlib")
    folder = root / plot.FIGURES
    folder.mkdir(parents=True)
    for name in ("one-7.svg", "other.svg"):
        (folder / name).write_text("<svg/>")

    def of_rows(rows):
        return {f"one-{row['x']}.svg": draw for row in rows}

    def page(rows):
        return dataclasses.replace(page_of(rows), figures={}, of_rows=of_rows, prefix="one-")

    assert plot.plot(True, root, [page(ROWS)]) == 1
    assert "one-1.svg, docs/figures/one-2.svg, docs/figures/one-7.svg." in capsys.readouterr().out
    assert (folder / "one-7.svg").exists()
    assert plot.plot(False, root, [page(ROWS)]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["one-1.svg", "one-2.svg", "other.svg"]
    assert plot.plot(True, root, [page(ROWS)]) == 0
    assert plot.plot(False, root, [page(ROWS[:1])]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["one-1.svg", "other.svg"]


def test_a_figure_is_the_same_bytes_again_and_carries_what_it_shows():
    pytest.importorskip("matplotlib")
    made = draw(ROWS)
    assert made == draw(ROWS)
    assert figures.origin(made)[0] == figures.digest(ROWS, ("x", "y"))
    assert b"<dc:date>" not in made
    older = made.replace(b"Matplotlib v", b"Matplotlib v0.") + b"<!-- drawn otherwise -->"
    assert figures.same(made, older)
    assert not figures.same(made, made + b"\n")
    other = draw([ROWS[0], ROWS[1] | {"y": 3.1}])
    assert not figures.same(other, older)


def test_a_figure_is_opaque_whatever_the_users_style(monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    made = draw(ROWS)
    monkeypatch.setitem(matplotlib.rcParams, "savefig.facecolor", "black")
    monkeypatch.setitem(matplotlib.rcParams, "text.color", "red")
    assert draw(ROWS) == made
    assert matplotlib.rcParams["text.color"] == "red"
    assert made.count(b"fill: #ffffff") == 2, "of the figure and of its axes"


@pytest.mark.parametrize(
    ("places", "found"),
    [
        ([0.5, 0.1, 0.9], [0.5, 0.1, 0.9]),
        ([0.5, 0.5, 0.0], [0.4, 0.6, 0.0]),
        ([1.2, 0.95, 0.3], [1.0, 0.8, 0.3]),
        ([0.0, 0.05, 0.1], [0.0, 0.2, 0.4]),
    ],
)
def test_names_beside_lines_keep_apart_and_near(places, found):
    assert figures.spread(places, 0.2) == pytest.approx(found)


def test_a_long_text_is_broken_into_lines_that_fit():
    pytest.importorskip("matplotlib")
    with figures.canvas(2, 2) as figure:
        lines = figures.fitting(["word " * 12, "end"], figure, 10).splitlines()
    assert lines == ["word word word word", *["word word word word"] * 2, "end"]


@pytest.mark.parametrize("text", ["", "<!-- kind: other -->\n<!-- end -->\n<!-- kind: count -->\n<!-- end -->"])
def test_marks_and_parts_have_to_agree(text):
    with pytest.raises(LookupError, match="marks and parts of 'kind' differ"):
        marks.filled(text, "kind", page_of([]).parts, [])


def test_without_matplotlib_one_sentence(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["plot"]) == 2
    assert capsys.readouterr().out == 'The figures need matplotlib; install it with: pip install -e ".[demo]"\n'

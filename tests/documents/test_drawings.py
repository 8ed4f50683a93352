"""Drawings are the same bytes again, and every figure is shown by a page."""

import re
from pathlib import Path

import pytest

from bench.commands import plot
from bench.pages import drawings, figures
from bench.pages.drawings import cpu_tile, exchange, sheet

ROOT = Path(__file__).parents[2]
DRAWINGS = {name: draw for own in drawings.OF_PAGES.values() for name, draw in own.items()}


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_drawing_is_the_same_bytes_again_and_depends_on_no_measurement(name):
    pytest.importorskip("matplotlib")
    made = DRAWINGS[name]([])
    assert made == DRAWINGS[name]([{"x": 1}])
    digests = {figures.origin(draw([]))[0] for draw in DRAWINGS.values()}
    assert len(digests) == len(DRAWINGS)
    assert "" not in digests


@pytest.mark.parametrize("name", DRAWINGS)
def test_texts_of_a_drawing_are_large_enough_and_overlap_nowhere(name, monkeypatch):
    pytest.importorskip("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    found = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", DRAWINGS[name]([]).decode())]
    assert min(found) >= sheet.SMALL
    monkeypatch.setattr(sheet, "svg", lambda figure, title, shown: figure)
    figure = DRAWINGS[name]([])
    renderer = FigureCanvasAgg(figure).get_renderer()
    texts = [text for axes in figure.axes for text in axes.texts if text.get_text()]
    places = [text.get_window_extent(renderer) for text in texts]
    for k, place in enumerate(places):
        assert figure.bbox.x0 < place.x0 < place.x1 < figure.bbox.x1, texts[k]
        assert figure.bbox.y0 < place.y0 < place.y1 < figure.bbox.y1, texts[k]
        assert not any(place.overlaps(other) for other in places[:k]), texts[k]


GATES = {"update gate": "z", "reset gate": "r", "forget gate": "f", "input gate": "i", "output gate": "o"}


def test_gates_carry_the_letters_of_the_equations():
    pytest.importorskip("matplotlib")
    made = DRAWINGS["drawing-gru-lstm.svg"]([]).decode()
    texts = re.findall(r">([^<>]+)</(?:text|tspan)>", made)
    for gate, letter in GATES.items():
        assert texts[texts.index(gate) + 1] == f"{letter} = \u03c3(\u00b7)"
    assert [text for text in texts if text.endswith("= tanh(\u00b7)")] == ["n = tanh(\u00b7)", "g = tanh(\u00b7)"]
    assert "1 \u2212 z" in texts


def test_drawings_show_the_sizes_of_the_code():
    assert cpu_tile.R * cpu_tile.V + cpu_tile.V + 1 == cpu_tile.REGISTERS
    assert exchange.H == (exchange.LAST + 1) * exchange.UNITS


def test_a_tint_lies_between_white_and_its_colour():
    assert (sheet.tint("#0072b2", 0), sheet.tint("#0072b2", 1)) == ("#ffffff", "#0072b2")


def test_every_figure_is_shown_by_a_page_with_words_for_it():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    shown = {
        (page.parent / target).resolve().name
        for page in pages
        for words, target in re.findall(r"!\[([^\]]*)\]\(([^)]+\.svg)\)", page.read_text())
        if words
    }
    assert {path.name for path in (ROOT / plot.FIGURES).glob("*.svg")} <= shown


@pytest.mark.parametrize("page", drawings.OF_PAGES)
def test_a_page_shows_its_own_drawings(page):
    text = (ROOT / "docs" / f"{page}.md").read_text()
    assert all(f"](figures/{name})" in text for name in drawings.OF_PAGES[page])

"""``python -m bench plot``: every generated part of the documents and every figure, from committed rows alone."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.compile import compile_seconds as compile_times
from bench.measure.rows import Row, read_all
from bench.pages import (
    demo,
    drawings,
    evidence,
    figures,
    kernels,
    models,
    performance,
    performance_figures,
    readme,
    sequences,
    study,
)
from bench.pages import numerics as numerics_page
from bench.pages.cpu import figures as cpu_figures
from bench.pages.cpu import hosts, older
from bench.pages.cpu import page as cpu_page
from bench.pages.gpu import listed
from bench.pages.gpu import page as gpu_page
from bench.pages.marks import Part, filled
from bench.pages.study import figures as study_figures
from bench.study import numerics

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"
FIGURES = Path("docs") / "figures"
Draw = Callable[[Sequence[Row]], bytes | None]  # None if there are no rows to draw
Figures = Mapping[str, Draw]


@dataclass(frozen=True)
class Page:
    """A document, and the parts of it made from the rows in a folder."""

    file: str
    kind: str  # of its marks
    folder: Path
    read: Callable[[Path], list[Row]]
    parts: Mapping[str, Part]
    figures: Figures
    of_rows: Callable[[Sequence[Row]], Figures] | None = None  # further figures, as many as the rows allow,
    prefix: str = ""  # whose names begin so

    def drawings(self, rows: Sequence[Row]) -> dict[str, Draw]:
        return {**self.figures, **(self.of_rows(rows) if self.of_rows else {})}


def no_rows(folder: Path) -> list[Row]:
    """What a drawing depends on."""
    return []


PAGES = (
    Page(
        "docs/numerics.md",
        "numerics",
        RESULTS / "numerics",
        numerics.read,
        numerics_page.PARTS,
        numerics_page.FIGURES,
    ),
    Page("docs/kernels.md", "kernels", RESULTS / "compile", compile_times.read, kernels.PARTS, {}),
    Page("docs/data/launches.md", "launches", RESULTS / "compile", compile_times.read, kernels.LAUNCHES, {}),
    Page(
        "docs/performance.md",
        "performance",
        RESULTS,
        evidence.everything,
        performance.PARTS,
        performance_figures.FIGURES,
    ),
    Page("docs/performance.md", "models", RESULTS / "models", read_all, models.PARTS, {}),
    Page("docs/data/gpu.md", "gpu", RESULTS, evidence.read, gpu_page.PARTS | listed.PARTS, {}),
    Page("docs/data/cpu.md", "older", RESULTS, evidence.read, older.PARTS, {}),
    Page(
        "docs/data/cpu.md",
        "loop",
        RESULTS,
        hosts.read,
        cpu_page.PARTS,
        {},
        cpu_figures.of_rows,
        cpu_figures.PREFIX,
    ),
    Page("README.md", "headline", RESULTS, evidence.everything, readme.PARTS, {}),
    Page("README.md", "sequences", RESULTS / "sequences", read_all, sequences.SUMMARY, {}),
    Page("docs/guides/sequences.md", "sequences", RESULTS / "sequences", read_all, sequences.PARTS, {}),
    Page("README.md", "demo", RESULTS / "demo", demo.read, demo.PARTS, {demo.FIGURE: demo.drawn}),
    Page("docs/models.md", "study", RESULTS / "study", study.read, study.PARTS, study_figures.FIGURES),
    Page("docs/data/study.md", "study_data", RESULTS / "study", study.read, study.DATA_PARTS, {}),
    *(Page(f"docs/{name}.md", "drawing", RESULTS, no_rows, {}, own) for name, own in drawings.OF_PAGES.items()),
    Page("README.md", "answer", RESULTS / "study", study.read, {"answer": study.answer}, {}),
)


def made(page: Page, root: Path = ROOT) -> Iterator[tuple[Path, bytes | None]]:
    """The files of a page as made from its rows; None for a figure without rows."""
    rows = page.read(page.folder)
    path = root / page.file
    yield path, filled(path.read_text(), page.kind, page.parts, rows).encode()
    own = page.drawings(rows)
    for name, draw in own.items():
        yield root / FIGURES / name, draw(rows)
    if page.prefix:
        kept = sorted((root / FIGURES).glob(f"{page.prefix}*.svg"))
        yield from ((path, None) for path in kept if path.name not in own)


def differs(path: Path, content: bytes | None) -> bool:
    kept = path.read_bytes() if path.exists() else None
    if content is None or kept is None:
        return content is not kept
    return not figures.same(content, kept) if path.suffix == ".svg" else content != kept


def can_draw() -> bool:
    """Prints what is missing if not."""
    try:
        importlib.import_module("matplotlib")
    except ImportError:
        print('The figures need matplotlib; install it with: pip install -e ".[demo]"')
        return False
    return True


def plot(check: bool, root: Path = ROOT, pages: Sequence[Page] = PAGES) -> int:
    """Write what differs; with ``check``, write nothing and return 1 if something does."""
    if not can_draw():
        return 2
    stale: dict[Path, None] = {}
    for page in pages:
        for path, content in made(page, root):
            if not differs(path, content):
                continue
            stale[path.relative_to(root)] = None
            if check:
                continue
            if content is None:
                path.unlink()
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
    done = "do not match the rows" if check else "regenerated"
    print(f"{len(stale)} files {done}{': ' if stale else ''}{', '.join(map(str, stale))}.")
    return 1 if check and stale else 0


def is_of_documents(out: Path) -> bool:
    return out.resolve() == RESULTS.resolve()


def published(out: Path, wanted: bool) -> None:
    """The end of a run with rows in ``out``: documents are made from ``RESULTS`` only, and only on request."""
    if wanted:
        plot(False, ROOT, PAGES)
    elif is_of_documents(out):
        print("Documents were left alone; update them with `python -m bench plot`, or with --publish.")

"""``python3 -m bench plot``: every generated part of the documents and every figure, from committed rows alone."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.compile import compile_seconds as compile_times
from bench.measure.rows import Row
from bench.pages import evidence, figures, kernels, performance, performance_figures, study, study_figures, without_gpu
from bench.pages import numerics as numerics_page
from bench.pages.cpu import figures as cpu_figures
from bench.pages.cpu import hosts
from bench.pages.cpu import page as cpu_page
from bench.pages.marks import Part, filled
from bench.study import numerics

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"
FIGURES = Path("docs") / "figures"
Draw = Callable[[Sequence[Row]], bytes | None]  # None where there is no row to draw
Figures = Mapping[str, Draw]


@dataclass(frozen=True)
class Page:
    """A document, and what of it is made of the rows in a folder."""

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
    Page(
        "docs/performance.md",
        "performance",
        RESULTS,
        evidence.read,
        performance.PARTS | without_gpu.PARTS,
        performance_figures.FIGURES,
    ),
    Page(
        "docs/performance.md",
        "loop",
        RESULTS,
        hosts.read,
        cpu_page.PARTS,
        {},
        cpu_figures.of_rows,
        cpu_figures.PREFIX,
    ),
    Page("README.md", "headline", RESULTS, evidence.everything, performance.HEADLINE_PARTS, {}),
    Page("docs/models.md", "study", RESULTS / "study", study.read, study.PARTS, study_figures.FIGURES),
    Page("README.md", "answer", RESULTS / "study", study.read, {"answer": study.answer}, {}),
)


def made(page: Page, root: Path = ROOT) -> Iterator[tuple[Path, bytes | None]]:
    """The files of a page as its rows give them; None for a figure that no row supports."""
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


def plot(check: bool, root: Path = ROOT, pages: Sequence[Page] = PAGES) -> int:
    """Write what differs; with ``check``, write nothing and return 1 if something does."""
    try:
        importlib.import_module("matplotlib")
    except ImportError:
        print('The figures need matplotlib; run: pip install "tritongru[demo]"')
        return 2
    stale = []
    for page in pages:
        for path, content in made(page, root):
            if not differs(path, content):
                continue
            stale.append(path.relative_to(root))
            if check:
                continue
            if content is None:
                path.unlink()
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
    done = "differ from what the rows give" if check else "made anew"
    print(f"{len(stale)} files {done}{': ' if stale else ''}{', '.join(map(str, stale))}.")
    return 1 if check and stale else 0


def is_of_documents(out: Path) -> bool:
    return out.resolve() == RESULTS.resolve()


def published(out: Path, wanted: bool) -> None:
    """The end of a run whose rows went to a folder: documents are made of those in ``RESULTS``, and only if asked."""
    if wanted:
        plot(False, ROOT, PAGES)
    elif is_of_documents(out):
        print("No document was touched; `python3 -m bench plot`, or `--publish` of this command, makes them.")

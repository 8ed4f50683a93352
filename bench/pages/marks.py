"""The parts of a Markdown page that are made of rows: between ``<!-- kind: part -->`` and ``<!-- end -->``."""

import html
import re
from collections.abc import Callable, Mapping, Sequence

from bench.measure.rows import Row

Part = Callable[[Sequence[Row]], str]
NOTHING = "Not measured yet."


def filled(page: str, kind: str, parts: Mapping[str, Part], rows: Sequence[Row]) -> str:
    """The page with what stands between its marks replaced.

    Raises:
        LookupError: if a mark names no part, or a part has no mark.
    """
    found = re.findall(rf"<!-- {kind}: (\w+) -->", page)
    unknown, missing = sorted({*found} - {*parts}), sorted({*parts} - {*found})
    if unknown or missing:
        names = [f"{name} (no such part)" for name in unknown] + [f"{name} (no mark)" for name in missing]
        raise LookupError(f"marks and parts of {kind!r} differ: {', '.join(names)}")

    def part(found: re.Match[str]) -> str:
        return f"<!-- {kind}: {found[1]} -->\n\n{parts[found[1]](rows)}\n\n<!-- end -->"

    return re.sub(rf"<!-- {kind}: (\w+) -->.*?<!-- end -->", part, page, flags=re.DOTALL)


def outside(page: str) -> str:
    """What of a page is written by hand."""
    return re.sub(r"<!-- \w+: \w+ -->.*?<!-- end -->", "", page, flags=re.DOTALL)


def table(head: Sequence[str], lines: Sequence[Sequence[str]], right: bool = False) -> str:
    """A Markdown table; with ``right``, all columns but the first are aligned to the right."""
    rule = ["---"] * len(head)
    if right:
        rule[1:] = ["---:"] * (len(head) - 1)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))


def folded(title: str, text: str, shown: bool = False) -> str:
    """What a reader opens or, if ``shown``, closes by a click, on GitHub and, with ``md_in_html``, in MkDocs."""
    opening = "<details markdown open>" if shown else "<details markdown>"
    return f"{opening}\n<summary>{html.escape(title)}</summary>\n\n{text}\n\n</details>"

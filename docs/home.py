"""A hook of MkDocs: the home page is the top of README.md, with its links as seen from here."""

from pathlib import Path
from typing import Any

README = Path(__file__).parents[1] / "README.md"
END = "<!-- The home page of the documentation ends here. -->"


def on_page_markdown(markdown: str, *, page: Any, **others: Any) -> str:
    if page.file.src_uri != "index.md":
        return markdown
    top, end, _ = README.read_text(encoding="utf-8").partition(END)
    if not end:
        raise ValueError(f"{README} has no line {END!r}, where the home page ends; put it back")
    return top.replace("](docs/", "](")

"""Links between documents, as a reader of the repository follows them; test_site.py has those of the site."""

import re

import pytest
from processes import ROOT

pytestmark = pytest.mark.quick

PAGES = [*ROOT.glob("*.md"), *(path for folder in ("docs", "bench", "tests") for path in (ROOT / folder).rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def headings(text):
    """The anchors that GitHub gives to the headings of a page."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    found = []
    for title in re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).replace("`", "").replace("*", "")
        anchor = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found.append(f"{anchor}-{found.count(anchor)}" if anchor in found else anchor)
    return found


def faults(page, text):
    """What is wrong with the links of a page, a line for each."""
    found = []
    for link in dict.fromkeys(LINK.findall(text)):
        if re.match(r"https?:|mailto:", link):
            continue
        address, _, anchor = link.partition("#")
        target = page.parent / address if address else page
        if not target.exists():
            found.append(f"{link} leads nowhere")
        elif anchor and anchor not in headings(text if target == page else target.read_text()):
            found.append(f"{link}: no such heading")
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert faults(page, page.read_text()) == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("[a](README.md) [b](#a-b) [c](https://example.org)\n# A, `b`", []),
        ("[a](absent.md)", ["absent.md leads nowhere"]),
        ("[a](#b)\n```sh\n# b\n```", ["#b: no such heading"]),
        ("![a](absent.svg)", ["absent.svg leads nowhere"]),
        ("[a](README.md#absent)", ["README.md#absent: no such heading"]),
        ("# A\n# A\n[a](#a-1) [b](#a-2)", ["#a-2: no such heading"]),
    ],
)
def test_faults_are_found(text, wrong):
    assert faults(ROOT / "CONTRIBUTING.md", text) == wrong

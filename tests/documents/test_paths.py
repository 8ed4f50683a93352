"""A file that a document or a docstring names is there."""

import re

import pytest
from processes import ROOT

pytestmark = pytest.mark.quick

TEXTS = [*ROOT.glob("*.md"), ROOT / "pyproject.toml", ROOT / ".ci" / "run"]
TEXTS += [path for folder in ("docs", "bench", "tests", "tritongru") for path in (ROOT / folder).rglob("*.md")]
TEXTS += [path for folder in ("bench", "tests", "tritongru") for path in (ROOT / folder).rglob("*.py")]
NAMED = re.compile(r"(?<![\w/.-])(?:tritongru|bench|tests|docs)/[\w/*.-]*\.(?:py|json|jsonl|md)\b")
ELSEWHERE = {"tests/gone.py", "bench/rows.py"}  # names that the test below makes up


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_are_named_exist(path):
    named = set(NAMED.findall(path.read_text())) - ELSEWHERE
    missing = [name for name in named if not (list(ROOT.glob(name)) if "*" in name else (ROOT / name).exists())]
    assert not missing


def test_a_moved_file_would_be_noticed():
    assert NAMED.findall("see tests/gone.py, `bench/rows.py` and x/tests/not.py") == ["tests/gone.py", "bench/rows.py"]

"""Python in README.md and docs runs as it is; errors that the page on troubleshooting quotes are the sources' own."""

import ast
import functools
import inspect
import logging
import re
import textwrap
from pathlib import Path

import pytest
import torch
from processes import ROOT

import tritongru

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^( *)```python[^\n]*\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
TROUBLES = ROOT / "docs" / "guides" / "troubleshooting.md"
# An inline code span that begins as an exception, a line of logging.basicConfig's or one of argparse's does.
QUOTED = re.compile(r"`((?:[A-Z]\w*Error|Unsupported): |(?:INFO|WARNING):tritongru:|error: argument --\w+: )([^`]+)`")
LEAST = 12  # characters of a text's fixed parts, for one that fits everything says nothing
WORDS = 5  # of what may be any value
THEIRS = ("Failed to find C compiler", "Attempted to wrap RNN")  # errors of Triton and torch
OTHERS = ("torch/nn/modules/rnn.py", "torch/_dynamo/variables/builder.py", "triton/runtime/build.py")  # users meet them


def blocks():
    for page in PAGES:
        text = page.read_text()
        for found in BLOCK.finditer(text):
            line = text.count("\n", 0, found.start()) + 1
            yield pytest.param(page, line, textwrap.dedent(found[2]), id=f"{page.relative_to(ROOT)}:{line}")


@pytest.fixture
def _torch_as_it_was():
    """Whatever a reader's program may set for the whole process."""
    cudnn, matmul = torch.backends.cudnn.rnn, torch.backends.cuda.matmul
    log, root = logging.getLogger("tritongru"), logging.getLogger()
    before = torch.get_num_threads(), torch.get_default_dtype(), cudnn.fp32_precision, matmul.fp32_precision
    level, handlers = log.level, [*root.handlers]
    with torch.random.fork_rng():
        yield
    torch.set_num_threads(before[0])
    torch.set_default_dtype(before[1])
    cudnn.fp32_precision, matmul.fp32_precision = before[2:]
    log.setLevel(level)
    root.handlers[:] = handlers


@pytest.mark.usefixtures("_torch_as_it_was")
@pytest.mark.parametrize("page, line, code", [*blocks()])
def test_python_runs_as_it_is(page, line, code, tmp_path, monkeypatch):
    if "torch_rechub" in code:  # of the extra test
        pytest.importorskip("torch_rechub", reason="torch_rechub is not installed")
    monkeypatch.chdir(tmp_path)
    program = compile("\n" * line + code, str(page), "exec")  # an error names the page's own line
    exec(program, {"__name__": "__main__"})


def test_a_block_is_found_where_it_stands():
    text = "A\n\n```python\nx = 1\n```\n\n- item\n\n    ```python\n    y = 2\n    ```\n\n```sh\nls\n```\n"
    assert [textwrap.dedent(code) for _, code in BLOCK.findall(text)] == ["x = 1\n", "y = 2\n"]


def test_the_signature_in_the_reference_is_the_layers():
    text = (ROOT / "docs" / "reference" / "layers.md").read_text()
    (shown,) = re.findall(r"```text\ntritongru\.GRU\((.*?),\n\)\n```", text, re.DOTALL)
    found = str(inspect.signature(tritongru.GRU)).replace("'auto'", '"auto"').replace("'", "")
    assert found == f"({' '.join(shown.split())}) -> None"


# Quoted errors


def pattern_of(node):
    """What a text in the sources may become, or None of one with too few fixed characters."""
    if isinstance(node, ast.Constant):
        parts = re.split(r"%[sdg]", node.value)  # of the logger
    else:
        parts = [""]
        for part in node.values:
            if isinstance(part, ast.Constant):
                parts[-1] += part.value
            else:
                parts.append("")
    if sum(len(part.strip()) for part in parts) < LEAST:
        return None
    return re.compile("(.*)".join(re.escape(part) for part in parts), re.DOTALL)


def texts_of(path):
    tree = ast.parse(path.read_text())
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        whole = isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
        if whole and id(node) not in inner and (pattern := pattern_of(node)) is not None:
            yield pattern


@functools.cache
def patterns():
    packages = Path(torch.__file__).parents[1]
    others = [packages / name for name in OTHERS]
    paths = [*(ROOT / "tritongru").rglob("*.py"), *(path for path in others if path.exists())]
    return [pattern for path in paths for pattern in texts_of(path)]


def is_value(text):
    """Whether it may stand for any value: a few words, or a list of such."""
    return all(len(part.split()) <= WORDS for part in text.split(", "))


def occurs(text):
    """Whether it is a text of the sources whose placeholders hold values or, in turn, texts of the sources."""
    for pattern in patterns():
        found = pattern.fullmatch(text)
        if found is not None and all(is_value(part) or occurs(part) for part in found.groups()):
            return True
    return False


@pytest.mark.parametrize("text", [text for _, text in QUOTED.findall(TROUBLES.read_text())])
def test_a_quoted_error_is_in_the_sources(text):
    if text.startswith(THEIRS) and not occurs(text):
        pytest.skip("this torch or Triton words it differently, or is not installed")
    assert occurs(text), "no source has this text; quote what users see"


def test_an_error_that_no_source_has_would_be_noticed():
    real = "impl should be one of 'auto', 'triton', 'llvm', 'torch', got 'cuda'"
    assert occurs(real)
    assert not occurs(real.replace("should be", "must be"))
    layer = "impl='triton' cannot run this layer: {} (impl='auto' runs torch's GRU here)"
    assert not occurs(layer.format("a reason that no plan would give"))
    assert QUOTED.findall("see `ValueError: a b` and `INFO:tritongru:c`, not `gru`") == [
        ("ValueError: ", "a b"),
        ("INFO:tritongru:", "c"),
    ]

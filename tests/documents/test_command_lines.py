"""Every command in the documents can be typed as it stands, after the set-up that its page names."""

import os
import re
from pathlib import Path

import pytest
from command_lines import EXTRAS, SET_UP, commands_of, parts_of, problem
from packaging.requirements import Requirement
from processes import ROOT

import tritongru.__main__

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "bench" / "results" / "README.md"]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
NAMED = r"pip install [^\n]*?\.\[([\w,-]+)\]"  # extras
STANDARD = {"cpu"}  # the extras that docs/start/install.md installs


def closure(extras: set[str]) -> set[str]:
    """With those that they bring."""
    lines = [Requirement(text) for name in extras for text in EXTRAS[name]]
    more = {name for line in lines if line.name == "tritongru" for name in line.extras}
    return extras if more <= extras else closure(extras | more)


def needs(words: list[str]) -> set[str]:
    """The extras without which a command does not work."""
    if words[0].endswith("/mkdocs"):
        return {"docs"}
    if "-m" not in words[:-1]:
        return set()
    module, *rest = words[words.index("-m") + 1 :]
    found = set()
    if module == "bench" and {"plot", "study", "--publish", "--study"} & set(rest):
        found.add("demo")
    if module == "bench" and "cpu" in rest:
        found.add("cpu")
    if module == "bench.compile":
        found.add("interpret")
    if module == "pytest":
        found.add("bench" if "bench" in rest else "test")
    if (module, *rest[:1]) == ("tritongru", "demo"):
        found.add("demo")
    return found


def set_up_problems(page: str) -> list[str]:
    """A page whose blocks have commands says before the first of them, or in it, how to install what they need."""
    commands = [command for command in commands_of(page) if command.pasted]
    typed = [(command, words) for command in commands for words in parts_of(command.text) if words[2:3] != ["venv"]]
    if not typed:
        return []
    first, _ = typed[0]
    if not SET_UP.search(page[: first.at] + first.text):
        return ["no set-up before the first command: `.venv/bin/pip install` or a link to start/install.md"]
    extras = closure(STANDARD.union(*(found.split(",") for found in re.findall(NAMED, page))) & EXTRAS.keys())
    missing = [(command.text, extra) for command, words in typed for extra in needs(words) - extras]
    return [f"{text}: the page names no set-up with the extra {extra}" for text, extra in missing]


def problems(page: str, config: pytest.Config) -> list[str]:
    found = set_up_problems(page)
    for command in commands_of(page):
        for words in parts_of(command.text):
            if said := problem(words, command.pasted, config):
                found.append(f"{command.text}: {said}")
    return found


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_can_be_typed(page, request):
    assert problems(page.read_text(), request.config) == []


def quick(words: list[str]) -> bool:
    """Whether a command of ours answers at once, and changes nothing."""
    return words[1:3] == ["-m", "tritongru"] and words[3] in ("explain", "env", "--version", "--help")


def quick_commands() -> list[tuple[str, str]]:
    found = {(name_of(page), command) for page in PAGES for command in commands_of(page.read_text())}
    typed = {(page, command.text) for page, command in found if command.pasted or " --" in command.text}
    return sorted((page, text) for page, text in typed if any(map(quick, parts_of(text))))


@pytest.mark.parametrize("page, text", quick_commands())
def test_quick_commands_answer(page, text, capsys):
    for words in filter(quick, parts_of(text)):
        try:
            code = tritongru.__main__.main(words[3:])
        except SystemExit as left:  # --version and --help
            code = left.code
        assert code == 0
        assert capsys.readouterr().out.strip()


GOOD = """
Set up by `.venv/bin/pip install -e ".[test]"`; `python -m tritongru explain` and
`.venv/bin/python -m bench ...` are named, and so are `pip install`, `pytest`, `pytest.ini` and `.venv/bin`.

```sh
python3 -m venv .venv && .venv/bin/pip install -e ".[demo,bench]" "numpy<2.4" && .venv/bin/python -m pytest
.venv/bin/pip install torch --index-url https://download.pytorch.org/whl/cpu
TRITON_INTERPRET=1 .venv/bin/python -m pytest -m "slow and not rare" -n 0 tests/ptx   # a remark
.venv/bin/python -m tritongru explain --hidden 64 --gpu h200 --json > plan.json
.venv/bin/python -m bench run --suite cpu --out /nowhere/rows
.venv/bin/python tests/ptx/sweep.py --list extra --part 1/4 --no-table
.venv/bin/mkdocs build --strict
```
"""
BAD = [
    (".venv/bin/python -m tritongru explain --hiden 64 --hidden 64", "unrecognized arguments: --hiden"),
    (".venv/bin/python -m tritongru explain", "required: --hidden"),
    (".venv/bin/python -m tritongru explain --hidden 64 --gpu h2000", "'h2000' is no"),
    (".venv/bin/python -m tritongru explian", "invalid choice"),
    (".venv/bin/python -m bench run --sweet cpu", "unrecognized arguments"),
    (".venv/bin/python -m bench.compile table everything", "invalid choice"),
    (".venv/bin/python -m hatchling build --target-folder x", "unrecognized arguments"),
    (".venv/bin/python -m bench.gone", "no module bench.gone"),
    (".venv/bin/python tests/ptx/sweep.py --lists resident", "unrecognized arguments: --lists"),
    (".venv/bin/python tests/gone", "not known here"),
    ("python -m tritongru env", "not the environment's"),
    (".venv/bin/python -m pytest tests/gone", "there is no tests/gone"),
    (".venv/bin/python -m pytest tests/documents/test_command_lines.py::test_gone", "has no test_gone"),
    (".venv/bin/python -m pytest -m swift", "no marker swift"),
    (".venv/bin/python -m pytest --swiftly", "--swiftly"),
    ('.venv/bin/pip install -e ".[gpu]"', "no extra gpu"),
    ('.venv/bin/pip install -e "elsewhere[cpu]"', "not this checkout"),
    ('.venv/bin/pip install "tritongru[cpu]"', "not on an index"),
    (".venv/bin/pip install --swiftly .", "--swiftly"),
    (".venv/bin/pip install torch --index-url https://example.org", "not a known index"),
    (".venv/bin/pip install dist/tritongru-0.0.9-py3-none-any.whl", "neither this package"),
    (".venv/bin/mkdocs build --swiftly", "--swiftly"),
    (".venv/bin/mkdocs publish", "no command"),
    ("git clone https://example.org/tritongru", "not known here"),
]


def test_good_commands_pass(request):
    assert len(commands_of(GOOD)) == 12
    assert problems(GOOD, request.config) == []
    assert not os.path.exists("/nowhere")


@pytest.mark.parametrize("text, said", BAD)
def test_a_bad_command_is_caught(text, said, request):
    page = f'`.venv/bin/pip install -e ".[test]"`\n\n```sh\n{text}\n```\n'
    (found,) = problems(page, request.config)
    assert found.startswith(f"{text}: ")
    assert said in found


def test_bad_commands_in_sentences_are_caught(request):
    page = "`python -m tritongru explain --hidden 64`, `.venv/bin/python -m bench\nrum`, or\n\n"
    page += "    .venv/bin/python -m bench rum\n"
    assert len(problems(page, request.config)) == 4  # the set-up is missing as well


def test_a_set_up_that_is_missing_is_caught():
    block = "```sh\n.venv/bin/python -m bench plot\n```\n"
    for before, missing in (
        ("", "no set-up"),
        ("After [installing](start/install.md):\n\n", "with the extra demo"),
        ('After `.venv/bin/pip install -e ".[docs]"`:\n\n', "with the extra demo"),
        ('After `.venv/bin/pip install -e ".[test]"`:\n\n', None),
    ):
        found = set_up_problems(before + block)
        assert missing in found[0] if missing else not found
    assert set_up_problems(block + '\n`.venv/bin/pip install -e ".[test]"`')
    assert not set_up_problems("`python -m bench plot` makes it.")

"""The commands of a document, and whether each can be typed: the parsers that would read it, read it here."""

import argparse
import contextlib
import io
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import conflicts
import pytest
import sweep
from packaging.requirements import InvalidRequirement, Requirement
from processes import ROOT

import bench.__main__
import bench.compile.__main__
import tritongru.__main__
from tritongru import __version__

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
SET_UP = re.compile(r'pip install -e "\.\[|\.venv[\w-]*/bin/pip install|\]\([\w./-]*\binstall\.md')
WHEEL = f"tritongru-{__version__}-py3-none-any.whl"
INDEXES = {"https://download.pytorch.org/whl/cpu"}  # of torch's CPU builds
# What no parser here reads, word for word, and why.
ALLOWED = {
    ".ci/run": "a script of this repository",
    ".venv/bin/ruff check .": "as in .ci/run",
    ".venv/bin/ruff format --check .": "as in .ci/run",
    ".venv/bin/mypy": "as in .ci/run",
}
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
PROGRAM = r"(?:\w+=\S* )*(?:\.venv[\w-]*/bin/\w|python3? -m \w|pytest(?= |$)|pip3? install\b)"
PYTHON = re.compile(r"(\.venv[\w-]*/bin/)?python3?")
TOOL = re.compile(r"(\.venv[\w-]*/bin/)?(pip|pytest|mkdocs)")


@dataclass(frozen=True)
class Command:
    """``pasted``: a line of a block, or indented as one; what stands in a sentence may only name a module."""

    text: str
    pasted: bool
    at: int  # characters before it on its page


def commands_of(page: str) -> list[Command]:
    found = []
    for fence in FENCE.finditer(page):
        if fence[2] in ("sh", "bash", "shell", "console", "powershell", "bat"):
            for line in re.finditer(r"(?:.*\\\n)*.+", fence[3]):  # with those that it goes on in
                text = re.sub(r"\\\n\s*", "", line[0]).replace(".venv\\Scripts\\", ".venv/bin/").strip()
                found += [Command(text, True, fence.start(3) + line.start())] if text else []
    prose = FENCE.sub(lambda fence: re.sub(r"[^\n]", " ", fence[0]), page)  # of the same length
    for line in re.finditer(rf"^ {{4,}}({PROGRAM}.*)$", prose, re.MULTILINE):
        found.append(Command(line[1], True, line.start()))
    for span in SPAN.finditer(prose):
        text = re.sub(r"\s+", " ", span[1])
        if re.match(PROGRAM, text):
            found.append(Command(text, False, span.start()))
    return sorted(found, key=lambda command: command.at)


def parts_of(text: str) -> Iterator[list[str]]:
    """The words of each command of a line, without variables in front and files that output goes to."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars="&|;<>")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set("&|;"):
            while words and re.match(r"[A-Z_]+=", words[0]):
                words.pop(0)
            if words:
                yield words[: words.index(">")] if ">" in words else words
            words = []
        else:
            words.append(word)


class Stopped(Exception):
    pass


def parser_in(main: Callable[[], object]) -> argparse.ArgumentParser:
    """The parser that a function makes and would use."""
    with mock.patch.object(argparse.ArgumentParser, "parse_args", autospec=True, side_effect=Stopped) as parse:
        with contextlib.suppress(Stopped):
            main()
        return parse.call_args.args[0]


def hatchling_parser() -> argparse.ArgumentParser:
    hatchling = pytest.importorskip("hatchling.cli").hatchling

    return parser_in(hatchling)


PARSERS = {
    "tritongru": tritongru.__main__.parser,
    "bench": bench.__main__.parser,
    "bench.compile": lambda: parser_in(bench.compile.__main__.main),
    "hatchling": hatchling_parser,
}
# Scripts, by their paths.
SCRIPTS = {"tests/ptx/sweep.py": sweep.main, "tests/ptx/conflicts.py": conflicts.main}


def walk(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from walk(below)


def parse(parser: argparse.ArgumentParser, words: list[str], complete: bool) -> str:
    """What the parser says against the words, or nothing. ``complete``: whether required ones must be there."""
    for each in walk(parser):
        for action in each._actions:
            if getattr(action.type, "__name__", "") == "folder":
                action.type = Path  # which makes none
            if not complete:
                action.required = False
                if not action.option_strings and action.nargs is None:
                    action.nargs = "?"
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            parser.parse_args(words)
    except SystemExit as left:
        return said.getvalue().strip().splitlines()[-1] if left.code else ""
    return ""


def problem_of_pip(words: list[str]) -> str:
    create_command = pytest.importorskip("pip._internal.commands").create_command

    if words[:1] not in (["install"], ["wheel"]):
        return f"pip {' '.join(words[:1])} is not a known command"
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            options, targets = create_command(words[0]).parser.parse_args(words[1:])
    except SystemExit:
        return said.getvalue().strip().splitlines()[-1]
    if "--index-url" in words and options.index_url not in INDEXES:
        return f"{options.index_url} is not a known index"
    editable = getattr(options, "editables", [])
    for target in [*targets, *editable]:
        path, _, extras = target.removesuffix("]").partition("[")
        ours = path == "." or path.endswith(("/tritongru", f"/{WHEEL}"))
        if ours and not set(filter(None, re.split(r"[\s,]+", extras))) <= EXTRAS.keys():
            return f"pyproject.toml has no extra {extras}"
        if target in editable and path != ".":
            return f"-e {target} is not this checkout"
        if not ours:
            try:
                if Requirement(target).name == "tritongru":
                    return "the package is not on an index"
            except InvalidRequirement:
                return f"{target} is neither this package nor the name of another"
    return "" if targets or editable or options.requirements else "nothing to install"


def problem_of_pytest(words: list[str], config: pytest.Config) -> str:
    try:
        given = config._parser.parse(words)
    except pytest.UsageError as error:
        return str(error).splitlines()[0]
    for path in given.file_or_dir:
        file, *names = path.split("::")
        if not (ROOT / file).exists():
            return f"there is no {file}"
        for name in names:
            if not re.search(rf"\b(def|class) {re.escape(name.partition('[')[0])}\b", (ROOT / file).read_text()):
                return f"{file} has no {name}"
    registered = {re.split(r"[:(]", line)[0].strip() for line in config.getini("markers")}
    unknown = set(re.findall(r"\w+", given.markexpr or "")) - {"and", "or", "not"} - registered
    return f"no marker {', '.join(sorted(unknown))}" if unknown else ""


def problem_of_mkdocs(words: list[str]) -> str:
    click, cli = pytest.importorskip("click"), pytest.importorskip("mkdocs.__main__").cli

    if not words or words[0] not in cli.commands:
        return f"mkdocs has no command {words[:1]}"
    try:
        cli.commands[words[0]].make_context(words[0], words[1:])
    except click.UsageError as error:
        return error.message
    return ""


def problem(words: list[str], pasted: bool, config: pytest.Config) -> str:
    """What is wrong with a command of a page, or nothing."""
    if " ".join(words) in ALLOWED:
        return ""
    program, *rest = words
    named_only = not pasted and not program.startswith(".venv")
    if tool := TOOL.fullmatch(program):
        module = tool[2]
    elif PYTHON.fullmatch(program) and rest[:1] == ["-m"] and len(rest) > 1:
        module, rest = rest[1], rest[2:]
        if named_only and any(word.startswith("-") for word in rest):
            return "with options it starts with .venv/bin/python"
    elif PYTHON.fullmatch(program) and rest and rest[0] in SCRIPTS:
        module, rest = rest[0], rest[1:]
    else:
        return f"{program} is not known here; if it exists, it belongs in ALLOWED, with a reason"
    if module == "venv":
        return "" if len(rest) == 1 and rest[0].startswith(".venv") else "a venv is .venv"
    if pasted and not program.startswith(".venv"):
        return f"{program} is not the environment's: .venv/bin/{program}"
    if rest and rest[-1] in ("...", "…"):
        pasted, rest = False, rest[:-1]
    if module == "pip":
        return "" if rest == ["install"] and not pasted else problem_of_pip(rest)
    if module == "pytest":
        return problem_of_pytest(rest, config)
    if module == "mkdocs":
        return problem_of_mkdocs(rest)
    if module in SCRIPTS:
        return parse(parser_in(SCRIPTS[module]), rest, complete=pasted)
    if module not in PARSERS:
        return f"there is no module {module} to run"
    return parse(PARSERS[module](), rest, complete=pasted)

"""The README's snippets run; numbers in the README and docs are the plan's."""

import re
import shlex

import pytest
from processes import ROOT, python

from tritongru.planning.devices import GPUS
from tritongru.planning.plan import plan

README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.splitlines()[1])
def test_python_snippets_run(code):
    exec(compile(code, "README.md", "exec"), {})


def commands():
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line.startswith("python -m ")]


@pytest.mark.every(3)
@pytest.mark.parametrize("command", commands())
def test_commands_run(command):
    done = python(*shlex.split(command)[1:])
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_two_commands_set_everything_up():
    """.ci/run executes the one for the tests; tests/commands/test_demo.py runs the demo."""
    demo, tests = (block.strip() for block in blocks("sh")[:2])
    for command, extra, last in ((demo, "demo", "-m tritongru demo"), (tests, "test", "-m pytest")):
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install -e ")
        assert f'".[{extra}]"' in command
        assert command.endswith(f".venv/bin/python {last}")
        assert "\n" not in command
    assert commands()


def test_sizes_are_the_plans():
    found = re.search(r"Beyond H = (\d+) in 16 bit and H = (\d+) in fp32 on an H200", README)
    for size, dtype in zip(map(int, found.groups()), ("float16", "float32"), strict=True):
        for hidden, held in ((size, True), (size + 1, False)):
            answer = plan(hidden, dtype, GPUS["h200"], batch=16, impl="triton")
            families = {answer.forward.family, answer.backward.family}
            assert families == ({"persistent"} if held else {"stepwise"}), (hidden, dtype)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target

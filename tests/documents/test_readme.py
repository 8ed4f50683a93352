"""README.md is short, and what it says of sizes, versions and machines is what the package knows."""

import json
import re
import tomllib

import pytest
from processes import ROOT

from bench.commands.plot import RESULTS
from bench.pages import demo, evidence
from tritongru.commands.picture import SHIFTED
from tritongru.planning.devices import GPUS
from tritongru.planning.instruction_sets import SETS
from tritongru.planning.launches import rows_of
from tritongru.planning.plan import plan
from tritongru.planning.triton_versions import minor_of

pytestmark = pytest.mark.quick

README = (ROOT / "README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = README.partition("## Requirements")[2].partition("\n## ")[0]


def test_it_is_read_in_a_minute():
    assert len(README.splitlines()) <= 134


def test_two_commands_set_everything_up():
    """.ci/run executes the one for the tests; tests/commands/test_demo.py runs the demo."""
    lines = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
    for extra, last in (("demo", "-m tritongru demo"), ("test", "-m pytest")):
        (command,) = (line for line in lines if line.endswith(last))
        assert command == (f'python3 -m venv .venv && .venv/bin/pip install -e ".[{extra}]" && .venv/bin/python {last}')


@pytest.mark.parametrize(
    "page, said",
    [
        ("README.md", r"beyond hidden size (\d+) in fp16 and bf16 or (\d+) in fp32 \(predicted for an H200\)"),
        ("docs/guides/paths.md", r"on an H200: H = (\d+) in 16-bit precision, H = (\d+) in float32"),
    ],
)
def test_sizes_are_the_plans(page, said):
    found = re.search(said, (ROOT / page).read_text())
    for size, dtype in zip(map(int, found.groups()), ("float16", "float32"), strict=True):
        for hidden, held in ((size, True), (size + 1, False)):
            answer = plan(hidden, dtype, GPUS["h200"], batch=16, impl="triton")
            families = {answer.forward.family, answer.backward.family}
            assert families == ({"persistent"} if held else {"stepwise"}), (hidden, dtype)


def requirement(name):
    """The cells of a line of the table."""
    (line,) = re.findall(rf"^\| {name}[^|]*\|(.*)\|$", REQUIREMENTS, re.MULTILINE)
    return [cell.strip() for cell in line.split("|")]


def test_required_versions_are_those_of_the_package():
    assert PROJECT["requires-python"] == f">={requirement('Python')[0].split(', ')[0]}"
    assert PROJECT["dependencies"] == [f"torch>={requirement('torch')[0].split(', ')[0]}"]


def test_tritons_are_those_of_the_tables():
    known = {
        minor_of(version)
        for family in ("resident", "persistent")
        for row in rows_of(family)
        for version in row["readings"]
    }
    named = {minor_of(version) for version in re.findall(r"\d+\.\d+", " ".join(requirement("Triton")[:2]))}
    assert named == known


def test_what_is_called_run_has_rows():
    """Python's versions and SSE2 have none: the tests run with them."""
    rows = evidence.everything(RESULTS)

    def minors(key):
        return {minor_of(row[key]) for row in rows if row[key]}

    def named(name):
        return {minor_of(version) for version in requirement(name)[0].split(", ")}

    assert named("torch") == minors("torch")
    assert named("Triton") <= minors("triton") | {(3, 7)}
    gpus = {row["gpu"].split()[1] for row in rows if row["gpu"]}
    assert requirement("NVIDIA GPU")[0].split(", ") == sorted(gpus)
    assert requirement("AMD GPU")[0] == ""
    sets = {SETS[row["isa"]].title for row in rows if row.get("isa")}
    assert set(requirement("CPU")[0].removeprefix("x86-64: ").split(", ")) == sets | {"SSE2"}


def test_the_page_on_installing_knows_the_same_versions_and_extras():
    page = (ROOT / "docs" / "start" / "install.md").read_text()
    extras = re.findall(r"^\| `(\w+)` \|", page.partition("## Extras")[2].partition("\n## ")[0], re.MULTILINE)
    assert sorted(extras) == sorted(PROJECT["optional-dependencies"])
    table = page.partition("## Requirements")[2]
    assert f"| PyTorch | {PROJECT['dependencies'][0].partition('>=')[2]} or newer |" in table
    assert f"| Python | {PROJECT['requires-python'].removeprefix('>=')} or newer |" in table
    (llvmlite,) = (line for line in PROJECT["optional-dependencies"]["cpu"] if line.startswith("llvmlite"))
    least, most = re.search(r">=([\d.]+),<0\.(\d+)", llvmlite).groups()
    assert f"| {least} to 0.{int(most) - 1} |" in table


def test_every_known_gpu_and_instruction_set_is_named():
    nvidia, amd, cpu = (" ".join(requirement(name)) for name in ("NVIDIA GPU", "AMD GPU", "CPU"))
    for gpu in GPUS.values():
        assert gpu.name in (amd if gpu.backend == "hip" else nvidia)
    for one in SETS.values():
        assert one.title in cpu


def test_the_picture_is_of_the_newest_run(tmp_path):
    pytest.importorskip("matplotlib")
    assert demo.drawn(demo.read(tmp_path)) is None
    assert demo.demo(demo.read(tmp_path)) == "No run has been recorded yet."
    values = {"true": 20_000.0, SHIFTED: 21_000.0, "GRU": 22_000.0}
    run = {
        "ran on": "one thread of the CPU",
        "cpu": "AVX9",
        "torch": "2.99",
        "date": "2026-01-01",
        "week": {name: [value] * 336 for name, value in values.items()},
        "horizon": {"GRU": [100.0] * 48},
        "errors": {"GRU": 123.4, SHIFTED: 234.5},
        "seconds": {"GRU": 0.123},
    }
    (tmp_path / "demo-2026-01-02.json").write_text(json.dumps(run))
    (tmp_path / "demo-2026-01-01.json").write_text(json.dumps(run | {"errors": {"GRU": 99.0}}))
    drawn = demo.drawn(demo.read(tmp_path))
    assert b">123 MW, 0.12 s<" in drawn
    assert b">234 MW<" in drawn
    assert b">99 MW" not in drawn
    assert demo.demo(demo.read(tmp_path)).endswith(
        "\n\nRun on one thread of the CPU (AVX9) with torch 2.99; 2026-01-01. Lowest error: GRU."
    )

"""What a wheel and a source distribution hold and say of themselves, and that the wheel works where it is installed."""

import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from processes import PATIENCE, ROOT, python

import tritongru

yaml = pytest.importorskip("yaml")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
VERSION = tritongru.__version__
NAME = f"tritongru-{VERSION}"
FILES = {
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "LICENSE", "mkdocs.yml", "pyproject.toml"),
    *(".ci/run", "docs/index.md", "bench/__main__.py", "bench/pytest.ini", "tests/conftest.py"),
    *("tests/support/processes.py", "tritongru/__init__.py", "tritongru/py.typed"),
}
PLACES = {"tritongru", "tests", "bench", "docs", ".ci", ".github"}  # folders of a source distribution
LEFTOVERS = re.compile(
    r"(^|/)(__pycache__|\.\w+_cache|\.hypothesis|\.benchmarks|\.venv[^/]*|\.git|\.gpu|site|dist)/|\.pyc$"
)
TEMPLATES = ROOT / ".github" / "ISSUE_TEMPLATE"


def sources(folder: Path, under: Path = ROOT) -> set[str]:
    found = {str(path.relative_to(under)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if not LEFTOVERS.search(name)}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both, built without isolation, which would fetch the build system from an index."""
    pytest.importorskip("hatchling", reason='building needs hatchling: pip install -e ".[test]"')
    folder = tmp_path_factory.mktemp("built")
    done = python("-m", "hatchling", "build", "--directory", str(folder))
    assert done.returncode == 0, done.stderr
    assert {path.name for path in folder.iterdir()} == {f"{NAME}-py3-none-any.whl", f"{NAME}.tar.gz"}
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return built / f"{NAME}-py3-none-any.whl"


@pytest.fixture(scope="module")
def unpacked(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(built / f"{NAME}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / NAME


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        return message_from_bytes(archive.read(f"{NAME}.dist-info/METADATA"))


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.startswith(f"{NAME}.dist-info/")}
    assert names == sources(ROOT / "tritongru")
    assert {"tritongru/py.typed", "tritongru/planning/tables/resident.json"} <= names


def test_the_source_distribution_holds_what_builds_tests_and_documents_it(unpacked):
    names = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    assert names >= FILES
    for folder in ("tritongru", "tests", "bench", "docs", ".github"):
        assert sources(unpacked / folder, unpacked) == sources(ROOT / folder), folder
    assert not [name for name in names if LEFTOVERS.search(name)]
    assert {name.partition("/")[0] for name in names if "/" in name} == PLACES


def test_leftovers_are_told_from_sources():
    for name in ("tests/__pycache__/x.pyc", ".venv/bin/python", ".venv-oldest/x", ".gpu/rows", "bench/.mypy_cache/x"):
        assert LEFTOVERS.search(name), name
    for name in ("docs/site.css", "tritongru/llvm/cache.py", ".github/x", "tests/documents/test_site.py"):
        assert not LEFTOVERS.search(name), name


def test_the_metadata_is_the_projects(metadata):
    assert (metadata["Name"], metadata["Version"]) == ("tritongru", VERSION)
    assert metadata["Summary"] == PROJECT["description"]
    assert metadata["License-Expression"] == "MIT"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert SpecifierSet(metadata["Requires-Python"]) == SpecifierSet(PROJECT["requires-python"])
    assert metadata.get_all("Provides-Extra") == sorted(EXTRAS)
    assert not metadata.get_all("Project-URL")  # there is no address yet


def test_what_is_installed_without_an_extra_is_torch_alone(metadata):
    needed = [Requirement(line) for line in metadata.get_all("Requires-Dist")]
    bare = [r for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
    assert [str(r) for r in bare] == PROJECT["dependencies"]
    assert [r.name for r in bare] == ["torch"]


def test_the_classifiers_exist_and_agree_with_what_is_required():
    known = pytest.importorskip("trove_classifiers", reason='hatchling brings it: pip install -e ".[test]"').classifiers
    named = PROJECT["classifiers"]
    assert len(named) == len(set(named))
    assert set(named) <= known
    assert not [name for name in named if name.startswith("License ::")]  # PEP 639: the expression says it
    prefix = "Programming Language :: Python :: "
    versions = [name.removeprefix(prefix) for name in named if re.fullmatch(rf"{prefix}3\.\d+", name)]
    required = SpecifierSet(PROJECT["requires-python"])
    assert all(version in required for version in versions)
    first = min(int(version.partition(".")[2]) for version in versions)
    assert f"3.{first - 1}" not in required
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in versions  # these tests run on it


def test_every_extra_that_an_extra_brings_exists():
    for extra, lines in EXTRAS.items():
        for line in map(Requirement, lines):
            assert line.name != "tritongru" or line.extras <= EXTRAS.keys() - {extra}, (extra, str(line))


def test_the_citation_is_valid_and_names_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited.keys() >= {"cff-version", "message", "title", "authors"}  # which CFF 1.2.0 requires
    known = {*("cff-version", "message", "title", "authors", "type", "abstract", "version", "license", "keywords")}
    assert cited.keys() <= known  # an address, a DOI and a date once there are any
    assert (cited["cff-version"], cited["type"], cited["license"]) == ("1.2.0", "software", PROJECT["license"])
    assert cited["version"] == VERSION
    assert [author.keys() for author in cited["authors"]] == [{"name"}]
    assert all(isinstance(word, str) and word for word in cited["keywords"])


@pytest.mark.parametrize("name", ["bug_report", "performance"])
def test_an_issue_form_asks_for_the_environment(name):
    form = yaml.safe_load((TEMPLATES / f"{name}.yml").read_text())
    assert form.keys() == {"name", "description", "body"}
    fields = {field["id"]: field for field in form["body"] if field["type"] != "markdown"}
    assert len(fields) == len(form["body"])
    for field in fields.values():
        assert field["type"] in ("textarea", "checkboxes")
        assert field["attributes"]["label"]
    asked = {"environment": "python -m tritongru env"}
    if name == "performance":
        asked["explain"] = "python -m tritongru explain "
    for field, command in asked.items():
        assert f"`{command}" in fields[field]["attributes"]["description"]
        assert fields[field]["validations"] == {"required": True}


def test_the_issue_forms_link_to_nothing_elsewhere():
    assert {path.name for path in TEMPLATES.iterdir()} == {"bug_report.yml", "config.yml", "performance.yml"}
    assert yaml.safe_load((TEMPLATES / "config.yml").read_text()) == {"blank_issues_enabled": True}
    for path in TEMPLATES.iterdir():
        assert "http" not in path.read_text(), path.name


def three_lines() -> str:
    """Of use: the first of the README's Python that runs a layer."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return next(block for block in blocks if "GRU(" in block and "output" in block)


@pytest.mark.slow
def test_an_installed_wheel_works(wheel, tmp_path):
    """In an environment of its own, which finds torch and the rest in this one's folder, but not this checkout."""
    place = tmp_path / "environment"
    assert python("-m", "venv", str(place)).returncode == 0
    run = place / ("Scripts" if sys.platform == "win32" else "bin") / "python"

    def inside(*arguments: str) -> str:
        done = subprocess.run([run, *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    inside("-m", "pip", "install", "--no-deps", "--no-index", "--quiet", str(wheel))
    own = Path(inside("-c", "import sysconfig; print(sysconfig.get_path('purelib'))"))
    others = {sysconfig.get_path("purelib"), str(Path(torch.__file__).parents[1])}
    (own / "others.pth").write_text("\n".join(others))  # read as paths alone: an editable install's file is not
    shown = inside(
        "-c", f"{three_lines()}\nimport tritongru\nprint(tritongru.__file__, output.isfinite().all().item())"
    )
    assert shown.splitlines()[-1] == f"{own / 'tritongru' / '__init__.py'} True"
    assert f"tritongru: {VERSION}" in inside("-m", "tritongru", "env")
    assert "resident" in inside("-m", "tritongru", "explain", "--hidden", "64", "--gpu", "h200")  # reads the tables


@pytest.mark.slow
def test_a_wheel_built_from_the_source_distribution_is_the_same(unpacked, wheel, tmp_path):
    """As pip does it with a source distribution."""
    done = python("-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path), cwd=unpacked)
    assert done.returncode == 0, done.stderr
    (rebuilt,) = tmp_path.iterdir()
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(rebuilt) as other:
        assert {i.filename: i.CRC for i in one.infolist()} == {i.filename: i.CRC for i in other.infolist()}


@pytest.mark.slow
def test_the_tests_of_the_source_distribution_run(unpacked):
    """Those that read other files are found, and some run. PYTHONPATH: what is installed may be this checkout."""
    start = ("-m", "pytest", "-n", "0", "-q")
    folders = ("tests/bench", "tests/commands", "tests/documents", "tests/structure")
    some = ("tests/structure/test_extras.py", "tests/documents/test_paths.py")
    for chosen in (("--collect-only", "-m", "", *folders), some):
        done = python(*start, *chosen, cwd=unpacked, PYTHONPATH=str(unpacked))
        assert done.returncode == 0, done.stdout[-3000:]

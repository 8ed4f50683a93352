"""What is installed with which extra, where."""

import tomllib
from importlib.metadata import version

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from processes import ROOT

pytestmark = pytest.mark.quick

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
LINUX = {"sys_platform": "linux", "platform_machine": "x86_64", "platform_system": "Linux"}


def needs_llvmlite(**place: str) -> bool:
    (line,) = (Requirement(text) for text in EXTRAS["cpu"])
    return line.marker is None or line.marker.evaluate({**LINUX, **place})


@pytest.mark.parametrize(
    "system, machine",
    [("linux", "x86_64"), ("linux", "aarch64"), ("win32", "AMD64"), ("darwin", "arm64")],
)
def test_llvmlite_comes_where_there_are_wheels(system, machine):
    assert needs_llvmlite(sys_platform=system, platform_machine=machine)


def test_a_mac_with_an_intel_chip_goes_without():
    assert not needs_llvmlite(sys_platform="darwin", platform_machine="x86_64")


def test_the_range_has_both_ends_that_were_tested():
    (line,) = (Requirement(text) for text in EXTRAS["cpu"])
    for inside in ("0.45.0", "0.47.0", "0.50.0"):
        assert Version(inside) in line.specifier, inside
    for outside in ("0.44.0", "0.51.0"):
        assert Version(outside) not in line.specifier, outside


def test_what_is_installed_lies_in_it():
    pytest.importorskip("llvmlite")
    (line,) = (Requirement(text) for text in EXTRAS["cpu"])
    assert Version(version("llvmlite")) in line.specifier


@pytest.mark.parametrize("extra", ["demo", "test"])
def test_the_demo_and_the_tests_bring_it(extra):
    """By name, or by an extra that they bring."""
    brought, more = set(), {extra}
    while more:
        brought |= more
        lines = [Requirement(text) for name in more for text in EXTRAS[name]]
        more = {name for line in lines if line.name == "tritongru" for name in line.extras} - brought
    assert "cpu" in brought

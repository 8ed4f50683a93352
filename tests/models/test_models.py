"""Models of other packages are converted, compared, trained and converted back. A test whose package is not installed
is skipped; the extra `test` brings three of them."""

import tomllib
from importlib.metadata import version

import pytest
import torch
from packaging.requirements import Requirement
from packaging.version import Version
from processes import ROOT

from bench.models import check as checking
from bench.models.catalogue import MODELS
from bench.models.check import check
from tritongru.planning.cpu_plan import refusal_on_cpu

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def required(extra):
    return {line.name: line for line in map(Requirement, EXTRAS[extra]) if line.name != "tritongru"}


CI = sorted({model.package for model in MODELS} & required("test").keys())


def model_or_skip(model):
    why = model.why_not()
    if why and model.package in CI:
        pytest.fail(f"the extra test should bring it: {why}")
    if why:
        pytest.skip(why)
    return model


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("impl", ["auto", "llvm"])
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_a_converted_model_computes_what_it_did(model, impl):
    if impl == "llvm" and (reason := refusal_on_cpu(torch.device("cpu"), torch.float32)):
        pytest.skip(reason)
    checked = check(model_or_skip(model), seed=1, impl=impl)
    assert checked.errors.keys() == {"outputs", "losses", "gradients", "parameters"}
    assert 0 <= checked.parity <= 1
    if impl == "llvm":
        assert checked.errors["outputs"] > 0, "equal bits: torch's own loop ran"


@pytest.mark.parametrize("package", CI)
def test_packages_of_three_fields_are_always_installed(package):
    assert Version(version(package)) in required("test")[package].specifier


def test_the_three_are_of_different_fields():
    assert len(CI) == 3
    assert len({model.field for model in MODELS if model.package in CI}) == 3


def test_the_extra_names_the_packages_of_the_catalogue():
    extra = required("ecosystem")
    assert extra.keys() == {model.package for model in MODELS}
    for package in CI:
        assert extra[package].specifier == required("test")[package].specifier
    assert len({model.name for model in MODELS}) == len(MODELS)


def test_a_package_that_is_missing_or_broken_is_a_reason(monkeypatch):
    (model,) = (model for model in MODELS if model.package == "medaka")
    versions = {"medaka": None}
    monkeypatch.setattr("bench.models.model.version_of", versions.get)
    assert model.why_not() == "medaka is not installed; pip install medaka"
    versions["medaka"] = "2"

    def broken(name):
        raise OSError(f"no library for {name}\nsecond line")

    monkeypatch.setattr("bench.models.model.importlib.import_module", broken)
    assert model.why_not() == "medaka 2 cannot be imported: no library for medaka.architectures.gru"


def test_the_limits_are_those_of_rounding():
    assert checking.VALUES <= 1e-5
    assert checking.GRADIENTS <= 1e-4

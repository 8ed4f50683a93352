"""The programs in docs/examples run, and do what their pages say."""

import importlib.util
import runpy
import sys

import pytest
import torch
from processes import ROOT
from tolerance import assert_close_to_float64

import tritongru

EXAMPLES = ROOT / "docs" / "examples"
SMALL = {
    "classifier": ["--steps", "2", "--batch", "4", "--hidden", "4"],
    "moving": ["--batch", "4", "--length", "5", "--steps", "2"],
    "rollout": ["--updates", "2", "--batch", "3", "--steps", "6", "--hidden", "4"],
    "streaming": ["--steps", "5", "--batch", "2", "--hidden", "4"],
    "truncated": ["--steps", "120", "--batch", "2", "--segment", "50", "--hidden", "4"],
}


def example(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_program_is_run_here():
    assert sorted(SMALL) == sorted(path.stem for path in EXAMPLES.glob("*.py"))


NEEDS = {"moving": "torch_rechub"}  # packages of the extra test


@pytest.mark.parametrize("name", SMALL)
def test_it_runs_as_a_program(name, monkeypatch, capsys):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"{NEEDS[name]} is not installed")
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *SMALL[name]])
    with torch.random.fork_rng():
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert capsys.readouterr().out.strip()


def test_a_model_learns_the_same_before_and_after(monkeypatch, capsys):
    pytest.importorskip("torch_rechub", reason="torch_rechub is not installed")
    monkeypatch.setattr(sys, "argv", ["moving.py", "--batch", "16", "--length", "20", "--steps", "5"])
    module = example("moving")
    with torch.random.fork_rng():
        module.main()
    before, *table, after = capsys.readouterr().out.splitlines()
    assert before.startswith("torch.nn.GRU:  loss ")
    assert after.startswith("tritongru.GRU: loss ")
    assert float(before.split()[2].rstrip(",")) == pytest.approx(float(after.split()[2].rstrip(",")), abs=3e-4)
    assert table[-1].startswith("gru ")
    assert table[-1].endswith(" tritongru.GRU")


def test_a_stream_gives_what_one_call_gives():
    torch.manual_seed(0)
    gru = tritongru.GRU(16, 24, num_layers=2)
    sequence = torch.randn(30, 3, 16)
    with torch.no_grad():
        exact, same = gru.to_torch(copy=True).double()(sequence.double())[0], gru.to_torch()(sequence)[0]
    assert_close_to_float64(example("streaming").stream(gru, sequence), exact, same, "stream")


def test_the_update_sees_the_rollout(monkeypatch):
    """The first time that the update computes the actions' probabilities, they are those of the rollout."""
    module, ratios = example("rollout"), []
    minimum = torch.minimum

    def recorded(a, b):
        ratios.append((a, b))
        return minimum(a, b)

    monkeypatch.setattr(module.torch, "minimum", recorded)
    torch.manual_seed(0)
    module.train(updates=1, batch=5, steps=20, hidden=8)
    unclipped, clipped = ratios[0]
    torch.testing.assert_close(unclipped, clipped, rtol=1e-4, atol=1e-5)  # a ratio of 1 is not clipped


@pytest.mark.slow
def test_they_learn():
    torch.manual_seed(0)
    assert sum(example("rollout").train(updates=25, batch=64, steps=32, hidden=32)[-5:]) > 5 * 0.8
    assert example("classifier").train(steps=120, batch=64, hidden=32)[1] > 0.9
    losses = example("truncated").train(steps=4000, batch=16, segment=50, hidden=32)
    assert sum(losses[-5:]) < sum(losses[:5]) / 3

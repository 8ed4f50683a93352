"""`python -m tritongru inspect`: what would be converted, where it would run, and each wrong argument in a sentence."""

import sys
import textwrap

import pytest
import torch
from processes import python
from torch import nn

import tritongru
from tritongru.__main__ import main
from tritongru.planning import cpu_plan

pytestmark = pytest.mark.quick

SOURCE = """
    import sys
    from torch import nn

    class Mine(nn.GRU):
        pass

    class Models:
        @staticmethod
        def build():
            return build()

    def build():
        return nn.ModuleDict({"rnn": nn.GRU(8, 100, 2), "cell": nn.GRUCell(8, 16), "own": Mine(2, 3)})

    model = nn.GRU(4, 512)
    plain = nn.Linear(2, 3)
    number = 3

    def fails():
        raise ValueError("two\\n lines")

    def wants(size):
        pass

    def gives():
        return [1]

    def leaves():
        sys.exit("bye")

    class Refuses(nn.Sequential):
        def train(self, mode=True):
            raise NotImplementedError("not supported")

    def refuses():
        return Refuses(nn.GRU(2, 3))

    def huge():
        return nn.ModuleDict({"größe": nn.GRU(2, 3), "vast": nn.GRU(10, 100_000, 100, device="meta")})

    def half():
        return nn.GRUCell(4, 8).half()

    def __getattr__(name):
        if name == "lazy":
            raise ImportError("needs a package")
        raise AttributeError(name)
"""


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Types a command in a folder with the module ``some_models``; returns exit code, output and errors."""
    (tmp_path / "some_models.py").write_text(textwrap.dedent(SOURCE))
    (tmp_path / "broken.py").write_text("import no_such_package")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    for name in ("some_models", "broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)

    def call(*arguments):
        try:
            code = main(["inspect", *arguments])
        except SystemExit as left:
            code = left.code
        return code, *capsys.readouterr()

    yield call
    sys.modules.pop("some_models", None)


def test_what_would_change_and_what_not(command):
    code, out, err = command("some_models:build")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0] == "calls with B = 1 and T = 512 (--batch, --time)"
    assert lines[1] == "rnn: torch.nn.GRU(8, 100, num_layers=2) would become tritongru.GRU"
    assert "cell: torch.nn.GRUCell(8, 16) would become tritongru.GRUCell" in lines
    assert any(line.startswith("own ") and "a subclass of torch.nn.GRU" in line for line in lines)
    assert lines[-1] == "2 to convert, 1 left; nothing was changed"
    assert type(sys.modules["some_models"].build()["rnn"]) is nn.GRU


@pytest.mark.parametrize("place", ["some_models:Models.build", "some_models:model"])
def test_a_method_or_a_module_is_taken(command, place):
    code, out, _ = command(place, "--as-torch-type")
    assert code == 0
    assert "tritongru.TorchTypeGRU" in out
    assert type(sys.modules["some_models"].model) is nn.GRU


def test_without_a_gru(command):
    assert command("some_models:plain")[1].splitlines() == [
        "note: the model has no torch.nn.GRU",
        "0 to convert, 0 left; nothing was changed",
    ]


@pytest.mark.parametrize("options, mode", [((), "training step"), (("--inference",), "forward pass")])
def test_the_gain_on_a_gpu_is_the_models(command, options, mode):
    code, out, _ = command("some_models:model", "--gpu", "H100", "--batch", "16", "--time", "100", *options)
    gru = nn.GRU(4, 512).train(not options)
    plan = tritongru.explain(gru, batch=16, time=100, device="h100")
    ratio = plan.expected_ratio_forward if options else plan.expected_ratio
    assert code == 0
    assert "B = 16 and T = 100" in out
    assert f"  H100, float32: {plan.family}, {plan.reason}" in out
    assert (
        f"{mode} is expected to take {ratio:.1f} times as long as ours (a model of the time loop, not measured)" in out
    )


def test_without_figures_of_torchs_the_gain_is_unknown(command):
    plan = tritongru.explain(nn.GRU(8, 100, 2), batch=1, time=512, device="h100")
    assert plan.expected_ratio is None
    assert f"the gain is unknown: {plan.torch_unknown}" in command("some_models:build", "--gpu", "h100")[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the plan for this machine is a GPU's")
def test_the_gain_on_a_cpu_is_measured(command, monkeypatch):
    pytest.importorskip("llvmlite", reason="without llvmlite torch's GRU runs")
    near = {"hidden": 77, "batch": 3, "threads": 1, "isa": "avx2", "over": 6.54, "high": 7.0}
    monkeypatch.setattr(cpu_plan, "nearest", lambda *asked: near)
    own, before = "  torch.nn.GRU's training step takes 6.5 times as long as ours", torch.get_num_threads()
    for threads, about in ((1, ""), (2, " (this process has 2)")):
        torch.set_num_threads(threads)
        size = f"H = 77, B = 3, float32, 1 thread{about}, AVX2"
        assert f"{own} at the nearest measured size: {size}" in command("some_models:model")[1].splitlines()
    torch.set_num_threads(before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the plan for this machine is a GPU's")
@pytest.mark.parametrize("takes, text", [(True, "calls without gradients run a compiled step"), (False, "no gain was")])
def test_a_cell_on_a_cpu(command, monkeypatch, takes, text):
    monkeypatch.setattr(cpu_plan, "takes_cell", lambda *asked: takes)
    assert text in command("some_models:build")[1]


@pytest.mark.parametrize(
    "place, text",
    [
        ("some_models", "expected MODULE:FACTORY, such as my_package.models:build, got 'some_models'"),
        (":build", "expected MODULE:FACTORY"),
        ("some_models:", "expected MODULE:FACTORY"),
        ("no_models:build", "No module named 'no_models'; run this in the folder that holds it, or set PYTHONPATH"),
        ("no/models.py:build", "no/models.py is a file; name the module as Python imports it: no.models:build"),
        ("broken:build", "broken cannot be imported: ModuleNotFoundError: No module named 'no_such_package'"),
        ("some_models:built", "some_models has no built; did you mean build?"),
        ("some_models:xyz", "some_models has no xyz; check the name"),
        ("some_models:build.x", "some_models has no build.x; check the name"),
        ("some_models:number", "some_models:number should be a function or a torch.nn.Module, got int"),
        ("some_models:fails", "fails() failed: ValueError: two lines (some_models.py, line 21)"),
        ("some_models:wants", "argument: 'size'; give a function that needs no arguments"),
        ("some_models:gives", "gives() should return a torch.nn.Module, got list"),
        ("some_models:lazy", "lazy of some_models is not available: ImportError: needs a package"),
        ("some_models:leaves", "leaves() failed: SystemExit: bye (some_models.py, line 30)"),
    ],
)
def test_a_wrong_place_is_a_sentence(command, place, text):
    code, out, err = command(place)
    assert (code, out) == (2, "")
    assert text in err.splitlines()[-1]
    assert "Traceback" not in err


def test_models_that_refuse_a_mode_or_that_no_device_holds(command):
    assert command("some_models:refuses", "--inference")[0] == 0
    code, out, _ = command("some_models:huge")
    assert code == 0
    assert "  no plan: the weights" in out
    assert out.endswith("2 to convert, 0 left; nothing was changed\n")


@pytest.mark.parametrize("options, says", [((), "torch's cell runs, the compiled step"), (("--gpu", "h100"), "calls")])
def test_a_cell_of_another_dtype(command, options, says):
    assert f"float16, one time step: {says}" in command("some_models:half", *options)[1]


def test_names_that_a_terminal_cannot_show(command, tmp_path):
    done = python("-m", "tritongru", "inspect", "some_models:huge", cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert r"gr\xf6\xdfe: torch.nn.GRU(2, 3)" in done.stdout


def test_it_runs_as_a_command(command, tmp_path):
    done = python("-m", "tritongru", "inspect", "some_models:build", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("2 to convert, 1 left; nothing was changed\n")

"""The demo: its table, its picture, that it repeats, and one sentence for every bad value.

The training runs are small. They use torch's own GRU: under Triton's interpreter an epoch would take minutes.
"""

import argparse
import errno
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cpu_loop import HAS_LOOP, llvmlite_of
from torch import nn

import tritongru
from tritongru.__main__ import main
from tritongru.commands import demo, forecast, picture

LINKS = {"lost.png": "gone.png", "astray.png": "absent/gone.png", "loop.png": "loop.png", "to-folder.png": "folder.png"}
SMALL = ["demo", "--hidden", "16", "--epochs", "3", "--device", "cpu"]
RULES = {"last week": ("622", "1.63"), "shifted week": ("533", "1.38"), "least squares": ("446", "1.15")}
N = forecast.HELD_OUT - forecast.DAY + 1  # held-out forecasts


@pytest.fixture(autouse=True)
def no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def python(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in ``folder``, with its output in pipes and this checkout in its path."""
    path = os.pathsep.join([str(Path(demo.__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


def printed_rows(printed: str) -> dict[str, list[str]]:
    """Name -> parameters, seconds per epoch, seconds in all, RMSE, MAPE, as printed."""
    found = {}
    for line in printed.splitlines():
        for name in (*demo.MODELS, *forecast.BASELINES):
            if re.match(rf"  {name} +[-\d]", line):
                found[name] = line.strip().removeprefix(name).split()
    return found


def assert_same_figures(about: dict[str, Any], table: dict[str, list[str]]) -> None:
    """What --json prints is what the table says, and belongs together."""
    assert (about["hidden"], about["epochs"], about["ran on"]) == (16, 3, "one thread of the CPU")
    assert about["torch"] == torch.__version__
    assert list(about["errors"]) == list(about["horizon"]) == list(table)
    assert list(about["seconds"]) == list(demo.MODELS)
    for name, value in about["errors"].items():
        assert value == pytest.approx(float(table[name][3]), abs=0.6)
        mean_square = sum(own**2 for own in about["horizon"][name]) / forecast.DAY
        assert mean_square**0.5 == pytest.approx(value, abs=0.2)
    assert {name: len(values) for name, values in about["week"].items()} == dict.fromkeys(
        ("true", "shifted week", "GRU"), forecast.WEEK
    )


@pytest.mark.slow
def test_a_small_run_beats_last_week_draws_it_and_repeats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for extra in demo.EXTRAS:
        pytest.importorskip(extra, reason=f'the demo needs {extra}: pip install "tritongru[demo]"')
    from matplotlib import image

    ran = python("-m", "tritongru", *SMALL, folder=tmp_path)
    assert ran.returncode == 0, ran.stderr
    table = printed_rows(ran.stdout)
    assert list(table) == ["GRU", "nn.GRU", "LSTM", "RNN", *RULES]
    for name, (megawatts, percent) in RULES.items():
        assert table[name] == ["-", "-", "-", megawatts, percent]
    for name, gates in (("GRU", 3), ("nn.GRU", 3), ("LSTM", 4), ("RNN", 1)):
        parameters, epoch, whole, megawatts, percent = (float(figure.replace(",", "")) for figure in table[name])
        assert parameters == gates * (16 * 2 + 16 * 16 + 2 * 16) + 16 * 48 + 48
        assert 0 < epoch < whole
        assert megawatts < 622
        assert percent < 3
    ours, theirs = (float(table[name][3]) for name in ("GRU", "nn.GRU"))
    assert ours == pytest.approx(theirs, rel=0.02), "the same function from the same weights"
    plan = tritongru.explain(tritongru.GRU(2, 16), batch=forecast.BATCH, time=forecast.WINDOW, device="cpu")
    assert f"which ran on {plan.device} (path {plan.family}: {plan.reason}).\n" in ran.stdout
    assert not re.search("[\x1b\r]", ran.stdout), "a progress bar went into a pipe"
    assert len(ran.stdout.splitlines()) < 35

    assert [path.name for path in tmp_path.iterdir()] == ["demo.png"]
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = image.imread(tmp_path / "demo.png")
    assert pixels.shape[:2] == (1380, 960)
    assert pixels.std() > 0.1, "nothing is drawn"

    torch.manual_seed(1)
    threads = torch.get_num_threads()
    assert main([*SMALL, "--json", "--out", str(tmp_path / "again.svg")]) == 0
    printed = capsys.readouterr()
    again = printed_rows(printed.err)
    assert_same_figures(json.loads(printed.out), again)
    assert {name: row[-2:] for name, row in again.items()} == {name: row[-2:] for name, row in table.items()}
    assert torch.get_num_threads() == threads
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.svg", "demo.png"]
    drawn = (tmp_path / "again.svg").read_text()
    for text in ("England and Wales", "August 2000", "tritongru", *table):
        assert text in drawn.replace("<!--", "").replace("-->", "")


@pytest.mark.parametrize(
    ("option", "value", "remedy"),
    [
        *(
            ("--epochs", value, "from 1 to 1000")
            for value in ("0", "-3", "1.5", "many", "", "1001", "\u0663", "9" * 5000)
        ),
        *(("--hidden", value, "from 1 to 2048") for value in ("0", "2049")),
        *(("--device", value, "choose from auto, cpu") for value in ("tpu", "meta", "cuda:99")),
        ("--out", "demo.txt", "should end in .png, .pdf or .svg"),
        ("--out", "", "should end in .png"),
        ("--out", "folder.png", "is a folder; give a file name"),
        ("--out", "absent/demo.png", "give a file in a writable folder"),
        ("--out", "file.png/demo.png", "give a file in a writable folder"),
        ("--out", "n" * 300 + ".png", "give a file in a writable folder"),
        ("--out", "lost.png", "gone.png', which does not exist; remove the link or give another name"),
        ("--out", "astray.png", "absent/gone.png', which does not exist; remove the link or give another name"),
        ("--out", "loop.png", "which does not exist; remove the link or give another name"),
        ("--out", "to-folder.png", "is a folder; give a file name"),
        ("--out", "pipe.png", "'pipe.png' is not a writable file; give another name"),
        pytest.param(
            "--out",
            "/proc/demo.png",
            "give a file in a writable folder",
            marks=pytest.mark.skipif(not Path("/proc/self").exists(), reason="/proc is a folder that nobody can fill"),
        ),
    ],
)
def test_a_bad_value_gets_one_sentence_before_any_training(
    option: str,
    value: str,
    remedy: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.png").mkdir()
    Path("file.png").write_bytes(b"a picture")
    os.mkfifo("pipe.png")
    for link, target in LINKS.items():
        Path(link).symlink_to(target)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(demo, "run", lambda args: pytest.fail(f"{args} was taken"))
    with pytest.raises(SystemExit) as stop:
        main(["demo", option, value])
    printed = capsys.readouterr()
    *usage, sentence = printed.err.splitlines()
    assert stop.value.code == 2
    assert printed.out == ""
    assert all(line.startswith(("usage:", " ")) for line in usage)
    assert f"error: argument {option}: " in sentence
    assert remedy in sentence
    if option != "--out":
        assert repr(value) in sentence
    assert sorted(tmp_path.rglob("*")) == before
    assert Path("file.png").read_bytes() == b"a picture"


def test_without_the_extras_the_demo_names_the_command(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules.update(dict.fromkeys(('matplotlib', 'pmdarima', 'rich'))); "
        "from tritongru.__main__ import main; sys.exit(main(['demo']))"
    )
    ran = python("-c", program, folder=tmp_path)
    assert ran.returncode == 1
    assert ran.stderr == 'the demo needs matplotlib, pmdarima, rich; run: pip install "tritongru[demo]"\n'
    assert list(tmp_path.iterdir()) == []


def made() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """What came, and forecasts of everybody, (N, DAY)."""
    truth = torch.linspace(20_000, 30_000, N * forecast.DAY, dtype=torch.float64).view(N, forecast.DAY)
    return truth, dict.fromkeys((*demo.MODELS, *forecast.BASELINES), truth + 100)


def drawn(path: Path) -> None:
    truth, forecasts = made()
    picture.draw(
        path, picture.shown(truth, forecasts, dict.fromkeys(forecasts, 100.0), dict.fromkeys(demo.MODELS, 0.5))
    )


def test_a_picture_that_cannot_be_written_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = pytest.importorskip("matplotlib.figure", reason="the picture is drawn by matplotlib")

    def fill_the_disk(self: object, path: Path, **_: object) -> None:
        path.write_bytes(b"\x89PNG half a picture")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(figure.Figure, "savefig", fill_the_disk)
    older = tmp_path / "demo.png"
    older.write_bytes(b"an older picture")
    with pytest.raises(OSError, match="No space left"):
        drawn(older)
    assert [path.name for path in tmp_path.iterdir()] == ["demo.png"]
    assert older.read_bytes() == b"an older picture"


@pytest.mark.parametrize("name", ["link.png", "n" * 251 + ".png"])
def test_a_picture_is_written_through_a_link_and_under_the_longest_name(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib.figure", reason="the picture is drawn by matplotlib")
    (tmp_path / "pictures").mkdir()
    target, link = tmp_path / "pictures" / "older", tmp_path / name
    target.write_bytes(b"an older picture")
    link.symlink_to("pictures/older")
    drawn(picture.picture(str(link)))
    assert link.is_symlink()
    assert link.read_bytes().startswith(b"\x89PNG")
    assert target.read_bytes() == link.read_bytes()
    assert sorted(tmp_path.rglob("*")) == sorted([link, target, target.parent])


def test_a_file_that_is_not_to_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The superuser may write everything, so the answer is given here."""
    kept = tmp_path / "kept.png"
    kept.write_bytes(b"a picture to keep")
    monkeypatch.setattr(os, "access", lambda path, mode: (Path(path), mode) != (kept, os.W_OK))
    with pytest.raises(argparse.ArgumentTypeError, match=r"kept.png' is not a writable file; give another name"):
        picture.picture(str(kept))
    assert picture.picture(str(tmp_path / "new.png")) == tmp_path / "new.png"


def findings(gru_seconds: float, gru_error: float) -> str:
    layers: dict[str, nn.RNNBase] = {
        "GRU": tritongru.GRU(2, 4),
        "nn.GRU": nn.GRU(2, 4),
        "LSTM": nn.LSTM(2, 4),
        "RNN": nn.RNN(2, 4),
    }
    seconds = {"GRU": gru_seconds, "nn.GRU": 4.0, "LSTM": 1.0, "RNN": 0.5}
    results = [
        demo.Result(name, forecast.Forecaster(lambda *_, layer=layer: layer, 4), [seconds[name]])
        for name, layer in layers.items()
    ]
    errors = {"GRU": (gru_error, 1.0), "nn.GRU": (gru_error, 1.0), "LSTM": (500.0, 1.0), "RNN": (600.0, 1.0)}
    errors |= {"last week": (700.0, 2.0), "shifted week": (500.0, 2.0), "least squares": (550.0, 2.0)}
    return "\n".join(demo.findings(results, errors, torch.device("cpu")))


def test_the_findings_follow_the_numbers() -> None:
    slow = findings(gru_seconds=2.0, gru_error=450.0)
    assert "An epoch took GRU 2.00 s; nn.GRU 2.0 times as long, LSTM 0.5 times as long, RNN 0.2 times as long." in slow
    assert "GRU: 50 MW (10 %) better than 'shifted week', 100 MW (18 %) better than 'least squares'." in slow
    assert "LSTM: 0 MW (0 %) worse than 'shifted week', 50 MW (9 %) better than 'least squares'." in slow
    assert "RNN: 100 MW (20 %) worse than 'shifted week', 50 MW (9 %) worse than" in slow
    fast = findings(gru_seconds=0.5, gru_error=600.0)
    assert "LSTM 2.0 times as long" in fast
    assert "GRU: 100 MW (20 %) worse than 'shifted week'" in fast
    assert not HAS_LOOP or "tritongru[cpu]" not in fast
    with llvmlite_of():
        assert "for a compiled loop, run: pip install 'tritongru[cpu]'" in findings(2.0, 450.0)


@pytest.mark.parametrize("width", [30, 79, 80])
def test_a_narrow_terminal_keeps_every_number(width: int) -> None:
    console = pytest.importorskip("rich.console", reason="the table is printed by rich")
    file = io.StringIO()
    results = [
        demo.Result(name, forecast.Forecaster(demo.MODELS[name], 64), [12.34, 56.78, 9.01]) for name in demo.MODELS
    ]
    errors = dict.fromkeys((*demo.MODELS, *forecast.BASELINES), (1234.4, 12.345))
    demo.show(console.Console(file=file, width=width), results, errors)
    printed = file.getvalue()
    for text, times in (("12.34", 4), ("78.1", 4), ("1234", 7), ("12.35", 7), ("LSTM", 1), ("shifted week", 1)):
        assert printed.count(text) == times, (text, printed)
    assert "…" not in printed
    for result in results:
        assert f"{sum(parameter.numel() for parameter in result.model.parameters()):,}" in printed


@pytest.mark.slow
def test_an_interrupt_leaves_one_line_and_no_file(tmp_path: Path) -> None:
    program = (  # started in the background, a process ignores the signal
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from tritongru.__main__ import main; "
        "from tritongru.commands import demo; epoch = demo.Training.epoch; "
        "stop = lambda *a: os.kill(os.getpid(), signal.SIGINT); "
        "demo.Training.epoch = lambda self, after: epoch(self, stop); "
        f"sys.exit(main({SMALL}))"
    )
    for extra in demo.EXTRAS:
        pytest.importorskip(extra, reason=f'the demo needs {extra}: pip install "tritongru[demo]"')
    ran = python("-c", program, folder=tmp_path)
    assert ran.returncode == 130
    assert ran.stderr == "interrupted\n"
    assert list(tmp_path.iterdir()) == []


def test_errors_by_hand() -> None:
    truth = torch.tensor([[100.0, 200.0]], dtype=torch.float64)
    found = torch.tensor([[110.0, 180.0]], dtype=torch.float64)
    assert forecast.mape(truth, found) == pytest.approx(10, rel=1e-12)
    assert forecast.rmse(truth, found) == pytest.approx(250**0.5, rel=1e-12)
    assert forecast.mape(truth, truth) == forecast.rmse(truth, truth) == 0


def series_of(length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 30_000 + 5_000 * torch.randn(length, generator=generator, dtype=torch.float64)


def test_windows_precede_what_they_forecast_and_know_nothing_of_the_held_out_weeks() -> None:
    series = series_of(4 * forecast.WEEK)
    task = forecast.make_task(series, torch.device("cpu"))
    first = len(series) - forecast.HELD_OUT
    normal = ((series - series[:first].mean()) / series[:first].std()).float()
    for origins, begin, end in (
        (task.training, forecast.WEEK + forecast.WINDOW, first),
        (task.held_out, first, len(series)),
    ):
        assert len(origins) == end - begin - forecast.DAY + 1
        assert origins.window.shape == (forecast.WINDOW, len(origins), 2)
        for row in (0, 7, len(origins) - 1):
            now = begin + row  # the index of the first half hour that is forecast
            week_before = slice(now - forecast.WINDOW - forecast.WEEK, now - forecast.WEEK)
            window = normal[now - forecast.WINDOW : now]
            assert torch.equal(origins.window[:, row, 0], window)
            assert torch.equal(origins.window[:, row, 1], window - normal[week_before])
            assert torch.equal(origins.last_week[row], normal[now - forecast.WEEK :][: forecast.DAY])
            assert torch.equal(origins.target[row], normal[now : now + forecast.DAY])
    torch.testing.assert_close(task.truth[5], series[first + 5 :][: forecast.DAY], rtol=1e-6, atol=0)

    changed = series.clone()
    changed[first:] += 10_000
    other = forecast.make_task(changed, torch.device("cpu"))
    assert (other.mean, other.deviation) == (task.mean, task.deviation)
    for name in ("window", "last_week", "target"):
        assert torch.equal(getattr(other.training, name), getattr(task.training, name))
    fitted, again = (forecast._fitted(each.training)(task.held_out) for each in (task, other))
    torch.testing.assert_close(fitted, again)


def test_the_simple_rules_by_hand() -> None:
    series = series_of(4 * forecast.WEEK)
    task = forecast.make_task(series, torch.device("cpu"))
    found = forecast.baselines(task)
    for row in (0, 50, N - 1):
        now = task.first + row
        last_week = series[now - forecast.WEEK :][: forecast.DAY]
        torch.testing.assert_close(found["last week"][row], last_week, rtol=1e-5, atol=0)
        shifted = last_week + series[now - 1] - series[now - 1 - forecast.WEEK]
        torch.testing.assert_close(found["shifted week"][row], shifted, rtol=1e-5, atol=0)
    # A demand whose change from last week is a linear function of the differences: least squares find it.
    week = series[: forecast.WEEK]
    drift = torch.arange(4, dtype=torch.float64).repeat_interleave(forecast.WEEK) * 100
    grown = forecast.make_task(week.repeat(4) + drift, torch.device("cpu"))
    torch.testing.assert_close(forecast.baselines(grown)["least squares"], grown.truth, rtol=1e-4, atol=0)


def test_an_untrained_model_forecasts_last_week() -> None:
    task = forecast.make_task(series_of(4 * forecast.WEEK), torch.device("cpu"))
    model = forecast.Forecaster(nn.GRU, 4)
    assert torch.equal(model(task.held_out), task.held_out.last_week)
    loss = next(forecast.losses(model, task.training, 0))
    torch.autograd.backward(loss)
    assert model.head.weight.grad is not None
    assert model.head.weight.grad.abs().max() > 0


def test_the_rates_are_those_that_the_study_chose() -> None:
    """From the committed rows: each model's best rate on the two weeks before the held-out ones."""
    from bench.pages.study.rows import machines
    from bench.study.command import read

    found = machines(read(Path(demo.__file__).parents[2] / "bench" / "results" / "study"))
    (machine,) = (one for one in found if not one.has_gpu)
    for model, rate in demo.RATES.items():
        errors = machine.choices("electricity", "GRU" if model == "nn.GRU" else model)
        assert min(errors, key=errors.__getitem__) == rate, model

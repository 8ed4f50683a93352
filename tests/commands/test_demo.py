"""The demo: its table, its picture, that it repeats, and one sentence for every bad value.

The training runs are small. They use torch's own GRU: under Triton's interpreter an epoch would take minutes.
"""

import argparse
import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cpu_loop import HAS_LOOP, llvmlite_of
from torch import nn

import tritongru
from tritongru.__main__ import main
from tritongru.commands import demo

LINKS = {"lost.png": "gone.png", "astray.png": "absent/gone.png", "loop.png": "loop.png", "to-folder.png": "folder.png"}
SMALL = ["demo", "--hidden", "16", "--epochs", "3", "--device", "cpu"]


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
    """Model -> parameters, seconds per epoch, seconds in all, sMAPE, RMSE, as printed."""
    found = {}
    for line in printed.splitlines():
        for name in (*demo.MODELS, demo.NAIVE):
            if re.match(rf"  {name} +[-\d]", line):
                found[name] = line.strip().removeprefix(name).split()
    return found


@pytest.mark.slow
def test_a_small_run_beats_the_naive_forecast_draws_it_and_repeats(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for extra in demo.EXTRAS:
        pytest.importorskip(extra, reason=f'the demo needs {extra}: pip install "tritongru[demo]"')
    from matplotlib import image

    ran = python("-m", "tritongru", *SMALL, folder=tmp_path)
    assert ran.returncode == 0, ran.stderr
    table = printed_rows(ran.stdout)
    assert list(table) == ["GRU", "LSTM", "RNN", "week before"]
    assert table["week before"] == ["-", "-", "-", "1.743", "647.7"]
    for name, gates in (("GRU", 3), ("LSTM", 4), ("RNN", 1)):
        parameters, epoch, whole, percent, megawatts = (float(figure.replace(",", "")) for figure in table[name])
        assert parameters == gates * (16 * 1 + 16 * 16 + 2 * 16) + 16 + 1
        assert 0 < epoch < whole
        assert percent < 0.9 * 1.743
        assert megawatts < 0.95 * 647.7
    assert "Better than the naive forecast in both errors: GRU, LSTM, RNN.\n" in ran.stdout
    plan = tritongru.explain(tritongru.GRU(1, 16), batch=demo.BATCH, time=demo.WINDOW, device="cpu")
    assert f"The GRU ran on {plan.device}, in float32\n{plan.family}: {plan.reason}\n" in ran.stdout
    assert not re.search("[\x1b\r]", ran.stdout), "a progress bar went into a pipe"
    assert len(ran.stdout.splitlines()) < 25

    assert [path.name for path in tmp_path.iterdir()] == ["demo.png"]
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = image.imread(tmp_path / "demo.png")
    assert pixels.shape[:2] == (980, 1820)
    assert pixels.std() > 0.1, "nothing is drawn"

    torch.manual_seed(1)
    threads = torch.get_num_threads()
    assert main([*SMALL, "--out", str(tmp_path / "again.svg")]) == 0
    again = printed_rows(capsys.readouterr().out)
    assert {name: row[-2:] for name, row in again.items()} == {name: row[-2:] for name, row in table.items()}
    assert torch.get_num_threads() == threads
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.svg", "demo.png"]


@pytest.mark.parametrize(
    ("option", "value", "remedy"),
    [
        *(("--epochs", value, "from 1 to 1000") for value in ("0", "-3", "1.5", "many", "", "1001", "9" * 5000)),
        *(("--hidden", value, "from 1 to 2048") for value in ("0", "2049")),
        *(("--device", value, "choose from auto, cpu") for value in ("tpu", "meta", "cuda:99")),
        ("--out", "demo.txt", "does not end in .png, .pdf, .svg; give a name that does"),
        ("--out", "", "does not end in .png"),
        ("--out", "folder.png", "is a folder; give the name of a file"),
        ("--out", "absent/demo.png", "name a file in a folder where one can"),
        ("--out", "file.png/demo.png", "name a file in a folder where one can"),
        ("--out", "n" * 300 + ".png", "name a file in a folder where one can"),
        ("--out", "lost.png", "gone.png', where no file is; remove the link or give another name"),
        ("--out", "astray.png", "absent/gone.png', where no file is; remove the link or give another name"),
        ("--out", "loop.png", "where no file is; remove the link or give another name"),
        ("--out", "to-folder.png", "is a folder; give the name of a file"),
        ("--out", "pipe.png", "'pipe.png' is no file that can be written; give another name"),
        pytest.param(
            "--out",
            "/proc/demo.png",
            "name a file in a folder where one can",
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
    truth = torch.linspace(20_000, 30_000, demo.HELD_OUT, dtype=torch.float64)
    forecasts = dict.fromkeys((*demo.MODELS, demo.NAIVE), truth + 100)
    with pytest.raises(OSError, match="No space left"):
        demo.draw(older, truth, forecasts, dict.fromkeys(forecasts, (1.0, 100.0)))
    assert [path.name for path in tmp_path.iterdir()] == ["demo.png"]
    assert older.read_bytes() == b"an older picture"


def drawn(path: Path) -> None:
    truth = torch.linspace(20_000, 30_000, demo.HELD_OUT, dtype=torch.float64)
    forecasts = dict.fromkeys((*demo.MODELS, demo.NAIVE), truth + 100)
    demo.draw(path, truth, forecasts, dict.fromkeys(forecasts, (1.0, 100.0)))


@pytest.mark.parametrize("name", ["link.png", "n" * 251 + ".png"])
def test_a_picture_is_written_through_a_link_and_under_the_longest_name(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib.figure", reason="the picture is drawn by matplotlib")
    (tmp_path / "pictures").mkdir()
    target, link = tmp_path / "pictures" / "older", tmp_path / name
    target.write_bytes(b"an older picture")
    link.symlink_to("pictures/older")
    drawn(demo._picture(str(link)))
    assert link.is_symlink()
    assert link.read_bytes().startswith(b"\x89PNG")
    assert target.read_bytes() == link.read_bytes()
    assert sorted(tmp_path.rglob("*")) == sorted([link, target, target.parent])


def test_a_file_that_is_not_to_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The superuser may write everything, so the answer is given here."""
    kept = tmp_path / "kept.png"
    kept.write_bytes(b"a picture to keep")
    monkeypatch.setattr(os, "access", lambda path, mode: (Path(path), mode) != (kept, os.W_OK))
    with pytest.raises(
        argparse.ArgumentTypeError, match=r"kept.png' is no file that can be written; give another name"
    ):
        demo._picture(str(kept))
    assert demo._picture(str(tmp_path / "new.png")) == tmp_path / "new.png"


def test_the_findings_follow_the_numbers() -> None:
    def findings(gru_seconds: float, gru_percent: float) -> str:
        layers: dict[str, nn.RNNBase] = {"GRU": tritongru.GRU(1, 4), "LSTM": nn.LSTM(1, 4)}
        seconds = {"GRU": gru_seconds, "LSTM": 1.0}
        results = [
            demo.Result(name, demo.Forecaster(lambda *_, layer=layer: layer, 4), [seconds[name]], torch.zeros(0))
            for name, layer in layers.items()
        ]
        errors = {"GRU": (gru_percent, 500.0), "LSTM": (1.0, 500.0), demo.NAIVE: (2.0, 600.0)}
        return "\n".join(demo._findings(results, errors, torch.device("cpu")))

    slow = findings(gru_seconds=3.0, gru_percent=1.5)
    assert "the GRU 3.00 s and the LSTM 1.00 s: here the GRU is 3.0 times slower." in slow
    assert "forecast in both errors: GRU, LSTM." in slow
    fast = findings(gru_seconds=0.5, gru_percent=2.5)
    assert "here the GRU is 2.0 times faster." in fast
    assert not HAS_LOOP or "tritongru[cpu]" not in fast
    with llvmlite_of():
        assert "a compiled one comes with pip install 'tritongru[cpu]'." in findings(3.0, 1.5)
    assert "NOT better than the naive forecast: GRU;" in fast


def test_smape_is_the_mean_of_symmetric_percentages() -> None:
    truth = torch.tensor([100.0, 200.0], dtype=torch.float64)
    forecast = torch.tensor([110.0, 180.0], dtype=torch.float64)
    assert demo.smape(truth, forecast) == pytest.approx(100 * (20 / 210 + 40 / 380) / 2, rel=1e-12)
    assert demo.smape(truth, torch.zeros_like(truth)) == pytest.approx(200, rel=1e-12)
    assert demo.smape(truth, truth) == 0


def test_windows_precede_their_targets_and_know_nothing_of_the_held_out_weeks() -> None:
    generator = torch.Generator().manual_seed(0)
    series = 30_000 + 5_000 * torch.randn(1_000, generator=generator, dtype=torch.float64)
    task = demo.make_task(series, torch.device("cpu"))
    seen = len(series) - demo.HELD_OUT
    assert task.windows.shape == (demo.WINDOW, len(series) - demo.WINDOW)
    assert task.training == seen - demo.WINDOW
    normal = ((series - series[:seen].mean()) / series[:seen].std()).float()
    assert torch.equal(task.windows[:, 7], normal[7 : 7 + demo.WINDOW])
    assert torch.equal(task.targets, normal[demo.WINDOW :])

    changed = series.clone()
    changed[seen:] += 10_000
    other = demo.make_task(changed, torch.device("cpu"))
    assert (other.mean, other.deviation) == (task.mean, task.deviation)
    assert torch.equal(other.windows[:, : task.training], task.windows[:, : task.training])
    assert torch.equal(other.targets[: task.training], task.targets[: task.training])

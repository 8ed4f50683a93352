"""The study of GRU, LSTM and RNN: its statistics, what each task holds out, its rows and the words made of them."""

import json
import math
import re
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import nn

from bench.__main__ import main
from bench.measure.rows import WHERE_KEYS
from bench.pages import figures, study
from bench.pages.study import data, page
from bench.pages.study import figures as study_figures
from bench.pages.study import rows as study_rows
from bench.study import command, statistics, tasks, training
from bench.study.characters import Text
from bench.study.statistics import Interval, difference_in_words, ratio_in_words
from bench.study.tasks import Adding, Characters, Electricity, Setup, additions
from bench.study.training import MODELS, OF_TORCH, SMALL, TIMED, parameters, train, width
from tritongru.commands import forecast

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
TINY = Setup(hidden=12, batch=16, time=6, steps=5, seeds=2, rates=(5e-3, 2e-2))


# Statistics


@pytest.mark.parametrize(
    "freedom, level, expected",  # of published tables of Student's t, two-sided
    [
        (1, 0.95, 12.7062),
        (2, 0.95, 4.3027),
        (3, 0.95, 3.1824),
        (4, 0.95, 2.7764),
        (9, 0.95, 2.2622),
        (24, 0.95, 2.0639),
        (120, 0.95, 1.9799),
        (5, 0.99, 4.0321),
        (8, 0.90, 1.8595),
    ],
)
def test_quantiles_are_those_of_the_tables(freedom, level, expected):
    assert statistics.quantile(freedom, level) == pytest.approx(expected, abs=6e-5)


def test_an_interval_by_hand():
    found = statistics.interval([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.7764 * math.sqrt(2.5) / math.sqrt(5)
    assert (found.mean, found.low, found.high) == pytest.approx((3, 3 - half, 3 + half), abs=1e-3)
    with pytest.raises(ValueError, match="at least two values; got 1"):
        statistics.interval([1.0])


def test_an_interval_holds_the_truth_in_95_of_100_cases():
    torch.manual_seed(0)
    draws = (10 + 3 * torch.randn(2000, 5, dtype=torch.float64)).tolist()
    held = sum(found.low <= 10 <= found.high for found in map(statistics.interval, draws))
    assert held / 2000 == pytest.approx(0.95, abs=0.015)


def test_pairs_are_taken_seed_by_seed():
    first, second = [100.0, 200.0, 300.0], [99.0, 198.9, 299.1]
    found = statistics.paired(first, second)
    assert found.mean == pytest.approx(1)
    assert 0 < found.low < found.high < 1.5  # although each varies by hundreds
    doubled = statistics.ratio([2.0, 4.0, 6.2], [1.0, 2.0, 3.0])
    assert doubled.low < 2 < doubled.mean < doubled.high < 2.2
    with pytest.raises(ValueError):
        statistics.paired(first, second[:2])


def test_words_claim_nothing_that_the_interval_leaves_open():
    unsure = difference_in_words(Interval(1, -1, 3), " MW", ".1f")
    assert unsure == "no difference was found (95 % interval -1.0 to 3.0 MW)"
    assert difference_in_words(Interval(0, 0, 0)).startswith("no difference was found")
    assert difference_in_words(Interval(2, 1, 3), " MW", ".1f") == "larger by 1.0 to 3.0 MW"
    assert difference_in_words(Interval(-2, -3, -1), " MW", ".1f") == "smaller by 1.0 to 3.0 MW"
    assert ratio_in_words(Interval(1.1, 0.8, 1.4)).startswith("no difference was found")
    assert ratio_in_words(Interval(3, 2, 4), "longer", "shorter") == "longer by a factor of 2 to 4"
    assert ratio_in_words(Interval(2e3, 1523, 3e3)) == "larger by a factor of 1,500 to 3,000"
    assert ratio_in_words(Interval(0.3, 0.25, 0.5)) == "smaller by a factor of 2 to 4"


# Tasks


def poisoned(monkeypatch, last):
    """The electricity task of a made series whose last weeks are not numbers."""
    series = torch.sin(torch.arange(12 * forecast.WEEK, dtype=torch.float64) / 7) + 30
    series = series + torch.randn(series.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    series[len(series) - last :] = math.nan
    if last:  # to which nothing can be fitted
        monkeypatch.setattr(forecast, "baselines", lambda task: {})
    monkeypatch.setattr(forecast, "read_series", lambda: series)
    return Electricity(replace(TINY, batch=forecast.BATCH), CPU)


@pytest.mark.parametrize("choosing, weeks", [(False, 2), (True, 4)])
def test_electricity_trains_on_nothing_that_it_is_judged_on(monkeypatch, choosing, weeks):
    def epoch(task):
        steps = forecast.batches((task.seen if choosing else task.whole).training)
        return torch.stack(list(islice(task.losses(task.model(MODELS["RNN"], 4), 0, choosing), steps)))

    with torch.no_grad():
        assert epoch(poisoned(monkeypatch, weeks * forecast.WEEK)).isfinite().all()
        task = poisoned(monkeypatch, weeks * forecast.WEEK + 1)
        assert not epoch(task).isfinite().all()


def test_electricity_is_judged_by_the_right_weeks(monkeypatch):
    task = poisoned(monkeypatch, 1)
    model = task.model(MODELS["RNN"], 4)
    with torch.no_grad():
        assert math.isnan(task.errors(model, choosing=False)["rmse"])
        assert task.errors(model, choosing=True)["rmse"] > 0
        task = poisoned(monkeypatch, forecast.HELD_OUT + 1)
        assert math.isnan(task.errors(model, choosing=True)["rmse"])


def test_electricity_takes_the_demos_time_and_its_baselines(monkeypatch):
    task = poisoned(monkeypatch, 0)
    assert Electricity.setup.steps == forecast.EPOCHS * task.epoch
    assert task.baselines.keys() == forecast.BASELINES.keys()
    echo = nn.Module()
    echo.forward = lambda origins: origins.last_week  # the week before is a forecast, too
    for key, error in task.errors(echo, choosing=False).items():
        assert task.baselines["last week"][key] == error


def test_sums_are_of_the_marked_numbers_one_in_each_half():
    x, target = additions(torch.Generator().manual_seed(3), 9, 500)
    for sequence, wanted in zip(x.transpose(0, 1).tolist(), target.tolist(), strict=True):
        places = [place for place, (_, mark) in enumerate(sequence) if mark]
        assert len(places) == 2
        assert places[0] < 4 <= places[1]
        assert {mark for _, mark in sequence} == {0, 1}
        assert sequence[places[0]][0] + sequence[places[1]][0] == pytest.approx(wanted)
    assert 0 <= x[..., 0].min() < 0.01 < 0.99 < x[..., 0].max() < 1


def test_sums_that_are_held_out_are_never_drawn_in_training():
    task = Adding(replace(TINY, time=50), CPU)
    assert task.baselines["always 1"]["mse"] == pytest.approx(1 / 6, abs=0.01)

    def starts(x):
        return {tuple(sequence) for sequence in x[:5, :, 0].T.tolist()}

    held_out, validation = (starts(x) for x, _ in (task.held_out, task.validation))
    first = task.held_out[0][0, :8, 0].tolist(), task.validation[0][0, :8, 0].tolist()
    assert len(held_out) == len(validation) == task.unseen
    assert not held_out & validation
    for seed in (*range(100), *range(command.CHOOSING_SEED, command.CHOOSING_SEED + 3)):
        x, _ = additions(torch.Generator().manual_seed(seed), 50, 64)
        assert not starts(x) & (held_out | validation)
        assert x[0, :8, 0].tolist() not in first, "the same random numbers, cut otherwise"


class Recorder(nn.Module):
    """In a reader's place: remembers which places of the text it was shown."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def forward(self, ids, state):
        self.seen |= set(ids.flatten().tolist())
        return torch.zeros(*ids.shape, 1000), torch.zeros(1)


def test_characters_are_trained_and_judged_apart(monkeypatch):
    text = Text("numbers", "x" * 1000, torch.arange(900), torch.arange(900, 1000))
    monkeypatch.setattr(tasks, "read_text", lambda: text)
    task = Characters(replace(TINY, batch=3, time=7), CPU)
    for choosing, trained, judged in ((False, range(900), range(900, 1000)), (True, range(810), range(810, 900))):
        reader = Recorder()
        list(islice(task.losses(reader, 0, choosing), 100))  # more than once through the text
        assert reader.seen < set(trained)
        assert len(reader.seen) > 0.9 * len(trained)
        reader.seen.clear()
        task.errors(reader, choosing)
        assert reader.seen < set(judged)
        assert len(reader.seen) > 0.8 * len(judged)


# Training


def test_the_small_lstm_has_the_grus_parameters_and_layers_are_1_3_4():
    for make in (Adding, Characters):
        task = make(make.setup, CPU)
        counts = {name: parameters(task.model(layer, width(task, name))) for name, layer in MODELS.items()}
        assert abs(counts[SMALL] / counts["GRU"] - 1) < 0.02
        assert width(task, SMALL) < width(task, "LSTM") == task.setup.hidden
        assert counts["RNN"] < counts["GRU"] < counts["LSTM"]
    one, three, four = (parameters(MODELS[name](5, 7)) for name in ("RNN", "GRU", "LSTM"))
    assert (one, three, four) == (7 * 5 + 7 * 7 + 2 * 7, 3 * one, 4 * one)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_learns_to_add(name, monkeypatch):
    ticks = iter([0.0, 3.0, 10.0, 14.0, 20.0, 25.0, 30.0, 36.0, 40.0, 47.0])  # of the clock, before and after each part
    monkeypatch.setattr(training, "now", lambda device: next(ticks))
    task = Adding(replace(TINY, hidden=16, batch=32, steps=300), CPU)
    found = train(task, name, 2e-2, 0, CPU, task.setup.steps, points=4)
    assert found.errors["mse"] < 0.5 * task.baselines["always 1"]["mse"]
    assert [steps for steps, _ in found.curve] == [0, 75, 150, 225, 300]
    assert found.curve[-1][1] == found.errors["mse"] < found.curve[0][1]
    assert found.seconds == 3 + 4 + 5 + 6 + 7, "the time of the steps alone, not of judging the model between them"


def test_a_model_learns_to_read_and_an_lstms_two_states_are_carried():
    task = Characters(Setup(hidden=48, batch=16, time=25, steps=60, seeds=1, rates=(2e-2,)), CPU)
    task.held_out = task.held_out[:4000]
    found = train(task, "LSTM", 2e-2, 0, CPU, task.setup.steps, points=1)
    assert found.curve[0][1] == pytest.approx(math.log(len(task.text.characters)), abs=0.2)
    assert found.errors["nats"] < task.baselines["frequencies"]["nats"] - 0.1


def test_a_seed_repeats_and_another_does_not():
    task = Adding(TINY, CPU)
    first, again, other = (train(task, "GRU", 1e-2, seed, CPU, 5).curve for seed in (3, 3, 4))
    assert first == again
    assert first != other


# The command, its rows, and what is made of them


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Rows of a tiny run over two tasks, one of them with a stand-in for the text."""
    out = tmp_path_factory.mktemp("rows")
    torch.manual_seed(0)
    ids = torch.randint(5, (600,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Adding, "setup", TINY)
        patch.setattr(Characters, "setup", replace(TINY, batch=4))
        patch.setattr(tasks, "read_text", lambda: Text("digits", "01234", ids[:500], ids[500:]))
        patch.setattr(training, "POINTS", 3)
        patch.setattr(command, "POINTS", 3)
        patch.setattr(command, "TIMED_S", 0.5)
        for only in ("adding", "characters"):
            assert main(["study", "--only", only, "--out", str(out), "--commit", "abc"]) == 0
        (path,) = out.iterdir()
        before = path.read_bytes()
        assert main(["study", "--only", "a", "--out", str(out), "--commit", "another"]) == 0
        assert path.read_bytes() == before, "measured twice"
        assert main(["study", "--only", "adding", "--seeds", "3", "--out", str(out), "--commit", "abc"]) == 0
    return out


def test_rows_have_their_keys_and_only_a_new_seed_is_new(folder):
    (path,) = folder.iterdir()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    threads = {1, torch.get_num_threads()}
    per_task = len(MODELS) * (len(TINY.rates) + TINY.seeds) + len(TIMED) * len(threads)
    assert len(rows) == 2 * per_task + len(MODELS)
    assert [row["seed"] for row in rows[-len(MODELS) :]] == [2] * len(MODELS)
    readme = (ROOT / "bench" / "results" / "study" / "README.md").read_text()
    told = {key for cell in re.findall(r"^\| (`.*?`) \|", readme, re.MULTILINE) for key in re.findall(r"`(\w+)`", cell)}
    for row in rows:
        assert set(row) == told >= set(WHERE_KEYS)
        assert (row["gpu"], row["commit"]) == (None, "abc")
        assert row["clock"] == ("process" if row["threads"] == 1 else "wall")
        if row["kind"] == "step":
            assert row["threads"] in threads
            assert len(row["samples_ms"]) >= 7
            assert min(row["samples_ms"]) > 0
            continue
        assert row["threads"] == 1
        assert row["curve"][-1] == [TINY.steps, next(iter(row["errors"].values()))]
        assert len(row["curve"]) == (2 if row["kind"] == "choice" else 4)
        assert row["seconds"] > 0
        assert (row["seed"] == command.CHOOSING_SEED) == (row["kind"] == "choice")


def test_each_model_gets_the_rate_that_was_best_before(folder):
    rows = command.read(folder)
    for task in ("adding", "characters"):
        for model in MODELS:
            own = [row for row in rows if (row["task"], row["model"]) == (task, model)]
            chosen = {row["rate"]: next(iter(row["errors"].values())) for row in own if row["kind"] == "choice"}
            assert set(chosen) == set(TINY.rates)
            assert {row["rate"] for row in own if row["kind"] == "training"} == {min(chosen, key=chosen.get)}


def test_rates_are_chosen_by_what_is_not_held_out(tmp_path, monkeypatch):
    monkeypatch.setattr(Adding, "setup", replace(TINY, choices=2))
    monkeypatch.setattr(command, "TIMED_S", 0.1)
    losses, errors = Adding.losses, Adding.errors
    calls = []

    def drawn(task, model, seed, choosing):
        calls.append((seed, choosing))
        return losses(task, model, seed, choosing)

    def judged(task, model, choosing):
        assert choosing == calls[-1][1]
        return errors(task, model, choosing)

    monkeypatch.setattr(Adding, "losses", drawn)
    monkeypatch.setattr(Adding, "errors", judged)
    assert main(["study", "--commit", "abc", "--only", "adding", "--seeds", "1", "--out", str(tmp_path)]) == 0
    assert {seed for seed, choosing in calls if choosing} == {command.CHOOSING_SEED, command.CHOOSING_SEED + 1}
    assert {seed for seed, choosing in calls if not choosing} == {0}


def test_of_two_rows_about_the_same_the_later_counts(folder, tmp_path):
    (path,) = folder.iterdir()
    lines = path.read_text().splitlines()
    changed = json.loads(lines[0]) | {"seconds": 77.0, "commit": "later"}
    (tmp_path / "rows.jsonl").write_text("\n".join([*lines, json.dumps(changed)]) + "\n")
    rows = command.read(tmp_path)
    assert len(rows) == len(lines)
    assert rows[-1]["seconds"] == 77


def test_the_page_says_what_the_rows_say(folder):
    rows = command.read(folder)
    (machine,) = study_rows.machines(rows)
    assert machine.tasks == ["adding", "characters"]
    assert "No GPU measurements yet" in page.state(rows)
    assert "No GPU" not in page.state([row | {"gpu": "NVIDIA X"} for row in rows])
    assert page.state([]).count("No GPU measurements yet") == 1
    for part in (study.answer, page.answer, page.accuracy, page.times, page.small, data.accuracy):
        assert "No measurements yet" in part([])
    for row in rows:
        if row["kind"] == "choice":
            row["errors"] = dict.fromkeys(row["errors"], 0.5 if row["model"] == "GRU" else 1)
        if row["kind"] == "training":
            row["errors"] = {key: {"GRU": 2, "LSTM": 3}.get(row["model"], 4) + row["seed"] for key in row["errors"]}
            row["curve"] = [[0, 9.0], [2, 5.0], [5, next(iter(row["errors"].values()))]]
            row["baselines"] = {"poor": dict.fromkeys(row["errors"], 90), "good": dict.fromkeys(row["errors"], 2.5)}
        if row["kind"] == "step":
            ms = {"GRU": 2.0, "LSTM": 3.0, OF_TORCH: 8.0}.get(row["model"], 5.0) * row["threads"]
            row["samples_ms"] = [ms * (1 + 0.1 * k) for k in range(9)]
    two = study.answer(rows)
    speed, accuracy = re.split(r"(?<=\.) ", two)
    where = "1 and 2 threads" if machine.threads == [1, 2] else "1 thread"
    assert speed.startswith("On a CPU (")
    assert where in speed
    assert "a training step of an LSTM with the same hidden size takes 1.50 to 1.50 times as long as one of" in speed
    assert speed.endswith("a step of torch's own `nn.GRU` 4.00 to 4.00 times as long.")
    assert accuracy.startswith(
        "After the same number of steps, the GRU's error is smaller than the LSTM's by a factor of"
    )
    assert accuracy.endswith(
        "in adding two marked numbers and by 1.000 to 1.000 nats per character in predicting text "
        "(95 % confidence intervals)."
    )
    assert page.answer(rows) == f"{two} Not measured there: electricity."
    assert "a step of that LSTM takes 2.50 to 2.50 times as long as one of the GRU; the GRU's error" in page.small(rows)
    quick = [
        row | {"samples_ms": [99.0] * 9} if (row["kind"], row["model"]) == ("step", "GRU") else row for row in rows
    ]
    assert study.answer(quick).split(". ")[0].endswith("as long, so tritongru is the slowest of the three")
    assert page.accuracy(rows).endswith("best baseline: none on adding; none on characters.")
    poor = [
        row | {"baselines": {"poor": row["baselines"]["poor"]}} if row["kind"] == "training" else row for row in rows
    ]
    assert page.accuracy(poor).endswith("best baseline: all on adding; all on characters.")
    (line,) = (one for one in page.accuracy(rows).splitlines() if one.startswith("| characters"))
    assert line.split(" | ")[1] == "2.500 (-3.853 to 8.853)"
    assert line.endswith("| 2.500 (good) |")
    (line,) = (one for one in page.times(rows).splitlines() if one.startswith("| characters | 1 |"))
    assert line == "| characters | 1 | 2.8 | 1.50x | 2.50x | 2.50x | 4.00x |"
    assert "poor" not in page.accuracy(rows)
    first = "adding: the GRU has the smallest error on the validation data and on the held-out data. The best rate"
    assert first in data.rates(rows)
    for row in rows:
        if row["kind"] == "choice":
            row["errors"] = dict.fromkeys(row["errors"], 0.5 if row["model"] == "LSTM" else 1)
    other = "the LSTM has the smallest error; on the held-out data the GRU has."
    assert f"adding: on the validation data, used to choose learning rates, {other}" in data.rates(rows)
    # Two seeds end with 3.5 in the mean; the GRU, from 5 to 2.5 between the steps 2 and 5, has that after 3.8.
    one_thread = data.times(rows).split("characters: ")[1].split("1 thread:")[1].split("2 threads:")[0]
    (line,) = (one for one in one_thread.splitlines() if one.startswith("| GRU"))
    assert line.split(" | ")[2:6] == ["2.80", "2.16 to 3.44", f"{2.8 * machine.epoch('characters') / 1000:.2f}", "0.0"]
    assert data.reached(study_rows.machines(rows)[0], "characters", "GRU") == pytest.approx(3.8)
    assert data.reached(study_rows.machines(rows)[0], "characters", "LSTM") == 5
    assert data.reached(study_rows.machines(rows)[0], "characters", "RNN") is None
    errors = [2.0, 3.0, 4.0]
    mean = statistics.geometric(errors)
    line = next(line for line in data.accuracy(rows).splitlines() if line.startswith("| GRU"))
    assert line.split(" | ")[4:7] == ["3", f"{mean.mean:.1e}", f"{mean.low:.1e} to {mean.high:.1e}"]
    for row in rows:
        if (row["kind"], row["model"], row["seed"]) == ("training", "GRU", 0):
            row["errors"] = dict.fromkeys(row["errors"])
    assert "| 2 of 3 finite |" in data.accuracy(rows)


def test_settings_are_not_mixed(folder):
    rows = command.read(folder)
    kept = study_rows.machines(rows)[0].trainings("adding", "GRU")
    assert [row["seed"] for row in kept.rows] == [0, 1, 2]
    later = [row | {"hidden": 99, "seed": 0} for row in kept.rows[:1]]
    assert [row["hidden"] for row in study_rows.machines(rows + later)[0].trainings("adding", "GRU").rows] == [99]


def test_figures_are_drawn_of_the_rows_and_of_no_rows_none(folder):
    pytest.importorskip("matplotlib")
    assert all(draw([]) is None for draw in study_figures.FIGURES.values())
    rows = command.read(folder)
    times = study_figures.FIGURES["study-times.svg"]
    made = times(rows)
    assert made == times(rows)
    changed = [row | {"samples_ms": [9.0] * 9} if row["kind"] == "step" else row for row in rows]
    assert figures.origin(times(changed))[0] != figures.origin(made)[0]


def test_figures_show_means_and_intervals(folder):
    pytest.importorskip("matplotlib")
    (machine,) = study_rows.machines(command.read(folder))
    trained = machine.trainings("characters", "LSTM")
    drawn = list(study_figures.points(trained))
    ends = [row["curve"][-1][1] for row in trained.rows]
    end = statistics.interval(ends)
    assert drawn[-1] == (TINY.steps, end.mean, end.low, end.high)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--only", "chess"], "No task name contains 'chess'; the tasks are electricity, adding, characters."),
        (["--seeds", "0"], "expected a whole number from 1 to 100, got '0'"),
        (["--steps", "1"], "expected a whole number from 2 to 100000, got '1'"),
    ],
)
def test_wrong_arguments_give_one_sentence(tmp_path, capsys, arguments, said):
    try:
        code = main(["study", "--commit", "abc", "--out", str(tmp_path), *arguments])
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    out, err = capsys.readouterr()
    assert not out
    assert said in err
    assert len(err.splitlines()) == 1


def test_a_missing_package_is_named(tmp_path, capsys, monkeypatch):
    def missing():
        raise ModuleNotFoundError("No module named 'pmdarima'", name="pmdarima")

    monkeypatch.setattr(forecast, "read_series", missing)
    assert main(["study", "--commit", "abc", "--only", "electricity", "--out", str(tmp_path)]) == 2
    assert "The task electricity needs the package pmdarima" in capsys.readouterr().err

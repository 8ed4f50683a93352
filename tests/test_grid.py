"""The real persistent kernel in the grid simulator: a hundred seeds are right, and faults planted in it are found."""

import importlib.util
import itertools
import sys
from pathlib import Path

import pytest
import torch
from simulator import SimulationError, simulated
from test_persistent import expected, launch_for, layer_tensors, run
from tolerance import assert_close_to_float64

from tritongru.kernels import exchange, persistent

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the simulator runs in the interpreter")

SEEDS = 50  # of each exchange
ROWS, STEPS, UNITS = 18, 6, 32
TENSORS = layer_tensors(T=STEPS, B=ROWS, H=UNITS)
EXACT, SAME = expected(TENSORS, ROWS), expected(TENSORS, ROWS, torch.float32)


def launch(form, **changes):
    """Four programs for each of two tiles; the ring of the data's flags is used a second time within the steps."""
    return launch_for(UNITS, exchange=form, **{"slots": {"counter": 2, "data": 4}[form]} | changes)


def assert_right(found):
    for name, *values in zip(("y", "hn", "gates"), found, EXACT, SAME, strict=True):
        assert_close_to_float64(*values, name)


@pytest.mark.parametrize("first", range(0, SEEDS, 10))
@pytest.mark.parametrize("form", ["counter", "data"])
def test_any_order_gives_the_same_result(form, first):
    results = []
    for seed in range(first, first + 10):
        with simulated(seed):
            results.append(run(TENSORS, launch(form), ROWS))
        assert_right(results[-1])
    for result, (one, other) in itertools.product(results[1:], enumerate(results[0])):
        assert torch.equal(result[one], other), "the order of the programs changed a bit"


def test_a_launch_with_everything_at_once():
    """Both directions, three tiles served in two turns, both exchanges."""
    tensors = layer_tensors(T=5, B=40, H=12, D=2, seed=1)
    exact, same = expected(tensors, 40), expected(tensors, 40, torch.float32)
    for seed, form in enumerate(["counter", "data"] * 2):
        with simulated(seed):
            found = run(tensors, launch_for(12, exchange=form), 40, groups=2)
        for name, *values in zip(("y", "hn", "gates"), found, exact, same, strict=True):
            assert_close_to_float64(*values, f"{form} {name}")


def altered(module, before, after, tmp_path):
    """The module with one piece of its text changed."""
    text = Path(module.__file__).read_text()
    assert text.count(before) == 1, f"{before!r} stands {text.count(before)} times in {module.__name__}"
    path = tmp_path / f"altered_{module.__name__.rpartition('.')[2]}.py"
    path.write_text(text.replace(before, after))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    changed = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = changed
    spec.loader.exec_module(changed)
    return changed


ADD = 'tl.atomic_add(counter, 1, sem="release")'
LOOK = 'tl.atomic_add(counter, 0, sem="acquire")'
BOTH, COUNTER, DATA = ("counter", "data"), ("counter",), ("data",)
IN_EXCHANGE = {
    "relaxed arrival": ("arrive", ADD, ADD.replace("release", "relaxed"), BOTH),
    "relaxed wait": ("wait", LOOK, LOOK.replace("acquire", "relaxed"), BOTH),
    "no barrier between stores and arrival": ("arrive", "tl.debug_barrier()", "pass", BOTH),
    "counter off by one": ("wait", "count = target - 1", "target = target - 1\n    count = target - 1", BOTH),
    "a word is not waited for": ("collect_words", "missing = limit >= 0", "missing = limit < 0", DATA),
    "words from a cache": ("collect_words", "volatile=True", 'cache_modifier=".cg"', DATA),
    "slots are not emptied": ("clear", "tl.range(0, count)", "tl.range(0, 0)", DATA),
    "one slot too many is emptied": ("clear", "tl.range(0, count)", "tl.range(0, count + 1)", DATA),
}
IN_KERNEL = {
    "the other tile's counter": ("counter = counters + i_t * 32", "counter = counters + (i_t ^ 1) * 32", BOTH),
    "one counter for all tiles": ("counter = counters + i_t * 32", "counter = counters", COUNTER),
    "counter of the step before": (
        "wait(counter, programs * (s + 1), limit)",
        "wait(counter, programs * s, limit)",
        COUNTER,
    ),
    "no wait before the ring goes round": ("if s % HALF == 0:", "if s < 0:", DATA),
    "published before it is read": ("p_slot = slot + s % SLOTS * SLOT", "p_slot = slot + (s + 1) % SLOTS * SLOT", BOTH),
    "state of the wrong step": ("slot + (s + 1) % SLOTS * SLOT, b_y", "slot + s % SLOTS * SLOT, b_y", BOTH),
}
TRIES = 6


def goes_wrong(form, seed, **options):
    try:
        with simulated(seed, patience=400):
            found = run(TENSORS, launch(form, **options), ROWS, limit=200)
        assert_right(found)
    except AssertionError:
        return True
    except RuntimeError as error:
        if not isinstance(error, SimulationError):
            return "gave up" in str(error)
        if error.__cause__ is not None:  # a program that failed by itself is no fault of the exchange
            raise
        return True
    return False


def exchange_faults():
    return [(name, form) for name, (*_, forms) in IN_EXCHANGE.items() for form in forms]


@pytest.mark.parametrize("name, form", exchange_faults())
def test_a_fault_in_the_exchange_is_found(name, form, tmp_path, monkeypatch):
    function, before, after, _ = IN_EXCHANGE[name]
    monkeypatch.setattr(persistent, function, getattr(altered(exchange, before, after, tmp_path), function))
    assert any(goes_wrong(form, seed) for seed in range(TRIES))


@pytest.mark.parametrize("name, form", [(name, form) for name, (*_, forms) in IN_KERNEL.items() for form in forms])
def test_a_fault_in_the_kernel_is_found(name, form, tmp_path, monkeypatch):
    before, after, _ = IN_KERNEL[name]
    changed = altered(persistent, before, after, tmp_path)
    monkeypatch.setattr(persistent, "persistent_forward_kernel", changed.persistent_forward_kernel)
    assert any(goes_wrong(form, seed) for seed in range(TRIES))


@pytest.mark.parametrize("form", BOTH)
def test_a_counter_left_over_from_the_last_launch_is_found(form, monkeypatch):
    fresh = persistent.workspace

    def used(*args):
        slots, state, counters = fresh(*args)
        counters += 4  # what the start of a launch leaves
        return slots, state, counters

    monkeypatch.setattr(persistent, "workspace", used)
    assert any(goes_wrong(form, seed) for seed in range(TRIES))


def test_a_reused_slot_is_found():
    """One slot instead of two."""
    assert any(goes_wrong("counter", seed, slots=1) for seed in range(TRIES))


@pytest.mark.parametrize("form", BOTH)
def test_the_way_in_which_faults_are_looked_for_finds_none_in_the_real_kernel(form):
    assert not any(goes_wrong(form, seed) for seed in range(TRIES))


@pytest.mark.parametrize("form", BOTH)
def test_a_program_that_dies_ends_in_an_error_and_not_in_a_hang(form):
    """The others wait their time, go on with NaN and say where they waited; the next call is right again."""
    with (
        pytest.raises(
            RuntimeError, match=r"a persistent GRU kernel gave up at its time step \d: program [0-3] of batch "
        ),
        simulated(3, kill={(1, 0, 0): 60}, patience=10_000),
    ):
        run(TENSORS, launch(form), ROWS, limit=50)
    assert int(persistent.trouble_of(torch.device("cpu"))) == 0
    with simulated(3):
        assert_right(run(TENSORS, launch(form), ROWS))


def test_after_giving_up_the_results_are_nan(monkeypatch):
    monkeypatch.setattr(persistent, "raise_trouble", lambda trouble: trouble.zero_())
    with simulated(0, kill={(1, 0, 0): 60}, patience=10_000):
        _, hn, _ = run(TENSORS, launch("counter"), ROWS, limit=50)
    assert hn[0, :16, :8].isnan().all()
    assert_close_to_float64(hn[:, 16:], EXACT[1][:, 16:], SAME[1][:, 16:], "the other tile")

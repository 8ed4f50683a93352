"""The real persistent kernels in the grid simulator: a hundred seeds of each find nothing, planted faults are found."""

import dataclasses
import importlib.util
import itertools
import sys
from pathlib import Path

import loops
import pytest
import test_persistent
import test_persistent_backward
import torch
from loops import persistent_launch
from simulator import SimulationError, simulated
from test_persistent import layer_tensors
from test_persistent_backward import backward_for
from tolerance import assert_close_to_float64

from tritongru.kernels.persistent import backward_kernel, cooperative, exchange, forward_kernel, slices
from tritongru.kernels.persistent import launch as persistent

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the simulator runs in the interpreter")

SEEDS = 50  # of each exchange and pass
ROWS, STEPS, UNITS = 18, 6, 32


class Forward:
    """What is run, and what it should give."""

    names = ("y", "hn", "gates")
    tensors = layer_tensors(T=STEPS, B=ROWS, H=UNITS)
    exact = test_persistent.expected(tensors, ROWS)
    same = test_persistent.expected(tensors, ROWS, torch.float32)
    run = staticmethod(test_persistent.run)
    launch_for = staticmethod(persistent_launch)


class Backward:
    names = loops.RESULTS[3:]
    tensors = loops.layer_tensors(T=STEPS, B=ROWS, H=UNITS)
    exact = loops.expected(tensors, ROWS)[3:]
    same = loops.expected(tensors, ROWS, torch.float32)[3:]
    run = staticmethod(test_persistent_backward.run)
    launch_for = staticmethod(backward_for)


PASSES = {"forward": Forward, "backward": Backward}


def launch(way, form, **changes):
    """Four programs for each of two tiles; the ring of the data's flags is used a second time within the steps."""
    return way.launch_for(UNITS, exchange=form, **{"slots": {"counter": 2, "data": 4}[form]} | changes)


def assert_right(way, found):
    for name, *values in zip(way.names, found, way.exact, way.same, strict=True):
        assert_close_to_float64(*values, name)


@pytest.mark.parametrize(
    "first, count",
    [
        (0, 3),
        pytest.param(3, 5, marks=pytest.mark.slow),
        *(pytest.param(seed, 7, marks=pytest.mark.rare) for seed in range(8, SEEDS, 7)),
    ],
)
@pytest.mark.parametrize("form", ["counter", "data"])
@pytest.mark.parametrize("way", PASSES)
def test_any_order_gives_the_same_result(way, form, first, count):
    way, results = PASSES[way], []
    for seed in range(first, first + count):
        with simulated(seed):
            results.append(way.run(way.tensors, launch(way, form), ROWS))
        assert_right(way, results[-1])
    for result, (one, other) in itertools.product(results[1:], enumerate(results[0])):
        assert torch.equal(result[one], other), "the order of the programs changed a bit"


def test_a_launch_with_everything_at_once():
    """Both directions, three tiles served in two turns, both exchanges."""
    tensors = layer_tensors(T=5, B=40, H=12, D=2, seed=1)
    exact, same = (test_persistent.expected(tensors, 40, dtype) for dtype in (torch.float64, torch.float32))
    for seed, form in enumerate(["counter", "data"]):
        with simulated(seed):
            found = test_persistent.run(tensors, persistent_launch(12, exchange=form), 40, groups=2)
        for name, *values in zip(Forward.names, found, exact, same, strict=True):
            assert_close_to_float64(*values, f"{form} {name}")


def test_a_backward_launch_with_everything_at_once():
    tensors = loops.layer_tensors(T=5, B=40, H=12, D=2)
    for seed, form in enumerate(["counter", "data"]):
        with simulated(seed):
            found = test_persistent_backward.run(tensors, backward_for(12, exchange=form), 40, groups=2)
        test_persistent_backward.check(found, tensors, 40, form)


KERNELS = {"forward": forward_kernel, "backward": backward_kernel}


def altered(module, before, after, tmp_path, within=""):
    """The module with one piece of its text changed, in the function ``within`` if one is named."""
    text = Path(module.__file__).read_text()
    start = text.index(f"def {within}(") if within else 0
    end = text.find("\n\n\n", start) if within else len(text)
    part = text[start:end]
    assert part.count(before) == 1, f"{before!r} stands {part.count(before)} times in {module.__name__}"
    path = tmp_path / f"altered_{module.__name__.rpartition('.')[2]}.py"
    path.write_text(text[:start] + part.replace(before, after) + text[end:])
    spec = importlib.util.spec_from_file_location(path.stem, path)
    changed = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = changed
    spec.loader.exec_module(changed)
    return changed


def use_exchange(changed, monkeypatch):
    """The kernels meet through another exchange."""
    for module in (*KERNELS.values(), slices):
        for name, value in vars(exchange).items():
            if getattr(module, name, None) is value and callable(value) and hasattr(changed, name):
                monkeypatch.setattr(module, name, getattr(changed, name))


ADD = 'tl.atomic_add(counter, 1, sem="release")'
LOOK = 'tl.atomic_add(counter, 0, sem="acquire")'
BOTH, COUNTER, DATA = ("counter", "data"), ("counter",), ("data",)
IN_EXCHANGE = {
    "relaxed arrival": (ADD, ADD.replace("release", "relaxed"), BOTH),
    "relaxed wait": (LOOK, LOOK.replace("acquire", "relaxed"), BOTH),
    "no barrier between stores and arrival": ("tl.debug_barrier()", "pass", BOTH),
    "counter off by one": ('sem="acquire") - target', 'sem="acquire") - (target - 1)', BOTH),
    "counter of the step before": ("programs * (s + 1)", "programs * s", COUNTER),
    "a word is not waited for": ("missing = limit >= IN_VAIN", "missing = limit < IN_VAIN", DATA),
    "words from a cache": ("volatile=True", 'cache_modifier=".cg"', DATA),
    "slots are not emptied": ("tl.range(0, count)", "tl.range(0, 0)", DATA),
    "one slot too many is emptied": ("tl.range(0, count)", "tl.range(0, count + 1)", DATA),
    "no wait before the ring goes round": ("if s % (SLOTS // 2) == 0:", "if s < 0:", DATA),
}
COUNTERS = "counter = counters + i_t * 32"
PUBLISHED = {"forward": "publish(slot + (s + 1) % SLOTS * SLOT, b_k", "backward": "p_slot = slot + (s + 1) % SLOTS"}
IN_KERNEL = {
    "the other tile's counter": ("wait_for_slot(counter,", "wait_for_slot(counters + (i_t ^ 1) * 32,", BOTH),
    "one counter for all tiles": (COUNTERS, "counter = counters", COUNTER),
    "published before it is read": ("*(slot + s % SLOTS * SLOT", "*(slot + (s + 1) % SLOTS * SLOT", BOTH),
    "values of the wrong step": (
        PUBLISHED,
        {way: text.replace("(s + 1)", "s") for way, text in PUBLISHED.items()},
        BOTH,
    ),
}
ONLY_BACKWARD = {
    "a gate is not published": (
        "publish(p_slot + GATE, operand_of_product(b_dz",
        "publish(p_slot + GATE, operand_of_product(b_dr",
        BOTH,
    ),
    "a gate in the place of another": ("p_slot + 2 * GATE", "p_slot + GATE", BOTH),
    "a gate's words are not cleared": ("for g in tl.static_range(3):", "for g in tl.static_range(2):", DATA),
    "a gate's half of the ring is not emptied": ("m_word, SLOT, SLOTS, 3, E)", "m_word, SLOT, SLOTS, 1, E)", DATA),
}
TRIES = 6


def goes_wrong(way, form, seed, **options):
    try:
        with simulated(seed, patience=400):
            found = way.run(way.tensors, launch(way, form, **options), ROWS, limit=200)
        assert_right(way, found)
    except AssertionError:
        return True
    except RuntimeError as error:
        if not isinstance(error, SimulationError):
            return "gave up" in str(error)
        if error.__cause__ is not None and "no tensor of the launch" not in str(error):
            raise  # a program that failed by itself is no fault of the exchange
        return True
    return False


# Faults that are planted by default; the others are slow.
BY_DEFAULT = ("relaxed arrival", "a gate is not published")


def faults(table, ways=tuple(PASSES)):
    return [
        pytest.param(name, form, way, marks=[] if name in BY_DEFAULT else pytest.mark.slow)
        for name, (*_, forms) in table.items()
        for form in forms
        for way in ways
    ]


@pytest.mark.parametrize("name, form, way", faults(IN_EXCHANGE))
def test_a_fault_in_the_exchange_is_found(name, form, way, tmp_path, monkeypatch):
    before, after, _ = IN_EXCHANGE[name]
    use_exchange(altered(exchange, before, after, tmp_path), monkeypatch)
    assert any(goes_wrong(PASSES[way], form, seed) for seed in range(TRIES))


@pytest.mark.parametrize("name, form, way", faults(IN_KERNEL) + faults(ONLY_BACKWARD, ("backward",)))
def test_a_fault_in_the_kernel_is_found(name, form, way, tmp_path, monkeypatch):
    before, after, _ = (IN_KERNEL | ONLY_BACKWARD)[name]
    before, after = (text[way] if isinstance(text, dict) else text for text in (before, after))
    kernel = f"persistent_{way}_kernel"
    changed = altered(KERNELS[way], before, after, tmp_path, within=kernel)
    monkeypatch.setattr(persistent, kernel, getattr(changed, kernel))
    assert any(goes_wrong(PASSES[way], form, seed) for seed in range(TRIES))


@pytest.mark.slow
@pytest.mark.parametrize("form", BOTH)
@pytest.mark.parametrize("way", PASSES)
def test_a_counter_left_over_from_the_last_launch_is_found(way, form, monkeypatch):
    fresh = persistent.workspace

    def used(*args):
        counters, slots, state = fresh(*args)
        counters += 4  # what the start of a launch leaves
        return counters, slots, state

    monkeypatch.setattr(persistent, "workspace", used)
    assert any(goes_wrong(PASSES[way], form, seed) for seed in range(TRIES))


@pytest.mark.parametrize("way", PASSES)
def test_a_reused_slot_is_found(way):
    """One slot instead of two."""
    assert any(goes_wrong(PASSES[way], "counter", seed, slots=1) for seed in range(TRIES))


@pytest.mark.slow
@pytest.mark.parametrize("form", BOTH)
@pytest.mark.parametrize("way", PASSES)
def test_the_way_in_which_faults_are_looked_for_finds_none_in_the_real_kernel(way, form):
    assert not any(goes_wrong(PASSES[way], form, seed) for seed in range(2))


@pytest.mark.slow
@pytest.mark.parametrize("form", BOTH)
@pytest.mark.parametrize("way", PASSES)
def test_a_program_that_dies_ends_in_an_error_and_not_in_a_hang(way, form):
    """The others wait their time, go on with NaN and say where they waited; the next call is right again."""
    way = PASSES[way]
    with (
        pytest.raises(
            RuntimeError, match=r"a persistent GRU kernel gave up at its time step \d: program [0-3] of batch "
        ),
        simulated(3, kill={(1, 0, 0): 60}, patience=10_000),
    ):
        way.run(way.tensors, launch(way, form), ROWS, limit=50)
    assert cooperative.report_of(torch.device("cpu")).word.value == 0
    with simulated(3):
        assert_right(way, way.run(way.tensors, launch(way, form), ROWS))


def in_vain(way, form, monkeypatch, seed, limit=50, groups=None, **options):
    """What comes of a launch in which some program waits in vain."""
    monkeypatch.setattr(cooperative, "raise_report", lambda report: report.tensor.zero_())
    with simulated(seed, patience=10_000, **options):
        return way.run(way.tensors, launch(way, form), ROWS, limit=limit, groups=groups)


def assert_nan_from_some_step_on(way, found, rows, late=0, without=()):
    """Of these rows: right up to a step, NaN from there on in all units, up to ``late`` steps later in some; but for
    units whose program is gone. Returns how many steps have numbers."""
    units = [unit for unit in range(UNITS) if unit not in without]
    steps = [v[0].reshape(STEPS, ROWS, -1, UNITS)[:, rows][..., units] for v in (found, way.exact, way.same)]
    if way is Backward:
        steps = [values.flip(0) for values in steps]
    gone = steps[0].isnan()
    assert_close_to_float64(*(torch.where(gone, 0.0, v) for v in steps), "what is no NaN")
    some, everywhere = gone.flatten(1).any(1), gone.flatten(1).all(1)
    first = int(some.int().argmax()) if some.any() else STEPS
    assert everywhere[first + late :].all(), f"NaN from step {first}, not everywhere: {gone.flatten(1).float().mean(1)}"
    return first


@pytest.mark.parametrize(
    "way, form, groups",
    [
        pytest.param(
            way, form, groups, marks=pytest.mark.slow if groups is None or form == DATA[0] else pytest.mark.rare
        )
        for way in PASSES
        for form in BOTH
        for groups in (None, 1)
    ],
)
def test_after_a_wait_in_vain_no_number_is_wrong(way, form, groups, monkeypatch):
    """A program is gone. With a group of programs for each tile the other tile is right, with one group for both it
    loses its numbers, too."""
    way, gone = PASSES[way], range(8, 16)
    found = in_vain(way, form, monkeypatch, 0, limit=1000, groups=groups, kill={(1, 0, 0): 60})
    assert assert_nan_from_some_step_on(way, found, slice(0, 16), without=gone) < STEPS
    others = assert_nan_from_some_step_on(way, found, slice(16, None), late=1, without=gone if groups else ())
    assert (others == STEPS) == (groups is None)


@pytest.mark.slow
@pytest.mark.parametrize("form", BOTH)
@pytest.mark.parametrize("way", PASSES)
def test_who_is_only_late_computes_nothing_wrong_either(way, form, monkeypatch):
    """With hardly a look some programs give up on others, which come later and must not go on as if nothing were."""
    troubled = 0
    for seed in range(3):
        found = in_vain(PASSES[way], form, monkeypatch, seed, limit=3)
        firsts = [assert_nan_from_some_step_on(PASSES[way], found, rows, 1) for rows in (slice(0, 16), slice(16, None))]
        troubled += min(firsts) < STEPS
    assert troubled > 1, "hardly a wait was in vain, so nothing was tried"


@pytest.mark.slow
@pytest.mark.parametrize("way", PASSES)
def test_a_wait_and_all_chunks_share_one_limit(way):
    """Each look more that is allowed is made once by those that are left, three of each tile, not once for each chunk;
    who first gives up may spare the others some."""
    way, counts = PASSES[way], []
    configuration = dataclasses.replace(launch(way, "data", k_split=1), chunks=(16,) * (2 if way is Forward else 6))
    for limit in (100, 600):
        with (
            pytest.raises(RuntimeError, match="gave up"),
            simulated(0, kill={(1, 0, 0): 0, (1, 1, 0): 0}, patience=10_000) as launches,
        ):
            way.run(way.tensors, configuration, ROWS, limit=limit)
        counts.append(launches[0].accesses)
    assert 500 <= counts[1] - counts[0] <= 2 * 3 * 500

"""The simulator on small kernels: those that are right stay right for every seed, and planted faults are found."""

import os
import re

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("kernels are compiled here; the simulator needs the interpreter", allow_module_level=True)

import triton
import triton.language as tl
from simulator import SimulationError, simulate, simulated
from tolerance import failure
from triton.runtime import interpreter

PROGRAMS, GROUPS, W, T = 4, 2, 8, 5
SEEDS = range(20)


@triton.jit
def mixed(b, own, i_p, s):
    return (tl.sum(b) + own * (i_p + 3) + s) % 9973


@triton.jit
def exchange_kernel(
    x,  # (groups, programs, W) int32
    y,  # like x
    slots,  # (groups, SLOTS, programs * W) int32
    counters,  # (groups, 32) int32
    trouble,  # (1,) int32
    T,
    target,
    limit,
    W: tl.constexpr,
    PROGRAMS: tl.constexpr,
    SLOTS: tl.constexpr = 2,
    BARRIER: tl.constexpr = True,
    ARRIVE: tl.constexpr = "release",
    WAIT: tl.constexpr = "acquire",
    SCOPE: tl.constexpr = "gpu",
    NEIGHBOUR: tl.constexpr = 0,
):
    i_p, i_g = tl.program_id(0), tl.program_id(1)
    o = tl.arange(0, W)
    own = tl.load(x + (i_g * PROGRAMS + i_p) * W + o)
    counter = counters + (i_g + NEIGHBOUR) % tl.num_programs(1) * 32
    for s in range(T):
        slot = slots + (i_g * SLOTS + s % SLOTS) * (PROGRAMS * W)
        tl.store(slot + i_p * W + o, own)
        if BARRIER:
            tl.debug_barrier()
        tl.atomic_add(counters + i_g * 32, 1, sem=ARRIVE, scope=SCOPE)
        left = limit
        if WAIT == "volatile":
            while (tl.load(counter, volatile=True) < target * (s + 1)) & (left > 0):
                left -= 1
        else:
            while (tl.atomic_add(counter, 0, sem=WAIT, scope=SCOPE) < target * (s + 1)) & (left > 0):
                left -= 1
        if left == 0:
            tl.store(trouble, 1 + i_p)
            limit = 0
        own = mixed(tl.load(slot + tl.arange(0, PROGRAMS * W), cache_modifier=".cg"), own, i_p, s)
    tl.store(y + (i_g * PROGRAMS + i_p) * W + o, own)


@triton.jit
def flags_kernel(
    x,  # (programs, W) int32
    y,  # like x
    words,  # (T, programs * W) int32 zeros; a word that has come is not zero
    T,
    W: tl.constexpr,
    PROGRAMS: tl.constexpr,
    VOLATILE: tl.constexpr,
):
    i_p = tl.program_id(0)
    o = tl.arange(0, W)
    own = tl.load(x + i_p * W + o)
    for s in range(T):
        tl.store(words + (s * PROGRAMS + i_p) * W + o, own + 1)
        p = words + s * PROGRAMS * W + tl.arange(0, PROGRAMS * W)
        b = tl.load(p, volatile=VOLATILE)
        while tl.min(b) == 0:
            b = tl.load(p, volatile=VOLATILE)
        own = mixed(b - 1, own, i_p, s)
    tl.store(y + i_p * W + o, own)


@triton.jit
def halves_kernel(
    halves,  # (W,) int16 zeros
    seen,  # (W,) int32
    done,  # (1,) int32
    W: tl.constexpr,
):
    o = tl.arange(0, W)
    if tl.program_id(0) == 0:
        tl.store(halves + o, tl.full((W,), 1, tl.int16))
        while tl.atomic_add(done, 0, sem="relaxed") == 0:  # the stores arrive when they like
            pass
    else:
        b = tl.load(halves + o, volatile=True)
        while tl.max(b) == 0:
            b = tl.load(halves + o, volatile=True)
        tl.store(seen + o, b.to(tl.int32))
        tl.atomic_add(done, 1)


@triton.jit
def locked_kernel(lock, total, T):
    for _ in range(T):
        while tl.atomic_cas(lock, 0, 1) != 0:
            pass
        tl.store(total, tl.load(total) + 1)
        tl.debug_barrier()
        tl.atomic_xchg(lock, 0)


@triton.jit
def alone_kernel(x, y, W: tl.constexpr):
    o = (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * W + tl.arange(0, W)
    tl.store(y + o, tl.load(x + o) + tl.num_programs(0))
    tl.store(y + o, tl.load(y + o) * 2)


def start(groups):
    torch.manual_seed(0)
    return torch.randint(9000, (groups, PROGRAMS, W), dtype=torch.int32)


def expected(groups=GROUPS):
    own = start(groups).long()
    for s in range(T):
        own = (own.sum((1, 2), keepdim=True) + own * (torch.arange(PROGRAMS)[:, None] + 3) + s) % 9973
    return own.int()


def exchange(seed, target=PROGRAMS, count=0, limit=200, slots=2, **options):
    """Results, the program that gave up waiting or -1, and the launch."""
    x = start(GROUPS)
    y = torch.full_like(x, -1)
    buffer = torch.full((GROUPS, slots, PROGRAMS * W), 10**6, dtype=torch.int32)
    counters = torch.full((GROUPS, 32), count, dtype=torch.int32)
    trouble = torch.zeros(1, dtype=torch.int32)
    args = (x, y, buffer, counters, trouble, T, target, limit)
    launch = simulate(
        exchange_kernel, (PROGRAMS, GROUPS), *args, W=W, PROGRAMS=PROGRAMS, SLOTS=slots, seed=seed, **options
    )
    return y, trouble.item() - 1, launch


def flags(seed, volatile):
    x = start(1)
    y = torch.full_like(x, -1)
    words = torch.zeros((T, PROGRAMS * W), dtype=torch.int32)
    flags = {"W": W, "PROGRAMS": PROGRAMS, "VOLATILE": volatile}
    simulate(flags_kernel, (PROGRAMS,), x, y, words, T, **flags, seed=seed, patience=200)
    return y


@pytest.mark.parametrize("seed", SEEDS)
def test_exchange_is_right(seed):
    y, gave_up, _ = exchange(seed)
    assert gave_up == -1
    assert torch.equal(y, expected())


FAULTS = {
    "relaxed arrival": {"ARRIVE": "relaxed"},
    "arrival that only acquires": {"ARRIVE": "acquire"},
    "relaxed wait": {"WAIT": "relaxed"},
    "wait that only releases": {"WAIT": "release"},
    "wait by volatile loads": {"WAIT": "volatile"},
    "scope of one program": {"SCOPE": "cta"},
    "no barrier before the arrival": {"BARRIER": False},
    "counter off by one": {"target": PROGRAMS - 1},
    "counter left over from the last launch": {"count": PROGRAMS * T},
    "another group's counter": {"NEIGHBOUR": 1},
    "buffer used again too early": {"slots": 1},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_found(fault):
    assert any(not torch.equal(exchange(seed, **FAULTS[fault])[0], expected()) for seed in range(3))


def test_default_order_is_acquire_and_release():
    assert all(torch.equal(exchange(seed, ARRIVE="acq_rel", WAIT="acq_rel")[0], expected()) for seed in range(5))


def test_words_can_be_their_own_flags():
    assert all(torch.equal(flags(seed, True), expected(1)) for seed in SEEDS)


def test_flags_need_volatile_loads():
    """Words are read until they have come, so numbers are right; but a plain load may never see them come."""

    def run(seed):
        assert torch.equal(flags(seed, False), expected(1))

    failures = [failed for seed in range(10) if (failed := failure(run, seed))]
    assert 0 < len(failures) < 10
    assert all(kind is SimulationError and "nothing changed in memory" in text for kind, text in failures)


def test_lock_keeps_programs_apart():
    for seed in SEEDS:
        lock, total = torch.zeros(2, dtype=torch.int32).split(1)  # two tensors in one storage
        simulate(locked_kernel, (PROGRAMS,), lock, total, T, seed=seed)
        assert total == PROGRAMS * T


def test_a_seed_gives_the_same_run():
    runs = [exchange(seed, ARRIVE="relaxed", BARRIER=False) for seed in (1, 2, 3) for _ in range(2)]
    for once, again in zip(runs[::2], runs[1::2], strict=True):
        assert once[2].schedule == again[2].schedule
        assert torch.equal(once[0], again[0])
    schedules = {tuple(launch.schedule) for _, _, launch in runs}
    results = {tuple(y.ravel().tolist()) for y, _, _ in runs}
    assert len(schedules) == len(results) == 3


@pytest.mark.parametrize("accesses", [0, 1, 7])
def test_killed_program_is_given_up(accesses):
    y, gave_up, _ = exchange(0, kill={(2, 1, 0): accesses})
    assert gave_up in (0, 1, 3)
    assert torch.equal(y[0], expected()[0])
    assert (y[1, 2] == -1).all()
    assert (y[1, [0, 1, 3]] != -1).all()


def test_endless_wait_is_reported():
    """Not after the million turns that the kernel itself would wait."""
    with pytest.raises(SimulationError, match=r"nothing changed in memory .* acts on counters\[32\]") as found:
        exchange(0, kill={(2, 1, 0): 7}, limit=10**6, patience=100)
    (accesses,) = re.findall(r"for (\d+) accesses", str(found.value))
    assert int(accesses) <= 100 * PROGRAMS * GROUPS + 1


def test_failing_program_is_named():
    x = torch.zeros(3, 8)
    with pytest.raises(SimulationError, match=r"program \(3, 0, 0\): IndexError\('a block of addresses that no tensor"):
        simulate(alone_kernel, (4,), x, torch.zeros(4, 8), W=8)


@pytest.mark.parametrize("options", [{"only": [(4, 0, 0)]}, {"only": []}, {"kill": {(0, 1, 0): 1}}])
def test_programs_outside_the_grid_are_refused(options):
    with pytest.raises(ValueError, match="indices in the grid"):
        simulate(alone_kernel, (4,), torch.zeros(4, 8), torch.zeros(4, 8), W=8, **options)


def test_some_programs_of_a_grid():
    x, y = torch.ones(3, 2, 8), torch.zeros(3, 2, 8)
    launch = simulate(alone_kernel, (3, 2), x, y, W=8, only=[(2, 1, 0), (0, 0, 0)])
    assert set(launch.schedule) == {(2, 1, 0), (0, 0, 0)}
    assert launch.accesses == 8
    assert (y[[0, 2], [0, 1]] == 8).all()
    assert y.sum() == 2 * 8 * 8


def test_halves_of_a_word_stay_together_and_words_do_not():
    torn = 0
    for seed in SEEDS:
        halves, seen = torch.zeros(16, dtype=torch.int16), torch.zeros(16, dtype=torch.int32)
        simulate(halves_kernel, (2,), halves, seen, torch.zeros(1, dtype=torch.int32), W=16, seed=seed)
        assert halves.all()
        assert torch.equal(seen[::2], seen[1::2])
        torn += not seen.all()
    assert 0 < torn < len(SEEDS)


def test_launches_inside_run_in_the_simulator():
    methods = vars(interpreter.interpreter_builder).keys() - {"grid_dim", "grid_idx"}
    x, y, z = torch.ones(3, 2, 8), torch.zeros(3, 2, 8), torch.zeros(3, 2, 8)
    with simulated(seed=1) as launches:
        alone_kernel[(3, 2)](x, y, W=8)
        alone_kernel[lambda _: (3, 2)](x=x, y=z, W=8)
    assert [launch.accesses for launch in launches] == [24, 24]
    assert launches[0].schedule != launches[1].schedule
    with simulated(only_for=[exchange_kernel]) as launches:
        alone_kernel[(3, 2)](x, y, W=8)
    assert launches == []
    assert (y == 8).all()
    assert (z == 8).all()
    assert vars(interpreter.interpreter_builder).keys() - {"grid_dim", "grid_idx"} == methods

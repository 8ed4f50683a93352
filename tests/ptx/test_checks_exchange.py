"""Programs that hand data to each other: missing order is found, stores come late that nothing orders, and a wait in
vain ends the run."""

from __future__ import annotations

import pytest
from small_kernels import Fault, Kernel, zeros

# The second of two programs waits for the counter and reads what the first wrote.
COUNTER = Kernel(
    """
    setp.ne.u32 %p0, %r_cta, 0;
    setp.ne.u32 %p1, %r_tid, 0;
    @%p0 bra SECOND;
    st.global.b32 [%rd_y_own], %r_tid;
    bar.sync 0;
    @!%p1 red.release.gpu.global.add.u32 [%rd_counter], 1;
    ret;
SECOND:
    setp.eq.u32 %p2, %r_warp, 1;
    @%p2 bra READ; // the first warp waits
WAIT:
    ld.acquire.gpu.global.b32 %r1, [%rd_counter];
    setp.eq.u32 %p3, %r1, 0;
    @%p3 bra WAIT;
READ:
    bar.sync 1;
    ld.global.b32 %r2, [%rd_y_own + -256];
    st.global.b32 [%rd_y_own], %r2;
    """,
    {"y": zeros(128), "counter": zeros(1)},
    warps=2,
    grid=(2, 1, 1),
    outputs=("y", "counter"),
)
ATOMIC = COUNTER.edited("red.release.gpu.global.add.u32", "atom.acq_rel.gpu.global.add.u32 %r1,").edited(
    "ld.acquire.gpu.global.b32 %r1, [%rd_counter]", "atom.acq_rel.gpu.global.add.u32 %r1, [%rd_counter], 0"
)
# The first program overwrites what the second has read, once the second has counted that.
ANSWERED = Kernel(
    """
    setp.ne.u32 %p0, %r_cta, 0;
    setp.eq.u32 %p1, %r_lane, 0;
    @%p0 bra SECOND;
FIRST:
    ld.acquire.gpu.global.b32 %r1, [%rd_counter];
    setp.eq.u32 %p3, %r1, 0;
    @%p3 bra FIRST;
    st.global.b32 [%rd_y_own], %r_tid;
    ret;
SECOND:
    ld.global.b32 %r2, [%rd_y_own + -128];
    bar.sync 0;
    @%p1 red.release.gpu.global.add.u32 [%rd_counter], 1;
    """,
    {"y": zeros(64), "counter": zeros(1)},
    grid=(2, 1, 1),
    outputs=("y", "counter"),
)
# Words that are their own flags: the second program reads them until they are not -1, answers so as well, and the first
# writes over them.
FLAGS = Kernel(
    """
    setp.ne.u32 %p0, %r_cta, 0;
    @%p0 bra SECOND;
    st.volatile.global.b32 [%rd_slots_own], %r_tid;
FIRST:
    ld.volatile.global.b32 %r1, [%rd_slots_own + 128];
    setp.eq.u32 %p1, %r1, 0xffffffff;
    @%p1 bra FIRST;
    st.volatile.global.b32 [%rd_slots_own], %r_lane; // again
    ret;
SECOND:
    ld.volatile.global.b32 %r1, [%rd_slots_own + -128];
    setp.eq.u32 %p1, %r1, 0xffffffff;
    @%p1 bra SECOND;
    st.global.b32 [%rd_y_own], %r1;
    bar.warp.sync 0xffffffff;
    st.volatile.global.b32 [%rd_slots_own], %r1;
    """,
    {"y": zeros(64), "slots": zeros(64) - 1},
    grid=(2, 1, 1),
    outputs=("y", "slots"),
)
BARRIERS = Kernel(
    """
    setp.eq.u32 %p0, %r_warp, 0;
    @%p0 bra OTHER;
    bar.sync 0;
    ret;
OTHER:
    bar.sync 0; // of the first warp
    """,
    warps=2,
)
NAMED = Kernel(
    """
    setp.eq.u32 %p0, %r_warp, 2;
    @%p0 ret;
    bar.sync 1, 64;
    """,
    warps=3,
)

READ, OVER_READ = "global race: read", "global race: write after read"
RELEASE, ACQUIRE = "red.release.gpu", "ld.acquire.gpu"

FAULTS = [
    Fault(READ, "a count that releases nothing", COUNTER, RELEASE, "red.relaxed.gpu"),
    Fault(READ, "a release for the own program", COUNTER, RELEASE, "red.release.cta"),
    Fault(READ, "a wait that acquires nothing", COUNTER, ACQUIRE, "ld.relaxed.gpu"),
    Fault(READ, "a volatile wait", COUNTER, ACQUIRE, "ld.volatile"),
    Fault(READ, "an acquire for the own program", COUNTER, ACQUIRE, "ld.acquire.cta"),
    Fault(READ, "another warp's store", COUNTER, "bar.sync 0;", ""),
    Fault(READ, "another warp's wait", COUNTER, "bar.sync 1;", ""),
    Fault(READ, "an atomic that releases nothing", ATOMIC, "@!%p1 atom.acq_rel", "@!%p1 atom.acquire"),
    Fault(READ, "an atomic that acquires nothing", ATOMIC, "    atom.acq_rel.gpu", "    atom.release.gpu"),
    Fault(READ, "an atomic that acquires for the own program", ATOMIC, "    atom.acq_rel.gpu", "    atom.acq_rel.cta"),
    Fault(OVER_READ, "a count that releases nothing", ANSWERED, RELEASE, "red.relaxed.gpu"),
    Fault(OVER_READ, "a wait that acquires nothing", ANSWERED, ACQUIRE, "ld.relaxed.gpu"),
    Fault(OVER_READ, "other lanes' loads", ANSWERED, "bar.sync 0;", ""),
    Fault("deadlock", "nobody counts", COUNTER, "@!%p1 red.release.gpu.global.add.u32 [%rd_counter], 1;", ""),
    Fault("deadlock", "nobody answers", FLAGS, "st.volatile.global.b32 [%rd_slots_own], %r1;", ""),
    Fault("deadlock", "a warp at another barrier", BARRIERS, "bar.sync 0; // of", "bar.sync 1; // of"),
    Fault("deadlock", "a warp that leaves and was counted", NAMED, "bar.sync 1, 64;", "bar.sync 1, 96;"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_planted_fault_is_found(fault: Fault) -> None:
    fault.check()


# The first program stores two words for each lane. The second waits for the second word and then reads the first.
TWO_WORDS = Kernel(
    """
    setp.ne.u32 %p0, %r_cta, 0;
    @%p0 bra SECOND;
    st.global.b32 [%rd_slots_own], 7;
    fence.acq_rel.gpu;
    st.global.b32 [%rd_slots_own + 128], 8;
    ret;
SECOND:
    ld.volatile.global.b32 %r1, [%rd_slots_own];
    setp.eq.u32 %p1, %r1, 0xffffffff;
    @%p1 bra SECOND;
    ld.volatile.global.b32 %r2, [%rd_slots_own + -128];
    st.global.b32 [%rd_y_own], %r2;
    """,
    {"y": zeros(64), "slots": zeros(64) - 1},
    grid=(2, 1, 1),
    outputs=("y", "slots"),
)
# Both words are stored at once.
PAIR = Kernel(
    """
    mad.wide.u32 %rd1, %r_lane, 8, %rd_slots;
    setp.ne.u32 %p0, %r_cta, 0;
    @%p0 bra SECOND;
    st.global.v2.b32 [%rd1], {7, 8};
    ret;
SECOND:
    ld.volatile.global.v2.b32 {%r2, %r1}, [%rd1];
    setp.eq.u32 %p1, %r1, 0xffffffff;
    @%p1 bra SECOND;
    st.global.b32 [%rd_y_own], %r2;
    """,
    TWO_WORDS.arguments,
    grid=(2, 1, 1),
    outputs=("y", "slots"),
)
# The second program waits for the first one's count.
COUNTED = Kernel(
    """
    setp.ne.u32 %p0, %r_cta, 0;
    setp.eq.u32 %p1, %r_lane, 0;
    @%p0 bra SECOND;
    st.global.b32 [%rd_slots_own], 7;
    bar.sync 0;
    @%p1 red.release.gpu.global.add.u32 [%rd_counter], 1;
    ret;
SECOND:
    ld.acquire.gpu.global.b32 %r1, [%rd_counter];
    setp.eq.u32 %p2, %r1, 0;
    @%p2 bra SECOND;
    ld.volatile.global.b32 %r2, [%rd_slots_own + -128];
    st.global.b32 [%rd_y_own], %r2;
    """,
    {**TWO_WORDS.arguments, "counter": zeros(1)},
    grid=(2, 1, 1),
    outputs=("y", "slots", "counter"),
)
# The program itself, and then the other one, see the later of two stores.
TWICE = Kernel(
    """
    setp.ne.u32 %p0, %r_cta, 0;
    @%p0 bra SECOND;
    st.global.b32 [%rd_slots_own], 6;
    st.global.b32 [%rd_slots_own], 7;
    ld.volatile.global.b32 %r2, [%rd_slots_own];
    st.global.b32 [%rd_y_own], %r2;
    ret;
SECOND:
    ld.volatile.global.b32 %r2, [%rd_slots_own + -128];
    setp.ne.u32 %p1, %r2, 7;
    @%p1 bra SECOND;
    ld.volatile.global.b32 %r2, [%rd_slots_own + -128];
    st.global.b32 [%rd_y_own], %r2;
    """,
    TWO_WORDS.arguments,
    grid=(2, 1, 1),
    outputs=("y", "slots"),
)


def seen(kernel: Kernel, **options: bool) -> set[int]:
    """What the second program reads, over many orders of events."""
    found: set[int] = set()
    for seed in range(16):
        run = kernel.run(seed=seed, **options)
        assert not run.stopped
        found.update(run.y[32:].tolist())
    return found


def test_stores_become_visible_in_any_order_unless_a_fence_stands_between() -> None:
    assert seen(TWO_WORDS) == {7}
    torn = TWO_WORDS.edited("fence.acq_rel.gpu;", "")
    assert seen(torn) == {7, -1}
    assert seen(torn, store_buffer=False) == {7}


def test_of_a_store_of_two_words_one_may_be_visible() -> None:
    assert seen(PAIR) == {7, -1}
    assert seen(PAIR, store_buffer=False) == {7}


def test_a_release_makes_stores_visible() -> None:
    assert seen(COUNTED) == {7}
    assert seen(COUNTED.edited(RELEASE, "red.relaxed.gpu")) == {7, -1}
    assert seen(COUNTED.edited("bar.sync 0;", "")) == {7, -1}  # of other lanes of the warp it knows nothing


def test_stores_of_one_place_keep_their_order_and_the_program_sees_its_own() -> None:
    for seed in range(16):
        run = TWICE.run(seed=seed)
        assert run.y.tolist() == [7] * 64
        assert run.tensors["slots"][:32].tolist() == [7] * 32


def test_a_program_sees_its_own_stores_wherever_they_are() -> None:
    own = Kernel(
        """
        st.global.b32 [%rd_slots_own + 256], %r_tid;
        ld.volatile.global.b32 %r1, [%rd_slots_own + 256];
        st.global.b32 [%rd_y_own], %r1;
        """,
        {"y": zeros(32), "slots": zeros(96) - 1},
        outputs=("y", "slots"),
    )
    for seed in range(8):
        assert own.run(seed=seed).y.tolist() == list(range(32))


def test_all_stores_are_there_at_the_end() -> None:
    only = Kernel("st.global.b32 [%rd_slots_own], %r_tid;", {"slots": zeros(64)}, warps=2, outputs=("slots",))
    assert only.run().tensors["slots"].tolist() == list(range(64))


def test_overwriting_what_flags_say_was_read_is_counted_and_no_race() -> None:
    run = FLAGS.run()
    assert run.machine.stats["overwrite ordered by data flags only"] == 1
    assert run.tensors["slots"].tolist() == 2 * list(range(32))


# Two warps write; after a barrier the first sets a flag. The second program waits for that and reads, the third for the
# second one's flag.
PASSED_ON = Kernel(
    """
    setp.ne.u32 %p0, %r_warp, 0;
    mad.wide.u32 %rd1, %r_tid, 4, %rd_data;
    setp.ne.u32 %p1, %r_cta, 0;
    @%p1 bra WAIT;
    st.global.b32 [%rd1], %r_tid;
    bra PASS;
WAIT:
    @%p0 bra READ;
    ld.volatile.global.b32 %r1, [%rd_slots_own + -256];
    setp.eq.u32 %p2, %r1, 0xffffffff;
    @%p2 bra WAIT;
READ:
    bar.sync 1;
    ld.global.b32 %r2, [%rd1];
    st.global.b32 [%rd_y_own], %r2;
PASS:
    bar.sync 0;
    @!%p0 st.volatile.global.b32 [%rd_slots_own], 1;
    """,
    {"y": zeros(192), "data": zeros(64), "slots": zeros(192) - 1},
    warps=2,
    grid=(3, 1, 1),
    outputs=("y", "data", "slots"),
)


def test_what_flags_alone_order_is_counted_and_no_race() -> None:
    run = PASSED_ON.run()
    assert not run.kinds, run.lines
    assert run.y.tolist() == [0] * 64 + list(range(64)) * 2
    assert run.machine.stats["read ordered by data flags only"] == 2
    for barrier in ("bar.sync 0;", "bar.sync 1;"):
        assert set(PASSED_ON.edited(barrier, "").run().kinds) == {READ}


# The second program waits for a count that orders nothing; the word it then reads does, unless that is an empty one.
FLAG = Kernel(
    """
    setp.ne.u32 %p0, %r_cta, 0;
    setp.eq.u32 %p1, %r_lane, 0;
    @%p0 bra WAIT;
    st.global.b32 [%rd_y_own], %r_tid;
    bar.sync 0;
    st.volatile.global.b32 [%rd_slots_own], 1;
    bar.sync 0;
    @%p1 red.relaxed.gpu.global.add.u32 [%rd_counter], 1;
    ret;
WAIT:
    ld.relaxed.gpu.global.b32 %r1, [%rd_counter];
    setp.eq.u32 %p2, %r1, 0;
    @%p2 bra WAIT;
    ld.volatile.global.b32 %r1, [%rd_slots_own + -128];
    ld.global.b32 %r2, [%rd_y_own + -128];
    """,
    {"y": zeros(64), "slots": zeros(64) - 1, "counter": zeros(1)},
    grid=(2, 1, 1),
    outputs=("y", "slots", "counter"),
)


def test_an_empty_word_orders_nothing() -> None:
    assert not FLAG.run(store_buffer=False).kinds
    empty = FLAG.edited("[%rd_slots_own], 1;", "[%rd_slots_own], 0xffffffff;")
    assert set(empty.run(store_buffer=False).kinds) == {READ}


def test_an_ordered_load_of_a_plain_store_is_counted_and_no_race() -> None:
    plain = COUNTER.edited(f"{RELEASE}.global.add.u32", "st.global.b32")
    run = plain.edited("ld.global.b32 %r2, [%rd_y_own + -256];", "mov.b32 %r2, 0;").run(last=1)
    assert not run.kinds, run.lines
    assert run.machine.stats["ordered load of another's plain write"] > 0


@pytest.mark.parametrize("kernel", [COUNTER, ANSWERED, FLAGS, TWO_WORDS], ids=["counter", "answer", "flags", "words"])
@pytest.mark.parametrize("seed", range(5))
def test_a_sound_exchange_is_clean_in_any_order(kernel: Kernel, seed: int) -> None:
    for lockstep in (True, False):
        run = kernel.run(seed=seed, lockstep=lockstep)
        assert not run.kinds, run.lines
        assert not run.stopped


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("edit", [(RELEASE, "red.relaxed.gpu"), (ACQUIRE, "ld.relaxed.gpu"), ("bar.sync 0;", "")])
def test_missing_order_is_found_in_any_order(edit: tuple[str, str], seed: int) -> None:
    for lockstep in (True, False):
        assert set(COUNTER.edited(*edit).run(seed=seed, lockstep=lockstep).kinds) == {READ}


@pytest.mark.parametrize("absent, done", [((0,), 0), ((1,), 64), ((0, 1), 0)])
def test_a_program_that_never_comes_is_waited_for_in_vain(absent: tuple[int, ...], done: int) -> None:
    run = COUNTER.run(absent=absent)
    assert bool(run.kinds) == bool(run.stopped) == (absent == (0,))
    assert run.y.count_nonzero() == max(0, done - 1)  # the first thread's word is 0


def test_a_deadlock_tells_who_waits_for_what() -> None:
    run = COUNTER.run(absent=(0,))
    [line] = run.lines
    wait = next(i for i, text in enumerate(COUNTER.text().splitlines(), 1) if ACQUIRE in text)
    assert f"deadlock: 1 groups spins at ptx {wait} " in line
    assert "1 groups waits at barrier 1" in line


def test_a_program_may_be_last() -> None:
    """It runs when no other can: the first program of those that count up."""
    count = Kernel(
        "atom.global.add.u32 %r1, [%rd_y], 1; setp.eq.u32 %p0, %r_lane, 31; @%p0 st.global.b32 [%rd_last], %r_cta;",
        {"y": zeros(1), "last": zeros(1)},
        grid=(5, 1, 1),
        outputs=("y", "last"),
    )
    for cta in range(5):
        run = count.run(last=cta, global_races=False)
        assert run.y.item() == 160
        assert run.tensors["last"].item() == cta


def test_a_barrier_opens_when_those_that_have_not_come_leave() -> None:
    kernel = Kernel(
        """
        setp.eq.u32 %p0, %r_warp, 0;
        @%p0 bra LEAVE;
        bar.sync 0;
        st.global.b32 [%rd_y_own], 1;
    LEAVE:
        """,
        {"y": zeros(96)},
        warps=3,
    )
    run = kernel.run()
    assert not run.stopped
    assert run.y.tolist() == [0] * 32 + [1] * 64


def test_a_run_that_takes_too_long_is_stopped() -> None:
    assert COUNTER.run(turns=3).stopped == "too many turns"

"""Who runs the tasks: torch's number of threads, its OpenMP team or a pool, and several callers at once."""

import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("llvmlite")

from compiled_loop import Layer, given, ours, same_bits, threads_of
from fences import forget

from tritongru.llvm import launch, threads
from tritongru.planning.instruction_sets import host_sets

pytestmark = pytest.mark.skipif(not host_sets(), reason="no loop for this CPU")
LAYER = Layer(T=12, B=33, I=9, H=24, D=2)


@pytest.fixture
def isa():
    return host_sets()[0]


@pytest.fixture
def pool(monkeypatch):
    """Python's threads, as where torch brings no OpenMP library; how many callers each region had."""
    plain, callers = threads._in_pool, []

    def counted(function, given, count, flags):
        callers.append(count)
        plain(function, given, count, flags)

    pointer = threads._PARALLEL(counted)
    monkeypatch.setattr(threads, "_openmp", lambda: 0)
    monkeypatch.setattr(threads, "_in_pool_pointer", pointer)
    forget()
    yield callers
    monkeypatch.undo()
    forget()


def expected(isa, layer=LAYER):
    with threads_of(1):
        return ours(given(layer), isa)


def test_the_number_of_threads_is_torchs(isa, pool):
    """Each call asks anew."""
    result = expected(isa)
    assert not pool, "one thread needs nobody"
    for count in (2, 5, 1, 3, 2):
        del pool[:]
        with threads_of(count):
            assert not same_bits(ours(given(LAYER), isa), result), count
        assert all(1 < callers <= count for callers in pool)
        assert bool(pool) == (count > 1)


def test_few_rows_take_few_threads(isa, pool):
    """No more than there are tasks: one row is walked by one thread."""
    with threads_of(5):
        ours(given(Layer(T=3, B=1, I=2, H=3)), isa)
    assert all(2 <= count <= 5 for count in pool)


def test_a_pool_has_the_same_bits(isa, pool):
    result = expected(isa)
    for count in (2, 5):
        with threads_of(count):
            for keeps in (True, False):
                assert not same_bits(ours(given(LAYER), isa, keeps), result)
    assert pool


def test_a_pool_is_never_waited_for_in_vain(isa, pool):
    """More callers than the pool has threads, each of which asks for more."""
    result = expected(isa)
    with threads_of(8):
        assert_all_equal(isa, result, callers=6, calls=5)
    assert pool


@pytest.mark.parametrize("count", [1, 2])
def test_several_python_threads_at_once(count, isa):
    result = expected(isa)
    with threads_of(count):
        assert_all_equal(isa, result, callers=4, calls=8)


def test_python_threads_with_layers_of_their_own(isa):
    """Sizes that need other scratch, in turns."""
    layers = [Layer(T=3 + k, B=1 + 7 * k, I=5, H=10 + 13 * k, D=1 + k % 2) for k in range(4)]
    results = [expected(isa, layer) for layer in layers]
    wrong = []

    def work(start):
        for turn in range(8):
            k = (start + turn) % 4
            if difference := same_bits(ours(data[k], isa), results[k]):
                wrong.append((k, difference))

    data = [given(layer) for layer in layers]
    with threads_of(2):
        run_all([lambda k=k: work(k) for k in range(4)])
    assert not wrong


def assert_all_equal(isa, result, callers, calls):
    data, wrong = given(LAYER), []

    def work():
        for _ in range(calls):
            if difference := same_bits(ours(data, isa), result):
                wrong.append(difference)

    run_all([work] * callers)
    assert not wrong


def run_all(works):
    with ThreadPoolExecutor(len(works)) as executor:
        for future in [executor.submit(work) for work in works]:
            future.result(timeout=300)


def test_python_runs_while_the_loop_does(isa):
    """The interpreter's lock is not held."""
    data = given(Layer(T=200, B=32, I=64, H=128))
    ticks, done = [], threading.Event()

    def tick():
        while not done.wait(0.0005):
            ticks.append(1)

    ticker = threading.Thread(target=tick)
    with threads_of(1):
        run = launch.function_of(isa, "float", "forward")
        inside = []

        def counted(packed):
            before = len(ticks)
            run(packed)
            inside.append(len(ticks) - before)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(launch, "function_of", lambda *_: counted)
            forget()
            ticker.start()
            for _ in range(5):
                launch.forward(data.call, False, launch.VectorLaunch(isa))
            done.set()
        forget()
    ticker.join()
    assert sum(inside) > 0


class _Refuses:
    """A pool that has been shut down, as Python's are when the interpreter ends, or for which there are no threads."""

    def submit(self, *_):
        raise RuntimeError("cannot schedule new futures after interpreter shutdown")


def test_a_pool_that_refuses_leaves_the_work_to_the_caller(isa, pool, monkeypatch):
    """At exit, or where the system gives no more threads, results are what they always are."""
    result = expected(isa)
    monkeypatch.setattr(threads, "_executor", lambda: _Refuses())
    with threads_of(3):
        assert not same_bits(ours(given(LAYER), isa), result)
    assert pool


class _Region:
    """One region of three threads, whose work is a function of the test's; ``begun`` and ``ended`` when it returns."""

    def __init__(self, monkeypatch, in_caller, most=2):
        self.lock, self.begun, self.ended = threading.Lock(), 0, 0

        def work(given):
            with self.lock:
                self.begun += 1
            if threading.current_thread() is threading.main_thread():
                while self.begun <= min(most, 2):  # until the others are at work, too
                    threading.Event().wait(0.01)
                in_caller()
            else:
                threading.Event().wait(0.2)
            with self.lock:
                self.ended += 1

        class Pool:
            asked = 0

            def submit(self, enter):
                self.asked += 1
                if self.asked > most:
                    raise RuntimeError("can't start new thread")
                threading.Thread(target=enter).start()

        pool = Pool()
        monkeypatch.setattr(threads, "_WORK", lambda address: work)
        monkeypatch.setattr(threads, "_executor", lambda: pool)
        self.error = None
        try:
            threads._in_pool(1, 2, 3, 0)
            self.at_return = self.begun, self.ended
            threading.Event().wait(0.1)  # in which an interrupt that was put off comes through
        except KeyboardInterrupt as error:  # what ctypes would print and forget
            self.error = error
            self.at_return = self.begun, self.ended
        threading.Event().wait(0.5)
        self.later = self.begun, self.ended


def test_a_region_ends_when_all_have_ended(monkeypatch):
    """What the tasks read lies on the caller's stack."""
    region = _Region(monkeypatch, in_caller=lambda: None)
    assert region.at_return == region.later == (3, 3)


def test_who_comes_late_finds_the_region_closed(monkeypatch):
    begun = []
    job = threads._Job(lambda: begun.append(1))
    job.enter()
    job.close()
    job.enter()
    assert begun == [1]


def test_a_pool_that_refuses_one_thread_is_waited_for(monkeypatch):
    """The caller and whoever could be had do the work."""
    region = _Region(monkeypatch, in_caller=lambda: None, most=1)
    assert region.at_return == region.later == (2, 2), "begun and ended, at the return and later"


def test_an_interrupt_does_not_leave_threads_at_work(monkeypatch):
    """Ctrl-C while the caller works."""
    signals = iter([signal.SIGINT])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background a process ignores it
    try:
        region = _Region(monkeypatch, in_caller=lambda: [signal.raise_signal(one) for one in signals])
    finally:
        signal.signal(signal.SIGINT, before)
    assert region.at_return == region.later, "nobody is at work after the return"
    assert isinstance(region.error, KeyboardInterrupt), "it comes through once the work is done"

"""`tritongru.patch`: layers that are built within a block, in this thread alone, and torch as it was afterwards."""

import asyncio
import contextlib
import contextvars
import copy
import threading

import pytest
import torch
from processes import PATIENCE
from torch import nn
from torch.nn import GRU as imported_before
from torch.nn.utils import skip_init

import tritongru
from tritongru.conversion import patching

pytestmark = pytest.mark.quick

OWN = nn.GRU.__init__, nn.GRUCell.__init__


@pytest.fixture(autouse=True)
def _torch_is_as_it_was():
    yield
    assert (nn.GRU.__init__, nn.GRUCell.__init__) == OWN
    assert type(nn.GRU(2, 3)) is nn.GRU
    with tritongru.patch():
        pass
    assert patching._innermost.get() is None, "no block is kept"


class Library(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.other, self.cell = nn.GRU(3, 4, batch_first=True), imported_before(4, 4), nn.GRUCell(4, 2)
        self.head = nn.LSTM(2, 2)


class Mine(nn.GRU):
    pass


def test_what_a_library_builds_is_ours():
    torch.manual_seed(0)
    theirs = Library()
    torch.manual_seed(0)
    with tritongru.patch() as report:
        ours = Library()
        assert type(Mine(2, 3)) is Mine
    assert [type(m) for m in ours.children()] == [tritongru.GRU, tritongru.GRU, tritongru.GRUCell, nn.LSTM]
    assert [(one.name, one.before) for one in report.swapped] == [
        ("#1", "torch.nn.GRU(3, 4, batch_first=True)"),
        ("#2", "torch.nn.GRU(4, 4)"),
        ("#3", "torch.nn.GRUCell(4, 2)"),
    ]
    assert [(one.name, one.kind) for one in report.left] == [("#4", f"{Mine.__module__}.Mine")]
    assert report.left[0].reason.startswith(
        "a subclass of torch.nn.GRU, whose own methods would be lost; derive it from"
    )
    assert report.model is None
    assert "tritongru.GRUCell" in str(report)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    x = torch.randn(2, 5, 3)
    torch.testing.assert_close(ours.rnn(x), theirs.rnn(x))
    assert {*ours.rnn.__dict__} == {*theirs.rnn.__dict__}
    assert [type(m) for m in (copy.deepcopy(ours).rnn, nn.GRU(2, 3))] == [tritongru.GRU, nn.GRU]


def test_torchs_type_on_request():
    with tritongru.patch(as_torch_type=True):
        gru, cell = nn.GRU(2, 3), nn.GRUCell(2, 3)
        assert isinstance(gru, nn.GRU)
    assert (type(gru), type(cell)) == (tritongru.TorchTypeGRU, tritongru.GRUCell)


def test_blocks_within_blocks():
    with tritongru.patch() as outer:
        with tritongru.patch(as_torch_type=True) as inner:
            assert type(nn.GRU(2, 3)) is tritongru.TorchTypeGRU
        gru = nn.GRU(2, 3)
    assert type(gru) is tritongru.GRU
    assert (len(outer.swapped), len(inner.swapped)) == (1, 1)


def test_errors_end_the_block():
    with pytest.raises(ZeroDivisionError), tritongru.patch():
        raise ZeroDivisionError
    assert type(nn.GRU(2, 3)) is nn.GRU
    with tritongru.patch() as report, pytest.raises((TypeError, ValueError)):
        nn.GRU(2, "three")
    assert report.swapped == []
    with pytest.raises(TypeError, match="as_torch_type"), tritongru.patch(as_torch_type="no"):
        pass


def test_other_threads_build_torchs_layers():
    """One thread's block opens and ends while the other's is open, in both orders."""
    built, steps = {}, [threading.Event() for _ in range(4)]

    def wait(step):
        assert steps[step].wait(PATIENCE)

    def first():
        with tritongru.patch():
            steps[0].set()
            wait(1)
            built["first"] = nn.GRU(2, 3)
        steps[2].set()
        wait(3)
        built["first, after its block"] = nn.GRU(2, 3)

    def second():
        wait(0)
        built["second, before its block"] = nn.GRU(2, 3)
        with tritongru.patch():
            steps[1].set()
            wait(2)
            built["second"] = nn.GRU(2, 3)
            steps[3].set()
            thread = threading.Thread(target=lambda: built.update(started=nn.GRU(2, 3)))
            thread.start()
            thread.join(PATIENCE)
            own = contextvars.copy_context()  # as some Pythons do it by themselves
            thread = threading.Thread(target=own.run, args=(lambda: built.update(inherited=nn.GRU(2, 3)),))
            thread.start()
            thread.join(PATIENCE)

    threads = [threading.Thread(target=work) for work in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert {name: type(gru) for name, gru in built.items()} == {
        "second, before its block": nn.GRU,
        "first": tritongru.GRU,
        "second": tritongru.GRU,
        "started": nn.GRU,
        "inherited": nn.GRU,
        "first, after its block": nn.GRU,
    }


def test_tasks_of_one_thread_are_told_apart():
    async def with_patch(entered, leave):
        with tritongru.patch():
            entered.set()
            await leave.wait()
            gru = nn.GRU(2, 3)
        return type(gru)

    async def without(entered, leave):
        await entered.wait()
        found = type(nn.GRU(2, 3))
        leave.set()
        return found

    async def both():
        entered, leave = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(without(entered, leave), with_patch(entered, leave))

    assert asyncio.run(both()) == [nn.GRU, tritongru.GRU]


def test_what_asks_for_torchs_own_gets_it():
    ours = nn.Sequential(tritongru.GRU(2, 3), tritongru.GRUCell(2, 3))
    with tritongru.patch() as report:
        assert [type(m.to_torch()) for m in ours] == [nn.GRU, nn.GRUCell]
        assert type(tritongru.TorchTypeGRU(2, 3)) is tritongru.TorchTypeGRU
        assert type(tritongru.GRUCell(2, 3)) is tritongru.GRUCell
        assert report.swapped == []
        assert type(skip_init(nn.GRUCell, 2, 3)) is tritongru.GRUCell
        assert len(report.swapped) == 1


def test_a_tool_that_wraps_the_constructor_within_the_block_keeps_its_wrapper(monkeypatch):
    seen = []
    with tritongru.patch():
        inner = nn.GRU.__init__

        def init(self, *given):
            inner(self, *given)
            seen.append(type(self))

        nn.GRU.__init__ = init
        nn.GRU(2, 3)
    try:
        assert nn.GRU.__init__ is init
        assert type(nn.GRU(2, 3)) is nn.GRU
        assert seen == [tritongru.TorchTypeGRU, nn.GRU]
    finally:
        nn.GRU.__init__ = OWN[0]


class Initialized(nn.Module):
    """As most libraries do it."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(3, 4)
        self.apply(self.start)

    def start(self, module):
        if isinstance(module, nn.GRU):
            nn.init.zeros_(module.bias_hh_l0)


def test_a_librarys_initializer_finds_its_layers():
    with tritongru.patch():
        model = Initialized()
    assert not model.rnn.bias_hh_l0.any()
    assert type(model.rnn) is tritongru.GRU


def test_what_was_converted_or_forgotten_within_the_block_is_left_alone():
    with tritongru.patch() as report:
        back = nn.GRU(2, 3)
        tritongru.convert(back, back=True)
        nn.GRU(2, 3)  # nobody keeps it
    assert type(back) is nn.GRU
    assert len(report.swapped) == 2


def block():
    with tritongru.patch() as report:
        yield report


def test_a_generator_that_another_context_ends_leaves_torch_as_it_was():
    generator = block()
    contextvars.copy_context().run(next, generator)
    assert next(generator, None) is None
    assert nn.GRU.__init__ is OWN[0]


def test_a_block_that_another_thread_ends_is_over_here():
    manager = tritongru.patch()
    report = manager.__enter__()
    thread = threading.Thread(target=manager.__exit__, args=(None, None, None))
    thread.start()
    thread.join(PATIENCE)
    assert nn.GRU.__init__ is OWN[0]
    with in_another_thread():
        assert type(nn.GRU(2, 3)) is nn.GRU
    assert report.swapped == []


def test_generators_that_end_in_turn_leave_no_block_behind():
    first, second = block(), block()
    reports = [next(first), next(second)]
    next(first, None)
    assert type(nn.GRU(2, 3)) is tritongru.TorchTypeGRU, "the second is open"
    next(second, None)
    with in_another_thread():
        assert type(nn.GRU(2, 3)) is nn.GRU
    assert [len(report.swapped) for report in reports] == [0, 1]


@contextlib.contextmanager
def in_another_thread():
    """Another thread's block is open."""
    entered, leave = threading.Event(), threading.Event()

    def stay():
        with tritongru.patch():
            entered.set()
            assert leave.wait(PATIENCE)

    thread = threading.Thread(target=stay)
    thread.start()
    assert entered.wait(PATIENCE)
    try:
        yield
    finally:
        leave.set()
        thread.join(PATIENCE)


def test_a_task_that_outlives_its_block_builds_torchs():
    async def late(ended):
        await ended.wait()
        with in_another_thread():
            return type(nn.GRU(2, 3))

    async def run():
        ended = asyncio.Event()
        with tritongru.patch() as report:
            task = asyncio.create_task(late(ended))
            await asyncio.sleep(0)
        ended.set()
        return await task, report

    kind, report = asyncio.run(run())
    assert kind is nn.GRU
    assert report.swapped == []

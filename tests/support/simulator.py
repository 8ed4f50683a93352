"""The programs of a launch alive at the same time, in Triton's interpreter, seeing each other's stores late.

docs/simulator.md says what is modelled and what is not.
"""

import bisect
import contextvars
import ctypes
import dataclasses
import functools
import inspect
import itertools
import random
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from unittest import mock

import numpy as np
from triton._C.libtriton import ir
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, InterpretedFunction, InterpreterBuilder, TensorHandle

from tritongru.kernels import interpreter_threads

Index = tuple[int, int, int]

HELD, COVERED = 1, 2  # stored and unseen by others: before and after the program's next barrier
NEW, MIXED, OLD = range(3)  # what a load gets where memory has changed since the program's last acquire
WEAK, VOLATILE = (NEW, MIXED, MIXED, OLD), (NEW, NEW, NEW, MIXED)  # until the next acquire; at each load
ACQUIRES = ir.MEM_SEMANTIC.ACQUIRE, ir.MEM_SEMANTIC.ACQUIRE_RELEASE
RELEASES = ir.MEM_SEMANTIC.RELEASE, ir.MEM_SEMANTIC.ACQUIRE_RELEASE


class SimulationError(RuntimeError):
    """A program failed, or the programs wait for each other for ever."""


class _Stop(BaseException):
    """Ends a program's thread; no Exception, for Triton would wrap it."""


class Buffer:
    """The bytes of a tensor, and what each program sees of them."""

    def __init__(self, base, end, name, word):
        self.base, self.name, self.word = base, name, word  # a word's bytes are never torn
        self.memory = np.frombuffer((ctypes.c_uint8 * (end - base)).from_address(base), np.uint8)
        self.changed = 0  # when memory changed last
        self.views = None  # (programs, bytes) from the first store on: what a program stored or saw last
        self.held = None  # (programs, bytes) HELD or COVERED: only its own program sees a byte
        self.seen = None  # (programs,) when memory last was as the view is, apart from held bytes

    def watch(self, programs):
        if self.views is None:
            self.views = np.tile(self.memory, (programs, 1))
            self.held = np.zeros_like(self.views)
            self.seen = [0] * programs


class Memory:
    """What is in memory and what each of the programs, 0, 1, ..., sees of it. Blocks of bytes are given by their
    indices ``o`` (elements, bytes of one)."""

    def __init__(self, tensors, programs, rng):
        spans = []
        for name, t in sorted(tensors, key=lambda named: named[1].data_ptr()):
            last = sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True))
            span = [t.data_ptr(), t.data_ptr() + (last + 1) * t.itemsize, name, max(4, t.itemsize)]
            if spans and span[0] < spans[-1][1]:  # they overlap
                spans[-1][1] = max(spans[-1][1], span[1])
            elif t.numel():
                spans.append(span)
        self.buffers = [Buffer(*span) for span in spans]
        self.bases = [buffer.base for buffer in self.buffers]
        self.programs, self.rng = programs, rng
        self.changes = 0
        self.holds = [{} for _ in range(programs)]  # the buffers of which a program holds bytes, in order

    def find(self, addresses, size):
        buffer = self.buffers[bisect.bisect_right(self.bases, int(addresses[0])) - 1]
        first = (addresses - np.uint64(buffer.base)).view(np.int64)
        if first.min() < 0 or first.max() + size > buffer.memory.size:
            raise IndexError("a block of addresses that no tensor of the launch holds")
        return buffer, first[:, None] + np.arange(size)

    def some(self, buffer, o):
        """Heads or tails for each byte, the same within a word."""
        coins = np.unpackbits(np.frombuffer(self.rng.randbytes(128), np.uint8)).view(bool)
        return coins[(buffer.base % buffer.word + o) // buffer.word % coins.size]

    def load(self, p, buffer, o, which):
        if buffer.views is None:
            return buffer.memory[o]
        view = buffer.views[p]
        old = view[o]
        if buffer.seen[p] == buffer.changed:
            return old
        keep = (buffer.held[p][o] > 0) | (which == OLD)
        if which == MIXED:
            keep |= self.some(buffer, o)
        view[o] = new = np.where(keep, old, buffer.memory[o])  # what a program has seen it does not unsee
        return new

    def store(self, p, buffer, o, values):
        buffer.watch(self.programs)
        self.show(p, buffer, o[buffer.held[p][o] > 0])  # a program's stores to one place arrive in order
        buffer.views[p][o] = values
        buffer.held[p][o] = HELD
        self.holds[p][buffer] = True

    def show(self, p, buffer, o):
        if o.size:
            buffer.memory[o] = buffer.views[p][o]
            buffer.held[p][o] = 0
            self.change(p, buffer)

    def change(self, p, buffer):
        self.changes += 1
        if buffer.seen[p] == buffer.changed:
            buffer.seen[p] = self.changes
        buffer.changed = self.changes

    def drain(self, p, covered=False, part=False):
        """Shows others the bytes that program p holds: all, those covered by a barrier, or a random part."""
        for buffer in list(self.holds[p]):
            held = buffer.held[p]
            o = np.flatnonzero(held == COVERED if covered else held)
            self.show(p, buffer, o[self.some(buffer, o)] if part else o)
            if not held.any():
                del self.holds[p][buffer]

    def cover(self, p):
        for buffer in self.holds[p]:
            buffer.held[p][buffer.held[p] == HELD] = COVERED

    def acquire(self, p):
        for buffer in self.buffers:
            if buffer.views is not None and buffer.seen[p] != buffer.changed:
                np.copyto(buffer.views[p], buffer.memory, where=buffer.held[p] == 0)
                buffer.seen[p] = buffer.changed

    def atomic(self, p, buffer, o, act, acquire, release):
        """Acts on memory at once: what ``act`` returns, and whether memory changed."""
        buffer.watch(self.programs)
        self.show(p, buffer, o[buffer.held[p][o] > 0])
        if release:
            self.drain(p, covered=True)
        before = buffer.memory[o]
        result = act()
        buffer.views[p][o] = after = buffer.memory[o]
        changed = (before != after).any()
        if changed:
            self.change(p, buffer)
        if acquire:
            self.acquire(p)
        return result, changed


class Program:
    def __init__(self, number, index, last_access, rng):
        self.number, self.index, self.last_access = number, index, last_access
        self.lock = threading.Lock()  # taken while others run
        self.lock.acquire()
        self.accesses, self.doing = 0, "has not begun"
        self.speed, self.which = rng.choice((1, 20)), rng.choice(WEAK)
        self.poll = None  # when and where it looked last, and what it saw
        self.asleep = None  # (buffer, time) while it is about to look a third time at what has not changed

    def sleeps(self):
        return self.asleep is not None and self.asleep[0].changed == self.asleep[1]


class Simulation(GridExecutor):
    """A launch. ``schedule`` tells which program ran after which, ``accesses`` how often memory was accessed."""

    def __init__(self, fn, arg_names, grid, hooks, rng, only, kill, patience):
        super().__init__(fn, arg_names, grid, hooks)
        self.kernel, self.fn = fn, _AllAtOnce(fn, self._run)
        self.rng, self.only, self.kill, self.patience = rng, only, kill, patience
        self.schedule: list[Index] = []
        self.accesses = 0
        self.failure = None

    def __call__(self, *args, **kwargs):
        super().__call__(*args, **kwargs)
        if self.failure:
            raise self.failure

    def _init_args_hst(self, args, kwargs):
        args, kwargs = super()._init_args_hst(args, kwargs)
        self.tensors = list(_tensors([*zip(self.arg_names, args, strict=False), *kwargs.items()]))
        return args, kwargs

    def _run(self, **args):
        rng, builder = self.rng, interpreter.interpreter_builder
        grid = list(itertools.product(*map(range, builder.grid_dim)))
        chosen = grid if self.only is None else sorted(self.only)
        if not chosen or not {*chosen, *self.kill} <= set(grid):
            self.failure = ValueError(f"`only` and `kill` take indices in the grid {builder.grid_dim}")
            return
        self.args, self.stopped, self.done = args, False, threading.Lock()
        self.done.acquire()
        self.live = [Program(n, i, self.kill.get(i), rng) for n, i in enumerate(chosen)]
        self.memory = Memory(self.tensors, len(chosen), rng)
        self.handover, self.leak = rng.choice((0.1, 0.5)), rng.choice((0.01, 0.1, 0.3))
        self.quiet = self.noted = 0
        hooks = {
            "create_masked_load": self._load,
            "create_masked_store": self._store,
            "create_atomic_rmw": self._rmw,
            "create_atomic_cas": self._cas,
            "create_barrier": lambda: self.memory.cover(self.running.number),
            "options": dataclasses.replace(builder.options, sanitize_overflow=False),  # as a kernel is; half the time
        }
        threads = [
            threading.Thread(target=contextvars.copy_context().run, args=(self._live, p), daemon=True)
            for p in self.live
        ]
        with mock.patch.multiple(builder, **hooks), interpreter_threads.one_thread_prepares():
            try:
                for thread in threads:
                    thread.start()
                self._resume(self._next())
                self.done.acquire()
            finally:
                self.stopped = True  # should this thread be interrupted, the others end at their next access
                for thread in threads:
                    thread.join(10)

    def _live(self, me):
        me.lock.acquire()
        try:
            if not self.stopped:
                self.kernel(**self.args)
        except _Stop:
            pass
        except BaseException as error:
            self._fail(f"program {me.index}: {_root(error)!r}", error)
        self.memory.drain(me.number)
        self.live.remove(me)
        if self.live:
            self._resume(self._next())
        else:
            self.done.release()

    def _fail(self, text, cause=None):
        if self.failure is None:
            self.failure = SimulationError(text)
            self.failure.__cause__ = cause
        self.stopped = True

    def _resume(self, program):
        self.running = program
        self.schedule.append(program.index)
        interpreter.interpreter_builder.grid_idx = program.index
        program.lock.release()

    def _next(self):
        """A random program to run, of those that do not wait for memory to change if there are any."""
        rng, live = self.rng, self.live
        if self.stopped:
            return live[0]
        if rng.random() < 0.02:
            rng.choice(live).speed = rng.choice((1, 20))
        while not (awake := [p for p in live if not p.sleeps()]) and self._leak():
            pass
        if not awake or self.quiet > 50:
            return rng.choice(awake or live)
        return rng.choices(awake, [p.speed for p in awake])[0]

    def _leak(self):
        """Shows others what some program holds, or a part of it; whether any holds something."""
        holders = [p.number for p in self.live if self.memory.holds[p.number]]
        if holders:
            self.memory.drain(self.rng.choice(holders), part=self.rng.random() < 0.5)
        return bool(holders)

    def _access(self, doing, ptrs, mask, size):
        """What comes before an access: time passes, others may run. Whose access it is, and to what."""
        me = self.running
        if me.accesses == me.last_access:
            raise _Stop
        me.accesses += 1
        self.accesses += 1
        self.quiet = self.quiet + 1 if self.noted == self.memory.changes else 0
        self.noted = self.memory.changes
        if self.rng.random() < self.leak or self.quiet % 50 == 49:  # nothing is held for ever
            self._leak()
        if self.quiet > self.patience * len(self.live):
            doings = "; ".join(f"{p.index} {p.doing}" for p in self.live[:8])
            self._fail(f"nothing changed in memory for {self.quiet} accesses: {doings}")
        if me.sleeps() or self.rng.random() < self.handover:
            other = self._next()
            if other is not me:
                self._resume(other)
                me.lock.acquire()
        if self.stopped:
            raise _Stop
        me.asleep = None
        buffer, o = self.memory.find(ptrs.data[mask], size)
        me.doing = f"{doing} {buffer.name}[{o[0, 0] // size}]"
        return me, buffer, o

    def _look(self, me, buffer, o, result):
        poll = buffer, o[0, 0], result.tobytes()
        if me.poll == (me.accesses - 1, *poll):
            me.asleep = buffer, buffer.changed
        me.poll = me.accesses, *poll

    def _load(self, ptrs, mask, other, *policy, **named):
        volatile = named.get("is_volatile", policy and policy[-1])
        dtype, mask = interpreter._get_np_dtype(ptrs.get_element_ty()), np.asarray(mask.data)
        result = np.zeros(ptrs.data.shape, dtype)
        if other is not None:
            result[...] = other.data
        if mask.any():
            me, buffer, o = self._access("loads", ptrs, mask, dtype.itemsize)
            which = self.rng.choice(VOLATILE) if volatile else me.which
            result[mask] = self.memory.load(me.number, buffer, o, which).view(dtype)[:, 0]
            if volatile and which == NEW:
                self._look(me, buffer, o, result)
        return TensorHandle(result, ptrs.get_element_ty())

    def _store(self, ptrs, value, mask, *policy, **named):
        mask = np.asarray(mask.data)
        if mask.any():
            me, buffer, o = self._access("stores", ptrs, mask, value.data.itemsize)
            self.memory.store(me.number, buffer, o, value.data[mask][:, None].view(np.uint8))

    def _rmw(self, op, ptr, val, mask, sem, scope):
        return self._atomic("create_atomic_rmw", (op, ptr, val, mask, sem, scope), ptr, val, mask.data, sem, scope)

    def _cas(self, ptr, cmp, val, sem, scope):
        everywhere = np.ones(ptr.data.shape, bool)
        return self._atomic("create_atomic_cas", (ptr, cmp, val, sem, scope), ptr, val, everywhere, sem, scope)

    def _atomic(self, name, args, ptr, val, mask, sem, scope):
        act = functools.partial(getattr(InterpreterBuilder, name), interpreter.interpreter_builder, *args)
        if not mask.any():
            return act()
        me, buffer, o = self._access("acts on", ptr, mask, val.data.itemsize)
        between = scope != ir.MEM_SYNC_SCOPE.CTA  # orders something between programs
        acquire, release = between and sem in ACQUIRES, between and sem in RELEASES
        result, changed = self.memory.atomic(me.number, buffer, o, act, acquire, release)
        if acquire:
            me.which = self.rng.choice(WEAK)
        if not changed:
            self._look(me, buffer, o, result.data)
        return result


class _AllAtOnce:
    """Stands for the kernel where Triton calls it for one program after the other: the first call runs them all."""

    def __init__(self, fn, run):
        functools.update_wrapper(self, fn)
        self.__signature__, self.__globals__, self.run = inspect.signature(fn), fn.__globals__, run

    def __call__(self, **args):
        if interpreter.interpreter_builder.grid_idx == (0, 0, 0):
            self.run(**args)


def _tensors(named):
    for name, arg in named:
        arg = getattr(arg, "base", arg)  # of a tensor descriptor
        if isinstance(arg, tuple):
            yield from _tensors((f"{name}[{i}]", a) for i, a in enumerate(arg))
        elif hasattr(arg, "data_ptr"):
            yield name, arg


def _root(error):
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@contextmanager
def simulated(
    seed: int = 0,
    *,
    only_for: Collection[InterpretedFunction] | None = None,
    only: Collection[Index] | None = None,
    kill: Mapping[Index, int] | None = None,
    patience: int = 1000,
) -> Iterator[list[Simulation]]:
    """Kernels launched inside run in the simulator: all, or those in ``only_for``. Gives the list of the launches.

    seed      the same seed gives the same run, bit for bit
    only      the programs that run, of a grid that stays as large as it is
    kill      programs that end before their access to memory of this number, counted from 0
    patience  the programs hang if memory has not changed for so many accesses per program

    Raises SimulationError where a program fails or the programs hang.
    """
    launches: list[Simulation] = []
    one_by_one, at_once = InterpretedFunction.run, interpreter_threads.launch

    def chosen(kernel):
        return only_for is None or kernel in only_for

    def launch_here(kernel, grid, *args, **kwargs):
        return kernel[grid](*args, **kwargs) if chosen(kernel) else at_once(kernel, grid, *args, **kwargs)

    def run(self, *args, grid, warmup, **kwargs):
        if warmup or not chosen(self):
            return one_by_one(self, *args, grid=grid, warmup=warmup, **kwargs)
        rng = random.Random(f"{seed} {len(launches)}")
        launch = Simulation(self.rewrite(), self.arg_names, grid, self.pre_run_hooks, rng, only, kill or {}, patience)
        launches.append(launch)
        return launch(*args, **kwargs)

    with (
        mock.patch.object(InterpretedFunction, "run", run),
        mock.patch.object(interpreter_threads, "launch", launch_here),
    ):
        yield launches


def simulate(kernel, grid, *args, seed=0, only=None, kill=None, patience=1000, **kwargs) -> Simulation:
    """``kernel[grid](*args, **kwargs)`` in the simulator; see `simulated`."""
    if not isinstance(kernel, InterpretedFunction):
        raise TypeError("set TRITON_INTERPRET=1 before Triton is imported")
    with simulated(seed, only_for=[kernel], only=only, kill=kill, patience=patience) as launches:
        kernel[grid](*args, **kwargs)
    return launches[0]

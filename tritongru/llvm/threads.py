"""Runs the tasks of a phase in parallel: with torch's own OpenMP threads, or a pool of Python threads.

Both have the arguments of ``GOMP_parallel``: a function, its argument, and how many threads call it. Torch's wheels for
Linux include the OpenMP library that its operators use; the same team of threads is used here.
"""

from __future__ import annotations

import _thread
import concurrent.futures
import ctypes
import functools
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import torch

from tritongru.llvm import forks

_PARALLEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
_WORK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
MOST = 256  # threads of the pool


def count() -> int:
    """As many as torch's operators use; one in a forked child, where OpenMP's team does not exist."""
    return 1 if forks.is_child() else torch.get_num_threads()


def parallel() -> int:
    """The address of the function that runs tasks in parallel."""
    return _openmp() or _pool()


@functools.cache
def _openmp() -> int:
    """``GOMP_parallel`` of the library that torch has loaded, or 0 if there is none."""
    if sys.platform != "linux":
        return 0
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*")):
        try:
            library = ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD)
            return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value or 0
        except (OSError, AttributeError):  # not loaded, or another library of that name
            continue
    return 0


@functools.cache
def _executor() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(MOST, thread_name_prefix="tritongru")


class _Job:
    """A function that threads may enter until it is closed; ``close`` waits until all have left."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.work, self.open, self.inside = work, True, 0
        self.changed = threading.Condition()

    def enter(self) -> None:
        with self.changed:
            if not self.open:
                return
            self.inside += 1
        try:
            self.work()
        finally:
            with self.changed:
                self.inside -= 1
                self.changed.notify_all()

    def close(self) -> None:
        with self.changed:
            self.open = False
            while self.inside:
                self.changed.wait()


def _in_pool(function: int, given: int, number: int, _: int) -> None:
    """Nothing may end this before the job is closed: ``given`` is on the caller's stack. This thread does all the work
    if no other can be started, as when Python exits."""
    work = functools.partial(_WORK(function), given)
    job, interrupted, asked, closed = _Job(work), False, 0, False
    while not closed:
        try:
            while asked < number - 1:
                asked += 1
                _executor().submit(job.enter)
        except RuntimeError:
            asked = number
        except KeyboardInterrupt:
            interrupted = True
        try:
            work()  # the second time there is nothing to do
            job.close()
            closed = True
        except KeyboardInterrupt:
            interrupted = True
    if interrupted:  # exceptions do not propagate from here
        _thread.interrupt_main()


_in_pool_pointer = _PARALLEL(_in_pool)


def _pool() -> int:
    return ctypes.cast(_in_pool_pointer, ctypes.c_void_p).value or 0

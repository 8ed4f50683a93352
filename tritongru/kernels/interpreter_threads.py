"""Runs all programs of a grid at once in Triton's interpreter.

The interpreter runs one program after the other, so a program that waits for a later one would wait for ever. Here
every program has its own thread, with its own position in the grid.
"""

import contextlib
import dataclasses
import itertools
import threading
import time
from collections.abc import Iterator
from typing import Any

from triton.runtime import interpreter


class _Builder(interpreter.InterpreterBuilder):  # type: ignore[misc]
    """The interpreter's builder, with the running thread's position in the grid."""

    places: threading.local
    grid: tuple[int, int, int]
    raised: list[BaseException]  # by programs of this grid

    @property
    def grid_idx(self) -> tuple[int, int, int]:
        return self.places.value  # type: ignore[no-any-return]

    @grid_idx.setter
    def grid_idx(self, value: Any) -> None:
        """Ignored: each thread launches a grid of one, whose position is not the thread's."""

    @property
    def grid_dim(self) -> tuple[int, int, int]:
        return self.grid

    @grid_dim.setter
    def grid_dim(self, value: Any) -> None: ...

    def create_atomic_rmw(self, *args: Any) -> Any:
        self._look_around()
        return super().create_atomic_rmw(*args)

    def create_masked_load(self, *args: Any) -> Any:
        self._look_around()
        return super().create_masked_load(*args)

    def _look_around(self) -> None:
        """A waiting program lets the others run, and stops if one of them has raised."""
        if self.raised:
            raise _OtherDiedError
        time.sleep(0)


class _OtherDiedError(Exception):
    """Ends a program after another one has raised."""


_one_grid_at_a_time = threading.Lock()


class _Kept:
    """A placeholder: the patches are undone at the end of the grid."""

    def restore(self) -> None: ...


@contextlib.contextmanager
def one_thread_prepares() -> Iterator[None]:
    """At each call of a function the interpreter patches the language, restores it at the kernel's end, and rewrites
    the function at its first call, all in dictionaries that the threads share. Here one thread at a time does that,
    once per module, and nothing is restored before the last program has ended."""
    patch, rewrite = interpreter._patch_lang, interpreter.InterpretedFunction.rewrite
    lock, scopes = threading.Lock(), {}

    def patch_once(fn: Any) -> _Kept:
        with lock:
            if id(fn.__globals__) not in scopes:
                scopes[id(fn.__globals__)] = patch(fn)
        return _Kept()

    def rewrite_alone(function: Any) -> Any:
        with lock:
            return rewrite(function)

    interpreter._patch_lang, interpreter.InterpretedFunction.rewrite = patch_once, rewrite_alone
    try:
        yield
    finally:
        interpreter._patch_lang, interpreter.InterpretedFunction.rewrite = patch, rewrite
        for scope in reversed(scopes.values()):
            scope.restore()


Place = tuple[int, int, int]


def launch(kernel: Any, grid: Place, *args: Any, **kwargs: Any) -> None:
    """``kernel[grid](*args, **kwargs)`` with all programs running from the start. Raises what a program raised."""
    i, j, k = grid
    launch_at(list(itertools.product(range(i), range(j), range(k))), kernel, grid, *args, **kwargs)


def launch_at(places: list[Place], kernel: Any, grid: Place, *args: Any, **kwargs: Any) -> None:
    """``launch``, but only for the programs at these positions of the grid."""
    raised: list[BaseException] = []
    builder: Any = interpreter.interpreter_builder

    def run(place: Place) -> None:
        builder.places.value = place
        try:
            kernel[(1, 1, 1)](*args, **kwargs)
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(place,), daemon=True) for place in places]
    with _one_grid_at_a_time:
        before = builder.__class__, dict(builder.__dict__)
        builder.__dict__.pop("grid_idx", None)
        builder.__dict__.pop("grid_dim", None)
        builder.__class__, builder.places, builder.grid, builder.raised = _Builder, threading.local(), grid, raised
        # Overflow checks double the time, and kernels that run one program at a time have them.
        builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
        try:
            with one_thread_prepares():
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
        finally:
            builder.__class__ = before[0]
            builder.__dict__.clear()
            builder.__dict__.update(before[1])
    if raised:
        raise raised[0]

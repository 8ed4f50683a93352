"""Under Triton's interpreter: all programs of a grid at once.

The interpreter runs one program after the other, so a program that waits for a later one would wait for ever. Here
every program has a thread of its own, and its place in the grid.
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
    """The interpreter's builder, whose place in the grid is the running thread's."""

    places: threading.local
    grid: tuple[int, int, int]
    raised: list[BaseException]  # by programs of this grid

    @property
    def grid_idx(self) -> tuple[int, int, int]:
        return self.places.value  # type: ignore[no-any-return]

    @grid_idx.setter
    def grid_idx(self, value: Any) -> None:
        """Each thread launches a grid of one, whose place is not its own."""

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
        """Whoever waits lets the others run, and does not wait for one that is gone."""
        if self.raised:
            raise _OtherDiedError
        time.sleep(0)


class _OtherDiedError(Exception):
    """Ends a program after another one raised."""


_one_grid_at_a_time = threading.Lock()


class _Kept:
    """Stands for patches that end with the grid."""

    def restore(self) -> None: ...


@contextlib.contextmanager
def one_thread_prepares() -> Iterator[None]:
    """At each call of a function the interpreter patches the language, undoes that at a kernel's end, and at the first
    call writes the function anew, all in dictionaries that the threads share. Here one thread at a time does it, once
    for each module, and nothing is undone before the last program has ended."""
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
    """``kernel[grid](*args, **kwargs)`` with every program alive from the start. Raises what a program raised."""
    i, j, k = grid
    launch_at(list(itertools.product(range(i), range(j), range(k))), kernel, grid, *args, **kwargs)


def launch_at(places: list[Place], kernel: Any, grid: Place, *args: Any, **kwargs: Any) -> None:
    """``launch``, but only of the programs at these places of the grid."""
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
        # Overflow checks double the time, and kernels run one by one have them.
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

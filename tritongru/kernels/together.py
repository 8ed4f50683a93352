"""Under Triton's interpreter: all programs of a grid at once.

The interpreter runs one program after the other, so a program that waits for a later one would wait for ever. Here
every program has a thread of its own, and its place in the grid.
"""

import dataclasses
import itertools
import threading
import time
from typing import Any

from triton.runtime import interpreter


class _Builder(interpreter.InterpreterBuilder):  # type: ignore[misc]
    """The interpreter's builder, whose place in the grid is the running thread's."""

    places: threading.local
    grid: tuple[int, int, int]

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
        old = super().create_atomic_rmw(*args)
        time.sleep(0)  # whoever waits lets the others run
        return old


_one_grid_at_a_time = threading.Lock()


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
        # The patches of one thread's launch would be undone under the feet of the others.
        patches = interpreter._patch_lang(kernel.fn)
        builder.__dict__.pop("grid_idx", None)
        builder.__dict__.pop("grid_dim", None)
        builder.__class__, builder.places, builder.grid = _Builder, threading.local(), grid
        # Overflow checks double the time, and kernels run one by one have them.
        builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            builder.__class__ = before[0]
            builder.__dict__.clear()
            builder.__dict__.update(before[1])
            patches.restore()
    if raised:
        raise raised[0]

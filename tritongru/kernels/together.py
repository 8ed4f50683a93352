"""Under Triton's interpreter: all programs of a grid at once.

The interpreter runs one program after the other, so a program that waits for a later one would wait for ever. Here
every program has a thread of its own, and its place in the grid.
"""

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


def launch(kernel: Any, grid: tuple[int, int, int], *args: Any, **kwargs: Any) -> None:
    """``kernel[grid](*args, **kwargs)`` with every program alive from the start. Raises what a program raised."""
    raised: list[BaseException] = []
    builder: Any = interpreter.interpreter_builder

    def run(place: tuple[int, int, int]) -> None:
        builder.places.value = place
        try:
            kernel[(1, 1, 1)](*args, **kwargs)
        except BaseException as error:
            raised.append(error)

    places = [(i, j, k) for k in range(grid[2]) for j in range(grid[1]) for i in range(grid[0])]
    threads = [threading.Thread(target=run, args=(place,), daemon=True) for place in places]
    with _one_grid_at_a_time:
        before = builder.__class__, dict(builder.__dict__)
        # The patches of one thread's launch would be undone under the feet of the others.
        patches = interpreter._patch_lang(kernel.fn)
        builder.__dict__.pop("grid_idx", None)
        builder.__dict__.pop("grid_dim", None)
        builder.__class__, builder.places, builder.grid = _Builder, threading.local(), grid
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

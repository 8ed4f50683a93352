"""A launch of programs that wait for each other, on a GPU or in the interpreter."""

import functools
from typing import Any

from torch import Tensor

from tritongru.kernels import interpreter_threads, launching
from tritongru.kernels.persistent.watchdog import raise_report, report_of


def launch_cooperative(kernel: Any, grid: interpreter_threads.Place, like: Tensor, *args: Any, **kwargs: Any) -> None:
    """Runs a kernel whose programs are all on the device at once, or none of them. After its tensors ``args`` it gets
    the word in which it reports where it gave up.

    Raises:
        RuntimeError: if an earlier launch on this device gave up waiting.
    """
    device = launching.device_of(like)
    report = report_of(device)
    raise_report(report)
    with launching.on_device_of(like):
        run = functools.partial(interpreter_threads.launch, kernel, grid)
        if device.type == "cuda":
            run = functools.partial(kernel[grid], launch_cooperative_grid=True)
        run(*args, report.tensor, **kwargs)
    if device.type == "cpu":
        raise_report(report)

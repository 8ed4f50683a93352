"""Without a GPU the kernels run in Triton's interpreter, which must be chosen before Triton is imported."""

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "support"))

torch.set_num_threads(1)  # the workers of a run share the cores already

if importlib.util.find_spec("hypothesis"):
    from hypothesis import HealthCheck, settings

    settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("patient")

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"
    import triton  # noqa: F401  # now: a test without the variable may be the first to import it, for the whole process


@pytest.fixture
def device() -> torch.device:
    """Where kernels run: a GPU, or the CPU under the interpreter."""
    return torch.device("cuda" if HAS_GPU else "cpu")


@pytest.fixture
def ieee() -> Iterator[None]:
    """fp32 products in full: the interpreter makes them so anyway, and gates are then refined to fp32 accuracy."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32  # the newer names follow these, but not these the newer names
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    yield
    cudnn.allow_tf32, matmul.allow_tf32 = before


def sizes_of(item: pytest.Item) -> tuple[str, str]:
    """The hidden size and the dtype, for which most of a GPU test's kernels are compiled."""
    given = getattr(item, "callspec", None)
    if given is None or "gpu" not in item.keywords:
        return "", ""
    return str(given.params.get("H", "")), str(given.params.get("dtype", ""))


def leave_some(items: list[pytest.Item]) -> None:
    """Makes slow what ``every(n)`` leaves out; with ``slow=m``, every m-th of these, and the others rare."""
    seen: dict[str, int] = {}
    for item in items:
        marker = item.get_closest_marker("every")
        if marker is None:
            continue
        name = item.nodeid.partition("[")[0]
        seen[name] = seen.get(name, -1) + 1
        round_, place = divmod(seen[name], marker.args[0])
        if place:
            left_out = round_ * (marker.args[0] - 1) + place - 1
            item.add_marker(pytest.mark.rare if left_out % marker.kwargs.get("slow", 1) else pytest.mark.slow)


@pytest.hookimpl(tryfirst=True)  # before pytest looks at the marks that were asked for
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    leave_some(items)
    if HAS_GPU:
        # Each worker begins with a stretch of the list: two that met the same sizes at once would both compile.
        items.sort(key=sizes_of)
    skip = pytest.mark.skip(reason="needs a GPU, and torch.cuda.is_available() is False")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.timeout(120, method="thread"))  # ends the worker, kernel and all
            if not HAS_GPU:
                item.add_marker(skip)

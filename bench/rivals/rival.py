"""What a rival is, and how one says that it cannot run a case."""

import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

import tritongru
from bench.measure.cases import Case
from bench.measure.pair import Call, Pair, Step

Steps = Mapping[str, Step]  # of ours and of nn.GRU


class Unavailable(LookupError):
    """A rival cannot run this case; the text is one sentence that says why."""


@dataclass(frozen=True)
class Rival:
    """Something that nn.GRU's work is timed against."""

    name: str  # in rows
    package: str | None  # the distribution whose version is named; None stands for torch itself
    how: str  # one sentence: how it is called
    same: bool  # nn.GRU's function of the same weights
    make: Callable[[Case, Pair, Steps], Call]  # one call as a step makes it; raises Unavailable
    # A module with nn.GRU's parameters, names included, that runs what the call runs; None if that is not checked.
    twin: Callable[[Call, torch.nn.Module], torch.nn.Module] | None = None

    def version(self) -> str:
        if self.package is None:
            cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
            return f"torch {torch.__version__}" + (f", cuDNN {cudnn}" if cudnn else "")
        found = installed(self.package)
        return f"{self.package} {found}" if found else f"{self.package}, not installed"


def installed(package: str) -> str | None:
    if package == tritongru.__name__:
        return tritongru.__version__  # run from a checkout, too
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def need(package: str, device: torch.device, remedy: str | None = None) -> None:
    """The package, and a GPU."""
    if installed(package) is None:
        raise Unavailable(f"{package} is not installed; {remedy or f'pip install {package}'}")
    if device.type != "cuda":
        raise Unavailable(f"the kernels of {package} need a GPU")


def one_of(name: str, dtype: str, dtypes: tuple[str, ...]) -> None:
    if dtype not in dtypes:
        raise Unavailable(f"{name} takes {' and '.join(dtypes)}, not {dtype}")

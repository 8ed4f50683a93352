"""What a rival is, and how it reports that it cannot run a case."""

import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

import tritongru
from bench.measure.cases import Case
from bench.measure.pair import Call, Pair, Step

Steps = Mapping[str, Step]  # of tritongru and nn.GRU


class Unavailable(LookupError):
    """A rival cannot run this case; the message is the reason, in one sentence."""


@dataclass(frozen=True)
class Rival:
    """An implementation that is timed beside nn.GRU."""

    name: str  # in rows
    package: str | None  # the distribution whose version is reported; None: torch itself
    how: str  # one sentence: how it is called
    same: bool  # computes nn.GRU's function with the same weights
    make: Callable[[Case, Pair, Steps], Call]  # a call like a step's; raises Unavailable
    # A module with nn.GRU's parameters under the same names that computes what the call computes; None: not checked.
    twin: Callable[[Call, torch.nn.Module], torch.nn.Module] | None = None

    def version(self) -> str:
        if self.package is None:
            cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
            return f"torch {torch.__version__}" + (f", cuDNN {cudnn}" if cudnn else "")
        found = installed(self.package)
        return f"{self.package} {found}" if found else f"{self.package}, not installed"


def installed(package: str) -> str | None:
    if package == tritongru.__name__:
        return tritongru.__version__  # also when run from a checkout
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def need(package: str, device: torch.device, remedy: str | None = None) -> None:
    """Raises Unavailable unless the package is installed and the device is a GPU."""
    if installed(package) is None:
        raise Unavailable(f"{package} is not installed; {remedy or f'pip install {package}'}")
    if device.type != "cuda":
        raise Unavailable(f"the kernels of {package} need a GPU")


def one_of(name: str, dtype: str, dtypes: tuple[str, ...]) -> None:
    if dtype not in dtypes:
        raise Unavailable(f"{name} takes {' and '.join(dtypes)}, not {dtype}")

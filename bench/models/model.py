"""What the catalogue knows about a model of another package."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.measure.rows import version_of

Outputs = dict[str, Tensor]


@dataclass(frozen=True)
class Model:
    """A model that a package ships or builds, and a call of it. Only ``build``, ``inputs`` and ``run`` import the
    package. ``swapped``: names of the layers that ``convert`` changes."""

    name: str  # of rows
    package: str  # to install it
    module: str  # to import it
    field: str
    what: str  # for a reader: the class, and the shape of its GRU
    source: str  # where the sizes come from
    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    run: Callable[[nn.Module, Any], Outputs]
    swapped: tuple[str, ...]
    as_torch_type: bool = False  # the package asks isinstance(m, nn.GRU)
    kinks: bool = False  # has ReLUs: one that is within rounding of zero may switch in one of two equal models

    @property
    def version(self) -> str | None:
        return version_of(self.package)

    def why_not(self) -> str | None:
        """Why it cannot be built here, in one sentence; None if it can."""
        if self.version is None:
            return f"{self.package} is not installed; pip install {self.package}"
        try:
            importlib.import_module(self.module)
        except (ImportError, OSError) as error:
            return f"{self.package} {self.version} cannot be imported: {str(error).splitlines()[0]}"
        return None


def loss_of(outputs: Outputs) -> Tensor:
    """A loss to which every output contributes; the packages' own need their data sets' labels."""
    return torch.stack([output.square().mean() for output in outputs.values()]).sum()

"""A drop-in replacement for `torch.nn.GRU` with the whole time loop in one kernel, on GPUs and CPUs."""

from typing import TYPE_CHECKING

from tritongru.cell import GRUCell
from tritongru.conversion.converting import convert
from tritongru.conversion.patching import patch
from tritongru.conversion.report import Report
from tritongru.functional import gru
from tritongru.interop.registries import register
from tritongru.llvm import forks as _forks  # noqa: F401  # from now on forks are noticed
from tritongru.module import GRU, TorchTypeGRU
from tritongru.planning.explaining import explain
from tritongru.planning.plan import Plan
from tritongru.synchronization import synchronize

__version__ = "0.1.0"
__all__ = [
    "GRU",
    "GRUCell",
    "Plan",
    "Report",
    "TorchTypeGRU",
    "convert",
    "explain",
    "gru",
    "patch",
    "synchronize",
    "weights",
]

register(GRU, GRUCell, TorchTypeGRU)

if TYPE_CHECKING:
    from tritongru import weights as weights
else:

    def __getattr__(name: str) -> object:
        """Imports ``tritongru.weights`` when it is first asked for."""
        if name != "weights":
            raise AttributeError(f"module 'tritongru' has no attribute {name!r}")
        import tritongru.weights

        return tritongru.weights

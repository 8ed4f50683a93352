"""The GRU with its time loop inside one Triton kernel: a drop-in for torch.nn.GRU."""

from tritongru.functional import gru
from tritongru.interop.registries import register
from tritongru.module import GRU, GRUCell, TorchTypeGRU
from tritongru.planning.explaining import explain
from tritongru.planning.plan import Plan
from tritongru.synchronization import synchronize

__version__ = "0.1.0"
__all__ = ["GRU", "GRUCell", "Plan", "TorchTypeGRU", "explain", "gru", "synchronize"]

register(GRU, TorchTypeGRU)

"""What is timed beside nn.GRU: torch's own alternatives, the kernels of other packages, and a lower bound."""

from bench.rivals.availability import ALL_RIVALS, ALLOWANCES_S, BOUNDS, GATE_RIVALS, GRID_RIVALS, REGISTRY, rivals_for
from bench.rivals.builtin import COMPILED, CUDNN_LSTM, GRAPH, graph_of, lstm_of
from bench.rivals.own_variants import FLOOR, FORCED, OURS_GRAPH, exchanges, floor_of
from bench.rivals.packages import FLASHRNN, FLASHRNN2, GRU_QAT, HASTE, TORCHRL
from bench.rivals.rival import Rival, Unavailable

__all__ = [
    "ALLOWANCES_S",
    "ALL_RIVALS",
    "BOUNDS",
    "COMPILED",
    "CUDNN_LSTM",
    "FLASHRNN",
    "FLASHRNN2",
    "FLOOR",
    "FORCED",
    "GATE_RIVALS",
    "GRAPH",
    "GRID_RIVALS",
    "GRU_QAT",
    "HASTE",
    "OURS_GRAPH",
    "REGISTRY",
    "TORCHRL",
    "Rival",
    "Unavailable",
    "exchanges",
    "floor_of",
    "graph_of",
    "lstm_of",
    "rivals_for",
]

"""GRU, LSTM and plain RNN compared: ``docs/models.md``, ``docs/data/study.md`` and two sentences of the README."""

from bench.pages.study.data import PARTS as DATA_PARTS
from bench.pages.study.page import PARTS
from bench.pages.study.sentences import answer
from bench.study.command import read

__all__ = ["DATA_PARTS", "PARTS", "answer", "read"]

"""Models of other packages with a torch.nn.GRU or GRUCell inside, from several fields; none needs a download."""

from __future__ import annotations

from bench.models import audio, language, molecules, recommenders, reinforcement, series
from bench.models.model import Model

MODELS: tuple[Model, ...] = (
    *reinforcement.MODELS,
    *recommenders.MODELS,
    *molecules.MODELS,
    *series.MODELS,
    *audio.MODELS,
    *language.MODELS,
)
BY_NAME = {model.name: model for model in MODELS}

"""Music: an acoustic model of piano-transcription-inference, convolutions before a GRU in both directions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.models.model import Model, Outputs

FRAMES, MELS, KEYS, FLATTENED = 50, 229, 88, 1792


def acoustic_model() -> nn.Module:
    from piano_transcription_inference.models import AcousticModelCRnn8Dropout

    model: nn.Module = AcousticModelCRnn8Dropout(KEYS, FLATTENED, momentum=0.01)
    return model


def spectrogram() -> Tensor:
    return torch.randn(1, 1, FRAMES, MELS)


def acoustic_model_run(model: nn.Module, given: Tensor) -> Outputs:
    return {"keys": model(given)}


MODELS = (
    Model(
        "piano-acoustic",
        "piano-transcription-inference",
        "piano_transcription_inference.models",
        "music",
        "`AcousticModelCRnn8Dropout`, 2 layers in both directions, H = 256, after convolutions",
        f"sizes as the package builds four of these; {FRAMES} frames, half a second, are a choice",
        acoustic_model,
        spectrogram,
        acoustic_model_run,
        ("gru",),
        kinks=True,
    ),
)

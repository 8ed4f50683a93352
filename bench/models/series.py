"""Series: GRU of NeuralForecast, GRU-D of PyPOTS on series with gaps, medaka's model of pileups of reads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.models.model import Model, Outputs

HORIZON, WINDOWS, PAST = 24, 32, 72
PATIENTS, HOURS, MEASURED, CLINICAL = 64, 48, 37, 64
CHUNKS, POSITIONS, COUNTS = 2, 500, 10


def forecaster() -> nn.Module:
    from neuralforecast.models import GRU

    return GRU(h=HORIZON, input_size=PAST)  # type: ignore[no-any-return]


def windows() -> dict[str, Tensor | None]:
    absent = dict.fromkeys(("futr_exog", "hist_exog", "stat_exog"))
    return {"insample_y": torch.randn(WINDOWS, PAST, 1), **absent}


def forecaster_run(model: nn.Module, given: dict[str, Tensor | None]) -> Outputs:
    return {"forecast": model(given)}


def gru_d() -> nn.Module:
    from pypots.classification import GRUD

    whole = GRUD(HOURS, MEASURED, n_classes=2, rnn_hidden_size=CLINICAL, device="cpu", verbose=False)
    return whole.model  # type: ignore[no-any-return]


def patients() -> dict[str, Tensor]:
    shape = (PATIENTS, HOURS, MEASURED)
    mask = (torch.rand(shape) < 0.2).float()
    values = torch.randn(shape) * mask
    return {
        "X": values,
        "missing_mask": mask,
        "deltas": torch.randint(0, 6, shape).float(),
        "empirical_mean": torch.randn(MEASURED),
        "X_filledLOCF": torch.randn(shape),
    }


def gru_d_run(model: nn.Module, given: dict[str, Tensor]) -> Outputs:
    return {"logits": model(given)["logits"]}


def polisher() -> nn.Module:
    from medaka.architectures.gru import GRUModel

    model = GRUModel(num_features=COUNTS)
    model.normalise = False  # as medaka trains it
    return model  # type: ignore[no-any-return]


def pileups() -> Tensor:
    return torch.rand(CHUNKS, POSITIONS, COUNTS)


def polisher_run(model: nn.Module, given: Tensor) -> Outputs:
    return {"scores": model(given)}


MODELS = (
    Model(
        "neuralforecast-gru",
        "neuralforecast",
        "neuralforecast.models",
        "forecasting",
        "`GRU`, 2 layers, H = 200",
        f"the class's defaults; a horizon of {HORIZON}, so windows of {PAST} steps, and {WINDOWS} of these, below the "
        "default of 128, are a choice",
        forecaster,
        windows,
        forecaster_run,
        ("hist_encoder",),
    ),
    Model(
        "pypots-grud",
        "pypots",
        "pypots.classification",
        "health",
        f"`GRUD`, a GRU cell step by step, H = {CLINICAL}",
        f"{HOURS} hours of {MEASURED} measurements as in PhysioNet 2012; {PATIENTS} patients and H are a choice",
        gru_d,
        patients,
        gru_d_run,
        ("model.rnn_cell",),
    ),
    Model(
        "medaka-gru",
        "medaka",
        "medaka.architectures.gru",
        "genomics",
        "`GRUModel`, 2 layers in both directions, H = 128",
        f"the class's defaults; {CHUNKS} chunks of {POSITIONS} positions are a choice",
        polisher,
        pileups,
        polisher_run,
        ("gru",),
    ),
)

"""Recommendation: DIEN of DeepCTR-Torch on packed histories, GRU4Rec of Torch-RecHub."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bench.models.model import Model, Outputs

CLICKS, HISTORY, WIDTH = 128, 100, 18  # batch size, longest history, and width of an embedding
ITEMS, CATEGORIES, USERS = 1000, 50, 500
SESSIONS, SESSION, EMBEDDED, NEGATIVES = 256, 50, 16, 3
SPREAD = 0.1  # of the embeddings: batch norm would enlarge the rounding of the default, 0.0001, by as much as the rest


def dien() -> nn.Module:
    from deepctr_torch.inputs import DenseFeat, SparseFeat, VarLenSparseFeat
    from deepctr_torch.models import DIEN

    def history(name: str, size: int) -> Any:
        column = SparseFeat(f"hist_{name}", size + 1, embedding_dim=WIDTH, embedding_name=name)
        return VarLenSparseFeat(column, maxlen=HISTORY, length_name="seq_length")

    columns = [
        SparseFeat("user", USERS, embedding_dim=WIDTH),
        SparseFeat("item", ITEMS + 1, embedding_dim=WIDTH),
        SparseFeat("category", CATEGORIES + 1, embedding_dim=WIDTH),
        DenseFeat("price", 1),
        history("item", ITEMS),
        history("category", CATEGORIES),
    ]
    model: nn.Module = DIEN(columns, ["item", "category"], init_std=0.1)
    return model


def clicks() -> Tensor:
    """One column for each feature, in the order of the model's own index."""
    lengths = torch.randint(1, HISTORY + 1, (CLICKS, 1))
    padding = torch.arange(HISTORY) >= lengths
    items = torch.randint(1, ITEMS + 1, (CLICKS, HISTORY)).masked_fill(padding, 0)
    categories = torch.randint(1, CATEGORIES + 1, (CLICKS, HISTORY)).masked_fill(padding, 0)
    sizes = (USERS, ITEMS, CATEGORIES)
    single = [torch.randint(1, size, (CLICKS, 1)) for size in sizes]
    price = torch.rand(CLICKS, 1)
    return torch.cat([part.float() for part in (*single, price, items, lengths, categories)], dim=1)


def dien_run(model: nn.Module, found: Tensor) -> Outputs:
    return {"probability": model(found)}


def gru4rec() -> nn.Module:
    from torch_rechub.basic.features import SequenceFeature, SparseFeature
    from torch_rechub.basic.initializers import RandomNormal
    from torch_rechub.models.matching import GRU4Rec

    def sequence(name: str) -> Any:
        return SequenceFeature(name, vocab_size=ITEMS, embed_dim=EMBEDDED, pooling="concat", shared_with="item")

    def single(name: str, size: int) -> Any:
        return SparseFeature(name, vocab_size=size, embed_dim=EMBEDDED, initializer=RandomNormal(0, SPREAD))

    user, item, history, negatives = (
        single("user", USERS),
        single("item", ITEMS),
        sequence("history"),
        sequence("negatives"),
    )
    tower = {"dims": [128, 64, EMBEDDED], "activation": "sigmoid"}
    model: nn.Module = GRU4Rec([user], [history], [item], [negatives], tower)
    return model


def sessions() -> dict[str, Tensor]:
    return {
        "user": torch.randint(0, USERS, (SESSIONS,)),
        "item": torch.randint(0, ITEMS, (SESSIONS,)),
        "history": torch.randint(0, ITEMS, (SESSIONS, SESSION)),
        "negatives": torch.randint(0, ITEMS, (SESSIONS, NEGATIVES)),
    }


def gru4rec_run(model: nn.Module, found: dict[str, Tensor]) -> Outputs:
    return {"similarity": model(found)}


MODELS = (
    Model(
        "rechub-gru4rec",
        "torch-rechub",
        "torch_rechub.models.matching",
        "recommendation",
        f"`GRU4Rec`, 2 layers without bias, H = {EMBEDDED}",
        f"histories of {SESSION} items, embeddings of {EMBEDDED}, the tower's widths and sigmoids, {SESSIONS} "
        "sessions and the numbers of items and users are a choice",
        gru4rec,
        sessions,
        gru4rec_run,
        ("gru",),
    ),
    Model(
        "deepctr-dien",
        "deepctr-torch",
        "deepctr_torch.models",
        "recommendation",
        f"`DIEN`, 2 GRUs on packed histories, H = {2 * WIDTH}",
        f"embeddings of {WIDTH}, histories of up to {HISTORY} items and {CLICKS} clicks as in the authors' code of "
        "DIEN; the numbers of items and users are a choice",
        dien,
        clicks,
        dien_run,
        ("interest_extractor.gru", "interest_evolution.interest_evolution"),
        kinks=True,
    ),
)

"""Chemistry: AttentiveFP of PyTorch Geometric with GRU cells over atoms, SeqToSeq of DeepChem over SMILES."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bench.models.model import Model, Outputs

MOLECULES, ATOMS, ATOM_FEATURES, BOND_FEATURES, HIDDEN = 200, 13, 39, 10, 200
STRINGS, CHARACTERS, TOKENS, WIDTH = 16, 57, 40, 128


def attentive_fp() -> nn.Module:
    from torch_geometric.nn.models import AttentiveFP

    model: nn.Module = AttentiveFP(
        ATOM_FEATURES, HIDDEN, 1, edge_dim=BOND_FEATURES, num_layers=2, num_timesteps=2, dropout=0.2
    )
    return model


def molecules() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Chains of atoms, each bond in both directions: features of atoms, bonds, features of bonds, molecules."""
    first = torch.arange(MOLECULES * ATOMS).view(MOLECULES, ATOMS)
    bonds = torch.stack([first[:, :-1].flatten(), first[:, 1:].flatten()])
    bonds = torch.cat([bonds, bonds.flip(0)], dim=1)
    atoms = torch.randn(MOLECULES * ATOMS, ATOM_FEATURES)
    return atoms, bonds, torch.randn(bonds.shape[1], BOND_FEATURES), torch.arange(MOLECULES).repeat_interleave(ATOMS)


def attentive_fp_run(model: nn.Module, given: Any) -> Outputs:
    return {"property": model(*given)}


def seq_to_seq() -> nn.Module:
    from deepchem.models.torch_models.seqtoseq import SeqToSeq

    model: nn.Module = SeqToSeq(
        TOKENS, TOKENS, CHARACTERS, encoder_layers=2, decoder_layers=2, batch_size=STRINGS, embedding_dimension=WIDTH
    )
    return model


def strings() -> Tensor:
    return torch.randint(0, TOKENS, (STRINGS, CHARACTERS))


def seq_to_seq_run(model: nn.Module, tokens: Tensor) -> Outputs:
    decoded, embedding = model([tokens, torch.tensor([1])])
    return {"decoded": decoded, "embedding": embedding}


MODELS = (
    Model(
        "pyg-attentivefp",
        "torch-geometric",
        "torch_geometric.nn",
        "chemistry",
        f"`AttentiveFP`, 3 GRU cells, H = {HIDDEN}",
        f"sizes and {MOLECULES} molecules as in the package's example; chains of {ATOMS} atoms, about the mean of its "
        "data set, are a choice",
        attentive_fp,
        molecules,
        attentive_fp_run,
        ("gru", "atom_grus.0", "mol_gru"),
        kinks=True,
    ),
    Model(
        "deepchem-seqtoseq",
        "deepchem",
        "deepchem.models.torch_models.seqtoseq",
        "chemistry",
        f"`SeqToSeq`, encoder and decoder of 2 layers, H = {WIDTH}, decoded step by step",
        f"{CHARACTERS} characters as in the class's example; width, layers, {STRINGS} strings and {TOKENS} tokens are "
        "a choice, below the defaults of 512, 4 and 100",
        seq_to_seq,
        strings,
        seq_to_seq_run,
        ("encoder.gru", "decoder.gru"),
    ),
)

"""Packages that ask for torch's class take a layer that is both. A test whose package is not installed is skipped."""

import pytest
import torch
from torch import nn

import tritongru


def test_torchrl_resets_within_a_trajectory():
    modules = pytest.importorskip("torchrl.modules", reason="torchrl is not installed")
    from tensordict import TensorDict

    theirs = nn.GRU(3, 8, batch_first=True)
    first = torch.zeros(2, 6, 1, dtype=torch.bool)
    first[:, 3] = True
    data = TensorDict({"obs": torch.randn(2, 6, 3), "state": torch.zeros(2, 6, 1, 8), "is_init": first}, [2, 6])

    def features(gru):
        module = modules.GRUModule(gru=gru, in_keys=["obs", "state"], out_keys=["feature", ("next", "state")])
        with modules.set_recurrent_mode(True):
            return module(data.clone())["feature"]

    expected = features(theirs)
    found = features(tritongru.GRU.from_torch(theirs, as_torch_type=True))
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(expected[:, 3:], theirs(data["obs"])[0][:, 3:]), "the reset does something"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_rsl_rl_exports_a_policy():
    models = pytest.importorskip("rsl_rl.models", reason="rsl-rl is not installed")
    from tensordict import TensorDict

    observed = TensorDict({"policy": torch.randn(6, 10)}, batch_size=[6])
    options = {"hidden_dims": [16], "rnn_type": "gru", "rnn_hidden_dim": 16}
    model = models.RNNModel(observed, {"actor": ["policy"]}, "actor", 4, **options)
    model.rnn.rnn = tritongru.GRU.from_torch(model.rnn.rnn, as_torch_type=True)
    assert torch.jit.script(model.as_jit()) is not None
    assert model.as_onnx() is not None

"""Policies with memory: torchrl's and rsl_rl's recurrent modules, on trajectories with resets."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bench.models.model import Model, Outputs

TRAJECTORIES, STEPS = 32, 64
FEATURES, UNITS, ACTIONS = 64, 128, 4
RESETS = 0.03  # share of the steps
ENVIRONMENTS, ROLLOUT, OBSERVED, JOINTS = 64, 24, 48, 12
DONE = 0.05
NEXT = ("next", "state")


def torchrl_policy() -> nn.Module:
    from tensordict.nn import TensorDictModule, TensorDictSequential
    from torchrl.modules import MLP, GRUModule

    encoder = MLP(in_features=FEATURES, out_features=UNITS, num_cells=[UNITS])
    memory = GRUModule(UNITS, UNITS, in_keys=["features", "state"], out_keys=["memory", NEXT])
    head = MLP(in_features=UNITS, out_features=ACTIONS, num_cells=[UNITS])
    policy: nn.Module = TensorDictSequential(
        TensorDictModule(encoder, in_keys=["observation"], out_keys=["features"]),
        memory,
        TensorDictModule(head, in_keys=["memory"], out_keys=["action"]),
    )
    return policy


def torchrl_trajectories() -> Any:
    from tensordict import TensorDict

    shape = (TRAJECTORIES, STEPS)
    begins = torch.rand(*shape, 1) < RESETS
    begins[:, STEPS // 2] = True
    found = {"observation": torch.randn(*shape, FEATURES), "state": torch.randn(*shape, 1, UNITS), "is_init": begins}
    return TensorDict(found, shape)


def torchrl_run(policy: nn.Module, trajectories: Any) -> Outputs:
    from torchrl.modules import set_recurrent_mode

    with set_recurrent_mode(True):
        done = policy(trajectories.clone(False))
    return {"action": done["action"], "state": done[NEXT]}


def rsl_rl_actor() -> nn.Module:
    from rsl_rl.models import RNNModel
    from tensordict import TensorDict

    observed = TensorDict({"policy": torch.zeros(ENVIRONMENTS, OBSERVED)}, [ENVIRONMENTS])
    actor: nn.Module = RNNModel(observed, {"actor": ["policy"]}, "actor", JOINTS, rnn_type="gru")
    return actor


def rsl_rl_rollout() -> Any:
    """Padded trajectories, their masks and the state at their starts, as its storage makes them."""
    from rsl_rl.utils import split_and_pad_trajectories
    from tensordict import TensorDict

    observed = TensorDict({"policy": torch.randn(ROLLOUT, ENVIRONMENTS, OBSERVED)}, [ROLLOUT, ENVIRONMENTS])
    dones = (torch.rand(ROLLOUT, ENVIRONMENTS, 1) < DONE).long()
    padded, masks = split_and_pad_trajectories(observed, dones)
    return padded, masks, torch.randn(1, masks.shape[1], 256)


def rsl_rl_run(actor: nn.Module, rollout: Any) -> Outputs:
    padded, masks, state = rollout
    return {"actions": actor(padded, masks=masks, hidden_state=state)}


MODELS = (
    Model(
        "torchrl-policy",
        "torchrl",
        "torchrl.modules",
        "reinforcement learning",
        f"`GRUModule`, H = {UNITS}, between two MLPs",
        f"{TRAJECTORIES} trajectories of {STEPS} steps with {100 * RESETS:.0f} % resets, H and the MLPs: a choice",
        torchrl_policy,
        torchrl_trajectories,
        torchrl_run,
        ("module.1.gru",),
        as_torch_type=True,
    ),
    Model(
        "rsl-rl-actor",
        "rsl-rl-lib",
        "rsl_rl.models",
        "robotics",
        "`RNNModel`, H = 256, with an MLP",
        f"the class's defaults, {ROLLOUT} steps of {ENVIRONMENTS} environments, {OBSERVED} observations and {JOINTS} "
        "actions, as of a walking robot; the number of environments is a choice",
        rsl_rl_actor,
        rsl_rl_rollout,
        rsl_rl_run,
        ("rnn.rnn",),
        as_torch_type=True,
    ),
)

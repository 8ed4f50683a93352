"""Recurrent policies of torchrl and rsl_rl: the same results and gradients before and after conversion, on trajectories
in which episodes begin. Both packages ask for torch's class, so the layer is converted as one."""

import copy

import pytest
import torch
from torch import nn

import tritongru

pytestmark = pytest.mark.slow  # the packages' imports take seconds
T, B, I, H = 12, 5, 3, 8


def gradients(module):
    return {name: parameter.grad for name, parameter in module.named_parameters()}


def before_and_after(module):
    """The module as it is, and converted."""
    after = copy.deepcopy(module)
    report = tritongru.convert(after, as_torch_type=True)
    assert len(report.swapped) == 1
    assert not report.left
    return module, after


# torchrl


@pytest.fixture
def torchrl():
    return pytest.importorskip("torchrl.modules", reason="torchrl is not installed; pip install torchrl")


def trajectories(layers=1):
    from tensordict import TensorDict

    begins = torch.zeros(B, T, 1, dtype=torch.bool)
    begins[:, 5] = True  # of all trajectories
    begins[1, 6] = begins[2, T - 1] = begins[3, 0] = True  # twice in a row, at the last step, at the first
    state = torch.randn(B, T, layers, H).masked_fill(begins.unsqueeze(-1), 0)  # as collectors store it
    return TensorDict({"obs": torch.randn(B, T, I), "state": state, "is_init": begins}, [B, T])


def policy(torchrl, backend="pad", layers=1):
    torch.manual_seed(0)
    keys = {"in_keys": ["obs", "state"], "out_keys": ["feature", ("next", "state")]}
    return torchrl.GRUModule(I, H, num_layers=layers, recurrent_backend=backend, **keys)


@pytest.mark.parametrize("backend, layers", [("pad", 1), ("pad", 2), ("auto", 1), ("scan", 1)])
def test_torchrl_resets_within_a_trajectory(torchrl, backend, layers):
    theirs, ours = before_and_after(policy(torchrl, backend, layers))
    data = trajectories(layers)

    def results(module):
        given, x = data.clone(), data["obs"].clone().requires_grad_()
        given["obs"] = x
        with torchrl.set_recurrent_mode(True):
            done = module(given)
        feature, state = done["feature"], done["next", "state"]
        (feature.square().sum() + state.square().sum()).backward()
        assert x.grad is not None
        return {"feature": feature, "state": state, "obs": x.grad, **gradients(module)}

    expected, found = results(theirs), results(ours)
    torch.testing.assert_close(found, expected)
    whole, _ = theirs.gru(data["obs"], data["state"][:, 0].transpose(0, 1).contiguous())
    assert not torch.allclose(expected["feature"][:, 5:], whole[:, 5:]), "the resets do something"


def test_torchrl_steps_as_it_runs_a_trajectory(torchrl):
    """With the state carried from step to step and set to zero where an episode begins."""
    from tensordict import TensorDict

    theirs, ours = before_and_after(policy(torchrl))
    data = trajectories()

    @torch.no_grad()
    def stepped(module):
        state, features = data["state"][:, 0], []
        for t in range(T):
            given = {"obs": data["obs"][:, t], "state": state, "is_init": data["is_init"][:, t]}
            done = module(TensorDict(given, [B]))
            state = done["next", "state"]
            features.append(done["feature"])
        return torch.stack(features, 1)

    with torch.no_grad(), torchrl.set_recurrent_mode(True):
        whole = ours(data.clone())["feature"]
    torch.testing.assert_close(stepped(ours), stepped(theirs))
    torch.testing.assert_close(stepped(ours), whole)


def test_torchrl_refuses_a_layer_that_is_not_torchs(torchrl):
    """It does not compute something else, which is why as_torch_type exists."""
    module = policy(torchrl)
    tritongru.convert(module)
    with torchrl.set_recurrent_mode(True), pytest.raises(TypeError, match="mask"):
        module(trajectories())


# rsl_rl


@pytest.fixture
def rsl_rl():
    return pytest.importorskip("rsl_rl.modules", reason="rsl-rl-lib is not installed; pip install rsl-rl-lib")


def rollout():
    dones = torch.zeros(T, B)
    dones[4] = 1
    dones[5, 1] = dones[T - 1, 2] = dones[0, 3] = 1
    return torch.randn(T, B, I), dones


def memory(rsl_rl, layers=1):
    torch.manual_seed(0)
    return before_and_after(rsl_rl.RNN(I, H, layers, "gru"))


def stepped(module, observed, dones):
    """As a policy collects a rollout: outputs, and the states before each step."""
    outputs, states = [], []
    layers = module.rnn.num_layers
    module.reset(hidden_state=torch.full((layers, B, H), 0.1))
    for x, done in zip(observed, dones, strict=True):
        states.append(module.hidden_state.clone())
        output = module(x)
        kept = output.clone()
        module.reset(done)
        assert torch.equal(output, kept), "a reset of the state leaves the output alone"
        assert bool((module.hidden_state[:, done == 1] == 0).all())
        outputs.append(output.squeeze(0))
    return torch.stack(outputs), torch.stack(states)


def of_trajectories(module, observed, dones, states):
    """As an update of the policy runs it: trajectories split, padded and masked, with the states at their starts."""
    from rsl_rl.utils import split_and_pad_trajectories

    padded, masks = split_and_pad_trajectories(observed, dones.unsqueeze(-1))
    begins = torch.cat([torch.ones(1, B, dtype=torch.bool), dones[:-1] == 1])
    starts = states.permute(2, 0, 1, 3)[begins.T].transpose(0, 1).contiguous()
    return module(padded, masks, starts)


@pytest.mark.parametrize("layers", [1, 2])
def test_rsl_rl_runs_trajectories_and_steps_alike(rsl_rl, layers):
    theirs, ours = memory(rsl_rl, layers)
    observed, dones = rollout()
    found = {}
    for name, module in (("theirs", theirs), ("ours", ours)):
        with torch.inference_mode():
            outputs, states = stepped(module, observed, dones)
        x = observed.clone().requires_grad_()
        whole = of_trajectories(module, x, dones, states.clone())
        torch.testing.assert_close(whole, outputs.clone(), msg=lambda text, name=name: f"{name}: {text}")
        whole.square().sum().backward()
        found[name] = {"steps": outputs, "trajectories": whole, "observed": x.grad, **gradients(module)}
    torch.testing.assert_close(found["ours"], found["theirs"])
    without = of_trajectories(ours, observed, torch.zeros_like(dones), torch.full((T, layers, B, H), 0.1))
    assert not torch.allclose(without[5:], whole[5:]), "the resets do something"


def test_rsl_rl_detaches_the_state_of_episodes_that_ended(rsl_rl):
    """In distillation, where gradients flow through the steps and the state is changed in place."""
    theirs, ours = memory(rsl_rl)
    observed, dones = rollout()

    def results(module):
        module.reset()
        total = 0.0
        for x, done in zip(observed, dones, strict=True):
            total = total + module(x).square().sum()
            module.reset(done)
            module.detach_hidden_state(done)
        total.backward()
        return {"total": total, **gradients(module)}

    torch.testing.assert_close(results(ours), results(theirs))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_rsl_rl_exports_a_policy(rsl_rl):
    from rsl_rl.models import RNNModel
    from tensordict import TensorDict

    observed = TensorDict({"policy": torch.randn(6, 10)}, batch_size=[6])
    options = {"hidden_dims": [16], "rnn_type": "gru", "rnn_hidden_dim": 16}
    model = RNNModel(observed, {"actor": ["policy"]}, "actor", 4, **options)
    tritongru.convert(model, as_torch_type=True)
    assert isinstance(model.rnn.rnn, nn.GRU)
    exported = torch.jit.script(model.as_jit())
    assert model.as_onnx() is not None
    for _ in range(3):  # both keep a state
        x = torch.randn(1, 10)
        with torch.no_grad():
            expected = model(TensorDict({"policy": x}, batch_size=[1]))
            torch.testing.assert_close(exported(x), expected)

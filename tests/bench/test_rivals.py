"""Rivals: who can run a case, whether they compute what nn.GRU computes, and that none of them can break a run."""

import dataclasses
import importlib
import re
import sys
import tomllib
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from bench import rivals
from bench.measure.cases import Case
from bench.measure.pair import OURS, THEIRS, build, random, steps_of
from bench.measure.parity import compare, quantities, truth
from bench.rivals import availability, builtin, on_cpu, onnx_gru, packages, rival, stack

CPU = torch.device("cpu")
CASE = Case(8, 3, 11, "fp32", "train")  # longer than a chunk of the compiled loop, and no multiple of it
DEEP = dataclasses.replace(CASE, layers=2, directions=2, inputs=5)
NAMES = ("gru-qat", "torchrl", "flashrnn", "flashrnn", "haste_pytorch")
PACKAGED = (rivals.GRU_QAT, rivals.TORCHRL, rivals.FLASHRNN, rivals.FLASHRNN2, rivals.HASTE)
SHORT = {"dtype": "bf16", "mode": "forward"}


def asked(case, names, **limits):
    pair = build(case, "auto", CPU)
    return rivals.rivals_for(case, pair, steps_of(pair, case, CPU), names, **limits)


def parity(case, recurrence):
    """Of a stack of one recurrence, over the output, h_n and every gradient."""
    pair = build(case, "auto", CPU)
    data = random(case, CPU)
    exact, theirs = (of(pair.theirs, case.mode, data) for of in (truth, quantities))
    twin = stack.Stack(pair.theirs, recurrence, False)
    return compare(quantities(twin, case.mode, data), theirs, exact, case.rounding)


def formula():
    """nn.GRU's formula, one layer in one direction, uncompiled."""
    return builtin.compiled_of(CASE, CPU, "eager")


def planted(monkeypatch, **changes):
    """A rival of the registry, changed."""
    name = changes.pop("name", "planted")
    made = stack.stacked(name, None, "planted", lambda case, device: formula())
    monkeypatch.setitem(availability.REGISTRY, name, dataclasses.replace(made, **changes))
    return name


# Who there is


def test_every_name_has_one_rival_and_says_how_it_is_called():
    known = rivals.REGISTRY | rivals.BOUNDS
    assert set(rivals.GRID_RIVALS) <= set(rivals.GATE_RIVALS) <= set(rivals.ALL_RIVALS) == set(known)
    assert list(rivals.BOUNDS) == [rivals.FLOOR]
    assert list(rivals.REGISTRY)[-2:] == [rivals.GRAPH, rivals.OURS_GRAPH]
    for name, one in known.items():
        assert one.name == name
        assert one.how
        assert "\n" not in one.how
        assert one.twin is None or one.same
    assert {name for name, one in known.items() if not one.same} == {rivals.FLOOR, rivals.CUDNN_LSTM}


def test_the_page_about_rivals_knows_every_one_of_them():
    page = (Path(__file__).parents[2] / "docs" / "rivals.md").read_text()
    for name, one in (rivals.REGISTRY | rivals.BOUNDS).items():
        assert f"`{name}`" in page
        if one.package not in (None, OURS):
            assert f"`{one.package}`" in page
    for name, one in on_cpu.REGISTRY.items():
        assert f"`{name}`" in page
        assert "\n" not in one.how


def test_the_extra_has_what_rivals_are_packaged_in():
    """But for haste, which has to be built."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extra = {re.match(r"[\w-]+", needed)[0] for needed in project["optional-dependencies"]["rivals"]}
    packages = {one.package for one in (*rivals.REGISTRY.values(), *on_cpu.REGISTRY.values())}
    assert extra == packages - {None, OURS, NAMES[-1]} | set(onnx_gru.NEEDED)


def test_a_version_names_the_package_or_torch(monkeypatch):
    versions = {"gru-qat": "9.1"}

    def version(package):
        if package in versions:
            return versions[package]
        raise rival.importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(rival.importlib.metadata, "version", version)
    assert rivals.REGISTRY[rivals.GRU_QAT].version() == "gru-qat 9.1"
    assert rivals.REGISTRY[rivals.HASTE].version() == "haste_pytorch, not installed"
    assert rivals.BOUNDS[rivals.FLOOR].version().startswith("tritongru 0.")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    assert rivals.REGISTRY[rivals.CUDNN_LSTM].version() == f"torch {torch.__version__}, cuDNN 91002"
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: None)
    assert rivals.REGISTRY[rivals.COMPILED].version() == f"torch {torch.__version__}"


def test_a_rival_that_is_not_installed_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(rival, "installed", lambda package: None)
    reasons = asked(CASE, PACKAGED).missing
    for name, package in zip(PACKAGED[:3], NAMES, strict=False):
        assert reasons[name] == f"{package} is not installed; pip install {package}"
    assert reasons[rivals.FLASHRNN2] == "flashrnn is not installed; install the fork as docs/rivals.md says"
    assert reasons[rivals.HASTE] == "haste_pytorch is not installed; build it with nvcc as docs/rivals.md says"


def test_without_a_gpu_the_packages_say_so(monkeypatch):
    monkeypatch.setattr(rival, "installed", lambda package: "1.0")
    names = [name for name in rivals.ALL_RIVALS if name != rivals.COMPILED]
    result = asked(CASE, names)
    for name, package in zip(PACKAGED, NAMES, strict=True):
        assert result.missing[name] == f"the kernels of {package} need a GPU"
    assert result.missing[rivals.GRAPH] == result.missing[rivals.OURS_GRAPH] == "a CUDA graph needs a GPU"
    assert "no exchange" in result.missing[rivals.FLOOR]
    assert rivals.CUDNN_LSTM in result.calls
    assert set(result.hows) == set(names) == set(result.calls) | set(result.missing)
    for name in names:
        known = (rivals.REGISTRY | rivals.BOUNDS)[name]
        assert result.hows[name] == f"{known.version()}: {known.how}"


@pytest.mark.parametrize(
    ("of", "change", "reason"),
    [
        ("gru_qat_of", {"dtype": "bf16"}, "its dense kernel takes fp32, not bf16"),
        ("gru_qat_of", {"tf32": False}, "its dense kernel multiplies only in TF32"),
        ("gru_qat_of", {"hidden": 100}, "below 128 hidden units its kernel needs a power of two, not 100"),
        ("torchrl_of", {"dtype": "fp16"}, "its kernel takes fp32 and bf16, not fp16"),
        ("torchrl_of", {"hidden": 300}, "above 256 hidden units its backward kernel compiles for many minutes"),
        ("flashrnn2_of", {"dtype": "fp32"}, "its kernel takes fp16 and bf16, not fp32"),
        ("flashrnn2_of", {"dtype": "bf16"}, "its GRU kernel has no backward pass"),
        ("flashrnn2_of", SHORT | {"hidden": 129}, "its GRU kernel takes 16 to 128 hidden units, not 129"),
        ("flashrnn2_of", SHORT | {"hidden": 15}, "its GRU kernel takes 16 to 128 hidden units, not 15"),
        ("haste_of", {"dtype": "bf16"}, "it takes fp32 and fp16, not bf16"),
    ],
)
def test_a_rival_says_what_it_cannot_do(monkeypatch, of, change, reason):
    monkeypatch.setattr(rival, "installed", lambda package: "1.0")
    case = dataclasses.replace(CASE, **{"tf32": True, **change})
    with pytest.raises(rivals.Unavailable, match=f"^{reason}$"):
        getattr(packages, of)(case, torch.device("cuda"))


def test_without_a_compiler_there_is_no_flashrnn(monkeypatch):
    monkeypatch.setattr(rival, "installed", lambda package: "1.0")
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", None)
    with pytest.raises(rivals.Unavailable, match="no nvcc"):
        packages.flashrnn_of(CASE, torch.device("cuda"))


def test_flashrnn_without_the_fork_is_no_flashrnn2(monkeypatch):
    monkeypatch.setattr(rival, "installed", lambda package: "1.0")
    monkeypatch.setitem(sys.modules, "flashrnn", types.ModuleType("flashrnn"))  # a module, no package
    case = Case(16, 3, 11, "bf16", "forward")
    with pytest.raises(rivals.Unavailable, match=r"^No module named 'flashrnn.flashrnn2'.*; install the fork"):
        packages.flashrnn2_of(case, torch.device("cuda"))


def test_an_unknown_name_is_rejected():
    with pytest.raises(ValueError, match=r"unknown rival nobody; use one of floor, nn\.LSTM"):
        asked(CASE, ("nobody",))


# That they compute the same


@pytest.mark.parametrize("layers, directions", [(1, 1), (1, 2), (3, 1), (3, 2)])
@pytest.mark.parametrize("mode", ["forward", "train"])
def test_a_stack_of_one_layer_is_nn_gru(mode, layers, directions):
    case = Case(8, 3, 11, "fp32", mode, layers=layers, directions=directions, inputs=5)
    assert parity(case, formula()).green


def test_a_stack_in_another_layout_and_dtype_is_nn_gru():
    plain = formula()

    def run(x, h0, *weights):
        assert x.shape[:2] == (DEEP.batch, DEEP.time)
        assert {tensor.dtype for tensor in (x, h0, *weights)} == {torch.float64}
        return plain.run(x.transpose(0, 1), h0, *weights).transpose(0, 1)

    assert parity(DEEP, stack.Recurrence(run, batch_first=True, dtype=torch.float64)).green


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_prepared_stack_computes_what_its_twin_computes_and_learns_afresh(batch_first):
    """Its weights are leaves of its own layout, and a call leaves the gradients of that call alone."""
    plain = formula()

    def run(x, h0, w_ih, *weights):
        y = plain.run(x.transpose(0, 1) if batch_first else x, h0, w_ih.t(), *weights)
        return y.transpose(0, 1) if batch_first else y

    def fold(w_ih, *weights):
        return w_ih.t().contiguous(), *weights

    recurrence = stack.Recurrence(run, fold, batch_first)
    made = stack.stacked("one", None, "one", lambda case, device: recurrence)
    pair = build(DEEP, "auto", CPU)
    steps = steps_of(pair, DEEP, CPU)
    call = made.make(DEEP, pair, steps)
    x, prepared = steps[THEIRS].inputs[0], call.inputs[0]
    assert torch.equal(prepared, x.transpose(0, 1) if batch_first else x)
    y, hn = made.twin(call, pair.theirs)(x, call.h0)
    own_y, own_hn = call.layer(prepared, call.h0)
    assert torch.equal(own_y, y.transpose(0, 1) if batch_first else y)
    assert torch.equal(own_hn, hn)
    assert torch.equal(call.h0, steps[THEIRS].h0)
    assert call.weights[0].shape == (5, 24)
    for _ in range(2):
        call()
        first = call.weights[0].grad.clone()
    call.upcoming = iter(call.inputs[1:])
    call()
    assert torch.equal(call.weights[0].grad, first)
    assert all(weight.grad is not None for weight in call.weights)
    assert all(weight.grad is None for weight in pair.theirs.parameters())


@pytest.mark.parametrize("mode", ["forward", "train"])
def test_a_gru_in_haste_s_layout_is_nn_gru(mode):
    """Its formula as its documentation has it: gates z, r, n, and weights from the right."""

    def gru(training, zoneout, x, h, kernel, recurrent, bias, recurrent_bias, mask):
        states, hidden = [h], h.shape[-1]
        assert (training, zoneout, mask.numel()) == (mode == "train", 0.0, 0)
        for gx in x @ kernel + bias:
            gh = states[-1] @ recurrent + recurrent_bias
            z, r = torch.sigmoid(gx[:, : 2 * hidden] + gh[:, : 2 * hidden]).chunk(2, -1)
            n = torch.tanh(gx[:, 2 * hidden :] + r * gh[:, 2 * hidden :])
            states.append(z * states[-1] + (1 - z) * n)
        return torch.stack(states)

    case = dataclasses.replace(DEEP, mode=mode)
    recurrence = stack.Recurrence(packages.hasting(gru, mode == "train"), packages.haste_weights)
    assert parity(case, recurrence).green
    swapped = stack.Recurrence(recurrence.run, lambda *weights: tuple(weight.t() for weight in weights))
    assert not parity(case, swapped).green


def flashrnn_formula(gx, recurrent, bias, states):
    """Recurrent gates g, r, z, input gates r, z, n, biases of all four."""
    found, h = [], states[0, :, 0, 0]
    b_g, b_r, b_z, b_n = bias[:, 0]
    for x_r, x_z, x_n in gx[:, :, :, 0].permute(1, 2, 0, 3):
        g, h_r, h_z = (h @ weight.t() for weight in recurrent[:, 0])
        r, z = torch.sigmoid(x_r + h_r + b_r), torch.sigmoid(x_z + h_z + b_z)
        h = z * h + (1 - z) * torch.tanh(x_n + b_n + r * (g + b_g))
        found.append(h)
    return torch.stack(found, 1).view(1, *gx.shape[:2], 1, gx.shape[-1]), states


@pytest.mark.parametrize("mode", ["forward", "train"])
def test_a_gru_in_flashrnn_s_layout_is_nn_gru(monkeypatch, mode):
    """Its formula as its own reference has it."""

    def gru(gx, recurrent, bias, states, function, backend, dtype):
        assert (function, backend, dtype) == ("gru", "cuda", "bfloat16")
        assert gx.shape == (DEEP.batch, DEEP.time, 3, 1, DEEP.hidden)
        return flashrnn_formula(gx, recurrent, bias, states)

    monkeypatch.setitem(sys.modules, "flashrnn", types.SimpleNamespace(flashrnn=gru))
    case = dataclasses.replace(DEEP, mode=mode)
    recurrence = stack.Recurrence(packages.flashing("cuda", "bfloat16"), packages.flashrnn_weights)
    assert parity(case, recurrence).green


def test_a_gru_in_flashrnn2_s_layout_is_nn_gru(monkeypatch):
    """Its kernel takes FlashRNN's tensors and rejects other shapes and dtypes, as here."""
    case = dataclasses.replace(DEEP, hidden=16, dtype="fp16", mode="forward")

    def gru(wx, recurrent, bias, initial, cell):
        H = case.hidden
        shapes = [tuple(tensor.shape) for tensor in (wx, recurrent, bias, initial)]
        assert shapes == [(case.batch, case.time, 3, 1, H), (3, 1, H, H), (4, 1, H), (1, case.batch, 1, 1, H)]
        assert {tensor.dtype for tensor in (wx, recurrent, bias, initial)} == {torch.float16}
        assert cell == "gru"
        assert not torch.is_grad_enabled()
        return flashrnn_formula(wx, recurrent, bias, initial)

    monkeypatch.setattr(rival, "installed", lambda package: "1.0")
    monkeypatch.setitem(sys.modules, packages.FLASHRNN2_MODULE, types.SimpleNamespace(recurrence=gru))
    for parent in ("flashrnn", "flashrnn.flashrnn2"):
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    assert parity(case, packages.flashrnn2_of(case, torch.device("cuda"))).green


def test_the_packages_compute_nn_gru_from_the_weights_that_they_are_given():
    """By their own reference on a CPU, where they are installed."""
    references = {"gru_qat": gru_qat_reference, "torchrl": torchrl_reference, "flashrnn": flashrnn_reference}
    tried = [reference() for package, reference in references.items() if importlib.util.find_spec(package)]
    if importlib.util.find_spec("haste_pytorch"):
        tried.append(haste_reference())
    if not tried:
        pytest.skip("none of them is installed")
    for recurrence in tried:
        result = parity(DEEP, recurrence)
        assert result.green, result.worst


def gru_qat_reference():
    from gru_qat import GRUCellQuant, QuantizerConfig, QuantRecipe
    from gru_qat.gru_cell import CellWeights

    none = QuantizerConfig(bits=32, axis=0)

    def scan(gx, h, w_hh, b_hh):
        cell = GRUCellQuant(w_hh.shape[1], w_hh.shape[1], QuantRecipe(none, none, none), gate_layout="fused")
        weights = CellWeights(*[None] * 6, Wh_cat=w_hh, bh_cat=b_hh)
        return torch.stack([h := cell.step_with_gi(g, h, weights) for g in gx])

    return stack.Recurrence(packages.scanning(scan))


def torchrl_reference():
    from torchrl.modules import GRU

    def gru(x, states, w_ih, w_hh, b_ih, b_hh, begins, products, *, input_precision):
        assert not begins.any()
        assert (products, input_precision) == (torch.float32, "ieee")
        layer = GRU(x.shape[-1], w_hh.shape[1], batch_first=True)
        own = dict(
            zip(("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"), (w_ih, w_hh, b_ih, b_hh), strict=True)
        )
        y, hn = torch.func.functional_call(layer, own, (x, states[:, 0].unsqueeze(0)))
        return y, hn

    return stack.Recurrence(packages.resetting(gru, torch.float32, "ieee"), batch_first=True, dtype=torch.float32)


def flashrnn_reference():
    return stack.Recurrence(packages.flashing("vanilla", "float32"), packages.flashrnn_weights)


def haste_reference():
    from haste_pytorch.gru import GRUScript

    return stack.Recurrence(packages.hasting(GRUScript, True), packages.haste_weights)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["forward", "train"])
def test_the_compiled_loop_is_nn_gru(monkeypatch, mode):
    """Traced and differentiated by torch.compile; what inductor makes of it takes a minute to compile on a CPU."""
    loop = stack.stacked("traced", None, "traced", lambda *case: builtin.compiled_of(*case, "aot_eager"))
    monkeypatch.setitem(availability.REGISTRY, "traced", loop)
    result = asked(dataclasses.replace(CASE, mode=mode), ("traced",))
    assert result.missing == {}
    assert 0.0 < result.parities["traced"] <= 1.0


# That none of them can break a run


def test_a_rival_that_raises_is_missing_with_its_error_and_the_others_run(monkeypatch):
    def make(case, pair, steps):
        raise RuntimeError("no such\nkernel")

    name = planted(monkeypatch, make=make)
    result = asked(CASE, (name, rivals.CUDNN_LSTM))
    assert list(result.calls) == [rivals.CUDNN_LSTM]
    assert result.missing[name].startswith("RuntimeError: no such (test_rivals.py:")


def test_a_slow_rival_is_not_repeated(monkeypatch):
    seconds = iter([9.0, 3.2])
    monkeypatch.setattr(availability, "seconds_of", lambda call, device: next(seconds))
    name = planted(monkeypatch)
    result = asked(CASE, (name,))
    assert result.calls == result.parities == {}
    assert result.missing[name] == "one call takes 3.2 s, and no more than 3 s are spent on one"


def test_a_rival_that_only_compiles_slowly_is_kept(monkeypatch):
    seconds = iter([99.0, 2.9])
    monkeypatch.setattr(availability, "seconds_of", lambda call, device: next(seconds))
    name = planted(monkeypatch)
    assert list(asked(CASE, (name,)).calls) == [name]


def test_a_rival_that_computes_something_else_is_told_by_its_parity(monkeypatch):
    right = planted(monkeypatch, name="right")
    plain = formula()

    def late(x, h0, *weights):  # an error that grows in the last step alone
        y = plain.run(x, h0, *weights)
        return torch.cat((y[:-1], y[-1:] * 1.001))

    for name, run in (("late", late), ("nan", lambda *given: plain.run(*given) * float("nan"))):
        recurrence = stack.Recurrence(run)
        one = stack.stacked(name, None, "planted", lambda case, device, recurrence=recurrence: recurrence)
        monkeypatch.setitem(availability.REGISTRY, name, one)
    result = asked(DEEP, (right, "late", "nan", rivals.CUDNN_LSTM))
    assert list(result.calls) == [rivals.CUDNN_LSTM, right, "late", "nan"]
    assert result.parities[right] <= 1.0 < result.parities["late"] < result.parities["nan"]
    assert rivals.CUDNN_LSTM not in result.parities


def test_a_rival_whose_result_cannot_be_checked_is_missing(monkeypatch):
    def twin(call, gru):
        raise RuntimeError("no twin")

    name = planted(monkeypatch, twin=twin)
    result = asked(CASE, (name,))
    assert result.calls == {}
    assert "no twin" in result.missing[name]


def test_only_the_first_steps_are_checked(monkeypatch):
    times = []

    def run(x, h0, *weights):
        times.append(len(x))
        return formula().run(x, h0, *weights)

    one = stack.stacked("counted", None, "planted", lambda case, device: stack.Recurrence(run))
    monkeypatch.setitem(availability.REGISTRY, "counted", one)
    monkeypatch.setattr(availability, "CHECKED_STEPS", 4)
    assert list(asked(CASE, ("counted",)).calls) == ["counted"]
    assert times == [11, 11, 4]


def test_ours_is_forced_only_where_it_would_take_torch_s_gru(monkeypatch):
    pair = build(CASE, "auto", CPU)
    steps = steps_of(pair, CASE, CPU)
    pair = dataclasses.replace(pair, plan=dataclasses.replace(pair.plan, family="torch"))
    call = rivals.REGISTRY[rivals.FORCED].make(CASE, pair, steps)
    assert (call.layer.impl, call.layer.training) == ("triton", True)
    assert call.inputs[0].data_ptr() == steps[OURS].inputs[0].data_ptr()
    other = dataclasses.replace(pair, plan=dataclasses.replace(pair.plan, family="resident"))
    with pytest.raises(rivals.Unavailable, match="ours takes its resident kernels"):
        rivals.REGISTRY[rivals.FORCED].make(CASE, other, steps)


def test_the_lstm_has_the_layers_directions_and_width_of_the_case():
    pair = build(DEEP, "auto", CPU)
    call = rivals.lstm_of(DEEP, steps_of(pair, DEEP, CPU)[THEIRS])
    call()
    assert isinstance(call.layer, nn.LSTM)
    assert (call.layer.input_size, call.layer.num_layers, call.layer.bidirectional) == (5, 2, True)

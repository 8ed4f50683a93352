"""`tritongru.convert`: what a model keeps, what is left and why, and the way back."""

import copy
import functools
import pickle
import types

import pytest
import torch
from torch import nn
from torch.ao.nn.quantized import dynamic
from torch.ao.quantization import quantize_dynamic
from torch.nn.utils import parametrizations, prune

import tritongru

pytestmark = pytest.mark.quick

CLASSES = {nn.GRU: tritongru.GRU, nn.GRUCell: tritongru.GRUCell}


class Model(nn.Module):
    """GRUs in every kind of parent, one under two names."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(4, 6, 2, bidirectional=True, dropout=0.3)
        self.tied = self.rnn
        self.parts = nn.ModuleList([nn.GRU(12, 5, batch_first=True), nn.Identity()])
        self.by_name = nn.ModuleDict({"one": nn.Sequential(nn.GRU(5, 5, bias=False))})
        self.cell = nn.GRUCell(5, 3)
        self.none = None
        self.register_module("absent", None)

    def forward(self, x):
        y = self.tied(self.rnn(x)[0][..., :4])[0]
        y = self.by_name["one"](self.parts[0](y)[0])[0]
        return self.cell(y[-1], None)


NAMES = ["rnn", "parts.0", "by_name.one.0", "cell"]


def grus(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, (nn.RNNBase, nn.GRUCell))}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model()


@pytest.fixture
def x():
    return torch.randn(5, 2, 4)


def results(model, x):
    """Output, and the gradients of all parameters; dropout draws the same mask each time."""
    torch.manual_seed(1)
    y = model(x)
    return [y, *torch.autograd.grad(y.square().sum(), [*model.parameters()])]


def test_every_layer_changes_its_class_and_nothing_else(model, x):
    before = dict(model.named_modules(remove_duplicate=False))
    parameters, state = dict(model.named_parameters()), {k: v.clone() for k, v in model.state_dict().items()}
    expected = results(model, x)
    report = tritongru.convert(model)
    assert report.model is model
    assert dict(model.named_modules(remove_duplicate=False)) == before, "the same objects in the same places"
    assert [type(module) for module in grus(model).values()] == [tritongru.GRU] * 3 + [tritongru.GRUCell]
    assert all(p is parameters[name] for name, p in model.named_parameters())
    assert len([*model.parameters()]) == len(parameters)
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    torch.testing.assert_close(results(model, x), expected)
    assert [one.name for one in report.swapped] == NAMES
    assert report.swapped[0].also == ("tied",)
    assert (report.left, report.notes) == ([], [])


def test_the_kernel_runs_afterwards(model, x, monkeypatch):
    """Equal results alone could be torch's."""
    seen = []
    own = tritongru.GRU.forward
    monkeypatch.setattr(tritongru.GRU, "forward", lambda *given, **named: seen.append(1) or own(*given, **named))
    model(x)
    assert seen == []
    tritongru.convert(model)
    model(x)
    assert len(seen) == 4
    tritongru.convert(model, back=True)
    model(x)
    assert len(seen) == 4


def test_back_is_torchs_to_the_bit(model, x):
    expected, before = results(model, x), {name: type(module) for name, module in model.named_modules()}
    tritongru.convert(model)
    model.rnn.impl, model.rnn.memory = "torch", "save"
    report = tritongru.convert(model, back=True)
    assert {name: type(module) for name, module in model.named_modules()} == before
    assert [one.name for one in report.swapped] == NAMES
    assert {one.after for one in report.swapped} == {"torch.nn.GRU", "torch.nn.GRUCell"}
    assert not {"impl", "memory"} & {*model.rnn.__dict__}
    torch.testing.assert_close(results(model, x), expected, rtol=0, atol=0)
    assert {*model.rnn.__dict__} == {*nn.GRU(4, 6).__dict__}


def test_an_optimizer_made_before_goes_on(x):
    steps = []
    for converts in (False, True):
        torch.manual_seed(0)
        model = Model()
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for step in range(4):
            if converts and step == 1:
                tritongru.convert(model)
            optimizer.zero_grad()
            torch.manual_seed(step)  # the same dropout
            model(x).square().sum().backward()
            optimizer.step()
        steps.append([p.detach().clone() for p in model.parameters()])
    torch.testing.assert_close(*steps, rtol=1e-4, atol=1e-5)
    torch.manual_seed(0)
    moved = [not torch.equal(p, q) for p, q in zip(Model().parameters(), steps[1], strict=True)]
    assert sum(moved) == len(moved) - 1, "all but the cell's recurrent weights, whose state is zero"


def test_hooks_handles_buffers_and_modes_stay(model, x):
    heard = []
    handle = model.rnn.register_forward_hook(lambda module, given, found: heard.append(module))
    model.cell.register_full_backward_hook(lambda module, *_: heard.append(module))
    model.rnn.register_forward_pre_hook(lambda module, given: heard.append(module))
    model.rnn.register_buffer("scale", torch.ones(2))
    model.rnn.weight_hh_l1.requires_grad_(False)
    model.eval().double()
    model.parts.train()
    tritongru.convert(model)
    assert [module.training for module in grus(model).values()] == [False, True, False, False]
    assert not model.rnn.weight_hh_l1.requires_grad
    assert model.cell.weight_hh.dtype == torch.float64
    model(x.double()).sum().backward()
    assert heard == [model.rnn] * 4 + [model.cell]
    heard.clear()
    handle.remove()
    model(x.double())
    assert heard == [model.rnn] * 2
    assert model.rnn.scale.dtype == torch.float64


def test_a_hook_that_is_a_method_of_the_layer_stays(x):
    gru = nn.GRU(4, 3)
    gru.heard = []
    gru.noted = types.MethodType(lambda self, module, given: self.heard.append(type(module)), gru)
    gru.register_forward_pre_hook(gru.noted)
    assert len(tritongru.convert(gru).swapped) == 1
    gru(x)
    assert gru.heard == [tritongru.GRU]


@pytest.mark.parametrize("kind", [nn.GRU, nn.GRUCell])
def test_a_model_that_is_itself_a_gru(kind):
    layer = kind(4, 3)
    x = torch.randn(5, 4)
    expected = layer(x)
    report = tritongru.convert(layer)
    assert report.model is layer
    assert type(layer) is CLASSES[kind]
    assert report.swapped[0].name == ""
    assert "(the model)" in str(report)
    torch.testing.assert_close(layer(x), expected)


def test_names_choose(model):
    report = tritongru.convert(model, names=["tied", "cell"])
    assert [one.name for one in report.swapped] == ["rnn", "cell"]
    assert [type(module) for module in grus(model).values()] == [tritongru.GRU, nn.GRU, nn.GRU, tritongru.GRUCell]
    assert report.left == []
    assert tritongru.convert(model, names="parts.0").swapped[0].name == "parts.0"
    assert tritongru.convert(model, names=[]).swapped == []
    assert tritongru.convert(nn.GRU(2, 3), names=[""]).swapped[0].name == ""


def test_a_layer_within_a_tied_parent_has_the_names_of_both():
    part = nn.Sequential(nn.GRU(4, 3))
    model = nn.ModuleDict({"one": part, "two": part})
    report = tritongru.convert(model, names=["two.0"])
    assert [(one.name, one.also) for one in report.swapped] == [("one.0", ("two.0",))]
    assert "one.0, two.0  torch.nn.GRU(4, 3)" in str(report)


def test_names_of_layers_below_shared_parents_are_not_without_end():
    model = nn.Sequential(nn.GRU(4, 3))
    for _ in range(60):
        model = nn.ModuleDict({"a": model, "b": model})
    (swap,) = tritongru.convert(model).swapped
    assert swap.name == ".".join(["a"] * 60 + ["0"])
    assert len(swap.also) == 8
    assert swap.also[-1] == "..."
    assert len(set(swap.also)) == 8
    name = ".".join(["b"] * 60 + ["0"])
    assert tritongru.convert(model, names=[name], back=True).swapped[0].name == swap.name


def test_names_are_in_torchs_order(model):
    model.parts[1] = model.cell
    report = tritongru.convert(model)
    assert [one.name for one in report.swapped] == [n for n, m in model.named_modules() if hasattr(m, "hidden_size")]


def test_a_second_time_changes_nothing_and_says_so(model):
    tritongru.convert(model)
    report = tritongru.convert(model)
    assert report.swapped == []
    assert [(one.name, one.reason) for one in report.left] == [
        *((name, "is a tritongru.GRU already") for name in NAMES[:3]),
        ("cell", "is a tritongru.GRUCell already"),
    ]
    tritongru.convert(model, back=True)
    report = tritongru.convert(model, back=True)
    assert (report.swapped, report.left, report.notes) == ([], [], ["the model has no GRU of tritongru"])


def test_torchs_type_on_request(model, x):
    expected = results(model, x)
    report = tritongru.convert(model, as_torch_type=True)
    assert type(model.rnn) is tritongru.TorchTypeGRU
    assert isinstance(model.rnn, nn.GRU)
    assert isinstance(model.cell, nn.GRUCell)
    assert report.swapped[0].after == "tritongru.TorchTypeGRU"
    torch.testing.assert_close(results(model, x), expected)
    assert len(tritongru.convert(model, back=True).swapped) == 4
    tritongru.convert(model)
    assert [one.name for one in tritongru.convert(model, as_torch_type=True).swapped] == NAMES[:3], (
        "ours may change, too"
    )


class Mine(nn.GRU):
    def forward(self, input, hx=None):
        return super().forward(2 * input, hx)


class Ours(tritongru.GRU):
    pass


class Holder(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(4, 3)

    def forward(self, x):
        return self.rnn(x)[0]


def compiled_by_jit():
    return torch.jit.script(Holder()).rnn


def with_own(name, value):
    gru = nn.GRU(4, 3)
    setattr(gru, name, value)
    return gru


def wrapped_forward():
    """As accelerate's hooks do it."""
    gru = nn.GRU(4, 3)
    gru._old_forward = gru.forward
    gru.forward = functools.update_wrapper(functools.partial(lambda m, *a: m._old_forward(*a), gru), gru._old_forward)
    return gru


REFUSED = {
    "subclass": (
        lambda: Mine(4, 3),
        "a subclass of torch.nn.GRU, whose own methods would be lost; derive it from tritongru.GRU",
    ),
    "subclass of ours": (lambda: Ours(4, 3), "is a subclass of tritongru.GRU already"),
    "forward": (wrapped_forward, "a forward was set on the object"),
    "scripted": (compiled_by_jit, "compiled by torch.jit; convert the model before scripting or tracing it"),
    "traced": (
        lambda: torch.jit.trace(Holder(), torch.randn(5, 2, 4)).rnn,
        "compiled by torch.jit; convert the model before scripting or tracing it",
    ),
    "quantized": (lambda: dynamic.GRU(4, 3), "quantized; convert the model before quantizing it"),
    "parametrized": (
        lambda: parametrizations.weight_norm(nn.GRU(4, 3), "weight_hh_l0"),
        "its weights are computed by a parametrization; remove that, convert, and apply it again",
    ),
    "memory": (
        lambda: with_own("memory", 3),
        "it has an attribute 'memory' of its own, a name that tritongru.GRU uses",
    ),
    "impl": (lambda: with_own("impl", nn.Identity()), "it has an attribute 'impl' of its own"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:`torch.jit")
@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("inside", [False, True])
def test_what_is_left_has_a_reason(kind, inside):
    build, reason = REFUSED[kind]
    layer = build()
    before = type(layer)
    report = tritongru.convert(nn.ModuleDict({"rnn": layer, "other": nn.GRU(4, 3)}) if inside else layer)
    assert type(layer) is before
    assert [one.name for one in report.swapped] == (["other"] if inside else [])
    (left,) = report.left
    assert left.name == ("rnn" if inside else "")
    assert left.reason.startswith(reason)
    assert left.reason in str(report)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:`torch.jit")
def test_inside_a_scripted_parent_every_gru_is_listed():
    model = nn.ModuleDict(
        {"scripted": torch.jit.script(nn.Sequential(nn.Sequential(nn.GRU(4, 3)))), "own": nn.GRU(2, 3)}
    )
    report = tritongru.convert(model)
    assert [one.name for one in report.left] == ["scripted.0.0"]
    assert [one.name for one in report.swapped] == ["own"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_quantized_model_is_left():
    model = quantize_dynamic(nn.ModuleDict({"rnn": nn.GRU(4, 3), "cell": nn.GRUCell(3, 2)}), {nn.GRU, nn.GRUCell})
    report = tritongru.convert(model)
    assert report.swapped == []
    assert {one.reason for one in report.left} == {"quantized; convert the model before quantizing it"}
    assert [one.name for one in report.left] == ["rnn", "cell"]


def test_grus_outside_the_tree_are_told():
    model = nn.Sequential(nn.GRU(4, 3))
    model.aliases = [model[0]]
    model.hidden = [nn.GRU(3, 3)]
    model.table = {"a": nn.GRUCell(3, 3)}
    model.again = model.hidden
    model.deep = [{"b": (Asks(), 3)}]
    object.__setattr__(model, "ema", Asks())
    model.numbers = [*range(30_000), nn.GRU(2, 3)]  # as far as it is looked through
    object.__setattr__(model[0], "teacher", nn.GRU(3, 3))
    report = tritongru.convert(model)
    assert type(model.aliases[0]) is tritongru.GRU, "the same object"
    assert [(one.name, one.kind) for one in report.left] == [
        ("hidden", "torch.nn.GRU"),
        ("table", "torch.nn.GRUCell"),
        ("deep.gru", "torch.nn.GRU"),
        ("ema.gru", "torch.nn.GRU"),
        ("0.teacher", "torch.nn.GRU"),
    ]
    assert all(one.reason.startswith("held by a plain attribute or container") for one in report.left)
    assert type(model.hidden[0]) is nn.GRU


def test_a_model_without_a_gru():
    report = tritongru.convert(nn.Sequential(nn.LSTM(2, 3), nn.LSTM(3, 3), nn.Linear(3, 1)))
    assert (report.swapped, report.left) == ([], [])
    assert str(report) == "note: the model has no torch.nn.GRU; tritongru does not replace what it has: 2 torch.nn.LSTM"
    assert str(tritongru.convert(nn.Linear(2, 3))) == "note: the model has no torch.nn.GRU"
    theirs = type("GRU", (nn.Module,), {"__module__": "library"})()
    assert str(tritongru.convert(theirs)).endswith("what it has: 1 library.GRU")
    assert str(tritongru.convert(nn.GRU(2, 3), names=[])) == "note: names is empty, nothing was converted"


class Asks(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(3, 4)

    def forward(self, x):
        return self.gru(x) if isinstance(self.gru, nn.GRU) else None


class Odd:
    """Refuses to be asked about."""

    @property
    def __class__(self):
        raise RuntimeError("unbound")

    def __getattr__(self, name):
        raise RuntimeError("unbound")


class OddDict(dict):
    def values(self):
        raise RuntimeError("not now")


def test_other_attributes_do_not_matter():
    kind = type("Kind", (nn.Sequential,), {"__module__": __name__, "odd": Odd(), "named": staticmethod(len)})
    model = kind(nn.GRU(3, 4))
    model.__dict__.update(proxy=Odd(), table=OddDict(a=nn.GRU(2, 3)))
    report = tritongru.convert(model)
    assert [one.name for one in report.swapped] == ["0"]
    assert [one.name for one in report.left] == ["table"]


def test_a_module_without_its_constructor_has_no_layers():
    model = nn.Module.__new__(Model)
    assert tritongru.convert(model).notes == ["the model has no torch.nn.GRU"]


def test_torchs_classes_are_known_under_any_name(monkeypatch):
    theirs, ours = nn.Sequential(nn.GRU(2, 3)), tritongru.GRU(2, 3)
    original = nn.GRU
    monkeypatch.setattr(nn, "GRU", tritongru.GRU)
    assert len(tritongru.convert(theirs).swapped) == 1
    assert tritongru.convert(ours, back=True).swapped[0].after == "torch.nn.GRU"
    assert type(ours) is original
    assert type(tritongru.GRU(2, 3).to_torch()) is original
    with tritongru.patch():
        assert nn.GRU(2, 3, impl="torch").impl == "torch"


class AsksBelow(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.GRU(3, 4))

    def export(self):
        return [m for m in self.modules() if isinstance(m, nn.GRU)]


class AsksForType(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(3, 4)

    @torch.no_grad()
    def forward(self, x):
        return self.gru(x)[0] if type(self.gru) is nn.GRU else None


def test_a_parent_that_asks_for_torchs_class_is_named():
    (note,) = tritongru.convert(nn.Sequential(Asks(), Asks())).notes
    assert note.startswith("Asks.forward may ask isinstance(..., nn.GRU), which is False now; as_torch_type=True")
    assert tritongru.convert(Asks(), as_torch_type=True).notes == []
    model = AsksBelow()
    assert tritongru.convert(model).notes == [note.replace("Asks.forward", "AsksBelow.export")]
    assert tritongru.convert(model).notes == [], "nothing was converted"
    (note,) = tritongru.convert(AsksForType()).notes
    assert note.startswith("AsksForType.forward may ask type(...) is nn.GRU, which is False now; if so, convert")
    assert tritongru.convert(nn.Sequential(nn.GRU(3, 4))).notes == []


@pytest.mark.parametrize(
    "given, error, text",
    [
        ((nn.GRU,), TypeError, "model should be a torch.nn.Module, got type"),
        (([nn.GRU(2, 3)],), TypeError, "model should be a torch.nn.Module, got list"),
        ((nn.GRU(2, 3), ["rnn"]), ValueError, "the model has no GRU named 'rnn'; the names of its GRUs: (the model)"),
        (
            (nn.Linear(2, 3), ["a", "b"]),
            ValueError,
            "the model has no GRU named 'a', 'b'; the names of its GRUs: it has none",
        ),
        ((nn.GRU(2, 3), [3]), TypeError, "names should be None or a list of names of modules, got [3]"),
        ((nn.GRU(2, 3), 3), TypeError, "names should be None or a list of names of modules, got 3"),
        ((nn.GRU(2, 3), None, 1), TypeError, "as_torch_type should be of type bool, got: int"),
        ((nn.GRU(2, 3), None, False, "yes"), TypeError, "back should be of type bool, got: str"),
        ((nn.GRU(2, 3), None, True, True), ValueError, "as_torch_type=True is for converting to ours"),
    ],
)
def test_wrong_arguments_change_nothing(given, error, text):
    model = given[0]
    before = type(model)
    with pytest.raises(error) as caught:
        tritongru.convert(model, **dict(zip(("names", "as_torch_type", "back"), given[1:], strict=False)))
    assert text in str(caught.value)
    assert type(model) is before


def test_on_the_way_back_what_is_torchs_is_no_matter():
    model = nn.ModuleDict({"own": Mine(4, 3), "ours": Ours(4, 3), "plain": nn.GRU(2, 3), "gru": tritongru.GRU(2, 3)})
    model.hidden = [nn.GRU(2, 3), tritongru.GRUCell(2, 3)]
    report = tritongru.convert(model, back=True)
    assert [one.name for one in report.swapped] == ["gru"]
    assert [(one.name, one.kind) for one in report.left] == [
        ("ours", f"{Ours.__module__}.Ours"),
        ("hidden", "tritongru.GRUCell"),
    ]
    assert "derive it from torch.nn.GRU" in report.left[0].reason


def test_one_unknown_name_leaves_the_known_alone(model):
    with pytest.raises(ValueError, match=r"no GRU named 'gru'; the names of its GRUs: by_name\.one\.0, cell, parts\.0"):
        tritongru.convert(model, names=["rnn", "gru"])
    assert type(model.rnn) is nn.GRU


def test_the_report_is_a_table():
    model = nn.ModuleDict({"encoder": nn.GRU(8, 16, num_layers=2), "own": Mine(2, 3)})
    kind = f"{Mine.__module__}.Mine"
    reason = "a subclass of torch.nn.GRU, whose own methods would be lost; derive it from tritongru.GRU and "
    reason += "load its state_dict"
    assert str(tritongru.convert(model)).splitlines() == [
        "converted  was                                is now",
        "---------  ---------------------------------  ------",
        "encoder    torch.nn.GRU(8, 16, num_layers=2)  tritongru.GRU",
        f"left as it was  {'class'.ljust(len(kind))}  why",
        f"--------------  {'-' * len(kind)}  ---",
        f"own             {kind}  {reason}",
    ]
    report = tritongru.convert(model)
    assert repr(report) == str(report)
    assert str(tritongru.Report()) == "nothing was changed: no torch.nn.GRU or GRUCell was built"


COMPUTED = {
    "pruned": (lambda gru: prune.l1_unstructured(gru, "weight_hh_l0", 0.5), "weight_hh_l0_orig"),
    "weight norm": (lambda gru: nn.utils.weight_norm(gru, "weight_hh_l0"), "weight_hh_l0_g"),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("how", COMPUTED)
def test_weights_that_a_hook_computes_are_used(how, x):
    compute, parameter = COMPUTED[how]
    gru = nn.GRU(4, 3)
    compute(gru)
    own = [*gru.parameters()]
    expected = torch.autograd.grad(gru(x)[0].square().sum(), own)
    assert len(tritongru.convert(gru).swapped) == 1
    y = gru(x)[0]
    torch.testing.assert_close(torch.autograd.grad(y.square().sum(), own), expected)
    with torch.no_grad():
        getattr(gru, parameter).mul_(3)
    assert not torch.allclose(gru(x)[0], y), "computed anew"


def test_copies_and_pickles_of_a_converted_model(model, x):
    tritongru.convert(model)
    model.eval()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other.rnn) is tritongru.GRU
        assert other.tied is other.rnn
        torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)


def test_a_model_on_meta_and_a_cyclic_one():
    with torch.device("meta"):
        model = nn.Sequential(nn.GRU(3, 4))
    model[0].__dict__["_modules"]["up"] = model
    report = tritongru.convert(model)
    assert [(one.name, one.also) for one in report.swapped] == [("0", ())]
    assert model[0].weight_hh_l0.is_meta

"""tritongru.weights against each format's published equations, in plain loops that share nothing with it, against the
packages themselves where they are installed, and what it refuses."""

import ast
import io
import re

import numpy as np
import pytest
import torch
from processes import ROOT
from torch import nn
from torch.nn.utils import parametrizations, prune

import tritongru
from tritongru import weights

pytestmark = pytest.mark.quick

T, B, I, H = 7, 2, 3, 5
CLOSE = {"rtol": 1e-12, "atol": 1e-12}
SINGLE = {"rtol": 2e-5, "atol": 2e-6}  # float32, in another order of additions


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def normal(*shape):
    """Values so large that each gate matters, others for each call."""
    normal.calls += 1
    return np.random.default_rng(normal.calls).normal(size=shape)


normal.calls = 0


# The formats: arrays of one direction, and a loop over time as its documentation has the equations.


class Keras:
    """https://keras.io/api/layers/recurrent_layers/gru/, keras/src/layers/rnn/gru.py"""

    optional_bias = True

    def arrays(self, I, bias):
        return [normal(I, 3 * H), normal(H, 3 * H), *([normal(2, 3 * H)] if bias else [])]

    def loop(self, arrays, x):
        kernel, recurrent, *rest = arrays
        bias = rest[0] if rest else np.zeros((2, 3 * H))
        units, h, found = H, np.zeros((x.shape[1], H)), []
        for x_t in x:
            x_z, x_r, x_h = np.split(x_t @ kernel + bias[0], 3, axis=-1)
            inner = h @ recurrent + bias[1]
            z = sigmoid(x_z + inner[:, :units])
            r = sigmoid(x_r + inner[:, units : 2 * units])
            hh = np.tanh(x_h + r * inner[:, 2 * units :])
            h = z * h + (1 - z) * hh
            found.append(h)
        return np.stack(found)

    def entries(self, sides, layer):
        found = [weights.from_keras(arrays, layer=layer, reverse=k == 1) for k, arrays in enumerate(sides)]
        return {name: w for entries in found for name, w in entries.items()}

    def back(self, gru, layer, sides):
        return [weights.to_keras(gru, layer=layer, reverse=k == 1) for k in range(sides)]


class Haste(Keras):
    """https://github.com/lmnt-com/haste/blob/master/docs/pytorch/haste_pytorch/GRU.md, lib/gru_forward_gpu.cu.cc"""

    optional_bias = False

    def arrays(self, I, bias):
        matrices = {"kernel": normal(I, 3 * H), "recurrent_kernel": normal(H, 3 * H)}
        return matrices | {"bias": normal(3 * H), "recurrent_bias": normal(3 * H)}

    def loop(self, arrays, x):
        W, R, bx, br = arrays["kernel"], arrays["recurrent_kernel"], arrays["bias"], arrays["recurrent_bias"]
        at_z, at_r, at_g = (np.arange(k * H, (k + 1) * H) for k in range(3))
        h, found = np.zeros((x.shape[1], H)), []
        for x_t in x:
            Wx, Rh = x_t @ W, h @ R
            z = sigmoid(Wx[:, at_z] + Rh[:, at_z] + bx[at_z] + br[at_z])
            r = sigmoid(Wx[:, at_r] + Rh[:, at_r] + bx[at_r] + br[at_r])
            g = np.tanh(Wx[:, at_g] + r * (Rh[:, at_g] + br[at_g]) + bx[at_g])
            h = z * h + (1.0 - z) * g
            found.append(h)
        return np.stack(found)

    def entries(self, sides, layer):
        found = [weights.from_haste(arrays, layer=layer, reverse=k == 1) for k, arrays in enumerate(sides)]
        return {name: w for entries in found for name, w in entries.items()}

    def back(self, gru, layer, sides):
        return [weights.to_haste(gru, layer=layer, reverse=k == 1) for k in range(sides)]


class Linen:
    """https://flax.readthedocs.io/en/latest/api_reference/flax.linen/layers.html#flax.linen.GRUCell"""

    optional_bias = False
    nnx = False

    def arrays(self, I, bias):
        inputs = {name: {"kernel": normal(I, H), "bias": normal(H)} for name in ("in", "ir", "iz")}
        states = {name: {"kernel": normal(H, H)} for name in ("hn", "hr", "hz")}
        states["hn"]["bias"] = normal(H)
        return inputs | states

    def loop(self, p, x):
        h, found = np.zeros((x.shape[1], H)), []
        for x_t in x:
            r = sigmoid(x_t @ p["ir"]["kernel"] + p["ir"]["bias"] + h @ p["hr"]["kernel"])
            z = sigmoid(x_t @ p["iz"]["kernel"] + p["iz"]["bias"] + h @ p["hz"]["kernel"])
            inner = h @ p["hn"]["kernel"] + p["hn"]["bias"]
            n = np.tanh(x_t @ p["in"]["kernel"] + p["in"]["bias"] + r * inner)
            h = (1 - z) * n + z * h
            found.append(h)
        return np.stack(found)

    def entries(self, sides, layer):
        found = [weights.from_flax(arrays, layer=layer, reverse=k == 1) for k, arrays in enumerate(sides)]
        return {name: w for entries in found for name, w in entries.items()}

    def back(self, gru, layer, sides):
        return [weights.to_flax(gru, nnx=self.nnx, layer=layer, reverse=k == 1) for k in range(sides)]


class Nnx(Linen):
    """flax/nnx/nn/recurrent.py; its documentation has a bias b_hn, which the cell has not"""

    nnx = True

    def arrays(self, I, bias):
        return {
            "dense_h": {"kernel": normal(H, 3 * H)},
            "dense_i": {"kernel": normal(I, 3 * H), "bias": normal(3 * H)},
        }

    def loop(self, p, x):
        h, found = np.zeros((x.shape[1], H)), []
        for x_t in x:
            xi_r, xi_z, xi_n = np.split(x_t @ p["dense_i"]["kernel"] + p["dense_i"]["bias"], 3, axis=-1)
            hh_r, hh_z, hh_n = np.split(h @ p["dense_h"]["kernel"], 3, axis=-1)
            r, z = sigmoid(xi_r + hh_r), sigmoid(xi_z + hh_z)
            n = np.tanh(xi_n + r * hh_n)
            h = (1.0 - z) * n + z * h
            found.append(h)
        return np.stack(found)


class Onnx:
    """https://onnx.ai/onnx/operators/onnx__GRU.html"""

    optional_bias = True

    def arrays(self, I, bias):
        return [normal(1, 3 * H, I), normal(1, 3 * H, H), *([normal(1, 6 * H)] if bias else [])]

    def loop(self, arrays, x):
        Wz, Wr, Wh = np.split(arrays[0][0], 3)
        Rz, Rr, Rh = np.split(arrays[1][0], 3)
        Wbz, Wbr, Wbh, Rbz, Rbr, Rbh = np.split(arrays[2][0] if len(arrays) == 3 else np.zeros(6 * H), 6)
        h, found = np.zeros((x.shape[1], H)), []
        for x_t in x:
            zt = sigmoid(x_t @ Wz.T + h @ Rz.T + Wbz + Rbz)
            rt = sigmoid(x_t @ Wr.T + h @ Rr.T + Wbr + Rbr)
            ht = np.tanh(x_t @ Wh.T + rt * (h @ Rh.T + Rbh) + Wbh)
            h = (1 - zt) * ht + zt * h
            found.append(h)
        return np.stack(found)

    def entries(self, sides, layer):
        both = [np.concatenate(arrays) for arrays in zip(*sides, strict=True)]
        direction = "bidirectional" if len(sides) == 2 else "forward"
        return weights.from_onnx(*both, linear_before_reset=1, direction=direction, layer=layer)

    def back(self, gru, layer, sides):
        found = [w for w in weights.to_onnx(gru, layer=layer) if w is not None]
        return [[w[k : k + 1] for w in found] for k in range(sides)]


FORMATS = [Keras(), Onnx(), Haste(), Linen(), Nnx()]
CASES = [(one, bias) for one in FORMATS for bias in ((True, False) if one.optional_bias else (True,))]
EACH = pytest.mark.parametrize("form, bias", CASES, ids=lambda v: type(v).__name__ if not isinstance(v, bool) else v)


def leaves(tree):
    """Of lists and dictionaries, by their places."""
    if isinstance(tree, (dict, list, tuple)):
        inner = sorted(tree.items()) if isinstance(tree, dict) else enumerate(tree)
        return {f"{place}/{rest}": leaf for place, sub in inner for rest, leaf in leaves(sub).items()}
    return {"": tree}


def same(found, expected):
    """The same places with the same values, bit for bit."""
    found, expected = leaves(found), leaves(expected)
    assert found.keys() == expected.keys()
    for place, tensor in found.items():
        torch.testing.assert_close(tensor, torch.as_tensor(expected[place]), rtol=0, atol=0)


def layers_of(kind, **options):
    return [package.GRU(I, H, dtype=torch.float64, **options) for package in kind]


def close(found, expected, **tolerance):
    expected = expected if isinstance(expected, torch.Tensor) else torch.from_numpy(np.array(expected))
    torch.testing.assert_close(found.detach(), expected, **(tolerance or CLOSE))


@EACH
def test_published_equations_in_two_layers_and_both_directions(form, bias):
    sides = [[form.arrays(width, bias) for _ in range(2)] for width in (I, 2 * H)]
    x = normal(T, B, I)
    y = x
    for first, second in sides:
        y = np.concatenate((form.loop(first, y), form.loop(second, y[::-1])[::-1]), axis=-1)
    entries = {}
    for layer, arrays in enumerate(sides):
        entries |= form.entries(arrays, layer)
    for gru in layers_of((nn, tritongru), num_layers=2, bias=bias, bidirectional=True):
        gru.load_state_dict(entries)
        close(gru(torch.from_numpy(x))[0], y)
        for layer, arrays in enumerate(sides):
            same(form.back(gru, layer, 2), arrays)


@EACH
def test_one_direction_and_a_cell(form, bias):
    arrays, x = form.arrays(I, bias), normal(T, B, I)
    expected = form.loop(arrays, x)
    (gru,) = layers_of((tritongru,), bias=bias)
    gru.load_state_dict(form.entries([arrays], 0))
    close(gru(torch.from_numpy(x))[0], expected)
    entries = form.entries([arrays], None)
    for package in (nn, tritongru):
        cell, h = package.GRUCell(I, H, bias=bias, dtype=torch.float64), torch.zeros(B, H, dtype=torch.float64)
        cell.load_state_dict(entries)
        for x_t, y_t in zip(torch.from_numpy(x), expected, strict=True):
            h = cell(x_t, h)
            close(h, y_t)
        same(form.back(cell, 7, 1), [arrays])  # a cell has no layers


@EACH
def test_the_way_there_and_back(form, bias):
    """Two biases become one where the format has one."""
    (gru,) = layers_of((nn,), bias=bias, bidirectional=True)
    if isinstance(form, Nnx):
        for name in ("bias_hh_l0", "bias_hh_l0_reverse"):
            getattr(gru, name).data[2 * H :] = 0
    entries = form.entries([_arrays(side) for side in form.back(gru, 0, 2)], 0)
    if not isinstance(form, Linen):
        same(entries, dict(gru.state_dict()))
    (again,) = layers_of((nn,), bias=bias, bidirectional=True)
    again.load_state_dict(entries)
    x = torch.from_numpy(normal(T, B, I))
    close(again(x)[0], gru(x)[0].detach())


def _arrays(tree):
    if isinstance(tree, dict):
        return {name: _arrays(sub) for name, sub in tree.items()}
    return [_arrays(sub) for sub in tree] if isinstance(tree, list) else tree.numpy()


@pytest.mark.parametrize("form", [Haste(), Linen(), Nnx()], ids=lambda form: type(form).__name__)
def test_biases_that_a_gru_does_not_have_are_zeros(form):
    (gru,) = layers_of((nn,), bias=False)
    (arrays,) = form.back(gru, 0, 1)
    entries = form.entries([arrays], 0)
    assert all(not entries[name].any() for name in ("bias_ih_l0", "bias_hh_l0"))
    same({name: entries[name] for name in gru.state_dict()}, dict(gru.state_dict()))


# What comes back


def test_results_are_copies_without_a_graph():
    gru = nn.GRU(I, H, bidirectional=True)
    parameters = [p for _, p in gru.named_parameters()]
    made = [*weights.to_onnx(gru), *(form.back(gru, 0, 2) for form in (Keras(), Haste(), Linen()))]
    made += [weights.from_keras([torch.randn(I, 3 * H, requires_grad=True), torch.randn(H, 3 * H)])]
    own = torch.randn(I, 3 * H), torch.randn(H, 3 * H), torch.randn(3 * H)
    tree = {"dense_i": {"kernel": own[0], "bias": own[2]}, "dense_h": {"kernel": own[1]}}
    made += [weights.from_flax(tree)]
    taken = {t.untyped_storage().data_ptr() for t in (*parameters, *own)}
    for tensor in leaves(made).values():
        assert not tensor.requires_grad
        assert tensor.untyped_storage().data_ptr() not in taken
        assert tensor.is_contiguous()
        assert type(tensor) is torch.Tensor


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_dtypes_pass_through(dtype):
    arrays = [torch.randn(*shape).to(dtype) for shape in ((I, 3 * H), (H, 3 * H), (2, 3 * H))]
    entries = weights.from_keras(arrays)
    assert {w.dtype for w in entries.values()} == {dtype}
    gru = tritongru.GRU(I, H, dtype=dtype)
    gru.load_state_dict(entries)
    same(weights.to_keras(gru), arrays)


def test_arrays_of_any_kind_are_read():
    """Read-only, reversed, of another byte order, of JAX's bfloat16, in nested lists, or of a class of their own."""

    class Array:
        def __init__(self, array):
            self.array = array

        def __array__(self):
            return self.array

    rest = [normal(H, 3 * H)]
    kernel = normal(I, 3 * H)
    expected = weights.from_keras([kernel, *rest])
    frozen = kernel.copy()
    frozen.flags.writeable = False
    for other in (frozen, np.flip(kernel).copy()[::-1, ::-1], kernel.astype(">f8"), np.asfortranarray(kernel)):
        same(weights.from_keras([other, *rest]), expected)
    same(weights.from_keras([Array(kernel), *rest]), expected)
    single = weights.from_keras([torch.from_numpy(kernel).float(), torch.from_numpy(rest[0]).float()])
    same(weights.from_keras([kernel.astype("f4").tolist(), rest[0].astype("f4").tolist()]), single)
    bfloat16 = pytest.importorskip("ml_dtypes", reason="JAX's bfloat16 is ml_dtypes'").bfloat16
    half = weights.from_keras([kernel.astype(bfloat16), rest[0].astype(bfloat16)])
    same(half, weights.from_keras([torch.from_numpy(w.astype("f4")).bfloat16() for w in (kernel, *rest)]))


def test_a_parametrized_weight_is_taken_as_it_is_computed():
    gru = tritongru.GRU(I, H)
    nn.utils.parametrizations.weight_norm(gru, "weight_hh_l0")
    gru.parametrizations.weight_hh_l0.original0.data.mul_(2)
    same(weights.from_keras(weights.to_keras(gru))["weight_hh_l0"], gru.weight_hh_l0.detach())


def test_it_needs_torch_alone_and_is_imported_when_asked_for():
    """tests/structure/test_import.py counts what is imported at once."""
    for path in (ROOT / "tritongru" / "weights").glob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text()))
        roots = {node.module.partition(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)}
        assert roots <= {"__future__", "collections", "typing", "torch", "tritongru"}
        assert "import numpy" not in path.read_text()
    assert tritongru.weights is weights
    assert "weights" in tritongru.__all__
    with pytest.raises(AttributeError, match="no attribute 'weight'"):
        _ = tritongru.weight


# The packages themselves


@pytest.mark.parametrize("bidirectional, bias", [(False, True), (True, True), (True, False)])
def test_onnxruntime(bidirectional, bias):
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    gru = tritongru.GRU(I, H, bias=bias, bidirectional=bidirectional)
    named = {name: w for name, w in zip("WRB", weights.to_onnx(gru), strict=True) if w is not None}
    D = 2 if bidirectional else 1
    direction = "bidirectional" if bidirectional else "forward"
    node = onnx.helper.make_node(
        "GRU",
        ["X", *named],
        ["Y", "Y_h"],
        hidden_size=H,
        linear_before_reset=1,
        direction=direction,
        activations=["Sigmoid", "Tanh"] * D,
    )
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [node],
        "gru",
        [onnx.helper.make_tensor_value_info("X", kind, (T, B, I))],
        [onnx.helper.make_tensor_value_info(name, kind, list(axes)) for name, axes in (("Y", "TDBH"), ("Y_h", "DBH"))],
        [onnx.numpy_helper.from_array(w.numpy(), name) for name, w in named.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)], ir_version=10)
    onnx.checker.check_model(model)
    x = torch.randn(T, B, I)
    Y, Y_h = runtime.InferenceSession(model.SerializeToString()).run(None, {"X": x.numpy()})
    output, h_n = gru(x)
    close(output, Y.transpose(0, 2, 1, 3).reshape(T, B, D * H), **SINGLE)
    close(h_n, Y_h, **SINGLE)
    # Back, from the node as a file has it
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert attributes["direction"] == direction.encode()
    arrays = [onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    same(weights.from_onnx(*arrays, **attributes), dict(gru.state_dict()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::UserWarning")
def test_a_model_that_torch_exported():
    onnx = pytest.importorskip("onnx")
    gru, file = nn.GRU(I, H, 2, bidirectional=True).eval(), io.BytesIO()
    torch.onnx.export(gru, (torch.randn(T, B, I),), file, dynamo=False)
    graph = onnx.load_from_string(file.getvalue()).graph
    initializers = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    entries = {}
    for layer, node in enumerate(node for node in graph.node if node.op_type == "GRU"):
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        arrays = [initializers[name] for name in node.input[1:4]]
        entries |= weights.from_onnx(*arrays, layer=layer, **attributes)
    same(entries, dict(gru.state_dict()))


@pytest.fixture
def keras(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    return pytest.importorskip("keras", reason="Keras is not installed")


@pytest.mark.parametrize("use_bias", [True, False])
def test_keras(keras, use_bias):
    layers = keras.layers
    x = torch.randn(B, T, I)
    plain = layers.GRU(H, return_sequences=True, use_bias=use_bias, bias_initializer="glorot_uniform")
    both = layers.Bidirectional(
        layers.GRU(H, return_sequences=True, use_bias=use_bias, bias_initializer="random_normal")
    )
    expected = [layer(x.numpy()) for layer in (plain, both)]
    flags = {"reset_after": plain.reset_after, "activation": plain.activation}
    flags["recurrent_activation"] = plain.recurrent_activation
    entries = weights.from_keras(plain.get_weights(), **flags)
    gru = tritongru.GRU(I, H, bias=use_bias, batch_first=True)
    gru.load_state_dict(entries)
    close(gru(x)[0], expected[0].detach(), **SINGLE)
    entries = weights.from_keras(both.forward_layer.get_weights())
    entries |= weights.from_keras(both.backward_layer.get_weights(), reverse=True)
    gru = tritongru.GRU(I, H, bias=use_bias, batch_first=True, bidirectional=True)
    gru.load_state_dict(entries)
    close(gru(x)[0], expected[1].detach(), **SINGLE)
    # To Keras, and a cell
    gru = tritongru.GRU(I, H, bias=use_bias, batch_first=True, bidirectional=True)
    plain.set_weights([w.numpy() for w in weights.to_keras(gru)])
    both.forward_layer.set_weights([w.numpy() for w in weights.to_keras(gru)])
    both.backward_layer.set_weights([w.numpy() for w in weights.to_keras(gru, reverse=True)])
    close(plain(x.numpy()), gru(x)[0][..., :H].detach(), **SINGLE)
    close(both(x.numpy()), gru(x)[0].detach(), **SINGLE)
    cell, ours = layers.GRUCell(H, use_bias=use_bias), tritongru.GRUCell(I, H, bias=use_bias)
    cell.build((None, I))
    cell.set_weights([w.numpy() for w in weights.to_keras(ours)])
    close(ours(x[:, 0]), cell(x[:, 0], [torch.zeros(B, H)])[0].detach(), **SINGLE)


def test_keras_layers_that_torch_does_not_have(keras):
    for options, text in (
        ({"reset_after": False}, "reset_after=False has no equivalent"),
        ({"activation": "relu"}, "activation should be 'tanh', which torch's GRU computes, got 'relu'"),
        ({"recurrent_activation": "hard_sigmoid"}, "recurrent_activation should be 'sigmoid'"),
    ):
        layer = keras.layers.GRU(H, **options)
        layer.build((None, T, I))
        flags = {name: getattr(layer, name) for name in ("reset_after", "activation", "recurrent_activation")}
        with pytest.raises(ValueError, match=re.escape(text)):
            weights.from_keras(layer.get_weights(), **flags)


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_flax(kind):
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    module = pytest.importorskip(f"flax.{kind}", reason="Flax is not installed")
    key, x = jax.random.key(0), torch.randn(B, I)
    h = torch.randn(B, H)
    if kind == "linen":
        cell = module.GRUCell(features=H, bias_init=jax.nn.initializers.normal(1.0))
        params = cell.init(key, h.numpy(), x.numpy())["params"]
        call = lambda params: cell.apply({"params": params}, h.numpy(), x.numpy())[0]  # noqa: E731
    else:
        cell = module.GRUCell(I, H, bias_init=jax.nn.initializers.normal(1.0), rngs=module.Rngs(0))
        params = module.state(cell, module.Param)

        def call(params):
            if isinstance(params, dict):
                module.replace_by_pure_dict(state := module.state(cell, module.Param), params)
                module.update(cell, state)
            return cell(h.numpy(), x.numpy())[0]

    entries = weights.from_flax(params, gate_fn=cell.gate_fn, activation_fn=cell.activation_fn, layer=None)
    ours = tritongru.GRUCell(I, H)
    ours.load_state_dict(entries)
    close(ours(x, h), call(params), **SINGLE)
    # To Flax, with both biases of torch
    ours = tritongru.GRUCell(I, H)
    if kind == "nnx":
        ours.bias_hh.data[2 * H :] = 0
    tree = jax.tree.map(lambda w: jax.numpy.asarray(w.numpy()), weights.to_flax(ours, nnx=kind == "nnx"))
    close(ours(x, h), call(tree), **SINGLE)
    with pytest.raises(ValueError, match="gate_fn should be 'sigmoid', which torch's GRU computes, got 'hard_sigmoid'"):
        weights.from_flax(params, gate_fn=jax.nn.hard_sigmoid)


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_flax_in_both_directions(kind):
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    module = pytest.importorskip(f"flax.{kind}", reason="Flax is not installed")
    x, normal = torch.randn(B, T, I), jax.nn.initializers.normal(1.0)
    if kind == "linen":
        model = module.Bidirectional(*(module.RNN(module.GRUCell(features=H, bias_init=normal)) for _ in range(2)))
        variables = model.init(jax.random.key(0), x.numpy())
        sides = [variables["params"][f"{side}_rnn"]["cell"] for side in ("forward", "backward")]
        expected = model.apply(variables, x.numpy())
    else:
        rngs = module.Rngs(0)
        cells = [module.GRUCell(I, H, bias_init=normal, rngs=rngs) for _ in range(2)]
        sides = [module.state(cell, module.Param) for cell in cells]
        expected = module.Bidirectional(*(module.RNN(cell, rngs=rngs) for cell in cells))(x.numpy(), rngs=rngs)
    gru = tritongru.GRU(I, H, batch_first=True, bidirectional=True)
    gru.load_state_dict(weights.from_flax(sides[0]) | weights.from_flax(sides[1], reverse=True))
    close(gru(x)[0], expected, **SINGLE)


# Refusals


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(*shape, dtype=dtype)


def keras_call(kernel=(I, 3 * H), recurrent=(H, 3 * H), bias=(2, 3 * H), **options):
    return weights.from_keras([zeros(*shape) for shape in (kernel, recurrent, bias)], **options)


def onnx_call(W=(1, 3 * H, I), R=(1, 3 * H, H), bias=(1, 6 * H), linear_before_reset=1, **options):
    return weights.from_onnx(*map(zeros, (W, R, bias)), linear_before_reset=linear_before_reset, **options)


def haste_call(changes=(), **options):
    shapes = {"kernel": (I, 3 * H), "recurrent_kernel": (H, 3 * H), "bias": (3 * H,), "recurrent_bias": (3 * H,)}
    state = {name: zeros(*shape) for name, shape in (shapes | dict(changes)).items() if shape}
    return weights.from_haste(state, **options)


def linen_call(changes=()):
    tree = Linen().arrays(I, True)
    for part, name, shape in changes:
        tree[part][name] = zeros(*shape, dtype=torch.float64)
    return weights.from_flax(tree)


def computed(**attributes):
    gru = nn.GRU(I, H)
    for name, value in attributes.items():
        delattr(gru, name)
        setattr(gru, name, value)
    return gru


def shrunk():
    gru = nn.GRU(I, H)
    gru.weight_hh_l0.untyped_storage().resize_(0)
    return gru


def test_weights_of_a_parametrization_are_those_of_now():
    gru = parametrizations.weight_norm(nn.GRU(I, H), "weight_hh_l0")
    gru.register_forward_pre_hook(lambda module, given: None)  # computes no weight
    with torch.no_grad():
        gru.parametrizations.weight_hh_l0.original0.mul_(2)
    other = tritongru.GRU(I, H)
    other.load_state_dict(weights.from_keras(weights.to_keras(gru)))
    torch.testing.assert_close(other.weight_hh_l0.detach(), gru.weight_hh_l0.detach(), rtol=0, atol=0)


def pruned():
    gru = nn.GRU(I, H)
    prune.l1_unstructured(gru, "weight_hh_l0", 0.5)
    return gru


ONE, TWO = nn.GRU(I, H), tritongru.GRU(I, H, 2, bidirectional=True)
REFUSALS = [
    # no equivalent
    (
        lambda: keras_call(reset_after=False),
        ValueError,
        "reset_after=False has no equivalent in torch's GRU, .*; train ",
    ),
    (
        lambda: keras_call(bias=(15,)),
        ValueError,
        r"bias should have .* \(2, 3 \* H\), got \(15,\), .*reset_after=True$",
    ),
    (lambda: keras_call(activation="relu"), ValueError, "activation should be 'tanh', .*got 'relu'; train"),
    (lambda: keras_call(activation=None), ValueError, "activation should be 'tanh', .*got None; train"),
    (lambda: keras_call(recurrent_activation=torch.relu), ValueError, "recurrent_act.* 'sigmoid', .*got 'relu'; train"),
    (lambda: weights.from_flax({}, activation_fn="relu"), ValueError, "activation_fn should be 'tanh', .*got 'relu'"),
    (lambda: weights.to_flax(nn.GRU(I, H), nnx=True), ValueError, r"no recurrent bias .* up to 0\.\d+; use .*linen"),
    (lambda: haste_call(zoneout=0.1), ValueError, r"zoneout=0.1 has no equivalent .*; train"),
    (lambda: onnx_call(linear_before_reset=0), ValueError, "linear_before_reset=0, ONNX's default, has no .*; pass"),
    (lambda: weights.from_onnx(zeros(1), zeros(1)), ValueError, "linear_before_reset=0, ONNX's default, has no eq"),
    (lambda: onnx_call(direction=b"reverse"), ValueError, r"direction='reverse' has no .*x\.flip\(0\)"),
    (lambda: onnx_call(direction="both"), ValueError, "direction should be 'forward' or 'bidirectional', got 'both'"),
    (lambda: onnx_call(clip=3.0), ValueError, r"clip=3\.0 has no equivalent .*; train or export"),
    (
        lambda: onnx_call(activations=[b"HardSigmoid", b"Tanh"]),
        ValueError,
        r"activations .*got \['HardSigmoid', 'Tanh'\]",
    ),
    (lambda: onnx_call(activations=["Sigmoid", "Tanh"] * 2), ValueError, r"be \['Sigmoid', 'Tanh'\], .*'Tanh', 'Si"),
    (lambda: onnx_call(activation_alpha=[0.2]), ValueError, r"activation_alpha=\[0\.2\] has no equivalent"),
    (lambda: onnx_call(activation_beta=[0.5]), ValueError, r"activation_beta=\[0\.5\] has no equivalent"),
    (lambda: onnx_call(output_sequence=1), ValueError, "no attribute output_sequence from opset 7 on, got 1; leave"),
    (lambda: onnx_call(hidden_size=4), ValueError, "hidden_size should be 5, as R has it, got 4; pass"),
    (lambda: onnx_call(layout=2), ValueError, "layout should be 0 or 1, as in ONNX, got 2"),
    # shapes
    (
        lambda: keras_call(recurrent=(5, 20)),
        ValueError,
        r"recurrent_kernel .*\(5, 15\), .*got \(5, 20\); pass the arrays",
    ),
    (
        lambda: keras_call(recurrent=(15, 5)),
        ValueError,
        r"recurrent_kernel .*\(5, 15\), .*got \(15, 5\); pass the arrays",
    ),
    (lambda: keras_call(recurrent=(0, 0)), ValueError, r"recurrent_kernel .*\(1, 3\), .*got \(0, 0\); pass the arrays"),
    (
        lambda: keras_call(kernel=(15, 3)),
        ValueError,
        r"kernel should have the shape \(any, 15\), .*got \(15, 3\); pass",
    ),
    (
        lambda: keras_call(kernel=(3, 16)),
        ValueError,
        r"kernel should have the shape \(any, 15\), .*got \(3, 16\); pass",
    ),
    (lambda: keras_call(bias=(3, 15)), ValueError, r"bias should have the shape \(2, any\), .*got \(3, 15\); pass"),
    (lambda: keras_call(bias=(2, 14)), ValueError, r"bias\[0\] should have the shape \(15,\), .*got \(14,\); pass"),
    (lambda: weights.from_keras([zeros(3, 15)] * 6), ValueError, "hold 2 arrays, or 3 .*got 6; pass .*backward_layer"),
    (lambda: onnx_call(R=(1, 15, 4)), ValueError, r"R should have the shape \(1, 12, 4\), .*got \(1, 15, 4\); pass"),
    (lambda: onnx_call(R=()), ValueError, r"R should have the shape \(1, 3, 1\), .*got \(\); pass"),
    (lambda: onnx_call(W=(15, 3)), ValueError, r"W should have the shape \(1, 15, any\), .*got \(15, 3\); pass"),
    (lambda: onnx_call(bias=(1, 15)), ValueError, r"B should have the shape \(1, 30\), .*got \(1, 15\); pass"),
    (
        lambda: onnx_call(direction="bidirectional"),
        ValueError,
        r"R .*\(2, 15, 5\), .*'bidirectional', got \(1, 15, 5\)",
    ),
    (
        lambda: haste_call({"bias": (5,)}),
        ValueError,
        r"bias should have the shape \(15,\), .*got \(5,\); pass the state",
    ),
    (lambda: haste_call({"bias": None}), ValueError, "state should hold kernel, .*got kernel, recurrent_bias, recurr"),
    (lambda: haste_call({"gamma": (2,)}), ValueError, "state should hold kernel, .*got bias, gamma, kernel"),
    (lambda: linen_call([("iz", "kernel", (4, 5))]), ValueError, r"iz.kernel .*\(3, 5\), .*got \(4, 5\); pass"),
    (lambda: linen_call([("hr", "kernel", (5, 4))]), ValueError, r"hr.kernel .*\(5, 5\), .*got \(5, 4\); pass"),
    (lambda: linen_call([("in", "bias", (4,))]), ValueError, r"in.bias .*\(5,\), .*got \(4,\); pass"),
    (
        lambda: linen_call([("hr", "bias", (5,))]),
        ValueError,
        r"params\['hr'\] should hold kernel, got bias, kernel; pass",
    ),
    (
        lambda: weights.from_flax({"params": {}}),
        ValueError,
        "params should hold ir, iz, .*got params; pass .*variables",
    ),
    (lambda: weights.from_flax({}), ValueError, "params should hold ir, iz, .*got nothing; pass"),
    (lambda: weights.from_flax({"dense_i": {}}), ValueError, "params should hold dense_i, dense_h, got dense_i; pass"),
    (
        lambda: weights.to_keras(computed(bias_ih_l0=zeros(4))),
        ValueError,
        r"bias_ih_l0 .*\(15,\), .*got \(4,\); restore",
    ),
    # layers and directions
    (lambda: weights.to_keras(TWO, layer=2), ValueError, "layer should be below 2, the GRU has 2 layers, got 2"),
    (lambda: weights.to_onnx(ONE, layer=-1), ValueError, "layer should be at least 0, the first layer, got -1"),
    (
        lambda: weights.to_keras(pruned()),
        ValueError,
        "weight_hh_l0 is computed by a hook and may be out of date; remove",
    ),
    (lambda: keras_call(reset_after="False"), TypeError, "reset_after should be of type bool, got: str"),
    (lambda: weights.to_haste(ONE, layer=True), TypeError, "layer should be of type int, got: bool"),
    (lambda: weights.to_flax(ONE, reverse=True), ValueError, "reverse .* GRU of one direction, got True; build"),
    (lambda: weights.to_keras(ONE, reverse=1), TypeError, "reverse should be of type bool, got: int"),
    (lambda: weights.to_keras(nn.GRUCell(I, H), reverse=True), ValueError, "reverse should be False for a cell"),
    (lambda: weights.to_onnx(nn.LSTM(I, H)), TypeError, "gru should be a GRU or GRUCell .*got LSTM"),
    (lambda: keras_call(layer=-1), ValueError, "layer should be at least 0, the first layer, got -1"),
    (lambda: keras_call(layer="0"), TypeError, "layer should be of type int, got: str"),
    (lambda: keras_call(layer=None, reverse=True), ValueError, "reverse should be False for layer=None, .*; pass"),
    (
        lambda: onnx_call((2, 15, 3), (2, 15, 5), (2, 30), direction="bidirectional", layer=None),
        ValueError,
        "layer=None is for a cell, which has one direction, got direction='bidirectional'",
    ),
    # values
    (lambda: weights.from_keras(zeros(2, 3, 15)), TypeError, "weights should be a list or tuple of arrays, got Tensor"),
    (
        lambda: weights.from_keras([object(), zeros(5, 15)]),
        TypeError,
        "kernel should be a tensor .*got object; convert",
    ),
    (
        lambda: weights.from_keras([np.array([None]), zeros(5, 15)]),
        TypeError,
        "kernel should be .*got ndarray; convert",
    ),
    (
        lambda: weights.from_keras([zeros(3, 15, dtype=torch.int8), zeros(5, 15)]),
        ValueError,
        "kernel .*got torch.int8;",
    ),
    (lambda: weights.from_keras([zeros(3, 15).to_sparse(), zeros(5, 15)]), RuntimeError, "kernel should be a dense"),
    (
        lambda: weights.from_keras([zeros(3, 15), zeros(5, 15).double()]),
        ValueError,
        "recurrent_kernel should have the dtype of kernel, torch.float32, got torch.float64; convert",
    ),
    (
        lambda: weights.from_keras([zeros(3, 15), zeros(5, 15).to("meta")]),
        ValueError,
        "recurrent_kernel should be on the device of kernel, cpu, got meta; move",
    ),
    (
        lambda: weights.from_onnx(None, zeros(1, 15, 5), linear_before_reset=1),
        TypeError,
        "W should be .*got None; pass",
    ),
    (lambda: weights.from_haste([zeros(3, 15)]), TypeError, "state should be a mapping, got list; pass"),
    (lambda: weights.from_flax(zeros(3)), TypeError, "params should be a mapping, got Tensor; pass"),
    (lambda: weights.to_keras(computed(bias_ih_l0=None)), TypeError, "bias_ih_l0 should be a tensor .*got NoneType"),
    (lambda: weights.to_keras(shrunk()), RuntimeError, "weight_hh_l0 needs 300 bytes, but its storage, .* holds 0"),
]


@pytest.mark.parametrize("case", range(len(REFUSALS)))
def test_what_has_no_equivalent_or_is_wrong_is_refused_in_a_sentence(case):
    call, error, text = REFUSALS[case]
    with pytest.raises(error) as caught:
        call()
    assert re.search(text, str(caught.value)), caught.value
    assert "\n" not in str(caught.value)


def test_what_is_not_refused():
    """Attributes that change nothing, in the spelling of a file or of a person."""
    plain = onnx_call()
    same(onnx_call(hidden_size=5, layout=1, direction=b"forward", activations=[b"Sigmoid", b"tanh"]), plain)
    same(onnx_call(activation_alpha=[], activation_beta=[], linear_before_reset=2), plain)
    same(keras_call(activation=torch.tanh, recurrent_activation=torch.sigmoid), keras_call())

"""nn.GRU as an ONNX graph, run by onnxruntime on a CPU."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from bench.rivals.rival import Unavailable, installed
from bench.rivals.stack import NATIVE

OPSET = 17
NEEDED = ("onnx", "onnxruntime")


def gates_zrh(weight: Tensor) -> Tensor:
    """Reorders the gates from torch's r, z, n to ONNX's z, r, n."""
    r, z, n = weight.detach().chunk(3)
    return torch.cat((z, r, n))


def layer_weights(gru: nn.GRU, layer: int) -> dict[str, Tensor]:
    """W (D, 3H, I), R (D, 3H, H) and B (D, 6H) of one layer."""
    found: dict[str, list[Tensor]] = {"W": [], "R": [], "B": []}
    for back in ("", "_reverse")[: 2 if gru.bidirectional else 1]:
        w_ih, w_hh, b_ih, b_hh = (gates_zrh(getattr(gru, f"{kind}_l{layer}{back}")) for kind in NATIVE)
        for name, value in (("W", w_ih), ("R", w_hh), ("B", torch.cat((b_ih, b_hh)))):
            found[name].append(value)
    return {name: torch.stack(values) for name, values in found.items()}


def model_of(gru: nn.GRU) -> Any:
    """All layers and directions, from x (T, B, I) and h0 (layers * D, B, H) to y (T, B, D * H) and hn, shaped like h0.
    The reset gate is applied after the product (``linear_before_reset``), as in nn.GRU."""
    onnx: Any = importlib.import_module("onnx")
    numpy_helper: Any = importlib.import_module("onnx.numpy_helper")
    node, directions = onnx.helper.make_node, 2 if gru.bidirectional else 1
    weights = {"rows": torch.tensor([0, 0, -1]), "parts": torch.tensor([directions] * gru.num_layers)}
    states = [f"h0_l{layer}" for layer in range(gru.num_layers)]
    nodes, x = [node("Split", ["h0", "parts"], states, axis=0)], "x"
    for layer, state in enumerate(states):
        own = {f"{name}_l{layer}": value for name, value in layer_weights(gru, layer).items()}
        weights |= own
        y = "y" if layer == gru.num_layers - 1 else f"y_l{layer}"
        nodes += [
            node(
                "GRU",
                [x, *own, "", state],
                [f"both_l{layer}", f"hn_l{layer}"],
                hidden_size=gru.hidden_size,
                linear_before_reset=1,
                direction="bidirectional" if gru.bidirectional else "forward",
            ),
            # (T, D, B, H) -> (T, B, D, H) -> (T, B, D * H)
            node("Transpose", [f"both_l{layer}"], [f"beside_l{layer}"], perm=[0, 2, 1, 3]),
            node("Reshape", [f"beside_l{layer}", "rows"], [y]),
        ]
        x = y
    nodes.append(node("Concat", [f"hn_l{layer}" for layer in range(gru.num_layers)], ["hn"], axis=0))

    def value(name: str, *shape: str | int) -> Any:
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    stack, H = gru.num_layers * directions, gru.hidden_size
    graph = onnx.helper.make_graph(
        nodes,
        "gru",
        [value("x", "T", "B", gru.input_size), value("h0", stack, "B", H)],
        [value("y", "T", "B", directions * H), value("hn", stack, "B", H)],
        [numpy_helper.from_array(weight.numpy(), name) for name, weight in weights.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=8)


class OnnxGRU(nn.Module):
    """Called like nn.GRU, without gradients. Inputs are viewed as arrays, not copied."""

    def __init__(self, gru: nn.GRU, threads: int) -> None:
        super().__init__()
        for package in NEEDED:
            if installed(package) is None:
                raise Unavailable(f"{package} is not installed; pip install {package}")
        runtime: Any = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        # Otherwise its threads keep spinning while the other implementations are timed.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        model = model_of(gru).SerializeToString()
        self.session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def forward(self, x: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
        y, hn = self.session.run(None, {"x": x.numpy(), "h0": h0.numpy()})
        return torch.from_numpy(y), torch.from_numpy(hn)

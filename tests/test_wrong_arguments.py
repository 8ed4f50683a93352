"""Whatever a caller passes is refused in a sentence or computed as torch computes it; nothing outside a tensor is
touched, and no process dies. Calls are made by a child (``wrong_arguments.py``), which is started anew where it dies."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import torch

pytest.importorskip("hypothesis")

from hypothesis import Phase, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

CHILD = Path(__file__).with_name("wrong_arguments.py")
SECONDS = 120.0  # for one call, on a crowded machine

SIZES = [0, 1, 2, 5, 2**31, 2**62]  # from 10 on of one value in memory
DTYPES = ["float16", "bfloat16", "float32", "float64", "int64", "int32", "bool", "complex64", "uint8"]
LAYOUTS = ["sparse", "csr", "mkldnn", "quantized", "nested", "jagged"]
OBJECTS = [None, "text", [1.0, 2.0], 3, 1.5, True, {}]
ROWS = [[2, 2, 1], [2, -1], [1, 2, 2], [0, 0, 0], [0], [], [3, 1, 1], [2, 2, 1, 1], [2, 1], [5, 0], [2**62] * 3]
ROWS += [[2**63 - 1, 2], [-(2**63)], [2, 2, 2**40], [-1], [2, 2, 1, -5, 5], [2, 2, 1, 0, 0], [1] * 5]
OFFSETS = [[0, 2, 4, 5], [0, 2, 4], [0], [], [0, 5], [5, 4, 2, 0], [0, 1, 3, 5], [1, 2, 4, 5], [0, 2, 4, 9]]
OFFSETS += [[-1, 2, 4, 5], [0, 2, 2**62, 5], [2**63 - 1, -(2**63), 0, 5], [0, 3, 4, 5], [0, 2, 1, 5], [0, 2, 4, 5, 5]]
INDICES = [[1, 0], [0, 1], [0, 0], [1], [], [2, 1], [0, -1], [1, 0, 1], [2**62, 0], [0, 1, 2]]
INTS = [-1, 0, 1, 2, 3, 5, 2**31, 2**40, 2**62, 2**63, True, 1.5, "2", None, [2]]
FLAGS = [True, False, None, 1, 0, "yes", [], 2.0]
FLOATS = [float("nan"), 2, -0.5, "0.5", None, True, 0.5, 1, float("inf"), []]
CHOICES = ["torch", "triton", "auto", "save", "recompute", "none", "", "Triton", None, 3, ["auto"]]
NEEDS = [[True] * 5, [True] * 7, [], None, "abcdef", [1] * 6, [False] * 6, [True, False] * 3, [None] * 6]

TENSOR = st.one_of(
    st.tuples(st.just("size"), st.integers(-3, 2), st.sampled_from(SIZES)),
    st.tuples(st.just("rank"), st.sampled_from(["more", "last", "less", "flat", "none", "five"])),
    st.tuples(st.just("dtype"), st.sampled_from(DTYPES)),
    st.tuples(
        st.just("strides"), st.sampled_from(["transposed", "step", "offset", "swapped", "negated", "0", "1", "-1"])
    ),
    st.sampled_from([("meta",), ("freed",), ("cut",), ("grad",)]),
    st.tuples(st.just("layout"), st.sampled_from(LAYOUTS)),
    st.tuples(st.just("value"), st.sampled_from(OBJECTS)),
)


def values(some):
    return st.tuples(st.just("value"), st.sampled_from(some))


def rows(some):
    return st.one_of(st.tuples(st.just("int64"), st.sampled_from(some)), TENSOR)


KINDS = {
    "tensor": TENSOR,
    "weights": st.one_of(
        st.tuples(st.just("count"), st.sampled_from([-4, -2, -1, 0, 1, 2, 4])),
        st.tuples(st.just("holder"), st.sampled_from(["tuple", "set", "iterator", "first"])),
        values(OBJECTS),
    ),
    "rows": rows(ROWS),
    "offsets": rows(OFFSETS),
    "indices": rows(INDICES),
    "int": values(INTS),
    "layers": values([n for n in INTS if n not in (2**31, 2**40, 2**62, 2**63)]),  # torch would begin to make them
    "flag": values(FLAGS),
    "float": values(FLOATS),
    "choice": values(CHOICES),
    "needs": values(NEEDS),
}
OPERATORS = ("gru_forward", "gru_backward", "gru_routed_forward", "gru_routed_backward")
# How many calls of each: as many as find every check that is taken out (see the end of this file's story in the brief).
EXAMPLES = {"gru": 400, "GRU": 300, "GRUCell": 100, "warmup": 60} | dict.fromkeys(OPERATORS, 200)


def kinds_of(base):
    """What may be changed of a call, by name: the kind of argument that it is."""
    target, each = base["target"], 4 if base["bias"] else 2
    names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"][:each]
    packed = base["packed"]
    if target == "gru":
        found = {"input": "tensor", "hx": "tensor", "weights": "weights", "num_layers": "int", "dropout": "float"}
        found |= {f"weights.{k}": "tensor" for k in range(base["layers"] * base["directions"] * each)}
        found |= dict.fromkeys(("bias", "batch_first", "training", "bidirectional"), "flag")
        return found | {"impl": "choice", "memory": "choice", "batch_sizes": "rows"}
    if target in OPERATORS:
        tensors = ["x", "w_ih", "w_hh", "b_ih", "b_hh", "h0"]
        tensors += ["dy", "dhn", "y", "kept" if "routed" in target else "gates"] if "backward" in target else []
        found = dict.fromkeys(tensors, "tensor") | {"batch": "int"}
        if "routed" in target:
            found |= {"impl": "choice"} | ({"memory": "choice", "layers": "int"} if "forward" in target else {})
        else:
            found |= {"offsets": "offsets"} | ({"save_gates": "flag"} if "forward" in target else {})
        return found | ({"needs": "needs"} if "backward" in target else {})
    found = {"init.input_size": "int", "init.hidden_size": "int", "init.bias": "flag"}
    if target == "GRUCell":
        found |= {f"self.{name}": "tensor" for name in names} | {"self.hidden_size": "int", "self.input_size": "int"}
        return found | {"input": "tensor", "hx": "tensor"}
    found |= {"init.num_layers": "layers", "init.batch_first": "flag", "init.dropout": "float"}
    found |= {"init.bidirectional": "flag", "init.impl": "choice", "init.memory": "choice"}
    found |= dict.fromkeys(("self.input_size", "self.hidden_size", "self.num_layers"), "int")
    found |= dict.fromkeys(("self.bias", "self.batch_first", "self.bidirectional"), "flag")
    found |= {"self.dropout": "float", "self.impl": "choice", "self.memory": "choice"}
    for layer in range(base["layers"]):
        for suffix in ("", "_reverse")[: base["directions"]]:
            found |= {f"self.{name}_l{layer}{suffix}": "tensor" for name in names}
    if target == "warmup":
        return found | {"batch": "int", "time": "int", "packed": "flag"}
    found |= {"input": "tensor", "hx": "tensor"}
    indices = {"batch_sizes": "rows", "sorted_indices": "indices", "unsorted_indices": "indices"}
    return found | (indices if packed else {})


@st.composite
def calls(draw, target):
    of_gru = target in ("gru", "GRU", "warmup")
    base = {
        "target": target,
        "impl": draw(st.sampled_from(["triton", "torch", "auto"])),
        "layers": draw(st.integers(1, 2)) if of_gru else 1,
        "directions": draw(st.integers(1, 2)),
        "packed": draw(st.booleans()),
        "batch_first": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "hx": draw(st.booleans()),
        "dropout": draw(st.sampled_from([0.0, 0.0, 0.5])) if of_gru else 0.0,
        "dtype": draw(st.sampled_from(["float32", "float32", "float64", "bfloat16"])),
        "memory": draw(st.sampled_from(["save", "recompute"])),
        "grad": draw(st.booleans()),
        "front": draw(st.booleans()),  # whether tensors lie behind the page that may not be touched, or before it
    }
    kinds = kinds_of(base)
    groups = {}
    for name in kinds:
        groups.setdefault(re.sub(r"\d.*", "", name), []).append(name)  # the weights of a kind are one choice
    changes = []
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        name = draw(st.sampled_from(draw(st.sampled_from([*groups.values()]))))
        changes.append([name, *draw(KINDS[kinds[name]])])
    return base | {"changes": changes}


class Child:
    """The process that makes the calls."""

    def __init__(self):
        self.process = None
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115

    def start(self):
        self.errors.truncate(0)
        self.errors.seek(0)
        environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        self.process = subprocess.Popen([sys.executable, CHILD], text=True, env=environment, **pipes)

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdin.close()
            self.process.stdout.close()
            self.process = None

    def ask(self, text):
        """How a call ended and what was wrong about it."""
        if self.process is None:
            self.start()
        late = threading.Timer(SECONDS, self.process.kill)
        late.start()
        try:
            self.process.stdin.write(text + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer and late.is_alive():
            late.cancel()
            return json.loads(answer)
        code = self.process.wait()
        took_long = not late.is_alive()
        late.cancel()
        self.stop()
        if took_long:
            return f"no answer in {SECONDS} s", "the call did not end"
        name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        self.errors.seek(0)
        return f"the process died: {name}", self.errors.read()[-3000:] or "died"


@pytest.fixture(scope="module")
def child():
    child = Child()
    yield child
    child.stop()
    child.errors.close()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the child's kernels run in the interpreter")
@pytest.mark.parametrize("target", EXAMPLES)
def test_wrong_arguments(target, child):
    @settings(
        max_examples=EXAMPLES[target],
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
    )
    @given(calls(target))
    def check(call):
        text = json.dumps(call)
        end, wrong = child.ask(text)
        assert not wrong, f"{end}\n{wrong}\nagain: TRITON_INTERPRET=1 python tests/wrong_arguments.py '{text}'"

    check()

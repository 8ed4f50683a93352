"""Whatever a caller passes is refused in a sentence or computed as torch computes it; nothing outside a tensor is
touched, and no process dies. A child makes the calls (``wrong_arguments.py``) and is started anew where it dies."""

import itertools
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

from cpu_loop import HAS_LOOP, needs_loop
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

CHILD = Path(__file__).parents[1] / "support" / "wrong_arguments.py"
SECONDS = 120.0  # for one call, on a crowded machine

SIZES = [0, 1, 2, 5, 2**31, 2**62]  # from 10 on of one value in memory
DTYPES = ["float16", "bfloat16", "float32", "float64", "int64", "int32", "bool", "complex64", "uint8"]
LAYOUTS = ["sparse", "csr", "mkldnn", "quantized", "nested", "jagged"]
OBJECTS = [None, "text", [1.0, 2.0], 3, 1.5, True, {}]
ROWS = [
    [2, 1],
    [2, -1],
    [1, 2],
    [0, 0, 0],
    [0],
    [],
    [3],
    [2, 1, 1],
    [2],
    [2, 2],
    [3, 0],
    [2**62] * 3,
    [2**62, -(2**62)],
]
ROWS += [[2**63 - 1, 2], [-(2**63)], [2, 2**40], [-1], [2, 1, -5, 5], [2, 1, 0, 0], [1] * 3, [2**63 - 1, 2**63 - 1, 5]]
OFFSETS = [[0, 2, 3], [0, 2], [0], [], [0, 3], [3, 2, 0], [0, 1, 3], [1, 2, 3], [0, 2, 9], [-1, 2, 3], [0, 2, 2**62, 3]]
OFFSETS += [[2**63 - 1, -(2**63), 0, 3], [0, 2, 1, 3], [0, 2, 3, 3], [0, 1, 2, 3], [0, 2**40, 3]]
INDICES = [[1, 0], [0, 1], [0, 0], [1], [], [2, 1], [0, -1], [1, 0, 1], [2**62, 0], [0, 1, 2]]
INTS = [-1, 0, 1, 2, 3, 5, 2**31, 2**40, 2**62, 2**63, True, 1.5, "2", None, [2]]
FLAGS = [True, False, None, 1, 0, "yes", [], 2.0]
FLOATS = [float("nan"), 2, -0.5, "0.5", None, True, 0.5, 1, float("inf"), []]
CHOICES = ["torch", "triton", "llvm", "auto", "save", "recompute", "none", "", "Triton", None, 3, ["auto"]]
NEEDS = [[True] * 6, [True] * 8, [], None, "abcdefg", [1] * 7, [False] * 7, [True, False] * 3 + [True], [None] * 7]
LENGTHS = [[2, 1], [0, 0], [2, 2], [0, 2], [-1, 1], [3, 1], [2**30, 1], [-(2**31), 0], [1], [1, 1, 1], [], [[1, 1]]]
LONG = [[2**62, 1], [1, -(2**62)], [2**63 - 1, -(2**63)]]


def each(kind, *choices):
    return [[kind, *choice] for choice in itertools.product(*choices)]


TENSOR = [
    *each("size", [0, 1, -1], SIZES),
    *each("rank", ["more", "last", "less", "flat", "none", "five"]),
    *each("dtype", DTYPES),
    *each("strides", ["transposed", "step", "offset", "swapped", "negated", "0", "1", "-1"]),
    *[["meta"], ["freed"], ["cut"], ["grad"]] * 3,
    *each("layout", LAYOUTS),
    *each("value", OBJECTS),
]
ELSEWHERE = each("strides", ["step", "0", "offset"])
KINDS = {
    "tensor": TENSOR,
    "weights": [
        *each("count", [-4, -2, -1, 0, 1, 2, 4]),
        *each("holder", ["tuple", "set", "iterator", "first"]),
        *each("value", OBJECTS),
    ],
    "rows": each("int64", ROWS) * 2 + ELSEWHERE * 4 + TENSOR,
    "offsets": each("int64", OFFSETS) * 2 + ELSEWHERE * 4 + TENSOR,
    "lengths": each("int64", LENGTHS + LONG) * 2 + each("int32", LENGTHS) + ELSEWHERE * 4 + TENSOR,
    "indices": each("int64", INDICES) * 2 + ELSEWHERE * 4 + TENSOR,
    "int": each("value", INTS),
    "layers": each(
        "value", [n for n in INTS if n not in (2**31, 2**40, 2**62, 2**63)]
    ),  # torch would begin to make them
    "flag": each("value", FLAGS),
    "float": each("value", FLOATS),
    "choice": each("value", CHOICES),
    "needs": each("value", NEEDS),
}
# Those that are made of every tensor by itself.
FEW = [
    *each("size", [0, -1], [0, 1, 2, 5, 2**31]),
    *each("rank", ["more", "less", "none"]),
    *each("dtype", ["bfloat16", "float64", "int64", "complex64"]),
    *each("strides", ["step", "offset", "0"]),
    *[["meta"], ["freed"], ["cut"], ["layout", "sparse"], ["value", None], ["value", "text"]],
]
EACH = {
    "tensor": FEW,
    "flag": each("value", [None, 1, "yes"]),
    "rows": each("int64", ROWS) + FEW,
    "offsets": each("int64", OFFSETS) + FEW,
    "lengths": each("int64", LENGTHS + LONG) + each("int32", LENGTHS) + FEW,
    "indices": each("int64", INDICES) + FEW,
}
OPERATORS = ("gru_forward", "gru_backward", "gru_routed_forward", "gru_routed_backward")
# How many calls of each with up to three changes.
EXAMPLES = {"gru": 120, "GRU": 150, "GRUCell": 50, "warmup": 20} | dict.fromkeys(OPERATORS, 60)
PLAIN = {"layers": 1, "directions": 1, "batch_first": False, "bias": True, "hx": True, "dropout": 0.0}
PLAIN |= {"dtype": "float32", "memory": "save", "grad": False, "front": False, "ragged": False}
# The valid calls of which every argument is changed by itself.
BASES = [{"target": "gru", "impl": impl, "packed": packed} for impl in ("triton", "torch") for packed in (False, True)]
BASES += [{"target": "gru", "impl": "torch", "packed": True, "bias": False, "hx": False}]
BASES += [{"target": "gru", "impl": "triton", "packed": True, "hx": False}]
BASES += [{"target": "GRU", "impl": impl, "packed": True} for impl in ("triton", "torch")]
BASES += [{"target": target, "impl": "triton", "packed": True} for target in ("GRUCell", "warmup", *OPERATORS[:2])]
BASES += [{"target": target, "impl": "torch", "packed": False} for target in OPERATORS[2:]]
RAGGED = {"packed": False, "ragged": True, "directions": 2}
BASES += [{"target": "gru", "impl": "triton", "layers": 2} | RAGGED]
BASES += [{"target": "GRU", "impl": "torch", "batch_first": True} | RAGGED]
BASES += [{"target": "gru", "impl": "torch", "layers": 2} | RAGGED]
BASES += [{"target": "gru_forward", "impl": "triton"} | RAGGED]
BASES += [{"target": "gru_routed_backward", "impl": "torch"} | RAGGED]
LOOP_BASES = [{"target": target, "packed": packed} for target in ("gru", *OPERATORS[:2]) for packed in (False, True)]
LOOP_BASES += [{"target": "gru", "packed": True, "hx": False, "front": True, "grad": True}]
LOOP_BASES += [{"target": "GRU", "packed": packed, "grad": packed} for packed in (False, True)]
LOOP_BASES += [{"target": target, "packed": False} for target in ("warmup", *OPERATORS[2:])]
LOOP_BASES += [{"target": target, "grad": target == "gru"} | RAGGED for target in ("gru", "GRU", *OPERATORS)]
LOOP_BASES = [{"impl": "llvm"} | base for base in LOOP_BASES] + [{"target": "GRU", "impl": "auto", "packed": False}]


OF_RAGGED = {"lengths": "lengths", "resets": "tensor", "reset_state": "tensor"}


def kinds_of(base):
    """What may be changed of a call, by name: the kind of argument that it is."""
    target, each = base["target"], 4 if base["bias"] else 2
    names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"][:each]
    packed = base["packed"]
    if target == "gru":
        found = {"input": "tensor", "hx": "tensor", "weights": "weights", "num_layers": "int", "dropout": "float"}
        found |= {f"weights.{k}": "tensor" for k in range(base["layers"] * base["directions"] * each)}
        found |= dict.fromkeys(("bias", "batch_first", "training", "bidirectional"), "flag")
        found |= {"impl": "choice", "memory": "choice", "batch_sizes": "rows"}
        return found | (OF_RAGGED if base["ragged"] else {})
    if target in OPERATORS:
        tensors = ["x", "w_ih", "w_hh", "b_ih", "b_hh", "h0"]
        tensors += ["dy", "dhn", "y", "kept" if "routed" in target else "gates"] if "backward" in target else []
        found = dict.fromkeys(tensors, "tensor") | {"batch": "int"} | (OF_RAGGED if base["ragged"] else {})
        if "routed" in target:
            found |= {"impl": "choice"} | ({"memory": "choice", "layers": "int"} if "forward" in target else {})
        else:
            found |= {"offsets": "offsets", "family": "choice"} | (
                {"save_gates": "flag"} if "forward" in target else {}
            )
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
    found |= {"input": "tensor", "hx": "tensor"} | (OF_RAGGED if base["ragged"] else {})
    indices = {"batch_sizes": "rows", "sorted_indices": "indices", "unsorted_indices": "indices"}
    return found | (indices if packed else {})


LOOP = ["llvm"] if HAS_LOOP else []


@st.composite
def calls(draw, target):
    of_gru = target in ("gru", "GRU", "warmup")
    base = {
        "target": target,
        "impl": draw(st.sampled_from(["triton", "torch", *LOOP, *([] if target in OPERATORS else ["triton", "auto"])])),
        "layers": draw(st.integers(1, 2)) if of_gru else 1,
        "directions": draw(st.integers(1, 2)),
        "packed": draw(st.booleans()),
        "ragged": target not in ("GRUCell", "warmup") and draw(st.booleans()),
        "batch_first": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "hx": draw(st.booleans()),
        "dropout": draw(st.sampled_from([0.0, 0.0, 0.5])) if of_gru else 0.0,
        "memory": draw(st.sampled_from(["save", "recompute"])),
        "grad": draw(st.booleans()),
        "front": draw(st.booleans()),  # whether tensors lie behind the page that may not be touched, or before it
    }
    kernels = base["impl"] == "triton" or target in OPERATORS
    base["dtype"] = draw(st.sampled_from(["float32", "bfloat16" if kernels else "float64"]))
    kinds = kinds_of(base)
    groups = {}
    for name in kinds:
        groups.setdefault(re.sub(r"\d.*", "", name), []).append(name)  # the weights of a kind are one choice
    common = ("tensor", "rows", "offsets", "weights", "lengths")
    often = [names for names in groups.values() if kinds[names[0]] in common]
    choices = [*groups.values(), *often, *often]
    changes = []
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        name = draw(st.sampled_from(draw(st.sampled_from(choices))))
        changes.append([name, *draw(st.sampled_from(KINDS[kinds[name]]))])
    return base | {"changes": changes}


class Child:
    """The process that makes the calls."""

    def __init__(self):
        self.process = None
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115

    def start(self):
        self.errors.truncate(0)
        self.errors.seek(0)
        environment = os.environ | {
            "TRITON_INTERPRET": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(CHILD.parents[2]),
        }
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


pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the child's kernels run in the interpreter")


def failure(child, call):
    text = json.dumps(call)
    end, wrong = child.ask(text)
    return wrong and f"{end}\n{wrong}\nagain: TRITON_INTERPRET=1 python tests/support/wrong_arguments.py '{text}'"


def check_one_wrong_argument(base, child):
    base = PLAIN | base
    kinds = kinds_of(base)
    if base["target"] in ("GRU", "warmup"):  # attributes are left to the other test
        kinds = {name: kind for name, kind in kinds.items() if "." not in name}
    changes = [[name, *how] for name, kind in kinds.items() for how in EACH.get(kind, KINDS[kind])]
    failures = [wrong for change in changes if (wrong := failure(child, base | {"changes": [change]}))]
    assert not failures, f"{len(failures)} of {len(changes)} calls:\n" + "\n\n".join(failures[:5])


def name_of(base):
    return "-".join(map(str, base.values()))


@pytest.mark.every(3)
@pytest.mark.parametrize("base", BASES, ids=name_of)
def test_one_wrong_argument(base, child):
    check_one_wrong_argument(base, child)


@needs_loop
@pytest.mark.every(2)
@pytest.mark.parametrize("base", LOOP_BASES, ids=name_of)
def test_one_wrong_argument_of_the_loop(base, child):
    check_one_wrong_argument(base, child)


@pytest.mark.slow
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
        wrong = failure(child, call)
        assert not wrong, wrong

    check()

"""The kernel of a single time step: in the interpreter against the oracle, and as it compiles for each chip."""

import dataclasses
import json

import pytest
import torch
from processes import python
from tolerance import assert_close_to_float64

from tritongru import reference
from tritongru.kernels.single_step import launch as single
from tritongru.planning.devices import GPUS
from tritongru.planning.triton_versions import installed, minor_of

NAN = float("nan")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="shapes and dtypes for the interpreter")
compiles = pytest.mark.skipif(installed() is None, reason="needs Triton, which is not installed")


@dataclasses.dataclass
class Layer:
    """Operands of a step, exact in the dtype, in the order of `single.step`."""

    x: torch.Tensor
    h: torch.Tensor | None
    reset: torch.Tensor | None
    w_ih: torch.Tensor
    w_hh: torch.Tensor
    b_ih: torch.Tensor | None
    b_hh: torch.Tensor | None

    @property
    def operands(self):
        return [getattr(self, field.name) for field in dataclasses.fields(self)]


def layer(B=3, I=5, H=33, dtype=torch.float32, bias=True, use_h=True, reset=False):
    torch.manual_seed(0)

    def some(*shape, scale=0.5):
        return (torch.randn(shape) * scale).to(dtype)

    weights = [some(3 * H, width, scale=width**-0.5) for width in (I, H)]
    biases = [some(3 * H), some(3 * H)] if bias else [None, None]
    rows = torch.arange(B) % 3 == 0 if reset else None
    return Layer(some(B, I), some(B, H) if use_h else None, rows, *weights, *biases)


def run(own, use_y=True):
    """hn; it and y are NaN before, and so is what lies behind them in memory."""
    B, H = own.x.shape[0], own.w_hh.shape[1]
    buffers = torch.full((2, 2 * B * H), NAN, dtype=own.x.dtype)
    y, hn = (buffer[: B * H].view(B, H) for buffer in buffers)
    before = [None if v is None else v.clone() for v in own.operands]
    single.step(*own.operands, y if use_y else None, hn)
    for value, old in zip(own.operands, before, strict=True):
        assert value is None or torch.equal(value.nan_to_num(9.0), old.nan_to_num(9.0)), "an operand was written to"
    assert buffers[:, B * H :].isnan().all()
    assert torch.equal(y, hn) if use_y else y.isnan().all()
    return hn


def expected(own, dtype):
    def cast(value):
        return None if value is None else value.to(dtype)

    h = own.x.new_zeros(len(own.x), own.w_hh.shape[1]) if own.h is None else own.h
    if own.reset is not None:
        h = torch.where(own.reset[:, None], torch.zeros_like(h), h)
    others = map(cast, (h, own.w_ih, own.w_hh, own.b_ih, own.b_hh))
    return reference.forward(cast(own.x)[None], *others)[1]


def check(found, own, what):
    assert_close_to_float64(found, expected(own, torch.float64), expected(own, own.x.dtype), what)


SIZES = {
    "odd sizes": {},
    "one of each": {"B": 1, "I": 1, "H": 1},
    "two narrow tiles": {"B": 20, "I": 40, "H": 70},
    "two wide tiles": {"B": 70, "I": 40, "H": 33},
    "many blocks of a narrow tile": {"B": 1, "I": 300, "H": 290},
    "many blocks of a wide tile": {"B": 33, "I": 140, "H": 150},
    "no bias": {"bias": False},
    "zeros as h": {"use_h": False},
    "resets": {"B": 20, "I": 1, "H": 70, "reset": True},
    "resets in wide tiles": {"B": 70, "H": 20, "reset": True},
    "resets of no state": {"use_h": False, "reset": True},
}


@interpreted
@pytest.mark.usefixtures("ieee")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SIZES)
def test_against_the_oracle(sizes, dtype):
    own = layer(**SIZES[sizes], dtype=dtype)
    check(run(own), own, sizes)


@interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_state_of_a_reset_row_may_be_nan(dtype):
    own = layer(B=20, I=40, H=70, dtype=dtype, reset=True)
    clean = run(own)
    own.h[own.reset] = NAN
    assert torch.equal(run(own), clean)


@interpreted
@pytest.mark.parametrize("B", [20, 70, 520])
@pytest.mark.usefixtures("ieee")
def test_every_form(B):
    own = layer(B=B, I=5, H=40, reset=True)
    check(run(own), own, single.form_of(B, torch.float32, own.x.device).name)


@interpreted
def test_in_tf32(monkeypatch):
    monkeypatch.setattr(single, "kind", lambda dtype: "tf32")
    own = layer(B=3, I=40, H=33)
    check(run(own), own, "in TF32")


@interpreted
def test_without_y():
    own = layer(reset=True)
    assert torch.equal(run(own, use_y=False), run(own))


@interpreted
def test_a_row_is_the_same_alone_and_among_others():
    """Also past the border between two tiles."""
    own = layer(B=20, I=40, H=33, reset=True)
    found = run(own)
    for b in (0, 15, 16, 19):
        rows = {name: getattr(own, name)[b : b + 1] for name in ("x", "h", "reset")}
        assert torch.equal(run(dataclasses.replace(own, **rows)), found[b : b + 1])


@interpreted
def test_steps_are_a_sequence():
    own = layer(B=3, I=5, H=33)
    xs, states = torch.randn(4, 3, 5), [own.h]
    for x in xs:
        states.append(run(dataclasses.replace(own, x=x, h=states[-1])))
    exact = [v.double() for v in (xs, own.h, own.w_ih, own.w_hh, own.b_ih, own.b_hh)]
    same = reference.forward(xs, *own.operands[1:2], *own.operands[3:])[0]
    assert_close_to_float64(torch.stack(states[1:]), reference.forward(*exact)[0], same, "four steps")


CHIPS = ("sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "gfx942")


@pytest.mark.parametrize("has_fences", [True, False])
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("kind", single.FORMS)
def test_forms_grow_with_the_batch(kind, chip, has_fences, monkeypatch):
    forms = single.forms_of(kind, chip, has_fences)
    limits = [form.largest for form in forms]
    assert limits[-1] is None
    assert limits[:-1] == sorted(limits[:-1])
    assert [form.block_b for form in forms] == sorted(form.block_b for form in forms)
    monkeypatch.setattr(single, "kind", lambda dtype: kind)
    monkeypatch.setattr(single, "forms_of", lambda *where: forms)
    where = torch.float16, torch.device("cpu")
    for form in forms[:-1]:
        assert single.form_of(form.largest, *where) == form
        assert single.form_of(form.largest + 1, *where) != form


def test_without_fences_no_tile_is_one_of_warp_groups():
    """On the chips that have such products; they take tiles of 64 rows or more, in one part."""
    for kind in ("16-bit", "tf32"):
        for chip in ("sm_90", "sm_100"):
            forms = single.forms_of(kind, chip, has_fences=False)
            assert all(form.block_b < 64 or form.k_split > 1 for form in forms)
            assert any(form.block_b >= 64 and form.k_split == 1 for form in single.forms_of(kind, chip, True))
        for chip in {*CHIPS} - {"sm_90", "sm_100"}:
            assert single.forms_of(kind, chip, False) == single.FORMS[kind]
    assert single.forms_of("ieee", "sm_90", False) == single.FORMS["ieee"]
    assert (minor_of(installed()) >= (3, 7)) == single.HAS_FENCES


COMPILE = """
import dataclasses, json, sys
from bench.compile import machine_code
from tritongru.kernels.single_step import launch as single
from tritongru.kernels.single_step.kernel import single_step_kernel

machine_code.POINTERS["reset"] = "*i1"
arch, sizes, kinds = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
for kind in kinds:
    for form in single.forms_of(kind, arch):
        for I, H in sizes:
            backend = machine_code.TARGETS[arch][0]
            flags = dict.fromkeys(("USE_H", "USE_RESET", "USE_BIAS", "USE_Y"), True) | {"UPCAST": False}
            constants = flags | single.constants(form, kind, I, H, backend)
            dtype = machine_code.dtype_of(kind)
            facts = machine_code.compile_for(single_step_kernel, constants, dtype, form.num_warps, arch)
            print(json.dumps({"form": form.name, "kind": kind, "I": I, "H": H, **dataclasses.asdict(facts)}))
"""
ODD = [[512, 512], [17, 33], [40, 70], [5, 1030]]


@compiles
@pytest.mark.parametrize(
    "arch, kinds, sizes",
    [
        ("sm_90", ["16-bit"], [[512, 512]]),
        *(
            pytest.param(arch, ["16-bit", "tf32", "ieee"], ODD, marks=pytest.mark.slow)
            for arch in ("sm_80", "sm_90", "sm_120", "gfx942")
        ),
    ],
    ids=str,
)
def test_every_form_compiles_without_spilling(arch, kinds, sizes):
    done = python("-c", COMPILE, arch, json.dumps(sizes), json.dumps(kinds))
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == sum(len(single.forms_of(kind, arch)) for kind in kinds) * len(sizes)
    most = min(gpu.shared_bytes for gpu in GPUS.values() if gpu.family == arch)
    for line in lines:
        assert line["stack"] == 0, line
        assert line["shared_bytes"] <= most, line
        assert line["faults"] == [], line

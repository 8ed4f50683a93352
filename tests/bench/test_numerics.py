"""The emulation of rounding: without rounding it is the oracle, with it the kernels, and the page is its rows."""

import dataclasses
import itertools
import json
import math

import pytest
import torch
from processes import ROOT, python

import tritongru
from bench.__main__ import main
from bench.pages import numerics as numerics_page
from bench.study import numerics
from bench.study.numerics import (
    AS_IT_IS,
    CUT_OFF,
    FORMATS,
    GATES,
    LENGTHS,
    NOWHERE,
    OURS,
    RECOMPUTE,
    STATE,
    STORAGE,
    TORCH,
)
from tritongru import reference
from tritongru.reference import Gates

FOLDER = ROOT / "bench" / "results" / "numerics"
DTYPES = list(STORAGE)


def emulated(rounding, layer):
    y, hn, gates = numerics.forward(rounding, layer)
    found, dgh = numerics.backward(rounding, layer, y, gates)
    return y, hn, gates, found, dgh


# Rounding


def by_arithmetic(x, up):
    """TF32 by another way: scale the mantissa to a whole number, add 1/2 or nothing and drop the rest, in float64."""
    mantissa, exponent = torch.frexp(x.double())
    whole = torch.floor(mantissa.abs() * 2**11 + up) * x.sign()
    return torch.ldexp(whole, exponent - 11).float()


@pytest.mark.parametrize(
    "bits, rounded, cut_off",
    [
        (0x3F800000, 0x3F800000, 0x3F800000),  # 1
        (0x3F800FFF, 0x3F800000, 0x3F800000),  # below the half
        (0x3F801000, 0x3F802000, 0x3F800000),  # the half, away from zero
        (0xBF801000, 0xBF802000, 0xBF800000),
        (0x3F801001, 0x3F802000, 0x3F800000),  # above it
        (0xBF803000, 0xBF804000, 0xBF802000),
        (0x3FFFF000, 0x40000000, 0x3FFFE000),  # into the next exponent
        (0x80000000, 0x80000000, 0x80000000),  # -0
        (0x00001000, 0x00002000, 0x00000000),  # subnormal, the half
        (0x7F7FFFFF, 0x7F800000, 0x7F7FE000),  # the largest number overflows
        (0x7F800000, 0x7F800000, 0x7F800000),
        (0xFF800000, 0xFF800000, 0xFF800000),
        (0x7F800001, 0x7F800001, 0x7F800001),  # a NaN whose bits would become those of infinity
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
    ],
)
def test_tf32_of_bits(bits, rounded, cut_off):
    x = torch.tensor([bits], dtype=torch.int64).to(torch.int32).view(torch.float32)
    assert numerics.to_tf32(x).view(torch.int32).item() & 0xFFFFFFFF == rounded
    assert numerics.cut_to_tf32(x).view(torch.int32).item() & 0xFFFFFFFF == cut_off


@pytest.mark.parametrize("to_tf32, up", [(numerics.to_tf32, 0.5), (numerics.cut_to_tf32, 0)])
def test_tf32_by_arithmetic(to_tf32, up):
    torch.manual_seed(0)
    x = torch.randn(100_000) * torch.exp(10 * torch.randn(100_000))
    x = torch.cat((x, x.half().float() + 2**-12 * x.half().float()))  # near ties, too
    found = to_tf32(x)
    assert torch.equal(found, by_arithmetic(x, up))
    assert torch.equal(to_tf32(found), found)


@pytest.mark.parametrize("round_, dtype", [(numerics.to_fp16, torch.float16), (numerics.to_bf16, torch.bfloat16)])
def test_16_bit_values_stay_and_ties_go_to_even(round_, dtype):
    eps = torch.finfo(dtype).eps
    x = torch.tensor([1 + eps, 1 + eps / 2, 1 + 1.5 * eps, -math.inf, math.nan])
    expected = torch.tensor([1 + eps, 1, 1 + 2 * eps, -math.inf, math.nan])
    assert round_(x).dtype == torch.float32
    torch.testing.assert_close(round_(x), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("round_, dtype", [(numerics.to_fp16, torch.float16), (numerics.to_bf16, torch.bfloat16)])
def test_a_saved_z_keeps_the_digits_of_its_complement(round_, dtype):
    half = torch.finfo(dtype).eps / 2
    z = torch.cat((torch.linspace(2**-13, 1, 100_000), 1 - 2.0 ** -torch.arange(1, 25)))
    kept = numerics.kept(round_)(z)
    assert kept[z == 1].tolist() == [1]
    for exact, found in ((z, kept), (1 - z, 1 - kept)):
        assert ((found - exact).abs() <= half * exact).all()
    assert torch.equal(numerics.kept(numerics.keep)(z), z)
    assert numerics.kept(round_)(torch.tensor(math.nan)).isnan()
    as_it_is = round_(1 - half / torch.tensor([2, 4]))  # the first unit remembers for 4 / eps steps
    assert as_it_is.tolist() == [1, 1]
    assert round_(torch.tensor(1 - 0.6 * half)) < 1


def test_products_have_the_error_of_their_operands():
    torch.manual_seed(0)
    a, b = torch.randn(64, 8), torch.randn(8, 64)
    exact = a.double() @ b.double()
    for product, least, most in (
        (numerics.plain, 0, 2**-23),
        (numerics.three_tf32, 0, 2**-22),
        (numerics.one_tf32, 2**-13, 2**-11),
        (numerics.one_cut_tf32, 2**-11, 2**-10),
    ):
        assert least <= numerics.relative(product(b)(a), exact) <= most, product


# The emulation


@pytest.mark.parametrize("weights", ["default", "long"])
def test_without_rounding_it_is_the_oracle(weights):
    layer = numerics.layer_of(weights, torch.float32, 0, 6, hidden=5)
    x, h0, w_ih, w_hh, _, _, dy = layer
    y, hn, gates, found, dgh = emulated(NOWHERE, layer)
    expected = reference.forward(*layer[:6])
    gradients = reference.backward(dy, torch.zeros_like(hn), x, h0, w_ih, w_hh, expected[0], expected[2])
    for name, a, b in (
        ("y", y, expected[0]),
        ("hn", hn, expected[1]),
        *zip(gates._fields, gates, expected[2], strict=True),
        *zip(found._fields[:6], found[:6], gradients[:6], strict=True),
        ("dgh", dgh.flatten(2).sum((0, 1)), gradients.b_hh),
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")


def test_a_part_of_the_sequence_is_the_sequence_of_that_length():
    rounding, layer = (
        FORMATS["fp16"][OURS],
        numerics.layer_of("default", torch.float16, 0, 6, hidden=5).to(torch.float32),
    )
    y, _, gates = numerics.forward(rounding, layer)
    part, _ = numerics.gradients_of(rounding, layer, y, gates, 4)
    whole = emulated(rounding, numerics.cut(layer, 4))[3]
    for a, b in zip(part[:6], whole[:6], strict=True):
        assert torch.equal(a, b)


@pytest.mark.usefixtures("ieee")
@pytest.mark.parametrize("weights", ["default", "long"])
@pytest.mark.parametrize("form", DTYPES)
@pytest.mark.parametrize("memory", ["save", "recompute"])
def test_it_rounds_as_the_kernels_do(memory, form, weights, device):
    """What is left between the two is small beside the error that both make: in fp16 a rare last bit, in fp32 the last
    bits of the gates."""
    if form == "bf16" and device.type == "cpu":
        pytest.skip("the interpreter cuts fp32 off where a GPU rounds it to bfloat16")
    dtype = STORAGE[form]
    exact = numerics.layer_of(weights, dtype, 0, 4, hidden=32)
    gru = tritongru.GRU(32, 32, dtype=dtype, impl="triton", memory=memory).to(device)
    for parameter, value in zip(gru.parameters(), exact[2:6], strict=True):
        parameter.data.copy_(value)
    x, h0 = (value.to(device, dtype).requires_grad_() for value in exact[:2])
    y, hn = gru(x, h0[None])
    gradients = torch.autograd.grad(y, (x, h0, *gru.parameters()), exact.dy.to(device, dtype))
    true_y, true_hn, _, true, _ = emulated(NOWHERE, exact)
    rounding = dataclasses.replace(FORMATS[form][OURS], recompute=memory == "recompute")
    found_y, found_hn, _, found, _ = emulated(rounding, exact.to(torch.float32))
    most = 0.15 if form == "fp16" and device.type == "cpu" else 3
    for name, kernel, emulation, truth in (
        ("y", y, found_y, true_y),
        ("hn", hn[0], found_hn, true_hn),
        *zip(found._fields[:6], gradients, found[:6], true[:6], strict=True),
    ):
        kernel = kernel.detach().cpu().float()
        difference, error = ((value.double() - truth).norm() for value in (kernel - emulation + truth, emulation))
        assert difference <= most * error, f"{name}: the kernel is {difference / error:.2f} errors off"
        if most < 1:
            assert (kernel == emulation).double().mean() > 0.95, name


# Rows and page


@pytest.fixture(scope="module")
def committed():
    return numerics.read(FOLDER)


def test_committed_rows_are_whole(committed):
    growth = [row for row in committed if row["kind"] == "growth"]
    assert {row["time"] for row in growth} == set(LENGTHS)
    assert {(row["format"], row["impl"]) for row in growth} == set(numerics_page.implementations())
    assert all(tuple(row) == numerics.KEYS for row in committed)
    assert all(row[key] > 0 for row in growth for key in numerics.ERRORS)


def test_the_words_of_the_page_are_true(committed):
    growth = [row for row in committed if row["kind"] == "growth"]
    first, last = LENGTHS[0], LENGTHS[-1]

    def error(key, weights, form, impl=OURS, time=last):
        return numerics_page.mean(growth, key, weights=weights, format=form, impl=impl, time=time)

    for form in FORMATS:
        assert error("error_y", "default", form) < 3 * error("error_y", "default", form, time=first)
    for form, impl in (("fp32", OURS), ("fp32", TORCH), ("tf32", OURS)):
        assert error("error_y", "long", form, impl) > 10 * error("error_y", "long", form, impl, time=first)
        assert error("error_dw_hh", "long", form, impl) < 1e-3
    for form in ("fp16", "bf16"):
        eps = torch.finfo(STORAGE[form]).eps
        assert error("error_dw_hh", "default", form) < 2 * error("error_dw_hh", "default", form, time=first)
        assert error("error_dw_hh", "default", form, TORCH) > 10 * error("error_dw_hh", "default", form)
        assert error("error_y", "long", form) < eps
        assert error("error_y", "long", form, STATE) > 5 * eps
        for key in ("error_dw_hh", "error_dx"):
            assert error(key, "long", form) < eps
            assert error(key, "long", form) < 2 * error(key, "long", form, GATES)
            assert error(key, "long", form) < error(key, "long", form, RECOMPUTE) < 2 * eps
            assert error(key, "long", form, AS_IT_IS) > 10 * eps
            assert error(key, "long", form, TORCH) > 10 * eps
        assert error("error_dx", "long", form, RECOMPUTE) > 2 * error("error_dx", "long", form)
        assert error("error_y", "long", form, RECOMPUTE) == error("error_y", "long", form)
    assert torch.amp.GradScaler("cpu").get_scale() == numerics.SCALE


def test_what_the_page_says_of_tf32_operands_is_true(committed):
    """Cut off, they make larger errors for every T and H; with long-memory weights y's then drift more."""
    some = [row for row in committed if row["kind"] in ("growth", "width") and row["format"] == "tf32"]
    shapes = {(row["hidden"], row["time"]) for row in some}
    assert {hidden for hidden, _ in shapes} == {numerics.HIDDEN, *numerics.WIDTHS}

    def ratio(key, weights, hidden, time):
        about = {"weights": weights, "hidden": hidden, "time": time}
        rounded, cut_off = (numerics_page.mean(some, key, impl=impl, **about) for impl in (OURS, CUT_OFF))
        return cut_off / rounded

    for key, (hidden, time) in itertools.product(numerics.ERRORS, shapes):
        assert 2.3 < ratio(key, "default", hidden, time) < 3.5
        assert 1.5 < ratio(key, "long", hidden, time) < 5
    for hidden, last in {numerics.HIDDEN: LENGTHS[-1], **numerics.WIDTHS}.items():
        assert ratio("error_y", "long", hidden, last) > 1.3 * ratio("error_y", "long", hidden, 1)


def test_what_remains_of_a_long_memory_is_fp32s_z():
    """What the page says of fp32: with an exact z the errors of gradients would be those of a short memory."""
    exact = numerics.layer_of("long", torch.float32, 0, 16)
    _, _, true_gates, truth, _ = emulated(NOWHERE, exact)
    rounding, layer = FORMATS["fp32"][OURS], exact.to(torch.float32)
    y, _, gates, found, _ = emulated(rounding, layer)
    with_exact_z = Gates(*(gate.double() for gate in gates))._replace(z=true_gates.z)
    better, _ = numerics.backward(NOWHERE, layer.to(torch.float64), y.double(), with_exact_z)
    for of_found, of_better, of_truth in ((found.x, better.x, truth.x), (found.w_hh, better.w_hh, truth.w_hh)):
        assert numerics.relative(of_found, of_truth) > 10 * numerics.relative(of_better, of_truth)


def test_in_torchs_order_of_the_sum_dw_hh_has_torchs_error():
    """What the page says of the one cell where ours is worse."""
    exact = numerics.layer_of("default", torch.float32, 0, 16)
    layer = exact.to(torch.float32)
    truth = emulated(NOWHERE, exact)[3].w_hh
    y, _, _, found, dgh = emulated(FORMATS["fp32"][OURS], layer)
    h_prev = torch.cat((layer.h0[None], y[:-1]))
    stepwise = sum(dgh[t].flatten(1).t() @ h_prev[t] for t in reversed(range(16)))
    _, theirs = numerics.torch_cpu(torch.float32, layer)
    ours, torchs = (numerics.relative(value, truth) for value in (stepwise, theirs.w_hh))
    assert ours < numerics_page.MARGIN * torchs
    assert numerics.relative(found.w_hh, truth) > ours


# The command


def test_a_small_run_appends_rows(tmp_path, capsys):
    assert main(["numerics", "--steps", "5", "--seeds", "1", "--commit", "abc", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    written = [json.loads(line) for line in path.read_text().splitlines()]
    assert f"Rows: {path}\n" in capsys.readouterr().out
    assert all(tuple(row) == numerics.KEYS and row["commit"] == "abc" for row in written)
    assert {row["time"] for row in written} == {1, 4}
    assert numerics.read(tmp_path) == written

    path.write_text(path.read_text() + json.dumps(written[0] | {"error_y": 7.0}) + "\n")
    assert numerics.read(tmp_path) == [written[0] | {"error_y": 7.0}, *written[1:]]


def test_values_that_are_not_finite_are_said():
    found = numerics.shares(torch.tensor([0.0, 1e-9, 1e-6, 1.0, 1e6]), torch.float16)
    assert found == pytest.approx({"zero": 0.2, "subnormal": 0.2, "overflow": 0.2, "largest": 1e6})
    where = dict.fromkeys(("torch", "commit", "date"), "here")
    row = numerics.whole({"kind": "k", "weights": "w", "time": 1, "seed": 0, "format": "f", "error_y": math.inf}, where)
    assert row["error_y"] is None
    assert numerics_page.mean([row], "error_y", kind="k") is None
    assert numerics_page.number(None) == "not finite"


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (("--steps", "0"), "expected a whole number from 1 to 16384, got '0'"),
        (("--seeds", "many"), "expected a whole number from 1 to 100, got 'many'"),
        (("--out", "/dev/null/rows"), "cannot write rows to '/dev/null/rows'"),
        (("--plot",), "unrecognized arguments: --plot"),
    ],
)
def test_a_bad_argument_gets_one_sentence(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["numerics", *arguments])
    printed = capsys.readouterr()
    assert stop.value.code == 2
    assert sentence in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_the_command_runs_as_a_module():
    done = python("-m", "bench", "numerics", "--help")
    assert done.returncode == 0, done.stderr
    assert "--steps" in done.stdout

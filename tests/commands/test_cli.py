"""The command line as a user meets it."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from cpu_loop import llvmlite_of, needs_loop
from processes import ROOT, python

import tritongru
from tritongru.__main__ import main
from tritongru.planning.devices import GPUS, MOST, cpu_facts
from tritongru.planning.instruction_sets import SETS, host_sets
from tritongru.planning.plan import plan

KEYS = {
    *("device", "family", "reason", "forward", "backward", "us_per_step", "torch_us_per_step", "memory"),
    *("expected_ratio_forward", "expected_ratio", "torch_unknown", "note", "kernels"),
}
MODEL = "a model, not a measurement"


def run(*arguments):
    """The command line in this process, whose start takes longer than any command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(list(arguments))
        except SystemExit as left:
            code = left.code
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def test_the_module_is_the_command_line():
    for arguments in (("explain", "--hidden", "0"), ("explain", "--hidden", "64", "--gpu", "h200"), ("env", "--json")):
        done = python("-m", "tritongru", *arguments, TRITON_INTERPRET=os.environ.get("TRITON_INTERPRET", ""))
        here = run(*arguments)
        assert (done.returncode, done.stdout, done.stderr) == (here.returncode, here.stdout, here.stderr)


def explain(*arguments):
    done = run("explain", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_explain_an_h200():
    answer = explain("--hidden", "128", "--batch", "64", "--time", "512", "--dtype", "float16", "--gpu", "h200")
    assert answer.keys() >= KEYS
    assert answer["family"] == "resident"
    for found in (answer["forward"], answer["backward"]):
        launch = found["launch"]
        assert (found["family"], found["programs"], launch["block_b"], sum(launch["chunks"])) == (
            "resident",
            4,
            16,
            128,
        )
        assert 3 * 128 * 128 * 2 <= launch["shared_bytes"] <= GPUS["h200"].shared_bytes
        assert launch["num_warps"] in (4, 8, 16)
    assert 0.1 < answer["us_per_step"] < 10
    assert answer["memory"]["kept"] == 5 * 512 * 64 * 128 * 2


@pytest.mark.parametrize("gpu, kernels", [("h100", "run"), ("rtx4090", "compiled, never run")])
def test_explain_says_whether_the_kernels_have_ever_run(gpu, kernels):
    arguments = ("--hidden", "128", "--gpu", gpu)
    assert explain(*arguments)["kernels"] == kernels
    done = run("explain", *arguments)
    assert ("are compiled, never run: neither a GPU nor the PTX machine" in done.stdout) is (gpu == "rtx4090")


def test_explain_why_torch():
    answer = explain("--hidden", "2000", "--gpu", "a100")
    assert answer.keys() >= KEYS
    assert (answer["family"], answer["forward"], answer["us_per_step"]) == ("torch", None, None)
    assert "hidden size 2000" in answer["reason"]


def test_explain_in_words_says_that_the_model_is_one():
    done = run("explain", "--hidden", "64", "--gpu", "h200", "--bidirectional", "--batch", "17")
    assert done.returncode == 0
    assert "resident: " in done.stdout
    assert "4 programs of 16 sequences" in done.stdout
    assert "a model, not a measurement" in done.stdout
    assert done.stdout.startswith("on H200, in float32, products in tf32\nresident: ")


@pytest.mark.parametrize("name", ["h200", "H200", "Mi300X", "RTX4090"])
def test_a_gpu_in_any_case_is_named(name):
    device = GPUS[name.lower()].name
    assert explain("--hidden", "64", "--gpu", name)["device"] == device
    assert run("explain", "--hidden", "64", "--gpu", name).stdout.startswith(f"on {device}, in float32")


def test_the_expected_ratio_is_torchs_time_over_ours():
    """Of what the plan itself prints: a step of each pass, and torch's, which takes as much backward as forward."""
    asked = ("--hidden", "768", "--batch", "16", "--dtype", "bfloat16", "--gpu", "h200")
    answer = explain(*asked)
    ours, theirs = [answer[name]["cost"]["us"] for name in ("forward", "backward")], answer["torch_us_per_step"]
    assert answer["family"] == "persistent"
    assert answer["expected_ratio_forward"] == pytest.approx(theirs / ours[0])
    assert answer["expected_ratio"] == pytest.approx(2 * theirs / sum(ours))
    assert answer["expected_ratio_forward"] != answer["expected_ratio"]
    assert MODEL in answer["note"]
    (line,) = ratio_lines(*asked)
    forward, both = theirs / ours[0], 2 * theirs / sum(ours)
    assert line == (
        f"  expected speed relative to torch: {forward:.2f}x forward, {both:.2f}x forward and backward together "
        f"({MODEL}; time loops only)"
    )
    answer = explain(*asked, "--inference")
    assert answer["expected_ratio"] == answer["expected_ratio_forward"] == pytest.approx(theirs / ours[0])
    (line,) = ratio_lines(*asked, "--inference")
    assert line == (f"  expected speed relative to torch: {theirs / ours[0]:.2f}x forward ({MODEL}; time loops only)")


def test_where_torch_runs_the_ratio_is_of_the_kernels_that_would_have():
    asked = ("--hidden", "2000", "--gpu", "a100")
    answer = explain(*asked)
    ours = [found["cost"]["us"] for found in answer["considered"]]
    assert (answer["family"], len(ours)) == ("torch", 2)
    assert answer["expected_ratio"] == pytest.approx(2 * answer["torch_us_per_step"] / sum(ours))
    assert answer["expected_ratio"] < 1
    (line,) = ratio_lines(*asked)
    ratio = answer["expected_ratio_forward"]
    assert line.startswith(f"  expected speed relative to torch, if the kernel ran: {ratio:.2f}x forward, ")
    assert MODEL in line


@pytest.mark.parametrize(
    "arguments, why",
    [
        (("--hidden", "128", "--gpu", "h200"), "up to hidden size 192 cuDNN has another algorithm, for which"),
        (("--hidden", "64", "--gpu", "mi300x"), "the cost model has no figures for torch's GRU on MI300X"),
        (
            ("--hidden", "64", "--gpu", "h200", "--dtype", "float64"),
            "the model covers GPU kernels only, and none was considered",
        ),
    ],
)
def test_a_ratio_without_figures_is_unknown(arguments, why):
    answer = explain(*arguments)
    assert answer["expected_ratio"] is answer["expected_ratio_forward"] is None
    (line,) = ratio_lines(*arguments)
    assert line.startswith(f"  expected speed relative to torch: unknown, because {why}")


def ratio_lines(*arguments):
    done = run("explain", *arguments)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if "expected speed" in line]


def test_without_a_gpu_explain_hints_at_other_machines(monkeypatch, capsys):
    """On standard output after the words, but never into JSON."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    hint = "no GPU here: add --gpu h200 (or "
    assert main(["explain", "--hidden", "8"]) == 0
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == f"on {cpu_facts().name}, in float32"
    assert last.startswith(hint)
    assert "mi300x" in last
    assert last.endswith(") to ask about another machine")
    assert main(["explain", "--hidden", "8", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["device"] == cpu_facts().name
    assert printed.err.startswith(hint)
    for other in (["--gpu", "a100"], ["--cpu", "native"]):
        assert main(["explain", "--hidden", "8", *other]) == 0
        assert "no GPU here" not in "".join(capsys.readouterr())


@pytest.mark.parametrize("isa", SETS)
def test_explain_another_cpu(isa):
    """Whatever this machine has, and without llvmlite."""
    with llvmlite_of():
        answer = explain("--hidden", "64", "--batch", "8", "--time", "10", "--cpu", isa)
        done = run("explain", "--hidden", "64", "--batch", "8", "--time", "10", "--cpu", isa)
    assert answer.keys() >= KEYS | {"loop"}
    own, loop = SETS[isa], answer["loop"]
    assert (answer["family"], answer["device"]) == ("llvm", f"a CPU with {own.title}")
    assert (loop["isa"], loop["rows"], loop["lanes"]) == (isa, own.rows, own.bytes // 4)
    assert done.stdout.startswith(f"on a CPU with {own.title}, in float32\nllvm: ")
    tile = f"{own.rows} sequences x 3 gates x {own.bytes // 4} hidden units"
    assert f"  {own.title}: register tiles of {tile}\n" in done.stdout


@needs_loop
def test_explain_this_machines_cpu():
    answer = explain("--hidden", "64", "--cpu", "native")
    assert (answer["family"], answer["device"]) == ("llvm", cpu_facts().name)
    assert answer["loop"]["isa"] == host_sets()[0]
    assert explain("--hidden", "64", "--cpu") == explain("--cpu", "--hidden", "64") == answer
    assert explain("--hidden", "64", "--cpu", "native", "--inference")["loop"]["chunk_backward"] is None
    assert explain("--hidden", "64", "--cpu", "native", "--dtype", "float64")["loop"]["lanes"] == (
        answer["loop"]["lanes"] // 2
    )


def test_a_cpu_without_a_loop_says_how_to_get_one():
    with llvmlite_of():
        answer = explain("--hidden", "64", "--cpu", "native")
    assert (answer["family"], answer["device"], answer["loop"]) == ("torch", "the CPU", None)
    assert answer["reason"] == "the package llvmlite is not installed; install it with: pip install 'tritongru[cpu]'"


# Sequences that end early or begin anew, and batches


@pytest.mark.parametrize("asked", [["lengths"], ["resets"], ["lengths", "resets"]], ids=" ".join)
def test_explain_calls_with_lengths_or_resets(asked):
    base, names = ("--hidden", "64", "--batch", "17"), " and ".join(asked)
    form = f"  {names}: kernels compiled for these, which end with the longest sequence of a batch tile\n"
    row = f"  {names}: each segment is a row of its own, and padding costs no work\n"
    mask = {
        "lengths": "  lengths: masks around torch's GRU, which works on the padding as well\n",
        "resets": "  resets: torch's GRU has none, so it runs one time step at a time\n",
    }[asked[-1]]
    large = ("--dtype", "float64", "--gpu", "a100")
    for place, line in ((("--gpu", "h200"), form), (("--cpu", "avx2"), row), (large, mask)):
        options = [f"--{name}" for name in asked]
        answer, plain = explain(*base, *place, *options), explain(*base, *place)
        for name in ("lengths", "resets"):
            assert answer[name] is (name in asked)
            assert plain[name] is False
        assert line in run("explain", *base, *place, *options).stdout
        assert line not in run("explain", *base, *place).stdout


@pytest.mark.parametrize(
    "place", [("--hidden", "4096", "--batch", "16", "--gpu", "h100"), ("--hidden", "64", "--time", "1", "--cpu")]
)
def test_with_resets_torch_is_no_choice(place):
    """It would run one time step at a time, and a call then takes any kernel that there is."""
    assert explain(*place)["family"] == explain(*place, "--lengths")["family"] == "torch"
    answer = explain(*place, "--resets")
    assert answer["family"] != "torch"
    assert answer["torch_us_per_step"] is answer["expected_ratio"] is None
    if "--gpu" in place:
        why = "with resets torch's GRU runs one time step at a time, and the cost model has no figures for that"
        assert f"relative to torch: unknown, because {why}\n" in run("explain", *place, "--resets").stdout


@pytest.mark.parametrize("asked", [{"lengths": True}, {"resets": True}], ids=str)
@pytest.mark.parametrize("impl", ["auto", "torch"])
def test_explain_of_a_module_as_the_command_line(impl, asked):
    gru = tritongru.GRU(64, 64, impl=impl)
    answer = tritongru.explain(gru, batch=17, time=512, device="h200", **asked)
    for name in ("lengths", "resets"):
        assert getattr(answer, name) == (name in asked)
    plain = tritongru.explain(gru, batch=17, time=512, device="h200")
    assert not plain.lengths
    assert not plain.resets
    if impl == "auto":
        options = [f"--{name}" for name in asked]
        done = run("explain", "--hidden", "64", "--batch", "17", "--gpu", "h200", *options)
        assert str(answer) + "\n" == done.stdout
    else:
        line = "masks around torch's GRU" if "lengths" in asked else "torch's GRU has none"
        assert line in str(answer)


@pytest.mark.parametrize("name", ["lengths", "resets"])
@pytest.mark.parametrize("value", [torch.tensor([3, 2]), torch.tensor(True), 3, None, "x"], ids=str)
def test_lengths_themselves_are_not_what_a_plan_is_for(name, value):
    gru = tritongru.GRU(3, 4)
    says = f"{name} should be True or False, whether calls pass {name}, got {type(value).__name__}"
    for call in (tritongru.explain, tritongru.GRU.warmup):
        with pytest.raises(TypeError) as refused:
            call(gru, batch=2, time=3, **{name: value})
        assert str(refused.value) == says


def test_a_flag_may_be_numpys():
    numpy = pytest.importorskip("numpy")
    gru = tritongru.GRU(3, 4)
    answer = tritongru.explain(gru, batch=2, time=3, device="h200", lengths=numpy.True_, resets=numpy.False_)
    assert json.loads(json.dumps(answer.as_dict()))["lengths"] is True
    gru.warmup(2, 3, lengths=numpy.True_, packed=numpy.False_)


def kernels_of(hidden, batch, gpu, ragged):
    """What a batch runs, by the plan itself: of each pass its family and launch, without how many tiles share it."""
    answer = plan(hidden, "float16", GPUS[gpu], batch=batch, time=512, lengths=ragged)
    launches = [None if found is None else asdict(found.launch) for found in (answer.forward, answer.backward)]
    families = [None if found is None else found.family for found in (answer.forward, answer.backward)]
    return families, [None if launch is None else launch | {"groups": None} for launch in launches]


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("hidden, batch", [(64, 1), (128, 64), (512, 16), (768, 100), (1024, 300)])
@pytest.mark.parametrize("gpu", ["h200", "a100"])
def test_the_line_about_batches_is_true(gpu, hidden, batch, ragged):
    """At both ends, in between and just outside."""
    asked = ["explain", "--hidden", str(hidden), "--batch", str(batch), "--dtype", "float16", "--gpu", gpu]
    text = run(*asked, *(["--lengths"] if ragged else [])).stdout
    found = re.findall(r"^  batches of (\d+) to (\d+) sequences run the same compiled kernels, ", text, re.MULTILINE)
    own = kernels_of(hidden, batch, gpu, ragged)
    if own[0][0] is None:
        assert not found
        return
    ((low, high),) = found
    low, high = int(low), int(high)
    assert low <= batch <= high <= 4096
    for same in {low, (low + batch) // 2, (batch + high) // 2, high}:
        assert kernels_of(hidden, same, gpu, ragged) == own, same
    if low > 1:
        assert kernels_of(hidden, low - 1, gpu, ragged) != own
    if high < 4096:
        assert kernels_of(hidden, high + 1, gpu, ragged) != own


def test_the_line_about_batches_of_a_cpu_and_of_a_huge_batch():
    done = run("explain", "--hidden", "64", "--cpu", "avx2")
    assert "  a sequence has the same bits in every batch\n" in done.stdout
    assert "batches of" not in done.stdout
    assert explain("--hidden", "64", "--gpu", "h200", "--batch", "4097")["batches"] is None


def test_version():
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"tritongru {tritongru.__version__}\n")


def test_explain_options_matter():
    base = ("--hidden", "100", "--gpu", "h200")
    assert explain(*base, "--precision", "ieee")["backward"]["family"] == "persistent"
    assert explain(*base, "--precision", "tf32")["precision"] == "tf32"
    assert explain(*base, "--inference")["backward"] is None
    assert explain(*base)["backward"] is not None
    memory = explain(*base, "--memory", "recompute", "--layers", "2", "--input", "7")["memory"]
    assert (memory["mode"], memory["kept"]) == ("recompute", 2 * 512 * 100 * 4)


def test_env():
    found = json.loads(run("env", "--json").stdout)
    assert found.keys() >= {"tritongru", "torch", "triton", "gpu", "python"}
    assert found["precision of fp32 recurrence"] in ("tf32", "ieee")
    assert f"torch: {found['torch']}" in run("env").stdout.splitlines()


BAD = ("0", "many", "1.5", "1e3", "True", str(10**12), "9" * 5000)
OPTIONS = {name: f"--{name}" for name in MOST} | {"inputs": "--input"}


@pytest.mark.parametrize(
    "arguments, says",
    [
        *((("explain", "--hidden", value), f"{value!r} is not a whole number from 1 to 100000") for value in BAD),
        (
            ("explain", "--hidden", "8", "--gpu", "Z9"),
            "'Z9' is not a known GPU; choose from a100, b200, h100, h200, mi300x",
        ),
        (
            ("explain", "--hidden", "8", "--gpu", "h200", "--cpu", "avx2"),
            "give either --gpu or --cpu, not both",
        ),
        (("explain", "--hidden", "8", "--cpu", "mmx"), "invalid choice: 'mmx'"),
        (("explain",), "the following arguments are required: --hidden"),
        (("explain", "--hidden", "8", "--batch", "-3"), "'-3' is not a whole number from 1 to 10000000"),
        (("explain", "--hidden", "8", "--batch", str(10**15)), f"'{10**15}' is not a whole number from 1 to 10000000"),
        (
            ("explain", "--hidden", "8", "--time", str(10**30)),
            f"'{10**30}' is not a whole number from 1 to 1000000000",
        ),
        (("explain", "--hidden", "8", "--layers", str(10**9)), f"'{10**9}' is not a whole number from 1 to 1000"),
        (("explain", "--hidden", "8", "--input", str(10**9)), f"'{10**9}' is not a whole number from 1 to 10000000"),
        (
            ("explain", "--gpu", "h200", *(part for name, most in MOST.items() for part in (OPTIONS[name], str(most)))),
            "(inputs 10000000, hidden 100000, batch 10000000, time 1000000000, layers 1000) have 1.0e+21 values, but "
            "no GPU holds more than 1e+12; give smaller sizes",
        ),
        ((), "required"),
        (("train",), "invalid choice: 'train'"),
    ],
)
def test_a_bad_value_gets_a_sentence(arguments, says):
    done = run(*arguments)
    assert done.returncode == 2
    *usage, sentence = done.stderr.splitlines()
    assert says in sentence
    assert all(line.startswith(("usage:", " ")) for line in usage)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_output_that_cannot_be_written_gets_a_sentence():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "tritongru", "env"], stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("the output was not written (No space left on device); make room")
    assert "Traceback" not in done.stderr

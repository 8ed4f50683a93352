"""The command line as a user meets it."""

import json
import subprocess
import sys

import pytest

from tritongru.devices import GPUS

KEYS = {"family", "reason", "forward", "backward", "us_per_step", "torch_us_per_step", "memory"}


def run(*arguments):
    return subprocess.run([sys.executable, "-m", "tritongru", *arguments], capture_output=True, text=True, timeout=120)


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


def test_explain_why_torch():
    answer = explain("--hidden", "2000", "--gpu", "a100")
    assert answer.keys() >= KEYS
    assert (answer["family"], answer["forward"], answer["us_per_step"]) == ("torch", None, None)
    assert "hidden size 2000" in answer["reason"]


def test_explain_in_words_says_that_the_model_is_one():
    done = run("explain", "--hidden", "100", "--gpu", "h200", "--bidirectional", "--batch", "17")
    assert done.returncode == 0
    assert "resident: " in done.stdout
    assert "programs 4 of 16 rows" in done.stdout
    assert "a model, not a measurement" in done.stdout
    assert "float32, products in tf32" in done.stdout


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


@pytest.mark.parametrize(
    "arguments, says",
    [
        (("explain", "--hidden", "0"), "'0' is not a whole number of at least 1"),
        (("explain", "--hidden", "many"), "'many' is not a whole number of at least 1"),
        (("explain", "--hidden", "8", "--gpu", "z9"), "invalid choice: 'z9'"),
        (("explain",), "the following arguments are required: --hidden"),
        (("explain", "--hidden", "8", "--batch", "-3"), "'-3' is not a whole number of at least 1"),
        ((), "required"),
        (("train",), "invalid choice: 'train'"),
    ],
)
def test_a_bad_value_gets_a_sentence(arguments, says):
    done = run(*arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""

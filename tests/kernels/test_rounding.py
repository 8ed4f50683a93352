"""Operands of TF32 products: which kernels round them, each once, and what that does to a product.

Compiled without a GPU, in another process: the tests' own may have chosen Triton's interpreter."""

import functools
import json
import math
import re
from pathlib import Path

import pytest
import torch
from processes import python
from tolerance import TF32_CUT_OFF, TF32_ROUNDED, rounding

from bench.study import numerics
from tritongru.planning import triton_versions
from tritongru.planning.launches import launch_of, rows_of

compiles = pytest.mark.skipif(triton_versions.installed() is None, reason="needs Triton, which is not installed")

DIRECTIONS = ("forward", "backward")
ROUNDING_FAMILIES = ("resident", "persistent")
INSTRUCTION = "cvt.rna.tf32.f32"
COMPILE = """
import json, sys
from triton import knobs
from bench.compile.readings import compile_form
from tritongru.planning.launches import rows_of

arch, items = sys.argv[1], json.loads(sys.argv[2])
for family, i in items:
    files = {}
    knobs.compilation.listener = lambda *, metadata_group, **_: files.update(metadata_group)
    compile_form(family, rows_of(family)[i], "plain", arch)
    print(json.dumps({name.rpartition(".")[2]: str(path) for name, path in files.items()}))
"""


def smallest(family, kernel, kind):
    """Place of a row in its table."""
    rows = rows_of(family)
    about = {"backend": "cuda", "kernel": kernel, "kind": kind}
    some = [i for i, row in enumerate(rows) if all(row[key] == value for key, value in about.items())]
    return min(some, key=lambda i: (rows[i].get("hidden") or rows[i].get("units", 0), rows[i]["num_warps"]))


@functools.cache
def compiled(arch, families, kinds):
    """(family, kernel, kind) -> the text of Triton's own language, before Triton adds to it, and the PTX."""
    keys = [(family, kernel, kind) for family in families for kernel in DIRECTIONS for kind in kinds]
    items = [(key[0], smallest(*key)) for key in keys]
    done = python("-c", COMPILE, arch, json.dumps(items))
    assert done.returncode == 0, done.stderr[-3000:]
    files = map(json.loads, done.stdout.splitlines())
    return {key: [Path(own[ext]).read_text() for ext in ("ttir", "ptx")] for key, own in zip(keys, files, strict=True)}


def values_rounded(text):
    """In one program, of all the blocks that the text rounds."""
    blocks = re.findall(rf'inline_asm "{INSTRUCTION} .*-> tensor<([0-9x]+)xf32>', text)
    return sum(math.prod(map(int, block.split("x"))) for block in blocks)


def operands(family, kernel, launch):
    """Values of W_hh that a program holds, and those that it makes into operands: the state, or dr, dz and da. A
    persistent program does so with its own alone, but also with those of h0, before the first step."""
    if family == "resident":
        hidden = sum(launch.chunks)
        return 3 * hidden * hidden + (1 if kernel == "forward" else 3) * launch.block_b * hidden
    own = max(launch.block_b * launch.block_h, 32 * launch.num_warps)  # each thread has one, if only another's
    gates, blocks = (launch.gates, 2) if kernel == "forward" else (3, 3)
    return gates * launch.units * launch.block_h + blocks * own


@compiles
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("kernel", DIRECTIONS)
@pytest.mark.parametrize("family", ROUNDING_FAMILIES)
def test_every_operand_of_a_tf32_product_is_rounded_once(family, kernel, arch):
    ttir, ptx = compiled(arch, ROUNDING_FAMILIES, ("tf32",))[family, kernel, "tf32"]
    launch = launch_of(family, rows_of(family)[smallest(family, kernel, "tf32")])
    assert values_rounded(ttir) == operands(family, kernel, launch)
    assert INSTRUCTION in ptx


@compiles
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("kernel", DIRECTIONS)
def test_the_stepwise_family_leaves_its_operands_to_the_tensor_cores(kernel, arch):
    ttir, ptx = compiled(arch, ("stepwise",), ("tf32",))["stepwise", kernel, "tf32"]
    assert "inputPrecision = tf32" in ttir
    assert re.search(r"mma\S*\.tf32\.tf32", ptx)
    assert INSTRUCTION not in ttir + ptx


@compiles
@pytest.mark.parametrize("kernel", DIRECTIONS)
@pytest.mark.parametrize("family", ROUNDING_FAMILIES)
def test_operands_of_other_products_stay_as_they_are(family, kernel):
    """An IEEE product needs the digits that TF32 has not: Triton rounds the leading part itself, later, and subtracts
    it."""
    found = compiled("sm_90", ROUNDING_FAMILIES, ("16-bit", "ieee"))
    assert INSTRUCTION not in "".join(found[family, kernel, "16-bit"])
    ttir, ptx = found[family, kernel, "ieee"]
    assert "inputPrecision = tf32x3" in ttir
    assert INSTRUCTION not in ttir
    assert INSTRUCTION in ptx


def bits(*patterns):
    return torch.tensor(patterns, dtype=torch.int64).to(torch.int32).view(torch.float32)


@pytest.mark.parametrize("precision", ["tf32", "tf32x3"])
def test_a_gpu_rounds_as_the_emulation_and_the_interpreter_not_at_all(precision, device):
    from gate_kernels import operand_kernel

    torch.manual_seed(0)
    edges = bits(0x3F801000, 0xBF801000, 0x3FFFF000, 0x80000000, 0x7F7FEFFF, 0x7F800000, 0xFF800000)
    x = torch.cat((edges, torch.randn(1000)))
    y = torch.full_like(x, math.nan, device=device)
    operand_kernel[(-(-x.numel() // 256),)](x.to(device), y, x.numel(), BLOCK=256, PRECISION=precision)
    rounded = device.type == "cuda" and precision == "tf32"
    assert torch.equal(y.cpu(), numerics.to_tf32(x) if rounded else x)


WAYS = [(numerics.to_tf32, "resident"), (numerics.to_tf32, "persistent"), (numerics.cut_to_tf32, "stepwise")]


@pytest.mark.parametrize("to_tf32, family", WAYS)
def test_the_error_of_an_operand(to_tf32, family):
    """Over the mantissas of fp32, 1 to 2. Errors of rounding cancel out; those of cutting off have one sign."""
    x = 1 + torch.arange(0, 2**23, 7).float() / 2**23
    off = x.double() - to_tf32(x).double()
    eps = rounding(torch.float32, "tf32", family)
    assert off.abs().mean().item() == pytest.approx(eps, rel=0.01)
    assert 1.99 * eps < off.abs().max() <= 2 * eps
    assert off.mean().item() == pytest.approx(eps if family == "stepwise" else 0, abs=0.01 * eps)


@pytest.mark.parametrize("K", [32, 128, 1024])
def test_a_product_of_rounded_operands_is_exacter_than_one_of_operands_cut_off(K):
    """All products have one sign, so that errors of one sign add up. The tensor core is modelled by what it reads of
    its operands; it cuts off whatever has not been rounded, and leaves rounded operands as they are."""
    torch.manual_seed(0)
    a, b = 1 + torch.rand(16, K), 1 + torch.rand(K, 32)
    exact = a.double() @ b.double()

    def error(a, b):
        found = numerics.cut_to_tf32(a).double() @ numerics.cut_to_tf32(b).double()
        return ((found - exact).abs() / exact).max().item()

    assert error(numerics.to_tf32(a), numerics.to_tf32(b)) < 2 * TF32_ROUNDED
    assert 2 * TF32_ROUNDED < error(a, b) < 2 * TF32_CUT_OFF

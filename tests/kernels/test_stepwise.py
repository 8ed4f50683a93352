"""The stepwise family in the interpreter, alone: forward and backward against the oracle."""

import dataclasses
import functools
import itertools

import pytest
import torch
from loops import NAN, RESULTS, check, layer_tensors, loop_backward, loop_forward, plain, run_backward, run_forward

from tritongru.kernels import interpreter_threads
from tritongru.kernels.stepwise import launch as stepwise
from tritongru.planning.launches import StepwiseLaunch

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the tile's shape is the compiler's to take")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LAUNCH = StepwiseLaunch(16, 16, 32, 4, 2, 0, "ieee")


def run(tensors, launch=LAUNCH, B=3, offsets=None):
    y, hn, gates = run_forward(stepwise, tensors, launch, B, True, offsets)
    return y, hn, gates, *run_backward(stepwise, tensors, y, gates, launch, offsets)


SHAPES = {
    "odd size": ({"H": 33}, {}),
    "two batch tiles": ({"B": 20, "T": 3}, {}),
    "one row, one step": ({"B": 1, "T": 1}, {}),
    "both directions": ({"D": 2, "B": 17, "T": 3}, {}),
    "three units": ({"H": 3, "D": 2}, {}),
    "70 units": ({"H": 70, "T": 3}, {"block_h": 32, "block_k": 16}),
    "no bias": ({"bias": False}, {}),
    "zeros as h0": ({"use_h0": False, "D": 2}, {}),
    "no dy": ({"use_dy": False}, {}),
    "wide tile": ({"H": 70, "B": 70, "T": 2}, {"block_b": 64, "block_h": 64, "block_k": 64}),
    "in TF32": ({"T": 7, "H": 20}, {"dot_precision": "tf32"}),
}


IN_16_BIT = ("odd size", "both directions", "70 units", "no dy")
CASES = [(shape, dtype) for dtype in DTYPES for shape in (SHAPES if dtype == torch.float32 else IN_16_BIT)]


@pytest.mark.every(3)
@pytest.mark.parametrize("shape, dtype", CASES, ids=str)
def test_against_the_oracle(shape, dtype):
    sizes, changes = SHAPES[shape]
    tensors = layer_tensors(**sizes, dtype=dtype)
    B = sizes.get("B", 3)
    check(run(tensors, dataclasses.replace(LAUNCH, **changes), B), tensors, B, shape)


@pytest.mark.slow
@pytest.mark.parametrize("use_h0", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_packed_rows(dtype, use_h0):
    """Each row alone gives what it gives among rows of other lengths, in both directions."""
    lengths = [5, 5, 3, 2, *[1] * 14]
    counts = [sum(length > t for length in lengths) for t in range(lengths[0])]
    offsets = torch.tensor([0, *torch.tensor(counts).cumsum(0)])
    tensors = layer_tensors(B=18, H=20, D=2, dtype=dtype, rows=sum(counts), use_h0=use_h0)
    y, hn, gates, dgx, da, dh = run(tensors, B=18, offsets=offsets)
    for b in (0, 2, 3, 17):
        rows = [int(offsets[t]) + b for t in range(lengths[b])]
        alone = tensors | {name: tensors[name][rows] for name in ("gx", "dy")}
        alone |= {name: tensors[name][:, b : b + 1] for name in ("h0", "dhn") if tensors[name] is not None}
        found = (y[rows], hn[:, b : b + 1], gates[rows], dgx[rows], da[rows], dh[:, b : b + 1])
        check(found, alone, 1, f"row {b}")


@pytest.mark.slow
@pytest.mark.parametrize("parts", [(2, 3), (1, 1, 3), (4, 1)], ids=str)
@pytest.mark.parametrize("D", [1, 2])
def test_the_backward_in_parts(D, parts):
    """The same bits, whatever the parts; each part's tensors hold its own rows alone."""
    tensors = layer_tensors(T=5, H=20, D=D)
    y, _, gates = run_forward(stepwise, tensors, LAUNCH)
    whole = run_backward(stepwise, tensors, y, gates, LAUNCH)
    again = run_backward(stepwise, tensors, y, gates, LAUNCH, parts=parts)
    for name, *values in zip(RESULTS[3:], whole, again, strict=True):
        assert torch.equal(*values), name


def test_two_runs_give_the_same_bits():
    tensors = layer_tensors(B=20, T=2, H=20, D=2)
    for name, *values in zip(RESULTS, run(tensors, B=20), run(tensors, B=20), strict=True):
        assert torch.equal(*values), name


def test_nothing_saved_changes_nothing():
    tensors = layer_tensors(H=33)
    with_gates, without = (run_forward(stepwise, tensors, LAUNCH, gates=gates)[:2] for gates in (True, False))
    for first, second in zip(with_gates, without, strict=True):
        assert torch.equal(first, second)


def test_what_lies_past_an_edge_in_memory_does_not_leak():
    """Another row and the other direction are NaN, and 0 times NaN is NaN too."""
    tensors = layer_tensors(H=33, T=2, D=2)
    clean = run(tensors)
    tensors["h0"][0, 1] = tensors["dhn"][0, 1] = NAN
    tensors["w_hh"][1] = NAN
    for name, found, before in zip(RESULTS, run(tensors), clean, strict=True):
        state = name in ("hn", "dh")
        first, second = (v[0, [0, 2]] if state else v[[0, 2, 3, 5], 0] for v in (found, before))
        assert torch.equal(first, second), name


class LastTile:
    """A kernel of whose grid only the programs of the last batch tile run."""

    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        places = list(itertools.product([grid[0] - 1], range(grid[1]), range(grid[2])))
        return functools.partial(interpreter_threads.launch_at, places, self.kernel, grid)


@pytest.mark.slow
def test_offsets_beyond_32_bits(monkeypatch):
    """The last tile of a batch whose inputs have more than 2^31 elements, both ways. Nothing else of them is ever
    touched, so most of their memory is never really there."""
    T, H, rows, dtype = 40, 48, 5, torch.float16
    B = (1 << 31) // (T * 3 * H) // 16 * 16 + 16 + rows
    assert T * B * 3 * H > 1 << 31
    tensors = layer_tensors(T=T, B=rows, H=H, dtype=dtype)

    def huge(*shape, filled=None, dtype=dtype):
        tensor = torch.empty(shape, dtype=dtype)
        if filled is not None:
            tensor[:, -rows:] = filled.view(shape[0], rows, *shape[2:])
        return tensor

    for name in ("forward", "backward"):
        name = f"stepwise_{name}_kernel"
        monkeypatch.setattr(stepwise, name, LastTile(getattr(stepwise, name)))
    gx, dy = huge(T, B, 1, 3 * H, filled=tensors["gx"]), huge(T, B, 1, H, filled=tensors["dy"])
    h0, dh = huge(1, B, H, filled=tensors["h0"]), huge(1, B, H, filled=tensors["dhn"], dtype=torch.float32)
    y, hn, gates = huge(T, B, 1, H), huge(1, B, H), huge(T, B, 1, H, 4)
    dgx, da = huge(T, B, 1, 3 * H), huge(T, B, 1, H)
    y_rows, gates_rows, dgx_rows, da_rows = (v.flatten(0, 1) for v in (y, gates, dgx, da))
    w_hh = tensors["w_hh"]
    loop_forward(stepwise, gx.flatten(0, 1), w_hh, tensors["b_hh"], h0, y_rows, hn, gates_rows, None, LAUNCH)
    loop_backward(stepwise, dy.flatten(0, 1), dh, w_hh, h0, y_rows, gates_rows, dgx_rows, da_rows, None, LAUNCH)
    found = [v[:, -rows:] for v in (y, hn, gates, dgx, da, dh)]
    found[2] = plain(found[2])
    found = [v if name in ("hn", "dh") else v.flatten(0, 1) for name, v in zip(RESULTS, found, strict=True)]
    check(found, tensors, rows, "the last tile's")
